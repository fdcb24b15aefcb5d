"""What is wrong with a configuration."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.config.problems import ConfigErrors, Location, Notice, Problem, Report, quoted
from broker.errors import ConfigError


def problem(line: int, key: str = "a.b", hint: str = "") -> Problem:
    return Problem(at=Location("c.yaml", line, 3), key=key, expected="a text", found="a list", hint=hint)


def test_a_problem_is_one_sentence() -> None:
    """Place, key, what was expected, what was found, and what was probably meant."""
    assert "c.yaml:1:3: a.b: expected a text, found a list" == str(problem(1))
    assert "c.yaml:1:3: expected a text, found a list (did you mean x?)" == str(problem(1, "", "did you mean x?"))


def test_a_notice_is_one_sentence() -> None:
    """Place, key, and what the operator should know."""
    assert "c.yaml:1:3: a: open" == str(Notice(at=Location("c.yaml", 1, 3), key="a", text="open"))


def test_problems_are_told_in_the_order_of_the_file() -> None:
    """However they were found, problems are read from the top."""
    errors = ConfigErrors([problem(10), problem(9), problem(2)])
    assert [2, 9, 10] == [one.at.line for one in errors.problems]
    assert 3 == len(str(errors).splitlines())
    assert isinstance(errors, ConfigError)


def test_a_report_without_problems_raises_nothing() -> None:
    """Notices alone refuse nothing."""
    report, other = Report(), Report()
    report.notice(Location("c.yaml", 1, 1), "a", "open")
    report.raise_problems()
    other.refuse(Location("c.yaml", 1, 1), "a", expected="x", found="y")
    report.extend(other)
    with pytest.raises(ConfigErrors):
        report.raise_problems()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", '"a b"'),
        ("é", '"é"'),
        ('a"b\\', '"a\\"b\\\\"'),
        ("a\nb\x1b\x85\u2028", '"a\\nb\\u001b\\u0085\\u2028"'),
        ("https://me:hunter2@host/", '"https://…@host/"'),
        ("redis://:a/b@c@host", '"redis://…@host"'),
        ("x" * 65, '"' + "x" * 63 + '…"'),
        ("x" * 64, '"' + "x" * 64 + '"'),
    ],
)
def test_texts_are_quoted_for_one_line(text: str, shown: str) -> None:
    """A quoted text is bounded, on one line, and without what a URL may hide."""
    assert shown == quoted(text)


@given(st.text())
def test_no_text_forges_a_line(text: str) -> None:
    """Whatever is quoted can be printed in one line."""
    assert quoted(text).isprintable()
