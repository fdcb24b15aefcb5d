"""Answers that hold the token that was sent."""

import asyncio

import pytest

from broker.core.routing import Route
from tests.support.proxying import ALICE, USER, ProxyUnderTest, request
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Script, Wire

pytestmark = pytest.mark.usefixtures("either_way")

TOKEN = b"alices-token"


def saying(*pieces: bytes, head: bytes = b"") -> Script:
    async def script(got: RawRequest, wire: Wire) -> None:
        size = sum(map(len, pieces))
        await wire.send(b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n" % (head, size))
        for piece in pieces:
            await wire.send(piece)
            await asyncio.sleep(0.01)

    return script


def proxied(upstream: RawUpstream, *, scrub: bool = True) -> ProxyUnderTest:
    return ProxyUnderTest([Route(path="/", upstream=upstream.url, token=USER, scrub=scrub)])


@pytest.mark.parametrize(
    "script",
    [
        saying(b"you sent " + TOKEN),
        saying(b"x", head=b"X-Echo: Bearer " + TOKEN + b"\r\n"),
        saying(b"before ", b"alices", b"-tok", b"en after"),
        saying(b"x" * 100_000, TOKEN),
    ],
    ids=["in the body", "in a field", "across the seams", "at the end"],
)
async def test_tk_05_the_token_reaches_no_browser(script: Script) -> None:
    """Before the head it is 502; after it the answer breaks off. In no case the token arrives whole."""
    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
        received = b""
        try:
            while data := await asyncio.wait_for(caller.reader.read(65536), 5):
                received += data
                if received.startswith(b"HTTP/1.1 502"):
                    break
        except ConnectionError:
            pass

    assert TOKEN not in received
    assert received.startswith(b"HTTP/1.1 502") or b"after" not in received


async def test_a_clean_answer_passes_whole() -> None:
    """Also one that only begins like the token, over many pieces, and on connections that are used again."""
    pieces = (b"alices", b"-toke", b"-alices-", b"x" * 50_000)
    async with RawUpstream(saying(*pieces)) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        for _ in range(2):
            await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
            assert b"".join(pieces) == (await caller.answer()).body
        upstream.script = RawUpstream().script
        await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
        assert OK.endswith((await caller.answer()).body)


async def test_it_is_off_unless_the_route_says_so() -> None:
    """It costs time, and blocks upstreams that echo for a reason."""
    async with RawUpstream(saying(TOKEN)) as upstream, proxied(upstream, scrub=False) as proxy:
        assert TOKEN == (await proxy.send(request("/", "X-CSRF: 1", cookie=ALICE))).body
