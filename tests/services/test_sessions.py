import asyncio
import math
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace

import pytest

from broker.core import session as core
from broker.core.grant import Grant
from broker.core.outcome import Token
from broker.core.secret import SessionId
from broker.core.session import Index, Session, SessionOptions
from broker.errors import StoreError
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key
from broker.services.session_records import SessionRecords
from broker.services.sessions import MAX_TOUCHING, LoginTimes, Sessions
from broker.stores.base import Event, Topic
from broker.stores.memory import MemoryBackend, MemoryStore
from tests.services.conftest import StartStage
from tests.support.clock import ManualClock
from tests.support.engine import ring
from tests.support.faulty_store import FaultyStore
from tests.support.waiting import until

IDLE = 8 * 3600.0
ABSOLUTE = 30 * 86400.0
OPTIONS = SessionOptions(idle_timeout_seconds=IDLE, absolute_timeout_seconds=ABSOLUTE, max_cached=1000)
KEY = new_key(SystemRandomness())


@dataclass
class Process:
    """One process of the broker, as far as its sessions go."""

    store: FaultyStore
    sessions: Sessions
    touched: list[tuple[str, float]]

    async def settled(self) -> None:
        """Wait for what runs in the background, and for events."""
        await until(lambda: not len(self.sessions._tasks), what="the background")
        await asyncio.sleep(0)


class Host:
    """Several processes on one store."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.backend = MemoryBackend(self.clock)
        self.processes: list[Process] = []

    async def process(self, options: SessionOptions = OPTIONS, keyring: Keyring | None = None) -> Process:
        store = FaultyStore(MemoryStore(self.backend))
        await store.start()
        touched: list[tuple[str, float]] = []

        async def touch_grant(grant_id: str, ttl_seconds: float) -> None:
            touched.append((grant_id, ttl_seconds))

        keyring = keyring or Keyring([KEY])
        sessions = Sessions(store, keyring, options, self.clock, SystemRandomness(), touch_grant=touch_grant)
        self.processes.append(Process(store, sessions, touched))
        return self.processes[-1]

    def session(self, subject: str = "ada", *, sid: str | None = "sid-1", grant_id: str = "g1") -> Session:
        now = self.clock.now()
        return Session(
            grant_id=grant_id,
            provider="corp",
            issuer="https://idp.example.com",
            subject=subject,
            claims={"name": "Ada", "groups": ["staff"]},
            authenticated_at=now,
            last_seen_at=now,
            ends_at=now + ABSOLUTE,
            provider_session=sid,
        )


@pytest.fixture
async def host() -> AsyncIterator[Host]:
    host = Host()
    yield host
    for process in host.processes:
        await process.sessions.close()
        await process.store.close()


def cookie(session_id: SessionId) -> bytes:
    return session_id.reveal().encode()


async def test_a_session_is_found_by_its_id_on_every_process(host: Host) -> None:
    """The one that began it knows it at once; another reads it from the store, and then knows it too."""
    one, other = await host.process(), await host.process()
    begun = host.session()

    session_id = await one.sessions.start(begun)

    known = one.sessions.peek(cookie(session_id))
    assert known is not None
    assert begun == known.session
    assert ("g1", "corp") == (known.grant_id, known.provider)
    assert other.sessions.peek(cookie(session_id)) is None
    read = await other.sessions.load(cookie(session_id))
    assert read is not None
    assert (known.key, known.version, begun) == (read.key, read.version, read.session)
    assert other.sessions.peek(cookie(session_id)) is not None


async def test_a_session_that_has_not_changed_is_not_opened_again(host: Host) -> None:
    """The store is asked whether the version is still the one that is known."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    known = await other.sessions.load(cookie(session_id))
    assert known is not None
    kept = host.backend.records[known.key]
    host.backend.records[known.key] = replace(kept, record=replace(kept.record, value=b"never looked at"))
    host.clock.advance(OPTIONS.cache_ttl_seconds)

    again = await other.sessions.load(cookie(session_id))

    assert again is not None
    assert (known.version, known.session) == (again.version, again.session)
    assert other.sessions.peek(cookie(session_id)) is not None


