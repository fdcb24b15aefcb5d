"""The oracle itself: what it answers, what it writes down, and that its faults strike where they are placed."""

import asyncio
import base64
import hashlib
import json
import time
from typing import Any
from urllib.parse import parse_qs, quote_plus, urlsplit

import aiohttp
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from broker.core.provider import Rotation
from broker.demo.families import Answer
from broker.demo.issuer import TokenFormat
from tests.support.authorization_server import (
    ACCESS_TOKEN_TYPE,
    CALLBACKS,
    CLIENT_ID,
    CLIENT_SECRET,
    TOKEN_EXCHANGE,
    LedgerServer,
    token_set,
)
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.waiting import until

VERIFIER = "v" * 64
BASIC = "Basic " + base64.b64encode(f"{quote_plus(CLIENT_ID)}:{quote_plus(CLIENT_SECRET)}".encode()).decode()


class StillClock:
    """A clock that a test turns."""

    def __init__(self) -> None:
        self.time = 1_700_000_000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


async def call(
    url: str, form: dict[str, str], *, authorization: str | None = BASIC, timeout_seconds: float = 5.0
) -> tuple[int, dict[str, Any]]:
    """One token request on a connection of its own. Returns the status and the members of the answer."""
    headers = {} if authorization is None else {"Authorization": authorization}
    async with (
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(timeout_seconds)) as http,
        http.post(f"{url}/token", data=form, headers=headers) as response,
    ):
        return response.status, json.loads(await response.text())


async def refresh(url: str, token: object, **more: str) -> tuple[int, dict[str, Any]]:
    return await call(url, {"grant_type": "refresh_token", "refresh_token": str(token), **more})


async def authorize(http: aiohttp.ClientSession, url: str, **parameters: str) -> dict[str, list[str]]:
    """Return the parameters of the authorization response."""
    challenge = base64.urlsafe_b64encode(hashlib.sha256(VERIFIER.encode()).digest()).rstrip(b"=").decode()
    query = {
        "response_type": "code",
        "client_id": CLIENT_ID,
        "redirect_uri": CALLBACKS[0].replace("127.0.0.1", "127.0.0.1:4711"),
        "scope": "openid",
        "state": "s",
        "nonce": "n",
        "code_challenge": challenge,
        "code_challenge_method": "S256",
        **parameters,
    }
    async with http.get(f"{url}/authorize", params=query, allow_redirects=False) as response:
        assert 303 == response.status, await response.text()
        return parse_qs(urlsplit(response.headers["Location"]).query)


async def test_a_rotated_token_that_comes_again_ends_its_family() -> None:
    """Reuse is answered invalid_grant, and so is the newest token after it (RFC 9700 section 4.14.2)."""
    async with LedgerServer() as provider:
        first = provider.issue()["refresh_token"]
        _, second = await refresh(provider.url, first)
        assert (400, "invalid_grant") == _error(await refresh(provider.url, first))
        assert (400, "invalid_grant") == _error(await refresh(provider.url, second["refresh_token"]))

    assert {first: 2} == provider.ledger.presented_twice()
    assert ["alice"] == [family.subject for family in provider.ledger.families_revoked()]
    assert [Answer.ROTATED, Answer.REUSED, Answer.REVOKED] == [entry.answer for entry in provider.ledger.presented]


async def test_grace_takes_a_spent_token_again_until_the_grace_is_over() -> None:
    """Within the grace, which counts from the first use, a spent token brings tokens; after it, it is reuse."""
    clock = StillClock()
    async with LedgerServer(clock=clock, rotation=Rotation.GRACE, rotation_grace_seconds=30) as provider:
        first = provider.issue()["refresh_token"]
        assert 200 == (await refresh(provider.url, first))[0]
        clock.time += 29
        assert 200 == (await refresh(provider.url, first))[0]
        clock.time += 2
        assert 400 == (await refresh(provider.url, first))[0]


async def test_without_rotation_the_token_stays_and_comes_back() -> None:
    """With rotation none, one refresh token serves for ever."""
    async with LedgerServer(rotation=Rotation.NONE) as provider:
        first = provider.issue()["refresh_token"]
        for _ in range(3):
            assert first == (await refresh(provider.url, first))[1]["refresh_token"]
    assert [] == provider.ledger.families_revoked(None)


async def test_omitted_members_are_absent_and_the_old_token_is_still_good() -> None:
    """An answer without refresh_token did not rotate (RFC 6749 section 6)."""
    async with LedgerServer(omit_at_refresh=frozenset({"refresh_token", "expires_in"})) as provider:
        first = provider.issue()["refresh_token"]
        for _ in range(2):
            status, answer = await refresh(provider.url, first)
            assert (200, {"access_token", "token_type", "scope", "id_token"}) == (status, set(answer))


