"""Real gateways, started with the very files of examples/; only ports, names of hosts and paths are put in."""

import asyncio
import os
import shutil
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any, Self

import aiohttp
import yaml

from tests.support.broker_process import BrokerProcess, Browser, provider_options
from tests.support.certificates import Authority
from tests.support.ports import free_port
from tests.support.waiting import until_async

EXAMPLES = Path(__file__).parents[2] / "examples"
SECRET = "secret-between-gateway-and-broker-42"


@dataclass(frozen=True, slots=True)
class Kind:
    """
    How a gateway is started.

    Attributes:
        directory: Its directory of examples/.
        files: Its files there, the main one first.
        command: With ``$main`` for the main file and ``$directory`` for where it is.
        replaced: Further texts, and what is put in their place.
        forwards_itself: Whether it asks the broker; otherwise the broker forwards.
        shows_certificate: Whether it does so in place of a secret.
    """

    directory: str
    files: tuple[str, ...]
    command: tuple[str, ...]
    replaced: Mapping[str, str]
    forwards_itself: bool = True
    shows_certificate: bool = False


_NGINX = {
    "listen 443 ssl": "listen 127.0.0.1:$port ssl",
    "http {": "http { client_body_temp_path $directory/b; proxy_temp_path $directory/p; fastcgi_temp_path $directory/f; "
    "uwsgi_temp_path $directory/u; scgi_temp_path $directory/s;",
    "/etc/ssl/app.pem": "$certificate",
    "/etc/ssl/app.key": "$key",
}
_BROKER_TLS = (
    "proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_trusted_certificate '$ca'; proxy_ssl_name localhost; "
    "proxy_ssl_server_name on;"
)
_NGINX_COMMAND = ("nginx", "-p", "$directory", "-c", "$main", "-e", "stderr", "-g", "$globals")

KINDS = {
    "nginx": Kind(
        "nginx",
        ("nginx.conf",),
        _NGINX_COMMAND,
        {**_NGINX, "/etc/nginx/gateway-secret.conf": "$directory/gateway-secret.conf", "127.0.0.1:3000": "$app"},
    ),
    "nginx-certificate": Kind(
        "nginx",
        ("nginx.conf",),
        _NGINX_COMMAND,
        {
            **_NGINX,
            "proxy_pass http://broker;": "proxy_pass https://broker; " + _BROKER_TLS,
            "    upstream app {": "    upstream broker-auth { server 127.0.0.1:$broker_port; }\n    upstream app {",
            "proxy_pass http://broker/bff/auth;": "proxy_pass https://broker-auth/bff/auth; " + _BROKER_TLS,
            # What stands in docs/howto/behind-nginx.md in place of the secret.
            "include /etc/nginx/gateway-secret.conf;": "proxy_ssl_certificate $directory/nginx.pem; "
            "proxy_ssl_certificate_key $directory/nginx.key;",
            "127.0.0.1:3000": "$app",
        },
        shows_certificate=True,
    ),
    "nginx-in-front": Kind("nginx", ("in-front.conf",), _NGINX_COMMAND, _NGINX, forwards_itself=False),
    "haproxy": Kind(
        "haproxy",
        ("haproxy.cfg", "token-broker.lua"),
        ("haproxy", "-db", "-f", "$main"),
        {
            "bind :443": "bind 127.0.0.1:$port",
            "/etc/ssl/app-with-key.pem": "$directory/both.pem",
            "/run/secrets/gateway": "$directory/gateway-secret",
            "/etc/haproxy/token-broker.lua": "$directory/token-broker.lua",
            "127.0.0.1:3000": "$app",
        },
    ),
    "caddy": Kind(
        "caddy",
        ("Caddyfile",),
        ("caddy", "run", "--config", "$main", "--adapter", "caddyfile"),
        {
            "admin off": "admin off\n\tauto_https disable_redirects",  # those listen on port 80
            "https://app.example.com:443": "https://localhost:$port",
            "/etc/ssl/app.pem": "$certificate",
            "/etc/ssl/app.key": "$key",
            "127.0.0.1:3000": "$app",
        },
    ),
}