async def test_se_07_a_session_that_was_found_gone_does_not_come_back_when_the_store_fails(host: Host) -> None:
    """Of a deletion that nobody told of, an outage makes no life."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    known = await other.sessions.load(cookie(session_id))
    assert known is not None
    await one.store.delete(known.key)
    host.clock.advance(OPTIONS.cache_ttl_seconds)
    assert await other.sessions.load(cookie(session_id)) is None

    host.clock.advance(OPTIONS.cache_ttl_seconds)
    other.store.down = True

    with pytest.raises(StoreError):
        await other.sessions.load(cookie(session_id))


async def test_the_hot_path_asks_nobody(host: Host) -> None:
    """A thousand uses of a known session call the store not once."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    before = dict(process.store.calls)

    for _ in range(1000):
        assert process.sessions.peek(cookie(session_id)) is not None

    assert before == process.store.calls


async def test_cr_03_the_store_holds_neither_the_id_nor_the_user_in_clear(host: Host) -> None:
    """Not in keys, not in tags, not in values."""
    process = await host.process()
    session_id = await process.sessions.start(host.session("ada-lovelace"))

    dump = repr(host.backend.records)

    for word in (session_id.reveal(), "ada-lovelace", "Ada", "staff", "sid-1", "idp.example.com", "g1"):
        assert word not in dump
    assert "session:" in dump


async def test_se_06_ids_are_256_bits_and_match_exactly(host: Host) -> None:
    """No prefix, padding, other case, trailing byte or other spelling of the same bits opens a session."""
    process = await host.process()
    session_id = cookie(await process.sessions.start(host.session()))
    assert 43 == len(session_id)
    last = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    same_bits = [session_id[:-1] + last[at : at + 1] for at in range(64)]
    same_bits.remove(session_id)
    others = [
        b"", session_id[:-1], session_id + b"=", session_id + b"A", session_id.swapcase(), session_id + b"\n",
        b" " + session_id, b'"' + session_id + b'"', session_id + b"\x00", session_id.replace(b"-", b"+"), b"\xff" * 43,
        b"A" * 8000, *same_bits,
    ]  # fmt: skip

    for other in others:
        if other != session_id:
            assert await process.sessions.load(other) is None, other


async def test_se_06_no_id_repeats(host: Host) -> None:
    """A thousand sessions have a thousand ids."""
    process = await host.process()

    ids = {(await process.sessions.start(host.session())).reveal() for _ in range(1000)}

    assert 1000 == len(ids)


FORKED = """
import os
from broker.services.clock import SystemRandomness
from broker.services.sessions import new_session_id

randomness = SystemRandomness()
new_session_id(randomness)  # whatever a source keeps, it has before the fork
child = os.fork()
text = "".join(new_session_id(randomness) + "\\n" for _ in range(500_000))
if child:
    os.waitpid(child, 0)
with open(1, "w") as output:
    output.write(text)
os._exit(0)
"""


def test_se_06_a_million_ids_of_two_forked_processes_are_a_million() -> None:
    """A worker that was forked draws none that its sibling draws."""
    output = subprocess.run([sys.executable, "-c", FORKED], stdout=subprocess.PIPE, check=True).stdout

    assert 1_000_000 == len(set(output.split()))


async def test_se_05_a_session_that_is_not_used_ends(host: Host) -> None:
    """At the idle timeout it is over, in the process that knows it and in one that doesn't."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())

    host.clock.advance(IDLE - 1)
    assert await other.sessions.load(cookie(session_id), used=False) is not None
    host.clock.advance(1)

    assert one.sessions.peek(cookie(session_id)) is None
    assert await one.sessions.load(cookie(session_id)) is None
    assert await other.sessions.load(cookie(session_id)) is None


async def test_se_05_traffic_moves_the_idle_end_and_never_the_absolute_one(host: Host) -> None:
    """A session that is used every hour lives to its absolute end, to the second, and no longer."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    hours = int(ABSOLUTE // 3600)

    for hour in range(hours - 1):
        host.clock.advance(3600)
        assert await process.sessions.load(cookie(session_id)) is not None, f"after {hour + 1} h"
        await process.settled()
    host.clock.advance(3599)
    assert await process.sessions.load(cookie(session_id)) is not None
    await process.settled()
    host.clock.advance(1)

    assert await process.sessions.load(cookie(session_id)) is None
    assert [] == list(filter(None, [host.backend.kept(key) for key in list(host.backend.records)]))


