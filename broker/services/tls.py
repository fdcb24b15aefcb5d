"""TLS towards servers that the configuration names, and on the broker's own listener."""

import ssl

from broker.core.client_auth import TlsOptions
from broker.core.listen_tls import ListenTlsOptions
from broker.core.secret import Secret
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
        _load(context, options.certificate_file, options.key_file, options.key_password)
    return context


def server_context(options: ListenTlsOptions) -> ssl.SSLContext:
    """
    Return the context of the broker's own listener.

    Raises:
        ConfigError: As :func:`client_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, options.certificate_file, options.key_file, options.key_password)
    if options.client_ca_file is not None:
        try:
            context.load_verify_locations(options.client_ca_file)
        except (OSError, ValueError) as fault:
            raise ConfigError(f"tls.client_ca_file: {fault}") from fault
        context.verify_mode = ssl.CERT_OPTIONAL
        # A gateway may forward for callers, too, and then shows no certificate. A session that it resumes there would
        # bring along the certificate of the one in which it asked.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _load(context: ssl.SSLContext, certificate_file: str, key_file: str | None, key_password: Secret | None) -> None:
    try:
        # An encrypted key without a password must be refused, not asked for on the terminal.
        password = "" if key_password is None else key_password.reveal()
        context.load_cert_chain(certificate_file, key_file, lambda: password)
    except (OSError, ValueError) as fault:
        raise ConfigError(f"tls.certificate_file: {fault}") from fault
