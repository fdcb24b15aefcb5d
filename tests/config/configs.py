"""Configurations for tests: a smallest one, and pieces laid over it."""

from collections.abc import Mapping

from broker.config import Settings, loads
from broker.config.document import MappingNode, parse
from broker.config.sources import Source

BASE: Mapping[str, str] = {
    "public_url": "https://app.example.com",
    "keys": "[{env: KEY}]",
    "providers": "{corp: {issuer: 'https://idp.example.com', client_id: spa}}",
    "grants": "{nightly-report: {provider: corp, type: client_credentials}}",
    "routes": "[{path: /, upstream: 'http://127.0.0.1:3000', token: none}]",
}
"""The smallest configuration that shows each kind of name that others may refer to."""

ENVIRONMENT: Mapping[str, str] = {
    "KEY": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8",
    "KEY_2": "ICEiIyQlJicoKSorLC0uLzAxMjM0NTY3ODk6Ozw9Pj8",
    "KEY_PADDED": "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=",
    "SHORT_KEY": "AAECAwQFBgcICQoLDA0ODw",
    "DULL_KEY": "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    "EMPTY": "",
    "PASSWORD": "hunter2",
}


def over_base(fragment: str, *, own_providers: bool = False) -> str:
    """
    Return the fragment, and after it those lines of the base whose keys it lacks: its own lines keep their numbers.

    Args:
        fragment: Some of a configuration's top-level keys.
        own_providers: Whether a fragment with providers of its own does without the base's grant, which needs ``corp``.
    """
    tree = parse(fragment.encode(), file="fragment") if fragment.strip() else None
    given = set(tree.entries) if isinstance(tree, MappingNode) else set()
    if own_providers and "providers" in given:
        given.add("grants")
    return fragment + "".join(f"{key}: {value}\n" for key, value in BASE.items() if key not in given)


def settings_of(fragment: str, *, source: Source) -> Settings:
    """Load a fragment over the base."""
    return loads(over_base(fragment).encode(), file="c.yaml", source=source)
