"""
What a proxied request costs: the broker against nginx, side by side.

    python benchmarks/data_plane.py [--slices N] [--seconds S] [--only nginx,broker]

The proxies run on core 0; the load (wrk, 32 connections) and the upstream (nginx) on core 1. Slices alternate, because
the machine is never quiet; what counts are ratios within one run. CPU is the on-CPU time of all of a proxy's processes.
"""

import argparse
import asyncio
import http.client
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

UPSTREAM_PORT, NGINX_PORT, BROKER_PORT = 18081, 18082, 18083
HOST = "127.0.0.1"

NGINX_UPSTREAM = """
worker_processes 1; daemon off; pid {dir}/upstream.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 1h; client_body_temp_path {dir};
  proxy_temp_path {dir}; fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir};
  large_client_header_buffers 8 32k;
  server {{ listen 127.0.0.1:{upstream}; root {dir}/files; default_type application/json; }}
}}
"""

NGINX_PROXY = """
worker_processes 1; daemon off; pid {dir}/proxy.pid; error_log stderr crit;
events {{ worker_connections 4096; }}
http {{
  access_log off; keepalive_requests 1000000000; client_body_temp_path {dir}; proxy_temp_path {dir};
  fastcgi_temp_path {dir}; uwsgi_temp_path {dir}; scgi_temp_path {dir}; large_client_header_buffers 8 32k;
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{nginx};
    location / {{
      proxy_pass http://up; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_set_header Authorization "Bearer {token}";
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto http;
      proxy_set_header X-Forwarded-Host $host;
    }}
  }}
}}
"""

TOKEN = "t" * 976
REQUEST_FIELDS = (
    "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0) Gecko/20100101 Firefox/128.0",
    "Accept: application/json, text/plain, */*",
    "Accept-Language: en-GB,en;q=0.7,de;q=0.3",
    "Accept-Encoding: gzip, deflate, br",
    "Referer: https://app.example.com/orders",
    "X-CSRF: 1",
    "Sec-Fetch-Site: same-origin",
    "Sec-Fetch-Mode: cors",
)


@dataclass
class Subject:
    """One proxy under test."""

    name: str
    port: int
    pid: int
    fields: tuple[str, ...]
    cpu_us: list[float] = field(default_factory=list)
    rate: list[float] = field(default_factory=list)
    p50_ms: list[float] = field(default_factory=list)
    p99_ms: list[float] = field(default_factory=list)


def on_cpu_seconds(pid: int) -> float:
    """The on-CPU time of a process and its descendants."""
    total = 0.0
    for each in [pid, *descendants(pid)]:
        for task in Path(f"/proc/{each}/task").glob("*/schedstat"):
            total += int(task.read_text().split()[0]) / 1e9
    return total


def descendants(pid: int) -> list[int]:
    found = []
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, children.read_text().split()):
            found += [child, *descendants(child)]
    return found


@contextmanager
def process(arguments: list[str], *, core: int, port: int, cwd: Path | None = None) -> Iterator[int]:
    with socket.socket() as probe:
        assert probe.connect_ex((HOST, port)), f"port {port} is served already"
    running = subprocess.Popen(["taskset", "-c", str(core), *arguments], cwd=cwd)
    try:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            with socket.socket() as probe:
                if probe.connect_ex((HOST, port)) == 0:
                    break
            assert running.poll() is None, f"{arguments[0]} did not start"
            time.sleep(0.05)
        yield running.pid
    finally:
        running.send_signal(signal.SIGTERM)
        try:
            running.wait(10)
        except subprocess.TimeoutExpired:
            running.kill()


