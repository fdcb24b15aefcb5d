"""What the demo writes down is an ordinary configuration with secrets that nobody else can read."""

from pathlib import Path

from broker.config import load
from broker.core.secret import Secret
from broker.demo.installation import _write_installation
from broker.services.keyring import Keyring

PORTS = {"port": "8000", "admin_port": "8001", "provider_port": "8002", "api_port": "8003"}


def test_the_configuration_loads(tmp_path: Path) -> None:
    """It passes every check, names its own ports and the client secret, and its key is good."""
    settings = load(_write_installation(tmp_path, Secret("client secret"), PORTS))
    assert ("http://localhost:8000", "127.0.0.1:8001") == (str(settings.public_url), str(settings.admin.listen))
    assert Secret("client secret") == settings.providers["demo"].client_secret
    keyring = Keyring(settings.keys)
    assert b"x" == keyring.open("grant", "1", keyring.seal("grant", "1", b"x"))


def test_secrets_are_for_their_owner_only(tmp_path: Path) -> None:
    """The key and the client secret have mode 0600 from their first moment."""
    _write_installation(tmp_path, Secret("client secret"), PORTS)
    assert {0o600} == {(tmp_path / name).stat().st_mode & 0o777 for name in ("broker-key", "client-secret")}
