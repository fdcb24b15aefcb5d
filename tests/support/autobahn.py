"""
The cases of the Autobahn test suite for an echo server, sections 1 to 10, with its numbers.

Where Autobahn lets a server choose (whether it still echoes what came before a violation), a case waits for the echo
before it goes on, so that there is one right answer. Sections 12 and 13, compression, are made by their test.

Source: RFC 6455 sections 5 to 8; https://github.com/crossbario/autobahn-testsuite (the list of cases).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tests.support.websocket_wire import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Pieces,
    Seen,
    Step,
    closing,
    frame,
)

Message = tuple[int, bytes]
"""An opcode and a payload."""

NORMAL, PROTOCOL_ERROR, INVALID_DATA = 1000, 1002, 1007


@dataclass(frozen=True, slots=True)
class EchoCase:
    """
    One case.

    Attributes:
        number: Autobahn's number.
        steps: What the client does.
        echoes: What the server sends before its Close frame.
        code: The code of its Close frame; None if that is empty.
    """

    number: str
    steps: Sequence[Step]
    echoes: Sequence[Message] = ()
    code: int | None = NORMAL


def _echoed(number: str, *messages: Message, size: int | None = None) -> EchoCase:
    """Each message comes back; *size* cuts what is sent into pieces."""
    data = b"".join(frame(*message) for message in messages)
    sent: Step = Pieces(data, size) if size else data
    back = [(PONG if opcode == PING else opcode, payload) for opcode, payload in messages if opcode != PONG]
    return EchoCase(number, [sent, Seen(len(back)), closing()], back)


def _parts(opcode: int, payloads: Sequence[bytes]) -> list[bytes]:
    """The frames of one message."""
    last = len(payloads) - 1
    return [frame(CONTINUATION if at else opcode, part, fin=at == last) for at, part in enumerate(payloads)]


def _fragmented(number: str, opcode: int, payloads: Sequence[bytes]) -> EchoCase:
    steps: list[Step] = [*_parts(opcode, payloads), Seen(1), closing()]
    return EchoCase(number, steps, [(opcode, b"".join(payloads))])


def _refused(number: str, *sent: bytes, code: int = PROTOCOL_ERROR, after: Message | None = None) -> EchoCase:
    """A violation, which comes after a message that is echoed, or at once."""
    if after is None:
        return EchoCase(number, [*sent], code=code)
    return EchoCase(number, [frame(*after), Seen(1), *sent], [after], code)


def framing() -> Iterator[EchoCase]:
    """Section 1."""
    for section, opcode, byte in ((1, TEXT, b"*"), (2, BINARY, b"\xfe")):
        for number, size in enumerate((0, 125, 126, 127, 128, 65535, 65536), 1):
            yield _echoed(f"1.{section}.{number}", (opcode, byte * size))
        yield _echoed(f"1.{section}.8", (opcode, byte * 65536), size=997)


def pings() -> Iterator[EchoCase]:
    """Section 2."""
    yield _echoed("2.1", (PING, b""))
    yield _echoed("2.2", (PING, b"Hello, world!"))
    yield _echoed("2.3", (PING, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff"))
    yield _echoed("2.4", (PING, b"\xfe" * 125))
    yield _refused("2.5", frame(PING, b"\xfe" * 126))
    yield _echoed("2.6", (PING, b"\xfe" * 125), size=1)
    yield _echoed("2.7", (PONG, b""))
    yield _echoed("2.8", (PONG, b"unsolicited pong payload"))
    yield _echoed("2.9", (PONG, b"unsolicited pong payload"), (PING, b"ping payload"))
    ten = [(PING, b"payload-%d" % number) for number in range(10)]
    yield _echoed("2.10", *ten)
    yield _echoed("2.11", *ten, size=1)


def reserved_bits() -> Iterator[EchoCase]:
    """Section 3."""
    hello = (TEXT, b"Hello, world!")
    yield _refused("3.1", frame(*hello, rsv=1))
    yield _refused("3.2", frame(*hello, rsv=2), frame(PING), after=hello)
    yield _refused("3.3", frame(*hello, rsv=3), frame(PING), after=hello)
    bad = frame(*hello, rsv=4) + frame(PING)
    yield EchoCase("3.4", [frame(*hello), Seen(1), Pieces(bad, 1)], [hello], PROTOCOL_ERROR)
    yield _refused("3.5", frame(BINARY, b"\x00\xff\xfe\xfd\xfc\xfb\x00\xff", rsv=5))
    yield _refused("3.6", frame(PING, hello[1], rsv=6))
    yield _refused("3.7", frame(CLOSE, rsv=7))


def opcodes() -> Iterator[EchoCase]:
    """Section 4."""
    hello = (TEXT, b"Hello, world!")
    for section, first in ((1, 3), (2, 11)):
        yield _refused(f"4.{section}.1", frame(first))
        yield _refused(f"4.{section}.2", frame(first + 1, b"reserved opcode payload"))
        for number in (3, 4, 5):
            yield _refused(f"4.{section}.{number}", frame(first + number - 1), frame(PING), after=hello)


def fragmentation() -> Iterator[EchoCase]:
    """Section 5."""
    one, two = b"fragment1", b"fragment2"
    whole = (TEXT, one + two)
    first, last = frame(TEXT, one, fin=False), frame(CONTINUATION, two)
    ping = frame(PING, b"ping payload")
    pong = (PONG, b"ping payload")
    yield _refused("5.1", frame(PING, one, fin=False), frame(CONTINUATION, two))
    yield _refused("5.2", frame(PONG, one, fin=False), frame(CONTINUATION, two))
    yield EchoCase("5.3", [first + last, Seen(1), closing()], [whole])
    yield EchoCase("5.4", [first, last, Seen(1), closing()], [whole])
    yield EchoCase("5.5", [Pieces(first + last, 1), Seen(1), closing()], [whole])
    yield EchoCase("5.6", [first + ping + last, Seen(2), closing()], [pong, whole])
    yield EchoCase("5.7", [first, ping, last, Seen(2), closing()], [pong, whole])
    yield EchoCase("5.8", [Pieces(first + ping + last, 1), Seen(2), closing()], [pong, whole])
    stray = frame(CONTINUATION, b"non-continuation payload")
    hello = frame(TEXT, b"Hello, world!")
    yield _refused("5.9", stray + hello)
    yield _refused("5.10", stray, hello)
    yield EchoCase("5.11", [Pieces(stray + hello, 1)], code=PROTOCOL_ERROR)
    open_stray = frame(CONTINUATION, b"non-continuation payload", fin=False)
    yield _refused("5.12", open_stray + hello)
    yield _refused("5.13", open_stray, hello)
    yield EchoCase("5.14", [Pieces(open_stray + hello, 1)], code=PROTOCOL_ERROR)
    more = frame(CONTINUATION, b"fragment3", fin=False)
    yield EchoCase("5.15", [first + last, Seen(1), more, frame(TEXT, b"fragment4")], [whole], PROTOCOL_ERROR)
    for number, fin in (("5.16", False), ("5.17", True)):
        yield _refused(number, frame(CONTINUATION, one, fin=fin), frame(TEXT, two, fin=False), frame(CONTINUATION, two))
    yield _refused("5.18", first, frame(TEXT, two))
    five = [b"fragment%d" % number for number in range(1, 6)]
    parts = _parts(TEXT, five)
    for number, size in (("5.19", None), ("5.20", 1)):
        data = [parts[0], parts[1], frame(PING, b"pongme 1!"), parts[2], parts[3], frame(PING, b"pongme 2!"), parts[4]]
        steps: list[Step] = [b"".join(data)] if size is None else [Pieces(each, size) for each in data]
        back = [(PONG, b"pongme 1!"), (PONG, b"pongme 2!"), (TEXT, b"".join(five))]
        yield EchoCase(number, [*steps, Seen(3), closing()], back)


VALID_UTF8 = (
    "Hello-µ@ßöäüàá-UTF-8!!", "κόσμε", "\x00", "\x7f", "\x80", "\u07ff", "\u0800", "\uffff", "\U00010000", "\ud7ff",
    "\ue000", "\ufffd", "\U0010ffff", "\ufffe", "\U0001fffe", "\U0001ffff", "\U0010fffe", "\u00e9\u20ac\U0001d11e",
)  # fmt: skip
"""Sections 6.2, 6.5, 6.7, 6.9, 6.11, 6.22 and 6.23."""

INVALID_UTF8 = tuple(
    bytes.fromhex(each)
    for each in (
        # 6.6: sequences that break off
        "ce", "cebae1", "cebae1bd", "cebae1bdb9cf", "cebae1bdb9cf83cebcce",
        # 6.8, 6.10: five and six bytes, and beyond U+10FFFF
        "f888808080", "fc8480808080", "f7bfbfbf", "fbbfbfbfbf", "fdbfbfbfbfbf", "f4908080",
        # 6.12, 6.13: stray continuations, lonely starts
        "80", "bf", "80bf", "80bf80bf80bf", "c020", "c020c120", "e020e120", "f020", "f820", "fc20",
        # 6.14, 6.15: sequences without their last byte
        "c0", "e080", "f08080", "f8808080", "fc80808080", "df", "efbf", "f7bfbf", "c0e080f08080",
        # 6.16: bytes that never occur
        "fe", "ff", "fefeffff",
        # 6.17 to 6.19: overlong
        "c0af", "e080af", "f08080af", "f8808080af", "fc80808080af", "c1bf", "e09fbf", "f08fbfbf", "c080", "e08080",
        # 6.20, 6.21: surrogates
        "eda080", "edadbf", "edae80", "edafbf", "edb080", "edbebf", "edbfbf", "eda080edb080", "edafbfedbfbf",
    )
)  # fmt: skip


def utf8() -> Iterator[EchoCase]:
    """Section 6."""
    yield _echoed("6.1.1", (TEXT, b""))
    yield _fragmented("6.1.2", TEXT, [b"", b"", b""])
    yield _fragmented("6.1.3", TEXT, [b"", b"middle frame payload", b""])
    text = VALID_UTF8[0].encode()
    yield _fragmented("6.2.2", TEXT, [text[:7], text[7:]])
    for number, each in enumerate(VALID_UTF8, 1):
        data = each.encode()
        yield _echoed(f"6.valid.{number}", (TEXT, data))
        yield _fragmented(f"6.valid.{number} by bytes", TEXT, [bytes([byte]) for byte in data])
    for number, data in enumerate(INVALID_UTF8, 1):
        yield _refused(f"6.invalid.{number}", frame(TEXT, data), code=INVALID_DATA)
        whole = [b"\xce\xba", *(bytes([byte]) for byte in data), b""]
        yield _refused(f"6.invalid.{number} by bytes", *_parts(TEXT, whole), code=INVALID_DATA)
    kosme = "κόσμε".encode()
    # The server must not wait for the rest, which never comes.
    for section, bad in (("6.4.1", b"\xf4\x90\x80\x80"), ("6.4.2", b"\xf4\x90")):
        sent = frame(TEXT, kosme, fin=False), frame(CONTINUATION, bad, fin=False)
        yield EchoCase(section, [*sent, Seen(1)], code=INVALID_DATA)


def closes() -> Iterator[EchoCase]:
    """Section 7."""
    hello = (TEXT, b"Hello World!")
    yield _echoed("7.1.1", hello)
    yield EchoCase("7.1.2", [closing(), closing()])
    yield EchoCase("7.1.3", [closing(), frame(PING)])
    yield EchoCase("7.1.4", [closing(), frame(*hello)])
    yield _refused("7.1.5", frame(TEXT, b"fragment1", fin=False), closing(), frame(CONTINUATION, b"fragment2"))
    big = (TEXT, b"BAsd7&jh23" * 26214)
    yield EchoCase("7.1.6", [frame(*big), frame(*hello), Seen(2), closing(), frame(PING)], [big, hello])
    yield EchoCase("7.3.1", [closing(None)], code=None)
    yield _refused("7.3.2", frame(CLOSE, b"a"))
    yield EchoCase("7.3.3", [closing()])
    yield EchoCase("7.3.4", [closing(1000, b"Hello World!")])
    yield EchoCase("7.3.5", [closing(1000, b"*" * 123)])
    yield _refused("7.3.6", closing(1000, b"*" * 124))
    yield _refused("7.5.1", closing(1000, b"\xce\xba\xe1\xbd\xb9\xcf\x83\xed\xa0\x80"), code=INVALID_DATA)
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield EchoCase(f"7.7 {code}", [closing(code)], code=code)
    for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535):
        yield _refused(f"7.9 {code}", closing(code))


def limits() -> Iterator[EchoCase]:
    """Section 9."""
    kib = 1 << 10
    for section, opcode in ((1, TEXT), (2, BINARY)):
        for number, size in enumerate((64, 256, 1024, 4096, 8192, 16384), 1):
            yield _echoed(f"9.{section}.{number}", (opcode, b"*" * size * kib))
    for section, opcode in ((3, TEXT), (4, BINARY)):
        for number, size in enumerate((256, 1024, 4096, 16 * kib, 64 * kib, 256 * kib, 1 << 20, 4 << 20), 2):
            yield _fragmented(f"9.{section}.{number}", opcode, [b"*" * size] * ((4 << 20) // size))
    for section, opcode in ((5, TEXT), (6, BINARY)):
        for number, size in enumerate((64, 128, 256, 512, 1024, 2048), 1):
            yield _echoed(f"9.{section}.{number}", (opcode, b"*" * (1 << 20)), size=size)
    for section, opcode in ((7, TEXT), (8, BINARY)):
        for number, size in enumerate((0, 16, 64, 256, 1024, 4096), 1):
            yield _round_trips(f"9.{section}.{number}", (opcode, b"*" * size), 200)


def _round_trips(number: str, message: Message, count: int) -> EchoCase:
    steps = [step for at in range(count) for step in (frame(*message), Seen(at + 1))]
    return EchoCase(number, [*steps, closing()], [message] * count)


def auto_fragmentation() -> Iterator[EchoCase]:
    """Section 10."""
    text = b"*" * 65536
    yield _fragmented("10.1.1", TEXT, [text[at : at + 1300] for at in range(0, len(text), 1300)])
