"""TLS towards servers that the configuration names."""

import ssl

from broker.core.client_auth import TlsOptions
from broker.errors import ConfigError


def client_context(options: TlsOptions) -> ssl.SSLContext:
    """
    Return the context for connections to one server. Its certificate and name are always checked.

    Raises:
        ConfigError: If a file can't be read or doesn't hold what it should: an option that can't be applied stops the
            start (CVE-2026-22750).
    """
    try:
        context = ssl.create_default_context(cafile=options.ca_file)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"tls.ca_file: {fault}") from fault
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.certificate_file is not None:
        try:
            # An encrypted key without a password must be refused, not asked for on the terminal.
            password = "" if options.key_password is None else options.key_password.reveal()
            context.load_cert_chain(options.certificate_file, options.key_file, lambda: password)
        except (OSError, ValueError) as fault:
            raise ConfigError(f"tls.certificate_file: {fault}") from fault
    return context
