"""Keycloak: its distribution, started on loopback, and its admin API."""

import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from joserfc.jwk import RSAKey

from tests.interop.cache import cached, run
from tests.interop.server_process import server_process
from tests.support.ports import free_port

VERSION = "26.7.3"
"""The newest that runs on Java 17."""
UNPACK = "org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack"
MEMORY = {"JAVA_OPTS_KC_HEAP": "-Xms64m -Xmx512m"}
QUICK_START = {"JAVA_OPTS_APPEND": "-XX:TieredStopAtLevel=1"}
ADMIN = {"KC_BOOTSTRAP_ADMIN_USERNAME": "admin", "KC_BOOTSTRAP_ADMIN_PASSWORD": "admin"}

REALM = json.loads(Path(__file__).with_name("realm.json").read_text())
SECRETS = {client["clientId"]: client.get("secret") for client in REALM["clients"]}
USER = {"username": "alice", "password": REALM["users"][0]["credentials"][0]["value"]}
LIFE_SECONDS = REALM["accessTokenLifespan"]

REALMS: Mapping[str, Mapping[str, Any]] = {
    "strict": {"revokeRefreshToken": True},
    "forgiving": {"revokeRefreshToken": True, "refreshTokenMaxReuse": 1},
    "lasting": {"revokeRefreshToken": False},
}
"""What becomes of a refresh token that was used: the realms differ in nothing else."""


class Keycloak:
    """A running server with :data:`REALMS`, as its administrator sees it. Its calls block."""

    def __init__(self, url: str, signing_key: RSAKey) -> None:
        """
        Args:
            url: Where it listens.
            signing_key: Of the client ``signing``.
        """
        self.url = url
        self.signing_key = signing_key

    def issuer(self, realm: str) -> str:
        return f"{self.url}/realms/{realm}"

    def token_endpoint(self, realm: str) -> str:
        return f"{self.issuer(realm)}/protocol/openid-connect/token"

    # --- administration

    def create_realm(self, realm: str) -> None:
        """Import the realm of the file under another name, with what is particular to it."""
        keys = json.dumps({"keys": [{**self.signing_key.as_dict(private=False), "use": "sig", "alg": "RS256"}]})
        document = json.loads(json.dumps(REALM)) | {"realm": realm, **REALMS[realm]}
        for client in document["clients"]:
            if client["clientId"] == "signing":
                client["attributes"]["jwks.string"] = keys
        # Assertions about users (RFC 7523) are believed like another identity provider's, by the same key.
        (issuer,) = document["identityProviders"]
        issuer["config"]["publicKeySignatureVerifier"] = self.signing_key.as_pem(private=False).decode()
        self._admin("POST", "", document)

    def sessions(self, realm: str) -> list[str]:
        """Return the user's sessions, offline ones not included."""
        return [session["id"] for session in self._admin("GET", f"{realm}/users/{self._user(realm)}/sessions")]

    def log_out_user(self, realm: str) -> None:
        """End all sessions of the user."""
        self._admin("POST", f"{realm}/users/{self._user(realm)}/logout")

    def end_session(self, realm: str, session: str) -> None:
        """End one session of the user."""
        self._admin("DELETE", f"{realm}/sessions/{session}")

    def set_client(self, realm: str, client_id: str, **changes: Any) -> None:
        """Change a client; of ``attributes`` only those that are given."""
        client = self._admin("GET", f"{realm}/clients?clientId={client_id}")[0]
        changes["attributes"] = {**client["attributes"], **changes.get("attributes", {})}
        self._admin("PUT", f"{realm}/clients/{client['id']}", {**client, **changes})

    def _user(self, realm: str) -> str:
        identifier: str = self._admin("GET", f"{realm}/users?username={USER['username']}&exact=true")[0]["id"]
        return identifier

    def _admin(self, method: str, path: str, document: object = None) -> Any:
        form = {"grant_type": "password", "client_id": "admin-cli", "username": "admin", "password": "admin"}
        token = _call("POST", self.token_endpoint("master"), urllib.parse.urlencode(form).encode())["access_token"]
        headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
        content = None if document is None else json.dumps(document).encode()
        return _call(method, f"{self.url}/admin/realms/{path}".rstrip("/"), content, headers)


def _call(method: str, url: str, content: bytes | None, headers: Mapping[str, str] | None = None) -> Any:
    request = urllib.request.Request(url, data=content, headers=dict(headers or {}), method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            answer = response.read()
    except urllib.error.HTTPError as refusal:
        raise AssertionError(f"{method} {url}: {refusal.code} {refusal.read()[:500]!r}") from None
    return json.loads(answer) if answer else None


@contextmanager
def running_keycloak(directory: Path) -> Iterator[Keycloak]:
    """Run Keycloak with all realms. What it stores is in its memory; what it logs, in *directory*."""
    home, port = cached(f"keycloak-{VERSION}", _install), free_port()
    command = ("sh", home / "bin/kc.sh", "start", "--optimized", "--http-enabled=true", "--hostname-strict=false")
    url = f"http://127.0.0.1:{port}"
    with server_process(
        [*command, "--http-host=127.0.0.1", f"--http-port={port}"],
        ready_url=f"{url}/realms/master",
        log=directory / "keycloak.log",
        seconds=240,
        environment={**MEMORY, **QUICK_START, **ADMIN},
    ):
        keycloak = Keycloak(url, RSAKey.generate_key(2048))
        for realm in REALMS:
            keycloak.create_realm(realm)
        yield keycloak


def _install(place: Path) -> None:
    """Unpack the distribution, and let it augment itself for a database in memory: that takes longer than its start."""
    artifact = f"-Dartifact=org.keycloak:keycloak-quarkus-dist:{VERSION}:zip"
    run("mvn", "-q", "-B", UNPACK, artifact, f"-DoutputDirectory={place}", seconds=900, directory=place)
    (unpacked,) = place.glob("keycloak-*")
    for part in unpacked.iterdir():
        part.rename(place / part.name)
    run("sh", place / "bin/kc.sh", "build", "--db=dev-mem", "--cache=local", seconds=300)
