"""Userinfo (OpenID Connect Core section 5.3), and what plain OAuth 2.0 servers have instead of it."""

from broker.core.challenge import refuses_proof
from broker.core.json_object import at_path, read_object
from broker.core.provider import ProviderOptions
from broker.core.secret import AccessToken, RefreshToken
from broker.errors import LoginFailed, ProviderError
from broker.services.dpop import Proofs
from broker.services.metadata import Metadata
from broker.services.outbound import Answer, Outbound

TIMEOUT_SECONDS = 10.0


class Userinfo:
    """Asks one provider who the owner of an access token is."""

    def __init__(self, options: ProviderOptions, *, metadata: Metadata, outbound: Outbound, proofs: Proofs) -> None:
        self._members = options.userinfo_members
        self._metadata = metadata
        self._outbound = outbound
        self._proofs = proofs

    async def fetch(self, access_token: AccessToken, dpop_key: RefreshToken | None = None) -> dict[str, object]:
        """
        Return the claims, with a ``sub`` among them.

        Args:
            access_token: Whose owner is asked for.
            dpop_key: What it is bound to (RFC 9449); None for a bearer token.

        Raises:
            ProviderError: If the server can't be reached or fails, or its answer doesn't come whole.
            LoginFailed: If it refuses the token, or names nobody.
        """
        url = await self._metadata.need("userinfo_endpoint")
        exchange = await self._get(url, access_token, dpop_key)
        if (
            dpop_key is not None
            and self._proofs.learn(url, exchange.headers.get("DPoP-Nonce"))
            and _lacks_nonce(exchange)
        ):
            exchange = await self._get(url, access_token, dpop_key)
        if exchange.status >= 500 or exchange.status == 429:
            raise ProviderError(f"userinfo: status {exchange.status}")
        if exchange.status == 200 and exchange.content is None:
            raise ProviderError("userinfo: the answer was cut off, or can't be read")
        if exchange.status in (401, 403):  # OpenID Connect Core section 5.3.1: without openid it may refuse the token
            raise LoginFailed(f"userinfo: the access token is refused with {exchange.status}", look_at="scope")
        claims = read_object(exchange.content or b"") if exchange.status == 200 else None
        if claims is None:
            raise LoginFailed(f"userinfo: status {exchange.status} without a JSON object")
        return self._named(claims)

    async def _get(self, url: str, access_token: AccessToken, dpop_key: RefreshToken | None) -> Answer:
        headers = {"Authorization": f"Bearer {access_token.reveal()}"}
        if dpop_key is not None:
            proof = self._proofs.proof(dpop_key, method="GET", url=url, access_token=access_token)
            headers = {"Authorization": f"DPoP {access_token.reveal()}", "DPoP": proof}
        exchange = await self._outbound.get(url, headers=headers, timeout_seconds=TIMEOUT_SECONDS)
        if not isinstance(exchange, Answer):
            raise ProviderError(f"userinfo: {exchange.reason}")
        return exchange

    def _named(self, claims: dict[str, object]) -> dict[str, object]:
        renamed = {name: at_path(claims, path) for name, path in self._members.items()}
        claims = {**claims, **renamed}
        subject = claims.get("sub")
        if isinstance(subject, int) and not isinstance(subject, bool):
            subject = str(subject)  # GitHub's id is a number
        if not isinstance(subject, str) or not 0 < len(subject) <= 255 or not subject.isprintable():
            raise LoginFailed("userinfo: sub is missing or no text")
        # Only an id token may name an issuer: what anybody's API answers must not choose the user's realm.
        return {name: value for name, value in claims.items() if name != "iss"} | {"sub": subject}


def _lacks_nonce(answer: Answer) -> bool:
    return answer.status == 401 and refuses_proof([answer.headers.get("WWW-Authenticate", "")])
