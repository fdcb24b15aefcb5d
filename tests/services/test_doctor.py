"""Probes of a real server that is set up well, and of what is set up wrongly."""

from typing import Any

import pytest
from aiohttp import web

from broker.core.client_auth import ClientAuthMethod
from broker.core.diagnosis import Finding, Verdict
from broker.core.provider import ProviderOptions, PushedAuthorization
from broker.core.secret import Secret
from broker.services.clock import Clock, SystemClock, SystemRandomness
from broker.services.doctor import Doctor
from broker.services.outbound import Outbound
from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET, LedgerServer
from tests.support.document_server import DocumentServer


class ClockThatIsOff(SystemClock):
    def now(self) -> float:
        return super().now() + 3600


async def examine(url: str, clock: Clock | None = None, **changes: Any) -> list[Finding]:
    options = ProviderOptions(
        **{
            "issuer": url,
            "client_id": CLIENT_ID,
            "client_secret": Secret(CLIENT_SECRET),
            "scope": "openid offline_access",
            **changes,
        }
    )
    outbound = Outbound()
    callback = "http://127.0.0.1/bff/callback/corp"
    doctor = Doctor(
        "corp",
        options,
        redirect_uri=callback,
        outbound=outbound,
        clock=clock or SystemClock(),
        randomness=SystemRandomness(),
    )
    try:
        return [finding async for finding in doctor.examine()]
    finally:
        await outbound.close()


def errors(findings: list[Finding]) -> list[str | None]:
    return [finding.key for finding in findings if finding.verdict is Verdict.ERROR]


async def test_what_is_set_up_well_is_good() -> None:
    """Issuer, clock, keys, client and redirect URI are good, and nothing at the server has ended or begun."""
    async with LedgerServer() as server:
        issued = server.issue("alice")
        findings = await examine(server.url)
        assert server.access_token(str(issued["access_token"])) is not None
        assert [None] == [family.revoked for family in server.ledger.families_of("alice")]
    assert [] == errors(findings)
    assert 5 == sum(finding.verdict is Verdict.GOOD for finding in findings)


async def test_a_wrong_secret_names_its_key() -> None:
    """The secret itself is in no finding."""
    async with LedgerServer() as server:
        findings = await examine(server.url, client_secret=Secret("wr0ng"))
    assert ["client_secret"] == errors(findings)
    assert "wr0ng" not in repr(findings)


async def test_a_wrong_issuer_gets_no_credentials() -> None:
    """A slash too many is named with what would fit, and nobody is asked for tokens."""
    async with LedgerServer() as server:
        findings = await examine(f"{server.url}/")
        assert 0 == server.ledger.count("refresh_token")
    assert ["issuer"] == errors(findings)
    assert {"issuer": server.url} == findings[-1].fitting


async def test_a_clock_that_is_off_is_named() -> None:
    """An hour is more than is borne."""
    async with LedgerServer() as server:
        findings = await examine(server.url, clock=ClockThatIsOff())
    assert ["clock_skew"] == errors(findings)


async def test_algorithms_that_the_server_has_no_keys_for_are_named() -> None:
    """By the metadata, and by the keys themselves."""
    async with LedgerServer() as server:
        findings = await examine(server.url, id_token_algorithms=("RS256",))
    assert ["id_token_algorithms"] * 2 == errors(findings)
    assert [{"id_token_algorithms": ["ES256"]}] == [finding.fitting for finding in findings if finding.fitting]


@pytest.mark.parametrize("endpoint", ["token_endpoint", "jwks_uri"])
async def test_an_endpoint_that_must_not_be_called_is_named(endpoint: str) -> None:
    """Plain http off loopback: nothing is sent at all."""
    async with LedgerServer() as server:
        changes: dict[str, Any] = {endpoint: "http://idp.example.com/x"}
        findings = await examine(server.url, **changes)
        assert 0 == server.ledger.count("refresh_token")
    assert [endpoint] == errors(findings)


async def test_a_server_that_is_not_there_is_named(unused_tcp_port: int) -> None:
    """The key that says where it is, whichever it is."""
    url = f"http://127.0.0.1:{unused_tcp_port}"
    assert ["issuer"] == errors(await examine(url))
    assert ["metadata_url"] == errors(await examine(url, metadata_url=f"{url}/m"))


