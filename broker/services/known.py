"""What this process knows of grants: enough to serve a live token without asking anybody."""

from collections import OrderedDict
from dataclasses import dataclass

from broker.core.audience import Audience
from broker.core.grant import Grant
from broker.core.outcome import Token
from broker.core.provider import ProviderOptions
from broker.core.refresh import due_from, usable_until


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
        generation: The generation that was seen.
        provider: Whose grant it is.
        tokens: By :attr:`Audience.key`.
        ended: Why it ended; None while it lives.
        read_at: Monotonic seconds at which the store said so; infinity if the store doesn't know it yet.
    """

    generation: int
    provider: str
    tokens: dict[str, KnownToken]
    ended: str | None
    read_at: float

    def token(self, audience: Audience, now: float) -> KnownToken | None:
        """Return the token of *audience* that may be sent at *now* (Unix seconds)."""
        known = self.tokens.get(audience.key)
        return known if known is not None and now < known.usable_until else None


def known(grant: Grant, options: ProviderOptions, *, read_at: float) -> Known:
    """Return what is worth remembering of *grant*."""
    tokens = {
        key: KnownToken(
            Token(held.access_token, held.token_type, held.generation, held.expires_at),
            held.issued_at,
            due_from(held, options),
            usable_until(held),
        )
        for key, held in grant.tokens.items()
    }
    return Known(
        generation=grant.generation,
        provider=grant.provider,
        tokens=tokens,
        ended=None if grant.ended is None else grant.ended.reason,
        read_at=read_at,
    )


class KnownGrants:
    """The last seen grants, bounded; the one that was used longest ago goes first."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._grants: OrderedDict[str, Known] = OrderedDict()

    def __len__(self) -> int:
        return len(self._grants)

    def get(self, grant_id: str) -> Known | None:
        return self._grants.get(grant_id)

    def put(self, grant_id: str, seen: Known) -> None:
        """Remember *seen*, unless something newer is known."""
        former = self._grants.get(grant_id)
        if former is not None and former.generation > seen.generation and seen.ended is None:
            return
        self._grants[grant_id] = seen
        self._grants.move_to_end(grant_id)
        if len(self._grants) > self._limit:
            self._grants.popitem(last=False)

    def outdate(self, grant_id: str, generation: int) -> None:
        """A newer generation is in the store: forget what is older, unless the store doesn't have ours yet."""
        former = self._grants.get(grant_id)
        if former is not None and former.generation < generation:
            del self._grants[grant_id]

    def forget(self, grant_id: str) -> None:
        self._grants.pop(grant_id, None)

    def ids(self) -> list[str]:
        """Return the ids of the remembered grants."""
        return list(self._grants)
