"""Access tokens live as long as they should, and are forgotten afterwards."""

import pytest

from broker.demo.families import Families, Family, IssuedToken
from broker.demo.issuer import Issuer, TokenFormat
from broker.demo.signing import SigningKey
from broker.services.clock import SystemRandomness

KEY = SigningKey("ES256")


class StillClock:
    def __init__(self) -> None:
        self.time = 1000.0

    def now(self) -> float:
        return self.time

    def monotonic(self) -> float:
        return self.time


def issuer(clock: StillClock) -> Issuer:
    return Issuer(
        signing_key=KEY,
        clock=clock,
        randomness=SystemRandomness(),
        access_token_seconds=15,
        token_format=TokenFormat.OPAQUE,
    )


def family(clock: StillClock) -> tuple[Family, IssuedToken]:
    families = Families(clock=clock, randomness=SystemRandomness())
    return families.start(client_id="c", subject="ada", scope="openid a", sid="s", auth_time=1000)


def test_a_token_is_known_until_it_expires() -> None:
    """Alive to the last moment, dead from ``expires_at`` on, and forgotten a minute later."""
    clock = StillClock()
    issued = issuer(clock)
    token = issued.access_token(client_id="c", subject="ada", scope="a")
    clock.time = 1014.9
    assert issued.find(token) is not None
    clock.time = 1015.0
    assert issued.find(token) is None
    clock.time = 1100.0
    issued.access_token(client_id="c", subject="ada", scope="a")
    assert [1115.0] == [record.expires_at for record in issued._records.values()]


def test_a_revoked_family_takes_its_access_tokens_along() -> None:
    """All of them, or those of earlier generations; another family's stay."""
    clock = StillClock()
    issued = issuer(clock)
    (one, _), (other, _) = family(clock), family(clock)
    first = issued.access_token(client_id="c", subject="ada", scope="a", generation=1, family=one)
    second = issued.access_token(client_id="c", subject="ada", scope="a", generation=2, family=one)
    foreign = issued.access_token(client_id="c", subject="bob", scope="a", generation=1, family=other)
    issued.revoke_family(one.id, below_generation=2)
    assert [False, True, True] == [issued.find(token) is not None for token in (first, second, foreign)]
    issued.revoke_family(one.id)
    assert [False, True] == [issued.find(token) is not None for token in (second, foreign)]


@pytest.mark.parametrize(("scope", "has_id_token"), [("openid a", True), ("a", False)])
def test_an_id_token_comes_only_with_openid(scope: str, *, has_id_token: bool) -> None:
    """Without the scope openid the answer is plain OAuth 2.0."""
    clock = StillClock()
    one, refresh_token = family(clock)
    assert has_id_token is ("id_token" in issuer(clock).token_response(one, refresh_token, scope=scope))
