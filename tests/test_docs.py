"""The documents say what is so: links lead somewhere, examples load, and everything public has its heading."""

import ast
import asyncio
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis
from aiohttp import web
from prometheus_client.metrics import MetricWrapperBase

from broker import errors
from broker.__main__ import _parser
from broker.config import PretendedSource, loads
from broker.config.settings import AdminOptions
from broker.core.refresh import TABLE
from broker.services import metrics
from broker.services.clock import SystemClock, SystemRandomness
from broker.stores.base import Busy, Event, StoreDown, Topic
from broker.stores.open import open_store
from broker.stores.options import StoreOptions, StoreUrl
from broker.web.app import Installation
from broker.web.floors import UnsafeLibrary
from broker.web.reloads import Reloads
from tests.support.redis_server import RedisServer
from tests.support.waiting import until

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

SMALLEST = {
    "public_url": "https://app.example.com",
    "keys": "[{file: broker-key}]",
    "providers": "{corp: {issuer: 'https://idp.example.com', client_id: app}}",
}

_FENCE = re.compile(r"^( *)```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code blocks."""
    return _FENCE.sub("", page.read_text())


def headings(page: Path) -> list[str]:
    return _HEADING.findall(prose(page))


def anchor(heading: str) -> str:
    """The fragment by which a heading is linked to."""
    words = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower())
    return words.replace(" ", "-")


def yaml_blocks() -> Iterator[tuple[str, str]]:
    """Each YAML block that is meant for the broker, with a name."""
    for name, page in zip(NAMES, PAGES, strict=True):
        for match in _FENCE.finditer(page.read_text()):
            indent, language, block = match.groups()
            if language == "yaml" and not block.lstrip().startswith("apiVersion:"):
                line = page.read_text()[: match.start()].count("\n") + 1
                yield f"{name}:{line}", re.sub(rf"^{indent}", "", block, flags=re.MULTILINE)


def public_errors() -> set[str]:
    """The code of every error."""

    def below(kind: type[errors.BrokerError]) -> Iterator[type[errors.BrokerError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    return {kind.code for kind in below(errors.BrokerError)}


def logged_events() -> set[str]:
    """The event of every line that the broker logs: the first argument, or one of two that it was chosen from."""
    events = {"request", "log_record_unprintable"}  # written past the logging module
    for file in ROOT.glob("broker/**/*.py"):
        if "demo" in file.parts:
            continue
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr="log"), args=[_, ast.Constant(value=str(event))]
                ):
                    events.add(event)
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log")), args=[ast.Constant(value=str(event)), *_]):
                    events.add(event)
                case ast.Assign(
                    targets=[ast.Name(id="event")],
                    value=ast.IfExp(body=ast.Constant(value=str(one)), orelse=ast.Constant(value=str(other))),
                ):
                    events |= {one, other}
                case _:
                    pass
    return events


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    """Every relative link names a file that is there, and every fragment a heading of it."""
    for target in _LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, fragment = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page.name} links to {target}"
        if fragment:
            assert fragment in map(anchor, headings(file)), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_a_page_has_one_title(page: Path) -> None:
    """The first heading is the only one of its rank, so that tables of contents make sense."""
    assert 1 == len(re.findall(r"^# ", prose(page), re.MULTILINE))


def test_every_page_can_be_found() -> None:
    """Each page of docs/ is linked from another one."""
    linked = {
        (page.parent / target.partition("#")[0]).resolve()
        for page in PAGES
        for target in _LINK.findall(prose(page))
        if not re.match(r"[a-z]+:", target)
    }
    assert [] == [str(page) for page in PAGES if page.parent != ROOT and page not in linked]


@pytest.mark.parametrize(("name", "block"), list(yaml_blocks()), ids=[name for name, _ in yaml_blocks()])
def test_examples_load(name: str, block: str) -> None:
    """Every YAML block of the documents is a good configuration, once what it leaves out is added."""
    missing = [
        f"{key}: {value}\n" for key, value in SMALLEST.items() if not re.search(rf"^{key}:", block, re.MULTILINE)
    ]
    settings = loads((block + "".join(missing)).encode(), file=name, source=PretendedSource())
    assert settings.keys


def test_every_error_has_its_heading() -> None:
    """The reference explains the codes that there are, and no others."""
    explained = {heading for heading in headings(ROOT / "docs/reference/errors.md") if heading.islower()}
    assert UnsafeLibrary.code in public_errors()
    assert public_errors() == explained


def test_every_metric_has_its_heading() -> None:
    """The reference explains the metrics that there are, and no others."""
    public = {
        value._name + ("_total" if value._type == "counter" else "")
        for value in vars(metrics).values()
        if isinstance(value, MetricWrapperBase)
    }
    for family in metrics.SupervisorsCollector(Reloads()).collect():
        public.add(family.name + ("_total" if family.type == "counter" else ""))
    explained = {heading for heading in headings(ROOT / "docs/reference/metrics.md") if heading.islower()}
    assert public == explained


def test_every_event_of_the_log_is_explained() -> None:
    """The page about the log has a row for each, and for no others."""
    rows = re.findall(r"^\| (`.+?) \|", (ROOT / "docs/reference/log.md").read_text(), re.MULTILINE)
    explained = {event for row in rows[rows.index("`request`") :] for event in re.findall(r"`([a-z_]+)`", row)}
    assert logged_events() == explained - {"operator"}


def test_the_refresh_machine_is_printed_as_it_is() -> None:
    """The page's table has the rows of the code's, in their order."""
    page = (ROOT / "docs/reference/refresh-machine.md").read_text()
    printed = [line for line in page.splitlines() if re.match(r"\| [A-Z_]+ \|", line)]
    assert [f"| {row.state.name} | {row.condition} | {row.decision} |" for row in TABLE] == printed


