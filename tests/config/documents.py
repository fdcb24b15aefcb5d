"""Hypothesis strategies for documents that are almost configurations."""

from functools import cache
from typing import Any, assert_never

from hypothesis import strategies as st

from broker.config.scalars import Choice
from broker.config.settings import Settings
from broker.config.shapes import (
    Anything,
    FileName,
    ListOf,
    MapOf,
    Nullable,
    OneOf,
    OptionField,
    Options,
    OwnForm,
    ScalarOf,
    SecretText,
    Shape,
    fields_of,
)

WORDS = st.sampled_from(
    ["none", "user", "corp", "a", "/", "/api", "/API/x", "GET", "1s", "30d", "8h", "1KiB", "64KiB", "openid", "memory:",
     "https://a.example", "http://localhost:80", "http://127.0.0.1:1", "unix:/a", "127.0.0.1:0", "10.0.0.0/8", "redis://a:1/0",
     "redis+sentinel://a:1/m", "sqlite:///a.db", "a.example", "{claims.sub}", "X-User", "RS256", "*", "é", "\t", "%2e", "//"]
)  # fmt: skip
FITTING: dict[str, list[Any]] = {
    "public_url": ["https://a.example", "http://localhost:80"],
    "listen": ["127.0.0.1:0", "0.0.0.0:80"],
    "url": ["memory:", "sqlite:///a.db", "redis://a:1/0", "redis+sentinel://a:1/m", "rediss+cluster://a:1,b:1"],
    "path": ["/", "/api", "/api/x", "/API", "/b"],
    "host": ["a.example", "b.example"],
    "methods": [["GET"], ["GET", "POST"], ["POST"]],
    "upstream": ["http://127.0.0.1:1", "https://a.example", {"urls": ["https://a.example", "https://b.example"]}],
    "urls": [["https://a.example"], ["http://127.0.0.1:1", "http://127.0.0.1:2"], ["unix:/a"]],
    "token": ["none", "user", "user_or_none", {"grant": "a"}],
    "provider": ["corp"],
    "issuer": ["https://a.example"],
    "trusted_proxies": [["10.0.0.0/8"], ["10.0.0.0/8", "fd00::/8"]],
}
"""What usually stands under a key, so that many documents are good but for one thing."""
NAMES = st.sampled_from(["corp", "a", "corp", "b", "A/", "\t"])
SCALARS = st.one_of(
    WORDS,
    st.integers(-(10**17), 10**17),
    st.floats(-1e4, 1e4, width=16),
    st.booleans(),
    st.none(),
    st.text(st.characters(max_codepoint=0xD7FF), max_size=8),
)
GARBAGE = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3), max_leaves=5
)


def nearly(fitting: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what fits, and sometimes anything else."""
    return st.integers(0, 30).flatmap(lambda chance: GARBAGE if chance == 30 else fitting)


def documents_of(shape: Shape) -> st.SearchStrategy[Any]:
    """Return documents that look like *shape*."""
    match shape:
        case ScalarOf(Choice(words)):
            return nearly(st.sampled_from(sorted(words)))
        case ScalarOf() | Anything():
            return nearly(SCALARS)
        case SecretText():
            return nearly(st.sampled_from([{"env": "A"}, {"env": "B"}, {"file": "c"}, {"value": "d"}]))
        case FileName():
            return nearly(WORDS)
        case OwnForm():
            return nearly(WORDS | st.fixed_dictionaries({"grant": WORDS}))
        case ListOf(item):
            return nearly(st.lists(documents_of(item), min_size=1, max_size=3))
        case MapOf(value):
            return nearly(st.dictionaries(NAMES, documents_of(value), max_size=2))
        case Options(options):
            return nearly(options_documents(options))
        case Nullable(inner):
            return documents_of(inner)
        case OneOf(arms):
            return st.one_of(*map(documents_of, arms))
        case _:
            assert_never(shape)


def value_of(field: OptionField) -> st.SearchStrategy[Any]:
    """Return values for a field: mostly good ones, where we know some."""
    documents = documents_of(field.shape)
    if field.key not in FITTING:
        return documents
    good = st.sampled_from(FITTING[field.key])
    return st.integers(0, 9).flatmap(lambda chance: documents if chance == 9 else good)


@cache
def options_documents(options: type) -> st.SearchStrategy[dict[str, Any]]:
    """Return mappings with the required keys of an options class, and a few of the others."""
    fields = fields_of(options)
    required = {key: value_of(field) for key, field in fields.items() if field.required}
    optional = sorted(set(fields) - set(required))

    def with_keys(keys: list[str]) -> st.SearchStrategy[dict[str, Any]]:
        return st.fixed_dictionaries(required | {key: value_of(fields[key]) for key in keys})

    return (
        st.lists(st.sampled_from(optional), max_size=4, unique=True).flatmap(with_keys) if optional else with_keys([])
    )


DOCUMENTS = st.deferred(lambda: options_documents(Settings))
"""Mappings that resemble whole configurations."""
