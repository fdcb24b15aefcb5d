"""An attacker before the whole broker: raw bytes in, and what the upstream, the log and other users see of them."""

import asyncio
import json
import re
import sqlite3
import tomllib
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.support.broker_process import BrokerProcess, Browser, navigation, provider_options
from tests.support.raw_upstream import OK, RawRequest, RawUpstream, Wire, answering
from tests.support.remote_authorization_server import RemoteLedgerServer
from tests.support.waiting import until

pytestmark = pytest.mark.system

PATHS = tomllib.loads((Path(__file__).parents[1] / "corpus/paths.toml").read_text())["case"]
ADMIN_TOKEN = "an-admin-token-of-thirty-two-characters"
ADMIN_PATHS = ["/healthz", "/readyz", "/metrics", "/api/grants", "/api/handles", "/debug", "/admin"]
SPELLINGS = [
    "{path}", "{path}/", "/{path}", "/.{path}", "/%2e{path}", "/x/..{path}", "/x/%2e%2e{path}", "/x/..%2f{path}",
    "/%2f{path}", "{path};x=1", "{path}%00", "{path}%20", "{path}.", "{path}?x", "{path}#x", "{path}%23", "\\{path}",
    "/bff{path}", "/bff/..{path}", "/bff/%2e%2e{path}", "http://127.0.0.1:{admin}{path}", "//127.0.0.1:{admin}{path}",
]  # fmt: skip
CONNECTS = """
import os, sys
sys.modules["uvloop"] = None  # it connects without telling Python
def note(event, args):
    if event == "socket.connect":
        with open(os.environ["CONNECTS"], "a") as file:
            file.write(f"{args[1]!r}\\n")
sys.addaudithook(note)
"""
"""As sitecustomize.py, runs at the start of a broker, and writes down each address that it connects to."""


@pytest.fixture
async def upstream() -> AsyncIterator[RawUpstream]:
    async with RawUpstream() as server:
        yield server


@pytest.fixture
async def broker(tmp_path: Path, provider: RemoteLedgerServer, upstream: RawUpstream) -> AsyncIterator[BrokerProcess]:
    by_name = f"http://localhost:{upstream.port}"  # cookie jars ignore addresses, and would hide a mix-up
    made = BrokerProcess(
        tmp_path,
        environment={"PYTHONPATH": str(tmp_path), "CONNECTS": str(tmp_path / "connects")},
        providers={"corp": provider_options(provider.url, allowed_parameters=["login_hint"])},
        routes=[
            {"path": "/app/private", "upstream": by_name, "token": "user"},
            {"path": "/app", "upstream": by_name, "token": "user_or_none"},
            {"path": "/public", "upstream": by_name, "token": "none"},
        ],
        log={"level": "debug"},
    )
    made.settings["admin"]["token"] = {"value": ADMIN_TOKEN}
    async with made:
        yield made


async def send(broker: BrokerProcess, target: str, *fields: str, method: str = "GET", host: str | None = None) -> bytes:
    """Send one request on a connection of its own, and return all that comes back."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host or f'127.0.0.1:{broker.port}'}", "Connection: close", *fields]
    return await exchange(broker.port, "\r\n".join([*lines, "", ""]).encode("latin-1"))


async def exchange(port: int, data: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionResetError:
        return b""
    finally:
        writer.close()


def status_of(answer: bytes) -> int:
    return int(answer[9:12])


def cookie_of(browser: Browser) -> str:
    (cookie,) = [cookie for cookie in browser.http.cookie_jar if cookie.key == "session"]
    return cookie.value


async def test_ad_01_no_spelling_leads_to_the_operators_listener(broker: BrokerProcess, upstream: RawUpstream) -> None:
    """Each administration path, in every spelling and with the right token, is refused on the public listener."""
    targets = [
        spelling.replace("{path}", path).replace("{admin}", str(broker.admin_port))
        for path in ADMIN_PATHS
        for spelling in SPELLINGS
    ]
    answers = [await send(broker, target, f"Authorization: Bearer {ADMIN_TOKEN}") for target in targets]

    wrong = [(target, status_of(answer)) for target, answer in zip(targets, answers, strict=True)
             if status_of(answer) not in {400, 401, 404, 405, 421}]  # fmt: skip
    assert [] == wrong
    assert [] == upstream.requests
    assert not any(b'"grants"' in answer or b"# HELP" in answer or b'"status": "ok"' in answer for answer in answers)


async def test_rt_01_and_rt_05_only_what_is_below_a_route_reaches_it(
    broker: BrokerProcess, upstream: RawUpstream
) -> None:
    """Of the corpus of paths nothing passes the private route's door, and a longer name is another name."""
    targets = [case["target"].replace("/api", "/app") for case in PATHS]
    targets += ["/app/privatex", "/app/private.json", "/appx", "/publicx", "/app/private-2", "/public.json"]
    statuses = {}
    for target in targets:
        upstream.requests.clear()
        statuses[target] = status_of(await send(broker, target) or b"HTTP/1.1 400")
        for request in upstream.requests:
            assert target.encode("latin-1") == request.target, "what is forwarded isn't what was judged"
            assert not re.match(rb"(?i)/app/private(?![^/?])", request.target), target

    assert 401 == statuses["/app/private"]
    assert (200, 200) == (statuses["/app/privatex"], statuses["/app/private.json"])
    assert (404, 404, 404) == (statuses["/appx"], statuses["/publicx"], statuses["/public.json"])


