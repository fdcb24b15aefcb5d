"""What a new handle is bound to, as options of a command line."""

import argparse
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

from broker.cli.admin_client import CommandRefused, printable

_OPTIONS = {"label": "--label", "routes": "--route", "networks": "--network", "ends_at": "--ends-at"}
_REFUSAL = re.compile(r"(label|routes|networks|ends_at)(?:\[([0-9]{1,4})\])?: (.+)")


def handle_bounds(options: argparse.Namespace) -> dict[str, object]:
    """Return the members of a request that bind a new handle."""
    bounds = {"label": options.label, "routes": options.route, "networks": options.network, "ends_at": options.ends_at}
    return {name: value for name, value in bounds.items() if value is not None and value != ""}


@contextmanager
def bounds_by_option(options: argparse.Namespace) -> Iterator[None]:
    """Let a refusal of the admin API that names a bound's member name the option, and the value that it was given."""
    try:
        yield
    except CommandRefused as refusal:
        raise CommandRefused(_by_option(str(refusal), options)) from None


def _by_option(text: str, options: argparse.Namespace) -> str:
    refusal = _REFUSAL.fullmatch(text)
    if refusal is None:
        return text
    member, index, expected = refusal.groups()
    value = handle_bounds(options).get(member)
    if member == "ends_at":
        value = instant(value)
    elif isinstance(value, list):
        value = value[int(index)] if index is not None and int(index) < len(value) else ", ".join(value)
    return f"{_OPTIONS[member]} {printable(value)}: {expected}"


def instant(value: object) -> str:
    """Return Unix seconds as RFC 3339 writes them, in UTC."""
    if not isinstance(value, int | float):
        return "-"
    return datetime.fromtimestamp(value, UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
