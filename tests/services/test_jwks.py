"""Key sets: which keys are used for what. Storms and rotations are in test_id_tokens.py."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc.jwk import RSAKey

from broker.core.provider import ProviderOptions
from broker.errors import ProviderError, ProviderProtocolError
from broker.services.jwks import COOLDOWN_SECONDS, MAX_KEYS, Jwks, read_keys
from broker.services.metadata import Metadata
from broker.services.outbound import Outbound
from tests.support.clock import ManualClock
from tests.support.document_server import DocumentServer
from tests.support.forge import base64url, ec_key, ed_key, public_jwk, rsa_key


@pytest.fixture
async def server() -> AsyncIterator[DocumentServer]:
    async with DocumentServer() as server:
        server.answers["/jwks"] = (
            200,
            {"keys": [public_jwk(ec_key(), "a"), public_jwk(ec_key("P-256", "b"), "b"), public_jwk(rsa_key())]},
        )
        yield server


@asynccontextmanager
async def keys_of(server: DocumentServer, clock: ManualClock | None = None) -> AsyncIterator[Jwks]:
    options = ProviderOptions(client_id="c", token_endpoint="https://as.example/t", jwks_uri=f"{server.url}/jwks")
    outbound, clock = Outbound(), clock or ManualClock()
    jwks = Jwks(Metadata(options, outbound=outbound, clock=clock, at="providers.corp"), outbound=outbound, clock=clock)
    try:
        yield jwks
    finally:
        await jwks.close()
        await outbound.close()


async def test_a_name_leads_to_its_key_and_to_those_without_a_name(server: DocumentServer) -> None:
    """By kid and algorithm; a key without kid may be the one; without kid in the token, each that fits may."""
    async with keys_of(server) as jwks:
        found = {
            (kid, alg): [key.kid for key in await jwks.candidates(kid=kid, alg=alg)]
            for kid, alg in (("a", "ES256"), ("a", "RS256"), ("c", "ES256"), (None, "ES256"), (None, "EdDSA"))
        }

    assert {
        ("a", "ES256"): ["a"],
        ("a", "RS256"): [None],
        ("c", "ES256"): [],
        (None, "ES256"): ["a", "b"],
        (None, "EdDSA"): [],
    } == found
    assert 1 == server.count("/jwks")


async def test_what_is_missed_is_looked_for_once_per_cooldown(server: DocumentServer) -> None:
    """A key that isn't there is fetched for, at once and then not before the cooldown's end."""
    clock = ManualClock()
    async with keys_of(server, clock) as jwks:
        await jwks.candidates(kid="a", alg="ES256")
        server.answers["/jwks"] = (200, {"keys": [public_jwk(ec_key(), "new")]})
        for _ in range(3):
            assert ["new"] == [key.kid for key in await jwks.candidates(kid="new", alg="ES256", missed=True)]
        assert 2 == server.count("/jwks")
        clock.advance(COOLDOWN_SECONDS)
        await jwks.candidates(kid="newer", alg="ES256", missed=True)
        assert 3 == server.count("/jwks")


@pytest.mark.parametrize("answer", [(500, b""), (404, b""), (302, b""), (200, b"[]")])
async def test_without_keys_nothing_can_be_checked(server: DocumentServer, answer: tuple[int, Any]) -> None:
    """Whoever asks for keys that can't be had is told so."""
    server.answers["/jwks"] = answer
    async with keys_of(server) as jwks:
        with pytest.raises(ProviderError):
            await jwks.candidates(kid="a", alg="ES256")


async def test_a_server_that_is_gone_has_no_keys() -> None:
    """Without a connection there are none."""
    async with DocumentServer() as server:
        pass
    async with keys_of(server) as jwks:
        with pytest.raises(ProviderError, match="fetched"):
            await jwks.candidates(kid="a", alg="ES256")


def key_set(*keys: Any) -> bytes:
    return json.dumps({"keys": keys}).encode()


def test_keys_fit_their_own_algorithms() -> None:
    """An RSA key checks RS and PS, an EC key ES, an Ed25519 key EdDSA; one with alg only that."""
    keys = read_keys(
        key_set(
            public_jwk(rsa_key(), "r"),
            public_jwk(ec_key(), "e"),
            public_jwk(ed_key(), "o"),
            public_jwk(rsa_key(), "p", alg="PS256"),
        )
    )
    fits = {key.kid: {alg for alg in ("RS256", "PS256", "ES256", "EdDSA", "Ed25519") if key.fits(alg)} for key in keys}

    assert {"r": {"RS256", "PS256"}, "e": {"ES256"}, "o": {"EdDSA", "Ed25519"}, "p": {"PS256"}} == fits


@pytest.mark.parametrize(
    "member",
    [
        {"kty": "oct", "k": base64url(b"x" * 32)},
        {"kty": "RSA", "n": base64url(b"\x80" + bytes(127)), "e": "AQAB"},  # 1024 bits
        {"kty": "RSA", "n": base64url(b"\x80" + bytes(2047)), "e": "AQAB"},  # 16384 bits
        {"kty": "RSA", "n": 7, "e": "AQAB"},
        {"kty": "RSA", "n": "!", "e": "AQAB"},
        {"kty": "EC", "crv": "P-256", "x": "AA", "y": "AA"},
        {"kty": "EC", "crv": "P-0", "x": "AA", "y": "AA"},
        {"kty": "OKP"},
        {"kty": ["RSA"]},
        {"kty": "AKP"},
        {},
        7,
        None,
    ],
)
def test_keys_that_cannot_be_used_are_left_out(member: object) -> None:
    """A shared secret, a short, huge, broken or unknown key harms none of the others."""
    assert ["good"] == [key.kid for key in read_keys(key_set(member, public_jwk(ec_key(), "good")))]


@pytest.mark.parametrize("members", [{"use": "enc"}, {"use": ["sig"]}, {"key_ops": ["encrypt"]}])
def test_keys_for_other_uses_are_left_out(members: dict[str, Any]) -> None:
    """A key for encryption checks no signature."""
    with pytest.raises(ProviderProtocolError):
        read_keys(key_set(public_jwk(ec_key(), "a") | members))


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b"<html>"])
def test_an_empty_set_is_no_set(content: bytes) -> None:
    """Without a single usable key the set is refused, so that the last good one stays."""
    with pytest.raises(ProviderProtocolError):
        read_keys(content)


def test_a_set_is_bounded() -> None:
    """Of thousands of keys only the first few are read."""
    assert MAX_KEYS == len(read_keys(key_set(*(public_jwk(ec_key(), str(n)) for n in range(MAX_KEYS * 10)))))


def test_a_private_key_is_taken_as_its_public_half() -> None:
    """A server that publishes its private key by mistake hands it to nobody here."""
    private = RSAKey.import_key(rsa.generate_private_key(public_exponent=65537, key_size=2048))

    (key,) = read_keys(key_set({**private.as_dict(private=True), "kid": "oops"}))

    assert not key.key.is_private