async def test_rt_02_and_jw_01_nothing_is_connected_to_but_what_is_configured(
    broker: BrokerProcess, upstream: RawUpstream, provider: RemoteLedgerServer, tmp_path: Path
) -> None:
    """Whatever a request names as its target, the broker's sockets go to the upstream and the provider alone."""
    (tmp_path / "sitecustomize.py").write_text(CONNECTS)
    await broker.stop()
    await broker.start()
    async with RawUpstream() as trap, Browser(broker.url) as browser:
        evil = f"127.0.0.1:{trap.port}"
        await browser.log_in()
        cookie = f"Cookie: session={cookie_of(browser)}"
        targets = [
            f"http://{evil}/app/x", f"https://{evil}/app/x", f"//{evil}/app/x", f"@{evil}/app/x", f"/@{evil}/app/x",
            f"http://127.0.0.1:{broker.port}@{evil}/app/x", f"/\\{evil}/app", f"/app/http://{evil}/",
            f"/app?url=http://{evil}/", f"/app/..//{evil}/", f"/app#@{evil}/", f"/app:@{evil}/", evil, f"ftp://{evil}/app",
            f"/bff/login?returnUrl=//{evil}/&provider=http://{evil}/", f"/bff/callback/http:%2f%2f{evil}",
            f"/bff/callback/corp?state={'A' * 43}&code=x&iss=http://{evil}/", f"/app?x=http://{evil}",
        ]  # fmt: skip
        fields = [
            f"X-Forwarded-Host: {evil}", f"Forwarded: host={evil}", f"X-Original-URL: http://{evil}/",
            f"X-Rewrite-URL: http://{evil}/", f"X-Forwarded-For: {evil}", f"Referer: http://{evil}/",
            f"Proxy: http://{evil}/", f"Authorization: Bearer {_token_that_points_to(evil)}",
        ]  # fmt: skip
        for target in targets:
            await send(broker, target, cookie, "X-CSRF: 1", *navigation_lines())
            await send(broker, target, cookie, "X-CSRF: 1", host=evil)
        for field in fields:
            await send(broker, "/app/x", cookie, "X-CSRF: 1", field)
            await send(broker, "/app/private/x", field)
        logout_token = f"logout_token={_token_that_points_to(evil)}".encode()
        head = f"POST /bff/backchannel-logout/corp HTTP/1.1\r\nHost: 127.0.0.1:{broker.port}\r\nConnection: close\r\n"
        head += f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(logout_token)}\r\n\r\n"
        await exchange(broker.port, head.encode() + logout_token)

    connects = (tmp_path / "connects").read_text().splitlines()
    allowed = {upstream.port, int(provider.url.rpartition(":")[2])}
    assert allowed == {int(port) for line in connects for port in re.findall(r"'(?:127\.0\.0\.1|::1)', (\d+)", line)}
    assert all(line.startswith(("('127.0.0.1', ", "('::1', ")) for line in connects)
    assert 0 == trap.connections


def navigation_lines() -> list[str]:
    return [f"{name}: {value}" for name, value in navigation().items()]


