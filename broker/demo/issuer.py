"""What the demo authorization server issues: access tokens (RFC 9068), id tokens, and the responses that carry them."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from broker.demo.families import Family, IssuedToken
from broker.demo.signing import SigningKey
from broker.services.clock import Clock, Randomness


class TokenFormat(StrEnum):
    """What an access token looks like."""

    JWT = "jwt"
    OPAQUE = "opaque"


@dataclass(slots=True, kw_only=True)
class AccessTokenRecord:
    """
    An access token that was issued.

    Attributes:
        jti: Names it; not a secret.
        client_id: To whom it was issued.
        subject: For whom.
        audience: Who may take it.
        scope: What it allows.
        generation: The family's generation that it belongs to; 0 without a family.
        family: The family's id; empty without one.
        sid: The user's session; empty without one.
        issued_at: Unix seconds.
        expires_at: Unix seconds.
        revoked: Whether it was revoked.
    """

    jti: str
    client_id: str
    subject: str
    audience: tuple[str, ...]
    scope: str
    generation: int
    family: str
    sid: str
    issued_at: float
    expires_at: float
    revoked: bool = False


class Issuer:
    """Issues tokens, and knows those that still live."""

    def __init__(
        self,
        *,
        signing_key: SigningKey,
        clock: Clock,
        randomness: Randomness,
        access_token_seconds: float = 15.0,
        token_format: TokenFormat = TokenFormat.JWT,
        default_audience: str = "demo-api",
    ) -> None:
        """
        Args:
            signing_key: Signs id tokens and JWT access tokens.
            clock: The time.
            randomness: Makes identifiers and opaque tokens.
            access_token_seconds: Lifetime of an access token.
            token_format: What access tokens look like.
            default_audience: ``aud`` where the request names no resource.
        """
        self.url = ""
        self.signing_key = signing_key
        self._clock = clock
        self._randomness = randomness
        self.access_token_seconds = access_token_seconds
        self.token_format = token_format
        self.default_audience = default_audience
        self._records: OrderedDict[str, AccessTokenRecord] = OrderedDict()

    def access_token(
        self,
        *,
        client_id: str,
        subject: str,
        scope: str,
        audience: Sequence[str] = (),
        generation: int = 0,
        family: Family | None = None,
    ) -> str:
        """Issue an access token."""
        now = self._clock.now()
        self._forget_dead(now)
        record = AccessTokenRecord(
            jti=self._randomness.token_bytes(8).hex(),
            client_id=client_id,
            subject=subject,
            audience=tuple(audience) or (self.default_audience,),
            scope=scope,
            generation=generation,
            family=family.id if family else "",
            sid=family.sid if family else "",
            issued_at=now,
            expires_at=now + self.access_token_seconds,
        )
        token = self._encode(record)
        self._records[token] = record
        return token

    def id_token(self, family: Family, *, nonce: str | None = None) -> str:
        """Issue an id token (OpenID Connect Core sections 2 and 12.2)."""
        now = self._clock.now()
        claims: dict[str, object] = {
            "iss": self.url,
            "sub": family.subject,
            "aud": family.client_id,
            "iat": int(now),
            "exp": int(now + max(60.0, self.access_token_seconds)),
            "auth_time": int(family.auth_time),
            "sid": family.sid,
            **user_claims(family.subject),
        }
        if nonce is not None:
            claims["nonce"] = nonce
        return self.signing_key.sign(claims)

    def token_response(
        self,
        family: Family,
        refresh_token: IssuedToken,
        *,
        scope: str,
        audience: Sequence[str] = (),
        nonce: str | None = None,
    ) -> dict[str, object]:
        """Return the members of a successful token response (RFC 6749 section 5.1)."""
        access_token = self.access_token(
            client_id=family.client_id,
            subject=family.subject,
            scope=scope,
            audience=audience,
            generation=family.generation,
            family=family,
        )
        response: dict[str, object] = {
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": int(self.access_token_seconds),
            "refresh_token": refresh_token.token,
            "scope": scope,
        }
        if "openid" in scope.split():
            response["id_token"] = self.id_token(family, nonce=nonce)
        return response

    def find(self, token: str) -> AccessTokenRecord | None:
        """Return what is known of the access token *token*, if it still lives."""
        record = self._records.get(token)
        if record is None or record.revoked or self._clock.now() >= record.expires_at:
            return None
        return record

    def revoke_family(self, family_id: str, *, below_generation: int | None = None) -> None:
        """Revoke the access tokens of a family: all, or those of earlier generations."""
        for record in self._records.values():
            if record.family == family_id and (below_generation is None or record.generation < below_generation):
                record.revoked = True

    def _encode(self, record: AccessTokenRecord) -> str:
        if self.token_format is TokenFormat.OPAQUE:
            return "at_" + self._randomness.token_bytes(24).hex()
        claims = {
            "iss": self.url,
            "sub": record.subject,
            "aud": list(record.audience),
            "client_id": record.client_id,
            "scope": record.scope,
            "jti": record.jti,
            "iat": round(record.issued_at, 3),  # NumericDate may have a fraction (RFC 7519 section 2)
            "exp": round(record.expires_at, 3),
            "sid": record.sid,
            "generation": record.generation,
        }
        return self.signing_key.sign(claims, typ="at+jwt")

    def _forget_dead(self, now: float) -> None:
        """Drop the oldest tokens once they are long dead: lifetimes are equal, so the oldest die first."""
        while self._records:
            token, record = next(iter(self._records.items()))
            if now < record.expires_at + 60:
                return
            del self._records[token]


def user_claims(subject: str) -> dict[str, object]:
    """Return the claims about a user; this server's users are whoever they say."""
    return {"name": subject.capitalize(), "preferred_username": subject}
