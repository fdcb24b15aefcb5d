"""Where the store is, and how it is reached."""

import re
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import NamedTuple, Self
from urllib.parse import quote, unquote

from broker.core.options import OptionError, option
from broker.core.secret import Secret

EXPECTED_URL = (
    "memory:, sqlite:///PATH, redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,…/MASTER/DB or "
    "redis+cluster://HOST:PORT,…; rediss… for TLS"
)

_SCHEME = re.compile(r"(?P<kind>redis)(?P<tls>s?)(\+(?P<topology>sentinel|cluster))?://(?P<rest>.*)")
_HOST = re.compile(r"(\[(?P<six>[0-9A-Fa-f:.]+)\]|(?P<name>[A-Za-z0-9._-]+))(:(?P<port>[0-9]{1,5}))?")
_MASTER = re.compile(r"/(?P<master>[A-Za-z0-9._-]+)(/(?P<database>[0-9]{1,5})?)?")
_DATABASE = re.compile(r"(/(?P<database>[0-9]{1,5})?)?")


class StoreKind(StrEnum):
    """What a store is made of."""

    MEMORY = "memory"
    SQLITE = "sqlite"
    REDIS = "redis"
    SENTINEL = "sentinel"
    CLUSTER = "cluster"

    @property
    def is_redis(self) -> bool:
        return self in {StoreKind.REDIS, StoreKind.SENTINEL, StoreKind.CLUSTER}


