"""
The four authorization servers of the seeds, each from its first tokens to its logout.

The configuration is the one of the documents (docs/howto/providers); the servers are doubles that behave to the letter
and refuse everything else; the clock is moved by hand, so that a year takes a second.
"""

import datetime as dt
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import aiohttp
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import Key, RSAKey

from broker.config import Settings, loads
from broker.config.sources import Located, Missing, Obtained
from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.compact_jws import unverified_claim
from broker.core.grant import EndReason, Grant, Origin
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.outcome import LoginNeeded, Token
from broker.core.pkce import code_challenge
from broker.core.secret import RefreshToken, Secret
from broker.core.standing import GrantType, StandingGrantOptions
from broker.core.token_response import ResponseRules, read_token_response
from broker.services.clock import SystemRandomness
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationRequest, AuthorizationServer
from broker.services.standing import StandingGrants
from tests.support.clock import ManualClock
from tests.support.doubles import apiax, mosaic, oracle
from tests.support.doubles.base import DAY, Double
from tests.support.engine import Engine, Replica
from tests.support.forge import base64url

pytestmark = pytest.mark.system

PAGES = Path(__file__).parents[2] / "docs" / "howto" / "providers"
HOUR = 3600.0
FOREVER = 4000 * DAY
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)
JWK: Key = RSAKey.import_key(KEY)
KEY_PEM = KEY.private_bytes(
    serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
).decode()


@dataclass(frozen=True)
class Secrets:
    """Where the pages' secret files and certificates come from. Implements ``config.sources.Source``."""

    files: Mapping[str, str]
    directory: Path

    @property
    def pretends(self) -> bool:
        return False

    def from_environment(self, name: str) -> Obtained | Missing:
        return Missing(expected="a file", found=name)

    def from_file(self, path: str) -> Obtained | Missing:
        name = Path(path).name
        return Obtained(self.files.get(name, "SGVsbG8sIHRoaXMgaXMgYSByaW5nIGtleSBvZiAzMmI"))

    def locate(self, path: str) -> Located | Missing:
        return Located(str(self.directory / Path(path).name))


@dataclass
class System:
    """One page's installation against its double."""

    name: str
    settings: Settings
    server: AuthorizationServer
    standing: StandingGrants
    replica: Replica
    clock: ManualClock

    async def adopt(self, tokens: TokenSet, subject: str, origin: Origin) -> Grant:
        return await self.replica.broker.adopt(
            self.name, tokens, subject=subject, origin=origin, keep_until=None, ttl_seconds=FOREVER
        )

    async def token(self, grant_id: str) -> str:
        """A token, as a proxied call gets it."""
        result = await self.replica.broker.token(grant_id)
        assert isinstance(result, Token), result
        assert "Bearer" == result.token_type
        return result.access_token.reveal()

    async def grant(self, grant_id: str) -> Grant:
        grant = await self.replica.broker.grant(grant_id)
        assert grant is not None
        return grant

    def read(self, answer: Mapping[str, object]) -> TokenSet:
        """Read what an application got by itself."""
        outcome = read_token_response(
            status=200,
            body=json.dumps(answer).encode(),
            requested_at=self.clock.now(),
            rules=ResponseRules.of(self.server.options),
        )
        assert isinstance(outcome, TokenSet)
        return outcome


def page(name: str, block: int, double: Double) -> str:
    """A YAML block of a page, with the double in the vendor's place."""
    blocks: list[str] = re.findall(
        r"^```yaml\n(.*?)^```$", (PAGES / f"{name}.md").read_text("utf-8"), re.MULTILINE | re.DOTALL
    )
    yaml = re.sub(r"^ +base_url: .*\n", "", blocks[block], flags=re.MULTILINE)
    yaml = re.sub(r"^( +)(preset: .*)$", rf"\1\2\n\1base_url: {double.url}", yaml, flags=re.MULTILINE)
    missing = {"public_url": "https://app.example.com", "keys": "[{file: broker-key}]"}
    return yaml + "".join(f"{key}: {value}\n" for key, value in missing.items() if f"{key}:" not in yaml)