async def test_every_endpoint_has_its_heading() -> None:
    """The reference explains the endpoints that there are, and no others."""
    smallest = "".join(f"{key}: {value}\n" for key, value in SMALLEST.items())
    everything = smallest + "store: {url: 'memory:'}\nadmin: {token: {file: admin-token}}\n"
    settings = loads(everything.encode(), file="c.yaml", source=PretendedSource())
    installation = Installation(settings)
    served = {
        f"{route.method} {route.resource.canonical}"
        for runner in (installation.public_runner(), installation.admin_runner())
        for route in runner.app.router.routes()
        if route.resource is not None and route.method not in {"*", "HEAD"}
    }
    await installation.close()
    explained = {heading for heading in headings(ROOT / "docs/reference/endpoints.md") if re.match("[A-Z]+ /", heading)}
    assert served == explained


def test_every_command_has_its_heading() -> None:
    """The reference explains the commands that there are, and no others."""
    explained = {
        re.sub(r" [A-Z]+", "", heading).removeprefix("token-broker ")
        for heading in headings(ROOT / "docs/reference/cli.md")
        if heading.startswith("token-broker ")
    }
    assert {*commands(), "--version"} == explained


def commands() -> set[str]:
    """The commands of the parser, sub-commands with the word before them."""

    def below(parser: object, prefix: str) -> Iterator[str]:
        nested = [action.choices for action in parser._actions if action.choices]  # type: ignore[attr-defined]
        if not nested:
            yield prefix.strip()
        for choices in nested:
            for word, child in choices.items():
                yield from below(child, f"{prefix} {word}")

    return set(below(_parser(), ""))


def test_every_decision_is_in_the_index() -> None:
    """The index lists each decision by its number, and each fits on one screen."""
    directory = ROOT / "docs/explanation/decisions"
    index = (directory / "README.md").read_text()
    for page in sorted(directory.glob("[0-9]*.md")):
        assert f"[{page.name[:4]}]({page.name})" in index
        assert 60 >= page.read_text().count("\n")
        assert page.read_text().startswith(f"# {page.name[:4]}: ")
        assert {"Context", "Decision", "Consequences", "What would change it"} <= set(headings(page))


async def test_the_acl_of_the_redis_guide_is_enough(tmp_path: Path) -> None:
    """The user that the guide makes can do all that the store does, and touch nothing else."""
    (rule,) = re.findall(r"ACL SETUSER .+", (ROOT / "docs/howto/redis.md").read_text())
    server = RedisServer(tmp_path).start()
    try:
        server.command(*rule.replace(">PASSWORD", ">secret").split())
        location = StoreUrl.parse(f"redis://broker:secret@127.0.0.1:{server.port}/0")
        store = open_store(StoreOptions(url=location), SystemClock(), SystemRandomness())
        heard: list[Event] = []
        store.subscribe(heard.append)
        await store.start()
        version = await store.create("session:01", b"a", ttl_seconds=60, tags=("t",), due_at=1.0)
        assert version is not None
        version = await store.replace("session:01", b"b", version, ttl_seconds=60, due_at=1.0)
        assert version is not None
        assert await store.touch("session:01", 60)
        assert ["session:01"] == await store.find("t")
        assert ["session:01"] == await store.due("session", 2.0, 10)
        lease = await store.lease("session:01", 5)
        assert not isinstance(lease, (Busy, StoreDown))
        assert await lease.renew(5)
        await lease.release()
        await store.publish(Event(Topic.GENERATION, "g", 2))
        await until(lambda: Event(Topic.GENERATION, "g", 2) in heard)
        assert await store.delete("session:01", version)
        await store.ping()
        await store.close()
        for words in (("SET", "other", "x"), ("CONFIG", "GET", "*"), ("FLUSHALL",)):
            with pytest.raises(redis.exceptions.NoPermissionError):
                server.command(*words, username="broker", password="secret")
    finally:
        server.stop()


def test_the_container_is_locked_down() -> None:
    """Not root, and pinned dependencies, the build's own included."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    assert re.search(r"^USER [1-9]\d+$", dockerfile, re.MULTILINE)
    assert "--constraint constraints.txt" in dockerfile
    assert re.search(r'^requires = \["hatchling==[\d.]+"\]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)


async def test_the_container_asks_its_own_health(unused_tcp_port: int) -> None:
    """At the default listener, or where the operator says, and past any proxy; an unhealthy broker fails it."""
    dockerfile = (ROOT / "Dockerfile").read_text()
    (words,) = re.findall(r"^HEALTHCHECK .*\\\n +CMD (\[.+\])$", dockerfile, re.MULTILINE)
    assert f"ENV HEALTH_URL=http://127.0.0.1:{AdminOptions().listen.port}/healthz\n" in dockerfile
    proxies = {"HTTP_PROXY": f"http://127.0.0.1:{unused_tcp_port}", "http_proxy": f"http://127.0.0.1:{unused_tcp_port}"}

    async def asked(url: str) -> int | None:
        _, *arguments = json.loads(words)
        process = await asyncio.create_subprocess_exec(
            sys.executable, *arguments, env={**os.environ, **proxies, "HEALTH_URL": url}, stderr=asyncio.subprocess.PIPE
        )
        await process.communicate()
        return process.returncode

    async def healthz(_request: web.Request) -> web.Response:
        return web.json_response({"status": "ok"})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    assert (0, 1, 1) == (await asked(f"{url}/healthz"), await asked(f"{url}/x"), await asked(proxies["HTTP_PROXY"]))
    await runner.cleanup()
