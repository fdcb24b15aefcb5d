"""The proxies that are compared: each started on a port of its own, and logged in to where it knows users."""

import asyncio
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.data_plane import HOST, NGINX_UPSTREAM, REQUEST_FIELDS
from benchmarks.machine import LOAD_CORE, PROXY_CORE, started
from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from tests.support.authorization_server import CLIENT_ID, CLIENT_SECRET
from tests.support.broker_process import Browser, provider_options
from tests.support.ports import free_port

OTHER_COOKIES = "theme=dark; lang=en"
ADMIN_TOKEN = "for-benchmarks-on-loopback-alone"
TOKEN = "t" * 700
"""About as long as the JWTs that the others send."""

POST = """
wrk.method = "POST"
wrk.body = '{"note":"' .. string.rep("z", 100) .. '"}'
wrk.headers["Content-Type"] = "application/json"
"""
CHUNKED_POST = """
function init()
  wrk.method = "POST"
  wrk.headers["Content-Type"] = "application/json"
  wrk.headers["Transfer-Encoding"] = "chunked"
  local body = '{"note":"' .. string.rep("z", 100) .. '"}'
  whole = wrk.format() .. string.format("%x\\r\\n%s\\r\\n0\\r\\n\\r\\n", #body, body)
end
function request() return whole end
"""
"""A body in chunks, in one read with its head."""

_TEMPORARY = (
    "client_body_temp_path {0}; proxy_temp_path {0}; fastcgi_temp_path {0}; uwsgi_temp_path {0}; scgi_temp_path {0};"
)


@dataclass(slots=True)
class Subject:
    """
    One way to the upstream.

    Attributes:
        name: In the table.
        port: Where it listens.
        pid: Of its process tree; None for no proxy at all.
        fields: What each request carries.
        workers: How many of its processes serve.
        script: What makes the small requests more than a GET, in Lua.
        path: Of the small requests.
        cookies: Of the users that send the small requests, where there are several.
        samples: What was measured, by the name of the figure.
    """

    name: str
    port: int
    pid: int | None
    fields: tuple[str, ...]
    workers: int = 1
    script: str = ""
    path: str = "/small.json"
    cookies: tuple[str, ...] = ()
    samples: dict[str, list[float]] = field(default_factory=dict)

    @property
    def pids(self) -> tuple[int, ...]:
        """Its process tree, if it has one."""
        return () if self.pid is None else (self.pid,)