@asynccontextmanager
async def system(
    name: str,
    double: Double,
    directory: Path,
    files: Mapping[str, str],
    *,
    block: int = 0,
    changes: Mapping[str, str] | None = None,
) -> AsyncIterator[System]:
    """Run the engine as a page's configuration says."""
    clock = double.clock
    assert isinstance(clock, ManualClock)
    text = page(name, block, double)
    for old, new in (changes or {}).items():
        assert old in text
        text = text.replace(old, new)
    settings = loads(text.encode(), file=name, source=Secrets(files, directory))
    ((provider, options),) = settings.providers.items()
    server = AuthorizationServer(
        provider, options, outbound=Outbound(options.tls), clock=clock, randomness=SystemRandomness()
    )
    engine = Engine(directory, clock, SystemRandomness(), {provider: server})

    async def acquire(grant: Grant, audience: Audience) -> TokenOutcome:
        return await running.standing.acquire(grant, audience)

    replica = await engine.open(acquire=acquire)
    standing = StandingGrants(
        settings.grants,
        servers=engine.servers,
        vault=replica.vault,
        store=replica.store,
        clock=clock,
        randomness=SystemRandomness(),
    )
    running = System(provider, settings, server, standing, replica, clock)
    try:
        await standing.ensure()
        yield running
    finally:
        await engine.close()
        await server.close()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(1_800_000_000)


# --- Transmit Mosaic, backend API

MOSAIC_FILES = {"mosaic-client-secret": mosaic.CLIENT_SECRET}


async def test_mosaic_backend_from_login_to_logout(clock: ManualClock, tmp_path: Path) -> None:
    """Imported tokens are refreshed for a year by JSON and the client's token, and the session starts a new chain."""
    async with (
        mosaic.MosaicBackend(clock) as double,
        system("transmit-mosaic-backend", double, tmp_path, MOSAIC_FILES) as here,
    ):
        login = double.log_in("user-1")
        grant = await here.adopt(here.read(login), "user-1", Origin.IMPORTED)
        assert login["access_token"] == await here.token(grant.id)
        assert [] == double.log

        for day in range(1, 365, 7):
            clock.advance(7 * DAY)
            assert double.is_live(await here.token(grant.id)), day
        assert login["session_id"] == (await here.grant(grant.id)).session_id
        assert len(double.presented) == len(set(double.presented)) == double.calls("/cis/v1/auth/token/refresh")
        assert 0 == double.calls("/cis/v1/auth/session/authenticate")

        clock.advance(8 * DAY)  # the chain is more than a year old
        assert double.is_live(await here.token(grant.id))
        assert 1 == double.calls("/cis/v1/auth/session/authenticate")
        clock.advance(HOUR)
        assert double.is_live(await here.token(grant.id))  # and the new chain goes on
        assert 1 == double.calls("/cis/v1/auth/session/authenticate")
        assert 0 == double.revoked_families

        await here.server.end_provider_session(login["session_id"])
        assert {} == double.sessions
        clock.advance(15 * DAY)  # unused for longer than a refresh token lives, and the session is gone
        assert isinstance(await here.replica.broker.token(grant.id), LoginNeeded)


async def test_mosaic_backend_gets_one_client_token_an_hour(clock: ManualClock, tmp_path: Path) -> None:
    """The client's token is shared by all grants, renewed before it ends, and replaced at once if it is refused."""
    async with (
        mosaic.MosaicBackend(clock) as double,
        system("transmit-mosaic-backend", double, tmp_path, MOSAIC_FILES) as here,
    ):
        grants = [
            await here.adopt(here.read(double.log_in(f"user-{n}")), f"user-{n}", Origin.IMPORTED) for n in range(10)
        ]
        clock.advance(HOUR)
        for grant in grants:
            assert double.is_live(await here.token(grant.id))
        assert 1 == double.calls("/oidc/token")

        double.client_tokens.clear()
        clock.advance(HOUR / 2)
        held = await here.grant(grants[0].id)
        assert isinstance(await here.server.refresh(held, DEFAULT_AUDIENCE), TokenSet)
        assert 2 == double.calls("/oidc/token")
        assert 1 == sum(status == 401 for _, _, status in double.log)


