"""What no single value can say: the rules between the parts of a configuration."""

import re
from collections.abc import Iterator

from broker.config.addresses import ListenAddress, PublicUrl
from broker.config.binding import REFUSED, Binder
from broker.config.credentials import check_credentials
from broker.config.document import MappingNode
from broker.config.problems import quoted
from broker.config.settings import Settings
from broker.config.shapes import Options, fields_of
from broker.config.urls import check_urls
from broker.config.wording import KeyPath, show
from broker.core.callers import CallerCertificateOptions, CallerIssuerOptions
from broker.core.provider import ProviderOptions
from broker.core.routing import Route, RouteClash, RouteTable, TokenKind
from broker.core.secret import Secret
from broker.core.standing import GrantType, StandingGrantOptions
from broker.errors import ConfigError
from broker.services.keyring import decode_key
from broker.stores.options import StoreOptions

_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

# A path is compared as it is. Whoever writes one of these has another proxy's patterns in mind, and would get a route
# that never matches, or a prefix that protects less than it seems to.
_PATTERN = re.compile(r"[*^$|{}\[\]]")


def cross_check(binder: Binder) -> None:
    """
    Report every rule that is broken between the bound parts.

    A part that was refused is left out, so that each problem is told once, and all of them at once.
    """
    _check_keys(binder)
    for section in ("providers", "grants"):
        _check_names(binder, section)
    _check_references(binder)
    _check_routes(binder)
    _check_networks(binder)
    _check_listeners(binder)
    check_urls(binder)
    check_credentials(binder)
    _note_exposure(binder)
    _note_store(binder)
    _note_idle_parts(binder)


def bound_items(binder: Binder, *section: str) -> Iterator[tuple[KeyPath, object]]:
    """Yield the items of a list or mapping that were bound, also where others of them were refused."""
    for path, place in binder.places.items():
        if path[:-1] == section and place.value is not REFUSED:
            yield path, place.value


def _names(binder: Binder, section: str) -> tuple[str, ...]:
    place = binder.places.get((section,))
    return tuple(place.node.entries) if place is not None and isinstance(place.node, MappingNode) else ()


def _check_names(binder: Binder, section: str) -> None:
    for name in _names(binder, section):
        if not _NAME.fullmatch(name):
            binder.refuse((section, name), expected="a name of a-z, 0-9 and hyphens, up to 63", found="another name")


def _check_keys(binder: Binder) -> None:
    seen: dict[bytes, KeyPath] = {}
    place = binder.places.get(("keys",))
    if place is not None and place.value == ():
        binder.refuse(("keys",), expected="at least one key; `token-broker keys new` makes one")
    for path, key in bound_items(binder, "keys"):
        assert isinstance(key, Secret)
        try:
            raw = decode_key(key)
        except ConfigError as error:
            binder.refuse(path, expected="base64url of 32 random bytes", found="something else", hint=str(error))
            continue
        if raw in seen:
            binder.refuse(path, expected="each key once", found="the same key as before")
        seen[raw] = path


def _check_references(binder: Binder) -> None:
    providers = _names(binder, "providers")
    default = binder.places.get(("login", "default_provider"))
    if default is not None and default.value not in {*providers, REFUSED}:
        binder.refuse(("login", "default_provider"), expected=_one_of("providers", providers))
    for path, grant in bound_items(binder, "grants"):
        assert isinstance(grant, StandingGrantOptions)
        if grant.provider not in providers:
            binder.refuse((*path, "provider"), expected=_one_of("providers", providers))
        _check_user_assertion(binder, path, grant)
    for section in ("jwt", "certificates"):
        for path, caller in bound_items(binder, "callers", section):
            assert isinstance(caller, CallerIssuerOptions | CallerCertificateOptions)
            if caller.provider not in providers:
                binder.refuse((*path, "provider"), expected=_one_of("providers", providers))
    for path, route in bound_items(binder, "routes"):
        assert isinstance(route, Route)
        _check_route_references(binder, path, route)


def _check_user_assertion(binder: Binder, path: KeyPath, grant: StandingGrantOptions) -> None:
    """Refuse a grant by assertions of its own (RFC 7523) at a provider that has no key to sign them with."""
    place = binder.places.get(("providers", grant.provider))
    if grant.type is not GrantType.JWT_BEARER or place is None or not isinstance(place.value, ProviderOptions):
        return
    if not place.value.signs_user_assertions:
        expected = "another one, or a key in `client_assertion` or `user_assertion` of the provider"
        binder.refuse((*path, "type"), expected=expected)


