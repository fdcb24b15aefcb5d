"""TLS towards servers that the configuration names, and on the broker's own listener."""

import ssl

from broker.certificates import Identity, reading_certificates
from broker.core.client_auth import TlsOptions
from broker.core.listen_tls import ListenTlsOptions


def client_context(options: TlsOptions) -> ssl.SSLContext:
    """
    Return the context for connections to one server. Its certificate and name are always checked.

    Raises:
        UnusableCredential: If a file can't be read or doesn't hold what it should: an option that can't be applied
            stops the start (CVE-2026-22750).
    """
    with reading_certificates("ca_file", within="tls"):
        context = ssl.create_default_context(cafile=options.ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if options.certificate_file is not None:
        _load(context, options, options.certificate_file)
    return context


def server_context(options: ListenTlsOptions) -> ssl.SSLContext:
    """
    Return the context of the broker's own listener.

    Raises:
        UnusableCredential: As :func:`client_context`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _load(context, options, options.certificate_file)
    if options.client_ca_file is not None:
        with reading_certificates("client_ca_file", within="tls"):
            context.load_verify_locations(options.client_ca_file)
        context.verify_mode = ssl.CERT_OPTIONAL
        # A gateway may forward for callers, too, and then shows no certificate. A session that it resumes there would
        # bring along the certificate of the one in which it asked.
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.num_tickets = 0
    return context


def _load(context: ssl.SSLContext, options: TlsOptions | ListenTlsOptions, certificate_file: str) -> None:
    Identity(
        certificate_file=certificate_file, key_file=options.key_file, key_password=options.key_password, within="tls"
    ).load_into(context)