async def test_se_05_the_end_is_inside_the_record(host: Host) -> None:
    """A store that keeps a record too long makes no session immortal."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    live = process.sessions.peek(cookie(session_id))
    assert live is not None

    assert await process.store.touch(live.key, 100 * ABSOLUTE)
    host.clock.advance(IDLE)

    assert await process.store.get(live.key) is not None
    assert await process.sessions.load(cookie(session_id)) is None


async def test_uses_are_written_down_now_and_then_in_the_background(host: Host) -> None:
    """A use costs a write once per sixteenth of the idle timeout; the caller waits for none, and the grant follows."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    _, release = process.store.hold("replace")
    host.clock.advance(IDLE / 16)

    for _ in range(100):
        assert await process.sessions.load(cookie(session_id)) is not None
    release.set()
    await process.settled()

    assert 1 == process.store.calls["replace"]
    assert [("g1", IDLE + 600.0)] == process.touched
    live = process.sessions.peek(cookie(session_id))
    assert live is not None
    assert host.clock.now() == live.session.last_seen_at


async def test_a_use_whose_grant_could_not_be_touched_logs_nobody_out(start_stage: StartStage) -> None:
    """One touch fails, nothing else does: the grant is there as long as the session is."""
    stage = await start_stage()
    sessions = Sessions(
        stage.one.store, ring(), OPTIONS, stage.clock, SystemRandomness(), touch_grant=stage.one.broker.touch
    )
    times = sessions.times_of_login()
    grant = await stage.one.adopt(
        stage.server.login_tokens("bob"),
        subject="bob",
        ttl_seconds=times.grant_ttl_seconds,
        keep_until=times.ends_at,
    )
    session_id = cookie(await sessions.start(session_of(grant, times)))
    stage.clock.advance(2 * 3600)
    stage.one.store.trouble("touch", "fails")

    for _ in range(2):  # a call, and one more in the next minute
        assert await sessions.load(session_id) is not None
        await until(lambda: not len(sessions._tasks))
        stage.clock.advance(60)
    stage.clock.advance(IDLE - 3600)

    assert await sessions.load(session_id) is not None
    assert isinstance(await stage.one.broker.token(grant.id), Token)
    await sessions.close()


def session_of(grant: Grant, times: LoginTimes) -> Session:
    return Session(
        grant_id=grant.id,
        provider=grant.provider,
        issuer="https://idp.example.com",
        subject=grant.subject,
        authenticated_at=times.authenticated_at,
        last_seen_at=times.authenticated_at,
        ends_at=times.ends_at,
    )


async def test_sessions_that_were_replaced_one_by_one_end_the_oldest_first(host: Host) -> None:
    """Each is found by the next alone, so a crash in between must leave that."""
    one, other = await host.process(), await host.process()
    released: list[tuple[str, str]] = []

    async def release(replaced: Session, by: Session) -> None:
        released.append((replaced.subject, by.subject))

    other.sessions.on_replaced(release)
    cookies, before = [], None
    for subject in ("ada", "bob", "cai"):
        session_id = await one.sessions.start(replace(host.session(subject), replaces=before))
        cookies.append(cookie(session_id))
        before = one.sessions.key_of(session_id)

    for used in (False, True):
        assert await other.sessions.load(cookies[2], used=used) is not None
        await other.settled()
        ended = [await one.sessions.load(each, used=False) is None for each in cookies]
        assert [used, used, False] == ended

    assert [("ada", "cai"), ("bob", "cai")] == released


