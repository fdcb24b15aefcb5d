import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator, Sequence
from functools import partial
from hashlib import sha256
from typing import Any

import pytest

from broker.core.callers import CallerCertificateOptions, CallerIssuerOptions, CallersOptions
from broker.core.grant import Ended, EndReason, Grant, Origin
from broker.core.options import OptionError
from broker.core.paths import read_target
from broker.errors import BadRequest, Forbidden, NoSession, StoreError
from broker.services.callers import Callers, Shown
from broker.services.handles import Handles
from broker.services.keyring import Keyring, new_key
from broker.stores.base import Event, Topic
from broker.stores.memory import MemoryBackend, MemoryStore
from broker.web.streams import Owner
from tests.support.clock import ManualClock, SeededRandomness
from tests.support.document_server import DocumentServer
from tests.support.faulty_store import FaultyStore
from tests.support.forge import base64url, ec_key, join, public_jwk, sign
from tests.support.grants import NOW, grant

CERTIFICATE = b"a certificate in DER"
FIELD = b":" + b64encode(CERTIFICATE) + b":"


class Grants:
    """The one thing that callers ask of the token broker."""

    def __init__(self) -> None:
        self.held: list[Grant] = []
        self.questions = 0
        self.down = False

    async def grants(self, provider: str | None = None, subject: str | None = None) -> list[Grant]:
        self.questions += 1
        if self.down:
            raise StoreError("down")
        return [each for each in self.held if (each.provider, each.subject) == (provider, subject)]


@pytest.fixture
async def issuer() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        metadata = {"issuer": server.url, "jwks_uri": f"{server.url}/jwks"}
        server.answers["/.well-known/openid-configuration"] = (200, metadata)
        server.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(), "ec-1")]})
        yield server


@pytest.fixture
def grants() -> Grants:
    return Grants()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(NOW)


@pytest.fixture
async def store(clock: ManualClock) -> FaultyStore:
    store = FaultyStore(MemoryStore(MemoryBackend(clock)))
    await store.start()
    return store


@pytest.fixture
def handles(store: FaultyStore, clock: ManualClock) -> Handles:
    return Handles(store, Keyring([new_key(SeededRandomness())]), clock, SeededRandomness())


@pytest.fixture
async def callers(
    issuer: DocumentServer, grants: Grants, handles: Handles, store: FaultyStore, clock: ManualClock
) -> AsyncIterator[Callers]:
    options = CallersOptions(
        jwt=(CallerIssuerOptions(issuer=issuer.url, audience="token-broker", provider="corp"),),
        certificates={
            sha256(CERTIFICATE).hexdigest(): CallerCertificateOptions(provider="corp", subject="batch"),
        },
    )
    made = Callers(options, handles=handles, tokens=grants, store=store, clock=clock)  # type: ignore[arg-type]
    yield made
    await made.close()


def shown(*authorization: bytes, certificate: Sequence[bytes] = (), address: str = "192.0.2.1") -> Shown:
    return Shown(authorization, certificate, address, read_target(b"/api/orders", b""))


def token(issuer: DocumentServer, header: dict[str, Any] | None = None, **claims: Any) -> bytes:
    all_claims = {"iss": issuer.url, "aud": "token-broker", "sub": "batch", "exp": NOW + 300, **claims}
    return b"Bearer " + sign({"alg": "ES256", "kid": "ec-1", **(header or {})}, all_claims, ec_key()).encode()


async def test_a_caller_that_shows_nothing_has_no_grant(callers: Callers) -> None:
    """Whether that is allowed is for the route to say."""
    assert None is await callers.grant_of(shown())


async def test_a_handle_names_its_grant(callers: Callers, handles: Handles) -> None:
    """Where it may be used; elsewhere it is refused."""
    credential = await handles.issue(handles.new("g1", routes=("/api",), networks=("192.0.2.0/24",)))
    line = b"Bearer " + credential.reveal().encode()

    assert "g1" == await callers.grant_of(shown(line))
    with pytest.raises(Forbidden):
        await callers.grant_of(shown(line, address="198.51.100.1"))
    with pytest.raises(NoSession):
        await callers.grant_of(shown(b"Bearer tbh_" + b"A" * 43))