class Lab:
    """The directory, the upstream, the authorization server and the Redis that all proxies share."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.upstream = free_port()
        self.websocket = free_port()
        self.issuer = free_port()
        self.redis = free_port()
        self.callbacks: list[str] = []

    def write(self, name: str, text: str) -> Path:
        path = self.directory / name
        path.write_text(text)
        return path

    def prepare_files(self) -> None:
        files = self.directory / "files"
        for place in (files, files / "open", files / "scrubbed"):
            place.mkdir()
            (place / "small.json").write_bytes(b'{"x":"' + b"y" * 191 + b'"}\n')
        (files / "1m").write_bytes(b"\xa5" * (1 << 20))
        with (files / "64m").open("wb") as large:
            large.truncate(64 << 20)
        self.directory.chmod(0o755)

    @contextmanager
    def servers(self, redirect_uris: Sequence[str]) -> Iterator[None]:
        """Run what stands behind and beside the proxies, all on the core of the load."""
        self.prepare_files()
        upstream = NGINX_UPSTREAM.format(dir=self.directory, upstream=self.upstream)
        # Bodies of any size are taken and thrown away, and POST is answered as GET is.
        more = "client_max_body_size 0; error_page 405 =200 $uri; location = /sink { return 204; }"
        upstream = upstream.replace("root ", f"{more} root ")
        config = self.write("upstream.conf", upstream)
        behaviour = json.dumps({"access_token_seconds": 36000.0, "token_format": "jwt"})
        uris = [part for uri in redirect_uris for part in ("--redirect-uri", uri)]
        ledger = [sys.executable, "-m", "tests.support.authorization_server", "--port", str(self.issuer)]
        with ExitStack() as stack:
            run = partial_run(stack, self.directory)
            run(nginx(config, self.directory), LOAD_CORE, self.upstream)
            run([sys.executable, "-m", "benchmarks.echo", str(self.websocket)], LOAD_CORE, self.websocket)
            run(["redis-server", "--port", str(self.redis), "--save", "", "--bind", HOST], LOAD_CORE, self.redis)
            run([*ledger, "--behaviour", behaviour, *uris], LOAD_CORE, self.issuer)
            yield


def partial_run(stack: ExitStack, directory: Path) -> Callable[[Sequence[str], str, int], int]:
    def run(arguments: Sequence[str], core: str, port: int) -> int:
        return stack.enter_context(started(arguments, core=core, port=port, log=directory / f"{port}.log"))

    return run


def nginx(config: Path, directory: Path) -> list[str]:
    return [shutil.which("nginx") or "/usr/sbin/nginx", "-c", str(config), "-p", str(directory), "-e", "stderr"]


# --- those that only forward

NGINX = """
worker_processes 1; daemon off; pid {dir}/nginx-{port}.pid;
events {{ worker_connections 8192; }}
http {{
  access_log off; keepalive_requests 1000000000; {temporary} large_client_header_buffers 8 32k; client_max_body_size 0;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream up {{ server 127.0.0.1:{upstream}; keepalive 64; keepalive_requests 1000000000; }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    proxy_http_version 1.1;
    proxy_set_header Connection "";
    proxy_set_header Authorization "Bearer {token}";
    proxy_set_header X-Forwarded-For $remote_addr;
    proxy_set_header X-Forwarded-Proto http;
    proxy_set_header X-Forwarded-Host $host;
    location / {{ proxy_pass http://up; }}
    location /socket {{
      proxy_pass http://127.0.0.1:{websocket}; proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
    }}
  }}
}}
"""

HAPROXY = """
global
  nbthread 1
  maxconn 9000
defaults
  mode http
  timeout connect 5s
  timeout client 60s
  timeout server 60s
  timeout tunnel 60s
frontend in
  bind 127.0.0.1:{port}
  http-request set-header Authorization "Bearer {token}"
  http-request set-header X-Forwarded-For %[src]
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Host %[req.hdr(host)]
  use_backend websocket if {{ path /socket }}
  default_backend up
backend up
  http-reuse always
  server up 127.0.0.1:{upstream}
backend websocket
  server up 127.0.0.1:{websocket}
"""

CADDY = """
{{
  admin off
  auto_https off
  log {{
    level ERROR
  }}
}}
http://127.0.0.1:{port} {{
  reverse_proxy /socket 127.0.0.1:{websocket}
  reverse_proxy 127.0.0.1:{upstream} {{
    header_up Authorization "Bearer {token}"
    transport http {{
      keepalive_idle_conns_per_host 64
    }}
  }}
}}
"""

APACHE = """
ServerName 127.0.0.1
Listen 127.0.0.1:{port}
PidFile {dir}/apache-{port}.pid
ErrorLog {dir}/apache-{port}.error
LogLevel crit
DefaultRuntimeDir {dir}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authn_core_module /usr/lib/apache2/modules/mod_authn_core.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule authz_user_module /usr/lib/apache2/modules/mod_authz_user.so
LoadModule headers_module /usr/lib/apache2/modules/mod_headers.so
LoadModule proxy_module /usr/lib/apache2/modules/mod_proxy.so
LoadModule proxy_http_module /usr/lib/apache2/modules/mod_proxy_http.so
LoadModule proxy_wstunnel_module /usr/lib/apache2/modules/mod_proxy_wstunnel.so
StartServers 1
ServerLimit 1
ThreadsPerChild 64
ThreadLimit 64
MaxRequestWorkers 64
KeepAlive On
MaxKeepAliveRequests 0
KeepAliveTimeout 60
LimitRequestFieldSize 32768
ProxyPass /redirect_uri !
ProxyPass /socket ws://127.0.0.1:{websocket}/socket
ProxyPass / http://127.0.0.1:{upstream}/ keepalive=On
{more}
"""

APACHE_PLAIN = 'RequestHeader set Authorization "Bearer {token}"'

APACHE_OIDC = """
LoadModule auth_openidc_module /usr/lib/apache2/modules/mod_auth_openidc.so
OIDCProviderMetadataURL http://127.0.0.1:{issuer}/.well-known/openid-configuration
OIDCClientID "{client_id}"
OIDCClientSecret "{client_secret}"
OIDCRedirectURI http://127.0.0.1:{port}/redirect_uri
OIDCCryptoPassphrase benchmarks-only
OIDCScope "openid profile"
OIDCPKCEMethod S256
OIDCSSLValidateServer Off
OIDCAuthRequestParams login_hint=alice
OIDCSessionInactivityTimeout 36000
{cache}
<Location />
  AuthType openid-connect
  Require valid-user
  RequestHeader set Authorization "expr=Bearer %{{env:OIDC_access_token}}"