class Address(NamedTuple):  # its hash, which each read takes, is ten times as quick as a dataclass's
    """A TCP address: a name or an IP address without brackets, and a port."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreUrl:
    """
    The place of a store.

    Attributes:
        kind: What it is made of.
        path: The file of an SQLite store.
        addresses: The servers of a Redis store, or its Sentinels, or some nodes of its cluster.
        tls: Whether all of them are reached by TLS.
        username: The ACL user; None for the default user.
        password: Its password, where the URL holds it.
        master: The name by which the Sentinels know the master.
        database: The number of the database.
    """

    kind: StoreKind
    path: Path = Path()
    addresses: tuple[Address, ...] = ()
    tls: bool = False
    username: str | None = None
    password: Secret | None = None
    master: str = ""
    database: int = 0

    def __str__(self) -> str:
        """Return the URL without its password."""
        match self.kind:
            case StoreKind.MEMORY:
                return "memory:"
            case StoreKind.SQLITE:
                return f"sqlite://{self.path}"
            case _:
                topology = "" if self.kind is StoreKind.REDIS else f"+{self.kind.value}"
                user = "" if self.username is None else f"{quote(self.username, safe='')}@"
                hosts = ",".join(map(str, self.addresses))
                master = f"/{self.master}" if self.master else ""
                return f"redis{'s' if self.tls else ''}{topology}://{user}{hosts}{master}/{self.database}"

    @classmethod
    def from_option(cls, value: object) -> Self:
        """
        Read a URL that stands in the configuration.

        Raises:
            OptionError: If it is none of ours, or holds a password: that has to stand elsewhere.
        """
        url = cls.parse(value)
        if url.password is not None:
            raise OptionError(
                "", "a URL without its password: that belongs in `store.password`, or the whole URL in a secret"
            )
        return url

    @classmethod
    def option_schema(cls) -> dict[str, object]:
        return {"type": "string", "description": f"a URL such as {EXPECTED_URL}"}

    @classmethod
    def parse(cls, value: object) -> Self:
        """Read a URL. Raises OptionError, which does not quote it."""
        if not isinstance(value, str) or not value.isascii() or not value.isprintable() or set(value) & set(' \\"?#'):
            raise _refusal()
        if value == "memory:":
            return cls(kind=StoreKind.MEMORY)
        if value.startswith("memory"):
            raise OptionError("", "memory: with the colon, and nothing behind it")
        if value.startswith("sqlite:///") and (path := value.removeprefix("sqlite://").lstrip("/")):
            return cls(kind=StoreKind.SQLITE, path=Path("/", path))
        if value.startswith("sqlite"):
            raise OptionError("", "sqlite:///PATH: three slashes, since the path is an absolute one")
        match = _SCHEME.fullmatch(value)
        if match is None:
            raise _refusal()
        kind = StoreKind(match["topology"] or match["kind"])
        authority, slash, path = match["rest"].partition("/")
        username, password, hosts = _authority(authority)
        tail = (_MASTER if kind is StoreKind.SENTINEL else _DATABASE).fullmatch(slash + path)
        if tail is None:
            raise _refusal()
        addresses = tuple(_address(host, 26379 if kind is StoreKind.SENTINEL else 6379) for host in hosts.split(","))
        database = int(tail["database"] or 0)
        if (kind is StoreKind.REDIS and len(addresses) > 1) or (kind is StoreKind.CLUSTER and database):
            raise _refusal()
        return cls(
            kind=kind,
            addresses=addresses,
            tls=bool(match["tls"]),
            username=username,
            password=password,
            master=tail["master"] if kind is StoreKind.SENTINEL else "",
            database=database,
        )


def _refusal() -> OptionError:
    return OptionError("", EXPECTED_URL)


def _authority(authority: str) -> tuple[str | None, Secret | None, str]:
    """Split ``USER:PASSWORD@HOSTS`` (RFC 3986 section 3.2)."""
    userinfo, at, hosts = authority.rpartition("@")
    if not at:
        return None, None, hosts
    username, colon, password = userinfo.partition(":")
    return unquote(username) or None, Secret(unquote(password)) if colon else None, hosts


def _address(text: str, default_port: int) -> Address:
    match = _HOST.fullmatch(text)
    if match is None or not 0 < (port := int(match["port"] or default_port)) < 65536:
        raise _refusal()
    return Address(match["six"] or match["name"].lower(), port)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreTlsOptions:
    """TLS towards Redis (``rediss:``). The server's certificate and its name are always checked."""

    ca_file: str | None = option(
        "The certificates by which the server's is checked, in PEM form, in place of the system's.", default=None
    )
    cert_file: str | None = option("The client certificate, in PEM form.", default=None)
    key_file: str | None = option("The private key of the client certificate, where cert_file lacks it.", default=None)
    key_password: Secret | None = option("The password of the private key.", default=None)

    def __post_init__(self) -> None:
        if self.cert_file is None and (self.key_file is not None or self.key_password is not None):
            raise OptionError("cert_file", "the client certificate to which the private key belongs")


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreOptions:
    """Where sessions and grants are kept, sealed."""

    url: StoreUrl | Secret = option(
        "The store. `memory:` forgets all at the end of the process, and serves one process. "
        "`sqlite:///var/lib/x.db` is the file `/var/lib/x.db` on a local disk, for the processes of one host. "
        "`redis://user@host:6379/0` is one server, `redis+sentinel://host:26379,host:26379/master/0` a master that "
        "Sentinels watch, `redis+cluster://host:6379,host:6379` a cluster; `rediss` in place of `redis` is TLS. "
        "A URL that holds a password is a secret: `{env: NAME}` or `{file: PATH}`.",
        default=StoreUrl(kind=StoreKind.SQLITE, path=Path("/var/lib/token-broker/broker.db")),
        example="redis://broker@redis.internal:6379/0",
    )
    password: Secret | None = option("The password for Redis, where the URL doesn't hold it.", default=None)
    sentinel_username: str | None = option("The ACL user at the Sentinels.", default=None)
    sentinel_password: Secret | None = option("The password at the Sentinels.", default=None)
    timeout_seconds: float = option(
        "How long one call to the store may take, reconnecting included. Waiting for one of max_connections to Redis "
        "is not counted, up to ten times as long.",
        default=2.0,
    )
    wait_replicas: int = option(
        "How many replicas of Redis must have a record before its write counts as done; with fewer it fails. A "
        "failover to any other replica may lose what was written last.",
        default=0,
    )
    prefix: str = option("What every key in Redis begins with.", default="token-broker:")
    max_connections: int = option("How many connections one process opens to one Redis server.", default=32)
    tls: StoreTlsOptions = option("TLS towards Redis.", default=StoreTlsOptions())

    def __post_init__(self) -> None:
        kind = self.location.kind
        if self.password is not None and self.location.password is not None:
            raise OptionError("password", "one password: the URL holds one already")
        if self.password is not None and not kind.is_redis:
            raise OptionError("password", f"no password: a {kind.value} store has none")
        if kind is not StoreKind.SENTINEL and (self.sentinel_username or self.sentinel_password):
            raise OptionError("sentinel_password", "a redis+sentinel URL with it")
        if self.tls != StoreTlsOptions() and not self.location.tls:
            raise OptionError("tls", "a rediss URL with it")
        if not 0.05 <= self.timeout_seconds <= 60:
            raise OptionError("timeout", "a duration from 50ms to 1m")
        if not 0 <= self.wait_replicas <= 16 or (self.wait_replicas and not kind.is_redis):
            raise OptionError("wait_replicas", "a number from 0 to 16; 0 where the store isn't Redis")
        if not re.fullmatch(r"[A-Za-z0-9:._-]{0,64}", self.prefix):
            raise OptionError("prefix", "up to 64 letters, digits and : . _ -")
        if not 1 <= self.max_connections <= 1000:
            raise OptionError("max_connections", "a number from 1 to 1000")

    @property
    def location(self) -> StoreUrl:
        """The URL, read."""
        if isinstance(self.url, StoreUrl):
            return self.url
        try:
            return StoreUrl.parse(self.url.reveal().strip())
        except OptionError as refusal:
            raise OptionError("url", refusal.expected) from None

    @property
    def is_shared(self) -> bool:
        """Whether several processes can use it."""
        return self.location.kind is not StoreKind.MEMORY
