"""What this process knows of grants: enough to serve a live token without asking anybody."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from broker.core.audience import Audience
from broker.core.grant import Grant, HeldToken
from broker.core.outcome import Token, token_of
from broker.core.provider import ProviderOptions
from broker.core.refresh import SETTLE_SECONDS, due_from, takes_again, usable_until
from broker.core.secret import AccessToken, RefreshToken
from broker.services.clock import Clock
from broker.services.compact import CompactDict

UNSAVED = math.inf


@dataclass(frozen=True, slots=True)
class KnownToken:
    """
    A token that can be served from memory.

    Attributes:
        token: What the caller gets.
        issued_at: Unix seconds.
        due_at: Unix seconds from which it should be renewed behind the caller's back.
        usable_until: Unix seconds from which it isn't sent.
    """

    token: Token
    issued_at: float
    due_at: float
    usable_until: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """
    A grant as this process last saw it. It holds no refresh token.

    Attributes:
        provider: Whose grant it is; empty if that isn't known.
        generation: The generation that was seen.
        tokens: By :attr:`Audience.key`.
        ended: Why it ended; None while it lives.
        version: Of its record in the store; 0 if that isn't known.
        era: How often events had been lost when it was seen.
        stale_at: Monotonic seconds from which the store must be asked again; infinity if it doesn't know this yet.
    """

    provider: str
    generation: int
    tokens: Mapping[str, KnownToken]
    ended: str | None
    version: int
    era: int
    stale_at: float

    @property
    def state(self) -> str:
        """``live`` or ``ended``."""
        return "live" if self.ended is None else "ended"

    def token(self, audience: Audience, now: float) -> KnownToken | None:
        """Return the token of *audience* that may be sent at *now* (Unix seconds)."""
        known = self.tokens.get(audience.key)
        return known if known is not None and now < known.usable_until else None


@dataclass(slots=True)
class Heard:
    """
    What is heard of a grant while it is read.

    Attributes:
        era: How often events had been lost when the read began.
        generation: The newest generation that the store was said to have; 0 for none.
    """

    era: int
    generation: int = 0


class KnownGrants:
    """
    The last seen grants, bounded: the one that was seen longest ago goes first.

    Attributes:
        counts: How many there are, by provider and state.
    """

    def __init__(
        self, providers: Mapping[str, ProviderOptions], clock: Clock, *, ttl_seconds: float, limit: int
    ) -> None:
        """
        Args:
            providers: By configured name.
            clock: Time.
            ttl_seconds: How long what was seen isn't asked for again, while nothing else is heard.
            limit: How many grants are remembered.
        """
        self._providers = providers
        self._clock = clock
        self._ttl_seconds = ttl_seconds
        self._grants: CompactDict[str, Known] = CompactDict(limit, pack=_pack, unpack=_unpack)
        self._era = 0
        self._heard: dict[str, Heard] = {}
        self.counts: Counter[tuple[str, str]] = Counter()

    def __len__(self) -> int:
        return len(self._grants)

    def get(self, grant_id: str) -> Known | None:
        """Return what was last seen of a grant, stale or not."""
        return self._grants.ready(grant_id) or self._grants.get(grant_id)

    def fresh(self, grant_id: str) -> Known | None:
        """Return what was last seen of a grant, unless the store must be asked again."""
        seen = self.get(grant_id)
        return None if seen is None or self.is_stale(seen) else seen

    def is_stale(self, seen: Known) -> bool:
        """Return whether the store must be asked again."""
        return self._clock.monotonic() >= seen.stale_at or (seen.era != self._era and seen.stale_at != UNSAVED)

    def learn(self, grant: Grant, *, version: int = 0) -> Known | None:
        """
        Remember a grant as it stands in the store, in *version* if that is known.

        Returns:
            What is known of it now: something newer, where that was known before.
        """
        return self._remember(grant, version=version, stale_at=self._clock.monotonic() + self._ttl_seconds)

    def confirm(self, grant_id: str, version: int) -> Known | None:
        """The store was found to have *version* still. Returns what is known of the grant now."""
        seen = self._grants.get(grant_id)
        if seen is not None and seen.version == version:
            # Not replace(): where nothing is cached this is done for each request.
            seen = Known(
                provider=seen.provider,
                generation=seen.generation,
                tokens=seen.tokens,
                ended=seen.ended,
                version=version,
                era=self._era,
                stale_at=self._clock.monotonic() + self._ttl_seconds,
            )
            _ = self._grants.put(grant_id, seen)
        return seen

    def learn_unsaved(self, grant: Grant) -> None:
        """Remember a grant as it will stand in the store, which doesn't have it yet."""
        self._remember(grant, version=0, stale_at=UNSAVED)

    def end(self, grant_id: str, reason: str, *, generation: int = 0) -> None:
        """
        Remember that a grant has ended.

        A read that began before may yet bring it alive: what it brings is not believed until this is stale.

        Args:
            grant_id: The grant.
            reason: Why.
            generation: Which one ended, 0 if that isn't known. If the grant is known to have begun anew since, this is
                heard late or twice, and nothing is remembered.
        """
        stale_at = self._clock.monotonic() + self._ttl_seconds
        former = self._grants.get(grant_id)
        if former is not None and former.ended is None and 0 < generation < former.generation:
            return
        provider = "" if former is None else former.provider
        self._put(
            grant_id,
            Known(
                provider=provider,
                generation=0,
                tokens={},
                ended=reason,
                version=0,
                era=self._era,
                stale_at=stale_at,
            ),
        )

    def begin_read(self, grant_id: str) -> None:
        """The grant is read from the store: what is heard of it from now on may be newer than what that brings."""
        self._heard[grant_id] = Heard(self._era)

    def end_read(self, grant_id: str) -> bool:
        """Return whether what was heard since :meth:`begin_read` is newer than what is known: then it is read again."""
        heard, seen = self._heard.pop(grant_id), self._grants.get(grant_id)
        return heard.era != self._era or (seen is not None and seen.generation < heard.generation)

    def outdate(self, grant_id: str, generation: int) -> None:
        """A newer generation is in the store: ask for it. What is older serves on while the store is down."""
        heard = self._heard.get(grant_id)
        if heard is not None:
            heard.generation = max(heard.generation, generation)
        seen = self._grants.get(grant_id)
        if seen is not None and seen.generation < generation:
            self._put(grant_id, replace(seen, stale_at=-math.inf))

    def outdate_all(self) -> None:
        """Events may have been lost: ask the store again for each grant, unless it doesn't have ours yet."""
        self._era += 1

    def _remember(self, grant: Grant, *, version: int, stale_at: float) -> Known | None:
        options = self._providers.get(grant.provider)
        former = self._grants.get(grant.id)
        if options is None or (former is not None and grant.ended is None and self._outranks(former, grant)):
            return former
        seen = Known(
            provider=grant.provider,
            generation=grant.generation,
            tokens=self._tokens_of(grant, options),
            ended=None if grant.ended is None else grant.ended.reason,
            version=version,
            era=self._era,
            stale_at=stale_at,
        )
        self._put(grant.id, seen)
        return seen

    def _tokens_of(self, grant: Grant, options: ProviderOptions) -> Mapping[str, KnownToken]:
        now = self._clock.now()
        # While its refresh token is in doubt, there is no use in looking at each request whether that has changed.
        rests_until = 0.0 if takes_again(grant, options, now=now) else now + SETTLE_SECONDS
        return {
            key: _known_token(grant, key, held, options, rests_until=rests_until) for key, held in grant.tokens.items()
        }

    def _outranks(self, former: Known, grant: Grant) -> bool:
        """Return whether what is known is newer than *grant*, or an end that was heard of while it was read."""
        return former.generation > grant.generation or (former.ended is not None and not self.is_stale(former))

    def _put(self, grant_id: str, seen: Known) -> None:
        gone = self._grants.get(grant_id)
        dropped = self._grants.put(grant_id, seen)
        if dropped is not None:  # nothing has to go for what takes its own place
            _, gone = dropped
        if gone is not None:
            if gone.provider == seen.provider and gone.state == seen.state:
                return
            self.counts[gone.provider, gone.state] -= 1
        self.counts[seen.provider, seen.state] += 1


