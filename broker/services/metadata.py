"""An authorization server's metadata (RFC 8414, OpenID Connect Discovery), with what the configuration overrides."""

from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from broker.core.client_auth import ClientAuthMethod
from broker.core.json_object import read_object
from broker.core.outbound_urls import is_loopback, url_refusal
from broker.core.provider import ProviderOptions
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.clock import Clock
from broker.services.last_good import LastGood
from broker.services.outbound import Answer, Outbound

TTL_SECONDS = 3600.0
TIMEOUT_SECONDS = 10.0

ENDPOINTS = (
    "authorization_endpoint",
    "token_endpoint",
    "userinfo_endpoint",
    "jwks_uri",
    "revocation_endpoint",
    "introspection_endpoint",
    "end_session_endpoint",
    "pushed_authorization_request_endpoint",
    "device_authorization_endpoint",
)
"""Members of the metadata that are URLs, and options of the same name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerMetadata:
    """
    What a server says of itself.

    Attributes:
        issuer: ``issuer``, equal to the configured one.
        endpoints: The URLs among :data:`ENDPOINTS`, each fit to be called.
        issuer_in_response: Whether it promises ``iss`` in authorization responses (RFC 9207 section 3).
        requires_pushed_authorization: Whether it takes pushed authorization requests only (RFC 9126 section 5).
    """

    issuer: str | None
    endpoints: Mapping[str, str]
    issuer_in_response: bool = False
    requires_pushed_authorization: bool = False


class Metadata:
    """
    The metadata of one provider. Configured endpoints come first and need no discovery.

    Attributes:
        discovers: Whether the server's own metadata are fetched.
        at: Where in the YAML the server is.
    """

    def __init__(self, options: ProviderOptions, *, outbound: Outbound, clock: Clock, at: str) -> None:
        """
        Args:
            options: The provider.
            outbound: Requests to it.
            clock: For durations.
            at: Where in the YAML it is, such as ``providers.corp``, for the log.
        """
        self.at = at
        self._options = options
        self._outbound = outbound
        self._configured = {name: value for name in ENDPOINTS if isinstance(value := getattr(options, name), str)}
        self.discovers = options.discovery and (options.issuer is not None or options.metadata_url is not None)
        self._document = LastGood(
            "metadata", self._discover, clock=clock, ttl_seconds=TTL_SECONDS, cooldown_seconds=TTL_SECONDS, at=at
        )

    async def server(self) -> ServerMetadata:
        """
        Return the metadata.

        Raises:
            ProviderError: If it can't be discovered.
        """
        if not self.discovers:
            return ServerMetadata(issuer=self._options.issuer, endpoints={})
        return await self._document.get()

    async def find(self, endpoint: str) -> str | None:
        """Return a URL by its name in :data:`ENDPOINTS`, or None if the server has none. Raises ``ProviderError``."""
        return self._configured.get(endpoint) or (await self.server()).endpoints.get(endpoint)

    async def need(self, endpoint: str) -> str:
        """Return a URL by its name. Raises ``ProviderError``, also if the server has none."""
        if (url := await self.find(endpoint)) is None:
            raise ProviderProtocolError(f"there is no {endpoint}: neither configured nor in the metadata")
        return url

    async def close(self) -> None:
        """Stop a discovery that is under way."""
        await self._document.close()

    async def _discover(self) -> ServerMetadata:
        failure = ProviderError("nowhere to discover")
        key = "issuer" if self._options.metadata_url is None else "metadata_url"
        for url in self.places():
            exchange = await self._outbound.get(url, timeout_seconds=TIMEOUT_SECONDS)
            if isinstance(exchange, Answer) and exchange.status == 200:
                document = None if exchange.content is None else read_object(exchange.content)
                if document is None:
                    raise ProviderProtocolError(f"the metadata at {shown(url)} is no JSON object", look_at=key)
                return read_metadata(document, self._options)
            what = f"status {exchange.status}" if isinstance(exchange, Answer) else exchange.reason
            failure = ProviderError(f"the metadata can't be fetched from {shown(url)}: {what}", look_at=key)
            if not isinstance(exchange, Answer) or exchange.status != 404:
                break
        raise failure

    def places(self) -> tuple[str, ...]:
        """Return where the metadata may be (OpenID Connect Discovery section 4, RFC 8414 section 3.1)."""
        if self._options.metadata_url is not None:
            return (self._options.metadata_url,)
        issuer = urlsplit(self._options.issuer or "")
        path = issuer.path.rstrip("/")
        origin = f"{issuer.scheme}://{issuer.netloc}"
        return (
            f"{origin}{path}/.well-known/openid-configuration",
            f"{origin}/.well-known/oauth-authorization-server{path}",
        )


def shown(url: str) -> str:
    """Return *url* for the log: without its query, which may hold a secret."""
    return url.partition("?")[0]


def read_metadata(document: Mapping[str, object], options: ProviderOptions) -> ServerMetadata:
    """
    Return what *document* says.

    Raises:
        ProviderProtocolError: If it speaks for another issuer, or names a URL that must not be called.

    Source: RFC 8414 section 3.3: the issuer must be identical, without any normalization.
    """
    issuer = document.get("issuer")
    if options.issuer is not None and issuer != options.issuer:
        said = f"issuer: the metadata speaks for {issuer!r:.200}, and not for the configured {options.issuer!r}"
        raise ProviderProtocolError(f"{said}: they must be equal to the letter", look_at="issuer")
    endpoints = {name: url for name in ENDPOINTS if isinstance(url := document.get(name), str)}
    aliases = document.get("mtls_endpoint_aliases")
    if options.auth_method is ClientAuthMethod.TLS_CLIENT_AUTH and isinstance(aliases, Mapping):
        # RFC 8705 section 5: a client that shows a certificate prefers these.
        endpoints |= {name: url for name in ENDPOINTS if isinstance(url := aliases.get(name), str)}
    home = urlsplit(options.issuer or options.metadata_url or "").hostname or ""
    for name, url in endpoints.items():
        refusal = url_refusal(url, insecure=options.insecure)
        if refusal is None and is_loopback(urlsplit(url).hostname or "") and not is_loopback(home):
            refusal = "points to this machine"
        if refusal is not None:
            raise ProviderProtocolError(f"{name} in the metadata {refusal}: {shown(url)[:200]!r}", look_at=name)
    return ServerMetadata(
        issuer=issuer if isinstance(issuer, str) else None,
        endpoints=endpoints,
        issuer_in_response=document.get("authorization_response_iss_parameter_supported") is True,
        requires_pushed_authorization=document.get("require_pushed_authorization_requests") is True,
    )
