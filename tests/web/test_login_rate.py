"""How often logins may be begun and answered."""

import pytest

from broker.core.forwarded import TrustedProxies
from broker.core.login import LoginOptions
from broker.core.routing import RateLimitOptions
from broker.errors import TooManyRequests
from broker.services.limits import own_rates
from broker.web.login_rate import LoginRate, client_of
from tests.web.conftest import SITE, Site
from tests.web.test_login import answered, arrive, begin

SLOW = LoginOptions(client_rate_limit=RateLimitOptions(requests_per_second=0.1, burst=2))


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
        ("2001:db8:1:2:ffff::1", "2001:db8:1:2::"),
        ("fe80::1%eth0", "fe80::"),
        ("", ""),
        ("unix", "unix"),
    ],
)
def test_ds_04_a_client_is_what_one_line_is_given(address: str, client: str) -> None:
    """Whoever has a network of addresses has one bucket for all of them."""
    assert client == client_of(address)


def test_ds_04_a_flood_from_one_client_leaves_the_others_their_share() -> None:
    """What a client asks beyond its rate is not counted against everybody's; both say when to come again."""
    rate = LoginRate(
        "login",
        LoginOptions(
            client_rate_limit=RateLimitOptions(requests_per_second=1, burst=2),
            rate_limit=RateLimitOptions(requests_per_second=0.5, burst=3),
        ),
        own_rates(lambda: 0.0),
    )
    refused: list[float | None] = []
    for client in ["192.0.2.1"] * 50 + ["192.0.2.2"] * 2:
        try:
            rate.count(client)
        except TooManyRequests as error:
            refused.append(error.retry_after_seconds)
    assert [1.0] * 48 + [2.0] == refused


async def test_lg_03_ds_04_logins_of_one_client_are_limited(site: Site) -> None:
    """The third login in a row is 429 with Retry-After, begins nothing, and goes through once the time is over."""
    await site.start(login=SLOW)
    browser = await site.browser()
    assert [303, 303, 429] == [(await begin(browser, provider="corp")).status for _ in range(3)]
    refused = await begin(browser, provider="corp")
    assert ("10", None) == (refused.header("Retry-After"), refused.header("Set-Cookie"))
    site.clock.advance(10)
    assert 303 == (await begin(browser, provider="corp")).status


async def test_ds_04_answers_are_counted_apart(site: Site) -> None:
    """Whoever may begin no more logins still ends the one that they have made; made-up answers are limited, too."""
    await site.start(login=SLOW)
    browser = await site.browser()
    callback = await answered(browser)
    await begin(browser, provider="corp")
    assert 429 == (await begin(browser, provider="corp")).status
    assert 200 == (await arrive(browser, callback)).status
    statuses = [(await arrive(browser, f"{SITE}/bff/callback/corp?state=x&code=y")).status for _ in range(3)]
    assert [400, 429, 429] == statuses


async def test_ds_04_the_true_client_is_counted(site: Site) -> None:
    """What a client claims about itself makes no new bucket; what a trusted proxy says does."""
    trusted = await site.start(login=SLOW, trusted_proxies=TrustedProxies(["127.0.0.0/8"]))
    direct = await site.start(login=SLOW)
    for process, expected in ((trusted, [303] * 5), (direct, [303, 303, 429, 429, 429])):
        browser = await site.browser(process)
        url = f"{SITE}/bff/login?provider=corp"
        pages = [
            await browser.go(url, follow=False, headers={"X-Forwarded-For": f"192.0.2.{number}"}) for number in range(5)
        ]
        assert expected == [page.status for page in pages]