class GatewayProcess:
    """A broker's configuration and a gateway, as examples/ has them, in front of an application."""

    def __init__(
        self,
        kind: str,
        directory: Path,
        *,
        provider: str,
        port: int,
        app: str,
        more_routes: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """
        Args:
            kind: Of :data:`KINDS`.
            directory: For the configuration and the log.
            provider: The URL of the authorization server.
            port: Where it listens.
            app: The URL of the application.
            more_routes: Routes beside those of the example.
        """
        self.kind = KINDS[kind]
        self.directory = directory
        self.port = port
        self.url = f"https://localhost:{port}"
        self._app = app.removeprefix("http://")
        authority = Authority(directory)
        self._leaf = authority.issue("gateway", host="localhost")
        self._ca_file = authority.ca_file
        if self.kind.shows_certificate:
            authority.issue("nginx", host="gateway.internal")
        self.tls = ssl.create_default_context(cafile=authority.ca_file)
        self.broker = BrokerProcess(directory, **self._settings(provider, app, more_routes))
        self.log_path = directory / "gateway.log"
        self._process: asyncio.subprocess.Process | None = None

    def _settings(self, provider: str, app: str, more_routes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        example = yaml.safe_load((EXAMPLES / self.kind.directory / "broker.yaml").read_text())
        for key in ("listen", "store", "keys"):
            del example[key]  # BrokerProcess has its own
        if self.kind.shows_certificate:
            del example["forward_auth"]["secrets"]
            example["forward_auth"]["certificate_names"] = ["gateway.internal"]
            example["tls"] = {
                "certificate_file": self._leaf.certificate_file,
                "key_file": self._leaf.key_file,
                "client_ca_file": self._ca_file,
            }
        elif self.kind.forwards_itself:
            example["forward_auth"]["secrets"] = [{"value": SECRET}]
        else:
            del example["forward_auth"]
        example["routes"] += [dict(route) for route in more_routes]
        for route in example["routes"]:
            route["upstream"] = app
            if not self.kind.forwards_itself:
                route.pop("release_token", None)
        example["public_url"] = self.url
        example["providers"]["corp"] = provider_options(provider)
        return example  # type: ignore[no-any-return]  # YAML

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def start(self) -> None:
        """Start the broker, then the gateway."""
        await self.broker.start()
        self._write_files()
        user = "user root; " if os.geteuid() == 0 else ""
        values = {
            "main": self.directory / self.kind.files[0],
            "directory": self.directory,
            "globals": f"{user}daemon off; pid {self.directory}/nginx.pid;",
        }
        command = [Template(part).substitute(values) for part in self.kind.command]
        program = shutil.which(command[0]) or shutil.which(command[0], path="/usr/sbin:/usr/local/sbin:/sbin")
        assert program is not None, f"{command[0]} isn't installed"
        home = {"HOME": str(self.directory), "XDG_DATA_HOME": str(self.directory), "GATEWAY_SECRET": SECRET}
        with self.log_path.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                program, *command[1:], cwd=self.directory, stdout=log, stderr=log, env={**os.environ, **home}
            )
        await until_async(self._listens, seconds=15, what="the gateway's start")

    async def __aexit__(self, *exc_info: object) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.terminate()
            await asyncio.wait_for(self._process.wait(), 20)
        await self.broker.__aexit__(*exc_info)

    def _write_files(self) -> None:
        """Put in what differs here. Each text must be there, so that no file is tested that says something else."""
        certificate = Path(self._leaf.certificate_file).read_text()
        (self.directory / "both.pem").write_text(certificate + Path(self._leaf.key_file).read_text())
        (self.directory / "gateway-secret").write_text(f"{SECRET}\n")
        (self.directory / "gateway-secret.conf").write_text(f'proxy_set_header X-Gateway-Secret "{SECRET}";\n')
        values = {
            "port": self.port,
            "directory": self.directory,
            "app": self._app,
            "broker_port": self.broker.port,
            "ca": self._ca_file,
            "certificate": self._leaf.certificate_file,
            "key": self._leaf.key_file,
        }
        for number, name in enumerate(self.kind.files):
            text = (EXAMPLES / self.kind.directory / name).read_text()
            if number == 0:
                replaced = {"127.0.0.1:8080": f"127.0.0.1:{self.broker.port}", **self.kind.replaced}
                for here, there in replaced.items():
                    assert here in text, f"{name} lacks {here!r}"
                    text = text.replace(here, Template(there).substitute(values))
                text = text.replace("app.example.com", "localhost")
            (self.directory / name).write_text(text)

    async def _listens(self) -> bool:
        assert self._process is not None
        assert self._process.returncode is None, self.log_path.read_text()[-4000:]
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    def browser(self) -> "GatewayBrowser":
        """Return a browser that knows the certificate."""
        return GatewayBrowser(self.url, self.tls)

    async def send(self, data: bytes) -> bytes:
        """Send raw bytes on a TLS connection of their own; return what comes back until it is closed."""
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.port, ssl=self.tls, server_hostname="localhost"
        )
        try:
            writer.write(data)
            return await asyncio.wait_for(reader.read(), 10)
        except ConnectionError:
            return b""
        finally:
            writer.close()


class GatewayBrowser(Browser):
    """A browser that goes to a gateway over TLS."""

    def __init__(self, origin: str, tls: ssl.SSLContext) -> None:
        connector = aiohttp.TCPConnector(limit=0, ssl=tls)
        super().__init__(origin, aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True), connector=connector))

    def cookies(self) -> dict[str, str]:
        """Return the cookies of the site, and not of the authorization server."""
        return {cookie.key: cookie.value for cookie in self.http.cookie_jar if cookie["domain"] == "localhost"}


def gateway_port() -> int:
    """Return a port for a gateway, which must be known to the authorization server before the gateway starts."""
    return free_port()