def _token_that_points_to(evil: str) -> str:
    from base64 import urlsafe_b64encode

    url = f"http://{evil}/keys"
    header = {"alg": "RS256", "typ": "logout+jwt", "jku": url, "x5u": url, "kid": url}
    parts = (json.dumps(header), json.dumps({"iss": f"http://{evil}", "sub": "alice"}), "signature")
    return ".".join(urlsafe_b64encode(part.encode()).rstrip(b"=").decode() for part in parts)


async def test_rt_03_no_header_replaces_a_session(broker: BrokerProcess, upstream: RawUpstream) -> None:
    """Whoever has no session gets 401, whatever they say of themselves or of another request."""
    fields = [
        "X-Original-URL: /public", "X-Rewrite-URL: /public", "X-Forwarded-Uri: /public", "X-Forwarded-Prefix: /public",
        "X-Original-Method: OPTIONS", "X-HTTP-Method-Override: OPTIONS", "X-Method-Override: OPTIONS",
        "X-Forwarded-Method: OPTIONS", "User-Agent: GoogleHC/1.0", "User-Agent: kube-probe/1.30", "User-Agent: ELB-HealthChecker/2.0",
        "X-Forwarded-User: admin", "X-Auth-Request-Email: a@corp.example", "X-Remote-User: admin", "Remote-User: admin",
        "X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "Forwarded: for=127.0.0.1;proto=https",
        "X-Middleware-Subrequest: middleware", "X-Envoy-Internal: true", "X-Original-Host: localhost",
        "Authorization: Bearer x", "Authorization: Basic YWRtaW46YWRtaW4=", "Cookie: session=", "Cookie: session=admin",
        "Cookie: sub=admin; user=admin", "Cookie: _oauth2_proxy=x", "Client-Cert: :AA==:", "X-SSL-Client-Verify: SUCCESS",
        "Accept: text/event-stream", "Upgrade: h2c", "X-CSRF: 1", "Sec-Fetch-Site: same-origin",
    ]  # fmt: skip
    targets = ["/app/private", "/app/private/x?_method=OPTIONS", "/app/private?access_token=x&skip_auth=true"]
    seen = {(target, field): status_of(await send(broker, target, field)) for target in targets for field in fields}

    assert {} == {key: status for key, status in seen.items() if status not in {400, 401}}
    assert [] == upstream.requests


async def test_hd_01_03_05_06_a_session_goes_up_as_one_token_and_nothing_else(
    broker: BrokerProcess, upstream: RawUpstream
) -> None:
    """Cookies in any split, credentials in any case, and a Connection that names them: the upstream sees one token."""
    async with Browser(broker.url) as browser:
        await browser.log_in()
        session = cookie_of(browser)
    cases = [
        [f"Cookie: session={session}; theme=dark"], ["Cookie: theme=dark", f"Cookie: session={session}"],
        [f"Cookie: session={session}", "Cookie: login-0123abcd=canary", "cookie: theme=dark"],
        [f"cOOKIE: theme=dark;session={session};login-0123abcd=canary"],
        [f"Cookie: session={session}", "aUTHORIZATION: Basic canary"],
        [f"Cookie: session={session}", "Connection: close, Authorization, X-Forwarded-For, Cookie, Host, X-Request-ID"],
        [f"Cookie: session={session}", "Connection: close, Content-Length, Transfer-Encoding", "Proxy-Authorization: canary"],
        [f"Cookie: session={session}", "TE: trailers", "Trailer: X-T", "Keep-Alive: 5", "HTTP2-Settings: AAMA", "Upgrade: h2c"],
        [f"Cookie: session={session}", "Proxy_Authorization: canary", "X_Forwarded_For: 1.2.3.4", "X.Forwarded.For: 1.2.3.4"],
    ]  # fmt: skip
    statuses = [status_of(await send(broker, "/app/private/x", "X-CSRF: 1", *case)) for case in cases]

    assert [200] * len(cases) == statuses
    for request in upstream.requests:
        (authorization,) = request.fields(b"authorization")
        assert authorization.startswith(b"Bearer ")
        assert [b"127.0.0.1"] == request.fields(b"x-forwarded-for")
        assert 1 == len(request.fields(b"host"))
        assert session.encode() not in request.head
        assert b"canary" not in request.head
        assert set() == {name.lower() for name in request.names} & {
            b"te", b"trailer", b"keep-alive", b"http2-settings", b"upgrade", b"proxy-authorization", b"x_forwarded_for",
        }  # fmt: skip


