"""
Certificates and keys: what the start would load is loaded when the configuration is read.

Otherwise a file that is no certificate would show at the start only, or at the first connection.
"""

from broker.config.binding import Binder
from broker.core.client_auth import AssertionOptions, TlsOptions
from broker.core.listen_tls import ListenTlsOptions
from broker.errors import UnusableCredential
from broker.services.signing import load_signing_key
from broker.services.tls import client_context, server_context
from broker.stores.options import StoreTlsOptions
from broker.stores.redis_tls import redis_context


def check_credentials(binder: Binder) -> None:
    """Report every certificate, key and password that can't be used, unless the source only pretends them."""
    if binder.source.pretends:
        return
    for path, place in tuple(binder.places.items()):
        try:
            _load(place.value)
        except UnusableCredential as fault:
            binder.refuse((*path, fault.key), expected=fault.expected, found=fault.found)


def _load(options: object) -> None:
    match options:
        case TlsOptions() if options != TlsOptions():
            client_context(options)
        case StoreTlsOptions() if options != StoreTlsOptions():
            redis_context(options)
        case ListenTlsOptions():
            server_context(options)
        case AssertionOptions() if options.has_key:
            load_signing_key(options)
