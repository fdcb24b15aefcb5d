"""What the handlers of the broker's own endpoints share."""

from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.cookies import CookieNames
from broker.core.forwarded import TrustedProxies
from broker.core.login import LoginOptions
from broker.core.session import SameSite
from broker.services.clock import Clock
from broker.services.keyring import Keyring
from broker.services.limits import Rates
from broker.services.logins import Logins
from broker.services.provider import AuthorizationServer
from broker.services.sessions import Sessions
from broker.services.tokens import TokenBroker
from broker.stores.base import Store
from broker.web.sessions import BrowserSessions


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthContext:
    """
    What the handlers of the broker's own endpoints share.

    Attributes:
        public_url: The origin under which browsers reach the broker. Redirects are made from it, and never from Host.
        options: How users log in and out.
        same_site: SameSite of the session cookie.
        cookies: What the broker calls its cookies.
        servers: The authorization servers by configured name.
        tokens: Keeps the grants.
        sessions: Keeps the sessions.
        browser_sessions: Ties sessions to requests.
        logins: Begins and completes logins.
        store: Remembers used states and logout tokens.
        keyring: Seals cookies, and makes the proofs in logout URLs.
        trusted_proxies: Who may say who the client is, for the audit trail.
        clock: Time.
        rates: Makes the buckets of rate limits.
    """

    public_url: str
    options: LoginOptions
    same_site: SameSite
    cookies: CookieNames
    servers: Mapping[str, AuthorizationServer]
    tokens: TokenBroker
    sessions: Sessions
    browser_sessions: BrowserSessions
    logins: Logins
    store: Store
    keyring: Keyring
    trusted_proxies: TrustedProxies
    clock: Clock
    rates: Rates
