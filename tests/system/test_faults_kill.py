"""FT-11: the broker is killed at every moment of a login, a refresh and a logout at which one of its tasks waits."""

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from yarl import URL

from tests.support.broker_process import BrokerProcess, navigation, provider_options
from tests.support.checker import Call, Outage, now, violations
from tests.support.kill_points import Countdown
from tests.support.population import Population, User
from tests.support.redis_server import RedisServer
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Upstream
from tests.support.waiting import until_async

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]

MOST_MOMENTS = 400
SETTLE_SECONDS = 25.0
AFTERMATH_SECONDS = 0.02
BATCH = 40
REVOCATION_SECONDS = 20.0
"""Within this, what a dead process left to be revoked is found and revoked by the one that follows."""
ADMIN = {"Authorization": "Bearer " + "a" * 43}


class Victim:
    """A broker that dies when it is told to, and is there again a moment later."""

    def __init__(self, broker: BrokerProcess, countdown: Countdown) -> None:
        self.broker = broker
        self.countdown = countdown
        self.began = now()

    async def rise(self, deaths: int) -> None:
        """Return once the broker that follows the *deaths*-th takes requests."""

        async def is_back() -> bool:
            return self.countdown.deaths == deaths and await self.broker.is_alive()

        await until_async(is_back, what="the next broker")

    def outage(self) -> Outage:
        return Outage(began=self.began, ended=now(), breaks=True)


@asynccontextmanager
async def victim(directory: Path, **settings: Any) -> AsyncIterator[Victim]:
    path = directory / "countdown"
    countdown = Countdown(path)
    command = (sys.executable, "-m", "tests.support.kill_points", path)
    broker = BrokerProcess(directory, command=command, **settings)
    broker.settings["admin"]["token"] = {"value": ADMIN["Authorization"].removeprefix("Bearer ")}
    async with broker:
        yield Victim(broker, countdown)


def settings(
    kind: str, directory: Path, redis: RedisServer, provider: RemoteLedgerServer, upstream: Upstream, rotation: str
) -> dict[str, Any]:
    stores = {"redis": f"redis://127.0.0.1:{redis.port}/0", "sqlite": f"sqlite://{directory}/broker.db"}
    corp = provider_options(
        provider.url, rotation=rotation, token_endpoint_timeout="1s", allowed_parameters=["login_hint"]
    )
    return {
        "store": {"url": stores[kind]},
        "providers": {"corp": corp},
        "routes": [{"path": "/api", "upstream": upstream.url, "token": "user"}],
    }


async def persistently(user: User, path: str = "/api/after") -> Call:
    """Call as a frontend does that obeys ``Retry-After``, until there is an answer."""
    deadline = now() + SETTLE_SECONDS
    while True:
        call = await user.call(path)
        if call.status == 200 or call.is_sent_away or now() > deadline:
            return call
        await asyncio.sleep(0.2)


