"""The reference of the configuration."""

from pathlib import Path

from broker.config.reference import keys, reference

ROOT = Path(__file__).parents[2]


def test_the_page_in_the_docs_is_up_to_date() -> None:
    """`make docs` was run after the last change of an options class."""
    assert (ROOT / "docs/reference/configuration.md").read_text() == reference()


def test_every_key_has_a_heading() -> None:
    """Whoever searches for a key finds a heading of its own."""
    headings = [line.lstrip("# ").strip("`") for line in reference().splitlines() if line.startswith("##")]
    assert keys() == headings


def test_the_keys_are_a_public_surface() -> None:
    """A key that comes, goes or changes its name is seen in review: configurations of users depend on it."""
    assert (ROOT / "tests/golden/config_keys.txt").read_text().split() == keys()


def test_defaults_that_are_no_scalars_are_told() -> None:
    """A URL that might be a secret, and a mapping, have their default under their key."""
    sections = dict(section.split("`\n", 1) for section in reference().split("# `")[1:])
    assert "- Default: `sqlite:///var/lib/token-broker/broker.db`\n" in sections["store.url"]
    assert "- Default: `{requests_per_second: 5.0, burst: 100}`\n" in sections["login.client_rate_limit"]
    assert "- Default: `{requests_per_second: 200.0, burst: 1000}`\n" in sections["login.rate_limit"]
    assert "Default" not in sections["store"]  # its keys tell theirs