@pytest.mark.parametrize(
    ("form", "authorization", "expected"),
    [
        ({"grant_type": "magic"}, BASIC, (400, "unsupported_grant_type")),
        ({"grant_type": "refresh_token"}, BASIC, (400, "invalid_request")),
        ({"grant_type": "refresh_token", "refresh_token": "rt_0"}, BASIC, (400, "invalid_grant")),
        ({"grant_type": "authorization_code", "code": "0"}, BASIC, (400, "invalid_grant")),
        ({"grant_type": "refresh_token", "refresh_token": "rt_0"}, None, (401, "invalid_client")),
        ({"grant_type": "refresh_token"}, "Basic " + base64.b64encode(b"broker:x").decode(), (401, "invalid_client")),
        ({"grant_type": "refresh_token"}, "Basic %%%", (401, "invalid_client")),
        ({"grant_type": "refresh_token", "client_secret": "x"}, BASIC, (400, "invalid_request")),
        ({"grant_type": TOKEN_EXCHANGE, "subject_token": "x"}, BASIC, (400, "invalid_request")),
    ],
)
async def test_what_a_real_server_refuses_is_refused(
    form: dict[str, str], authorization: str | None, expected: tuple[int, str]
) -> None:
    """Each wrong request gets the error of RFC 6749 section 5.2."""
    async with LedgerServer() as provider:
        assert expected == _error(await call(provider.url, form, authorization=authorization))


async def test_more_scope_than_granted_is_refused_and_costs_nothing() -> None:
    """invalid_scope leaves the refresh token unspent (RFC 6749 section 6)."""
    async with LedgerServer() as provider:
        token = provider.issue(scope="openid a b")["refresh_token"]
        assert (400, "invalid_scope") == _error(await refresh(provider.url, token, scope="a admin"))
        assert "a" == (await refresh(provider.url, token, scope="a"))[1]["scope"]


async def test_the_token_is_for_the_resource_that_was_asked_for() -> None:
    """``resource`` (RFC 8707) and token exchange (RFC 8693) decide the audience of the access token."""
    async with LedgerServer() as provider:
        tokens = provider.issue()
        _, narrowed = await refresh(provider.url, tokens["refresh_token"], resource="https://orders.example")
        _, exchanged = await call(
            provider.url,
            {
                "grant_type": TOKEN_EXCHANGE,
                "subject_token": narrowed["access_token"],
                "subject_token_type": ACCESS_TOKEN_TYPE,
                "audience": "https://stock.example",
            },
        )
        records = [provider.access_token(str(each["access_token"])) for each in (tokens, narrowed, exchanged)]
        assert [("api",), ("https://orders.example",), ("https://stock.example",)] == [
            record.audience for record in records if record
        ]
        assert ACCESS_TOKEN_TYPE == exchanged["issued_token_type"]
        assert "refresh_token" not in exchanged


async def test_a_login_by_code_brings_a_signed_id_token() -> None:
    """Authorization code with PKCE; the id token carries nonce, sid and auth_time and its key is in the JWKS."""
    async with LedgerServer() as provider, aiohttp.ClientSession() as http:
        answer = await authorize(http, provider.url, login_hint="bob")
        assert (["s"], [provider.url]) == (answer["state"], answer["iss"])
        form = {
            "grant_type": "authorization_code",
            "code": answer["code"][0],
            "redirect_uri": CALLBACKS[0].replace("127.0.0.1", "127.0.0.1:4711"),
            "code_verifier": VERIFIER,
        }
        status, tokens = await call(provider.url, form)
        keys = KeySet.import_key_set(await (await http.get(f"{provider.url}/jwks")).json())
        claims = jwt.decode(tokens["id_token"], keys, algorithms=["ES256"]).claims
        assert (200, provider.url, CLIENT_ID, "bob", "n") == (
            status,
            *(claims[name] for name in ("iss", "aud", "sub", "nonce")),
        )
        assert {"sid", "auth_time"} <= set(claims)

        assert (400, "invalid_grant") == _error(await call(provider.url, form))
        assert ["code reuse"] == [family.revoked for family in provider.ledger.families_revoked(None)]


@pytest.mark.parametrize("wrong", ["code_verifier", "redirect_uri"])
async def test_a_code_is_good_only_with_its_verifier_and_redirect_uri(wrong: str) -> None:
    """A stolen code brings nothing (RFC 7636 section 4.6)."""
    async with LedgerServer() as provider, aiohttp.ClientSession() as http:
        answer = await authorize(http, provider.url)
        form = {
            "grant_type": "authorization_code",
            "code": answer["code"][0],
            "redirect_uri": CALLBACKS[0].replace("127.0.0.1", "127.0.0.1:4711"),
            "code_verifier": VERIFIER,
        }
        assert (400, "invalid_grant") == _error(await call(provider.url, {**form, wrong: "x"}))


