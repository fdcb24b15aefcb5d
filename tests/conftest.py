"""Fixtures that several test packages use."""

from tests.support.redis_server import redis_server, shared_redis

__all__ = ["redis_server", "shared_redis"]
