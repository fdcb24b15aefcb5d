"""The acceptance table is held by tests, row by row, and the page in the docs says so truly."""

import pytest

from tests.support.security_rows import PAGE, holders, ids_of, page, read_table

FAMILIES = frozenset({"RT", "UP", "TK", "AD", "FT"})


def test_every_row_is_held_by_a_test_or_is_a_gap_with_a_reason() -> None:
    """No row is forgotten, and no gap stays on the list once a test holds its row."""
    table = read_table()
    held = holders(table)

    assert [] == [row for row in table.ids if row not in held and not table.gaps.get(row)]
    assert [] == [row for row in table.gaps if row in held]


def test_every_id_is_a_row() -> None:
    """A test that bears an id proves something that the table names; so do stars and gaps."""
    table = read_table()
    known = set(table.ids)

    assert len(known) == len(table.ids)
    assert set() == (set(holders(table)) | table.stars | set(table.gaps)) - known


def test_no_row_that_decides_a_release_is_a_gap() -> None:
    """The starred rows are thirty, and each has a test."""
    table = read_table()

    assert 30 == len(table.stars)
    assert set() == table.stars & set(table.gaps)


def test_the_page_in_the_docs_is_up_to_date() -> None:
    """`make docs` was run after the last test came or went."""
    assert PAGE.read_text() == page()


@pytest.mark.parametrize(
    ("test", "ids"),
    [
        ("rt_01_each_target_reaches_its_route", ["RT-01"]),
        ("up_05_06_what_passes", ["UP-05", "UP-06"]),
        ("tk_04_and_tk_08_each_answer", ["TK-04", "TK-08"]),
        ("ad_02_and_ft_18_every_problem", ["AD-02", "FT-18"]),
        ("rt_01_200_targets", ["RT-01"]),
        ("a_401_is_answered", []),
        ("is_42_the_answer", []),
    ],
)
def test_ids_are_read_from_names(test: str, ids: list[str]) -> None:
    """Several ids follow each other or are joined; other numbers are none."""
    assert ids == list(ids_of(test, FAMILIES))