</Location>
"""


@contextmanager
def proxies(lab: Lab, wanted: Callable[[str], bool]) -> Iterator[list[Subject]]:
    """Start those whose name is wanted, each logged in to."""
    ports = {name: free_port() for name in NAMES}
    callbacks = [f"http://{HOST}:{port}/bff/callback/corp" for port in ports.values()]
    callbacks += [f"http://{HOST}:{port}/redirect_uri" for port in ports.values()]
    with lab.servers(callbacks), ExitStack() as stack:
        subjects = []
        for name in filter(wanted, NAMES):
            start = STARTERS[name]
            subjects.append(stack.enter_context(start(lab, name, ports[name])))
        yield subjects


@contextmanager
def _direct(lab: Lab, name: str, _port: int) -> Iterator[Subject]:
    yield Subject(name, lab.upstream, None, _fields(OTHER_COOKIES))


def _plain(template: str, file: str, command: Callable[[Path, Path], list[str]]) -> Any:
    @contextmanager
    def start(lab: Lab, name: str, port: int) -> Iterator[Subject]:
        config = lab.write(file.format(port), _filled(template, lab, port))
        with started(
            command(config, lab.directory), core=PROXY_CORE, port=port, log=lab.directory / f"{port}.log"
        ) as pid:
            yield Subject(name, port, pid, _fields(OTHER_COOKIES))

    return start


def _oidc(cache: str) -> Any:
    @contextmanager
    def start(lab: Lab, name: str, port: int) -> Iterator[Subject]:
        more = APACHE_OIDC.replace("{cache}", cache)
        config = lab.write(f"apache-{port}.conf", _filled(APACHE.replace("{more}", more), lab, port))
        with started(
            _apache(config, lab.directory), core=PROXY_CORE, port=port, log=lab.directory / f"{port}.log"
        ) as pid:
            cookies = asyncio.run(_log_in(f"http://{HOST}:{port}/small.json"))
            yield Subject(name, port, pid, _fields(f"{OTHER_COOKIES}; {cookies}"))

    return start


def _filled(template: str, lab: Lab, port: int) -> str:
    return template.format(
        dir=lab.directory,
        port=port,
        upstream=lab.upstream,
        websocket=lab.websocket,
        token=TOKEN,
        issuer=lab.issuer,
        redis=lab.redis,
        client_id=CLIENT_ID,
        client_secret=CLIENT_SECRET,
        temporary=_TEMPORARY.format(lab.directory),
    )


def _apache(config: Path, _directory: Path) -> list[str]:
    return [shutil.which("apache2") or "/usr/sbin/apache2", "-D", "FOREGROUND", "-f", str(config)]


async def _log_in(url: str) -> str:
    """Follow every redirect of a login, and return the cookies of the site."""
    import aiohttp

    jar = aiohttp.CookieJar(unsafe=True)
    async with aiohttp.ClientSession(cookie_jar=jar) as http, http.get(url) as response:
        assert response.status == 200, (response.status, str(response.url), await response.text())
    return "; ".join(f"{cookie.key}={cookie.value}" for cookie in jar if "demo" not in cookie.key)


def _fields(cookies: str) -> tuple[str, ...]:
    return (*REQUEST_FIELDS, f"Cookie: {cookies}")


# --- ours

BY_THE_HANDLER = 'wrk.headers["Connection"] = "keep-alive\\t"'
"""The same GET with a tab in a field about framing, which the fast path leaves to aiohttp's parser and handler."""


