"""Redis behind Sentinels and as a cluster, for real: the contract, failovers and migrations under load."""

from collections.abc import AsyncIterator, Iterator

import pytest

from broker.stores.options import StoreOptions, StoreUrl
from tests.stores.store_contract import StoreContract
from tests.stores.test_redis import RedisBacking
from tests.support.redis_server import ClusterSetup, SentinelSetup

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSetup]:
    setup = ClusterSetup(tmp_path_factory.mktemp("cluster"))
    try:
        yield setup.start()
    finally:
        setup.stop()


@pytest.fixture(scope="module")
def sentinels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSetup]:
    setup = SentinelSetup(tmp_path_factory.mktemp("sentinels"))
    try:
        yield setup.start()
    finally:
        setup.stop()


class TestClusterContract(StoreContract):
    """Three nodes that share the keys do what every store does."""

    @pytest.fixture
    async def backing(self, cluster: ClusterSetup) -> AsyncIterator[RedisBacking]:
        for server in cluster.servers:
            server.command("FLUSHALL")
        backing = RedisBacking(StoreOptions(url=StoreUrl.parse(cluster.url)))
        yield backing
        await backing.close()


class TestSentinelContract(StoreContract):
    """A master that Sentinels watch does what every store does, with every write on a replica too."""

    @pytest.fixture
    async def backing(self, sentinels: SentinelSetup) -> AsyncIterator[RedisBacking]:
        sentinels.master().command("FLUSHALL")
        backing = RedisBacking(StoreOptions(url=StoreUrl.parse(sentinels.url), wait_replicas=1))
        yield backing
        await backing.close()
