"""Which key of the YAML to look at when an authorization server refuses the broker."""

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

_OF_CLIENT = {None, "unauthorized_client"}
"""What a 401 says of a client that isn't who it claims to be; the second is Keycloak's."""

_BY_ERROR = {
    "unauthorized_client": "client_id",  # the grant type isn't enabled for it at the server
    "invalid_scope": "scope",
    "not_allowed": "scope",  # Keycloak: offline_access, for a user without the role
    "invalid_target": "audience",
    "unsupported_grant_type": "token_endpoint",
    "invalid_request": "token_endpoint_auth_method",
}


def key_to_look_at(failure: TokenFailure, options: ProviderOptions) -> str | None:
    """Return the key of the provider that *failure* points to; None where nothing in the YAML explains it."""
    if failure.error == "invalid_client" or (failure.error in _OF_CLIENT and failure.status == 401):
        return _BY_METHOD[options.auth_method]
    if failure.error in _BY_ERROR:
        return _BY_ERROR[failure.error]
    if failure.detail.startswith("token_type"):
        return "token_response"
    if failure.status in {404, 405}:
        return "token_endpoint"
    return "issuer" if failure.kind is FailureKind.OPERATOR and failure.status is None else None
