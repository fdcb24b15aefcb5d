"""Silence after logins is told, once."""

import logging

import pytest

from broker.services.unanswered import SUSPICIOUS, UnansweredLogins

CALLBACK = "https://app.example.com/bff/callback/corp"


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.__dict__["provider"] for record in caplog.records if record.message == "logins_stay_unanswered"]


def test_logins_that_nobody_answers_are_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """With the redirect URI that the server may not know, and where it comes from."""
    logins = UnansweredLogins()
    for _ in range(10 * SUSPICIOUS):
        logins.begun("corp", CALLBACK)
    (record,) = caplog.records
    assert (CALLBACK, "public_url") == (record.__dict__["redirect_uri"], record.__dict__["look_at"])


def test_an_answer_ends_the_suspicion_of_its_provider_alone(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever comes back proves that the server sends browsers back."""
    caplog.set_level(logging.WARNING)
    logins = UnansweredLogins()
    for _ in range(SUSPICIOUS - 1):
        logins.begun("corp", CALLBACK)
        logins.begun("other", CALLBACK)
    logins.answered("corp")
    for _ in range(SUSPICIOUS - 1):
        logins.begun("corp", CALLBACK)
    logins.begun("other", CALLBACK)
    assert ["other"] == told(caplog)
    logins.begun("corp", CALLBACK)
    assert ["other", "corp"] == told(caplog)
