"""`token-broker run` in processes of its own, and a browser that goes through it."""

import asyncio
import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from http.cookies import BaseCookie
from pathlib import Path
from typing import Any, Self

import aiohttp
from yarl import URL

from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET
from tests.support.ports import free_port
from tests.support.waiting import until, until_async

ROOT = Path(__file__).parents[2]
_NO_URL = URL()


def provider_options(issuer: str, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a LedgerServer as a provider."""
    return {
        "issuer": issuer,
        "client_id": CLIENT_ID,
        "client_secret": {"value": CLIENT_SECRET},
        "scope": "openid profile offline_access",
        **changes,
    }


class BrokerProcess:
    """
    The broker as its operator starts it.

    The configuration is JSON, which is YAML. What it logs is kept in :attr:`log_path`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int | None = None,
        environment: Mapping[str, str] | None = None,
        command: Sequence[str | Path] = (sys.executable, "-m", "broker"),
        **settings: Any,
    ) -> None:
        """
        Args:
            directory: For the configuration, the log and whatever is stored.
            port: Where browsers reach it; chosen if None.
            environment: Further variables.
            command: What is run with ``run CONFIG``; it may bring the broker into trouble first.
            settings: The configuration; ``public_url``, ``listen``, ``admin``, ``keys`` and ``store`` have defaults.
        """
        self.port, self.admin_port = port or free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin_url = f"http://127.0.0.1:{self.admin_port}"
        self.directory = directory
        self.log_path = directory / f"broker-{self.port}.log"
        self.settings: dict[str, Any] = {
            "public_url": self.url,
            "listen": f"127.0.0.1:{self.port}",
            "admin": {"listen": f"127.0.0.1:{self.admin_port}"},
            "keys": [{"value": new_key(SystemRandomness()).reveal()}],
            "store": {"url": f"sqlite://{directory}/broker.db"},
            "spool_dir": str(directory / "spool"),
            "drain_timeout": "5s",
            **settings,
        }
        self._environment = {**os.environ, **(environment or {})}
        self._command = command
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        if self._process is not None and self._process.returncode is None:
            await self.stop()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    @property
    def worker_pid(self) -> int:
        """The process that serves; the first of them where there are several."""
        return self.worker_pids()[0]

    def worker_pids(self) -> list[int]:
        """Return the processes below the supervisor, oldest first."""
        return [int(each) for each in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split()]

    def log(self) -> list[dict[str, Any]]:
        """Return what was logged, record by record. Anything that isn't JSON fails."""
        return [json.loads(line) for line in self._logged().splitlines()]

    def _logged(self) -> str:
        """Return the lines of the log that are whole: one may be half written."""
        return self.log_path.read_text().rpartition("\n")[0]

    def write_settings(self) -> Path:
        """Write the configuration that :attr:`settings` mean, and return where."""
        config = self.directory / f"config-{self.port}.yaml"
        config.write_text(json.dumps(self.settings, indent=2))
        return config

    async def reload(self, event: str = "reloaded") -> None:
        """Let it read the configuration again, and wait until it has logged what came of that."""
        self.write_settings()
        before = self._logged().count(f'"event":"{event}"')
        self.send_signal(signal.SIGHUP)
        await until(
            lambda: self._logged().count(f'"event":"{event}"') > before,
            seconds=20,
            what=lambda: f"{event} in {self.log_path.read_text()[-2000:]}",
        )

    async def start(self, *, wait_ready: bool = True) -> None:
        """Start it, and wait until every worker takes requests."""
        config = self.write_settings()
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                "run",
                str(config),
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,
            )
        await until_async(self.is_ready if wait_ready else self.is_alive, seconds=40, what="the broker's start")

    async def is_alive(self) -> bool:
        """Return whether the admin listener answers."""
        return await self._answers("/healthz")

    async def is_ready(self) -> bool:
        """Return whether it takes requests, with all workers started."""
        started = self.log_path.read_text().count('"event":"started"')
        expected = 1 if self.settings.get("workers", 1) == 1 else self.settings["workers"] + 1
        return await self._answers("/readyz") and started >= expected

    async def _answers(self, path: str) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log_path.read_text()[-4000:]
        try:
            async with aiohttp.ClientSession() as http, http.get(self.admin_url + path) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    async def metrics(self) -> dict[str, float]:
        """Return the metrics, each sample by its name and labels as Prometheus writes them."""
        async with aiohttp.ClientSession() as http, http.get(f"{self.admin_url}/metrics") as response:
            lines = [line for line in (await response.text()).splitlines() if not line.startswith("#")]
        return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}

    async def stop(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and return the exit code."""
        self.send_signal(number)
        return await self.ended()

    async def ended(self) -> int:
        """Wait for its end, and return the exit code."""
        assert self._process is not None
        return await asyncio.wait_for(self._process.wait(), 40)

    def send_signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def kill(self) -> None:
        """Kill every process of the installation, as a power cut would."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()


class LoopbackCookies(aiohttp.CookieJar):
    """Sends ``Secure`` cookies to loopback by plain HTTP too, as browsers do (W3C Secure Contexts section 3.1)."""

    def __init__(self) -> None:
        super().__init__(unsafe=True)

    def filter_cookies(self, request_url: URL = _NO_URL) -> "BaseCookie[str]":
        return super().filter_cookies(request_url.with_scheme("https"))


class Browser:
    """
    A client with cookies that sends what a frontend sends.

    Attributes:
        origin: Where its requests go.
        headers: What each call of the frontend's script bears beside.
    """

    def __init__(self, origin: str, http: aiohttp.ClientSession | None = None) -> None:
        self.origin = origin
        self.headers: dict[str, str] = {}
        self.http = http or aiohttp.ClientSession(cookie_jar=LoopbackCookies(), connector=aiohttp.TCPConnector(limit=0))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.http.close()

    async def log_in(self, *, user: str = "alice", provider: str | None = None, return_url: str = "/") -> None:
        """Log in through every redirect, as a top-level navigation."""
        query = {"returnUrl": return_url, "login_hint": user, **({"provider": provider} if provider else {})}
        async with self.http.get(f"{self.origin}/bff/login", params=query, headers=navigation()) as response:
            assert response.status == 200, (response.status, await response.text())

    async def get(self, path: str, **options: Any) -> "Answer":
        return await self.request("GET", path, **options)

    async def request(self, method: str, path: str, **options: Any) -> "Answer":
        """Send a call of the frontend's own script."""
        headers = {
            "X-CSRF": "1",
            "Sec-Fetch-Site": "same-origin",
            "Sec-Fetch-Mode": "cors",
            **self.headers,
            **options.pop("headers", {}),
        }
        async with self.http.request(
            method, URL(self.origin + path, encoded=True), headers=headers, allow_redirects=False, **options
        ) as response:
            return Answer(response.status, dict(response.headers), await response.read())


class Answer:
    """A response that was read whole."""

    def __init__(self, status: int, headers: Mapping[str, str], body: bytes) -> None:
        self.status = status
        self.headers = headers
        self.body = body

    def __repr__(self) -> str:
        return f"Answer({self.status}, {self.body[:300]!r})"

    def json(self) -> Any:
        return json.loads(self.body)


def navigation() -> dict[str, str]:
    """Return what a browser sends when its user goes to an address."""
    return {
        "Sec-Fetch-Mode": "navigate",
        "Sec-Fetch-Dest": "document",
        "Sec-Fetch-Site": "none",
        "Accept": "text/html,application/xhtml+xml,*/*;q=0.8",
    }