def _broker(
    store: str,
    *,
    workers: int = 1,
    script: str = "",
    path: str = "/small.json",
    users: int = 1,
    by_handle: bool = False,
    **settings: Any,
) -> Any:
    @contextmanager
    def start(lab: Lab, name: str, port: int) -> Iterator[Subject]:
        directory = lab.directory / f"broker-{port}"
        directory.mkdir()
        admin = free_port()
        url = {"sqlite": f"sqlite://{directory}/broker.db", "redis": f"redis://{HOST}:{lab.redis}/0"}[store]
        upstream = f"http://{HOST}:{lab.upstream}"
        document = {
            "public_url": f"http://{HOST}:{port}",
            "listen": f"{HOST}:{port}",
            "admin": {"listen": f"{HOST}:{admin}", "token": {"value": ADMIN_TOKEN}},
            "keys": [{"value": new_key(SystemRandomness()).reveal()}],
            "store": {"url": url, **({"prefix": f"bench{port}:"} if store == "redis" else {})},
            "spool_dir": str(directory / "spool"),
            "workers": workers,
            "providers": {"corp": provider_options(f"http://{HOST}:{lab.issuer}")},
            "routes": [
                {"path": "/", "upstream": upstream, "token": "user"},
                {"path": "/open", "upstream": upstream, "token": "none"},
                {"path": "/scrubbed", "upstream": upstream, "token": "user", "scrub": True},
                {"path": "/socket", "upstream": f"http://{HOST}:{lab.websocket}", "token": "user"},
            ],
            **settings,
        }
        config = lab.write(f"broker-{port}.yaml", json.dumps(document))
        command = [sys.executable, "-m", "broker", "run", str(config)]
        core = PROXY_CORE if workers == 1 else f"{PROXY_CORE},{LOAD_CORE}"
        with started(command, core=core, port=port, log=lab.directory / f"{port}.log") as pid:
            if by_handle:
                line = asyncio.run(_handle(f"http://{HOST}:{lab.issuer}", f"http://{HOST}:{admin}"))
                yield Subject(name, port, pid, (*REQUEST_FIELDS, line), workers, script, path)
                return
            cookies = [
                f"{OTHER_COOKIES}; {asyncio.run(_broker_session(f'http://{HOST}:{port}'))}" for _ in range(users)
            ]
            several = tuple(cookies) if users > 1 else ()
            yield Subject(name, port, pid, _fields(cookies[0]), workers, script, path, several)

    return start


async def _broker_session(origin: str) -> str:
    async with Browser(origin) as browser:
        await browser.log_in()
        assert (await browser.get("/small.json")).status == 200
        (cookie,) = [cookie for cookie in browser.http.cookie_jar if cookie.key == "session"]
    return f"session={cookie.value}"


async def _handle(issuer: str, admin: str) -> str:
    """Return the field that shows a new handle."""
    import aiohttp

    async with aiohttp.ClientSession(raise_for_status=True) as http:
        async with http.post(f"{issuer}/_issue", json={"subject": "batch"}) as response:
            tokens = await response.json()
        document = {"provider": "corp", "subject": "batch", "refresh_token": tokens["refresh_token"]}
        headers = {"Authorization": f"Bearer {ADMIN_TOKEN}"}
        async with http.post(f"{admin}/api/grants", json=document, headers=headers) as response:
            issued = await response.json()
    return f"Authorization: Bearer {issued['handle']}"


@contextmanager
def _plain_aiohttp(lab: Lab, name: str, port: int) -> Iterator[Subject]:
    command = [sys.executable, "-m", "benchmarks.plain_aiohttp", str(port), str(lab.upstream), str(lab.websocket)]
    with started(command, core=PROXY_CORE, port=port, log=lab.directory / f"{port}.log") as pid:
        yield Subject(name, port, pid, _fields(OTHER_COOKIES))


STARTERS: dict[str, Any] = {
    "direct": _direct,
    "nginx": _plain(NGINX, "nginx-{}.conf", nginx),
    "HAProxy": _plain(HAPROXY, "haproxy-{}.cfg", lambda config, _: ["/usr/sbin/haproxy", "-db", "-f", str(config)]),
    "Caddy": _plain(CADDY, "Caddyfile-{}", lambda config, _: ["caddy", "run", "--adapter", "caddyfile", "--config", str(config)]),
    "Apache mod_proxy": _plain(APACHE.replace("{more}", APACHE_PLAIN), "apache-{}.conf", _apache),
    "mod_auth_openidc, shm": _oidc("OIDCCacheType shm"),
    "mod_auth_openidc, Redis": _oidc("OIDCCacheType redis\nOIDCRedisCacheServer 127.0.0.1:{redis}"),
    "aiohttp, plain": _plain_aiohttp,
    "broker, SQLite": _broker("sqlite"),
    "broker, SQLite, by the handler": _broker("sqlite", script=BY_THE_HANDLER),
    "broker, SQLite, scrubbed": _broker("sqlite", path="/scrubbed/small.json"),
    "broker, SQLite, handle": _broker("sqlite", by_handle=True),
    "broker, SQLite, no session": _broker("sqlite", path="/open/small.json"),
    "broker, SQLite, 2 workers": _broker("sqlite", workers=2),
    "broker, Redis": _broker("redis"),
    "broker, Redis, 2 workers": _broker("redis", workers=2),
    "broker, Redis, no cache": _broker("redis", users=32, session={"cache_ttl": "0s"}),
    "broker, Redis, nothing kept": _broker("redis", users=32, session={"cache_ttl": "0s", "max_cached": 1}),
}  # fmt: skip
NAMES = tuple(STARTERS)
