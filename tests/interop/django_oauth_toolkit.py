"""django-oauth-toolkit: a site of its own, in a virtual environment of its own."""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc.jwk import RSAKey

from tests.interop.cache import cached, run
from tests.interop.server_process import server_process
from tests.support.ports import free_port

SITE = Path(__file__).with_name("django_site")
REQUIREMENTS = SITE / "requirements.txt"

USER = {"username": "alice", "password": "a password"}
CLIENT_ID = "broker"
CLIENT_SECRET = "a secret: 100% +&=/~ü"
API_ID, API_SECRET = "resource-server", "of the API"


@dataclass(frozen=True, slots=True)
class DjangoSite:
    """A running site."""

    url: str

    @property
    def issuer(self) -> str:
        return f"{self.url}/o"

    @property
    def token_endpoint(self) -> str:
        return f"{self.issuer}/token/"

    @property
    def revocation_endpoint(self) -> str:
        return f"{self.issuer}/revoke_token/"

    @property
    def introspection_endpoint(self) -> str:
        return f"{self.issuer}/introspect/"


def interpreter() -> Path:
    """Return the Python of the site's virtual environment, which is made first if need be."""
    return cached(f"django-{hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()[:16]}", _install) / "bin/python"


@contextmanager
def running_site(directory: Path, **oauth2: Any) -> Iterator[DjangoSite]:
    """
    Run a site with a database of its own.

    Args:
        directory: For the database and the log.
        oauth2: Settings of the toolkit; the rest are its defaults.
    """
    python = interpreter()
    key = RSAKey.generate_key(2048).as_pem(private=True).decode()
    environment = {
        "DJANGO_SETTINGS_MODULE": "settings",
        "DJANGO_SITE": json.dumps({"directory": str(directory), "rsa_key": key, "oauth2": oauth2}),
        "PYTHONPATH": str(SITE),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    _prepare(python, environment)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with server_process(
        [python, "-m", "django", "runserver", "--noreload", f"127.0.0.1:{port}"],
        ready_url=f"{url}/o/.well-known/openid-configuration",
        log=directory / "django.log",
        directory=SITE,
        environment=environment,
    ):
        yield DjangoSite(url)


def _prepare(python: Path, environment: dict[str, str]) -> None:
    content = {
        "user": USER,
        "applications": [
            {
                "name": "the broker",
                "client_id": CLIENT_ID,
                "client_secret": CLIENT_SECRET,
                "client_type": "confidential",
                "authorization_grant_type": "authorization-code",
                "redirect_uris": "http://127.0.0.1/bff/callback/corp",  # with any port (RFC 8252 section 7.3)
                "algorithm": "RS256",
            },
            {
                "name": "the API",
                "client_id": API_ID,
                "client_secret": API_SECRET,
                "client_type": "confidential",
                "authorization_grant_type": "client-credentials",
            },
        ],
    }
    filled = subprocess.run(
        [python, "prepare.py"],
        cwd=SITE,
        env=environment,
        input=json.dumps(content),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert filled.returncode == 0, filled.stderr[-4000:]


def _install(place: Path) -> None:
    run(sys.executable, "-m", "venv", place, seconds=120)
    run(place / "bin/python", "-m", "pip", "install", "--quiet", "--requirement", REQUIREMENTS, seconds=600)
