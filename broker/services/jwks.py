"""The keys of an authorization server (RFC 7517), kept, and asked for anew no more than once per cooldown."""

import base64
import binascii
import logging
import warnings
from dataclasses import dataclass

from joserfc.errors import JoseError, SecurityWarning
from joserfc.jwk import ECKey, JWKRegistry, Key, OKPKey, RSAKey

from broker.core.json_object import read_object
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.clock import Clock
from broker.services.last_good import LastGood
from broker.services.metadata import Metadata, shown
from broker.services.outbound import Answer, Outbound

log = logging.getLogger(__name__)

TTL_SECONDS = 3600.0
COOLDOWN_SECONDS = 30.0
TIMEOUT_SECONDS = 10.0
MAX_KEYS = 64
MIN_RSA_BITS = 2048
MAX_RSA_BITS = 8192  # a signature by a larger key takes too long to check

KEY_TYPES: dict[str, type[RSAKey] | type[ECKey] | type[OKPKey]] = {
    "RS": RSAKey,
    "PS": RSAKey,
    "ES": ECKey,
    "Ed": OKPKey,
}
"""Which keys check which algorithms, by the algorithm's first two letters."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A public key, and what its owner says it is for."""

    key: Key
    kid: str | None
    alg: str | None

    def fits(self, alg: str) -> bool:
        """Return whether this key may check a signature by *alg*: its kind, and ``alg`` if it names one."""
        return isinstance(self.key, KEY_TYPES[alg[:2]]) and self.alg in {None, alg}


class Jwks:
    """The key set of one provider."""

    def __init__(self, metadata: Metadata, *, outbound: Outbound, clock: Clock) -> None:
        self._metadata = metadata
        self._outbound = outbound
        self._keys = LastGood(
            "jwks",
            self._fetch,
            clock=clock,
            ttl_seconds=TTL_SECONDS,
            cooldown_seconds=COOLDOWN_SECONDS,
            at=metadata.at,
        )

    async def candidates(self, *, kid: str | None, alg: str, missed: bool = False) -> list[VerificationKey]:
        """
        Return the keys that may have made a signature.

        Args:
            kid: The key's name in the signature's header, if it has one.
            alg: The signature's algorithm.
            missed: None of the known keys has made it: look for new ones. That is one fetch per cooldown, so that a
                rotation is noticed and a flood of invented names isn't felt.

        Raises:
            ProviderError: If there are no keys, and none can be had; also if new ones are missed and can't be had.
        """
        keys = await (self._keys.refetch() if missed else self._keys.get())
        return [key for key in keys if key.fits(alg) and (kid is None or key.kid in {None, kid})]

    async def close(self) -> None:
        """Stop a fetch that is under way."""
        await self._keys.close()

    async def _fetch(self) -> tuple[VerificationKey, ...]:
        url = await self._metadata.need("jwks_uri")
        exchange = await self._outbound.get(url, timeout_seconds=TIMEOUT_SECONDS)
        if isinstance(exchange, Answer) and exchange.status == 200 and exchange.content is not None:
            try:
                return read_keys(exchange.content)
            except ProviderProtocolError as fault:
                raise ProviderProtocolError(f"{fault}, at {shown(url)}", look_at="jwks_uri") from None
        what = f"status {exchange.status}" if isinstance(exchange, Answer) else exchange.reason
        raise ProviderError(f"the keys can't be fetched from {shown(url)}: {what}", look_at="jwks_uri")


def read_keys(content: bytes) -> tuple[VerificationKey, ...]:
    """
    Return the usable keys of a JWK set; members that can't be used are left out (RFC 7517 section 5).

    Raises:
        ProviderProtocolError: If none is left.
    """
    document = read_object(content)
    members = document.get("keys") if document is not None else None
    if not isinstance(members, list):
        raise ProviderProtocolError("the key set is no JWK set")
    keys = [key for member in members[:MAX_KEYS] if (key := _read_key(member)) is not None]
    if not keys:
        raise ProviderProtocolError("the key set holds no key to check signatures with")
    return tuple(keys)


def _read_key(member: object) -> VerificationKey | None:
    if not isinstance(member, dict) or member.get("kty") not in ("RSA", "EC", "OKP"):
        return None  # "oct" above all: a published secret is none
    operations = member.get("key_ops")
    if member.get("use") not in (None, "sig") or (isinstance(operations, list) and "verify" not in operations):
        return None
    if member["kty"] == "RSA" and not MIN_RSA_BITS <= _bits(member.get("n")) <= MAX_RSA_BITS:
        return None
    public = {name: member[name] for name in ("kty", "n", "e", "crv", "x", "y") if name in member}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SecurityWarning)  # key sizes are judged above
            key = JWKRegistry.import_key(public)
    except (JoseError, ValueError, TypeError, KeyError) as fault:
        log.info("provider_key_ignored", extra={"reason": type(fault).__name__})
        return None
    kid, alg = member.get("kid"), member.get("alg")
    return VerificationKey(key, kid if isinstance(kid, str) else None, alg if isinstance(alg, str) else None)


def _bits(number: object) -> int:
    """Return the size of a JWK's big number (RFC 7518 section 2, Base64urlUInt)."""
    if not isinstance(number, str):
        return 0
    try:
        return int.from_bytes(base64.urlsafe_b64decode(number + "=" * (-len(number) % 4))).bit_length()
    except (ValueError, binascii.Error):
        return 0
