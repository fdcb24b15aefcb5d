"""TLS towards Redis, with whatever certificates are in the files at the moment."""

import logging
import ssl
from pathlib import Path

from broker.errors import ConfigError
from broker.stores.options import StoreTlsOptions

log = logging.getLogger(__name__)


class RedisTls:
    """Checks the server's certificate and shows ours. Files that were replaced count from the next connection on."""

    def __init__(self, options: StoreTlsOptions) -> None:
        """
        Args:
            options: Names the files.

        Raises:
            ConfigError: If a file is not there or not what it should be.
        """
        self._options = options
        self._state = self._files()
        self._context = _load(options)

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection. It looks at the files, so call it in a thread."""
        if (state := self._files()) != self._state:
            try:
                # What is half replaced is read again the next time.
                self._context, self._state = _load(self._options), state
                log.info("redis_tls_reloaded")
            except ConfigError as fault:
                log.warning("redis_tls_not_reloaded", extra={"error": str(fault)})
        return self._context

    def _files(self) -> list[tuple[int, int, int] | None]:
        names = (self._options.ca_file, self._options.cert_file, self._options.key_file)
        return [_state(name) for name in names if name is not None]


def _state(name: str) -> tuple[int, int, int] | None:
    try:
        found = Path(name).stat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def _load(options: StoreTlsOptions) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
        if options.cert_file is not None:
            password = None if options.key_password is None else options.key_password.reveal
            context.load_cert_chain(options.cert_file, options.key_file, password)
    except OSError as fault:  # ssl.SSLError is one
        raise ConfigError(f"store.tls: {type(fault).__name__}: {fault}"[:200]) from fault
    return context
