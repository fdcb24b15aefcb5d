"""For whom an access token is meant, and so to which upstream it may go."""

from dataclasses import dataclass, field

from broker.core.options import OptionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Audience:
    """
    What a route asks of the authorization server for its access token.

    Tokens are cached by (grant, audience); a token of one audience never goes to a route of another.

    Attributes:
        resource: RFC 8707 ``resource`` of the token request.
        audience: ``audience`` of the token request (Auth0, RFC 8693).
        scope: A narrower scope than the grant's, for this audience.
        exchange: Whether the token comes by token exchange (RFC 8693) instead of the refresh token.
    """

    resource: str | None = None
    audience: str | None = None
    scope: str | None = None
    exchange: bool = False
    key: str = field(init=False)

    def __post_init__(self) -> None:
        if self.exchange and not (self.resource or self.audience):
            raise OptionError("exchange", "a resource or an audience beside it")
        parts = (self.resource or "", self.audience or "", self.scope or "", "x" if self.exchange else "")
        # Record separators: none of the values may hold a control character (RFC 6749 appendix A).
        object.__setattr__(self, "key", "\x1e".join(parts) if any(parts) else "")


DEFAULT_AUDIENCE = Audience()
"""The access token that the grant itself brought."""
