"""What gateways say of the requests that they hold."""

from ipaddress import ip_network

import pytest

from broker.core.forward_auth import (
    DIALECTS,
    ForwardAuthOptions,
    Gateway,
    OriginalRequest,
    original_request,
    shows_secret,
)
from broker.core.options import OptionError
from broker.core.secret import Secret
from broker.errors import BadRequest

SECRET = Secret("s" * 40)
OTHER = Secret("o" * 40)

NGINX = ["Host: app.example.com", "X-Original-Method: POST", "X-Original-URI: /api/a?b=c"]
TRAEFIK = [
    "Host: broker.internal:8080",
    "X-Forwarded-Method: POST",
    "X-Forwarded-Uri: /api/a?b=c",
    "X-Forwarded-Host: app.example.com",
    "X-Forwarded-Proto: https",
]
ENVOY = ["Host: app.example.com"]


def fields(*lines: str) -> list[tuple[bytes, bytes]]:
    pairs = (line.partition(": ") for line in lines)
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, _, value in pairs]


def read(
    gateway: Gateway, *lines: str, method: str = "GET", below: bytes = b"", own: frozenset[bytes] = frozenset()
) -> OriginalRequest:
    return original_request(
        DIALECTS[gateway], fields(*lines), method=method, below=below, scheme="https", own_names=own
    )


@pytest.mark.parametrize(
    ("gateway", "lines", "method", "below"),
    [
        (Gateway.NGINX, NGINX, "GET", b""),
        (Gateway.HAPROXY, NGINX, "GET", b"?ignored"),
        (Gateway.TRAEFIK, TRAEFIK, "GET", b""),
        (Gateway.CADDY, TRAEFIK, "GET", b"?b=c"),
        (Gateway.ENVOY, ENVOY, "POST", b"/api/a?b=c"),
    ],
)
def test_each_gateway_is_understood(gateway: Gateway, lines: list[str], method: str, below: bytes) -> None:
    """Method, target and host are read where this kind of gateway writes them."""
    original = read(gateway, *lines, "Cookie: session=x", method=method, below=below)

    assert ("POST", b"/api/a?b=c") == (original.method, original.target)
    assert [b"Cookie: session=x", b"Host: app.example.com"] == original.lines


@pytest.mark.parametrize(
    ("gateway", "lines"),
    [(Gateway.NGINX, NGINX), (Gateway.TRAEFIK, TRAEFIK), (Gateway.CADDY, TRAEFIK), (Gateway.ENVOY, ENVOY)],
)
def test_rt_04_what_is_missing_or_said_twice_is_refused(gateway: Gateway, lines: list[str]) -> None:
    """Without any one of its words, or with any of them twice, empty or alike, nothing is judged."""
    needed = [line for line in lines if gateway in {Gateway.NGINX, Gateway.ENVOY} or not line.startswith("Host")]
    for line in needed:
        name = line.partition(": ")[0]
        rest = [each for each in lines if each != line]
        for broken in (rest, [*rest, f"{name}: "], [*lines, line], [*lines, line.upper()]):
            with pytest.raises(BadRequest):
                read(gateway, *broken, method="POST", below=b"/api/a?b=c")


@pytest.mark.parametrize("gateway", [Gateway.NGINX, Gateway.HAPROXY, Gateway.TRAEFIK, Gateway.CADDY, Gateway.ENVOY])
@pytest.mark.parametrize(
    "spoofed",
    [
        "X-Original-Method: GET",
        "X-Forwarded-Method: GET",
        "X-Original-URI: /public",
        "X-Forwarded-Uri: /public",
        "X-Forwarded-Host: other.example.com",
        "X-Original-Host: other.example.com",
        "X-Forwarded-Proto: http",
        "X-Forwarded-Scheme: http",
        "X-Original-Proto: http",
    ],
)
def test_rt_03_a_callers_word_beside_the_gateways_is_refused(gateway: Gateway, spoofed: str) -> None:
    """A field of the same meaning that says something else, in another gateway's words or in the same, is refused."""
    lines = {Gateway.ENVOY: ENVOY, Gateway.NGINX: NGINX, Gateway.HAPROXY: NGINX}.get(gateway, TRAEFIK)
    with pytest.raises(BadRequest):
        read(gateway, *lines, spoofed, method="POST", below=b"/api/a?b=c")


def test_rt_03_words_that_agree_pass() -> None:
    """A proxy in front of the gateway may say the same as the gateway does."""
    also = ["X-Forwarded-Method: POST", "X-Forwarded-Uri: /api/a?b=c", "X-Forwarded-Host: app.example.com"]
    assert b"/api/a?b=c" == read(Gateway.NGINX, *NGINX, *also, "X-Forwarded-Proto: https").target


