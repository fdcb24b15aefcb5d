"""The authorization request: what the browser is sent to the authorization server with (RFC 6749 section 4.1.1)."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode

from broker.core.client_auth import AssertionOptions
from broker.core.json_object import read_object
from broker.core.oauth import FailureKind, TokenFailure
from broker.core.provider import ProviderOptions, PushedAuthorization, ResponseMode
from broker.core.troubleshooting import key_of_authorization_error, key_to_look_at, refuses_client, yaml_path
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.clock import Clock, Randomness
from broker.services.metadata import Metadata
from broker.services.signing import SigningKey, load_signing_key
from broker.services.token_requests import TokenRequests

REQUEST_OBJECT_SECONDS = 300.0

REPEATED_PARAMETERS = ("response_type", "scope")
"""
What a URL says beside the request object that holds it. OpenID Connect Core section 6.1 demands that; servers that go
by RFC 9101 ignore it (section 6.3). In a pushed request there is nothing beside the object (RFC 9126 section 3).
"""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationRequest:
    """
    What a login asks for (RFC 6749 section 4.1.1).

    Attributes:
        redirect_uri: Where the answer comes.
        state: Ties the answer to the browser.
        nonce: Ties the id token to the login.
        code_challenge: S256 of the verifier (RFC 7636).
        parameters: Further parameters that the configuration allows (``prompt``, ``acr_values`` …).
    """

    redirect_uri: str
    state: str
    nonce: str
    code_challenge: str
    parameters: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False


class Authorization:
    """Writes authorization requests for one provider, into the URL or pushed ahead of it (RFC 9126)."""

    def __init__(
        self,
        name: str,
        options: ProviderOptions,
        *,
        metadata: Metadata,
        requests: TokenRequests,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """
        Raises:
            ConfigError: If requests are to be signed and the key can't be used.
        """
        self._name = name
        self._options = options
        self._metadata = metadata
        self._requests = requests
        self._clock = clock
        self._randomness = randomness
        self._key = load_signing_key(options.client_assertion or AssertionOptions()) if options.request_object else None

    async def url(self, request: AuthorizationRequest) -> str:
        """
        Return where the browser is sent to.

        Raises:
            ProviderError: If the metadata can't be had, or the server doesn't take the pushed request.
        """
        endpoint = await self._metadata.need("authorization_endpoint")
        parameters = self._parameters(request)
        pushes = await self._pushes()
        if self._key is not None:
            beside = {} if pushes else {name: parameters[name] for name in REPEATED_PARAMETERS if name in parameters}
            request_object = await self._signed(parameters, self._key)
            parameters = {**beside, "client_id": self._options.client_id, "request": request_object}
        if pushes:
            parameters = {"client_id": self._options.client_id, "request_uri": await self._push(parameters)}
        return with_query(endpoint, parameters)

    def _parameters(self, request: AuthorizationRequest) -> dict[str, str]:
        """Return the request. Its caller's choices count only where the configuration lists them."""
        allowed = set(self._options.allowed_parameters)
        secured = {"response_mode": "jwt"} if self._options.response_mode is ResponseMode.JWT else {}
        chosen = {name: value for name, value in request.parameters.items() if name in allowed}
        return {
            **self._options.asked_at_login(chosen),
            **({"scope": self._options.scope} if self._options.scope else {}),
            **secured,
            **({"prompt": "none"} if request.silent else {}),
            "response_type": "code",
            "client_id": self._options.client_id,
            "redirect_uri": request.redirect_uri,
            "state": request.state,
            "nonce": request.nonce,
            "code_challenge": request.code_challenge,
            "code_challenge_method": "S256",
        }

    async def _signed(self, parameters: Mapping[str, str], key: SigningKey) -> str:
        """Return *parameters* as a request object (RFC 9101 section 4), for this server and for a few minutes."""
        now = self._clock.now()
        claims: dict[str, object] = {
            **parameters,
            "iss": self._options.client_id,
            "aud": await self._requests.assertion_audience(),
            "iat": int(now),
            "nbf": int(now),
            "exp": int(now + REQUEST_OBJECT_SECONDS),
            "jti": self._randomness.token_bytes(16).hex(),
        }
        return key.sign(claims, header={"typ": "oauth-authz-req+jwt"})

    async def _pushes(self) -> bool:
        match self._options.pushed_authorization:
            case PushedAuthorization.ALWAYS:
                return True
            case PushedAuthorization.NEVER:
                return False
            case PushedAuthorization.AUTO:
                return (await self._metadata.server()).requires_pushed_authorization

    async def _push(self, parameters: Mapping[str, str]) -> str:
        """Push the request, and return the ``request_uri`` that stands for it (RFC 9126 section 2)."""
        endpoint = await self._metadata.need("pushed_authorization_request_endpoint")
        answer = await self._requests.post(endpoint, parameters)
        members = read_object(answer.content or b"") or {}
        request_uri = members.get("request_uri")
        if answer.status not in {200, 201}:
            error = members.get("error")
            word = error[:64] if isinstance(error, str) and error.isprintable() else None
            raise self._push_refused(status=answer.status, error=word)
        if not isinstance(request_uri, str) or not 0 < len(request_uri) <= 2048 or not request_uri.isprintable():
            raise ProviderProtocolError("request_uri is missing from the answer to a pushed authorization request")
        return request_uri

    def _push_refused(self, *, status: int, error: str | None) -> ProviderError:
        """Log that the server refused the push, with the key to look at, and return that as an error."""
        failure = TokenFailure(kind=FailureKind.OPERATOR, status=status, error=error)
        by_client = key_to_look_at(failure, self._options) if refuses_client(failure) else None
        key = by_client or key_of_authorization_error(error or "")
        log.warning(
            "pushed_authorization_refused",
            extra={"provider": self._name, "status": status, "error": error, "look_at": yaml_path(self._name, key)},
        )
        named = f" with error {error!r}" if error else ""
        return ProviderError(f"the pushed authorization request was refused: status {status}{named}", look_at=key)


def with_query(endpoint: str, parameters: Mapping[str, str]) -> str:
    """Return *endpoint* with *parameters* after whatever query it has (RFC 6749 section 3.1)."""
    return f"{endpoint}{'&' if '?' in endpoint else '?'}{urlencode(parameters)}"
