"""A grant: what a first token response makes, and its stored form."""

import json
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.grant import (
    FORMAT,
    Ended,
    EndReason,
    Failure,
    Grant,
    HeldToken,
    Intent,
    Origin,
    UnknownFormat,
    decode,
    encode,
    is_empty,
    new_grant,
)
from broker.core.oauth import FailureKind
from broker.core.secret import AccessToken, IdToken, RefreshToken
from tests.support.grants import LIFE, NOW, answer, grant, held

instants = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text()
keys = st.text(max_size=20)
grants = st.builds(
    Grant,
    id=texts,
    provider=texts,
    subject=texts,
    origin=st.sampled_from(Origin),
    generation=st.integers(1),
    refresh_token=st.none() | st.builds(RefreshToken, texts),
    refresh_expires_at=st.none() | instants,
    refreshed_at=instants,
    tokens=st.dictionaries(
        keys,
        st.builds(
            HeldToken,
            access_token=st.builds(AccessToken, texts),
            token_type=texts,
            issued_at=instants,
            expires_at=instants,
            scope=st.none() | texts,
            generation=st.integers(1),
        ),
        max_size=3,
    ),
    id_token=st.none() | st.builds(IdToken, texts),
    scope=st.none() | texts,
    session_id=st.none() | texts,
    chain_started_at=instants,
    chain_length=st.integers(1),
    first_link=st.integers(1),
    keep_until=st.none() | instants,
    intent=st.none()
    | st.builds(
        Intent,
        attempt=texts,
        owner=texts,
        started_at=instants,
        presented_at=instants,
        awaited=st.booleans(),
        carried=st.booleans(),
    ),
    failures=st.dictionaries(
        keys,
        st.builds(
            Failure,
            kind=st.sampled_from(FailureKind),
            count=st.integers(1),
            at=instants,
            retry_at=instants,
            error=st.none() | texts,
        ),
        max_size=3,
    ),
    ended=st.none() | st.builds(Ended, reason=st.sampled_from(EndReason), at=instants),
    dpop_key=st.none() | st.builds(RefreshToken, texts),
    stands_for=st.none() | texts,
    handed_over=st.none() | texts,
)


@given(grants)
def test_a_grant_survives_its_stored_form(before: Grant) -> None:
    """What is read is what was written, each value of the type that it had."""
    after = decode(encode(before))

    assert before == after
    assert type(before.origin) is type(after.origin)
    assert [type(each.kind) for each in before.failures.values()] == [
        type(each.kind) for each in after.failures.values()
    ]


def test_every_field_is_stored() -> None:
    """No field is forgotten by the stored form."""
    assert {field.name for field in fields(Grant)} | {"v"} == set(json.loads(encode(grant())))


def test_ft_14_what_an_earlier_release_wrote_is_read() -> None:
    """It knew no chain but the first, no grant that stands for another, and not what was handed over."""
    document = json.loads(encode(grant()))
    del document["first_link"], document["stands_for"], document["handed_over"]

    assert grant() == decode(json.dumps(document).encode())


def test_ft_14_members_that_a_later_release_added_are_left_out() -> None:
    """As long as the format is the same, wherever in the record they are."""
    before = grant(
        intent=Intent(attempt="a", owner="o", started_at=NOW, presented_at=NOW),
        failures={"": Failure(kind=FailureKind.TRANSIENT, count=1, at=NOW, retry_at=NOW + 1)},
        ended=Ended(reason=EndReason.REVOKED, at=NOW),
    )
    document = json.loads(encode(before))
    for place in (document, document["tokens"][""], document["intent"], document["failures"][""], document["ended"]):
        place["added"] = {"by": "a later release"}

    assert before == decode(json.dumps(document).encode())


@pytest.mark.parametrize("version", [FORMAT + 1, 0, None, "1"])
def test_ft_14_a_later_format_is_refused(version: Any) -> None:
    """A release that doesn't know a record's format doesn't guess."""
    document = {**json.loads(encode(grant())), "v": version}

    with pytest.raises(UnknownFormat):
        decode(json.dumps(document).encode())


def test_lk_01_a_grant_shows_no_secret() -> None:
    """Neither repr nor str shows a token, not of the tokens within either."""
    shown = repr(grant(id_token=IdToken("id-1"), dpop_key=RefreshToken("key-1")))

    assert not [secret for secret in ("rt-1", "at-1", "id-1", "key-1") if secret in shown]


def test_a_first_answer_makes_a_whole_grant() -> None:
    """Everything that it says is kept, as the first generation and the first link of the chain."""
    first = answer(
        1, refresh_expires_at=NOW + 9, id_token=IdToken("id"), scope="a b", session_id="s", requested_at=NOW, life=LIFE
    )

    made = new_grant(
        first,
        grant_id="0" * 32,
        provider="corp",
        subject="alice",
        origin=Origin.IMPORTED,
        keep_until=NOW + 99,
        dpop_key=RefreshToken("{}"),
    )

    assert made == grant(
        origin=Origin.IMPORTED,
        refresh_token=RefreshToken("rt-1"),
        refresh_expires_at=NOW + 9,
        tokens={"": replace(held(), scope="a b")},
        id_token=IdToken("id"),
        scope="a b",
        session_id="s",
        keep_until=NOW + 99,
        dpop_key=RefreshToken("{}"),
    )


def test_a_grant_is_empty_until_something_came() -> None:
    """What it had and has lost, by its end, is another thing."""
    empty = grant(generation=0, refresh_token=None, tokens={})
    assert is_empty(empty)
    assert is_empty(replace(empty, generation=3))
    for filled in ({"refresh_token": RefreshToken("r")}, {"tokens": {"": held()}}, {"session_id": "s"}):
        assert not is_empty(replace(empty, **filled))
    assert not is_empty(replace(empty, ended=Ended(reason=EndReason.REVOKED, at=NOW)))