async def test_sm_07_what_goes_up_is_written_to_the_letter(broker: BrokerProcess, upstream: RawUpstream) -> None:
    """Whatever bytes come in, a head that goes up has CRLF, canonical lengths and no control byte."""
    odd = [chr(byte) for byte in (*range(32), 127, 128, 133, 160, 255)]
    heads = [f"GET /public/{char} HTTP/1.1\r\nHost: {{host}}\r\nX{char}A: 1\r\nX-B: a{char}b\r\n\r\n" for char in odd]
    heads += [f"GET /public/x HTTP/1.1\r\nHost: {{host}}\r\nX-B: a{char}b\r\n\r\n" for char in odd]
    heads += [f"GET /public/x HTTP/1.1\r\nHost: {{host}}\r\nX{char}: b\r\n\r\n" for char in odd]
    heads += [f"G{char}T /public/x HTTP/1.1\r\nHost: {{host}}\r\n\r\n" for char in odd]
    heads += [
        f"POST /public/x HTTP/1.1\r\nHost: {{host}}\r\nContent-Length: {length}\r\n\r\nab"
        for length in ("2", "+2", "02", "2,2", "0x2", " 2 ", "2\r\nContent-Length: 2")
    ]
    heads += [
        "GET /public/x HTTP/1.1\nHost: {host}\n\n",
        "GET /public/x HTTP/1.1\r\nHost: {host}\r\nX: a\r\n b\r\n\r\n",
    ]
    host = f"127.0.0.1:{broker.port}\r\nConnection: close"
    for head in heads:
        await exchange(broker.port, head.replace("{host}", host).encode("latin-1"))

    assert len(upstream.requests) > 5
    line = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+: [\t\x20-\x7e\x80-\xff]*")
    for request in upstream.requests:
        first, *fields = request.head.removesuffix(b"\r\n\r\n").split(b"\r\n")
        assert re.fullmatch(rb"(GET|POST) /[!-~]* HTTP/1\.1", first), first
        assert [] == [field for field in fields if not line.fullmatch(field)]
        assert request.fields(b"content-length") in ([], [b"2"])


