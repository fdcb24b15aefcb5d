"""How an authorization server is spoken to, as the operator configures it."""

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from broker.core.client_auth import (
    AssertionOptions,
    BasicEncoding,
    ClientAuthMethod,
    ClientTokenOptions,
    TlsOptions,
)
from broker.core.options import OptionError, option
from broker.core.secret import Secret

ID_TOKEN_ALGORITHMS = frozenset(
    {"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"}
)
"""Signatures that are taken by default: all that need the server's private key."""

SYMMETRIC_ALGORITHMS = frozenset({"HS256", "HS384", "HS512"})
"""Keyed by the client secret; taken only where the configuration names them."""

TOKEN_MEMBERS = frozenset(
    {
        "access_token",
        "token_type",
        "expires_in",
        "expires_at",
        "refresh_token",
        "refresh_expires_in",
        "id_token",
        "scope",
        "session_id",
        "error",
    }
)
"""The members of a token response that may have another name (``token_response``)."""

RESERVED_PARAMETERS = frozenset(
    {
        "response_type",
        "client_id",
        "client_secret",
        "redirect_uri",
        "scope",
        "state",
        "nonce",
        "code_challenge",
        "code_challenge_method",
        "request",
        "request_uri",
        "response_mode",
    }
)
"""What the broker says itself at a login, so that neither its caller nor the configuration can (SECURITY LG-06)."""

STANDARD_PARAMETERS = (
    "prompt",
    "acr_values",
    "max_age",
    "login_hint",
    "ui_locales",
    "claims",
    "claims_locales",
    "display",
)
"""
What a login's caller may choose at any server, where the configuration lists it; servers have others of their own.

Source: OpenID Connect Core sections 3.1.2.1, 5.2 and 5.5.
"""


class Rotation(StrEnum):
    """What an authorization server does with a refresh token that is presented again."""

    STRICT = "strict"
    """Reuse revokes the whole family (RFC 9700 section 4.14.2), or might: the safe assumption."""
    GRACE = "grace"
    """Reuse within ``rotation_grace`` is answered with tokens."""
    NONE = "none"
    """Refresh tokens are not rotated."""


class Dialect(StrEnum):
    """How a token request's body is written."""

    FORM = "form"
    """``application/x-www-form-urlencoded`` (RFC 6749 section 4.1.3)."""
    JSON = "json"
    """A JSON object of the same parameters."""


class EmptyAnswer(StrEnum):
    """What a 400 without a body means."""

    TRANSIENT = "transient"
    """Nothing: it may come from a gateway."""
    INVALID_GRANT = "invalid_grant"
    """
    The grant has ended: the server answers so and names no error (glewlwyd).

    It may answer a wrong client secret alike, so before each refresh its revocation endpoint is asked whether it
    believes the client.
    """


class ResponseMode(StrEnum):
    """How the authorization response comes."""

    QUERY = "query"
    """As parameters of the redirect URI (RFC 6749 section 4.1.2)."""
    JWT = "jwt"
    """As one signed parameter, and in no other way (JARM)."""


class PushedAuthorization(StrEnum):
    """Whether the authorization request is pushed first (RFC 9126)."""

    AUTO = "auto"
    """Where the server requires it."""
    ALWAYS = "always"
    NEVER = "never"


