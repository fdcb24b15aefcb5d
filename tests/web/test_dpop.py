"""Proofs of possession towards upstreams (RFC 9449 section 7), from the caller's bytes to a strict upstream."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from broker.core.outcome import Token
from broker.core.routing import RetryOn401, Route
from broker.core.secret import AccessToken, RefreshToken
from broker.core.upstream_options import UpstreamOptions
from broker.services.dpop import new_dpop_key
from tests.support.clock import ManualClock
from tests.support.dpop_upstream import DpopUpstream, thumbprint
from tests.support.proxying import ALICE, USER, Answer, ProxyUnderTest, request, token
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire

NOW = 1_800_000_000
GRANT = "grant-of-alice"


def bound(text: str, key: RefreshToken, generation: int = 1) -> Token:
    return Token(AccessToken(text), "DPoP", generation, 4e9, "corp", key)


@asynccontextmanager
async def proxied(url: str, *tokens: Token, fast: bool = True, **options: Any) -> AsyncIterator[ProxyUnderTest]:
    route = Route(path="/", upstream=url, token=USER, **options)
    proxy = ProxyUnderTest([route], clock=ManualClock(NOW), fast=fast)
    proxy.tokens.known[GRANT] = list(tokens)
    async with proxy:
        yield proxy


@pytest.fixture
async def upstream() -> AsyncIterator[DpopUpstream]:
    async with DpopUpstream(ManualClock(NOW)) as upstream:
        yield upstream


@pytest.fixture
def alices(upstream: DpopUpstream) -> Token:
    """A token of Alice's that the upstream knows the key of."""
    key = new_dpop_key()
    upstream.keys["alices-token"] = thumbprint(json.loads(key.reveal()))
    return bound("alices-token", key)


async def get(proxy: ProxyUnderTest, target: str = "/", *fields: str, **more: Any) -> Answer:
    return await proxy.send(request(target, "X-CSRF: 1", *fields, cookie=ALICE, **more))


@pytest.mark.parametrize("fast", [True, False])
async def test_a_bound_token_goes_with_a_proof(upstream: DpopUpstream, alices: Token, fast: bool) -> None:
    """Each request has a proof of its own, for its method, its URL without the query, and its token."""
    async with proxied(upstream.url, alices, fast=fast) as proxy:
        assert 200 == (await get(proxy, "/a%20b?x=1")).status
        assert 200 == (await get(proxy, "/a%20b?x=1")).status
        assert 200 == (await get(proxy, "/c", method="POST", body=b"payload")).status

    assert ([], 3) == (upstream.refusals, len(upstream.claims))
    assert [("GET", "/a%20b"), ("GET", "/a%20b"), ("POST", "/c")] == [
        (claims["htm"], claims["htu"].removeprefix(upstream.url)) for claims in upstream.claims
    ]


async def test_a_callers_own_proof_goes_nowhere(upstream: DpopUpstream, alices: Token) -> None:
    """A DPoP field of the caller's is dropped in any spelling, with a bound token and with a bearer token."""
    async with proxied(upstream.url, alices) as proxy:
        assert 200 == (await get(proxy, "/", "dpop: stolen", "DPoP: another")).status
    async with RawUpstream() as plain, proxied(plain.url, token("bearer")) as proxy:
        assert 200 == (await get(proxy, "/", "dpop: stolen", "DPoP: another")).status

    assert 1 == len(upstream.requests[0].getall("DPoP"))  # type: ignore[attr-defined]
    assert ([], [b"Bearer bearer"]) == (plain.requests[0].fields(b"dpop"), plain.requests[0].fields(b"authorization"))


async def test_a_nonce_is_learned_from_a_refusal(upstream: DpopUpstream, alices: Token) -> None:
    """The request goes up once more with the nonce, no token is rejected for it, and the caller sees neither."""
    upstream.nonce = "n-1"
    async with proxied(upstream.url, alices) as proxy:
        answer = await get(proxy, "/", method="POST", body=b"payload")
        again = await get(proxy, "/")

    assert (200, 200) == (answer.status, again.status)
    assert 7 == json.loads(answer.body)["bytes"]
    assert ["use_dpop_nonce: nonce None"] == upstream.refusals
    assert [] == proxy.tokens.asked
    assert b"dpop-nonce" not in answer.head.lower()


async def test_a_nonce_is_learned_from_any_answer(upstream: DpopUpstream, alices: Token) -> None:
    """RFC 9449 section 8.2: an answer that brings a new nonce spares the next request a refusal."""
    upstream.nonce, upstream.next_nonce = "n-1", None
    async with proxied(upstream.url, alices) as proxy:
        assert 200 == (await get(proxy)).status
        upstream.next_nonce = "n-2"
        changed = await get(proxy)
        assert 200 == (await get(proxy)).status

    assert (1, b"") == (len(upstream.refusals), b"".join(changed.fields(b"dpop-nonce")))
    assert ["n-1", "n-1", "n-2"] == [claims["nonce"] for claims in upstream.claims]


async def test_many_that_lack_the_nonce_all_get_through(upstream: DpopUpstream, alices: Token) -> None:
    """Parallel first requests are all refused for want of a nonce; each is sent again, although one learned it first."""
    upstream.nonce = "n-1"
    async with proxied(upstream.url, alices) as proxy:
        answers = await asyncio.gather(*(get(proxy, f"/{number}") for number in range(12)))

    assert {200} == {answer.status for answer in answers}
    assert [] == proxy.tokens.asked