def test_envoy_must_ask_about_something() -> None:
    """The endpoint itself is no request's target."""
    with pytest.raises(BadRequest):
        read(Gateway.ENVOY, *ENVOY)


@pytest.mark.parametrize(
    "line",
    [
        "X-User: admin",
        "x-user: admin",
        "X_User: admin",
        "X.Remote.User: admin",
        "Remote-User: admin",
        "X-Auth-Request-Email: a@b.c",
        "X-Forwarded-User: admin",
        "X-Forwarded-Access-Token: t",
        "X_Forwarded_For: 1.2.3.4",
        "X_Original_URI: /public",
        "X-Forwarded_Host: evil.test",
        "X-Tenant: 5",
        "X_Tenant: 5",
        "X-HTTP-Method-Override: DELETE",
        "X-Method-Override: DELETE",
        "X-Original-URL: /admin",
        "X-Rewrite-URL: /admin",
        "X_Gateway_Secret: x",
    ],
)
@pytest.mark.parametrize("gateway", [Gateway.NGINX, Gateway.TRAEFIK, Gateway.ENVOY])
def test_hd_02_what_the_gateway_would_hand_on_is_refused(gateway: Gateway, line: str) -> None:
    """Identity fields, overrides and their twins never reach the upstream: the request that has one doesn't."""
    lines = {Gateway.ENVOY: ENVOY, Gateway.NGINX: NGINX}.get(gateway, TRAEFIK)
    with pytest.raises(BadRequest):
        read(gateway, *lines, line, below=b"/api", own=frozenset({b"x-tenant"}))


@pytest.mark.parametrize(
    "line",
    ["Authorization: Bearer x", "Cookie: a=b", "X-Forwarded-For: 1.2.3.4", "X-Real-IP: 1.2.3.4", "X-CSRF: 1"],
)
def test_ordinary_fields_are_judged(line: str) -> None:
    """What the gate reads reaches it as it came."""
    assert line.encode() in read(Gateway.NGINX, *NGINX, line).lines


@pytest.mark.parametrize(
    "line",
    ["Connection: close, X-CSRF", "Content-Length: 5", "Transfer-Encoding: chunked", "Expect: 100-continue", "TE: x"],
)
def test_the_gateways_own_framing_is_not_the_originals(line: str) -> None:
    """Fields of the connection between gateway and broker say nothing of the original request."""
    assert [b"Host: app.example.com"] == read(Gateway.NGINX, *NGINX, line, "X-Gateway-Secret: s").lines


def test_a_handshake_is_told_by_its_key() -> None:
    """A request with a WebSocket's own field is judged as one, since gateways keep Upgrade to themselves."""
    original = read(Gateway.NGINX, *NGINX, "Sec-WebSocket-Key: x")

    assert original.is_websocket
    assert {b"Connection: Upgrade", b"Upgrade: websocket"} < set(original.lines)


def test_traefik_says_ws_of_a_websocket() -> None:
    """Only wss is the scheme of an https page's WebSocket."""
    lines = [line for line in TRAEFIK if "Proto" not in line]
    assert read(Gateway.TRAEFIK, *lines, "X-Forwarded-Proto: wss").method
    with pytest.raises(BadRequest):
        read(Gateway.TRAEFIK, *lines, "X-Forwarded-Proto: ws")


@pytest.mark.parametrize(
    ("shown", "is_gateway"),
    [
        ([SECRET.reveal()], True),
        ([OTHER.reveal()], True),
        ([], False),
        ([""], False),
        (["x" * 40], False),
        ([SECRET.reveal()[:-1]], False),
        ([SECRET.reveal() + "s"], False),
        ([SECRET.reveal().upper()], False),
        ([SECRET.reveal(), SECRET.reveal()], False),
        (["\xe9" * 40], False),
    ],
)
def test_a_gateway_shows_one_secret(shown: list[str], *, is_gateway: bool) -> None:
    """Exactly one field with exactly one of the secrets; during a rotation either of two."""
    lines = [f"x-GATEWAY-secret: {value}" for value in shown]
    assert is_gateway == shows_secret(fields(*lines), (SECRET, OTHER))


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"secrets": ()}, "secrets"),
        ({"secrets": (Secret("short"),)}, "secrets[0]"),
        ({"secrets": (SECRET, Secret("with a space" * 4))}, "secrets[1]"),
        ({"secrets": (SECRET, Secret("s" * 40))}, "secrets"),
        ({"secrets": (SECRET,), "networks": (ip_network("0.0.0.0/0"),)}, "networks[0]"),
    ],
)
def test_ad_03_weak_options_are_refused(options: dict[str, object], key: str) -> None:
    """A guessable secret, or a network that is everybody's, stops the start."""
    with pytest.raises(OptionError) as caught:
        ForwardAuthOptions(gateway=Gateway.NGINX, **options)  # type: ignore[arg-type]
    assert key == caught.value.key
