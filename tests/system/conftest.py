"""Whole installations: a broker in processes of its own, a real authorization server, a real upstream."""

from collections.abc import AsyncIterator

import pytest

from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.upstream import Introspection, Upstream


@pytest.fixture
async def provider() -> AsyncIterator[RemoteLedgerServer]:
    async with RemoteLedgerServer() as server:
        yield server


@pytest.fixture
async def upstream(provider: RemoteLedgerServer) -> AsyncIterator[Upstream]:
    async with Introspection(provider.url) as check, Upstream(check=check) as server:
        yield server
