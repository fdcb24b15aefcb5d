"""Standing grants: those that the configuration brings, without any browser."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from broker.core.options import OptionError, option
from broker.core.secret import Secret


class GrantType(StrEnum):
    """How a standing grant gets its first tokens."""

    CLIENT_CREDENTIALS = "client_credentials"
    """RFC 6749 section 4.4."""
    JWT_BEARER = "jwt_bearer"
    """RFC 7523 section 2.1: an assertion about the user, signed by the broker."""
    PASSWORD = "password"
    """RFC 6749 section 4.3. RFC 9700 section 2.4 forbids it for anything new."""
    IMPORTED = "imported"
    """A backend or an operator hands the tokens over."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StandingGrantOptions:
    """One standing grant."""

    provider: str = option("The provider (a key of `providers`) that grants it.")
    type: GrantType = option(
        "How it gets its first tokens. Those of type `imported` are handed over, and again where they have ended: by "
        "`token-broker grants import --grant`, `token-broker login --grant` or the admin API."
    )
    subject: str | None = option(
        "Whom it speaks for: `sub` of the assertion, and the subject by which the admin API lists it. By default the "
        "grant's name. No header is made of it.",
        default=None,
    )
    scope: str | None = option("What is asked for.", default=None, example='"orders.read offline_access"')
    resource: str | None = option("`resource` of the token request (RFC 8707).", default=None)
    audience: str | None = option("`audience` of the token request, for servers that want one.", default=None)
    username: str | None = option("`username`, for type `password`.", default=None)
    password: Secret | None = option("`password`, for type `password`.", default=None)
    parameters: Mapping[str, str] = option(
        "Further parameters of the token request.", default_factory=dict, example="{tenant: acme}"
    )

    def __post_init__(self) -> None:
        if self.type is GrantType.PASSWORD:
            if self.username is None:
                raise OptionError("username", "a username, since the type is password")
            if self.password is None:
                raise OptionError("password", "a password, since the type is password")
        elif self.username is not None or self.password is not None:
            key = "username" if self.username is not None else "password"
            raise OptionError(key, "this key only where the type is password")
        if self.type is GrantType.JWT_BEARER and self.subject is None:
            raise OptionError("subject", "a subject, since the type is jwt_bearer")