@dataclass(frozen=True, slots=True, kw_only=True)
class ProviderOptions:
    """One authorization server."""

    preset: str | None = option("Known facts about a product; each key here overrides them.", default=None)
    base_url: str | None = option("Fills `{base_url}` in the preset.", default=None)
    realm: str | None = option("Fills `{realm}` in the preset.", default=None)
    tenant: str | None = option("Fills `{tenant}` in the preset.", default=None)

    issuer: str | None = option("The issuer identifier; discovery starts here.", default=None)
    discovery: bool = option("Whether the issuer publishes its metadata (RFC 8414, OpenID discovery).", default=True)
    metadata_url: str | None = option("Where the metadata is, if not at its well-known place.", default=None)
    authorization_endpoint: str | None = option("Overrides the metadata.", default=None)
    token_endpoint: str | None = option("Overrides the metadata.", default=None)
    refresh_endpoint: str | None = option("Where refresh tokens go, if not to the token endpoint.", default=None)
    userinfo_endpoint: str | None = option("Overrides the metadata.", default=None)
    jwks_uri: str | None = option("Overrides the metadata.", default=None)
    revocation_endpoint: str | None = option("Overrides the metadata.", default=None)
    introspection_endpoint: str | None = option("Overrides the metadata.", default=None)
    end_session_endpoint: str | None = option("Overrides the metadata.", default=None)
    pushed_authorization_request_endpoint: str | None = option("Overrides the metadata.", default=None)
    device_authorization_endpoint: str | None = option("Overrides the metadata.", default=None)
    session_endpoint: str | None = option(
        "Where a provider session is exchanged for tokens (Mosaic session authentication).", default=None
    )
    session_logout_endpoint: str | None = option("Where a provider session is ended (Mosaic).", default=None)
    insecure: bool = option("Allow plain http off loopback. Never in production.", default=False)
    tls: TlsOptions | None = option("TLS towards this server.", default=None)

    client_id: str = option("The client identifier.")
    client_secret: Secret | None = option("The client secret.", default=None)
    token_endpoint_auth_method: ClientAuthMethod | None = option(
        "Client authentication at every endpoint. If left out: private_key_jwt with a key in client_assertion, "
        "client_secret_basic with a client_secret, else none.",
        default=None,
    )
    basic_encoding: BasicEncoding = option("How client_secret_basic is written.", default=BasicEncoding.FORM)
    client_assertion: AssertionOptions | None = option("For private_key_jwt and client_secret_jwt.", default=None)
    client_token: ClientTokenOptions | None = option("For client_access_token.", default=None)
    user_assertion: AssertionOptions | None = option(
        "For standing grants of type jwt_bearer; like client_assertion if left out.", default=None
    )

    scope: str = option("What is asked for at login; empty asks for nothing.", default="openid", may_be_empty=True)
    authorization_parameters: Mapping[str, str] = option(
        "Sent with every login, beside what the broker says itself. `acr_values` and `max_age` are checked in the id "
        "token that comes back: a login that doesn't fit them is refused.",
        default_factory=dict,
        example="{prompt: consent}",
    )
    allowed_parameters: tuple[str, ...] = option(
        f"What the login URL's caller may choose: {', '.join(STANDARD_PARAMETERS)}, or parameters of the server's own.",
        default=(),
        example="[prompt, login_hint]",
    )
    pushed_authorization: PushedAuthorization = option(
        "Whether the authorization request is pushed first (RFC 9126).", default=PushedAuthorization.AUTO
    )
    request_object: bool = option(
        "Sign the authorization request with the key of client_assertion (RFC 9101).", default=False
    )
    response_mode: ResponseMode = option("How the authorization response comes.", default=ResponseMode.QUERY)
    id_token_algorithms: tuple[str, ...] = option(
        "JWS algorithms that are taken. HS256, HS384 and HS512 only if named here.",
        default=tuple(sorted(ID_TOKEN_ALGORITHMS)),
    )
    clock_skew_seconds: float = option("How far the server's clock may be off.", default=30.0)
    userinfo: bool = option(
        "Ask userinfo, too, where there is an id token: at a login, and after a refresh that brings a new one.",
        default=False,
    )
    userinfo_members: Mapping[str, str] = option(
        "Paths of claims in a userinfo answer that has other names.", default_factory=dict, example="{sub: id}"
    )
    email_domains: tuple[str, ...] = option("Only verified addresses of these domains may log in.", default=())
    require_verified_email: bool = option("Refuse logins without a verified email address.", default=False)

    end_session_id_token_hint: bool = option(
        "Send the id token as id_token_hint when the browser is sent to the server's logout. It is then seen in a URL; "
        "without it most servers ask the user to confirm.",
        default=False,
    )
    post_logout_parameter: str = option(
        "The parameter that tells the server's logout where to send the browser back to.",
        default="post_logout_redirect_uri",
    )

    dialect: Dialect = option("How token requests are written.", default=Dialect.FORM)
    refresh_grant_type: bool = option("Whether a refresh says grant_type.", default=True)
    dpop: bool = option("Bind tokens to a key of the grant (RFC 9449).", default=False)
    refresh_scope: bool = option("Whether a refresh repeats the scope.", default=False)
    token_parameters: Mapping[str, str] = option("Sent with every token request.", default_factory=dict)
    token_response: Mapping[str, str] = option(
        "Paths of members that have other names.", default_factory=dict, example="{access_token: data.token}"
    )
    default_expires_in_seconds: float = option(
        "Life of an access token where neither the answer nor the token itself says it.", default=300.0
    )
    permanent_errors: tuple[str, ...] = option("Errors that end a grant, beside invalid_grant.", default=())
    empty_400: EmptyAnswer = option("What a 400 without a body means.", default=EmptyAnswer.TRANSIENT)

    rotation: Rotation = option(
        "What the server does with a refresh token that is presented again.", default=Rotation.STRICT
    )
    rotation_grace_seconds: float = option("How long a rotated refresh token is still taken.", default=30.0)
    refresh_before_expiry_seconds: float = option(
        "Refresh this long before the access token expires; at most a quarter of its life.", default=60.0
    )
    idle_timeout_seconds: float | None = option(
        "How long the server keeps a refresh token that isn't used, where it doesn't say so.", default=None
    )
    max_rotation_seconds: float | None = option(
        "How long a chain of rotated refresh tokens may live; then the user must log in again.", default=None
    )
    max_concurrent_token_requests: int = option(
        "How many token requests one process makes at once; more wait for their turn.", default=100
    )
    keep_alive_per_second: float = option(
        "How many unused grants one process refreshes in a second, so that their server isn't flooded.", default=5.0
    )
    token_endpoint_timeout_seconds: float = option("Deadline of one token request.", default=10.0)

    def __post_init__(self) -> None:
        # Frozen values share nothing mutable with the document that they were read from.
        for key in ("authorization_parameters", "userinfo_members", "token_parameters", "token_response"):
            object.__setattr__(self, key, MappingProxyType(dict(getattr(self, key))))
        issuer, well_known, _ = (self.issuer or "").partition("/.well-known/")
        if well_known:
            raise OptionError("issuer", "an issuer, without the place of its metadata", hint=f"did you mean {issuer}?")
        discovered = self.discovery and (self.issuer or self.metadata_url)
        if not (discovered or self.token_endpoint or self.refresh_endpoint):
            raise OptionError("issuer", "an issuer to discover, or a token_endpoint")
        if self.empty_400 is EmptyAnswer.INVALID_GRANT and not (discovered or self.revocation_endpoint):
            raise OptionError(
                "revocation_endpoint", "one, where the client is proved, since empty_400 is invalid_grant"
            )
        self._check_client_auth()
        self._check_parameters()
        self._check_names()
        self._check_durations()

    @property
    def auth_method(self) -> ClientAuthMethod:
        """The client authentication in force."""
        if self.token_endpoint_auth_method is not None:
            return self.token_endpoint_auth_method
        if self.client_assertion is not None and self.client_assertion.has_key:
            return ClientAuthMethod.PRIVATE_KEY_JWT
        return ClientAuthMethod.NONE if self.client_secret is None else ClientAuthMethod.CLIENT_SECRET_BASIC

    @property
    def signs_user_assertions(self) -> bool:
        """Whether standing grants can be had by assertions about their users."""
        return (self.user_assertion or self.client_assertion or AssertionOptions()).has_key

    def asked_at_login(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return what a login asks for beside what the broker says itself: the caller's choices over the configured."""
        return {**self.authorization_parameters, **chosen}

    def _check_client_auth(self) -> None:
        if not self.client_id:
            raise OptionError("client_id", "the client identifier")
        needs = methods_in_force(self)
        secret = {
            ClientAuthMethod.CLIENT_SECRET_BASIC,
            ClientAuthMethod.CLIENT_SECRET_POST,
            ClientAuthMethod.CLIENT_SECRET_JWT,
        }
        if self.client_secret is None and needs & secret:
            raise OptionError("client_secret", f"a secret for {min(needs & secret)}")
        signs = ClientAuthMethod.PRIVATE_KEY_JWT in needs or self.request_object
        if signs and not (self.client_assertion or AssertionOptions()).has_key:
            what = "request_object" if self.request_object else "private_key_jwt"
            raise OptionError("client_assertion", f"a private_key or a pkcs12_file for {what}")
        if ClientAuthMethod.TLS_CLIENT_AUTH in needs and (self.tls is None or self.tls.certificate_file is None):
            raise OptionError("tls", "a certificate_file for tls_client_auth")

    def _check_parameters(self) -> None:
        for index, name in enumerate(self.allowed_parameters):
            if name in RESERVED_PARAMETERS:
                expected = "another parameter: a login's caller can't choose this one"
                raise OptionError(f"allowed_parameters[{index}]", expected)
            similar = difflib.get_close_matches(name, STANDARD_PARAMETERS, n=1, cutoff=0.85)
            if similar and name not in STANDARD_PARAMETERS:
                raise OptionError(f"allowed_parameters[{index}]", f"{similar[0]}, or a name that isn't so much like it")
        for name in self.authorization_parameters:
            if name in RESERVED_PARAMETERS:
                key, expected = f"authorization_parameters.{name}", "another parameter: the broker says this one itself"
                raise OptionError(key, expected, found=name)
        if not self.authorization_parameters.get("max_age", "0").isdecimal():
            raise OptionError("authorization_parameters.max_age", "a whole number of seconds")

    def _check_names(self) -> None:
        if strange := set(self.token_response) - TOKEN_MEMBERS:
            raise OptionError("token_response", f"members among {', '.join(sorted(TOKEN_MEMBERS))}; not {min(strange)}")
        if not self.id_token_algorithms:
            raise OptionError("id_token_algorithms", "at least one algorithm")
        known = sorted(ID_TOKEN_ALGORITHMS | SYMMETRIC_ALGORITHMS)
        for index, name in enumerate(self.id_token_algorithms):
            if name not in known:
                raise OptionError(f"id_token_algorithms[{index}]", "one of " + ", ".join(known))
        if self.client_secret is None and set(self.id_token_algorithms) & SYMMETRIC_ALGORITHMS:
            raise OptionError("id_token_algorithms", "a client_secret for HS256, HS384 or HS512")

    def _check_durations(self) -> None:
        limits = {
            "rotation_grace": (self.rotation_grace_seconds, 0.0, 86400.0),
            "refresh_before_expiry": (self.refresh_before_expiry_seconds, 0.0, 86400.0),
            "token_endpoint_timeout": (self.token_endpoint_timeout_seconds, 0.1, 300.0),
            "default_expires_in": (self.default_expires_in_seconds, 1.0, 366 * 86400.0),
            "clock_skew": (self.clock_skew_seconds, 0.0, 600.0),
        }
        for key, (value, low, high) in limits.items():
            if not low <= value <= high:  # also false for NaN
                raise OptionError(key, f"a duration between {low:g}s and {high:g}s")
        for key, optional in {
            "idle_timeout": self.idle_timeout_seconds,
            "max_rotation": self.max_rotation_seconds,
        }.items():
            if optional is not None and not 1 <= optional < math.inf:
                raise OptionError(key, "a duration of at least 1s")
        if not 0 < self.keep_alive_per_second < math.inf:
            raise OptionError("keep_alive_per_second", "a number above 0")
        if self.max_concurrent_token_requests < 1:
            raise OptionError("max_concurrent_token_requests", "a number from 1 on")


def methods_in_force(options: ProviderOptions) -> set[ClientAuthMethod]:
    """Return every method of client authentication that *options* need credentials for."""
    methods = {options.auth_method}
    if ClientAuthMethod.CLIENT_ACCESS_TOKEN in methods:
        methods.add((options.client_token or ClientTokenOptions()).auth_method)
    return methods