async def test_mosaic_backend_with_a_wrong_secret_keeps_its_grants(
    clock: ManualClock, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong client secret ends nobody, presents no refresh token, and names the key to look at."""
    async with (
        mosaic.MosaicBackend(clock) as double,
        system("transmit-mosaic-backend", double, tmp_path, {"mosaic-client-secret": "wrong"}) as here,
    ):
        grant = await here.adopt(here.read(double.log_in("user-1")), "user-1", Origin.IMPORTED)
        clock.advance(HOUR)
        result = await here.replica.broker.token(grant.id)

        assert not isinstance(result, Token | LoginNeeded)
        assert [] == double.presented
        assert (await here.grant(grant.id)).ended is None
    assert "providers.mosaic.client_token" in {record.__dict__.get("look_at") for record in caplog.records}


# --- Transmit Mosaic, OIDC


async def log_in(here: System, double: mosaic.MosaicOidc | oracle.OracleIdcs) -> TokenSet:
    """Go through the login as browser and broker do."""
    verifier = "v" * 43
    url = await here.server.authorization_url(
        AuthorizationRequest(
            redirect_uri=double.redirect_uri, state="s", nonce="n", code_challenge=code_challenge(verifier)
        )
    )
    async with aiohttp.ClientSession() as browser, browser.get(url, allow_redirects=False) as answer:
        assert 302 == answer.status
        response = parse_qs(urlsplit(answer.headers["Location"]).query)
    await here.server.check_issuer(response.get("iss", [None])[0])
    tokens = await here.server.exchange_code(
        code=Secret(response["code"][0]), code_verifier=Secret(verifier), redirect_uri=double.redirect_uri
    )
    assert isinstance(tokens, TokenSet), tokens
    identity = await here.server.identify(
        id_token=tokens.id_token, access_token=tokens.access_token, nonce="n", parameters={}
    )
    assert ("alice", double.issuer) == (identity.subject, identity.issuer)
    return tokens


async def test_mosaic_oidc_from_login_to_chain_end(clock: ManualClock, tmp_path: Path) -> None:
    """Consent brings a refresh token, each use rotates it, and after 14 days the user logs in again."""
    async with (
        mosaic.MosaicOidc(clock) as double,
        system("transmit-mosaic", double, tmp_path, MOSAIC_FILES) as here,
    ):
        tokens = await log_in(here, double)
        assert tokens.refresh_token is not None
        grant = await here.adopt(tokens, "alice", Origin.BROWSER)
        for hour in range(2, 14 * 24, 2):
            clock.advance(2 * HOUR)
            assert double.is_live(await here.token(grant.id)), hour
        assert len(double.presented) == len(set(double.presented)) > 160
        assert 0 == double.revoked_families

        clock.advance(2 * HOUR)
        assert isinstance(await here.replica.broker.token(grant.id), LoginNeeded)
        again = await here.adopt(await log_in(here, double), "alice", Origin.BROWSER)
        assert double.is_live(await here.token(again.id))


# --- Apiax


@pytest.mark.parametrize("expiry", list(apiax.Expiry))
@pytest.mark.parametrize("rotates", [True, False])
@pytest.mark.parametrize("offline", [True, False])
async def test_apiax_from_password_to_chain_end(
    clock: ManualClock, tmp_path: Path, expiry: apiax.Expiry, rotates: bool, offline: bool
) -> None:
    """A password brings the first tokens; whatever the answers look like, they are refreshed, and begun anew after."""
    async with apiax.Apiax(clock) as double:
        double.expiry, double.rotates, double.offline = expiry, rotates, offline
        async with system("apiax", double, tmp_path, {"apiax-password": apiax.PASSWORD}) as here:
            grant_id = here.standing.ids["rules"]
            assert double.is_live(await here.token(grant_id))
            held = (await here.grant(grant_id)).tokens[DEFAULT_AUDIENCE.key]
            assert 1800 == round(held.expires_at - clock.now())

            for _ in range(20):
                clock.advance(1800)
                assert double.is_live(await here.token(grant_id))
            grant = await here.grant(grant_id)
            assert (20, 0) == (len(double.presented), double.revoked_families)
            assert (20 if rotates else 1) == len(set(double.presented))
            assert offline is (grant.refresh_expires_at is None)

            clock.advance(15 * DAY)  # no refresh token lives so long unused: the password begins anew
            assert double.is_live(await here.token(grant_id))
            assert await here.replica.broker.end(grant_id, EndReason.REVOKED) is not None


async def test_apiax_with_two_factors(clock: ManualClock, tmp_path: Path) -> None:
    """The second factor is an assertion, signed RS256, each with a jti of its own, and no client_id is sent."""
    async with (
        apiax.Apiax(clock, assertion_key=JWK) as double,
        system("apiax", double, tmp_path, {"apiax-key.pem": KEY_PEM}, block=1) as here,
    ):
        server = here.server
        standing = StandingGrantOptions(
            provider="apiax", type=GrantType.PASSWORD, username=apiax.USERNAME, password=Secret(apiax.PASSWORD)
        )
        first = await server.first_tokens(standing, DEFAULT_AUDIENCE)
        assert isinstance(first, TokenSet)
        grant = await here.adopt(first, apiax.USERNAME, Origin.IMPORTED)
        clock.advance(1800)
        assert double.is_live(await here.token(grant.id))
        held = (await here.grant(grant.id)).refresh_token
        assert held is not None
        await server.revoke(held)
        clock.advance(1800)
        assert isinstance(await here.replica.broker.token(grant.id), LoginNeeded)


async def test_apiax_with_a_wrong_password_says_so(clock: ManualClock, tmp_path: Path) -> None:
    """A standing grant with a wrong password waits for its operator, and doesn't hammer the server."""
    async with apiax.Apiax(clock) as double, system("apiax", double, tmp_path, {"apiax-password": "wrong"}) as here:
        grant_id = here.standing.ids["rules"]
        for _ in range(5):
            assert not isinstance(await here.replica.broker.token(grant_id), Token)
        assert (await here.grant(grant_id)).ended is None
        assert 1 == double.calls(f"{apiax.BASE}/token")


# --- Oracle IDCS


def certificate(directory: Path) -> x509.Certificate:
    """A certificate of the key, where the page says that it lies."""
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "broker")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + dt.timedelta(days=1))
        .sign(KEY, hashes.SHA256())
    )
    (directory / "idcs-cert.pem").write_bytes(made.public_bytes(serialization.Encoding.PEM))
    return made


