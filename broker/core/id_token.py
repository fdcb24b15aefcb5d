"""
What the claims of an id token, a logout token or a caller's token must be, decided without I/O. The signature is judged
elsewhere.

Each rule is one function or one line, in the order of OpenID Connect Core section 3.1.3.7 and of Back-Channel Logout
section 2.6.
"""

import base64
import hashlib
import hmac
from collections.abc import Mapping
from dataclasses import dataclass

LOGOUT_EVENT = "http://schemas.openid.net/event/backchannel-logout"
MAX_AGE_OF_LOGOUT_TOKEN_SECONDS = 600.0
MAX_SUBJECT_CHARACTERS = 255  # OpenID Connect Core section 2
MAX_INSTANT = 1e11

ID_TOKEN_TYPES = frozenset({"jwt", "id_token+jwt"})
LOGOUT_TOKEN_TYPES = frozenset({"jwt", "logout+jwt"})
CALLER_TOKEN_TYPES = frozenset({"jwt", "at+jwt"})

FOREIGN_KINDS = frozenset({"bearer", "refresh", "offline", "logout", "access"})
"""What Keycloak writes into the claim ``typ`` of tokens that are no id tokens."""

_HASHES = {"256": hashlib.sha256, "384": hashlib.sha384, "512": hashlib.sha512}


class ClaimsRefused(ValueError):
    """The claims must not be believed. The text names the claim and the reason, never the value."""

    @property
    def claim(self) -> str:
        """The claim that is to blame, where it is one."""
        return str(self).partition(":")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """
    Whom a token must come from and be meant for.

    Attributes:
        issuer: ``iss``, compared byte for byte.
        client_id: A member of ``aud``.
        now: Unix seconds.
        skew_seconds: How far the server's clock may be off.
    """

    issuer: str
    client_id: str
    now: float
    skew_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogoutClaims:
    """
    A logout token after every check (OpenID Connect Back-Channel Logout section 2.4). Its ``jti`` is to be used once.

    Attributes:
        issuer: ``iss``.
        subject: ``sub``; None: the session of *sid* only.
        sid: The provider's session; None: every session of *subject*.
        jti: Names this token.
        exp: Unix seconds after which it is worth nothing, and *jti* may be forgotten.
    """

    issuer: str
    subject: str | None
    sid: str | None
    jti: str
    exp: float


def check_type(header: Mapping[str, object], allowed: frozenset[str]) -> None:
    """
    Refuse a token of another type, and one whose header demands an extension.

    Raises:
        ClaimsRefused: If ``typ`` names another type, or ``crit`` is there at all.

    Source: RFC 8725 section 3.11, RFC 7515 section 4.1.11.
    """
    if "crit" in header:
        raise ClaimsRefused("crit: no extension is understood")
    if "typ" not in header:
        return
    typ = header["typ"]
    if not isinstance(typ, str) or typ.lower().removeprefix("application/") not in allowed:
        raise ClaimsRefused("typ: the token is of another type")


def check_id_token(claims: Mapping[str, object], expected: Expected) -> str:
    """
    Check what holds for each id token, and return its subject.

    Raises:
        ClaimsRefused: If any rule is broken.

    Source: OpenID Connect Core sections 2 and 3.1.3.7, rules 2 to 5, 9 and 10.
    """
    _check_party(claims, expected)
    exp, iat = _instant(claims, "exp"), _instant(claims, "iat")
    if exp <= expected.now - expected.skew_seconds:
        raise ClaimsRefused("exp: the token has expired")
    if iat > expected.now + expected.skew_seconds:
        raise ClaimsRefused("iat: the token is from the future")
    if "nbf" in claims and _instant(claims, "nbf") > expected.now + expected.skew_seconds:
        raise ClaimsRefused("nbf: the token isn't good yet")
    if "events" in claims:
        raise ClaimsRefused("events: a security event is no id token")
    kind = claims.get("typ")
    if isinstance(kind, str) and kind.lower() in FOREIGN_KINDS:
        raise ClaimsRefused("typ: the token is of another kind")
    return _subject(claims)


def check_nonce(claims: Mapping[str, object], nonce: str) -> None:
    """Refuse an id token that answers another login (rule 11). Raises ``ClaimsRefused``."""
    if not _equal(nonce, claims.get("nonce")):
        raise ClaimsRefused("nonce: the token answers another login")