async def test_hd_05_no_retry_and_no_error_takes_a_cookie_along(broker: BrokerProcess, upstream: RawUpstream) -> None:
    """After a 401 the request goes up again, without the cookie again; neither do the answers to errors show it."""
    async with Browser(broker.url) as browser:
        await browser.log_in()
        session = cookie_of(browser)
    upstream.script = answering(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")
    fields = [f"Cookie: session={session}; login-0123abcd=canary", "X-CSRF: 1"]
    refused = await send(broker, "/app/private/x", *fields)
    upstream.script = answering(b"garbage\r\n\r\n", close=True)
    broken = await send(broker, "/app/private/x", *fields)
    absent = await send(broker, "/nowhere", *fields, *navigation_lines())

    assert [401, 502, 404] == [status_of(answer) for answer in (refused, broken, absent)]
    assert 2 <= len(upstream.requests)
    shown = b"".join([*(request.head for request in upstream.requests), refused, broken, absent])
    assert session.encode() not in shown
    assert b"canary" not in shown


async def test_hd_08_a_preflight_is_answered_here(broker: BrokerProcess, upstream: RawUpstream) -> None:
    """Without a session nothing of it goes up, whoever it says it is; and no origin is let in."""
    for target in ("/app/private/x", "/bff/user", "/bff/logout"):
        answer = await send(
            broker,
            target,
            "Origin: https://evil.test",
            "Access-Control-Request-Method: DELETE",
            "X-Forwarded-User: admin",
            method="OPTIONS",
        )
        assert status_of(answer) in {400, 401, 403, 405}, target
        assert b"access-control-allow" not in answer.lower(), target

    assert [] == upstream.requests


async def test_up_01_02_05_what_one_user_was_given_reaches_no_other(
    broker: BrokerProcess, upstream: RawUpstream
) -> None:
    """Cookies that the upstream sets stay in the browser they were set in, our own names nowhere; redirects too."""

    async def personal(request: RawRequest, wire: Wire) -> None:
        user = request.fields(b"x-who")[0]
        await wire.send(
            b"HTTP/1.1 302 Found\r\nLocation: http://169.254.169.254/latest\r\nSet-Cookie: of=%b; Path=/\r\n"
            b"Set-Cookie: session=fixed\r\nSet-Cookie: SESSION=fixed\r\nContent-Length: %d\r\n\r\n%b"
            % (user, len(user), user)
        )

    upstream.script = personal
    async with Browser(broker.url) as alice, Browser(broker.url) as bob:
        await alice.log_in(user="alice")
        await bob.log_in(user="bob")
        answers = [
            (name, await browser.get(path, headers={"X-Who": name}))
            for _ in range(5)
            for name, browser in (("alice", alice), ("bob", bob))
            for path in ("/app/private/x", "/public/x")
        ]

    assert 20 == len(upstream.requests), "a redirect was followed"
    assert 20 > upstream.connections, "no connection was used again"
    tokens: dict[bytes, set[bytes]] = {}
    for request in upstream.requests:
        (user,) = request.fields(b"x-who")
        other = b"bob" if user == b"alice" else b"alice"
        tokens.setdefault(user, set()).update(request.fields(b"authorization"))
        assert all(b"of=" + other not in line for line in request.fields(b"cookie"))
    assert not tokens[b"alice"] & tokens[b"bob"]
    for name, answer in answers:
        assert (302, name.encode()) == (answer.status, answer.body)
        assert "fixed" not in json.dumps(answer.headers)


async def test_lk_03_a_flood_of_nonsense_is_one_line_each_and_no_traceback(
    broker: BrokerProcess, upstream: RawUpstream
) -> None:
    """Malformed requests and unknown cookies, whatever bytes they hold, are a line of JSON each at most."""
    malformed = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"\r\n\r\nX", b"\x00" * 64,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"GET / HTTP/1.1\r\n: x\r\n\r\n", b"GET /\x1b[31m HTTP/1.1\r\n\r\n",
        b"GET /app HTTP/1.1\r\nHost: x\r\nX: \xff\x00\r\n\r\n", b"POST /app HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n",
        b"POST /app HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET /" + b"a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /app HTTP/1.1\r\nHost: x\r\n" + b"X: y\r\n" * 2000 + b"\r\n",
    ]  # fmt: skip
    before = len(broker.log())
    for data in malformed * 10:
        await half_closed(broker.port, data)
    spent = len(await log_until_now(broker, "first")) - before
    assert spent <= 10 * len(malformed)

    before = len(broker.log())
    for number in range(500):
        cookie = f"Cookie: session={number:x}\x7f\xff; session={number}"
        assert status_of(await send(broker, "/app/private/x", cookie, "X-CSRF: 1")) in {400, 401}
    lines = (await log_until_now(broker, "second"))[before:]

    assert len([line for line in lines if line["event"] == "request_refused"]) <= 500
    # Whoever keeps an access log has one line for that, too.
    assert len(lines) <= 1000
    assert "Traceback" not in broker.log_path.read_text()
    assert [] == upstream.requests


async def log_until_now(broker: BrokerProcess, mark: str) -> list[dict[str, Any]]:
    """Return the lines of all that was asked before. The log is written by and by, so one more request is waited for."""
    path = f"/app/private/{mark}"
    await send(broker, path)
    await until(lambda: bool(_ids_of(broker, path)), what="the mark in the log")
    (request_id,) = _ids_of(broker, path)
    return [line for line in broker.log() if line.get("request_id") != request_id]


def _ids_of(broker: BrokerProcess, path: str) -> list[str]:
    return [line["request_id"] for line in broker.log() if (line["event"], line.get("path")) == ("request", path)]