ORACLE_FILES = {"idcs-client-secret": oracle.CLIENT_SECRET, "idcs-key.pem": KEY_PEM}


@pytest.mark.parametrize("rotates", [True, False])
async def test_oracle_from_user_assertion_to_chain_end(clock: ManualClock, tmp_path: Path, rotates: bool) -> None:
    """A user assertion brings the first tokens, Basic refreshes them, and a new assertion begins anew after 7 days."""
    async with oracle.OracleIdcs(clock, key=JWK) as double:
        double.rotates = rotates
        async with system("oracle-idcs", double, tmp_path, ORACLE_FILES) as here:
            grant_id = here.standing.ids["nightly-report"]
            first = await here.token(grant_id)
            assert "svc-report" == unverified_claim(first, "sub")
            for _ in range(24):
                clock.advance(HOUR)
                assert double.is_live(await here.token(grant_id))
            assert (24, 0) == (len(double.presented), double.revoked_families)
            assert rotates is (24 == len(set(double.presented)))

            clock.advance(8 * DAY)
            assert double.is_live(await here.token(grant_id))
            assert 25 == len(double.presented)  # the old one, which was refused, and then no other


@pytest.mark.parametrize("named", ["alias", "thumbprint"])
async def test_oracle_by_client_assertion(clock: ManualClock, tmp_path: Path, named: str) -> None:
    """The client is proved by an assertion whose header names the certificate, here, at the refresh and at logout."""
    thumbprint = base64url(certificate(tmp_path).fingerprint(hashes.SHA1()))  # noqa: S303 - it is what x5t means
    known = {"alias": "", "x5t": thumbprint} if named == "thumbprint" else {"alias": "broker-cert"}
    changes = {} if named == "thumbprint" else {"thumbprint: x5t": "key_id: broker-cert"}
    async with (
        oracle.OracleIdcs(clock, key=JWK, **known) as double,
        system("oracle-idcs", double, tmp_path, ORACLE_FILES, block=1, changes=changes) as here,
    ):
        grant = await here.adopt(await log_in(here, double), "alice", Origin.BROWSER)
        clock.advance(HOUR)
        assert double.is_live(await here.token(grant.id))
        held = (await here.grant(grant.id)).refresh_token
        assert held is not None
        await here.server.revoke(held)
        clock.advance(HOUR)
        assert isinstance(await here.replica.broker.token(grant.id), LoginNeeded)


async def test_oracle_gives_a_year_where_the_scope_asks_for_it(clock: ManualClock, tmp_path: Path) -> None:
    """A token of 31 556 952 seconds is used for that long, and not taken for an instant."""
    async with (
        oracle.OracleIdcs(clock, key=JWK) as double,
        system("oracle-idcs", double, tmp_path, ORACLE_FILES) as here,
    ):
        standing = StandingGrantOptions(
            provider="idcs",
            type=GrantType.JWT_BEARER,
            subject="svc",
            scope=f"{oracle.MYSCOPES} urn:opc:resource:expiry={oracle.YEAR}",
        )
        outcome = await here.server.first_tokens(standing, DEFAULT_AUDIENCE)

    assert isinstance(outcome, TokenSet)
    assert (oracle.YEAR, None) == (outcome.expires_at - clock.now(), outcome.refresh_token)


async def test_oracle_refuses_a_stranger(clock: ManualClock, tmp_path: Path) -> None:
    """A refresh token that the server doesn't know ends that grant, and nothing else does."""
    async with (
        oracle.OracleIdcs(clock, key=JWK) as double,
        system("oracle-idcs", double, tmp_path, ORACLE_FILES) as here,
    ):
        outcome = await here.server.refresh(
            Grant(
                id="0" * 32,
                provider="idcs",
                subject="x",
                generation=1,
                refresh_token=RefreshToken("unknown"),
                refreshed_at=0,
                chain_started_at=0,
            ),
            DEFAULT_AUDIENCE,
        )
    assert isinstance(outcome, TokenFailure)
    assert FailureKind.PERMANENT is outcome.kind