@pytest.mark.parametrize(("kind", "rotation"), [("sqlite", "strict"), ("redis", "grace"), ("redis", "strict")])
async def test_ft_11_a_broker_killed_at_any_moment_of_a_refresh_loses_no_grant(
    kind: str,
    rotation: str,
    tmp_path: Path,
    provider: RemoteLedgerServer,
    upstream: Upstream,
    redis_server: RedisServer,
) -> None:
    """
    With ``grace`` nobody logs in again; with ``strict`` only those whose answer had left the server and was never read.

    Each moment has a user of its own. All settle only after the last death, so each new broker also finds the open
    intents of those before.
    """
    await provider.configure(rotation=rotation, rotation_grace_seconds=600)
    installation = settings(kind, tmp_path, redis_server, provider, upstream, rotation)
    if rotation == "grace":
        installation["providers"]["corp"]["rotation_grace"] = "10m"
    on_the_wire: set[str] = set()
    async with victim(tmp_path, **installation) as broker, Population(broker.broker.url, users=()) as population:
        moment = 0
        for moment in range(1, MOST_MOMENTS):
            if moment > len(population.users):
                await add_users_with_dead_tokens(population, broker.broker.url, provider)
            user = population.users[moment - 1]
            deaths = broker.countdown.deaths
            broker.countdown.arm(moment)
            await user.call("/api/during")
            await asyncio.sleep(AFTERMATH_SECONDS)
            if broker.countdown.disarm():
                break
            await broker.rise(deaths + 1)
            if any("Refresher._request" in stack for stack in broker.countdown.last_words()):
                on_the_wire.add(user.name)
        outage = broker.outage()
        victims = population.users[: moment - 1]
        settled = await asyncio.gather(*(persistently(user) for user in victims))
        relogins = {call.user for call in settled if call.status == 401}
        # What they were given is all that they need to go on with.
        survivors = [user for user in victims if user.name not in relogins]
        await asyncio.sleep(2.1)  # a younger token that is refused isn't replaced
        for user in survivors:
            await provider.revoke_subject(user.name, access_tokens_only=True)
        again = await asyncio.gather(*(persistently(user) for user in survivors))
    ledger = await provider.ledger()
    acted_upon = {ledger.families[entry.family].subject for entry in ledger.presented if entry.family}
    print(f"{kind} {rotation}: {moment - 1} moments, {len(on_the_wire)} on the wire, {len(relogins)} log in again")

    assert 20 < moment < MOST_MOMENTS - 1
    assert on_the_wire
    assert relogins <= (on_the_wire & acted_upon if rotation == "strict" else set())
    assert {200} == {call.status for call in settled if call.user not in relogins}
    assert {200} == {call.status for call in again}
    history = population.history
    assert [] == violations(history, ledger, upstream.received, outages=[outage], may_log_in_again=relogins)


@pytest.mark.parametrize("rotation", ["grace", "strict"])
async def test_tk_02_a_broker_killed_while_the_server_thinks_loses_only_what_strict_must(
    rotation: str, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream, redis_server: RedisServer
) -> None:
    """Forty refreshes are under way when the broker dies: only those that the server had acted upon can be lost."""
    await provider.configure(rotation=rotation, rotation_grace_seconds=600)
    installation = settings("sqlite", tmp_path, redis_server, provider, upstream, rotation)
    async with victim(tmp_path, **installation) as broker, Population(broker.broker.url, users=()) as population:
        await add_users_with_dead_tokens(population, broker.broker.url, provider)
        await provider.configure(latency_seconds=(0.3, 1.8))
        calls = asyncio.gather(*(user.call("/api/during") for user in population.users))
        await asyncio.sleep(0.6)

        async def most_are_asked() -> bool:
            return (await provider.ledger()).count("refresh_token") > BATCH / 2

        await until_async(most_are_asked, what="the token requests")
        broker.countdown.arm(1)
        await broker.rise(1)
        await calls
        outage = broker.outage()
        await asyncio.sleep(1.8)  # what the server had begun, it ends
        before = await provider.ledger()
        await provider.configure(latency_seconds=(0.0, 0.0))
        settled = await asyncio.gather(*(persistently(user) for user in population.users))
    ledger = await provider.ledger()
    relogins = {call.user for call in settled if call.status == 401}
    # What was handed to the broker's side of the connection, it need not have read.
    lost = {before.families[call.family].subject for call in before.lost_answers() if call.family}
    acted_upon = {before.families[entry.family].subject for entry in before.presented if entry.family}
    print(
        f"{rotation}: the server acted upon {len(acted_upon)} and lost {len(lost)} of {len(settled)}, {len(relogins)} log in again"
    )

    assert lost
    assert (lost if rotation == "strict" else set()) <= relogins <= (acted_upon if rotation == "strict" else set())
    assert {200, 401} >= {call.status for call in settled}
    history = population.history
    assert [] == violations(history, ledger, upstream.received, outages=[outage], may_log_in_again=relogins)