async def test_a_signed_token_names_the_grant_of_its_subject(
    callers: Callers, grants: Grants, issuer: DocumentServer
) -> None:
    """The newest live grant that was imported; its signature is checked once."""
    grants.held = [
        grant(id="old", subject="batch", origin=Origin.IMPORTED, chain_started_at=NOW - 10),
        grant(id="new", subject="batch", origin=Origin.IMPORTED),
        grant(id="ended", subject="batch", origin=Origin.IMPORTED, ended=Ended(reason=EndReason.REVOKED, at=NOW)),
    ]
    line = token(issuer)

    assert ["new", "new"] == [await callers.grant_of(shown(line)) for _ in range(2)]
    assert 1 == sum(request.path == "/jwks" for request in issuer.requests)


async def test_a_browsers_grant_is_its_browsers_alone(callers: Callers, grants: Grants, issuer: DocumentServer) -> None:
    """A signed token of the same user doesn't ride on the browser's login."""
    grants.held = [grant(subject="batch", origin=Origin.BROWSER)]

    with pytest.raises(NoSession, match="no grant"):
        await callers.grant_of(shown(token(issuer)))


@pytest.mark.parametrize(
    "claims",
    [
        {"aud": "somebody-else"},
        {"aud": None},
        {"iss": "https://evil.test"},
        {"exp": NOW - 300},
        {"exp": "never"},
        {"exp": None},
        {"nbf": NOW + 300},
        {"sub": ""},
        {"sub": 7},
        {"nonce": "an id token has one"},
    ],
)
async def test_jw_02_a_token_with_wrong_claims_is_refused(
    callers: Callers, grants: Grants, issuer: DocumentServer, claims: dict[str, Any]
) -> None:
    """Issuer, audience, times, subject and kind must all be right."""
    grants.held = [grant(subject="batch", origin=Origin.IMPORTED)]

    with pytest.raises(NoSession):
        await callers.grant_of(shown(token(issuer, **claims)))


async def test_jw_01_a_forged_token_is_refused(callers: Callers, grants: Grants, issuer: DocumentServer) -> None:
    """None, another key, another algorithm, another type, and what isn't a token at all."""
    grants.held = [grant(subject="batch", origin=Origin.IMPORTED)]
    claims = {"iss": issuer.url, "aud": "token-broker", "sub": "batch", "exp": NOW + 300}
    forged = [
        join({"alg": "none"}, claims).encode(),
        sign({"alg": "ES256", "kid": "ec-1"}, claims, ec_key(name="another")).encode(),
        token(issuer, {"typ": "logout+jwt"})[7:],
        token(issuer, {"crit": ["x"]})[7:],
        base64url(b"{}").encode(),
        b"\xff\xfe",
    ]

    for credential in forged:
        with pytest.raises(NoSession):
            await callers.grant_of(shown(b"Bearer " + credential))


@pytest.mark.parametrize("lines", [(b"Basic YTpi",), (b"Bearer",), (b"Bearer a b",), (b"",)])
async def test_only_a_bearer_credential_is_taken(callers: Callers, lines: tuple[bytes, ...]) -> None:
    """Another scheme, or none, is refused."""
    with pytest.raises(NoSession):
        await callers.grant_of(shown(*lines))


def test_lk_01_what_a_caller_shows_hides_itself() -> None:
    """In whatever is printed of it, and of what watches its answers."""
    what = shown(b"Bearer tbh_canary", certificate=[b":canary:"])
    watched = Owner("handle:1", "g1", 1.0, partial(print, what, b"canary"))  # type: ignore[arg-type]

    assert "canary" not in f"{what} {what!r} {watched!r} {partial(print, what)!r}"


async def test_hd_09_two_credentials_are_refused(callers: Callers) -> None:
    """Which of them counts must not be guessed."""
    with pytest.raises(BadRequest):
        await callers.grant_of(shown(b"Bearer a", b"Bearer b"))


async def test_a_client_certificate_names_its_grant(callers: Callers, grants: Grants) -> None:
    """By its SHA-256, in the form of RFC 9440; anything else is refused."""
    grants.held = [grant(id="g1", subject="batch", origin=Origin.STANDING)]
    field = FIELD

    assert "g1" == await callers.grant_of(shown(certificate=[field]))
    for bad in ([field, field], [b"no sequence"], [b"::"], [b":!:"]):
        with pytest.raises(BadRequest):
            await callers.grant_of(shown(certificate=bad))
    with pytest.raises(NoSession):
        await callers.grant_of(shown(certificate=[b":AAAA:"]))


async def each_way(handles: Handles, issuer: DocumentServer) -> list[Shown]:
    """What callers of the grant ``g1`` show: a handle, a signed token, a certificate."""
    credential = await handles.issue(handles.new("g1"))
    return [shown(b"Bearer " + credential.reveal().encode()), shown(token(issuer)), shown(certificate=[FIELD])]


