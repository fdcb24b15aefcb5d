"""Debian's glewlwyd: its configuration file, its database, and what its admin API sets up."""

import contextlib
import json
import sqlite3
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from pathlib import Path
from typing import Any
from urllib.parse import quote

from joserfc.jwk import RSAKey

from tests.interop.server_process import server_process
from tests.support.ports import free_port

SCHEMA = Path("/usr/share/dbconfig-common/data/glewlwyd/install/sqlite3")
ADMIN = {"username": "admin", "password": "password"}
"""The one that the package creates."""

USER = {"username": "alice", "password": "a password"}
LIFE_SECONDS = 4
CLIENT_ID = "broker"
CLIENT_SECRET = "a secret: 100% +&=/~"  # which form encoding changes
API_ID, API_SECRET = "resource-server", "of the API"

CONFIGURATION = """
bind_address = "127.0.0.1"
port = {port}
external_url = "{url}"
login_url = "login.html"
api_prefix = "api"
static_files_path = "/usr/share/glewlwyd/webapp/"
log_mode = "console"
log_level = "WARNING"
cookie_secure = 0
session_expiration = 2419200
session_key = "GLEWLWYD2_SESSION_ID"
admin_scope = "g_admin"
profile_scope = "g_profile"
user_module_path = "/usr/lib/glewlwyd/user"
user_middleware_module_path = "{directory}/none"
client_module_path = "/usr/lib/glewlwyd/client"
user_auth_scheme_module_path = "/usr/lib/glewlwyd/scheme"
plugin_module_path = "/usr/lib/glewlwyd/plugin"
hash_algorithm = "SHA512"
database = {{ type = "sqlite3"; path = "{directory}/glewlwyd.db"; }};
static_files_mime_types = ( {{ extension = ".html"; mime_type = "text/html"; compress = 0; }} )
"""


class Glewlwyd:
    """A running server with an OpenID plugin named ``oidc``."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.issuer = f"{url}/api/oidc"
        self.token_endpoint = f"{self.issuer}/token"
        self.introspection_endpoint = f"{self.issuer}/introspect"
        self._client: dict[str, Any] = {}
        # Its session cookie has no domain, and loopback addresses have none.
        self._cookies = CookieJar(DefaultCookiePolicy(strict_ns_domain=DefaultCookiePolicy.DomainLiberal))
        self._http = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self._cookies))

    def set_up(self, redirect_uri: str, plugin: Mapping[str, Any]) -> None:
        """Create the plugin, the clients and the user, as its administrator."""
        self._call("POST", "auth/", ADMIN)
        self._call("POST", "mod/plugin/", {"module": "oidc", "name": "oidc", "display_name": "o", "parameters": plugin})
        self._client = client(CLIENT_ID, CLIENT_SECRET, [redirect_uri], ["code", "refresh_token"])
        self._call("POST", "client/", self._client)
        self._call("POST", "client/", client(API_ID, API_SECRET, [], ["client_credentials"]))
        self._call("POST", "user/", {**USER, "name": "Alice", "enabled": True, "scope": ["openid", "g_profile"]})

    def set_client_secret(self, secret: str) -> None:
        """Give the broker's client another secret, as the administrator."""
        self._call("POST", "auth/", ADMIN)
        self._call("PUT", f"client/{CLIENT_ID}", {**self._client, "client_secret": secret})

    def disable_refresh_tokens(self) -> None:
        """End every refresh token of the user, as the user does on the profile page."""
        self._call("POST", "auth/", USER)
        tokens = self._call("GET", "oidc/token/")
        assert tokens, "the user has no refresh token"
        for token in tokens:
            self._call("DELETE", f"oidc/token/{quote(token['token_hash'], safe='')}")

    def _call(self, method: str, path: str, document: object = None) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/{path}",
            data=None if document is None else json.dumps(document).encode(),
            headers={"Content-Type": "application/json"},
            method=method,
        )
        try:
            with self._http.open(request, timeout=30) as response:
                answer = response.read()
        except urllib.error.HTTPError as refusal:
            raise AssertionError(f"{method} {path}: {refusal.code} {refusal.read()[:500]!r}") from None
        return json.loads(answer) if answer else None


def client(client_id: str, secret: str, redirect_uris: list[str], grants: list[str]) -> dict[str, Any]:
    """Return a confidential client."""
    return {
        "client_id": client_id,
        "name": client_id,
        "enabled": True,
        "confidential": True,
        "client_secret": secret,
        "token_endpoint_auth_method": ["client_secret_basic", "client_secret_post"],
        "redirect_uri": redirect_uris,
        "authorization_type": grants,
        "scope": [],
    }


def plugin(issuer: str, **changes: Any) -> dict[str, Any]:
    """Return the parameters of the OpenID plugin: refresh tokens are used once."""
    key = RSAKey.generate_key(2048)
    return {
        "iss": issuer,
        "jwt-type": "rsa",
        "jwt-key-size": "256",
        "key": key.as_pem(private=True).decode(),
        "cert": key.as_pem(private=False).decode(),
        "access-token-duration": LIFE_SECONDS,
        "refresh-token-duration": 1209600,
        "code-duration": 600,
        "refresh-token-rolling": True,
        "refresh-token-one-use": "always",
        "allow-non-oidc": True,
        "auth-type-code-enabled": True,
        "auth-type-client-enabled": True,
        "auth-type-refresh-enabled": True,
        "pkce-allowed": True,
        "pkce-required": True,
        "introspection-revocation-allowed": True,
        "introspection-revocation-allow-target-client": True,
        "jwks-show": True,
        "subject-type": "public",
        **changes,
    }


@contextmanager
def running_glewlwyd(directory: Path, *, redirect_uri: str, **changes: Any) -> Iterator[Glewlwyd]:
    """
    Run a server with a database of its own.

    Args:
        directory: For its files.
        redirect_uri: Of the broker.
        changes: Parameters of the OpenID plugin.
    """
    with contextlib.closing(sqlite3.connect(directory / "glewlwyd.db")) as database:
        database.executescript(SCHEMA.read_text())
    port = free_port()
    server = Glewlwyd(f"http://127.0.0.1:{port}")
    (directory / "none").mkdir()
    configuration = directory / "glewlwyd.conf"
    configuration.write_text(CONFIGURATION.format(port=port, url=server.url, directory=directory))
    with server_process(
        ["glewlwyd", "--config-file", configuration],
        ready_url=f"{server.url}/login.html",
        log=directory / "glewlwyd.log",
        seconds=20,
    ):
        server.set_up(redirect_uri, plugin(server.issuer, **changes))
        yield server
