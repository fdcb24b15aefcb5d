"""
Which grant a caller without a browser speaks for: by a handle, a signed token, or a client certificate.

None of them is sent upstream. A caller that shows something and isn't known is refused, even where nothing is needed.
"""

import base64
import binascii
import logging
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from functools import partial
from hashlib import sha256
from typing import NamedTuple

from broker.core.callers import CallerIssuerOptions, CallersOptions
from broker.core.compact_jws import MalformedToken, read_compact
from broker.core.grant import Origin
from broker.core.handle import PREFIX, Handle, permits
from broker.core.id_token import ClaimsRefused
from broker.core.paths import Target
from broker.core.provider import ProviderOptions
from broker.errors import BadRequest, Forbidden, NoSession
from broker.services.clock import Clock
from broker.services.handles import Bounds, Handles
from broker.services.id_tokens import IdTokens
from broker.services.jwks import Jwks
from broker.services.lookups import Lookups
from broker.services.metadata import Metadata
from broker.services.outbound import Outbound
from broker.services.tokens import TokenBroker
from broker.stores.base import Event, Store, Topic

MAX_CHECKED = 10_000
TOKEN_CACHE_SECONDS = 60.0
"""How long a signature isn't checked again."""
MAX_TOKEN_BYTES = 16 << 10

log = logging.getLogger(__name__)


class Shown(NamedTuple):
    """
    What a request shows of its caller.

    Attributes:
        authorization: Its Authorization field lines.
        client_certificate: ``Client-Cert`` field lines from a trusted proxy (RFC 9440 section 2.1).
        address: The caller's true address.
        target: What it asks for.
    """

    authorization: Sequence[bytes]
    client_certificate: Sequence[bytes]
    address: str
    target: Target

    def __repr__(self) -> str:
        return f"Shown(…, {self.address})"


class CallerIssuer:
    """An issuer whose tokens name callers."""

    def __init__(self, options: CallerIssuerOptions, clock: Clock, *, at: str) -> None:
        """
        Args:
            options: The issuer.
            clock: The time.
            at: Where in the YAML it is, for the log.
        """
        self.options = options
        as_provider = ProviderOptions(
            issuer=options.issuer,
            jwks_uri=options.jwks_uri,
            client_id=options.audience,
            id_token_algorithms=options.algorithms,
        )
        self._outbound = Outbound(None)
        self._metadata = Metadata(as_provider, outbound=self._outbound, clock=clock, at=at)
        self._jwks = Jwks(self._metadata, outbound=self._outbound, clock=clock)
        self._tokens = IdTokens(as_provider, metadata=self._metadata, jwks=self._jwks, clock=clock)

    async def subject_of(self, token: str) -> tuple[str, float]:
        """
        Return whom *token* names, and the Unix seconds from which it isn't taken.

        Raises:
            ClaimsRefused: If it isn't taken.
            ProviderError: If the issuer's keys can't be had.
        """
        return await self._tokens.check_caller(token, subject_claim=self.options.subject_claim)

    async def close(self) -> None:
        await self._jwks.close()
        await self._metadata.close()
        await self._outbound.close()