async def test_a_caller_that_is_known_is_known_at_once(
    callers: Callers, handles: Handles, grants: Grants, issuer: DocumentServer, store: FaultyStore, clock: ManualClock
) -> None:
    """For ``cache_ttl`` nobody is asked about it, nor waited for; and after it the store is, once."""
    grants.held = [grant(id="g1", subject="batch", origin=Origin.IMPORTED)]
    ways = await each_way(handles, issuer)

    assert [None] * 3 == [callers.peek(way) for way in ways]
    assert ["g1"] * 3 == [await callers.grant_of(way) for way in ways]
    asked = store.calls["get"], grants.questions
    for _ in range(5):
        assert ["g1"] * 3 == [callers.peek(way) for way in ways]
        assert ["g1"] * 3 == [await callers.grant_of(way) for way in ways]
    assert asked == (store.calls["get"], grants.questions) == (1, 1)  # the subject of both is the same

    clock.advance(5)
    assert [None] * 3 == [callers.peek(way) for way in ways]
    assert ["g1"] * 3 == [await callers.grant_of(way) for way in ways]
    assert (2, 2) == (store.calls["get"], grants.questions)


async def test_what_is_refused_is_refused_at_once(callers: Callers, handles: Handles) -> None:
    """Or it isn't let in at once, and hears why when it is asked for."""
    credential = await handles.issue(handles.new("g1", routes=("/other",)))
    line = b"Bearer " + credential.reveal().encode()
    with pytest.raises(Forbidden):
        await callers.grant_of(shown(line))

    assert None is callers.peek(shown(line))
    with pytest.raises(BadRequest):
        callers.peek(shown(line, line))
    with pytest.raises(NoSession):
        callers.peek(shown(b"Basic YTpi"))
    with pytest.raises(NoSession):
        callers.peek(shown(certificate=[b":AAAA:"]))


async def test_ft_02_callers_that_are_known_are_served_through_an_outage(
    callers: Callers, handles: Handles, grants: Grants, issuer: DocumentServer, store: FaultyStore, clock: ManualClock
) -> None:
    """For ``outage_grace``, with one question a second to a store that is down; whoever isn't known hears that it is."""
    grants.held = [grant(id="g1", subject="batch", origin=Origin.IMPORTED)]
    ways = await each_way(handles, issuer)
    for way in ways:
        await callers.grant_of(way)
    store.down = grants.down = True
    clock.advance(10)
    asked = store.calls["get"]

    for _ in range(20):
        assert ["g1"] * 3 == [await callers.grant_of(way) for way in ways]
    assert store.calls["get"] == asked + 1
    assert 2 == grants.questions
    with pytest.raises(StoreError):
        await callers.grant_of(shown(b"Bearer tbh_" + b"A" * 43))

    clock.advance(50)
    for way in ways:
        with pytest.raises(StoreError):
            await callers.grant_of(way)


async def test_a_grant_that_ends_makes_room_for_the_next_at_once(
    callers: Callers, grants: Grants, store: FaultyStore
) -> None:
    """Who imports another grant after it needn't wait for ``cache_ttl``."""
    grants.held = [grant(id="g1", subject="batch", origin=Origin.IMPORTED)]
    assert "g1" == await callers.grant_of(shown(certificate=[FIELD]))
    grants.held = [grant(id="g2", subject="batch", origin=Origin.IMPORTED)]
    await store.publish(Event(Topic.GRANT_ENDED, "g1"))
    await asyncio.sleep(0)  # the event is heard in the next turn of the loop

    assert "g2" == await callers.grant_of(shown(certificate=[FIELD]))


@pytest.mark.parametrize(
    "options",
    [
        lambda: CallerIssuerOptions(issuer="https://a", audience="", provider="corp"),
        lambda: CallerIssuerOptions(issuer="https://a", audience="b", provider="corp", algorithms=("HS256",)),
        lambda: CallersOptions(certificates={"AB": CallerCertificateOptions(provider="corp", subject="x")}),
        lambda: CallersOptions(jwt=(CallerIssuerOptions(issuer="https://a", audience="b", provider="c"),) * 2),
    ],
)
def test_ad_02_unsafe_options_are_refused(options: Any) -> None:
    """An empty audience, a shared key, a fingerprint that can't match, an issuer that is named twice."""
    with pytest.raises(OptionError):
        options()