async def test_a_session_that_ends_before_its_browser_shows_it_ends_no_other(host: Host) -> None:
    """The provider ended it, and perhaps its cookie never arrived."""
    process = await host.process()
    before = await process.sessions.start(host.session("ada"))
    after = replace(host.session("bob"), replaces=process.sessions.key_of(before))
    key = process.sessions.key_of(await process.sessions.start(after))

    assert await process.sessions.end(key) == after
    await process.sessions.end_replaced(key)

    assert await process.sessions.load(cookie(before)) is not None


async def test_polling_that_is_no_use_keeps_no_session_alive(host: Host) -> None:
    """A page that asks for the user every minute doesn't move the idle end, if it says so."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())

    for _ in range(int(IDLE // 60) - 1):
        host.clock.advance(60)
        assert await process.sessions.load(cookie(session_id), used=False) is not None
    host.clock.advance(60)

    assert await process.sessions.load(cookie(session_id), used=False) is None
    assert "replace" not in process.store.calls


async def test_se_07_a_use_that_is_written_late_resurrects_nothing(host: Host) -> None:
    """A request in flight during a logout writes its use afterwards: the session stays dead, here and elsewhere."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    live = one.sessions.peek(cookie(session_id))
    assert live is not None
    host.clock.advance(IDLE / 2)
    held, release = one.store.hold("replace")
    assert await one.sessions.load(cookie(session_id)) is not None
    await asyncio.wait_for(held.wait(), 5)

    assert await other.sessions.end(live.key) is not None
    release.set()
    await one.settled()

    assert await one.sessions.load(cookie(session_id)) is None
    assert await other.sessions.load(cookie(session_id)) is None
    assert host.backend.kept(live.key) is None


async def test_se_07_a_use_that_was_written_just_before_a_logout_caches_nothing(host: Host) -> None:
    """The logout is heard while the write's answer is on its way: it isn't remembered as live."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    host.clock.advance(IDLE / 2)
    held, release = one.store.hold("replace", after=True)
    live = await one.sessions.load(cookie(session_id))
    assert live is not None
    await asyncio.wait_for(held.wait(), 5)

    assert await other.sessions.end(live.key) is not None
    await asyncio.sleep(0)
    release.set()
    await one.settled()

    assert one.sessions.peek(cookie(session_id)) is None
    assert await one.sessions.load(cookie(session_id)) is None


async def test_se_07_two_processes_that_write_at_once_lose_no_session(host: Host) -> None:
    """One of two writers is too late; both go on with what is stored."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    assert await other.sessions.load(cookie(session_id)) is not None
    host.clock.advance(IDLE / 2)
    _, release = one.store.hold("replace")
    _, release_other = other.store.hold("replace")

    assert await one.sessions.load(cookie(session_id)) is not None
    assert await other.sessions.load(cookie(session_id)) is not None
    release.set()
    await one.settled()
    release_other.set()
    await other.settled()
    host.clock.advance(IDLE * 0.9)

    for process in (one, other):
        assert await process.sessions.load(cookie(session_id), used=False) is not None


async def test_se_03_a_logout_is_known_everywhere_at_once(host: Host) -> None:
    """A copied cookie is worth nothing on any process as soon as the event is heard, whatever was cached."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    live = await other.sessions.load(cookie(session_id))
    assert live is not None

    ended = await one.sessions.end(live.key)
    await until(lambda: other.sessions.peek(cookie(session_id)) is None, seconds=1.0)

    assert ended == live.session
    assert await other.sessions.load(cookie(session_id)) is None
    assert await one.sessions.load(cookie(session_id)) is None
    assert await one.sessions.end(live.key) is None


async def test_se_03_a_logout_during_a_read_is_not_overlooked(host: Host) -> None:
    """A read that found the session just before it ended doesn't leave it in the cache."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    live = one.sessions.peek(cookie(session_id))
    assert live is not None
    held, release = other.store.hold("get", after=True)
    reading = asyncio.ensure_future(other.sessions.load(cookie(session_id)))
    await asyncio.wait_for(held.wait(), 5)

    await one.sessions.end(live.key)
    await asyncio.sleep(0)
    release.set()
    assert await reading is not None, "it was live when it was asked for"

    assert other.sessions.peek(cookie(session_id)) is None
    assert await other.sessions.load(cookie(session_id)) is None


