"""Where a store is: its URL and its options."""

from pathlib import Path

import pytest

from broker.core.options import OptionError
from broker.core.secret import Secret
from broker.stores.options import EXPECTED_URL, Address, StoreKind, StoreOptions, StoreTlsOptions, StoreUrl

READ = {
    "memory:": StoreUrl(kind=StoreKind.MEMORY),
    "sqlite:///var/lib/token-broker/broker.db": StoreUrl(
        kind=StoreKind.SQLITE, path=Path("/var/lib/token-broker/broker.db")
    ),
    "sqlite:////var/lib/broker.db": StoreUrl(kind=StoreKind.SQLITE, path=Path("/var/lib/broker.db")),
    "sqlite:///x.db": StoreUrl(kind=StoreKind.SQLITE, path=Path("/x.db")),
    "redis://localhost": StoreUrl(kind=StoreKind.REDIS, addresses=(Address("localhost", 6379),)),
    "redis://Redis.Internal:6380/": StoreUrl(kind=StoreKind.REDIS, addresses=(Address("redis.internal", 6380),)),
    "redis://broker@10.0.0.1:6379/2": StoreUrl(
        kind=StoreKind.REDIS, addresses=(Address("10.0.0.1", 6379),), username="broker", database=2
    ),
    "rediss://us%40er:p%3Ass@[::1]:6379/0": StoreUrl(
        kind=StoreKind.REDIS,
        addresses=(Address("::1", 6379),),
        tls=True,
        username="us@er",
        password=Secret("p:ss"),
    ),
    "redis://:secret@h": StoreUrl(kind=StoreKind.REDIS, addresses=(Address("h", 6379),), password=Secret("secret")),
    "redis+sentinel://a:26379,b,[fd00::1]:5/broker/1": StoreUrl(
        kind=StoreKind.SENTINEL,
        addresses=(Address("a", 26379), Address("b", 26379), Address("fd00::1", 5)),
        master="broker",
        database=1,
    ),
    "rediss+sentinel://a/broker": StoreUrl(
        kind=StoreKind.SENTINEL, addresses=(Address("a", 26379),), tls=True, master="broker"
    ),
    "redis+cluster://a:7000,b:7001": StoreUrl(
        kind=StoreKind.CLUSTER, addresses=(Address("a", 7000), Address("b", 7001))
    ),
    "rediss+cluster://a/0": StoreUrl(kind=StoreKind.CLUSTER, addresses=(Address("a", 6379),), tls=True),
}

REFUSED = (
    "",
    "sqlite:///broker.db?mode=ro",
    "redis:",
    "redis://",
    "redis:///0",
    "redis://host:0",
    "redis://host:65536",
    "redis://host:port",
    "redis://host/x",
    "redis://host/0/1",
    "redis://a,b/0",
    "redis://host/0?timeout=1",
    "redis://host/0#x",
    "redis://ho st/0",
    "redis://host\n/0",
    "redis://h\u00f6st/0",
    "redis://[::1/0",
    "redis://::1/0",
    "redis+sentinel://a:26379",
    "redis+sentinel://a/",
    "redis+sentinel://a//0",
    "redis+sentinel://a/master/x",
    "redis+sentinel://,a/master",
    "redis+cluster://a/1",
    "redis+cluster://",
    "redis+other://a",
    "postgres://a/b",
    None,
    7,
    ["memory:"],
    {"env": "X"},
)


@pytest.mark.parametrize("text", READ)
def test_urls_are_read(text: str) -> None:
    """Each form of URL gives the place that it means."""
    assert READ[text] == StoreUrl.parse(text)


@pytest.mark.parametrize("text", [text for text, url in READ.items() if url.password is None])
def test_a_url_is_written_as_it_can_be_read(text: str) -> None:
    """What a URL shows of itself means the same place."""
    url = StoreUrl.parse(text)
    assert url == StoreUrl.parse(str(url))


