"""Certificates that are replaced while the store runs."""

import asyncio
from pathlib import Path

import pytest

from broker.errors import ConfigError, StoreError
from broker.services.clock import SystemClock
from broker.stores.options import StoreOptions, StoreTlsOptions, StoreUrl
from broker.stores.redis import RedisStore
from broker.stores.redis_tls import RedisTls
from tests.stores.conftest import RECOVERY, works
from tests.support.certificates import Authority
from tests.support.clock import SeededRandomness
from tests.support.redis_server import RedisServer
from tests.support.tcp_proxy import TcpProxy
from tests.support.waiting import until_async


async def test_ft_19_new_connections_use_the_certificates_that_are_there(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    """The authority changes under a running store; an expired certificate is refused all the same."""
    old, new = Authority(tmp_path, "Old"), Authority(tmp_path, "New")
    trusted = tmp_path / "trusted.pem"
    trusted.write_bytes(Path(old.ca_file).read_bytes())
    context = old.server_context(old.issue("server"))
    async with TcpProxy(redis_server.port, tls=context) as network:
        url = StoreUrl.parse(f"rediss://127.0.0.1:{network.port}/0")
        options = StoreOptions(url=url, tls=StoreTlsOptions(ca_file=str(trusted)), timeout_seconds=1)
        store = RedisStore(options, SystemClock(), SeededRandomness())
        await store.start()

        renewed = new.issue("renewed")
        context.load_cert_chain(renewed.certificate_file, renewed.key_file)
        network.cut()
        with pytest.raises(StoreError, match="verify failed"):
            await store.ping()
        trusted.write_bytes(Path(new.ca_file).read_bytes())
        await until_async(lambda: works(store), seconds=RECOVERY, what="the recovery")

        expired = new.issue("expired", expired=True)
        context.load_cert_chain(expired.certificate_file, expired.key_file)
        network.cut()
        with pytest.raises(StoreError, match="expired"):
            await store.ping()
        await store.close()


async def test_a_file_that_is_half_replaced_changes_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """What can't be loaded, or isn't there, leaves what was loaded in use, and is tried again the next time."""
    authority = Authority(tmp_path)
    leaf, next_leaf = authority.issue("client"), authority.issue("next")
    certificate, key = Path(leaf.certificate_file), Path(leaf.key_file)
    tls = RedisTls(StoreTlsOptions(ca_file=authority.ca_file, cert_file=str(certificate), key_file=str(key)))
    first = await asyncio.to_thread(tls.context)
    assert first is tls.context()

    certificate.write_bytes(Path(next_leaf.certificate_file).read_bytes())  # its key isn't there yet
    assert first is tls.context()
    key.unlink()
    assert first is tls.context()
    assert {"redis_tls_not_reloaded"} == {record.message for record in caplog.records}

    key.write_bytes(Path(next_leaf.key_file).read_bytes())
    second = tls.context()
    assert first is not second
    assert second is tls.context()


def test_what_is_not_there_at_the_start_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    """The message names the option's group."""
    with pytest.raises(ConfigError, match=r"store\.tls"):
        RedisTls(StoreTlsOptions(ca_file=str(tmp_path / "none.pem")))