async def test_se_03_a_logout_that_could_not_be_told_is_known_after_the_cache_ttl(host: Host) -> None:
    """The record is gone though the event is lost; nobody trusts a cache for longer than cache_ttl."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    live = await other.sessions.load(cookie(session_id))
    assert live is not None
    one.store.failing.add("publish")

    assert await one.sessions.end(live.key) is not None
    host.clock.advance(OPTIONS.cache_ttl_seconds)

    assert await other.sessions.load(cookie(session_id)) is None


async def test_what_may_have_been_missed_is_asked_again(host: Host) -> None:
    """After a RESYNC nothing is trusted that was read before."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    live = process.sessions.peek(cookie(session_id))
    assert live is not None
    await process.store.delete(live.key)

    await process.store.publish(Event(Topic.RESYNC, ""))
    await asyncio.sleep(0)

    assert process.sessions.peek(cookie(session_id)) is None
    assert await process.sessions.load(cookie(session_id)) is None


async def test_an_unknown_id_is_asked_for_once(host: Host) -> None:
    """A stolen, dead cookie that is sent again and again doesn't reach the store each time."""
    process = await host.process()

    for _ in range(50):
        assert await process.sessions.load(b"x" * 43) is None
    host.clock.advance(OPTIONS.cache_ttl_seconds)
    assert await process.sessions.load(b"x" * 43) is None

    assert 2 == process.store.calls["get"]


async def test_callers_of_one_session_share_one_read(host: Host) -> None:
    """Of twenty calls at once that find nothing cached one asks the store; if it hangs up, another one does."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    held, release = other.store.hold("get")

    calls = [asyncio.ensure_future(other.sessions.load(cookie(session_id))) for _ in range(20)]
    await asyncio.wait_for(held.wait(), 5)
    calls[0].cancel()
    release.set()
    found = await asyncio.gather(*calls[1:])

    assert all(found)
    assert 2 == other.store.calls["get"]


async def test_ft_01_a_store_that_is_down_logs_nobody_out(host: Host) -> None:
    """What is known serves on through outage_grace; what isn't known is an error, and no session is lost."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    one.store.down = other.store.down = True

    for _ in range(int(OPTIONS.outage_grace_seconds) - 1):
        host.clock.advance(1)
        assert await one.sessions.load(cookie(session_id)) is not None
    with pytest.raises(StoreError):
        await other.sessions.load(cookie(session_id))
    host.clock.advance(1)
    with pytest.raises(StoreError):
        await one.sessions.load(cookie(session_id))
    one.store.down = other.store.down = False

    assert await one.sessions.load(cookie(session_id)) is not None
    assert await other.sessions.load(cookie(session_id)) is not None


async def test_ft_02_a_store_that_is_down_is_not_asked_for_each_call(host: Host) -> None:
    """Calls on a known session wait for a failing store once a second at most."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    host.clock.advance(OPTIONS.cache_ttl_seconds)
    process.store.down = True

    for _ in range(100):
        assert await process.sessions.load(cookie(session_id)) is not None

    assert 1 == process.store.calls["version"]


async def test_an_outage_makes_no_dead_session_live(host: Host) -> None:
    """A session whose idle time is over is not served from memory: nobody knows, so it is an error."""
    process = await host.process(replace(OPTIONS, outage_grace_seconds=3600.0, idle_timeout_seconds=60.0))
    session_id = await process.sessions.start(host.session())
    process.store.down = True
    host.clock.advance(60)

    with pytest.raises(StoreError):
        await process.sessions.load(cookie(session_id))


async def test_a_use_that_could_not_be_written_is_tried_again(host: Host) -> None:
    """The session lives on by what is written once the store is back."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    host.clock.advance(IDLE / 2)
    process.store.failing.add("replace")
    assert await process.sessions.load(cookie(session_id)) is not None
    await process.settled()
    process.store.failing.clear()

    host.clock.advance(11)
    assert await process.sessions.load(cookie(session_id)) is not None
    await process.settled()
    host.clock.advance(IDLE - 1)

    assert await process.sessions.load(cookie(session_id)) is not None


