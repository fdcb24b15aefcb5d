"""Every way to break a configuration that we thought of, with the exact sentences that name it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from broker.config import ConfigErrors, HostSource, loads
from tests.config.configs import ENVIRONMENT, over_base

CORPUS = Path(__file__).parent.parent / "corpus" / "broken_configs.txt"
SOURCE = HostSource(ENVIRONMENT, Path("/nonexistent"))


def cases() -> Iterator[object]:
    for case in CORPUS.read_text().split("### ")[1:]:
        title, _, body = case.rstrip("\n").partition("\n")
        lines = body.split("\n")
        fragment = "".join(f"{line}\n" for line in lines if not line.startswith(">>> "))
        problems = [f"c.yaml:{line.removeprefix('>>> ')}" for line in lines if line.startswith(">>> ")]
        yield pytest.param(fragment, problems, id=title)


def whole(fragment: str) -> str:
    try:
        return over_base(fragment)
    except ConfigErrors:
        return fragment  # what isn't even YAML stands for itself


@pytest.mark.parametrize(("fragment", "problems"), list(cases()))
def test_ad_02_and_ft_18_every_problem_is_named_with_its_place(fragment: str, problems: list[str]) -> None:
    """A broken configuration is refused with one exact sentence for each problem, and none of them shows a secret."""
    with pytest.raises(ConfigErrors) as caught:
        loads(whole(fragment).encode(), file="c.yaml", source=SOURCE)
    assert problems == str(caught.value).split("\n")
    assert "hunter2" not in str(caught.value)


def test_the_corpus_is_large() -> None:
    """No case gets lost from the corpus."""
    assert len(list(cases())) >= 120
