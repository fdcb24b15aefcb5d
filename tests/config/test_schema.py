"""The JSON Schema of the configuration."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from jsonschema import Draft202012Validator

from broker.config import ConfigErrors, PretendedSource, loads
from broker.config.document import parse, plain
from broker.config.schema import schema, schema_text
from tests.config.configs import over_base
from tests.config.documents import DOCUMENTS

ROOT = Path(__file__).parents[2]
VALIDATOR = Draft202012Validator(schema())


def test_the_schema_is_one() -> None:
    """The schema is valid by the dialect that it names."""
    Draft202012Validator.check_schema(schema())


def test_the_file_in_the_docs_is_up_to_date() -> None:
    """`make docs` was run after the last change of an options class."""
    assert (ROOT / "docs/reference/config.schema.json").read_text() == schema_text()


def test_the_example_is_valid() -> None:
    """An editor finds no fault with config.example.yaml."""
    text = (ROOT / "config.example.yaml").read_bytes()
    assert [] == [error.message for error in VALIDATOR.iter_errors(plain(parse(text, file="config.example.yaml")))]


@pytest.mark.parametrize(
    "fragment",
    [
        "workerz: 2",
        "session: {idle_timeout: 30}",
        "keys: []",
        "keys: [hunter2]",
        "keys: [{env: A, file: B}]",
        "log: {access: 'true'}",
        "log: {level: loud}",
        "providers: {corp: {issuer: https://idp.example.com}}",
        "routes: [{path: /, upstream: 3000, token: none}]",
        "routes: [{path: /, upstream: http://127.0.0.1:3000, token: usr}]",
        "workers: 1.5",
    ],
)
def test_an_editor_finds_what_types_can_say(fragment: str) -> None:
    """Unknown keys, wrong types and unknown words are found while typing."""
    document = plain(parse(over_base(f"{fragment}\n").encode(), file="c"))
    assert not VALIDATOR.is_valid(document)


@given(DOCUMENTS)
def test_editors_accept_what_the_broker_accepts(document: dict[str, Any]) -> None:
    """Whatever loads is valid by the schema."""
    text = json.dumps(document).encode()
    try:
        loads(text, file="c", source=PretendedSource())
    except ConfigErrors:
        return
    assert [] == [error.message for error in VALIDATOR.iter_errors(plain(parse(text, file="c")))]


def test_the_base_of_the_tests_is_valid() -> None:
    """The smallest configuration is valid, so that the cases above fail for their own reason."""
    assert VALIDATOR.is_valid(plain(parse(over_base("").encode(), file="c")))
