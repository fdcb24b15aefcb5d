import pytest

from broker.core.request_fields import FieldRules
from broker.core.request_head import RequestHead, read_head
from broker.errors import BadRequest

HOST = b"Host: app.example.com"


def head(*lines: bytes, method: str = "GET", target: bytes = b"/", version: tuple[int, int] = (1, 1)) -> RequestHead:
    return read_head(method=method, target=target, version=version, block=FieldRules().read(lines))


@pytest.mark.parametrize("version", [(0, 9), (1, 2), (2, 0), (3, 0), (1, 10)])
def test_sm_03_only_http_1_0_and_1_1_are_spoken(version: tuple[int, int]) -> None:
    """Every other version is refused."""
    with pytest.raises(BadRequest):
        head(HOST, version=version)


@pytest.mark.parametrize("method", ["get", "Get", "", "G ET", "GET\r", "-GET", "G" * 33, "GÉT"])
def test_rt_07_methods_are_in_capitals(method: str) -> None:
    """A method that isn't a short word in capitals is refused."""
    with pytest.raises(BadRequest):
        head(HOST, method=method)


def test_rt_08_http_1_1_names_its_host() -> None:
    """Without a Host, or with an empty one, HTTP/1.1 is refused; HTTP/1.0 may leave it out."""
    with pytest.raises(BadRequest):
        head()
    with pytest.raises(BadRequest):
        head(b"Host: ")

    assert b"" == head(version=(1, 0)).block.authority


def test_sm_03_http_1_0_has_no_chunks() -> None:
    """Transfer-Encoding from an HTTP/1.0 caller is refused (RFC 9112 section 6.1)."""
    with pytest.raises(BadRequest):
        head(HOST, b"Transfer-Encoding: chunked", version=(1, 0))


@pytest.mark.parametrize(
    ("lines", "version", "keep_alive"),
    [
        ([HOST], (1, 1), True),
        ([HOST, b"Connection: close"], (1, 1), False),
        ([HOST], (1, 0), False),
        ([HOST, b"Connection: keep-alive"], (1, 0), True),
        ([HOST, b"Connection: keep-alive, close"], (1, 0), False),
    ],
)
def test_whether_the_connection_is_used_again(lines: list[bytes], version: tuple[int, int], keep_alive: bool) -> None:
    """As RFC 9112 section 9.3 says."""
    assert keep_alive is head(*lines, version=version).keep_alive


def test_whether_a_body_follows() -> None:
    """A length above 0, or chunks."""
    assert not head(HOST).has_body
    assert not head(HOST, b"Content-Length: 0").has_body
    assert head(HOST, b"Content-Length: 1").has_body
    assert head(HOST, b"Transfer-Encoding: chunked").has_body


def test_expect_counts_only_for_http_1_1() -> None:
    """An HTTP/1.0 caller wouldn't understand 100 Continue (RFC 9110 section 10.1.1)."""
    assert head(HOST, b"Expect: 100-Continue").expects_continue
    assert not head(HOST, b"Expect: 100-continue", version=(1, 0)).expects_continue


def test_an_absolute_target_must_name_the_host() -> None:
    """Target and Host agree, or the request is refused (RFC 9112 section 3.2.2)."""
    assert b"/x" == head(HOST, target=b"http://APP.example.com/x").target.path
    with pytest.raises(BadRequest):
        head(HOST, target=b"http://evil.example/x")


def test_fields_can_be_asked_for_as_text() -> None:
    """broker.core.csrf reads them like aiohttp's."""
    read = head(HOST, b"X-CSRF: 1", b"Accept: a", b"accept: b")

    assert ["1"] == read.getall("X-CSRF", ())
    assert ["a", "b"] == read.getall("Accept", ())
    assert () == read.getall("Origin", ())
    assert [b"a", b"b"] == read.values(b"accept")
