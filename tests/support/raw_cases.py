"""Raw requests as tests/corpus/raw_requests.toml spells them."""

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

_REPEATED = re.compile(r"<(\d+)\*([^<>]*)>")


@dataclass(frozen=True, slots=True)
class RawCase:
    """One case of the corpus."""

    why: str
    send: bytes
    answers: list[int]
    up: list[str] | None
    closed: bool


def raw_bytes(text: str) -> bytes:
    """Return what a case's ``send`` means."""
    while (repeated := _REPEATED.search(text)) is not None:
        text = text[: repeated.start()] + int(repeated[1]) * repeated[2] + text[repeated.end() :]
    data = text.encode("latin-1").replace(b"\n", b"\r\n")
    return data.replace(b"<LF>", b"\n").replace(b"<CR>", b"\r").replace(b"<NUL>", b"\0")


def raw_cases() -> list[RawCase]:
    """Return the corpus."""
    cases = tomllib.loads((Path(__file__).parents[1] / "corpus/raw_requests.toml").read_text())["case"]
    return [
        RawCase(case["why"], raw_bytes(case["send"]), case["answers"], case.get("up"), case["closed"]) for case in cases
    ]