async def test_a_nonce_that_never_pleases_is_tried_once(upstream: DpopUpstream, alices: Token) -> None:
    """An upstream that refuses every nonce is asked twice, and its 401 passes; the token isn't blamed."""

    async def script(got: RawRequest, wire: Wire) -> None:
        await wire.send(
            b'HTTP/1.1 401 No\r\nWWW-Authenticate: DPoP error="use_dpop_nonce"\r\n'
            b"DPoP-Nonce: n-%d\r\nContent-Length: 2\r\n\r\nno" % len(raw.requests)
        )

    async with RawUpstream(script) as raw, proxied(raw.url, alices) as proxy:
        answer = await get(proxy)

    assert (401, 2, []) == (answer.status, len(raw.requests), proxy.tokens.asked)
    assert [] == answer.fields(b"dpop-nonce")


@pytest.mark.parametrize("padding", [0, 100_000])
async def test_a_refused_proof_is_no_refused_token(upstream: DpopUpstream, alices: Token, padding: int) -> None:
    """A clock that is wrong makes proofs useless; no refresh mends that, however long the refusal is."""
    upstream.clock = ManualClock(NOW + 3600)
    upstream.refusal_padding = padding
    async with proxied(upstream.url, alices) as proxy:
        answer = await get(proxy)
        await asyncio.sleep(0)

    assert (401, [f"invalid_dpop_proof: iat {NOW}"]) == (answer.status, upstream.refusals)
    assert [] == proxy.tokens.asked


async def test_a_rejected_token_is_still_replaced(upstream: DpopUpstream, alices: Token) -> None:
    """A 401 that is about the token asks for a newer one, with the same key, and brings the nonce along."""
    assert alices.dpop_key is not None
    upstream.keys["newer"] = upstream.keys.pop("alices-token")
    upstream.nonce = "n-1"
    async with proxied(upstream.url, alices, bound("newer", alices.dpop_key, 2)) as proxy:
        answer = await get(proxy)

    assert (200, [(GRANT, "", 1)]) == (answer.status, proxy.tokens.asked)
    assert ["invalid_token"] == [refusal.partition(":")[0] for refusal in upstream.refusals]


async def test_a_request_that_may_not_be_repeated_isnt(upstream: DpopUpstream, alices: Token) -> None:
    """``retry_on_401: never`` holds for nonces too: the 401 passes, and the next request has the nonce."""
    upstream.nonce = "n-1"
    async with proxied(upstream.url, alices, retry_on_401=RetryOn401.NEVER) as proxy:
        assert 401 == (await get(proxy)).status
        assert 200 == (await get(proxy)).status

    assert [] == proxy.tokens.asked


async def test_a_websocket_is_opened_with_a_proof(upstream: DpopUpstream, alices: Token) -> None:
    """The handshake carries a proof for GET and the http URL, and is sent again with the nonce that it lacked."""
    upstream.nonce = "n-1"
    async with proxied(upstream.url, alices) as proxy, await proxy.connect() as caller:
        await caller.send(
            request(
                "/socket",
                "Connection: Upgrade",
                "Upgrade: websocket",
                "Sec-WebSocket-Version: 13",
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
                "Origin: https://app.example.com",
                cookie=ALICE,
            )
        )
        assert 101 == (await caller.answer()).status

    assert [("GET", f"{upstream.url}/socket", "n-1")] == [
        (claims["htm"], claims["htu"], claims["nonce"]) for claims in upstream.claims
    ]


async def test_the_proof_names_the_url_that_the_upstream_goes_by(upstream: DpopUpstream, alices: Token) -> None:
    """``external_url`` is put before the path as it is forwarded."""
    upstream.base = "https://api.example.com/v2"
    async with proxied(upstream.url, alices, external_url="https://api.example.com/v2") as proxy:
        assert 200 == (await get(proxy, "/orders?x")).status

    assert "https://api.example.com/v2/orders" == upstream.claims[0]["htu"]


async def test_the_proof_names_the_host_that_is_sent(upstream: DpopUpstream, alices: Token) -> None:
    """With ``preserve_host`` the upstream sees the caller's host, and so does the proof."""
    upstream.base = "http://app.example.com"
    options = {"urls": (upstream.url,), "preserve_host": True}

    async with proxied(UpstreamOptions(**options), alices) as proxy:  # type: ignore[arg-type]
        assert 200 == (await get(proxy, "/x")).status


async def test_a_repeated_request_has_a_proof_of_its_own(alices: Token) -> None:
    """A connection that dies before it answers: what goes up on the next one isn't the same proof again."""

    async def script(got: RawRequest, wire: Wire) -> None:
        if len(raw.requests) == 2:
            wire.reset()
        else:
            await wire.send(OK)

    async with RawUpstream(script) as raw, proxied(raw.url, alices) as proxy:
        assert 200 == (await get(proxy)).status
        assert 200 == (await get(proxy)).status

    proofs = [each.fields(b"dpop")[0] for each in raw.requests]
    assert (3, 3) == (len(proofs), len(set(proofs)))
