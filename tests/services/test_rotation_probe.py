"""What becomes of refresh tokens, tried out with a grant that nobody needs."""

from typing import Any

import pytest

from broker.core.audience import Audience
from broker.core.diagnosis import Finding, Verdict
from broker.core.provider import Rotation
from broker.core.secret import RefreshToken, Secret
from broker.services.clock import SystemClock
from broker.services.rotation_probe import RotationProbe
from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET, LedgerServer
from tests.support.providers import authorization_server


async def probe(server: LedgerServer, *audiences: Audience, token: str | None = None, **options: Any) -> list[Finding]:
    refresh_token = RefreshToken(token or str(server.issue("nobody")["refresh_token"]))
    configured = {"issuer": server.url, "client_id": CLIENT_ID, "client_secret": Secret(CLIENT_SECRET), **options}
    async with authorization_server(clock=SystemClock(), **configured) as provider:
        return [each async for each in RotationProbe(provider, refresh_token, clock=SystemClock()).examine(audiences)]


@pytest.mark.parametrize(
    ("behaviour", "configured", "verdict", "fitting"),
    [
        ({"rotation": Rotation.STRICT}, Rotation.STRICT, Verdict.GOOD, {}),
        ({"rotation": Rotation.STRICT}, Rotation.NONE, Verdict.ERROR, {"rotation": "strict"}),
        ({"rotation": Rotation.STRICT}, Rotation.GRACE, Verdict.ERROR, {"rotation": "strict"}),
        ({"rotation": Rotation.GRACE}, Rotation.GRACE, Verdict.GOOD, {}),
        ({"rotation": Rotation.GRACE}, Rotation.STRICT, Verdict.NOTE, {"rotation": "grace"}),
        ({"omit_at_refresh": frozenset({"refresh_token"})}, Rotation.STRICT, Verdict.NOTE, {"rotation": "none"}),
        ({"omit_at_refresh": frozenset({"refresh_token"})}, Rotation.NONE, Verdict.GOOD, {}),
    ],
)
async def test_the_rotation_that_fits_is_found(
    behaviour: dict[str, Any], configured: Rotation, verdict: Verdict, fitting: dict[str, str]
) -> None:
    """And the grant has ended afterwards, while others go on."""
    async with LedgerServer(**behaviour) as server:
        server.issue("alice")
        findings = await probe(server, rotation=configured)
        (alice,) = server.ledger.families_of("alice")
        (nobody,) = server.ledger.families_of("nobody")
    assert (verdict, fitting) == (findings[-1].verdict, findings[-1].fitting)
    assert (None, True) == (alice.revoked, nobody.revoked is not None)


async def test_what_comes_along_is_told() -> None:
    """As far as the server says it."""
    async with LedgerServer(access_token_seconds=90.0, reports_refresh_expiry=True) as server:
        talkative, *_ = await probe(server)
        server.configure(reports_refresh_expiry=False, omit_at_refresh=frozenset({"id_token", "refresh_token"}))
        terse, *_ = await probe(server)
    brings = "a refresh brings an access token for 90 s"
    assert f"{brings}, a new refresh token, an id token, the end of the refresh token" == talkative.text
    assert brings == terse.text


async def test_each_audience_of_the_routes_is_tried() -> None:
    """One that the server doesn't know is named by its key; the others are good, exchanged ones too."""
    good, exchanged = Audience(resource="urn:orders"), Audience(audience="urn:orders", exchange=True)
    async with LedgerServer(audiences=frozenset({"urn:orders"})) as server:
        findings = await probe(server, good, exchanged, Audience(resource="urn:others"))
    assert [
        (Verdict.GOOD, None, "the server gives tokens for urn:orders"),
        (Verdict.GOOD, None, "the server gives tokens for urn:orders"),
        (Verdict.ERROR, "audience", "there is no token for urn:others: invalid_target"),
    ] == [(each.verdict, each.key, each.text) for each in findings[1:4]]


async def test_a_grant_that_is_not_one_ends_the_experiment() -> None:
    """Nothing can be tried out with it."""
    async with LedgerServer() as server:
        (finding,) = await probe(server, token="never-was")
    assert (Verdict.ERROR, "the test grant can't be refreshed: invalid_grant") == (finding.verdict, finding.text)


async def test_an_answer_that_is_no_verdict_is_not_taken_for_one() -> None:
    """A server that stumbles in the middle has shown nothing."""
    async with LedgerServer() as server:
        server.fail_next(status=503, skip=1)
        findings = await probe(server)
    assert Verdict.ERROR is findings[-1].verdict
    assert findings[-1].text.startswith("what becomes of a former refresh token can't be told")
