"""Reading back a dataclass whose members were stored by name, perhaps by a later release that knows more of them."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar, cast

T = TypeVar("T")


def of_known_members(kind: Callable[..., T], members: Mapping[str, Any]) -> T:
    """
    Return the *kind*, a dataclass, that has those of *members* that it knows. The others are left out.

    That is for records whose version says that they can be: what an older release must not leave out needs a new one.

    Raises:
        TypeError: If one that it needs is missing.
    """
    try:
        return kind(**members)
    except TypeError:  # there are others only while releases are mixed, so nobody looks for them before
        known = {field.name for field in fields(cast("Any", kind)) if field.init}
        return kind(**{name: value for name, value in members.items() if name in known})
