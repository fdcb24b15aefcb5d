"""TLS on the broker's own listener."""

import asyncio
import ssl
from pathlib import Path

import pytest

from broker.core.forward_auth import shows_certificate
from broker.core.listen_tls import ListenTlsOptions
from broker.core.secret import Secret
from broker.errors import ConfigError
from broker.services.tls import server_context
from tests.support.certificates import Authority


async def shaken(server: ssl.SSLContext, client: ssl.SSLContext) -> tuple[ssl.SSLObject, ssl.SSLObject]:
    """Shake hands in memory, and let both sides read what comes after it. Returns the server's side and the client's."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    theirs = client.wrap_bio(to_client, to_server, server_hostname="localhost")
    ours = server.wrap_bio(to_server, to_client, server_side=True)
    pending = [theirs, ours]
    for _ in range(10):
        for each in list(pending):
            try:
                each.do_handshake()
                pending.remove(each)
            except ssl.SSLWantReadError:
                await asyncio.sleep(0)
    assert [] == pending
    with pytest.raises(ssl.SSLWantReadError):
        theirs.read()  # tickets, if there are any
    with pytest.raises(ssl.SSLWantReadError):
        ours.read()
    return ours, theirs


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)


def client_of(authority: Authority, name: str | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=authority.ca_file)
    if name is not None:
        leaf = authority.issue(name.replace("*", "star"), host=name)
        context.load_cert_chain(leaf.certificate_file, leaf.key_file)
    return context


@pytest.mark.parametrize(
    ("name", "is_gateway"),
    [("gateway.internal", True), ("other.internal", False), ("*.internal", False), (None, False)],
)
async def test_a_certificate_is_known_by_its_dns_name(authority: Authority, name: str | None, is_gateway: bool) -> None:
    """Exactly; a wildcard is none of them; none is asked of whoever has none; nothing is left that could be resumed."""
    leaf = authority.issue("broker", host="localhost")
    context = server_context(
        ListenTlsOptions(
            certificate_file=leaf.certificate_file, key_file=leaf.key_file, client_ca_file=authority.ca_file
        )
    )
    connection, theirs = await shaken(context, client_of(authority, name))

    assert is_gateway == shows_certificate(connection.getpeercert(), ["gateway.internal"])
    assert "TLSv1.3" == connection.version()
    assert theirs.session is None or not theirs.session.has_ticket


async def test_without_a_ca_nobody_is_asked(authority: Authority) -> None:
    """It is TLS as any other, from 1.2 on, and a certificate that is shown is none."""
    leaf = authority.issue("broker", host="localhost")
    options = ListenTlsOptions(certificate_file=leaf.certificate_file, key_file=leaf.key_file)
    old = client_of(authority, "gateway.internal")
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    connection, _ = await shaken(server_context(options), old)

    assert not shows_certificate(connection.getpeercert(), ["gateway.internal"])
    assert "TLSv1.2" == connection.version()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"certificate_file": "/nowhere"}, "tls.certificate_file"),
        ({"client_ca_file": "/nowhere"}, "tls.client_ca_file"),
        ({"key_password": Secret("wrong")}, "tls.key_password"),
    ],
)
def test_cr_07_what_can_not_be_applied_stops_the_start(
    authority: Authority, change: dict[str, object], named: str
) -> None:
    """The key is named, and nothing is asked on the terminal."""
    leaf = authority.issue("broker", host="localhost", password=b"right")
    options = {
        "certificate_file": leaf.certificate_file,
        "key_file": leaf.key_file,
        "key_password": Secret("right"),
        **change,
    }
    with pytest.raises(ConfigError, match=named):
        server_context(ListenTlsOptions(**options))  # type: ignore[arg-type]