async def test_a_store_that_is_down_ends_no_session_and_says_so(host: Host) -> None:
    """Whoever logs out hears that it didn't work."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    live = process.sessions.peek(cookie(session_id))
    assert live is not None
    process.store.down = True

    with pytest.raises(StoreError):
        await process.sessions.end(live.key)
    process.store.down = False

    assert await process.sessions.load(cookie(session_id)) is not None


async def test_se_08_sessions_are_ended_by_user_by_sid_by_grant_and_by_provider(host: Host) -> None:
    """Each index ends exactly its own sessions."""
    process = await host.process()

    async def start(subject: str, sid: str | None, grant_id: str) -> bytes:
        return cookie(await process.sessions.start(host.session(subject, sid=sid, grant_id=grant_id)))

    laptop, phone = await start("ada", "s1", "g1"), await start("ada", None, "g2")
    other, third = await start("bob", "s3", "g3"), await start("cyd", "s4", "g4")

    assert 2 == len(await process.sessions.find_by(Index.SUBJECT, "https://idp.example.com", "ada"))
    ended = await process.sessions.end_by(Index.PROVIDER_SESSION, "https://idp.example.com", "s1")
    assert ["g1"] == [session.grant_id for session in ended]
    assert await process.sessions.load(laptop) is None
    assert await process.sessions.load(phone) is not None
    await process.sessions.end_by(Index.SUBJECT, "https://idp.example.com", "ada")
    assert await process.sessions.load(phone) is None
    assert await process.sessions.load(other) is not None
    await process.sessions.end_by(Index.GRANT, "g3")
    assert await process.sessions.load(other) is None
    assert await process.sessions.load(third) is not None
    await process.sessions.end_by(Index.PROVIDER, "corp")
    assert await process.sessions.load(third) is None


async def test_rt_12_the_same_subject_of_another_issuer_is_another_user(host: Host) -> None:
    """``iss`` and ``sub`` make the user, and no other cut of the two texts does."""
    process = await host.process()
    session_id = await process.sessions.start(host.session("ada"))

    for words in [("https://evil.test", "ada"), ("https://idp.example.coma", "da"), ("https://idp.example.com", "ad")]:
        assert [] == await process.sessions.end_by(Index.SUBJECT, *words)

    assert await process.sessions.load(cookie(session_id)) is not None


async def test_se_08_an_index_that_was_tampered_with_ends_nobody_elses_session(host: Host) -> None:
    """The sealed record says whose session it is, not the store's tags."""
    process = await host.process()
    session_id = await process.sessions.start(host.session("bob"))
    (tag_of_ada,) = Keyring([KEY]).lookup_keys(Index.SUBJECT, core.index_word("https://idp.example.com", "ada"))
    host.backend.records = {
        key: replace(kept, tags=kept.tags | {tag_of_ada}) for key, kept in host.backend.records.items()
    }

    assert [] == await process.sessions.end_by(Index.SUBJECT, "https://idp.example.com", "ada")
    assert await process.sessions.load(cookie(session_id)) is not None


async def test_rt_10_renewed_claims_are_seen_everywhere(host: Host) -> None:
    """A group that was taken away at the provider is gone on every process at once, and the ends don't move."""
    one, other = await host.process(), await host.process()
    session_id = await one.sessions.start(host.session())
    assert await other.sessions.load(cookie(session_id)) is not None

    await one.sessions.renew_claims("g1", {"groups": []})
    await until(lambda: other.sessions.peek(cookie(session_id)) is None, seconds=1.0)

    for process in (one, other):
        live = await process.sessions.load(cookie(session_id))
        assert live is not None
        assert {"groups": []} == live.session.claims
        assert host.session().ends_at == live.session.ends_at