async def add_users_with_dead_tokens(population: Population, origin: str, provider: RemoteLedgerServer) -> None:
    """Log more users in and wait until their access tokens are dead, so that their next calls need a refresh."""
    await provider.configure(access_token_seconds=2)
    for number in range(len(population.users) + 1, len(population.users) + 1 + BATCH):
        user = User(f"user-{number}", origin, population.history)
        population.users.append(user)
        await user.log_in()
    await asyncio.sleep(2.0)
    await provider.configure(access_token_seconds=600)


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
async def test_ft_11_a_broker_killed_at_any_moment_of_a_login_lets_the_browser_go_on(
    kind: str, tmp_path: Path, provider: RemoteLedgerServer, upstream: Upstream, redis_server: RedisServer
) -> None:
    """
    Whoever reloads the page that broke is logged in, or led to a new login that works; nobody sees a 5xx.

    At the server no family lives on but those of grants, and those whose first answer was never read.
    """
    installation = settings(kind, tmp_path, redis_server, provider, upstream, "strict")
    if kind == "redis":
        installation["spool_dir"] = str(tmp_path / "spool")
    reloaded: list[int] = []
    on_the_wire: set[str] = set()
    async with (
        victim(tmp_path, **installation) as broker,
        Population(broker.broker.url, users=()) as population,
    ):
        moment = 0
        for moment in range(1, MOST_MOMENTS):
            user = User(f"user-{moment}", broker.broker.url, population.history)
            population.users.append(user)
            deaths = broker.countdown.deaths
            broker.countdown.arm(moment)
            where = await navigate(user, URL(f"{broker.broker.url}/bff/login?returnUrl=/&login_hint={user.name}"))
            await asyncio.sleep(AFTERMATH_SECONDS)
            if broker.countdown.disarm():
                break
            await broker.rise(deaths + 1)
            if any("TokenRequests.exchange_code" in stack for stack in broker.countdown.last_words()):
                on_the_wire.add(user.name)
            if isinstance(where, URL):  # the page that broke; what came before it counts
                where = await navigate(user, where)
            assert isinstance(where, int), where
            reloaded.append(where)
            if (await user.call("/api/first")).status != 200:
                assert where in {200, 400, 403}, where
                user.session = 0
                await user.log_in()
            user.session = 1
        outage = broker.outage()
        settled = await population.everybody_calls()
        grants = {user.name: await _grants(broker.broker, user.name) for user in population.users}

        async def loose() -> set[str]:
            """Users with more families than grants."""
            return {user for user, found in grants.items() if await _families(provider, user) > _living(found)}

        async def is_tidy() -> bool:
            return await loose() <= on_the_wire

        await until_async(is_tidy, seconds=REVOCATION_SECONDS, what="the end of what was cut off")
    ledger = await provider.ledger()
    print(f"{kind}: {moment - 1} moments, {len(on_the_wire)} on the wire; pages after a reload: {sorted(reloaded)}")

    assert 30 < moment < MOST_MOMENTS - 1
    assert on_the_wire
    assert ledger.families_revoked("revoked")
    assert {200} == {call.status for call in settled if call.user != f"user-{moment}"}
    assert [] == ledger.families_revoked()
    history = population.history
    for call in history.calls:
        call.session = call.session or 1 if call.path == "/api/last" else call.session
    assert {} == {user: count for user, count in history.logins.items() if count > 1}
    assert [] == [each for each in violations(history, ledger, upstream.received, outages=[outage]) if "I2" not in each]


async def _families(provider: RemoteLedgerServer, subject: str) -> int:
    ledger = await provider.ledger()
    return sum(family.revoked is None for family in ledger.families_of(subject))


def _living(grants: list[dict[str, Any]]) -> int:
    return sum(grant["ended"] is None for grant in grants)


async def navigate(user: User, url: URL) -> int | URL:
    """Follow redirects as a browser does. Returns the page's status, or the address at which the connection broke."""
    for _ in range(10):
        try:
            async with user.browser.http.get(url, headers=navigation(), allow_redirects=False) as response:
                await response.read()
                if response.status not in {302, 303}:
                    return response.status
                url = url.join(URL(response.headers["Location"]))
        except (aiohttp.ClientError, OSError):
            return url
    raise AssertionError("a chain of redirects without end")


