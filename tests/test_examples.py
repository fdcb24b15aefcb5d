"""The configurations of other programs in examples/: well-formed, and what the how-tos show of them."""

import re
from pathlib import Path

import pytest
import yaml

from broker.core.forward_auth import Gateway

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
PAGES = sorted((ROOT / "docs/howto").glob("behind-*.md"))
_BLOCK = re.compile(r"^ *```(nginx|haproxy|lua|caddyfile|yaml foreign)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)


def lines(text: str) -> list[str]:
    """The lines without their indentation, which a list of a page changes."""
    return [line.strip() for line in text.strip().splitlines()]


@pytest.mark.parametrize("gateway", list(Gateway))
def test_every_gateway_has_its_example_and_its_page(gateway: Gateway) -> None:
    """For each kind that the configuration knows there is a directory, whose broker.yaml names it, and a how-to."""
    settings = yaml.safe_load((EXAMPLES / gateway / "broker.yaml").read_text())
    assert gateway == settings["forward_auth"]["gateway"]
    assert f"examples/{gateway}" in (ROOT / f"docs/howto/behind-{gateway}.md").read_text()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_pages_quote_the_examples(page: Path) -> None:
    """Each block of another program's configuration stands in a file of the same gateway, line for line."""
    directory = EXAMPLES / page.stem.removeprefix("behind-")
    files = [lines(file.read_text()) for file in directory.iterdir()]
    quoted = [lines(block) for _, block in _BLOCK.findall(page.read_text())]
    assert quoted
    for block in quoted:
        assert any(block == file[at : at + len(block)] for file in files for at in range(len(file) - len(block) + 1)), (
            block
        )


@pytest.mark.parametrize("path", sorted(EXAMPLES.rglob("*.yaml")), ids=lambda path: str(path.relative_to(EXAMPLES)))
def test_yaml_is_yaml(path: Path) -> None:
    """Files of programs that no test runs are at least well-formed."""
    assert isinstance(yaml.safe_load(path.read_text()), dict)


def test_hd_01_envoy_asks_with_every_field_and_fails_closed() -> None:
    """The broker sees all that Envoy would forward, and no answer is no."""
    listener = yaml.safe_load((EXAMPLES / "envoy/envoy.yaml").read_text())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    asking = manager["http_filters"][0]["typed_config"]

    assert asking["failure_mode_allow"] is False
    assert [{"safe_regex": {"regex": ".*"}}] == asking["allowed_headers"]["patterns"]
    assert (False, False) == (manager["normalize_path"], manager["merge_slashes"])
    assert ["x-gateway-secret"] == manager["route_config"]["virtual_hosts"][0]["request_headers_to_remove"]
