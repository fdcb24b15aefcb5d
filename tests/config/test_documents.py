"""
Every YAML that users may copy from here loads.

A fenced block of Markdown whose language is ``yaml`` is a whole configuration if it has a ``public_url``. Otherwise it is
a piece, whose top-level keys are laid over the smallest configuration (tests/config/configs.py) with its provider ``corp``
and its grant ``nightly-report``, or with providers of its own. One of ``yaml foreign`` belongs to another program and isn't looked at.
"""

import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from pathlib import Path

import pytest

from broker.config import PretendedSource, load, loads
from broker.config.binding import Binder
from broker.config.document import ListNode, MappingNode, ScalarNode, parse
from broker.config.schema import default_of
from broker.config.settings import Settings
from broker.config.shapes import Options, fields_of
from broker.config.wording import KeyPath
from tests.config.configs import over_base

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
EXAMPLES = sorted(
    path
    for path in [ROOT / "config.example.yaml", *(ROOT / "examples").rglob("*.y*ml")]
    if re.search(r"^public_url:", path.read_text(), re.MULTILINE)
)
_FENCE = re.compile(r"^(?P<indent> *)```ya?ml(?P<kind>[^\n]*)\n(?P<text>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL)


def blocks() -> list[object]:
    """Return each YAML block of the documentation: its kind and its text, at the lines where it stands."""
    found: list[object] = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            block = re.sub(f"^{match['indent']}", "", match["text"], flags=re.MULTILINE)
            found.append(pytest.param(match["kind"].strip(), block, id=f"{page.relative_to(ROOT)}:{line}"))
    return found


@pytest.mark.parametrize(("kind", "text"), blocks())
def test_every_yaml_block_of_the_documentation_loads(kind: str, text: str) -> None:
    """What the documentation shows is what the broker takes."""
    assert kind in {"", "foreign"}
    if kind != "foreign":
        whole = text if re.search(r"^public_url:", text, re.MULTILINE) else over_base(text, own_providers=True)
        assert loads(whole.encode(), file="block", source=PretendedSource()).keys


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_example_loads(path: Path) -> None:
    """What is there to be copied works."""
    assert load(path, source=PretendedSource()).keys


def test_the_example_shows_every_section() -> None:
    """config.example.yaml has every top-level key."""
    tree = parse((ROOT / "config.example.yaml").read_bytes(), file="config.example.yaml")
    assert isinstance(tree, MappingNode)
    assert set(fields_of(Settings)) == set(tree.entries)


def lines(binder: Binder, path: KeyPath) -> Iterator[tuple[int, bool]]:
    """Yield the line of each key below *path*, and whether it has its default."""
    place = binder.places[path]
    match place.node:
        case ListNode(items=items):
            for index in range(len(items)):
                yield from lines(binder, (*path, index))
        case MappingNode(entries=entries):
            options: type = type(place.value)
            fields = fields_of(options) if is_dataclass(options) else {}
            for key, entry in entries.items():
                below = binder.places.get((*path, key))
                field = fields.get(key)
                # A section has no default of its own, but its keys have theirs.
                has_default = field is not None and default_of(field) is not None
                if below is not None and field is not None and has_default and below.value == field.default:
                    yield entry.key_at.line, True
                elif below is not None:
                    yield from lines(binder, (*path, key))
        case ScalarNode(at=at):
            yield at.line, False


def test_the_example_marks_its_defaults() -> None:
    """A line of config.example.yaml says `# default` if all its keys have theirs, and no other one does."""
    text = (ROOT / "config.example.yaml").read_text()
    binder = Binder(PretendedSource())
    binder.bind(parse(text.encode(), file="config.example.yaml"), Options(Settings))
    defaults: dict[int, bool] = {}
    for line, is_default in lines(binder, ()):
        defaults[line] = is_default and defaults.get(line, True)
    marked = {number for number, line in enumerate(text.splitlines(), 1) if re.search(r"[^#]+ # default(;|$)", line)}
    assert {line for line, is_default in defaults.items() if is_default} == marked
