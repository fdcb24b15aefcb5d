"""How the broker proves to an authorization server that it is the client, as the operator configures it."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from broker.core.options import OptionError, option
from broker.core.secret import Secret

ASSERTION_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
"""What a client assertion may be signed with by a private key."""


class ClientAuthMethod(StrEnum):
    """One choice, used alike at every endpoint that knows the client (RFC 7591 section 2, OpenID Connect Core 9)."""

    NONE = "none"
    """A public client: ``client_id`` alone."""
    CLIENT_SECRET_BASIC = "client_secret_basic"
    CLIENT_SECRET_POST = "client_secret_post"
    CLIENT_SECRET_JWT = "client_secret_jwt"
    PRIVATE_KEY_JWT = "private_key_jwt"
    TLS_CLIENT_AUTH = "tls_client_auth"
    """The certificate of ``tls`` (RFC 8705 section 2.1)."""
    CLIENT_ACCESS_TOKEN = "client_access_token"
    """``Authorization: Bearer`` with a token that the broker gets by ``client_credentials`` (Transmit Mosaic)."""


class BasicEncoding(StrEnum):
    """How client id and secret are written before they are joined by a colon."""

    FORM = "form"
    """Each form-encoded first, as RFC 6749 section 2.3.1 says."""
    RAW = "raw"
    """As they are, for servers that don't decode."""


class Thumbprint(StrEnum):
    """Which header names the certificate of an assertion's key (RFC 7515 sections 4.1.7 and 4.1.8)."""

    X5T = "x5t"
    X5T_S256 = "x5t#S256"


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertionOptions:
    """The key and the claims of the assertions that the broker signs (RFC 7523)."""

    private_key: Secret | None = option(
        "The private key: PEM (PKCS#1, PKCS#8, SEC 1) or one JWK.", default=None, example="{file: /run/secrets/key.pem}"
    )
    pkcs12_file: str | None = option("A PKCS#12 file with the private key and its certificate.", default=None)
    password: Secret | None = option("What decrypts the key or the PKCS#12 file.", default=None)
    certificate_file: str | None = option(
        "The certificate in PEM whose thumbprint the assertion's header carries.", default=None
    )
    alg: str | None = option(
        "The JWS algorithm; by the key's kind if left out: RS256, ES256/384/512, EdDSA.", default=None
    )
    key_id: str | None = option("The header `kid`; Oracle calls it the certificate's alias.", default=None)
    thumbprint: Thumbprint | None = option("The header that names the certificate.", default=None)
    audience: str | None = option("The claim `aud`; the issuer, or else the token endpoint, if left out.", default=None)
    issuer: str | None = option("The claim `iss`; the client id if left out.", default=None)
    lifetime_seconds: float = option("How long an assertion is good for.", default=60.0)
    claims: Mapping[str, str] = option("Further claims.", default_factory=dict)
    send_client_id: bool = option("Whether `client_id` is sent beside the assertion.", default=True)

    @property
    def has_key(self) -> bool:
        """Whether there is a private key to sign with."""
        return self.private_key is not None or self.pkcs12_file is not None

    def __post_init__(self) -> None:
        if self.private_key is not None and self.pkcs12_file is not None:
            raise OptionError("pkcs12_file", "either private_key or pkcs12_file")
        if self.alg is not None and self.alg not in ASSERTION_ALGORITHMS | {"HS256", "HS384", "HS512"}:
            raise OptionError("alg", "one of " + ", ".join(sorted(ASSERTION_ALGORITHMS)))
        if not 1 <= self.lifetime_seconds <= 3600:
            raise OptionError("lifetime", "a duration between 1s and 1h")
        if self.thumbprint is not None and self.certificate_file is None and self.pkcs12_file is None:
            raise OptionError("thumbprint", "a certificate_file or a pkcs12_file beside it")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTokenOptions:
    """How the broker gets the access token by which it authenticates itself (``client_access_token``)."""

    token_endpoint: str | None = option(
        "Where the token comes from; the provider's token endpoint if left out.", default=None
    )
    auth_method: ClientAuthMethod = option(
        "Client authentication at that endpoint.", default=ClientAuthMethod.CLIENT_SECRET_POST
    )
    scope: str | None = option("The scope to ask for.", default=None)
    resource: str | None = option("The resource to ask for (RFC 8707).", default=None)
    renew_before_expiry_seconds: float = option("Get a new token this long before it expires.", default=60.0)

    def __post_init__(self) -> None:
        if self.auth_method is ClientAuthMethod.CLIENT_ACCESS_TOKEN:
            raise OptionError("auth_method", "a method that needs no client access token itself")


@dataclass(frozen=True, slots=True, kw_only=True)
class TlsOptions:
    """TLS towards one server."""

    ca_file: str | None = option("Trust this CA bundle (PEM) instead of the system's.", default=None)
    certificate_file: str | None = option("The client certificate (PEM) for mutual TLS.", default=None)
    key_file: str | None = option("Its private key (PEM), if it isn't in the same file.", default=None)
    key_password: Secret | None = option("What decrypts the private key.", default=None)

    def __post_init__(self) -> None:
        if self.certificate_file is None and (self.key_file is not None or self.key_password is not None):
            raise OptionError("certificate_file", "a certificate beside its key")
