"""Discovery, and what overrides it."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from broker.core.client_auth import ClientAuthMethod, TlsOptions
from broker.core.provider import ProviderOptions
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.jwks import Jwks
from broker.services.metadata import TTL_SECONDS, Metadata, read_metadata
from broker.services.outbound import Outbound
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer
from tests.support.ports import free_port

OPENID = "/.well-known/openid-configuration"
OAUTH = "/.well-known/oauth-authorization-server"
ISSUER = "https://as.example"


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        yield server


@pytest.fixture
async def outbound() -> AsyncIterator[Outbound]:
    outbound = Outbound()
    yield outbound
    await outbound.close()


def metadata(outbound: Outbound, clock: ManualClock | None = None, **options: Any) -> Metadata:
    return Metadata(
        ProviderOptions(client_id="c", **options), outbound=outbound, clock=clock or ManualClock(), at="providers.corp"
    )


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("", OPENID),
        ("", OAUTH),
        ("/tenant", f"/tenant{OPENID}"),
        ("/tenant", f"{OAUTH}/tenant"),
        ("/tenant/", f"/tenant{OPENID}"),
    ],
)
async def test_metadata_is_found_at_its_places(
    server: DocumentServer, outbound: Outbound, path: str, place: str
) -> None:
    """OpenID's place is asked first, then RFC 8414's, each made from the issuer's path."""
    issuer = server.url + path
    server.answers[place] = (200, {"issuer": issuer, "token_endpoint": f"{server.url}/t"})

    assert f"{server.url}/t" == await metadata(outbound, issuer=issuer).need("token_endpoint")


async def test_configured_endpoints_come_first_and_need_no_discovery(
    server: DocumentServer, outbound: Outbound
) -> None:
    """An explicit endpoint is used as it is, without a request."""
    here = metadata(outbound, issuer=server.url, token_endpoint="https://as.example/t")

    assert "https://as.example/t" == await here.need("token_endpoint")
    assert [] == server.requests


async def test_without_discovery_nothing_is_asked(server: DocumentServer, outbound: Outbound) -> None:
    """discovery: false leaves only what is configured."""
    here = metadata(outbound, issuer=server.url, discovery=False, token_endpoint="https://as.example/t")

    assert await here.find("revocation_endpoint") is None
    with pytest.raises(ProviderProtocolError, match="revocation_endpoint"):
        await here.need("revocation_endpoint")
    assert server.url == (await here.server()).issuer
    assert [] == server.requests


@pytest.mark.parametrize(
    "issuer",
    ["https://evil.example", "{url}/", "HTTP://127.0.0.1", "", None, ["{url}"]],
)
async def test_lg_05_metadata_of_another_issuer_is_refused(
    server: DocumentServer, outbound: Outbound, issuer: Any
) -> None:
    """The issuer must be identical, character by character."""
    claimed = issuer.replace("{url}", server.url) if isinstance(issuer, str) else issuer
    server.answers[OPENID] = (200, {"issuer": claimed, "token_endpoint": f"{server.url}/t"})

    with pytest.raises(ProviderError, match="issuer"):
        await metadata(outbound, issuer=server.url).need("token_endpoint")


@pytest.mark.parametrize(
    "url",
    [
        "http://as.example/token",
        "https://169.254.169.254/token",
        "https://[fe80::1]/token",
        "https://127.0.0.1/token",
        "http://localhost/token",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "/token",
        "",
    ],
)
@pytest.mark.parametrize("endpoint", ["token_endpoint", "jwks_uri", "authorization_endpoint"])
def test_lg_05_urls_that_must_not_be_called_are_refused(url: str, endpoint: str) -> None:
    """Metadata can't send the broker to plain http, to this machine or to a cloud's metadata service."""
    options = ProviderOptions(client_id="c", issuer=ISSUER)

    with pytest.raises(ProviderProtocolError, match=endpoint):
        read_metadata({"issuer": ISSUER, endpoint: url}, options)


@pytest.mark.parametrize(
    "answer", [(500, b""), (200, b"<html>"), (302, b""), (200, {"issuer": "https://evil.example"})]
)
async def test_lg_05_the_last_good_metadata_is_kept(
    server: DocumentServer, outbound: Outbound, answer: tuple[int, Any]
) -> None:
    """Once known, an endpoint stays known when the metadata can't be had or turns bad."""
    clock = ManualClock()
    server.answers[OPENID] = (200, {"issuer": server.url, "token_endpoint": f"{server.url}/t"})
    here = metadata(outbound, clock, issuer=server.url)
    await here.need("token_endpoint")
    server.answers[OPENID] = answer
    clock.advance(TTL_SECONDS + 1)

    assert f"{server.url}/t" == await here.need("token_endpoint")
    assert 2 == server.count(OPENID)