@pytest.mark.parametrize("text", REFUSED)
def test_other_urls_are_refused(text: object) -> None:
    """Anything else is refused, with the forms that would be taken, and without being quoted."""
    with pytest.raises(OptionError) as caught:
        StoreUrl.parse(text)
    assert f"expected {EXPECTED_URL}" == str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *((text, "memory: with the colon, ") for text in ("memory", "memory://", "memory:x")),
        *(
            (text, "sqlite:///PATH: three slashes, ")
            for text in ("sqlite:", "sqlite://", "sqlite:///", "sqlite:broker.db", "sqlite://host/broker.db")
        ),
    ],
)
def test_what_is_nearly_a_url_is_told_what_it_lacks(text: str, expected: str) -> None:
    """The colon of ``memory:``, and the third slash of a path."""
    with pytest.raises(OptionError, match=f"^expected {expected}"):
        StoreUrl.parse(text)


def test_a_password_stands_elsewhere() -> None:
    """A URL with a password is refused in plain text, and taken from a secret; it is never shown."""
    text = "rediss://user:canary@host:6379/0"
    with pytest.raises(OptionError, match="password") as caught:
        StoreUrl.from_option(text)
    assert "canary" not in str(caught.value)
    options = StoreOptions(url=Secret(f"{text}\n"))
    assert Secret("canary") == options.location.password
    for shown in (repr(options), str(options), repr(options.location), str(options.location)):
        assert "canary" not in shown
    assert "rediss://user@host:6379/0" == str(options.location)


def test_a_secret_that_is_no_url_is_refused_without_showing_it() -> None:
    """The error for a secret URL names the key, and not the secret."""
    with pytest.raises(OptionError) as caught:
        StoreOptions(url=Secret("canary"))
    assert "url" == caught.value.key
    assert "canary" not in str(caught.value)


def test_a_url_describes_itself() -> None:
    """The JSON Schema of a URL says what it looks like."""
    assert "string" == StoreUrl.option_schema()["type"]


REDIS = StoreUrl.parse("redis://host")
SENTINEL = StoreUrl.parse("redis+sentinel://host/broker")
WRONG: dict[str, tuple[str, dict[str, object]]] = {
    "two passwords": ("password", {"url": Secret("redis://:a@host"), "password": Secret("b")}),
    "a password for a file": ("password", {"password": Secret("b")}),
    "Sentinel's password without Sentinels": ("sentinel_password", {"url": REDIS, "sentinel_password": Secret("b")}),
    "Sentinel's user without Sentinels": ("sentinel_password", {"sentinel_username": "b"}),
    "TLS options without TLS": ("tls", {"url": REDIS, "tls": StoreTlsOptions(ca_file="/ca.pem")}),
    "no time": ("timeout", {"timeout_seconds": 0.0}),
    "no end": ("timeout", {"timeout_seconds": 61.0}),
    "not a number": ("timeout", {"timeout_seconds": float("nan")}),
    "replicas of a file": ("wait_replicas", {"wait_replicas": 1}),
    "too many replicas": ("wait_replicas", {"url": REDIS, "wait_replicas": 17}),
    "fewer than no replicas": ("wait_replicas", {"url": REDIS, "wait_replicas": -1}),
    "braces, which would move keys together": ("prefix", {"prefix": "{x}"}),
    "a long prefix": ("prefix", {"prefix": "x" * 65}),
    "no connections": ("max_connections", {"max_connections": 0}),
}


@pytest.mark.parametrize("name", WRONG)
def test_options_that_make_no_sense_are_refused(name: str) -> None:
    """Each is refused under the key that has to be mended."""
    key, arguments = WRONG[name]
    with pytest.raises(OptionError) as caught:
        StoreOptions(**arguments)  # type: ignore[arg-type]
    assert key == caught.value.key


def test_a_client_key_needs_its_certificate() -> None:
    """A private key alone is refused."""
    with pytest.raises(OptionError, match="certificate"):
        StoreTlsOptions(key_file="/key.pem")


def test_good_options_are_taken() -> None:
    """The defaults are a file, and each topology takes what is its own."""
    assert StoreKind.SQLITE == StoreOptions().location.kind
    assert StoreOptions().is_shared
    assert not StoreOptions(url=StoreUrl.parse("memory:")).is_shared
    assert StoreOptions(url=SENTINEL, sentinel_password=Secret("x"), password=Secret("y"), wait_replicas=2).is_shared
