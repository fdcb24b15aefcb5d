"""Fixtures that several test packages use."""

import signal

from hypothesis import HealthCheck, settings

from tests.support.redis_server import redis_server, shared_redis

__all__ = ["redis_server", "shared_redis"]

# By default an example that takes 200 ms fails its test. These tests are about what comes of their input, and a machine
# that has other things to do for a moment is no counterexample.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")

# A job that a script put into the background ignores Ctrl-C, and so would every broker that these tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
