"""What the broker takes of a token response."""

import json
from pathlib import Path

import pytest

from broker.cli.admin_client import CommandRefused
from broker.cli.grants import read_tokens, tokens_in


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


@pytest.mark.parametrize(
    ("response", "names", "said"),
    [
        ({"error": "invalid_client", "error_description": "r"}, {}, "an error of the authorization server: invalid_c"),
        ({"error": "invalid_client", "access_token": "a"}, {}, "an error of the authorization server: invalid_client"),
        ({"err": {"code": "e_1"}}, {"error": "err.code"}, "an error of the authorization server: e_1"),
        ({"error": "\x1b[31m"}, {}, "neither a refresh_token nor a session_id"),
        ({"error": "a secret in a sentence"}, {}, "neither a refresh_token nor a session_id"),
        ({"error": ["invalid_client"]}, {}, "neither a refresh_token nor a session_id"),
    ],
)
def test_an_error_of_the_server_is_named(response: dict[str, object], names: dict[str, str], said: str) -> None:
    """What was piped in is no token response: its word says why, and no other text of it is shown."""
    with pytest.raises(CommandRefused, match="the token response") as refused:
        read_tokens(json.dumps(response).encode(), names)
    assert said in str(refused.value)


def test_a_file_that_holds_nothing_to_take_is_named(tmp_path: Path) -> None:
    """One that isn't there, and one with something else in it."""
    path = tmp_path / "tokens.json"
    with pytest.raises(CommandRefused, match=f"^{path}: the token response can't be read: No such file"):
        tokens_in(path, {})
    path.write_text('{"error": "invalid_grant"}')
    with pytest.raises(CommandRefused, match=f"^{path}: the token response is an error .*: invalid_grant$"):
        tokens_in(path, {})