async def test_ft_09_a_server_that_is_down_at_start_is_found_later(server: DocumentServer, outbound: Outbound) -> None:
    """Discovery that failed is tried again within seconds."""
    clock = ManualClock()
    server.answers[OPENID] = (503, b"")
    here = metadata(outbound, clock, issuer=server.url)
    with pytest.raises(ProviderError, match="503"):
        await here.need("token_endpoint")
    server.answers[OPENID] = (200, {"issuer": server.url, "token_endpoint": f"{server.url}/t"})
    clock.advance(3)

    assert f"{server.url}/t" == await here.need("token_endpoint")
    await here.close()


async def test_metadata_may_be_elsewhere(server: DocumentServer, outbound: Outbound) -> None:
    """metadata_url replaces the well-known places."""
    server.answers["/custom"] = (200, {"issuer": server.url, "token_endpoint": f"{server.url}/t"})

    assert f"{server.url}/t" == await metadata(outbound, metadata_url=f"{server.url}/custom").need("token_endpoint")


def test_mutual_tls_clients_use_their_aliases() -> None:
    """RFC 8705 section 5: a client that shows a certificate calls the aliases, any other the endpoints."""
    document = {
        "issuer": ISSUER,
        "token_endpoint": f"{ISSUER}/t",
        "revocation_endpoint": f"{ISSUER}/r",
        "mtls_endpoint_aliases": {"token_endpoint": "https://mtls.as.example/t"},
    }
    with_certificate = ProviderOptions(
        client_id="c",
        issuer=ISSUER,
        token_endpoint_auth_method=ClientAuthMethod.TLS_CLIENT_AUTH,
        tls=TlsOptions(certificate_file="client.pem"),
    )

    assert {"token_endpoint": "https://mtls.as.example/t", "revocation_endpoint": f"{ISSUER}/r"} == read_metadata(
        document, with_certificate
    ).endpoints
    without = read_metadata(document, ProviderOptions(client_id="c", issuer=ISSUER))
    assert f"{ISSUER}/t" == without.endpoints["token_endpoint"]


def test_promises_count_only_as_true() -> None:
    """Flags of the metadata are the JSON value true, not a text."""
    options = ProviderOptions(client_id="c", issuer=ISSUER)
    names = ("authorization_response_iss_parameter_supported", "require_pushed_authorization_requests")

    yes = read_metadata({"issuer": ISSUER, **dict.fromkeys(names, True)}, options)
    no = read_metadata({"issuer": ISSUER, **dict.fromkeys(names, "true")}, options)

    assert (True, True) == (yes.issuer_in_response, yes.requires_pushed_authorization)
    assert (False, False) == (no.issuer_in_response, no.requires_pushed_authorization)


async def test_what_can_not_be_fetched_is_named(
    server: DocumentServer, outbound: Outbound, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says whose document it is, where it was looked for, both issuers where they differ, and the key."""
    server.answers[OPENID] = (200, {"issuer": f"{server.url}/"})
    broken = f"http://127.0.0.1:{free_port()}/metadata"
    for here in (metadata(outbound, issuer=server.url), metadata(outbound, metadata_url=f"{broken}?key=canary")):
        with pytest.raises(ProviderError):
            await here.server()
    mismatch, unreachable = ({**record.__dict__, "event": record.message} for record in caplog.records)

    assert ("provider_document_not_fetched", "corp", "metadata") == tuple(
        mismatch[name] for name in ("event", "provider", "document")
    )
    assert ("providers.corp.issuer", "providers.corp.metadata_url") == (mismatch["look_at"], unreachable["look_at"])
    assert f"speaks for '{server.url}/', and not for the configured '{server.url}'" in mismatch["reason"]
    assert f"the metadata can't be fetched from {broken}: connection refused" == unreachable["reason"]


async def test_keys_that_can_not_be_fetched_are_named(
    server: DocumentServer, outbound: Outbound, caplog: pytest.LogCaptureFixture
) -> None:
    """The same of a key set."""
    here = metadata(outbound, token_endpoint="https://as.example/t", jwks_uri=f"{server.url}/jwks?key=canary")
    with pytest.raises(ProviderError):
        await Jwks(here, outbound=outbound, clock=ManualClock()).candidates(kid=None, alg="ES256")
    (record,) = caplog.records

    assert (
        "corp",
        "jwks",
        "providers.corp.jwks_uri",
        f"the keys can't be fetched from {server.url}/jwks: status 404",
    ) == (*(record.__dict__[name] for name in ("provider", "document", "look_at", "reason")),)