def check_access_token_hash(claims: Mapping[str, object], alg: str, access_token: str) -> None:
    """
    Refuse an id token that was made for another access token, where it says so.

    Raises:
        ClaimsRefused: If ``at_hash`` is there and doesn't fit.

    Source: OpenID Connect Core section 3.1.3.8.
    """
    if "at_hash" not in claims:
        return
    digest = _HASHES.get(alg[-3:], hashlib.sha512)(access_token.encode()).digest()  # EdDSA: SHA-512, as Ed25519 does
    fitting = base64.urlsafe_b64encode(digest[: len(digest) // 2]).rstrip(b"=").decode()
    if not _equal(fitting, claims["at_hash"]):
        raise ClaimsRefused("at_hash: the token was made for another access token")


def check_authentication(claims: Mapping[str, object], parameters: Mapping[str, str], expected: Expected) -> None:
    """
    Check that the user was authenticated as it was asked for.

    Args:
        claims: The id token's.
        parameters: What the login asked for; ``max_age`` and ``acr_values`` count.
        expected: For the time.

    Raises:
        ClaimsRefused: If ``auth_time`` is too old or missing, or ``acr`` is none of those asked for.

    Source: OpenID Connect Core section 3.1.3.7, rules 12 and 13; RFC 9470 section 5.
    """
    if (max_age := parameters.get("max_age")) is not None:
        if not max_age.isdecimal() or len(max_age) > 10:
            raise ClaimsRefused("max_age: the login asked for no number")
        if expected.now - _instant(claims, "auth_time") > float(max_age) + expected.skew_seconds:
            raise ClaimsRefused("auth_time: the authentication is too old")
    wanted = parameters.get("acr_values", "").split()
    if wanted and claims.get("acr") not in wanted:
        raise ClaimsRefused("acr: the authentication is too weak")


def check_logout_token(claims: Mapping[str, object], expected: Expected) -> LogoutClaims:
    """
    Check a logout token.

    Raises:
        ClaimsRefused: If any rule is broken.

    Source: OpenID Connect Back-Channel Logout section 2.6.
    """
    _check_party(claims, expected)
    exp, iat = _instant(claims, "exp"), _instant(claims, "iat")
    if exp <= expected.now - expected.skew_seconds:
        raise ClaimsRefused("exp: the token has expired")
    if not -MAX_AGE_OF_LOGOUT_TOKEN_SECONDS <= iat - expected.now <= expected.skew_seconds:
        raise ClaimsRefused("iat: the token is old or from the future")
    events = claims.get("events")
    if not isinstance(events, Mapping) or not isinstance(events.get(LOGOUT_EVENT), Mapping):
        raise ClaimsRefused("events: the token tells of no logout")
    if "nonce" in claims:
        raise ClaimsRefused("nonce: an id token is no logout token")
    subject = _subject(claims) if "sub" in claims else None
    sid = _text(claims, "sid") if "sid" in claims else None
    if subject is None and sid is None:
        raise ClaimsRefused("sub, sid: the token names nobody")
    return LogoutClaims(issuer=expected.issuer, subject=subject, sid=sid, jti=_text(claims, "jti"), exp=exp)


def check_caller_token(claims: Mapping[str, object], expected: Expected, *, subject_claim: str) -> tuple[str, float]:
    """
    Check a token by which an API client says who it is.

    Args:
        claims: The token's.
        expected: Its issuer, and as ``client_id`` the audience that the broker has there.
        subject_claim: The claim that names the caller.

    Returns:
        The caller's name, and the Unix seconds from which the token is refused.

    Raises:
        ClaimsRefused: If any rule is broken.

    Source: RFC 7519 section 4.1, RFC 9068 section 4.
    """
    if claims.get("iss") != expected.issuer:
        raise ClaimsRefused("iss: the token is from another issuer")
    aud = claims.get("aud")
    if expected.client_id not in (aud if isinstance(aud, list) else [aud]):
        raise ClaimsRefused("aud: the token is meant for somebody else")
    exp = _instant(claims, "exp")
    if exp <= expected.now - expected.skew_seconds:
        raise ClaimsRefused("exp: the token has expired")
    if "nbf" in claims and _instant(claims, "nbf") > expected.now + expected.skew_seconds:
        raise ClaimsRefused("nbf: the token isn't good yet")
    if "nonce" in claims or "events" in claims:
        raise ClaimsRefused("nonce, events: an id token or a security event is no access token")
    return _text(claims, subject_claim), exp + expected.skew_seconds


def check_authorization_response(claims: Mapping[str, object], expected: Expected) -> dict[str, str]:
    """
    Check a JWT-secured authorization response, and return the parameters in it, ``iss`` among them.

    Raises:
        ClaimsRefused: If it is from somebody else, meant for somebody else, or too old.

    Source: JARM (JWT Secured Authorization Response Mode for OAuth 2.0) sections 2.1 and 2.4.
    """
    _check_party(claims, expected)
    if _instant(claims, "exp") <= expected.now - expected.skew_seconds:
        raise ClaimsRefused("exp: the response has expired")
    return {name: value for name, value in claims.items() if isinstance(value, str) and name != "aud"}


def _check_party(claims: Mapping[str, object], expected: Expected) -> None:
    if claims.get("iss") != expected.issuer:
        raise ClaimsRefused("iss: the token is from another issuer")
    aud = claims.get("aud")
    audiences = aud if isinstance(aud, list) else [aud]
    if not all(isinstance(audience, str) for audience in audiences) or expected.client_id not in audiences:
        raise ClaimsRefused("aud: the token is meant for somebody else")
    if "azp" in claims and claims["azp"] != expected.client_id:
        raise ClaimsRefused("azp: the token was issued to somebody else")
    if len(audiences) > 1 and "azp" not in claims:
        raise ClaimsRefused("azp: of several audiences one must be the authorized party")


def _equal(expected: str, given: object) -> bool:
    # JSON can hold lone surrogates, which no codec takes without being told to.
    return isinstance(given, str) and hmac.compare_digest(expected.encode(), given.encode(errors="surrogatepass"))


def _subject(claims: Mapping[str, object]) -> str:
    subject = _text(claims, "sub")
    if len(subject) > MAX_SUBJECT_CHARACTERS:
        raise ClaimsRefused("sub: the subject is too long")
    return subject


def _text(claims: Mapping[str, object], name: str) -> str:
    value = _claim(claims, name)
    if not isinstance(value, str) or not 0 < len(value) <= 512 or not value.isprintable():
        raise ClaimsRefused(f"{name}: no text")
    return value


def _instant(claims: Mapping[str, object], name: str) -> float:
    """Return a NumericDate (RFC 7519 section 2): a number, no text, no boolean, and none that wraps."""
    value = _claim(claims, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_INSTANT:
        raise ClaimsRefused(f"{name}: no sensible instant")
    return float(value)


def _claim(claims: Mapping[str, object], name: str) -> object:
    if name not in claims:
        raise ClaimsRefused(f"{name}: missing")
    return claims[name]
