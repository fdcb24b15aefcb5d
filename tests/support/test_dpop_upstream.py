"""The upstream double refuses what RFC 9449 section 4.3 says it must: each proof is wrong in one thing."""

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from joserfc import jws
from joserfc.jwk import ECKey

from tests.support.clock import ManualClock
from tests.support.dpop_upstream import DpopUpstream, thumbprint

NOW = 1_800_000_000
KEY, OTHER = ECKey.generate_key("P-256"), ECKey.generate_key("P-256")


@pytest.fixture
async def upstream() -> AsyncIterator[DpopUpstream]:
    async with DpopUpstream(ManualClock(NOW)) as upstream:
        upstream.keys["at"] = thumbprint(KEY.as_dict(private=False))
        yield upstream


def proof(upstream: DpopUpstream, *, key: ECKey = KEY, header: dict[str, Any] | None = None, **claims: Any) -> str:
    """A good proof for ``GET /x``, but for what is given; None leaves a claim out."""
    ath = base64.urlsafe_b64encode(hashlib.sha256(b"at").digest()).rstrip(b"=").decode()
    good = {"jti": "j-1", "htm": "GET", "htu": f"{upstream.url}/x", "iat": NOW, "ath": ath, **claims}
    content = {name: value for name, value in good.items() if value is not None}
    head = {"alg": "ES256", "typ": "dpop+jwt", "jwk": key.as_dict(private=False), **(header or {})}
    registry = jws.JWSRegistry(algorithms=["ES256"], strict_check_header=False)
    return jws.serialize_compact(head, json.dumps(content).encode(), key, registry=registry)


async def get(upstream: DpopUpstream, *proofs: str, authorization: str = "DPoP at") -> tuple[int, str]:
    headers = [("Authorization", authorization), *(("DPoP", each) for each in proofs)]
    async with aiohttp.ClientSession() as http, http.get(f"{upstream.url}/x?q", headers=headers) as response:
        return response.status, response.headers.get("WWW-Authenticate", "")


async def test_a_good_proof_is_taken_once(upstream: DpopUpstream) -> None:
    """And its ``jti`` not again."""
    good = proof(upstream)

    assert 200 == (await get(upstream, good))[0]
    status, challenge = await get(upstream, good)
    assert (401, True) == (status, 'error="invalid_dpop_proof"' in challenge)


@pytest.mark.parametrize(
    ("wrong", "error"),
    [
        pytest.param({"htm": "POST"}, "invalid_dpop_proof", id="method"),
        pytest.param({"htu": "http://127.0.0.1:1/x"}, "invalid_dpop_proof", id="URL"),
        pytest.param({"iat": NOW - 61}, "invalid_dpop_proof", id="too old"),
        pytest.param({"iat": NOW + 61}, "invalid_dpop_proof", id="of the future"),
        pytest.param({"ath": "another"}, "invalid_dpop_proof", id="another token's"),
        pytest.param({"ath": None}, "invalid_dpop_proof", id="no token's"),
        pytest.param({"jti": None}, "invalid_dpop_proof", id="without id"),
        pytest.param({"key": OTHER}, "invalid_token", id="another key"),
        pytest.param({"header": {"typ": "JWT"}}, "invalid_dpop_proof", id="type"),
        pytest.param({"header": {"jwk": OTHER.as_dict(private=False)}}, "invalid_dpop_proof", id="signature"),
        pytest.param({"header": {"jwk": KEY.as_dict(private=True)}}, "invalid_dpop_proof", id="private key"),
    ],
)
async def test_what_is_wrong_in_one_thing_is_refused(upstream: DpopUpstream, wrong: Any, error: str) -> None:
    """Method, URL, time, token, id, key, type, signature, a private key in the header."""
    status, challenge = await get(upstream, proof(upstream, **wrong))

    assert (401, True) == (status, f'error="{error}"' in challenge), upstream.refusals


async def test_a_nonce_is_wanted_where_one_was_given(upstream: DpopUpstream) -> None:
    """Another one or none is refused by ``use_dpop_nonce``."""
    upstream.nonce = "n-1"

    answers = [await get(upstream, proof(upstream, nonce=nonce)) for nonce in (None, "n-0", "n-1")]

    assert [401, 401, 200] == [status for status, _ in answers]
    assert 'error="use_dpop_nonce"' in answers[0][1]


async def test_a_bound_token_is_no_bearers(upstream: DpopUpstream) -> None:
    """RFC 9449 section 7.2: neither by the scheme Bearer, nor without a proof, nor with two."""
    good = proof(upstream)

    answers = [
        await get(upstream, good, authorization="Bearer at"),
        await get(upstream),
        await get(upstream, good, good),
        await get(upstream, good, authorization="DPoP another"),
    ]

    assert [401] * 4 == [status for status, _ in answers]