async def half_closed(port: int, data: bytes) -> bytes:
    """Send bytes that may be half a request, say that this was all, and return what comes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        writer.write_eof()
        return await asyncio.wait_for(reader.read(), 10)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_lg_03_a_flood_of_login_starts_leaves_nothing_behind(
    broker: BrokerProcess, provider: RemoteLedgerServer, tmp_path: Path
) -> None:
    """A client that begins thousands of logins takes no memory, no store and no turn of anybody else's."""
    broker.settings["trusted_proxies"] = ["127.0.0.1/32"]
    await broker.stop()
    await broker.start()
    flood = [*navigation_lines(), "X-Forwarded-For: 192.0.2.66"]
    for _ in range(200):
        await send(broker, "/bff/login?returnUrl=/app", *flood)
    kept, memory = rows_kept(tmp_path), resident_bytes(broker.worker_pid)
    statuses = set()
    for _ in range(150):
        answers = await asyncio.gather(*(send(broker, "/bff/login?returnUrl=/app", *flood) for _ in range(20)))
        statuses |= {status_of(answer) for answer in answers}

    assert {303, 429} >= statuses
    assert 429 in statuses
    assert kept == rows_kept(tmp_path)
    assert resident_bytes(broker.worker_pid) - memory < 8 << 20
    async with Browser(broker.url) as browser:
        for _ in range(20):
            options: Any = {"headers": navigation(), "allow_redirects": False}
            async with browser.http.get(f"{broker.url}/bff/login", **options) as response:
                assert 303 == response.status
        sent = sum(len(cookie.key) + len(cookie.value) + 3 for cookie in browser.http.cookie_jar)
        await browser.log_in(return_url="/public")
    assert sent < 8 << 10, "a server that takes 8 KiB of fields would refuse this browser"


def rows_kept(directory: Path) -> dict[str, int]:
    """Count what the store keeps: of a client's rate that is one row, however often it comes."""
    with closing(sqlite3.connect(directory / "broker.db")) as db:
        tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        return {name: db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}  # noqa: S608


def resident_bytes(pid: int) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    assert found is not None
    return int(found[1]) << 10


async def test_br_02_every_kind_of_answer_on_a_token_route_says_no_store(
    broker: BrokerProcess, upstream: RawUpstream
) -> None:
    """Whatever the upstream allows caches to keep, and whatever goes wrong, no cache is allowed to keep it."""
    heads = [
        b"200 OK", b"304 Not Modified", b"302 Found", b"404 Not Found", b"500 Oops", b"206 Partial Content",
    ]  # fmt: skip
    hostile = (
        b"Cache-Control: public, max-age=600, immutable\r\nExpires: Thu, 01 Jan 2037 00:00:00 GMT\r\n"
        b"X-Accel-Expires: 600\r\nCDN-Cache-Control: public, max-age=600\r\nSurrogate-Control: max-age=600\r\n"
        b"Pragma: public\r\nSet-Cookie: theme=dark\r\n"
    )
    answers = {}
    async with Browser(broker.url) as browser:
        await browser.log_in()
        for head in heads:
            upstream.script = answering(b"HTTP/1.1 %b\r\n%bContent-Length: 0\r\n\r\n" % (head, hostile))
            answers[head.decode()] = await browser.get("/app/private/x")
        chunks = b"Transfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n"
        upstream.script = answering(b"HTTP/1.1 200 OK\r\n" + hostile + chunks)
        answers["a stream"] = await browser.get("/app/private/x")
        upstream.script = answering(b"HTTP/1.1 200 OK\r\n" + hostile + b"Content-Length: 0\r\n\r\n")
        async with Browser(broker.url) as nobody:
            answers["nobody's"] = await nobody.get("/app/x")
            answers["no session"] = await nobody.get("/app/private/x")
            answers["a login"] = await nobody.request("GET", "/bff/login", headers=navigation())
        answers["no such path"] = await browser.get("/nowhere")
        answers["a user"] = await browser.get("/bff/user")
        upstream.script = answering(b"garbage\r\n\r\n", close=True)
        answers["a broken answer"] = await browser.get("/app/private/x")

    for name, answer in answers.items():
        names = {field.lower() for field in answer.headers}
        assert "no-store" in answer.headers.get("Cache-Control", ""), name
        assert "public" not in answer.headers["Cache-Control"], name
        assert set() == names & {"expires", "x-accel-expires", "cdn-cache-control", "surrogate-control"}, name


async def test_a_plain_call_passes(broker: BrokerProcess, upstream: RawUpstream) -> None:
    """What the refusals of this file are worth: the same installation serves who may be served."""
    upstream.script = answering(OK)
    async with Browser(broker.url) as browser:
        await browser.log_in()
        assert [200, 200, 200] == [
            (await browser.get(path)).status for path in ("/app/private/x", "/app/x", "/public/x")
        ]
