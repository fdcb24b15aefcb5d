"""
The rows of the acceptance table, and the tests that hold them: prints docs/reference/security.md (``make docs``).

A test holds a row by bearing its id: ``test_rt_01_…``; several follow each other (``test_up_05_06_…``) or are joined by
"and" (``test_tk_04_and_tk_08_…``).
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/reference/security.md"
CORPUS = ROOT / "tests/corpus/security_rows.toml"

_HEAD = """\
# What the tests hold

The acceptance table: each row is a class of flaws or faults, taken from RFCs, from published advisories of comparable
products and from what stores, providers and networks do when they fail. A row names what must hold and the tests that
prove it; a row without a test says why. ★ marks those that decide a release.

Printed from `tests/corpus/security_rows.toml` and the names of the tests by `make docs`.
"""
_TEST = re.compile(r"^ *(?:async )?def test_(\w+)\(", re.MULTILINE)
_IDS = re.compile(r"([a-z]{2})((?:_\d\d(?!\d))+)(?:_and_|_|$)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """
    The table as it is written down.

    Attributes:
        sections: By title, the phrase of each row by its id.
        stars: The ids of the rows that decide a release.
        gaps: By id, why no test holds a row.
    """

    sections: Mapping[str, Mapping[str, str]]
    stars: frozenset[str]
    gaps: Mapping[str, str]

    @property
    def ids(self) -> list[str]:
        """Every id, in order."""
        return [row for rows in self.sections.values() for row in rows]


def read_table() -> Table:
    """Return the table."""
    document = tomllib.loads(CORPUS.read_text())
    return Table(sections=document["sections"], stars=frozenset(document["stars"].split()), gaps=document["gaps"])


def ids_of(test: str, families: frozenset[str]) -> Iterator[str]:
    """Yield the ids that a test bears in its name, which is given without its ``test_``."""
    position = 0
    while (match := _IDS.match(test, position)) is not None and match[1].upper() in families:
        for number in match[2].split("_")[1:]:
            yield f"{match[1].upper()}-{number}"
        position = match.end()


def holders(table: Table) -> dict[str, set[Path]]:
    """Return the test files by the ids that their tests bear, those included that are in no table."""
    families = frozenset(row[:2] for row in table.ids)
    found: dict[str, set[Path]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for name in _TEST.findall(path.read_text()):
            for row in ids_of(name, families):
                found.setdefault(row, set()).add(path.relative_to(ROOT))
    return found


def page() -> str:
    """Return the page of the reference."""
    table = read_table()
    held = holders(table)
    parts = [_HEAD]
    for title, rows in table.sections.items():
        lines = [f"## {title}", "", "| row | what must hold | held by |", "| --- | --- | --- |"]
        for row, phrase in rows.items():
            star = "★ " if row in table.stars else ""
            by = ", ".join(_link(path) for path in sorted(held.get(row, ())))
            lines.append(f"| {star}{row} | {phrase} | {by or 'gap: ' + table.gaps.get(row, 'no reason given')} |")
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _link(path: Path) -> str:
    short = path.relative_to("tests").with_suffix("").as_posix().replace("test_", "")
    return f"[{short}](../../{path.as_posix()})"


if __name__ == "__main__":
    PAGE.write_text(page())
