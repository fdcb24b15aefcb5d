"""All settings: each component's options, put together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path

from broker.config.addresses import ListenAddress, PublicUrl
from broker.config.problems import Notice
from broker.core.callers import CallersOptions
from broker.core.forward_auth import ForwardAuthOptions
from broker.core.forwarded import ForwardingField
from broker.core.limit_options import LimitOptions
from broker.core.listen_tls import ListenTlsOptions
from broker.core.login import LoginOptions
from broker.core.options import OptionError, option
from broker.core.provider import ProviderOptions
from broker.core.refresh import answer_seconds
from broker.core.routing import Route
from broker.core.secret import SHARED_SECRET, Secret, is_shared_secret
from broker.core.session import SessionOptions
from broker.core.standing import StandingGrantOptions
from broker.stores.options import StoreOptions

_BASE_PATH = re.compile(r"(/[A-Za-z0-9_-]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOptions:
    """The listener for operators: health, metrics and the admin API. It should not be reachable from outside."""

    listen: ListenAddress = option("Where it listens.", default=ListenAddress("127.0.0.1", 9090))
    token: Secret | None = option(
        f"The bearer token of the admin API: {SHARED_SECRET}. Without it the listener serves health and metrics only.",
        default=None,
    )

    def __post_init__(self) -> None:
        if self.token is not None and not is_shared_secret(self.token):
            raise OptionError("token", SHARED_SECRET)


class LogLevel(StrEnum):
    """How much is logged."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """How a log record is written."""

    JSON = "json"
    TEXT = "text"


@dataclass(frozen=True, slots=True, kw_only=True)
class LogOptions:
    """The log, on standard error."""

    level: LogLevel = option("The least severe level that is logged.", default=LogLevel.INFO)
    format: LogFormat = option(
        "One JSON object per line, or text for reading. Access lines and the supervisor's lines are in it, too.",
        default=LogFormat.JSON,
    )
    access: bool = option("Whether each request is logged.", default=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The whole configuration."""

    public_url: PublicUrl = option(
        "The origin under which browsers reach the broker. It must be https, except on this machine: there, cookies "
        "lose `Secure` and their prefix.",
        example="https://app.example.com",
    )
    listen: ListenAddress = option(
        "Where the broker listens.", default=ListenAddress("127.0.0.1", 8080), example="0.0.0.0:8080"
    )
    tls: ListenTlsOptions | None = option("TLS on that listener.", default=None)
    admin: AdminOptions = option("The listener for operators.", default=AdminOptions())
    trusted_proxies: tuple[IPv4Network | IPv6Network, ...] = option(
        "The networks of the proxies in front of the broker. Only what they say in `forwarding_field` and "
        "`X-Request-ID` is believed.",
        default=(),
        example="[10.0.0.0/8]",
    )
    forwarding_field: ForwardingField = option(
        "The field in which those proxies say where a request came from. Only this one is believed, and they must set "
        "it or add to it; the other one is dropped, since it may be the caller's.",
        default=ForwardingField.X_FORWARDED_FOR,
    )
    store: StoreOptions = option("Where sessions and grants are kept, sealed.", default=StoreOptions())
    keys: tuple[Secret, ...] = option(
        "The keys that seal every record and cookie, made by `token-broker keys new`. The first seals, all open: put "
        "a new one in front, and take the old one out once no session is older than it.",
        example="[{file: /run/secrets/broker-key-2}, {file: /run/secrets/broker-key-1}]",
    )
    session: SessionOptions = option("Browser sessions.", default=SessionOptions())
    workers: int = option("How many processes serve on the same port.", default=1)
    providers: Mapping[str, ProviderOptions] = option(
        "The authorization servers, each by a name of lower-case letters, digits and hyphens.", default_factory=dict
    )
    grants: Mapping[str, StandingGrantOptions] = option(
        "Standing grants, which no browser brought, each by a name.", default_factory=dict
    )
    callers: CallersOptions = option("Callers without a browser, beside handles.", default=CallersOptions())
    routes: tuple[Route, ...] = option("Where requests go, by the longest path, then host, then method.", default=())
    limits: LimitOptions = option("What callers may take of time and connections.", default=LimitOptions())
    forward_auth: ForwardAuthOptions | None = option(
        "Answering a gateway that forwards the requests itself, and asks at `/bff/auth` whether one may go on. The "
        "routes judge its requests as they judge those that the broker forwards.",
        default=None,
    )
    login: LoginOptions = option("How users log in and out.", default=LoginOptions())
    base_path: str = option("The path of the broker's own endpoints.", default="/bff")
    log: LogOptions = option("The log.", default=LogOptions())
    drain_timeout_seconds: float = option(
        "How long running requests may take to end after SIGTERM. Token requests that are under way have a deadline of "
        "their own, one and a half times `token_endpoint_timeout`, and are waited for.",
        default=30.0,
    )
    spool_dir: Path | None = option(
        "A directory on a local disk for token responses that the store could not take yet. They are sealed, and saved "
        "at the next start at the latest; those of logins that were cut off are revoked. Without it they are kept in "
        "memory alone until the store is back. By default it is beside the SQLite file.",
        default=None,
        example="/var/lib/token-broker/spool",
    )
    warnings: tuple[Notice, ...] = ()

    @property
    def end_seconds(self) -> float:
        """
        How long a process may take to end: what it serves, and then token requests that are under way.

        Those have a deadline of their own. One that is cut off may have been answered, and costs a login.
        """
        return max([self.drain_timeout_seconds, *map(answer_seconds, self.providers.values())])

    def __post_init__(self) -> None:
        if not 1 <= self.workers <= 256:
            raise OptionError("workers", "a number from 1 to 256")
        if self.workers > 1 and not self.store.is_shared:
            raise OptionError("workers", "1, since a memory store serves one process")
        names = () if self.forward_auth is None else self.forward_auth.certificate_names
        if names and (self.tls is None or self.tls.client_ca_file is None):
            raise OptionError("forward_auth.certificate_names", "tls.client_ca_file with them")
        if not _BASE_PATH.fullmatch(self.base_path):
            raise OptionError("base_path", "a path such as /bff, of letters, digits, _ and -")
        object.__setattr__(self, "login", replace(self.login, base_path=self.base_path))
        if not 0 <= self.drain_timeout_seconds <= 3600:
            raise OptionError("drain_timeout", "a duration from 0s to 1h")
        if self.spool_dir is not None and not self.spool_dir.is_absolute():
            raise OptionError("spool_dir", "an absolute path")
