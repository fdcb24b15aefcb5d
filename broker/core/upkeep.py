"""
When a grant is looked at although nobody asks for it: to keep it alive, to settle an intent, to revoke what has ended.

Due times are kept in the store; services.keepalive looks at what is due.
"""

from broker.core.grant import Grant, Origin
from broker.core.provider import ProviderOptions
from broker.core.refresh import SETTLE_SECONDS

KEEP_ALIVE_SHARE = 0.5
"""An unused refresh token is presented after this share of its life."""
REVOKE_FOR_SECONDS = 86400.0
"""A server that doesn't revoke the refresh token of a grant that has ended is asked again for this long."""


def login_needed_at(grant: Grant, options: ProviderOptions) -> float | None:
    """
    Return the Unix seconds at which the user must log in again, as far as that is known.

    The server bounds the chain of rotated refresh tokens (``max_rotation``); a refresh token whose end is known can be
    rotated before it, so its end counts only where the chain's comes first.
    """
    if grant.ended is not None:
        return grant.ended.at
    if options.max_rotation_seconds is None:
        return None
    return grant.chain_started_at + options.max_rotation_seconds


def keep_alive_at(grant: Grant, options: ProviderOptions, *, jitter: float) -> float | None:
    """
    Return the Unix seconds at which an unused grant is refreshed so that it doesn't end; None if it needs no help.

    Args:
        grant: The grant.
        options: Of its provider.
        jitter: Between 0 and 1: logins of one morning must not come due in one minute.
    """
    if grant.ended is not None or grant.refresh_token is None:
        return None
    limits = [options.idle_timeout_seconds]
    if grant.refresh_expires_at is not None:
        limits.append(grant.refresh_expires_at - grant.refreshed_at)
    known = [limit for limit in limits if limit is not None and limit > 0]
    if not known:
        return None
    due = grant.refreshed_at + min(known) * KEEP_ALIVE_SHARE * (0.8 + 0.2 * jitter)
    ends = [grant.keep_until, login_needed_at(grant, options)]
    return None if any(limit is not None and due >= limit for limit in ends) else due


def due_at(grant: Grant, options: ProviderOptions, *, now: float, jitter: float) -> float | None:
    """
    Return the Unix seconds at which the keep-alive should look at a grant, unless it is used before; None for never.

    Args:
        grant: As it is written.
        options: Of its provider.
        now: Unix seconds.
        jitter: Between 0 and 1.
    """
    if grant.ended is not None:
        return revocation_at(grant, now=now, jitter=jitter)
    rests = [failure.retry_at for failure in grant.failures.values()]
    if grant.intent is not None:
        return max(now + SETTLE_SECONDS, *rests) if rests else now + SETTLE_SECONDS
    ages = keep_alive_at(grant, options, jitter=jitter)
    if ages is not None and rests and grant.refreshed_at > now:
        return max(rests)  # by a clock that was ahead: how old it is nobody knows, so it is asked again soon
    return ages if ages is None or not rests else max(ages, *rests)


def revocation_at(grant: Grant, *, now: float, jitter: float) -> float | None:
    """
    Return the Unix seconds at which a revocation is tried again; None if there is none to wait for.

    Each time the wait doubles: it is as long as the grant has been over.
    """
    if not awaits_revocation(grant, now=now):
        return None
    assert grant.ended is not None
    return now + max(now - grant.ended.at, SETTLE_SECONDS) * (0.8 + 0.4 * jitter)


def life_after_end(grant: Grant) -> float | None:
    """
    Return how many seconds the record of a grant lives after the write that ends it; None if it lives as it did.

    Those of browsers end with their sessions, and those of the configuration begin anew. An imported one is kept until
    every process has heard of its end and its server had the time to revoke it.
    """
    return REVOKE_FOR_SECONDS if grant.ended is not None and grant.origin is Origin.IMPORTED else None


def awaits_revocation(grant: Grant, *, now: float) -> bool:
    """Return whether a grant that has ended still has a refresh token that its server should be told to forget."""
    return grant.ended is not None and grant.refresh_token is not None and now < grant.ended.at + REVOKE_FOR_SECONDS
