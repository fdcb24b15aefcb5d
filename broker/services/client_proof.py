"""
Whether the server believes the client, asked without presenting anything that could end.

Some servers answer a wrong secret and an ended grant alike, and even end the grant whose token came with a wrong secret
(glewlwyd does both). There, nothing is presented before the client's credentials are known to be good.
"""

from collections.abc import Awaitable, Callable, Mapping

from broker.core.oauth import FailureKind, TokenFailure
from broker.errors import ProviderError
from broker.services.clock import Randomness
from broker.services.metadata import Metadata
from broker.services.outbound import Answer
from broker.services.token_endpoint import not_sent

Post = Callable[[str, Mapping[str, str]], Awaitable[Answer]]


class ClientProof:
    """Proves one client to one server, at its revocation endpoint."""

    def __init__(self, post: Post, *, metadata: Metadata, randomness: Randomness) -> None:
        """
        Args:
            post: Makes an authenticated request, or raises ``ProviderError``.
            metadata: Of the server.
            randomness: For tokens that never were.
        """
        self._post = post
        self._metadata = metadata
        self._randomness = randomness

    async def doubt(self) -> TokenFailure | None:
        """
        Return why nothing should be presented now; None if the server believes the client.

        Source: RFC 7009 section 2.2: a token that never was is revoked with success; a wrong client is refused.
        """
        never = f"never-{self._randomness.token_bytes(16).hex()}"
        try:
            endpoint = await self._metadata.need("revocation_endpoint")
            answer = await self._post(endpoint, {"token": never, "token_type_hint": "refresh_token"})
        except ProviderError as fault:
            return not_sent(fault)
        if 200 <= answer.status <= 299:
            return None
        passing = answer.status == 429 or answer.status >= 500
        return TokenFailure(
            kind=FailureKind.TRANSIENT if passing else FailureKind.OPERATOR,
            status=answer.status,
            detail=f"the client can't be proved: the revocation endpoint answered {answer.status}",
        )