def _known_token(
    grant: Grant, key: str, held: HeldToken, options: ProviderOptions, *, rests_until: float
) -> KnownToken:
    failure = grant.failures.get(key)
    # While a grant backs off, there is no use in looking whether it may be refreshed.
    due_at = max(due_from(held, options), rests_until, 0.0 if failure is None else failure.retry_at)
    return KnownToken(token_of(grant, held), held.issued_at, due_at, usable_until(held))


def _pack(known: Known) -> tuple[Any, ...]:
    tokens = tuple(
        [
            (key, _pack_token(each.token), (each.issued_at, each.due_at, each.usable_until))
            for key, each in known.tokens.items()
        ]
    )
    ended = None if known.ended is None else str(known.ended)
    return known.provider, known.generation, tokens, ended, known.version, known.era, known.stale_at


def _unpack(packed: tuple[Any, ...]) -> Known:
    provider, generation, tokens, ended, version, era, stale_at = packed
    return Known(
        provider=provider,
        generation=generation,
        tokens={key: KnownToken(_unpack_token(token, provider), *instants) for key, token, instants in tokens},
        ended=ended,
        version=version,
        era=era,
        stale_at=stale_at,
    )


def _pack_token(token: Token) -> tuple[Any, ...]:
    dpop_key = None if token.dpop_key is None else token.dpop_key.reveal()
    return token.access_token.reveal(), token.token_type, token.generation, token.expires_at, dpop_key


def _unpack_token(packed: tuple[Any, ...], provider: str) -> Token:
    access_token, token_type, generation, expires_at, dpop_key = packed
    key = None if dpop_key is None else RefreshToken(dpop_key)
    return Token(AccessToken(access_token), token_type, generation, expires_at, provider, key)
