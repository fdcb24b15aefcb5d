"""Grants, answers and options for tests of the engine, each with a sensible default for what a test doesn't care about."""

from typing import Any

from broker.core.grant import Grant, HeldToken, Intent
from broker.core.oauth import FailureKind, TokenFailure, TokenSet
from broker.core.provider import ProviderOptions, Rotation
from broker.core.secret import AccessToken, RefreshToken

NOW = 1_700_000_000.0
"""The moment at which tests begin, in Unix seconds."""
LIFE = 300.0
"""How long an access token lives, in seconds."""


def provider_options(**changes: Any) -> ProviderOptions:
    """A provider that needs no discovery."""
    if "rotation" in changes:
        changes["rotation"] = Rotation(changes["rotation"])
    return ProviderOptions(
        **{
            "client_id": "broker",
            "token_endpoint": "http://127.0.0.1:9/token",
            "discovery": False,
            "refresh_before_expiry_seconds": 60.0,
            "token_endpoint_timeout_seconds": 10.0,
            **changes,
        }
    )


def held(*, generation: int = 1, issued_at: float = NOW, life: float = LIFE, token: str | None = None) -> HeldToken:
    """An access token that was issued at *issued_at*."""
    return HeldToken(
        access_token=AccessToken(token or f"at-{generation}"),
        token_type="Bearer",
        issued_at=issued_at,
        expires_at=issued_at + life,
        generation=generation,
    )


def grant(**changes: Any) -> Grant:
    """A grant that was issued at :data:`NOW`, with one access token for its own audience."""
    return Grant(
        **{
            "id": "0" * 32,
            "provider": "corp",
            "subject": "alice",
            "generation": 1,
            "refresh_token": RefreshToken("rt-1"),
            "refreshed_at": NOW,
            "tokens": {"": held()},
            "chain_started_at": NOW,
            **changes,
        }
    )


def intent(*, started_at: float = NOW, **changes: Any) -> Intent:
    """An intent of a process that may yet be given the answer."""
    return Intent(**{"attempt": "a1", "owner": "p1", "started_at": started_at, "presented_at": started_at, **changes})


def answer(number: int = 2, *, requested_at: float = NOW, life: float = LIFE, **changes: Any) -> TokenSet:
    """A token response with new tokens."""
    return TokenSet(
        **{
            "access_token": AccessToken(f"at-{number}"),
            "expires_at": requested_at + life,
            "requested_at": requested_at,
            "refresh_token": RefreshToken(f"rt-{number}"),
            **changes,
        }
    )


def failure(kind: FailureKind | str, **changes: Any) -> TokenFailure:
    return TokenFailure(kind=FailureKind(kind), **changes)
