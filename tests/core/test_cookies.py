import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.core.cookies import (
    CookieNames,
    expire_cookie,
    read_cookie,
    read_cookies,
    set_cookie,
    set_cookie_name,
    strip_cookies,
)
from broker.core.session import SameSite
from broker.errors import BadRequest

NAMES = CookieNames.for_public_url("https://app.example.com")
NAME = NAMES.session.encode()
OURS = b"o" * 43
EVIL = b"e" * 43
CORPUS = tomllib.loads((Path(__file__).parents[1] / "corpus/cookies.toml").read_text())["case"]


def as_bytes(text: str) -> bytes:
    spelled = text.replace("<name>", NAMES.session).replace("<ours>", OURS.decode()).replace("<evil>", EVIL.decode())
    return spelled.encode("latin-1")


@pytest.mark.parametrize("case", CORPUS, ids=[case["why"] for case in CORPUS])
def test_se_02_only_the_exact_cookie_is_read(case: dict[str, str | list[str]]) -> None:
    """Each case reads our cookie, or none, or is refused; never does another cookie pass for ours."""
    lines = [as_bytes(line) for line in case["cookie"]]

    if case.get("read") == "refused":
        with pytest.raises(BadRequest):
            read_cookie(lines, NAME)
    else:
        expected = case.get("read")
        assert (as_bytes(expected) if isinstance(expected, str) else None) == read_cookie(lines, NAME)


@pytest.mark.parametrize("case", CORPUS, ids=[case["why"] for case in CORPUS])
def test_hd_05_our_cookies_and_their_twins_stay_here(case: dict[str, list[str]]) -> None:
    """What goes upstream holds no cookie that any reader could take for ours, and the others byte for byte."""
    lines = [as_bytes(line) for line in case["cookie"]]

    assert [as_bytes(line) for line in case.get("upstream", case["cookie"])] == strip_cookies(lines, NAMES.matcher())


def test_se_02_a_huge_header_is_read_in_one_pass() -> None:
    """Ten thousand pairs hide nothing, and our cookie is still found once."""
    many = b"; ".join(b"c%d=%d" % (at, at) for at in range(10_000))

    assert OURS == read_cookie([many + b"; " + NAME + b"=" + OURS], NAME)
    assert [many] == strip_cookies([many + b"; " + NAME + b"=" + OURS], NAMES.matcher())


def test_the_names_on_plain_text_loopback_have_no_prefix() -> None:
    """Browsers refuse the prefix without Secure, so it is left out where Secure can't be."""
    names = CookieNames.for_public_url("http://localhost:8080")

    assert ("session", "login-0123abcd", False) == (names.session, names.login("0123abcd"), names.secure)
    assert names.matcher()(b"session")
    assert names.matcher()(b"login-0123abcd")
    assert not names.matcher()(b"login-hint")


def test_login_cookies_are_found_by_their_name() -> None:
    """All cookies of a pattern come in order, duplicates included."""
    pattern = re.compile(rb"__Host-Http-login-[0-9a-f]{8}")
    lines = [b"a=1; __Host-Http-login-00000000=x", b"__Host-Http-login-11111111 = y; __Host-Http-login-00000000=z"]

    assert [
        (b"__Host-Http-login-00000000", b"x"),
        (b"__Host-Http-login-11111111", b"y"),
        (b"__Host-Http-login-00000000", b"z"),
    ] == read_cookies(lines, pattern)


def test_se_04_a_cookie_has_every_attribute_and_no_domain() -> None:
    """Secure, HttpOnly, Path=/ and SameSite, whatever else."""
    assert "__Host-Http-session=abc; Path=/; Secure; HttpOnly; SameSite=Strict" == set_cookie(
        NAMES.session, "abc", secure=True, same_site=SameSite.STRICT
    )
    assert "login-0=abc; Max-Age=60; Path=/; HttpOnly; SameSite=Lax" == set_cookie(
        "login-0", "abc", secure=False, same_site=SameSite.LAX, max_age_seconds=60
    )


def test_se_04_a_deletion_repeats_the_attributes() -> None:
    """A ``__Host-`` cookie is deleted only by a line that could have set it (M8)."""
    assert (
        "__Host-Http-session=; Max-Age=0; Expires=Thu, 01 Jan 1970 00:00:00 GMT; Path=/; Secure; HttpOnly; SameSite=Lax"
        == expire_cookie(NAMES.session, secure=True, same_site=SameSite.LAX)
    )


@pytest.mark.parametrize("value", ["a b", "a;b", 'a"b', "a,b", "a\r\nb", "é", "x" * 4096])
def test_a_value_that_browsers_would_change_or_drop_is_refused(value: str) -> None:
    """Nothing is quoted, cut or dropped in silence."""
    with pytest.raises(ValueError, match="cookie"):
        set_cookie(NAMES.session, value, secure=True, same_site=SameSite.LAX)


@pytest.mark.parametrize(
    ("line", "ours"),
    [
        (b"__Host-Http-session=x; Path=/", True),
        (b"__host-http-SESSION=x; Path=/", True),
        (b" __Host-Http-session =x", True),
        (b"__Host-Http-login-0123abcd=; Max-Age=0", True),
        (b"__Host-Http-session", True),
        (b"=__Host-Http-session=x", True),
        (b" = __Host-Http-session=x; Path=/", True),
        (b"=a=__Host-Http-session", False),
        (b"session=x; Path=/", False),
        (b"a=__Host-Http-session=x", False),
    ],
)
def test_the_name_in_a_set_cookie_line_is_judged_alike(line: bytes, *, ours: bool) -> None:
    """An upstream can set none of our cookies in any spelling (SECURITY UP-05)."""
    assert ours == NAMES.matcher()(set_cookie_name(line))


_pair = st.tuples(st.binary(max_size=12), st.binary(max_size=12)).map(lambda pair: pair[0] + b"=" + pair[1])
_lines = st.lists(st.lists(_pair | st.binary(max_size=20), max_size=6).map(b"; ".join), max_size=3)


@given(_lines)
def test_whatever_else_comes_the_value_is_ours(lines: list[bytes]) -> None:
    """Among arbitrary other bytes our cookie is read as it was sent, or the request is refused."""
    noisy = [*lines, NAME + b"=" + OURS]
    try:
        value = read_cookie(noisy, NAME)
    except BadRequest:
        return

    assert OURS == value


@given(_lines)
def test_nothing_of_ours_is_left_after_stripping(lines: list[bytes]) -> None:
    """After stripping, no pair has a name of ours, and stripping again changes nothing."""
    is_ours = NAMES.matcher()
    stripped = strip_cookies([*lines, b"a=1; " + NAME + b"=" + OURS], is_ours)

    assert OURS not in b"".join(stripped)
    assert stripped == strip_cookies(stripped, is_ours)
    assert read_cookie(stripped, NAME) is None
