"""
Every YAML that users may copy from here loads.

A fenced block of Markdown whose language is ``yaml`` is a whole configuration if it has a ``public_url``. Otherwise it is
a piece, whose top-level keys are laid over the smallest configuration (tests/config/configs.py) with its provider ``corp``
and its grant ``nightly-report``, or with providers of its own. One of ``yaml foreign`` belongs to another program and isn't looked at.
"""

import re
from pathlib import Path

import pytest

from broker.config import PretendedSource, load, loads
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
    from broker.config.document import MappingNode, parse
    from broker.config.settings import Settings
    from broker.config.shapes import fields_of

    tree = parse((ROOT / "config.example.yaml").read_bytes(), file="config.example.yaml")
    assert isinstance(tree, MappingNode)
    assert set(fields_of(Settings)) == set(tree.entries)
