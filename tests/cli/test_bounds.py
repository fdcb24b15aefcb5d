"""Bounds of a new handle on a command line."""

import argparse

import pytest

from broker.cli.admin_client import CommandRefused
from broker.cli.bounds import bounds_by_option, handle_bounds, instant


def given(**options: object) -> argparse.Namespace:
    return argparse.Namespace(**{"label": None, "route": None, "network": None, "ends_at": None, **options})


def test_only_what_is_given_is_sent() -> None:
    """An end at the beginning of Unix time is an end: dropped, it would make a handle that never ends."""
    assert {} == handle_bounds(given(label=""))
    assert {"routes": ["/a"], "ends_at": 0.0} == handle_bounds(given(route=["/a"], ends_at=0.0))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("networks[1]: expected a network", "--network 10.0.0.1/8: expected a network"),
        ("networks[7]: expected a network", "--network ::/0, 10.0.0.1/8: expected a network"),
        ("routes: expected a list", "--route /a\ufffd: expected a list"),
        ("ends_at: expected an instant to come", "--ends-at 1970-01-01T00:00:00Z: expected an instant to come"),
        ("label: expected a text", "--label -: expected a text"),
        ("provider: no such provider", "provider: no such provider"),
    ],
)
def test_a_refusal_names_the_option_and_its_value(said: str, expected: str) -> None:
    """The API names its member and the place in the list; whoever typed it knows the option alone."""
    options = given(route=["/a\x1b"], network=["::/0", "10.0.0.1/8"], ends_at=0.0)
    with pytest.raises(CommandRefused) as refused, bounds_by_option(options):
        raise CommandRefused(said)
    assert expected == str(refused.value)


def test_instants_are_shown_in_utc() -> None:
    """As RFC 3339 writes them; what never comes is a dash."""
    assert ("2026-11-18T00:26:40Z", "-") == (instant(1794961600), instant(None))
