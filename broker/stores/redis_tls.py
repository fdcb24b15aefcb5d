"""TLS towards Redis, with whatever certificates are in the files at the moment."""

import logging
import ssl
from pathlib import Path

from broker.certificates import Identity, reading_certificates
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
            UnusableCredential: If a file is not there or not what it should be.
        """
        self._options = options
        self._state = self._files()
        self._context = redis_context(options)

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection. It looks at the files, so call it in a thread."""
        if (state := self._files()) != self._state:
            try:
                # What is half replaced is read again the next time.
                self._context, self._state = redis_context(self._options), state
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


def redis_context(options: StoreTlsOptions) -> ssl.SSLContext:
    """
    Return the context for connections to Redis. The server's certificate and name are always checked.

    Raises:
        UnusableCredential: If a file is not there or not what it should be.
    """
    with reading_certificates("ca_file", within="store.tls"):
        context = ssl.create_default_context(cafile=options.ca_file)
    if options.cert_file is not None:
        Identity(
            certificate_file=options.cert_file,
            key_file=options.key_file,
            key_password=options.key_password,
            within="store.tls",
            certificate_key="cert_file",
        ).load_into(context)
    return context