@pytest.mark.parametrize(
    ("when", "processed", "second"), [("before", False, 200), ("after", True, 400)], ids=["before", "after"]
)
@pytest.mark.parametrize("how", ["close", "reset", "garbage", "truncated", "status"])
async def test_a_fault_strikes_before_or_after_the_server_acted(
    how: str, when: str, processed: bool, second: int
) -> None:
    """A fault before leaves the refresh token good; one after has spent it, and the ledger knows the answer as lost."""
    async with LedgerServer() as provider:
        token = provider.issue()["refresh_token"]
        provider.fail_next(how, when=when, status=502, body="<html>")
        with pytest.raises((aiohttp.ClientError, json.JSONDecodeError)):
            await refresh(provider.url, token)
        assert second == (await refresh(provider.url, token))[0]

    struck, served = provider.ledger.token_calls("refresh_token")
    assert (processed, False, f"{how} {when}") == (struck.processed, struck.delivered, struck.fault)
    assert (True, True, None) == (served.processed, served.delivered, served.fault)
    assert ([struck] if processed else []) == provider.ledger.lost_answers()
    assert {token: 2} == provider.ledger.sent_twice()


async def test_a_fault_waits_for_its_grant_type_and_its_turn() -> None:
    """``skip``, ``count``, ``grant_type`` and ``subject`` place a fault exactly."""
    async with LedgerServer() as provider:
        alice, bob = (provider.issue(subject)["refresh_token"] for subject in ("alice", "bob"))
        provider.fail_next(status=503, skip=1, count=2, subject="alice", headers={"Retry-After": "7"}, body="{}")
        statuses = []
        for _ in range(4):
            assert 200 == (await call(provider.url, {"grant_type": "client_credentials"}))[0]
            status, answer = await refresh(provider.url, bob)
            assert 200 == status
            bob = answer["refresh_token"]
            status, answer = await refresh(provider.url, alice)
            alice = answer.get("refresh_token", alice)
            statuses.append(status)
    assert [200, 503, 503, 200] == statuses


async def test_a_hanging_call_ends_when_it_is_released() -> None:
    """``hang`` answers nothing; ``release`` closes the connection."""
    async with LedgerServer() as provider:
        provider.fail_next("hang", when="after")
        hanging = asyncio.get_running_loop().create_task(refresh(provider.url, provider.issue()["refresh_token"]))
        while not (provider.ledger.calls and provider.ledger.calls[0].fault):
            await asyncio.sleep(0.005)
        assert not hanging.done()
        provider.faults.release()
        with pytest.raises(aiohttp.ClientError):
            await hanging


async def test_a_server_that_stopped_comes_back_with_what_it_knew() -> None:
    """stop() refuses connections; restart() listens on the same port."""
    async with LedgerServer() as provider:
        url, token = provider.url, provider.issue()["refresh_token"]
        await provider.stop()
        with pytest.raises(aiohttp.ClientConnectionError):
            await refresh(url, token)
        await provider.restart()
        assert (url, 200) == (provider.url, (await refresh(url, token))[0])


async def test_rotation_may_kill_the_access_token() -> None:
    """As django-oauth-toolkit does: after a refresh, the former access token is dead, the new one lives."""
    async with LedgerServer(kills_access_tokens_at_rotation=True) as provider:
        tokens = provider.issue()
        _, refreshed = await refresh(provider.url, tokens["refresh_token"])
        assert provider.access_token(str(tokens["access_token"])) is None
        assert provider.access_token(refreshed["access_token"]) is not None


async def test_the_ledger_knows_which_grants_are_lost() -> None:
    """A live family whose newest refresh token the client doesn't hold is lost; an ended one isn't."""
    async with LedgerServer() as provider:
        kept, lost, ended = (str(provider.issue(name)["refresh_token"]) for name in ("kept", "lost", "ended"))
        await refresh(provider.url, lost)
        provider.revoke_subject("ended")
        assert ["lost"] == [family.subject for family in provider.ledger.lost_tokens([kept, lost, ended])]


