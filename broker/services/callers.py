"""
Which grant a caller without a browser speaks for: by a handle, a signed token, or a client certificate.

None of them is sent upstream. A caller that shows something and isn't known is refused, even where nothing is needed.
"""

import base64
import binascii
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256

from broker.core.callers import CallerIssuerOptions, CallersOptions
from broker.core.compact_jws import MalformedToken, read_compact
from broker.core.grant import Origin
from broker.core.handle import PREFIX, permits
from broker.core.id_token import ClaimsRefused
from broker.core.provider import ProviderOptions
from broker.errors import BadRequest, Forbidden, NoSession
from broker.services.clock import Clock
from broker.services.handles import Handles
from broker.services.id_tokens import IdTokens
from broker.services.jwks import Jwks
from broker.services.metadata import Metadata
from broker.services.outbound import Outbound
from broker.services.tokens import TokenBroker

MAX_CACHED = 10_000
TOKEN_CACHE_SECONDS = 60.0
"""How long a signature isn't checked again."""
MAX_TOKEN_BYTES = 16 << 10

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """
    What a request shows of its caller.

    Attributes:
        authorization: Its Authorization field lines.
        client_certificate: ``Client-Cert`` field lines from a trusted proxy (RFC 9440 section 2.1).
        address: The caller's true address.
        paths: Every reading of the request's path, in lower case.
    """

    authorization: Sequence[bytes]
    client_certificate: Sequence[bytes] = ()
    address: str
    paths: Sequence[str]


class CallerIssuer:
    """An issuer whose tokens name callers."""

    def __init__(self, options: CallerIssuerOptions, clock: Clock) -> None:
        self.options = options
        as_provider = ProviderOptions(
            issuer=options.issuer,
            jwks_uri=options.jwks_uri,
            client_id=options.audience,
            id_token_algorithms=options.algorithms,
        )
        self._outbound = Outbound(None)
        self._metadata = Metadata(as_provider, outbound=self._outbound, clock=clock)
        self._jwks = Jwks(self._metadata, outbound=self._outbound, clock=clock)
        self._tokens = IdTokens(as_provider, metadata=self._metadata, jwks=self._jwks, clock=clock)

    async def subject_of(self, token: str) -> tuple[str, float]:
        """Return whom *token* names and until when. Raises ``ClaimsRefused`` or ``ProviderError``."""
        return await self._tokens.check_caller(token, subject_claim=self.options.subject_claim)

    async def close(self) -> None:
        await self._jwks.close()
        await self._metadata.close()
        await self._outbound.close()


class Callers:
    """Finds the grant that a caller speaks for."""

    def __init__(self, options: CallersOptions, *, handles: Handles, tokens: TokenBroker, clock: Clock) -> None:
        """
        Args:
            options: The configured issuers and certificates.
            handles: Finds handles.
            tokens: Finds grants by their subjects.
            clock: Time.
        """
        self._certificates = options.certificates
        self._issuers = {each.issuer: CallerIssuer(each, clock) for each in options.jwt}
        self._handles = handles
        self._tokens = tokens
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[str, float]] = OrderedDict()

    def names_handle(self, authorization: Sequence[bytes]) -> bool:
        """Return whether the caller shows a handle, which goes before any cookie."""
        return len(authorization) == 1 and authorization[0][:16].lower().startswith(b"bearer " + PREFIX)

    async def grant_of(self, shown: Shown) -> str | None:
        """
        Return the id of the grant that the caller speaks for; None if it shows nothing.

        Raises:
            NoSession: If what it shows isn't known, has ended, or names nobody's grant.
            Forbidden: If it may not be used here.
            StoreError: If that can't be known now.
            ProviderError: If the issuer's keys can't be had.
        """
        if shown.authorization:
            return await self._by_credential(shown)
        if shown.client_certificate and self._certificates:
            return await self._by_certificate(shown.client_certificate)
        return None

    async def _by_credential(self, shown: Shown) -> str:
        credential = _bearer(shown.authorization)
        if credential.startswith(PREFIX):
            return await self._by_handle(credential, shown)
        if self._issuers:
            return await self._by_token(credential)
        raise NoSession("no such credential is taken")

    async def _by_handle(self, credential: bytes, shown: Shown) -> str:
        handle = await self._handles.find(credential)
        if handle is None:
            raise NoSession("the handle isn't known or has ended")
        now = self._clock.now()
        if not all(permits(handle, path=path, address=shown.address, now=now) for path in shown.paths):
            log.warning("handle_refused", extra={"handle": handle.id, "client": shown.address})
            raise Forbidden("the handle may not be used here")
        return handle.grant_id

    async def _by_token(self, credential: bytes) -> str:
        digest = sha256(credential).digest()
        known = self._known.get(digest)
        if known is not None and self._clock.now() < known[1]:
            return known[0]
        issuer = self._issuer_of(credential)
        try:
            subject, ends_at = await issuer.subject_of(credential.decode("ascii"))
        except (ClaimsRefused, UnicodeDecodeError) as refusal:
            raise NoSession(f"the caller's token is refused: {refusal}") from None
        grant_id = await self._grant_of(issuer.options.provider, subject)
        self._remember(digest, grant_id, min(ends_at, self._clock.now() + TOKEN_CACHE_SECONDS))
        return grant_id

    def _issuer_of(self, credential: bytes) -> CallerIssuer:
        """The issuer that an unchecked token names: it chooses among those configured, and nothing else."""
        try:
            named = read_compact(credential[:MAX_TOKEN_BYTES].decode("ascii")).claims().get("iss")
        except (MalformedToken, UnicodeDecodeError):
            raise NoSession("the credential is neither a handle nor a signed token") from None
        issuer = self._issuers.get(named) if isinstance(named, str) else None
        if issuer is None:
            raise NoSession("the token's issuer isn't configured")
        return issuer

    async def _by_certificate(self, lines: Sequence[bytes]) -> str:
        if len(lines) != 1:
            raise BadRequest("Client-Cert: more than one")
        value = lines[0].strip()
        content = value[1:-1] if len(value) > 2 and value[:1] == value[-1:] == b":" else b"no byte sequence"
        try:
            certificate = base64.b64decode(content, validate=True)
        except (ValueError, binascii.Error):
            raise BadRequest("Client-Cert: no byte sequence (RFC 9440 section 2.1)") from None
        caller = self._certificates.get(sha256(certificate).hexdigest())
        if caller is None:
            raise NoSession("the client certificate isn't known")
        return await self._grant_of(caller.provider, caller.subject)

    async def _grant_of(self, provider: str, subject: str) -> str:
        """The newest live grant that was imported for *subject*. A browser's grant is its browser's alone."""
        found = [
            grant
            for grant in await self._tokens.grants(provider, subject)
            if grant.origin is not Origin.BROWSER and grant.ended is None
        ]
        if not found:
            raise NoSession("there is no grant for this caller")
        return max(found, key=lambda grant: grant.chain_started_at).id

    def _remember(self, digest: bytes, grant_id: str, until: float) -> None:
        self._known[digest] = (grant_id, until)
        if len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)

    async def close(self) -> None:
        """Release every resource."""
        for issuer in self._issuers.values():
            await issuer.close()


def _bearer(lines: Iterable[bytes]) -> bytes:
    values = list(lines)
    if len(values) != 1:
        raise BadRequest("Authorization: more than one")
    scheme, _, credential = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not credential or b" " in credential.strip():
        raise NoSession("only a bearer credential is taken")
    return credential.strip()
