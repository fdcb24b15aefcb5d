"""Logins without a browser on this machine: the device authorization grant (RFC 8628)."""

import asyncio
from dataclasses import dataclass

from broker.core.json_object import read_object
from broker.core.lifetimes import number
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome
from broker.core.secret import RefreshToken, Secret
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.clock import Clock
from broker.services.metadata import Metadata
from broker.services.token_requests import TokenRequests, bound

DEVICE_CODE = "urn:ietf:params:oauth:grant-type:device_code"
DEFAULT_INTERVAL_SECONDS = 5.0  # RFC 8628 section 3.2
SLOW_DOWN_SECONDS = 5.0  # RFC 8628 section 3.5
MAX_INTERVAL_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceAuthorization:
    """
    What the user is told, and what the broker asks by (RFC 8628 section 3.2).

    Attributes:
        device_code: Presented at the token endpoint.
        user_code: What the user types in at *verification_uri*.
        verification_uri: Where the user goes.
        verification_uri_complete: The same with the code in it; None if the server has none.
        expires_at: Unix seconds at which both codes end.
        interval_seconds: How long to wait between two requests.
    """

    device_code: Secret
    user_code: str
    verification_uri: str
    verification_uri_complete: str | None
    expires_at: float
    interval_seconds: float


class DeviceFlow:
    """The device flow with one provider."""

    def __init__(self, requests: TokenRequests, *, metadata: Metadata, clock: Clock) -> None:
        self._requests = requests
        self._metadata = metadata
        self._clock = clock

    async def start(self, scope: str) -> DeviceAuthorization:
        """
        Ask for codes.

        Raises:
            ProviderError: If the server has no such endpoint, is down, or answers nonsense.
        """
        url = await self._metadata.need("device_authorization_endpoint")
        requested_at = self._clock.now()
        answer = await self._requests.post(url, {"scope": scope})
        members = read_object(answer.content or b"")
        if answer.status != 200 or members is None:
            raise ProviderError(f"no device code: status {answer.status}")
        expires_in = number(members.get("expires_in"))
        texts = [members.get(name) for name in ("device_code", "user_code", "verification_uri")]
        complete = members.get("verification_uri_complete")
        if not all(isinstance(text, str) and text.isprintable() for text in texts) or not expires_in:
            raise ProviderProtocolError("no device code: the answer lacks a member")
        device_code, user_code, verification_uri = map(str, texts)
        return DeviceAuthorization(
            device_code=Secret(device_code),
            user_code=user_code,
            verification_uri=verification_uri,
            verification_uri_complete=complete if isinstance(complete, str) and complete.isprintable() else None,
            expires_at=requested_at + min(expires_in, 3600.0),
            interval_seconds=min(number(members.get("interval")) or DEFAULT_INTERVAL_SECONDS, MAX_INTERVAL_SECONDS),
        )

    async def finish(self, authorization: DeviceAuthorization, *, dpop_key: RefreshToken | None = None) -> TokenOutcome:
        """
        Wait until the user has decided, and return the tokens, or why there are none (RFC 8628 section 3.5).

        Args:
            authorization: What :meth:`start` returned.
            dpop_key: The key to bind the tokens to (RFC 9449); None for bearer tokens.
        """
        interval = authorization.interval_seconds
        while self._clock.now() < authorization.expires_at:
            await asyncio.sleep(interval)
            parameters = {"device_code": authorization.device_code.reveal()}
            outcome = await self._requests.ask(DEVICE_CODE, parameters, dpop_key=dpop_key)
            if not isinstance(outcome, TokenFailure):
                return outcome if dpop_key is None else bound(outcome)
            if outcome.error == "slow_down":
                interval = min(interval + SLOW_DOWN_SECONDS, MAX_INTERVAL_SECONDS)
            elif outcome.error != "authorization_pending":
                # To poll again spends nothing, so a 503 needn't say for sure that it wasn't processed.
                if outcome.kind is not FailureKind.TRANSIENT and outcome.status != 503:
                    return outcome
                interval = min(interval * 2, MAX_INTERVAL_SECONDS)
        return TokenFailure(kind=FailureKind.OPERATOR, error="expired_token", detail="the user did not come in time")