async def test_cr_01_a_record_that_was_tampered_with_is_no_session(host: Host) -> None:
    """Another session's record, a flipped bit and a cut one are all the same as none."""
    process = await host.process()
    mine = await process.sessions.start(host.session("ada"))
    theirs = await process.sessions.start(host.session("bob"))
    keys = [live.key for live in map(process.sessions.peek, map(cookie, (mine, theirs))) if live is not None]
    good = await process.store.get(keys[0])
    swapped = await process.store.get(keys[1])
    assert good is not None
    assert swapped is not None

    for value in (swapped.value, good.value[:-1], good.value[:-1] + bytes([good.value[-1] ^ 1]), b""):
        host.clock.advance(OPTIONS.cache_ttl_seconds)
        record = await process.store.get(keys[0])
        assert record is not None
        await process.store.replace(keys[0], value, record.version)
        assert await process.sessions.load(cookie(mine)) is None


async def test_cr_04_sessions_survive_a_rotation_of_the_keys(host: Host) -> None:
    """A new key in front logs nobody out, also by index; without the old one its sessions are gone cleanly."""
    old = await host.process()
    session_id = await old.sessions.start(host.session())
    new_first = new_key(SystemRandomness())

    both = await host.process(keyring=Keyring([new_first, KEY]))
    assert await both.sessions.load(cookie(session_id)) is not None
    assert 1 == len(await both.sessions.find_by(Index.SUBJECT, "https://idp.example.com", "ada"))
    alone = await host.process(keyring=Keyring([new_first]))

    assert await alone.sessions.load(cookie(session_id)) is None
    assert 1 == len(await both.sessions.end_by(Index.SUBJECT, "https://idp.example.com", "ada"))


async def test_ft_14_a_record_of_a_later_release_is_left_unharmed(host: Host) -> None:
    """It is no session here, and stays as it is for whoever can read it."""
    process = await host.process()
    records = SessionRecords(process.store, Keyring([KEY]))
    stored = await records.create("x" * 43, host.session(), ttl_seconds=60.0)
    later = core.encode(host.session()).replace(b'{"v":1,', b'{"v":3,')
    sealed = Keyring([KEY]).seal("session", stored.key, later)
    assert await process.store.replace(stored.key, sealed, stored.version) is not None

    assert await process.sessions.load(b"x" * 43) is None
    kept = await process.store.get(stored.key)
    assert kept is not None
    assert sealed == kept.value


async def test_ft_15_a_wall_clock_that_jumps_back_makes_nothing_immortal(host: Host) -> None:
    """Cached knowledge is trusted by the monotonic clock."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    live = process.sessions.peek(cookie(session_id))
    assert live is not None
    await process.store.delete(live.key)

    host.clock.advance(OPTIONS.cache_ttl_seconds)
    host.clock.set_wall_clock(-3600)

    assert await process.sessions.load(cookie(session_id)) is None


async def test_uses_of_very_many_sessions_are_not_remembered_for_ever(host: Host) -> None:
    """What is known of writes that failed is bounded."""
    process = await host.process()
    session_id = await process.sessions.start(host.session())
    process.sessions._touching = {number.to_bytes(32): math.inf for number in range(MAX_TOUCHING)}
    host.clock.advance(IDLE / 2)

    assert await process.sessions.load(cookie(session_id)) is not None
    await process.settled()

    assert len(process.sessions._touching) <= 1
    assert 1 == process.store.calls["replace"]


async def test_an_id_that_was_drawn_before_is_never_shared(host: Host) -> None:
    """A broken source of randomness is an error, not somebody else's session."""
    process = await host.process()
    records = SessionRecords(process.store, Keyring([KEY]))
    await records.create("x" * 43, host.session("ada"), ttl_seconds=60.0)

    with pytest.raises(StoreError):
        await records.create("x" * 43, host.session("bob"), ttl_seconds=60.0)
