import time
import tomllib
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from broker.core.paths import read_target
from broker.core.routing import Route, RouteTable, TokenChoice, TokenKind
from broker.errors import AmbiguousPath, BadRequest, CallerError
from tests.support.path_readers import READERS, route_of

CORPUS = tomllib.loads((Path(__file__).parents[1] / "corpus/paths.toml").read_text())["case"]
ROUTES = ["/", "/api", "/api/private", "/files", "/admin/panel"]
HOST = b"app.example.com"
TABLE = RouteTable(
    (Route(path=path, upstream="http://127.0.0.1:1", token=TokenChoice(TokenKind.NONE)), path) for path in ROUTES
)


def decide(target: bytes) -> str:
    try:
        return TABLE.match(read_target(target, HOST), "app.example.com", "GET")
    except CallerError:
        return "refused"


def test_the_corpus_is_large_enough() -> None:
    """At least ninety cases, each once."""
    assert 90 <= len(CORPUS)
    assert len(CORPUS) == len({case["target"] for case in CORPUS})


@pytest.mark.parametrize("case", CORPUS, ids=[repr(case["target"]) for case in CORPUS])
def test_rt_01_each_target_reaches_its_route_or_none(case: dict[str, str]) -> None:
    """Each case of [PC] is refused or reaches the route that the corpus names."""
    assert case["route"] == decide(case["target"].encode("latin-1"))


@pytest.mark.parametrize("case", CORPUS, ids=[repr(case["target"]) for case in CORPUS])
def test_rt_01_every_reader_agrees_on_the_route(case: dict[str, str]) -> None:
    """Whatever is taken names the same route for every reader behind the broker."""
    target = case["target"].encode("latin-1")
    decision = decide(target)

    if decision != "refused":
        path = read_target(target, HOST).path
        assert {decision} == {route_of(reader(path), ROUTES) for reader in READERS}


PIECES = [
    b"/",
    b"//",
    b"api",
    b"private",
    b"files",
    b"API",
    b"admin",
    b"panel",
    b".",
    b"..",
    b"...",
    b"%2e",
    b"%2f",
    b"%5c",
    b";",
    b"%3b",
    b"%3f",
    b"%23",
    b"%25",
    b"%61",
    b"%70",
    b"%20",
    b" ",
    b"\\",
    b"%00",
    b"%c0%af",
    b"%EF%BC%8F",
    b"?",
    b"#",
    b"x",
    b"%EF%BC%8E",
    b"%E2%80%A4",
    b"=",
    b"@",
    b":",
    b"%",
    b"\xc3\xa9",
    b"%C3%A9",
    b"%2A",
    b"~",
]


@given(st.lists(st.sampled_from(PIECES), max_size=9).map(lambda pieces: b"/" + b"".join(pieces)))
@example(b"/%61pi;x/%70rivate.%20?")
def test_rt_01_random_targets_are_refused_or_read_alike(target: bytes) -> None:
    """No combination of tricks names one route to the broker and another one to a reader behind it."""
    decision = decide(target)

    if decision != "refused":
        path = read_target(target, HOST).path
        assert {decision} == {route_of(reader(path), ROUTES) for reader in READERS}
        assert target.startswith(path), "the bytes that were judged are the bytes that go on"


@given(st.binary(max_size=40))
def test_no_target_is_a_fault(target: bytes) -> None:
    """Any bytes are either a target or refused as the caller's fault."""
    try:
        read = read_target(target, HOST)
    except (AmbiguousPath, BadRequest):
        return
    assert target.endswith(read.path + read.query)


@pytest.mark.parametrize(
    "target",
    [
        b"/" + b"a." * 8000,
        b"/" + b"a/" * 8000 + b"%61",
        b"/" + b";x/" * 5000,
        b"/" + b"%20." * 4000 + b"x",
        b"/" * 16000,
    ],
    ids=["dots", "segments", "parameters", "spaces", "slashes"],
)
def test_a_long_target_is_judged_quickly(target: bytes) -> None:
    """No path of the largest size that is taken keeps the loop busy for long."""
    began = time.process_time()
    decide(target)

    assert 0.5 > time.process_time() - began
