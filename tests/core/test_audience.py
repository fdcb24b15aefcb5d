"""For whom an access token is meant."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.options import OptionError

words = st.none() | st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=4)
audiences = st.builds(
    lambda resource, audience, scope, exchange: Audience(
        resource=resource, audience=audience, scope=scope, exchange=exchange and bool(resource or audience)
    ),
    words,
    words,
    words,
    st.booleans(),
)


@given(audiences, audiences)
def test_rt_09_only_equal_audiences_share_a_key(one: Audience, other: Audience) -> None:
    """Tokens are cached by key, so two audiences with one key would share their tokens."""
    assert (one == other) == (one.key == other.key)


def test_the_grants_own_audience_has_the_empty_key() -> None:
    """What a login brings is found under it."""
    assert "" == DEFAULT_AUDIENCE.key == Audience(scope="").key


@pytest.mark.parametrize("values", [{}, {"scope": "a"}, {"resource": ""}])
def test_an_exchange_needs_a_target(values: dict[str, Any]) -> None:
    """Without a resource or an audience there is nothing to exchange for (RFC 8693 section 2.1)."""
    with pytest.raises(OptionError) as refusal:
        Audience(exchange=True, **values)

    assert "exchange" == refusal.value.key