async def test_calls_with_one_refresh_token_at_the_same_time_are_seen() -> None:
    """Two calls of one family that overlap in time are reported."""
    async with LedgerServer(latency_seconds=(0.05, 0.1), seed=1, rotation=Rotation.NONE) as provider:
        one, two = provider.issue("one")["refresh_token"], provider.issue("two")["refresh_token"]
        await asyncio.gather(refresh(provider.url, one), refresh(provider.url, two))
        assert [] == provider.ledger.overlapping()
        await asyncio.gather(refresh(provider.url, one), refresh(provider.url, one))
        assert 1 == len(provider.ledger.overlapping())


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_call_whose_caller_gave_up_overlaps_with_no_later_one(when: str) -> None:
    """A caller that has closed its connection is no longer asking, however long the server hangs."""
    async with LedgerServer(rotation=Rotation.NONE) as provider:
        token = provider.issue()["refresh_token"]
        provider.fail_next("hang", when=when)
        form = {"grant_type": "refresh_token", "refresh_token": str(token)}
        given_up = asyncio.create_task(call(provider.url, form))
        await until(lambda: 0 == len(provider.faults), what="the call at the server")
        given_up.cancel()
        await asyncio.wait([given_up])
        assert 200 == (await refresh(provider.url, token))[0]
        assert [] == provider.ledger.overlapping()


async def test_a_call_that_waits_is_answered_when_it_is_let_go_on() -> None:
    """Nothing is done for it before, and its caller gets what any other call gets."""
    async with LedgerServer() as provider:
        token = provider.issue()["refresh_token"]
        provider.fail_next("wait", grant_type="refresh_token")
        waiting = asyncio.create_task(refresh(provider.url, token))
        await until(lambda: provider.ledger.count("refresh_token") == 1, what="the call at the server")
        assert [] == provider.ledger.presented
        provider.faults.release()

        assert 200 == (await waiting)[0]


async def test_latencies_come_from_the_seed() -> None:
    """Equal seeds make equal latencies, so that a storm can be run again."""
    servers = [LedgerServer(latency_seconds=(0.0, 3.0), seed=7) for _ in range(2)]
    assert [servers[0]._latency() for _ in range(5)] == [servers[1]._latency() for _ in range(5)]


async def test_jwt_access_tokens_are_signed_and_name_their_generation() -> None:
    """With ``jwt``, an API can check the token by itself (RFC 9068)."""
    async with LedgerServer(token_format=TokenFormat.JWT) as provider:
        keys = KeySet.import_key_set(provider.issuer.signing_key.jwks())  # type: ignore[arg-type]  # any mapping
        _, tokens = await refresh(provider.url, provider.issue()["refresh_token"])
        decoded = jwt.decode(tokens["access_token"], keys, algorithms=["ES256"])
        assert ("at+jwt", 2, ["api"]) == (decoded.header["typ"], decoded.claims["generation"], decoded.claims["aud"])


async def test_a_thousand_refreshes_at_once_are_served() -> None:
    """The server is not what a storm waits for: 1000 concurrent refreshes, each once, within ten seconds."""
    async with LedgerServer() as provider, aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http:
        tokens = [str(provider.issue(f"user-{number}")["refresh_token"]) for number in range(1000)]

        async def once(token: str) -> int:
            form = {"grant_type": "refresh_token", "refresh_token": token}
            async with http.post(f"{provider.url}/token", data=form, headers={"Authorization": BASIC}) as response:
                await response.read()
                return response.status

        started_at = time.monotonic()
        assert {200} == set(await asyncio.gather(*map(once, tokens)))
        assert 10 > time.monotonic() - started_at
    assert (1000, {}) == (provider.ledger.count("refresh_token"), provider.ledger.presented_twice())


async def test_a_server_of_its_own_process_is_driven_from_outside() -> None:
    """Grants, faults, behaviour and the ledger cross the process border; the process ends with its parent's pipe."""
    async with RemoteLedgerServer(access_token_seconds=77) as provider:
        tokens = await provider.issue("carol")
        assert 77 == tokens["expires_in"]
        await provider.fail_next("close", when="after")
        with pytest.raises(aiohttp.ClientError):
            await refresh(provider.url, tokens["refresh_token"])
        await provider.configure(rotation=Rotation.NONE, omit_at_refresh=frozenset({"id_token"}))
        _, answer = await refresh(provider.url, tokens["refresh_token"])
        assert "id_token" not in answer
        ledger = await provider.ledger()
        assert 2 == ledger.count("refresh_token", subject="carol")
        assert ["close after"] == [call.fault for call in ledger.lost_answers()]
        process = provider._process
    assert process is not None
    assert 0 == process.returncode


async def test_a_response_becomes_the_engines_token_set() -> None:
    """token_set() turns an issued response into the engine's type."""
    async with LedgerServer(access_token_seconds=60) as provider:
        tokens = token_set(provider.issue(), requested_at=1000.0)
    assert (1060.0, "openid offline_access") == (tokens.expires_at, tokens.scope)
    assert tokens.refresh_token is not None


def _error(answer: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    return answer[0], answer[1]["error"]
