"""What the broker takes of a token response."""

import json

import pytest

from broker.cli.admin_client import CommandRefused
from broker.cli.grants import read_tokens


@pytest.mark.parametrize(
    ("response", "names", "expected"),
    [
        ({"refresh_token": "r"}, {}, {"refresh_token": "r"}),
        (
            {"access_token": "a", "token_type": "Bearer", "expires_in": "300", "refresh_token": "r", "x": [1]},
            {},
            {"access_token": "a", "expires_in": 300.0, "refresh_token": "r"},
        ),
        (
            {"expires_at": "2027-01-15T08:00:00Z", "expires_in": "soon", "refresh_token": "r"},
            {},
            {"expires_at": "2027-01-15T08:00:00Z", "refresh_token": "r"},
        ),
        ({"session_id": "s", "id_token": None}, {}, {"session_id": "s"}),
        ({"data": {"rt": "r"}}, {"refresh_token": "data.rt"}, {"refresh_token": "r"}),
    ],
)
def test_a_response_is_read_as_its_provider_writes_it(
    response: dict[str, object], names: dict[str, str], expected: dict[str, object]
) -> None:
    """Known members are taken, by the names that they have there; unknown ones are ignored."""
    assert expected == read_tokens(json.dumps(response).encode(), names)


@pytest.mark.parametrize("document", [b"", b"[]", b"nonsense", b'{"access_token": "a"}', b'{"refresh_token": 1}'])
def test_what_could_not_live_is_refused(document: bytes) -> None:
    """An access token alone would be dead in minutes: that is said now, and shows none of it."""
    with pytest.raises(CommandRefused, match="token response") as refused:
        read_tokens(document, {})
    assert '"a"' not in str(refused.value)
