"""Answers that hold the token that was sent."""

import asyncio
import contextlib

import pytest

from broker.core.routing import Route
from broker.web.scrub import SHORTEST_HELD
from tests.support.proxying import ALICE, USER, ProxyUnderTest, request, token
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


LONG = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLW9mLXRoZS10b2tlbg"


@pytest.mark.parametrize("cuts", [(-1,), (20,), (5, 9), (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -2, -1), (0, -1)])
async def test_tk_05_nor_does_nearly_all_of_the_token(cuts: tuple[int, ...]) -> None:
    """Wherever its reads part it: the last character of a signature is soon guessed."""
    secret = LONG.encode()
    ends = [cut % len(secret) for cut in cuts]
    pieces = [secret[begin:end] for begin, end in zip([0, *ends], [*ends, len(secret)], strict=True)]
    script = saying(b"you sent ", *filter(None, pieces))
    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        proxy.tokens.known["grant-of-alice"] = [token(LONG)]
        await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
        received = b""
        with contextlib.suppress(ConnectionError):
            while data := await asyncio.wait_for(caller.reader.read(65536), 5):
                received += data
                if received.startswith(b"HTTP/1.1 502"):
                    break

    assert LONG.encode()[:SHORTEST_HELD] not in received


async def test_what_is_held_arrives_in_the_end() -> None:
    """An answer that ends in the middle of what could be the token, in one read or in several."""
    for pieces in (
        (b"ends with ", b"eyJhbGciOiJSUz"),
        (b"ends with eyJhbGciOiJSUz",),
        (b"eyJhbGciOi", b"JSUzI1NiX", b"e"),
    ):
        async with (
            RawUpstream(saying(*pieces)) as upstream,
            proxied(upstream) as proxy,
            await proxy.connect() as caller,
        ):
            proxy.tokens.known["grant-of-alice"] = [token(LONG)]
            for _ in range(2):
                await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
                assert b"".join(pieces) == (await caller.answer()).body


async def test_what_ends_like_the_token_begins_does_not_wait() -> None:
    """A message that ends with an e isn't kept until the next one comes."""
    go_on = asyncio.Event()

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nrebuk\r\n4\r\none \r\n6\r\ndone e\r\n"
        )
        await go_on.wait()
        await wire.send(b"0\r\n\r\n")

    async with RawUpstream(script) as upstream, proxied(upstream) as proxy, await proxy.connect() as caller:
        proxy.tokens.known["grant-of-alice"] = [token(LONG)]
        await caller.send(request("/", "X-CSRF: 1", cookie=ALICE))
        await asyncio.wait_for(caller.reader.readuntil(b"done e"), 5)
        go_on.set()


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
