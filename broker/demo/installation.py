"""
`token-broker demo`: a whole installation on loopback.

Two processes in one group. This one is the broker, exactly as ``token-broker run`` starts it, on a configuration file
that is written into a temporary directory. The other one plays the rest of the world (broker.demo.world).
"""

import signal
import sys
import tempfile
from importlib.resources import files
from pathlib import Path
from socket import SO_REUSEADDR, SOL_SOCKET, socket
from string import Template

from broker.config.loading import load
from broker.core.secret import Secret
from broker.demo.world import World
from broker.services.clock import SystemRandomness
from broker.services.keyring import new_key
from broker.web.server import refused, serve


def run(*, port: int = 0) -> int:
    """
    Run the demo until SIGINT or SIGTERM.

    Args:
        port: Where the page is served on localhost; 0 picks a free port.

    Returns:
        The exit code: 0 after a clean end, 1 if *port* is taken.
    """
    # Until the broker listens to them, both signals unwind what was begun.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return _run(port)
    except KeyboardInterrupt:
        return 0


def _run(port: int) -> int:
    try:
        public = _listen(port)
    except OSError as error:
        print(f"token-broker: can't listen on port {port}: {error.strerror}", file=sys.stderr)
        return 1
    with (
        public,
        _listen() as admin,
        _listen() as provider,
        _listen() as api,
        tempfile.TemporaryDirectory(prefix="token-broker-demo-") as directory,
    ):
        client_secret = new_key(SystemRandomness())
        ports = {"port": public, "admin_port": admin, "provider_port": provider, "api_port": api}
        config = _write_installation(
            Path(directory), client_secret, {name: str(_port(each)) for name, each in ports.items()}
        )
        world = World(
            provider=provider, api=api, client_secret=client_secret, origin=f"http://localhost:{_port(public)}"
        )
        try:
            world.start(not_its_own=[public, admin])
            _announce(_port(public), _port(admin), config)
            outcome = serve(load(config), public=[public], admin=[admin])
            code = refused(outcome) if isinstance(outcome, str) else outcome
        finally:
            world.stop()
    print("stopped; nothing is left behind" if code == 0 else "stopped at once", flush=True)
    return code


def _listen(port: int = 0) -> socket:
    listening = socket()
    listening.setsockopt(SOL_SOCKET, SO_REUSEADDR, 1)
    try:
        listening.bind(("127.0.0.1", port))
    except OSError:
        listening.close()
        raise
    listening.listen(1024)
    listening.setblocking(False)
    return listening


def _port(listening: socket) -> int:
    port: int = listening.getsockname()[1]
    return port


def _write_installation(directory: Path, client_secret: Secret, names: dict[str, str]) -> Path:
    """Write the configuration and its secrets. Returns the path of the configuration."""
    for name, secret in {"broker-key": new_key(SystemRandomness()), "client-secret": client_secret}.items():
        (directory / name).touch(mode=0o600)
        (directory / name).write_text(secret.reveal())
    config = directory / "token-broker.yaml"
    template = Template((files("broker.demo") / "demo.yaml").read_text())
    config.write_text(template.substitute(names, directory=directory))
    return config


def _announce(port: int, admin_port: int, config: Path) -> None:
    print(
        f"\n  token-broker demo (not for production)\n\n"
        f"  open       http://localhost:{port}/\n"
        f"  metrics    http://127.0.0.1:{admin_port}/metrics\n"
        f"  config     {config}\n\n"
        f"  Ctrl-C stops it.\n",
        flush=True,
    )