class Callers:
    """Finds the grant that a caller speaks for."""

    def __init__(
        self,
        options: CallersOptions,
        *,
        handles: Handles,
        tokens: TokenBroker,
        store: Store,
        clock: Clock,
        cache_ttl_seconds: float = 5.0,
        outage_grace_seconds: float = 60.0,
    ) -> None:
        """
        Args:
            options: The configured issuers and certificates.
            handles: Finds handles.
            tokens: Finds grants by their subjects.
            store: Tells of grants that end.
            clock: Time.
            cache_ttl_seconds: How long a subject's grant isn't looked for again while nothing is heard of it.
            outage_grace_seconds: How long one that is known is used while the store is down.
        """
        self._certificates = options.certificates
        self._issuers = {
            each.issuer: CallerIssuer(each, clock, at=f"callers.jwt[{index}]") for index, each in enumerate(options.jwt)
        }
        self._handles = handles
        self._tokens = tokens
        self._clock = clock
        self._checked: OrderedDict[bytes, _Checked] = OrderedDict()
        self._grants: Lookups[_Owner, str] = Lookups(
            clock, ttl_seconds=cache_ttl_seconds, grace_seconds=outage_grace_seconds
        )
        store.subscribe(self._heard)

    def names_handle(self, authorization: Sequence[bytes]) -> bool:
        """Return whether the caller shows a handle, which goes before any cookie."""
        return len(authorization) == 1 and authorization[0][:16].lower().startswith(b"bearer " + PREFIX)

    def peek(self, shown: Shown) -> str | None:
        """
        As :meth:`grant_of`, if this process knows it for sure; None otherwise: then ask that, which says why.

        Raises:
            BadRequest: If more than one credential is shown.
            NoSession: If what is shown isn't taken.
        """
        if shown.authorization:
            credential = _bearer(shown.authorization)
            if credential.startswith(PREFIX):
                handle = self._handles.peek(credential)
                return handle.grant_id if handle is not None and _is_permitted(handle, shown) else None
            owner = self._owner_by_token(sha256(credential).digest())
            return None if owner is None else self._grants.peek(owner)
        if shown.client_certificate and self._certificates:
            return self._grants.peek(self._owner_by_certificate(shown.client_certificate))
        return None

    def bounds_of(self, shown: Shown) -> Bounds | None:
        """Return how long the credential is taken by which a caller was let in; None for as long as its grant lives."""
        if not shown.authorization:
            return None
        credential = _bearer(shown.authorization)
        if credential.startswith(PREFIX):
            return self._handles.bounds(credential)
        digest = sha256(credential).digest()
        checked = self._checked.get(digest)
        return None if checked is None else Bounds(f"token:{digest.hex()[:16]}", checked.ends_at)

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
            return await self._grant_of(self._owner_by_certificate(shown.client_certificate))
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
        if not _is_permitted(handle, shown):
            log.warning("handle_refused", extra={"handle": handle.id, "client": shown.address})
            raise Forbidden("the handle may not be used here")
        return handle.grant_id

    def _owner_by_token(self, digest: bytes) -> "_Owner | None":
        """Return whom a token names whose signature was checked lately."""
        checked = self._checked.get(digest)
        return checked.owner if checked is not None and self._clock.now() < checked.good_until else None

    async def _by_token(self, credential: bytes) -> str:
        digest = sha256(credential).digest()
        owner = self._owner_by_token(digest)
        if owner is None:
            owner = await self._check(credential, digest)
        return await self._grant_of(owner)

    async def _check(self, credential: bytes, digest: bytes) -> "_Owner":
        issuer = self._issuer_of(credential)
        try:
            subject, ends_at = await issuer.subject_of(credential.decode("ascii"))
        except (ClaimsRefused, UnicodeDecodeError) as refusal:
            raise NoSession(f"the caller's token is refused: {refusal}") from None
        owner = _Owner(issuer.options.provider, subject)
        self._checked[digest] = _Checked(owner, min(ends_at, self._clock.now() + TOKEN_CACHE_SECONDS), ends_at)
        self._checked.move_to_end(digest)
        if len(self._checked) > MAX_CHECKED:
            self._checked.popitem(last=False)
        return owner

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

    def _owner_by_certificate(self, lines: Sequence[bytes]) -> "_Owner":
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
        return _Owner(caller.provider, caller.subject)

    async def _grant_of(self, owner: "_Owner") -> str:
        grant_id = await self._grants.find(owner, partial(self._newest, owner))
        if grant_id is None:
            raise NoSession("there is no grant for this caller")
        return grant_id

    async def _newest(self, owner: "_Owner") -> str | None:
        """The newest live grant that was imported for a subject. A browser's grant is its browser's alone."""
        found = [
            grant
            for grant in await self._tokens.grants(owner.provider, owner.subject)
            if grant.origin is not Origin.BROWSER and grant.ended is None
        ]
        return max(found, key=lambda grant: grant.chain_started_at).id if found else None

    def _heard(self, event: Event) -> None:
        if event.topic is Topic.RESYNC:
            self._grants.distrust()
        elif event.topic is Topic.GRANT_ENDED:
            self._grants.forget(lambda grant_id: grant_id == event.key)

    async def close(self) -> None:
        """Release every resource."""
        for issuer in self._issuers.values():
            await issuer.close()


class _Owner(NamedTuple):
    """Whose grant a caller speaks for."""

    provider: str
    subject: str


class _Checked(NamedTuple):
    """A token whose signature was checked: whom it names, until when that needn't be checked again, and its end."""

    owner: _Owner
    good_until: float
    ends_at: float


def _is_permitted(handle: Handle, shown: Shown) -> bool:
    return permits(handle, target=shown.target, address=shown.address)


def _bearer(lines: Iterable[bytes]) -> bytes:
    values = list(lines)
    if len(values) != 1:
        raise BadRequest("Authorization: more than one")
    scheme, _, credential = values[0].partition(b" ")
    if scheme.lower() != b"bearer" or not credential or b" " in credential.strip():
        raise NoSession("only a bearer credential is taken")
    return credential.strip()
