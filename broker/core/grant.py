"""What an authorization server gave to the broker for one caller: the one canonical home of a refresh token."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Self

from broker.core.audience import DEFAULT_AUDIENCE
from broker.core.oauth import FailureKind, TokenSet
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.core.stored_form import of_known_members

FORMAT = 1
"""
Version of the stored form. A record of a later version is left unharmed and not used (rolling upgrades).

A member that older releases can do without needs no new one: they leave it out, and what they write lacks it. A new
value of an enumeration needs one.
"""


class Origin(StrEnum):
    """Who brought a grant."""

    BROWSER = "browser"
    """A login. It lives and is kept alive as long as its session may live."""
    STANDING = "standing"
    """The configuration (``grants:``)."""
    IMPORTED = "imported"
    """A backend or an operator that handed its tokens over."""


class EndReason(StrEnum):
    """Why a grant ended. Nothing else ends one."""

    INVALID_GRANT = "invalid_grant"
    LOGOUT = "logout"
    REVOKED = "revoked"
    CHAIN_END = "chain_end"
    SUBJECT_CHANGED = "subject_changed"
    """A refreshed id token names another subject (OpenID Connect Core section 12.2)."""
    IDENTITY_REFUSED = "identity_refused"
    """A refreshed id token names an email address with which nobody may log in."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldToken:
    """
    An access token that a grant holds for one audience.

    Attributes:
        access_token: The access token.
        token_type: ``Bearer`` or ``DPoP``.
        issued_at: Unix seconds, read before it was asked for.
        expires_at: Unix seconds from which it must not be used.
        scope: What was granted; None means what was asked.
        generation: The grant's generation that brought it.
    """

    access_token: AccessToken
    token_type: str
    issued_at: float
    expires_at: float
    scope: str | None = None
    generation: int

    @classmethod
    def of(cls, answer: TokenSet, *, generation: int) -> Self:
        """Return what *answer* brought, as *generation* of its grant."""
        return cls(
            access_token=answer.access_token,
            token_type=answer.token_type,
            issued_at=answer.requested_at,
            expires_at=answer.expires_at,
            scope=answer.scope,
            generation=generation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """
    A refresh token is about to be presented, or was, and what came of it isn't known here.

    Attributes:
        attempt: Names this presentation.
        owner: The process that makes it.
        started_at: Unix seconds of the *first* presentation of this refresh token; the grace counts from it.
        presented_at: Unix seconds of the last one.
        awaited: Whether its owner may yet be given the answer to the last one. It isn't once it has noted what came.
        carried: Whether an earlier presentation of this refresh token is in doubt too. A later one that was certainly
            not processed doesn't settle it.
    """

    attempt: str
    owner: str
    started_at: float
    presented_at: float
    awaited: bool = True
    carried: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """
    The last token request of a grant for one audience failed.

    Attributes:
        kind: In which way.
        count: How often in a row.
        at: Unix seconds of the failure.
        retry_at: Unix seconds before which it isn't tried again, unless the provider is known to work again.
        error: The ``error`` of the answer, if it had one.
    """

    kind: FailureKind
    count: int
    at: float
    retry_at: float
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """The grant's end: why, and the Unix seconds of it."""

    reason: EndReason
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """
    A grant and everything that its refresh needs to know.

    Attributes:
        id: 128 random bits in hexadecimal. Not a secret: it may be logged.
        provider: The configured name of the authorization server.
        subject: ``sub``, or what the configuration calls a standing grant's subject.
        origin: Who brought it.
        generation: Counts the token responses that were saved; the first is 1.
        refresh_token: None if the authorization server gave none. A grant that has ended has one only until it is
            revoked.
        refresh_expires_at: Unix seconds at which the refresh token ends; None if unknown.
        refreshed_at: Unix seconds of the last token response; idle limits count from it.
        tokens: The access tokens by :attr:`Audience.key`; "" is the grant's own.
        id_token: The newest id token, for ``id_token_hint`` at logout. A browser's grant has it after its end, too.
        scope: What was granted with the refresh token.
        session_id: The provider's own session, where it hands one out.
        chain_started_at: Unix seconds of the first token response; ``max_rotation`` counts from it.
        chain_length: Counts the answers to its refresh tokens, the first token response included. Token exchanges
            don't count. An answer to a link of the chain that isn't the last any more came too late.
        first_link: The ``chain_length`` with which its present chain began. An answer to an earlier link belongs to a
            chain that was given up, and nobody else will revoke what it brought.
        keep_until: Unix seconds until which it is worth keeping alive: its session's end. None: without end.
        intent: An open presentation of the refresh token.
        failures: By :attr:`Audience.key`, the last failure where the last token request failed.
        ended: Set once the grant has ended.
        dpop_key: The private key that the tokens are bound to (RFC 9449), as a JWK in JSON; None for bearer tokens.
        stands_for: Of a record that only remembers what is to be revoked: the id of the grant in which other tokens
            take the place of these. As long as that grant goes on with them, they aren't revoked.
        handed_over: Names the refresh token with which its present chain began, if somebody handed it over: see
            ``services.hand_over``. None as well where an older release wrote the record since.
    """

    id: str
    provider: str
    subject: str
    origin: Origin = Origin.BROWSER
    generation: int
    refresh_token: RefreshToken | None
    refresh_expires_at: float | None = None
    refreshed_at: float
    tokens: Mapping[str, HeldToken] = field(default_factory=dict)
    id_token: IdToken | None = None
    scope: str | None = None
    session_id: str | None = None
    chain_started_at: float
    chain_length: int = 1
    first_link: int = 1
    keep_until: float | None = None
    intent: Intent | None = None
    failures: Mapping[str, Failure] = field(default_factory=dict)
    ended: Ended | None = None
    dpop_key: RefreshToken | None = None
    stands_for: str | None = None
    handed_over: str | None = None


def is_empty(grant: Grant) -> bool:
    """Return whether *grant* waits for its first tokens, as a standing one does that begins, or begins anew."""
    return not grant.tokens and grant.refresh_token is None and grant.session_id is None and grant.ended is None


def new_grant(
    answer: TokenSet,
    *,
    grant_id: str,
    provider: str,
    subject: str,
    origin: Origin,
    keep_until: float | None,
    dpop_key: RefreshToken | None,
) -> Grant:
    """Return the grant of a first token response. Its attributes are those of :class:`Grant`."""
    return Grant(
        id=grant_id,
        provider=provider,
        subject=subject,
        origin=origin,
        generation=1,
        refresh_token=answer.refresh_token,
        refresh_expires_at=answer.refresh_expires_at,
        refreshed_at=answer.requested_at,
        tokens={DEFAULT_AUDIENCE.key: HeldToken.of(answer, generation=1)},
        id_token=answer.id_token,
        scope=answer.scope,
        session_id=answer.session_id,
        chain_started_at=answer.requested_at,
        keep_until=keep_until,
        dpop_key=dpop_key,
    )


_read_json = json.JSONDecoder().raw_decode
"""What ``json.loads`` does at its core. Around it, white space and encodings are looked for that aren't there."""


class UnknownFormat(ValueError):
    """The record was written by a later release."""


def encode(grant: Grant) -> bytes:
    """Return the stored form of *grant*, in clear: it must be sealed before it leaves the process."""

    def reveal(value: RefreshToken | IdToken | AccessToken | None) -> str | None:
        return None if value is None else value.reveal()

    document = {
        "v": FORMAT,
        "id": grant.id,
        "provider": grant.provider,
        "subject": grant.subject,
        "origin": grant.origin,
        "generation": grant.generation,
        "refresh_token": reveal(grant.refresh_token),
        "refresh_expires_at": grant.refresh_expires_at,
        "refreshed_at": grant.refreshed_at,
        "tokens": {
            key: {
                "access_token": token.access_token.reveal(),
                "token_type": token.token_type,
                "issued_at": token.issued_at,
                "expires_at": token.expires_at,
                "scope": token.scope,
                "generation": token.generation,
            }
            for key, token in grant.tokens.items()
        },
        "id_token": reveal(grant.id_token),
        "scope": grant.scope,
        "session_id": grant.session_id,
        "chain_started_at": grant.chain_started_at,
        "chain_length": grant.chain_length,
        "first_link": grant.first_link,
        "keep_until": grant.keep_until,
        "intent": asdict(grant.intent) if grant.intent else None,
        "failures": {key: asdict(failure) for key, failure in grant.failures.items()},
        "ended": asdict(grant.ended) if grant.ended else None,
        "dpop_key": reveal(grant.dpop_key),
        "stands_for": grant.stands_for,
        "handed_over": grant.handed_over,
    }
    return json.dumps(document, separators=(",", ":")).encode()


def decode(stored: bytes) -> Grant:
    """
    Return the grant that :func:`encode` wrote.

    Raises:
        UnknownFormat: If a later release wrote it.
    """
    document, _ = _read_json(stored.decode())
    if document["v"] != FORMAT:
        raise UnknownFormat(f"format {document['v']!r}")
    refresh_token, id_token, dpop_key = document["refresh_token"], document["id_token"], document["dpop_key"]
    ended, intent, failures = document["ended"], document["intent"], document["failures"]
    return Grant(
        id=document["id"],
        provider=document["provider"],
        subject=document["subject"],
        origin=Origin(document["origin"]),
        generation=document["generation"],
        refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
        refresh_expires_at=document["refresh_expires_at"],
        refreshed_at=document["refreshed_at"],
        tokens={
            key: HeldToken(
                access_token=AccessToken(token["access_token"]),
                token_type=token["token_type"],
                issued_at=token["issued_at"],
                expires_at=token["expires_at"],
                scope=token["scope"],
                generation=token["generation"],
            )
            for key, token in document["tokens"].items()
        },
        id_token=None if id_token is None else IdToken(id_token),
        scope=document["scope"],
        session_id=document["session_id"],
        chain_started_at=document["chain_started_at"],
        chain_length=document["chain_length"],
        first_link=document.get("first_link", 1),  # a release that has no such members may have written it
        keep_until=document["keep_until"],
        intent=of_known_members(Intent, intent) if intent else None,
        failures={
            key: of_known_members(Failure, {**failure, "kind": FailureKind(failure["kind"])})
            for key, failure in failures.items()
        }
        if failures
        else {},
        ended=of_known_members(Ended, {**ended, "reason": EndReason(ended["reason"])}) if ended else None,
        dpop_key=None if dpop_key is None else RefreshToken(dpop_key),
        stands_for=document.get("stands_for"),
        handed_over=document.get("handed_over"),
    )
