"""The URLs of authorization servers: refused when the configuration is read, as they would be when they are called."""

from collections.abc import Iterator
from urllib.parse import urlsplit

from broker.config.binding import Binder
from broker.config.shapes import fields_of
from broker.config.wording import KeyPath
from broker.core.callers import CallerIssuerOptions
from broker.core.outbound_urls import url_refusal
from broker.core.provider import ProviderOptions

_ENDPOINTS = tuple(key for key in fields_of(ProviderOptions) if key.endswith(("_endpoint", "_uri", "metadata_url")))


def check_urls(binder: Binder) -> None:
    """Report every URL that would never be called: a relative one, plain http off loopback, a link-local address."""
    for path, place in tuple(binder.places.items()):
        if isinstance(place.value, ProviderOptions):
            for key, url in _called(place.value):
                _check(binder, (*path, *key), url, insecure=place.value.insecure)
        elif isinstance(place.value, CallerIssuerOptions):
            # With the place of its keys an issuer is compared, and never called.
            name = "issuer" if place.value.jwks_uri is None else "jwks_uri"
            _check(binder, (*path, name), place.value.jwks_uri or place.value.issuer)


def _called(provider: ProviderOptions) -> Iterator[tuple[KeyPath, str]]:
    if provider.discovery and provider.issuer is not None and provider.metadata_url is None:
        yield ("issuer",), provider.issuer
    for key in _ENDPOINTS:
        if (url := getattr(provider, key)) is not None:
            yield (key,), url
    if provider.client_token is not None and provider.client_token.token_endpoint is not None:
        yield ("client_token", "token_endpoint"), provider.client_token.token_endpoint


def _check(binder: Binder, path: KeyPath, url: str, *, insecure: bool | None = None) -> None:
    """Report *url*; *insecure* is None where there is no such switch."""
    refusal = url_refusal(url, insecure=bool(insecure))
    if refusal is None:
        return
    if "link-local" in refusal:
        expected = "another host than a link-local address, where clouds keep their secrets"
    elif refusal == "is not https" and urlsplit(url).scheme == "http":
        expected = "https off loopback" + (", or insecure: true beside it" if insecure is False else "")
    else:
        expected = "an absolute URL such as https://idp.example.com, without credentials"
    binder.refuse(path, expected=expected)