async def by_the_user(user: User, _broker: BrokerProcess, _provider: RemoteLedgerServer) -> int | None:
    """Log out as a frontend does."""
    return await user.log_out()


async def by_the_provider(user: User, broker: BrokerProcess, provider: RemoteLedgerServer) -> int | None:
    """Post a logout token, as OpenID Connect Back-Channel Logout section 2.5 says."""
    form = {"logout_token": await provider.logout_token(user.name)}
    return await _send("POST", f"{broker.url}/bff/backchannel-logout/corp", data=form)


async def by_an_administrator(user: User, broker: BrokerProcess, _provider: RemoteLedgerServer) -> int | None:
    """End the user's grant by the admin API."""
    try:
        (grant,) = await _grants(broker, user.name)
    except (aiohttp.ClientError, OSError):
        return None
    return await _send("DELETE", f"{broker.admin_url}/api/grants/{grant['id']}", headers=ADMIN)


async def _send(method: str, url: str, **options: Any) -> int | None:
    try:
        async with aiohttp.ClientSession() as http, http.request(method, url, **options) as response:
            return response.status
    except (aiohttp.ClientError, OSError):
        return None


async def _grants(broker: BrokerProcess, subject: str) -> list[dict[str, Any]]:
    query = {"provider": "corp", "subject": subject}
    async with (
        aiohttp.ClientSession() as http,
        http.get(f"{broker.admin_url}/api/grants", params=query, headers=ADMIN) as response,
    ):
        found: list[dict[str, Any]] = (await response.json())["grants"]
        return found


@pytest.mark.parametrize("kind", ["sqlite", "redis"])
@pytest.mark.parametrize("log_out", [by_the_user, by_the_provider, by_an_administrator])
async def test_ft_11_a_broker_killed_at_any_moment_of_a_logout_leaves_nothing_behind(
    kind: str,
    log_out: Callable[[User, BrokerProcess, RemoteLedgerServer], Awaitable[int | None]],
    tmp_path: Path,
    provider: RemoteLedgerServer,
    upstream: Upstream,
    redis_server: RedisServer,
) -> None:
    """
    A logout that broke can be sent again. Then there is no session, no grant that lives, and no family at the server.

    Back-channel logouts revoke nothing: it is the server itself that ends what it wants ended.
    """
    installation = settings(kind, tmp_path, redis_server, provider, upstream, "strict")
    async with (
        victim(tmp_path, **installation) as broker,
        Population(broker.broker.url, users=()) as population,
    ):
        moment = 0
        for moment in range(1, MOST_MOMENTS):
            user = User(f"user-{moment}", broker.broker.url, population.history)
            population.users.append(user)
            await user.log_in()
            deaths = broker.countdown.deaths
            broker.countdown.arm(moment)
            await log_out(user, broker.broker, provider)
            await asyncio.sleep(AFTERMATH_SECONDS)
            if broker.countdown.disarm():
                break
            await broker.rise(deaths + 1)
            assert 200 == await log_out(user, broker.broker, provider)
        outage = broker.outage()
        after = await population.everybody_calls()
        sessions = [await user.call("/bff/user") for user in population.users]
        grants = [grant for user in population.users for grant in await _grants(broker.broker, user.name)]
        if log_out is not by_the_provider:
            await until_async(provider.has_ended_all, seconds=REVOCATION_SECONDS, what="the end of every family")
    ledger = await provider.ledger()
    print(f"{kind}, {log_out.__name__}: {moment - 1} moments")

    assert 10 < moment < MOST_MOMENTS - 1
    assert {401} == {call.status for call in after}
    assert {401} == {call.status for call in sessions}
    assert len(population.users) == len(grants)
    assert None not in {grant["ended"] for grant in grants}
    if log_out is by_the_user:
        assert [] == violations(population.history, ledger, upstream.received, outages=[outage])
