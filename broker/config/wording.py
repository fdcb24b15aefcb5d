"""How places and values are put into words."""

from typing import assert_never

from broker.config.document import ListNode, MappingNode, Node, ScalarNode
from broker.config.problems import quoted

KeyPath = tuple[str | int, ...]
"""Where a value is: the keys and list positions from the top."""


def describe(node: Node, *, conceal: bool) -> str:
    """Return what *node* is, as a phrase; with *conceal*, without its value."""
    match node:
        case ListNode():
            return "a list" if node.items else "an empty list"
        case MappingNode():
            return "a mapping" if node.entries else "an empty mapping"
        case ScalarNode(value=None):
            return "null" if node.text else "nothing"
        case ScalarNode(value=str()):
            return "a text" if conceal else f"the text {quoted(node.text)}"
        case ScalarNode(value=bool()):
            return node.text
        case ScalarNode():
            return "a number" if conceal else f"the number {node.text}"
        case _:
            assert_never(node)


def show(path: KeyPath) -> str:
    """Return *path* as it is written in messages: ``routes[2].path``."""
    text = ""
    for part in path:
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            shown = quoted(part)
            text += "." * bool(text) + (part if shown == f'"{part}"' else shown)
    return text


def key_path(key: str) -> KeyPath:
    """Return the path of an ``OptionError``'s key within its class: ``timeout.connect``, ``hosts[1]``."""
    parts = (part for part in key.replace("[", ".").replace("]", "").split(".") if part)
    return tuple(int(part) if part.isdecimal() else part for part in parts)