def load(subject: Subject, path: str, *, seconds: float, connections: int) -> None:
    headers = [argument for line in subject.fields for argument in ("-H", line)]
    before = on_cpu_seconds(subject.pid)
    command = ["taskset", "-c", "1", "wrk", "-t1", f"-c{connections}", f"-d{seconds:g}s", "--latency", *headers]
    ran = subprocess.run([*command, f"http://{HOST}:{subject.port}{path}"], capture_output=True, text=True, check=True)
    spent = on_cpu_seconds(subject.pid) - before
    requests = re.search(r"(\d+) requests in", ran.stdout)
    assert requests is not None, ran.stdout
    assert "Non-2xx" not in ran.stdout, ran.stdout
    assert "Socket errors" not in ran.stdout, ran.stdout
    count = int(requests[1])
    subject.cpu_us.append(spent / count * 1e6)
    rate = re.search(r"Requests/sec:\s+([\d.]+)", ran.stdout)
    assert rate is not None
    subject.rate.append(float(rate[1]))
    for percent, into in (("50", subject.p50_ms), ("99", subject.p99_ms)):
        found = re.search(rf"{percent}%\s+([\d.]+)(us|ms|s)", ran.stdout)
        assert found is not None
        into.append(float(found[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[found[2]])


def quartile(values: list[float], which: int) -> float:
    return statistics.quantiles(values, n=4, method="inclusive")[which] if len(values) > 1 else values[0]


def check(subject: Subject, path: str) -> None:
    """One request by hand: its status, and that the token arrived is the upstream test's business."""
    connection = http.client.HTTPConnection(HOST, subject.port, timeout=5)
    connection.putrequest("GET", path, skip_accept_encoding=True)
    for line in subject.fields:
        name, _, value = line.partition(": ")
        connection.putheader(name, value)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status == 200, (subject.name, answer.status, answer.read())
    answer.read()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slices", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--path", default="/small.json")
    parser.add_argument("--profile", action="store_true", help="run the broker under cProfile")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--slow", action="store_true", help="without the fast path")
    parser.add_argument("--serve", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments)
        return
    with tempfile.TemporaryDirectory() as temporary, ExitStack() as stack:
        directory = Path(temporary)
        files = directory / "files"
        files.mkdir()
        (files / "small.json").write_bytes(b'{"x":"' + b"y" * 191 + b'"}\n')
        (files / "64k").write_bytes(os.urandom(64 << 10))
        (files / "1m").write_bytes(os.urandom(1 << 20))
        directory.chmod(0o755)
        for name, text in (("upstream", NGINX_UPSTREAM), ("proxy", NGINX_PROXY)):
            (directory / f"{name}.conf").write_text(
                text.format(dir=directory, upstream=UPSTREAM_PORT, nginx=NGINX_PORT, token=TOKEN)
            )
        nginx = shutil.which("nginx") or "/usr/sbin/nginx"
        run = stack.enter_context
        run(process([nginx, "-c", str(directory / "upstream.conf"), "-p", temporary], core=1, port=UPSTREAM_PORT))
        proxy = run(process([nginx, "-c", str(directory / "proxy.conf"), "-p", temporary], core=0, port=NGINX_PORT))
        flags = [flag for flag in ("--profile", "--slow") if getattr(arguments, flag[2:])]
        broker = run(
            process([sys.executable, __file__, "--serve", "--loop", arguments.loop, *flags], core=0, port=BROKER_PORT)
        )
        fields = (*REQUEST_FIELDS, "Cookie: theme=dark; session=" + "a" * 43 + "; lang=en")
        subjects = [
            Subject("nginx", NGINX_PORT, proxy, fields),
            Subject("broker", BROKER_PORT, broker, fields),
        ]
        for subject in subjects:
            check(subject, arguments.path)
            load(subject, arguments.path, seconds=1, connections=arguments.connections)
            for warm_up in (subject.cpu_us, subject.rate, subject.p50_ms, subject.p99_ms):
                warm_up.clear()
        for _ in range(arguments.slices):
            for subject in subjects:
                load(subject, arguments.path, seconds=arguments.seconds, connections=arguments.connections)
        base = quartile(subjects[0].cpu_us, 0)
        print(f"{arguments.path}, {arguments.connections} connections, {arguments.slices} slices")
        print(f"{'':10} {'CPU us':>8} {'x nginx':>8} {'req/s':>8} {'p50 ms':>8} {'p99 ms':>8}")
        for subject in subjects:
            cpu = quartile(subject.cpu_us, 0)
            print(
                f"{subject.name:10} {cpu:8.1f} {cpu / base:8.2f} {quartile(subject.rate, 2):8.0f} "
                f"{quartile(subject.p50_ms, 0):8.2f} {quartile(subject.p99_ms, 0):8.2f}"
            )


def serve(arguments: argparse.Namespace) -> None:
    """The broker alone: its proxy with real sessions and tokens over the memory store."""
    import cProfile

    import uvloop

    factory: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
    if arguments.loop == "uvloop":
        factory = uvloop.new_event_loop
    profile = cProfile.Profile()
    with asyncio.Runner(loop_factory=factory) as runner:
        if arguments.profile:
            profile.enable()
        runner.run(_serve(arguments))
        if arguments.profile:
            profile.disable()
            profile.dump_stats("data_plane.prof")


async def _serve(arguments: argparse.Namespace) -> None:
    from aiohttp import web

    from broker.core.forwarded import TrustedProxies
    from broker.core.routing import Route, TokenChoice, TokenKind
    from broker.services.clock import SystemClock, SystemRandomness
    from broker.services.logs import LineWriter
    from broker.services.pool import UpstreamPools
    from broker.web.connections import ProxyRunner
    from broker.web.middleware import Outermost
    from broker.web.proxy import Proxy
    from tests.support.proxying import FakeSessions, FakeTokens, token

    public_url = f"http://127.0.0.1:{BROKER_PORT}"
    sessions, tokens = FakeSessions(), FakeTokens()
    sessions.add(b"a" * 43)
    tokens.known["grant-of-alice"] = [token(TOKEN)]
    route = Route(path="/", upstream=f"http://127.0.0.1:{UPSTREAM_PORT}", token=TokenChoice(TokenKind.USER))
    pools = UpstreamPools([route.upstream_options])
    # With its access log, as in operation; nobody reads it.
    writer = LineWriter(Path(os.devnull).open("w"))  # noqa: SIM115 - it lives as long as the process
    proxy = Proxy(
        routes=[route],
        upstreams=pools,
        public_url=public_url,
        sessions=sessions,
        tokens=tokens,
        access_log=writer.write,
    )
    middleware = Outermost(
        public_url=public_url,
        login_url="/bff/login",
        trusted_proxies=TrustedProxies(),
        randomness=SystemRandomness(),
        clock=SystemClock(),
        access_log=writer.write,
    )
    runner = ProxyRunner(
        web.Application(), proxy=proxy, outermost=middleware, shutdown_timeout_seconds=1, fast=not arguments.slow
    )
    await runner.setup()
    await web.TCPSite(runner, HOST, BROKER_PORT).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()
    await pools.close()


if __name__ == "__main__":
    main()
