"""
Where a browser goes: the WHATWG URL algorithm, as far as it decides the origin and the path of a reference.

Held against node's ``URL`` for every case of ``tests/corpus/return_urls.toml``.

Source: https://url.spec.whatwg.org/#concept-basic-url-parser
"""

import re
from dataclasses import dataclass
from urllib.parse import quote, unquote

SPECIAL = {"http": 80, "https": 443, "ws": 80, "wss": 443, "ftp": 21}
_DOT = {".", "%2e"}
_DOT_DOT = {"..", ".%2e", "%2e.", "%2e%2e"}


@dataclass(frozen=True)
class Destination:
    """``origin`` is None where the URL names no host (javascript:, data:, file:)."""

    origin: str | None
    path: str = ""


def destination(reference: str, base: str) -> Destination | None:
    """
    Return where a browser on *base* (``https://host``, no path) goes when it follows *reference*.

    None: the reference is no URL, and the browser stays where it is.
    """
    reference = re.sub(r"^[\x00-\x20]+|[\x00-\x20]+$", "", reference)
    reference = re.sub(r"[\t\n\r]", "", reference)
    base_scheme = base.partition(":")[0]
    scheme = re.match(r"([A-Za-z][A-Za-z0-9+.-]*):", reference)
    if scheme is None:
        return _relative(reference, base)
    name, rest = scheme.group(1).lower(), reference[scheme.end() :]
    if name not in SPECIAL:
        return Destination(None)
    slashes = re.match(r"[/\\]*", rest)
    assert slashes is not None
    # "special relative or authority state": without two slashes, our own scheme is relative.
    if name == base_scheme and not rest.startswith("//"):
        return _relative(rest, base)
    return _authority(name, rest[slashes.end() :])


def _relative(reference: str, base: str) -> Destination | None:
    if re.match(r"[/\\]{2}", reference):
        return _authority(base.partition(":")[0], re.sub(r"^[/\\]+", "", reference))
    return Destination(base, _path(reference))


def _authority(scheme: str, rest: str) -> Destination | None:
    authority = re.split(r"[/\\?#]", rest, maxsplit=1)[0]
    host = authority.rpartition("@")[2]
    if not host or re.search(r"[\x00-\x20<>^|%]", re.sub(r"%[0-9A-Fa-f]{2}", "", host)):
        return None
    host = re.sub(rf":{SPECIAL[scheme]}$", "", unquote(host).lower())
    return Destination(f"{scheme}://{host}", _path(rest[len(authority) :]))


def _path(rest: str) -> str:
    segments: list[str] = []
    parts = re.split(r"[/\\]", re.split(r"[?#]", rest, maxsplit=1)[0])
    if not parts[0]:
        parts = parts[1:]
    for at, part in enumerate(parts):
        last = at == len(parts) - 1
        if part.lower() in _DOT_DOT:
            segments = segments[:-1] + ([""] if last else [])
        elif part.lower() in _DOT:
            segments += [""] if last else []
        else:
            segments.append(part)
    return "/" + quote("/".join(segments), safe="/!$&'()*+,;=:@%[]|\\")