def _check_route_references(binder: Binder, path: KeyPath, route: Route) -> None:
    providers, grants = _names(binder, "providers"), _names(binder, "grants")
    if route.token.grant is not None and route.token.grant not in grants:
        binder.refuse((*path, "token", "grant"), expected=_one_of("grants", grants), found=quoted(route.token.grant))
    if route.provider is not None and route.provider not in providers:
        binder.refuse((*path, "provider"), expected=_one_of("providers", providers))
    released = binder.places.get(("forward_auth", "release_token"))
    if route.release_token and (released is None or released.value is False):
        binder.refuse((*path, "release_token"), expected="false, unless `forward_auth.release_token` is true")
    elif route.release_token:
        _check_release(binder, path, route)
    if route.token.kind not in {TokenKind.USER, TokenKind.USER_OR_NONE}:
        return
    if not providers:
        binder.refuse((*path, "token"), expected="none or a grant, since `providers` has nobody to log in with")
    elif len(providers) > 1 and route.provider is None and ("login", "default_provider") not in binder.places:
        binder.refuse(
            (*path, "provider"), expected="a provider, since there are several and no `login.default_provider`"
        )


def _check_release(binder: Binder, path: KeyPath, route: Route) -> None:
    """Refuse to give a token to a gateway that is worth nothing without the key that it is bound to (RFC 9449)."""
    grant = binder.places.get(("grants", route.token.grant or ""))
    named = grant.value.provider if grant and isinstance(grant.value, StandingGrantOptions) else route.provider
    for name in _names(binder, "providers") if named is None else (named,):
        place = binder.places.get(("providers", name))
        if place is not None and isinstance(place.value, ProviderOptions) and place.value.dpop:
            expected = f"false, since `{show(('providers', name, 'dpop'))}` binds the token to a key"
            binder.refuse((*path, "release_token"), expected=expected)


def _check_routes(binder: Binder) -> None:
    routes = [(path, route) for path, route in bound_items(binder, "routes") if isinstance(route, Route)]
    base = str(_in_force(binder, "base_path")).lower()
    for path, route in routes:
        if _PATTERN.search(route.path):
            binder.refuse((*path, "path"), expected="a path, not a pattern: everything below it is meant too")
        if f"{route.path.lower()}/".startswith(f"{base}/"):
            binder.refuse(
                (*path, "path"), expected=f"a path outside of {base}, which is the broker's own (`base_path`)"
            )
    while True:
        try:
            RouteTable((route, path) for path, route in routes)
        except RouteClash as error:
            # The table names the second of two that match alike; without it, it finds the next pair.
            index, _, key = error.key.removeprefix("[").partition("].")
            first = binder.nearest(routes[error.earlier][0])
            path, _route = routes.pop(int(index))
            binder.refuse((*path, key), expected=error.expected, hint=f"first in line {first.line}")
        else:
            return


def _one_of(section: str, names: tuple[str, ...]) -> str:
    return (
        f"a name of `{section}`: " + ", ".join(show((name,)) for name in names)
        if names
        else f"a name of `{section}`, and there are none"
    )


def _check_networks(binder: Binder) -> None:
    for path, network in bound_items(binder, "trusted_proxies"):
        if getattr(network, "prefixlen", None) == 0:
            binder.refuse(path, expected="the networks of your proxies: with this one, anybody could forge addresses")


def _check_listeners(binder: Binder) -> None:
    """Refuse one address for the public and the operators' listener: the one that is opened second would fail."""
    public, admin = _in_force(binder, "listen"), _in_force(binder, "admin", "listen")
    if not isinstance(public, ListenAddress) or not isinstance(admin, ListenAddress):
        return
    if not public.port or public.port != admin.port:
        return
    if public.host == admin.host or {public.host, admin.host} & {"0.0.0.0", "::"}:  # noqa: S104 - compared, not bound
        key: KeyPath = ("admin", "listen") if ("admin", "listen") in binder.places else ("listen",)
        binder.refuse(key, expected="one address for `listen` and another one for `admin.listen`")


def _in_force(binder: Binder, *path: str) -> object:
    """Return the value of a key, or its default where it is left out."""
    place = binder.places.get(path)
    if place is not None:
        return place.value
    field = fields_of(Settings)[path[0]]
    for key in path[1:]:
        assert isinstance(field.shape, Options)
        field = fields_of(field.shape.type)[key]
    return field.default


def _note_exposure(binder: Binder) -> None:
    url = binder.places.get(("public_url",))
    if url is not None and isinstance(url.value, PublicUrl) and not url.value.is_secure:
        binder.notice(("public_url",), "without TLS, cookies have no Secure attribute and no prefix: for development")
    admin = binder.places.get(("admin", "listen"))
    if admin is not None and isinstance(admin.value, ListenAddress) and not admin.value.is_local:
        binder.notice(("admin", "listen"), "other hosts reach health and metrics, and the admin API if it has a token")


def _note_store(binder: Binder) -> None:
    place = binder.places.get(("store",))
    if place is not None and isinstance(place.value, StoreOptions) and not place.value.is_shared:
        binder.notice(("store", "url"), "sessions and grants end with the process: for development")


def _note_idle_parts(binder: Binder) -> None:
    """Tell of what is configured and can't come to anything."""
    if not _in_force(binder, "routes"):
        binder.notice(("routes",), "there are none, so nothing is forwarded: all paths but the broker's own answer 404")
    if _in_force(binder, "callers", "certificates") and not _in_force(binder, "trusted_proxies"):
        text = "nobody can show one, since Client-Cert is believed of `trusted_proxies` alone"
        binder.notice(("callers", "certificates"), text)
