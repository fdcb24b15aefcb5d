"""Which key of the YAML to look at when an authorization server refuses the broker."""

from collections.abc import Container

from broker.core.client_auth import ClientAuthMethod
from broker.core.oauth import FailureKind, TokenFailure
from broker.core.provider import ProviderOptions

_BY_METHOD = {
    ClientAuthMethod.NONE: "client_id",
    ClientAuthMethod.CLIENT_SECRET_BASIC: "client_secret",
    ClientAuthMethod.CLIENT_SECRET_POST: "client_secret",
    ClientAuthMethod.CLIENT_SECRET_JWT: "client_secret",
    ClientAuthMethod.PRIVATE_KEY_JWT: "client_assertion",
    ClientAuthMethod.TLS_CLIENT_AUTH: "tls",
    ClientAuthMethod.CLIENT_ACCESS_TOKEN: "client_token",
}

_BY_ASSERTION = {ClientAuthMethod.CLIENT_SECRET_JWT, ClientAuthMethod.PRIVATE_KEY_JWT}

_OF_CREDENTIALS = {(401, None), (401, "unauthorized_client"), (403, "unauthorized_client")}
"""What servers say of a wrong secret beside ``invalid_client``; the second is Keycloak's, the third glewlwyd's."""

_BY_ERROR = {
    "unauthorized_client": "client_id",  # the grant type isn't enabled for it at the server
    "invalid_scope": "scope",
    "not_allowed": "scope",  # Keycloak: offline_access, for a user without the role
    "invalid_target": "audience",
    "unsupported_grant_type": "token_endpoint",
    "invalid_request": "token_endpoint_auth_method",
}

_BY_CLAIM = {
    "iss": "issuer",
    "aud": "client_id",
    "azp": "client_id",
    "exp": "clock_skew",  # an id token is fresh when it comes: one of the clocks is off
    "iat": "clock_skew",
    "nbf": "clock_skew",
    "alg": "id_token_algorithms",
}

_ASKED_BY = {"acr": "acr_values", "auth_time": "max_age"}
"""Claims that must fit a parameter of the login (OpenID Connect Core section 3.1.2.1)."""

_BY_AUTHORIZATION_ERROR = {
    "unauthorized_client": "client_id",
    "unsupported_response_type": "client_id",  # the client isn't set up for the code flow at the server
    "invalid_scope": "scope",
    "invalid_request": "authorization_parameters",
    "invalid_target": "authorization_parameters",
    "invalid_redirect_uri": "redirect_uri",  # RFC 7591 section 3.2.2, said of pushed requests, too
    "invalid_request_object": "client_assertion",
    "request_not_supported": "request_object",
    "request_uri_not_supported": "pushed_authorization",
}

_ELSEWHERE = {"audience": "routes.audience", "redirect_uri": "public_url"}
"""Keys that are no provider's own."""


def key_of_claim(claim: str, *, chosen: Container[str] = ()) -> str | None:
    """
    Return the key of the provider that an id token's refused *claim* points to; None where the YAML can't help.

    Args:
        claim: Its name.
        chosen: The names of the parameters that the login's caller chose; others are the configuration's.
    """
    if claim in _ASKED_BY:
        return "allowed_parameters" if _ASKED_BY[claim] in chosen else "authorization_parameters"
    return _BY_CLAIM.get(claim)


def key_of_authorization_error(error: str) -> str | None:
    """Return the key that an authorization response's ``error`` points to (RFC 6749 section 4.1.2.1)."""
    return _BY_AUTHORIZATION_ERROR.get(error)


def yaml_path(provider: str, key: str | None) -> str | None:
    """Return where in the YAML *key* of *provider* is, for the log; None for none."""
    return None if key is None else _ELSEWHERE.get(key, f"providers.{provider}.{key}")


def refuses_client(failure: TokenFailure) -> bool:
    """Return whether the server didn't take the client for whom it says it is."""
    return failure.error == "invalid_client" or (failure.status, failure.error) in _OF_CREDENTIALS


def key_to_look_at(failure: TokenFailure, options: ProviderOptions) -> str | None:
    """Return the key of the provider that *failure* points to; None where nothing in the YAML explains it."""
    if refuses_client(failure):
        if options.auth_method in _BY_ASSERTION and abs(failure.ahead_seconds) > options.clock_skew_seconds:
            return "clock_skew"  # the assertion was over, or not yet good, when it came
        return _BY_METHOD[options.auth_method]
    if failure.error in _BY_ERROR:
        return _BY_ERROR[failure.error]
    if failure.detail.startswith("token_type"):
        return "token_response"
    if failure.status in {404, 405}:
        return "token_endpoint"
    return "issuer" if failure.kind is FailureKind.OPERATOR and failure.status is None else None