async def test_without_discovery_the_client_is_examined_all_the_same() -> None:
    """Whoever names endpoints has no metadata to be compared with."""
    async with LedgerServer() as server:
        named: dict[str, Any] = {
            "discovery": False,
            "token_endpoint": f"{server.url}/token",
            "jwks_uri": f"{server.url}/jwks",
        }
        named["authorization_endpoint"] = f"{server.url}/authorize"
        assert [] == errors(await examine(server.url, **named))
        assert ["client_secret"] == errors(await examine(server.url, **named, client_secret=Secret("wrong")))


async def test_a_server_of_which_no_issuer_is_known_is_noted() -> None:
    """It may begin to say who it is whenever it likes, and then logins fail (RFC 9207)."""
    async with LedgerServer() as server:
        named: dict[str, Any] = {"discovery": False, "scope": "api", "token_endpoint": f"{server.url}/token"}
        there: dict[str, Any] = {"authorization_endpoint": f"{server.url}/authorize"}
        found = [
            [finding.key for finding in await examine(server.url, **named, **more) if finding.verdict is Verdict.NOTE]
            for more in ({"issuer": None, **there}, there, {"issuer": None})
        ]
    assert [["issuer"], [], []] == found


async def test_a_client_that_should_have_a_secret_is_told() -> None:
    """Without one it is the client_id that is refused."""
    async with LedgerServer() as server:
        findings = await examine(server.url, token_endpoint_auth_method=ClientAuthMethod.NONE, client_secret=None)
    assert ["client_id"] == errors(findings)


@pytest.mark.parametrize(
    ("taken", "configured"),
    [
        (ClientAuthMethod.CLIENT_SECRET_POST, ClientAuthMethod.CLIENT_SECRET_BASIC),
        (ClientAuthMethod.CLIENT_SECRET_BASIC, ClientAuthMethod.CLIENT_SECRET_POST),
    ],
)
async def test_a_secret_that_is_presented_in_the_wrong_way_is_told(
    taken: ClientAuthMethod, configured: ClientAuthMethod
) -> None:
    """A server that takes it one way only: the way that it takes is tried, and named."""

    async def token(request: web.Request) -> web.Response:
        posted = "client_secret" in await request.post()
        believed = posted if taken is ClientAuthMethod.CLIENT_SECRET_POST else "Authorization" in request.headers
        return web.json_response({"error": "invalid_grant" if believed else "invalid_client"}, status=400)

    app = web.Application()
    app.router.add_post("/token", token)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    changes: dict[str, Any] = {"discovery": False, "scope": "api"}
    try:
        findings = await examine(url, token_endpoint=f"{url}/token", token_endpoint_auth_method=configured, **changes)
    finally:
        await runner.cleanup()
    assert ["token_endpoint_auth_method"] == errors(findings)
    assert {"token_endpoint_auth_method": taken.value} == findings[-1].fitting


async def test_a_redirect_uri_that_is_not_registered_is_named() -> None:
    """The server sends nobody back, and the doctor says what to register there."""
    async with LedgerServer(redirect_uris=("https://elsewhere.example/",)) as server:
        findings = await examine(server.url)
    assert ["redirect_uri"] == errors(findings)
    assert "http://127.0.0.1/bff/callback/corp" in findings[-1].text


async def test_a_scope_that_is_not_known_is_named() -> None:
    """Although the configured authorization parameters would ask the user."""
    async with LedgerServer(scopes=frozenset({"openid"})) as server:
        assert ["scope"] == errors(await examine(server.url, authorization_parameters={"prompt": "consent"}))


async def test_a_pushed_request_that_is_refused_is_named() -> None:
    """Before any browser is sent anywhere."""
    async with DocumentServer() as server:
        server.answers["/token"] = (400, {"error": "invalid_grant"})
        server.answers["/par"] = (400, {"error": "invalid_redirect_uri"})
        findings = await examine(
            server.url,
            discovery=False,
            scope="api",
            token_endpoint=f"{server.url}/token",
            authorization_endpoint=f"{server.url}/authorize",
            pushed_authorization_request_endpoint=f"{server.url}/par",
            pushed_authorization=PushedAuthorization.ALWAYS,
        )
    assert ["redirect_uri"] == errors(findings)
    assert 0 == server.count("/authorize")
