"""An authorization server without a network, whose next answers a test decides. It rotates as a real one does."""

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.grant import Grant
from broker.core.oauth import TokenFailure, TokenOutcome, TokenSet
from broker.core.provider import ProviderOptions, Rotation
from broker.core.secret import AccessToken, IdToken, RefreshToken
from broker.demo.families import GRANTED, Families
from broker.errors import ProviderError
from broker.services.clock import Clock
from broker.services.provider import AuthorizationServer, Identity
from broker.services.token_endpoint import spared
from tests.support.clock import SeededRandomness
from tests.support.grants import LIFE, failure, provider_options
from tests.support.ledger import Ledger

CLIENT = "broker"


@dataclass(slots=True)
class Step:
    """
    What becomes of one token request.

    Attributes:
        instead: Comes in place of the answer; None: the answer comes.
        processed: Whether the server acts on the request.
        gate: Held until it is set, after the server has acted.
        reached: Set when the request has come to the gate.
    """

    instead: TokenFailure | None = None
    processed: bool = True
    gate: asyncio.Event | None = None
    reached: asyncio.Event = field(default_factory=asyncio.Event)

    def release(self) -> None:
        assert self.gate is not None
        self.gate.set()


class ScriptedServer(AuthorizationServer):
    """Implements what the engine needs of an AuthorizationServer."""

    def __init__(self, clock: Clock, *, name: str = "corp", life: float = LIFE, **options: Any) -> None:
        self.name = name
        self.options: ProviderOptions = provider_options(**options)
        self.life = life
        self.ledger = Ledger()
        self.families = Families(
            clock=clock,
            randomness=SeededRandomness(7),
            rotation=Rotation(self.options.rotation),
            rotation_grace_seconds=self.options.rotation_grace_seconds,
            observer=self.ledger.record,
        )
        self.ledger.families = self.families.by_id
        self.refreshes: list[tuple[str, Audience]] = []
        self.exchanges: list[tuple[str, Audience]] = []
        self.revoked: list[str] = []
        self.revocation_fault: ProviderError | None = None
        self.id_tokens: deque[str] = deque()
        self.identities: dict[str, Identity | ProviderError | None] = {}
        self.kills_with: str | None = "invalid_grant"
        self.killed: set[str] = set()
        """Access tokens that aren't exchanged any more, though they haven't ended."""
        self.hang_at_checks = asyncio.Event()
        self.hang_at_checks.set()
        self._clock = clock
        self._steps: deque[Step] = deque()
        self._always: Step | None = None
        self._issued = 0

    # --- what tests say

    def login_tokens(self, subject: str = "alice") -> TokenSet:
        """The token response of a login."""
        _, token = self.families.start(
            client_id=CLIENT, subject=subject, scope="openid", sid="sid", auth_time=self._clock.now()
        )
        return self._answer(token.token)

    def refuse(self, kind: str, *, processed: bool = False, times: int = 1, **what: Any) -> None:
        """Answer the next requests with a failure; *processed*: although the server has acted."""
        for _ in range(times):
            self._steps.append(Step(instead=failure(kind, **what), processed=processed))

    def refuse_always(self, kind: str, *, processed: bool = False, **what: Any) -> None:
        """Answer every request with a failure, until :meth:`recover`."""
        self._always = Step(instead=failure(kind, **what), processed=processed)

    def hold(self, kind: str | None = None, *, processed: bool = True, **what: Any) -> Step:
        """Hold the next answer back until the step is released."""
        step = Step(instead=failure(kind, **what) if kind else None, processed=processed, gate=asyncio.Event())
        self._steps.append(step)
        return step

    def recover(self) -> None:
        """Work again."""
        self._always = None
        self._steps.clear()

    # --- what the engine calls

    async def refresh(self, grant: Grant, audience: Audience) -> TokenOutcome:
        assert grant.refresh_token is not None
        token = grant.refresh_token.reveal()
        self.refreshes.append((token, audience))
        return await self._play(lambda: self._rotate(token, audience))

    async def exchange_token(
        self, subject_token: AccessToken, audience: Audience, *, dpop_key: RefreshToken | None = None
    ) -> TokenOutcome:
        self.exchanges.append((subject_token.reveal(), audience))
        if subject_token.reveal() in self.killed:
            return spared(failure("permanent", error=self.kills_with, status=400), "token exchange")
        return await self._play(lambda: self._answer(None, audience=audience))

    async def check_refreshed(self, id_token: IdToken) -> Identity | None:
        await self.hang_at_checks.wait()
        said = self.identities.get(id_token.reveal())
        if isinstance(said, ProviderError):
            raise said
        return said

    async def revoke(self, token: RefreshToken) -> bool:
        if self.revocation_fault is not None:
            raise self.revocation_fault
        self.revoked.append(token.reveal())
        return True

    async def close(self) -> None:
        return

    async def _play(self, act: Any) -> TokenOutcome:
        step = self._steps.popleft() if self._steps else self._always or Step()
        answer: TokenOutcome | None = act() if step.processed else None
        if step.gate is not None:
            step.reached.set()
            await step.gate.wait()
        await asyncio.sleep(0)
        if step.instead is not None:
            return step.instead
        assert answer is not None
        return answer

    def _rotate(self, token: str, audience: Audience) -> TokenOutcome:
        presentation = self.families.present(token, CLIENT)
        if presentation.answer not in GRANTED:
            return failure("permanent", error="invalid_grant", status=400)
        assert presentation.replacement is not None
        return self._answer(presentation.replacement.token, audience=audience)

    def _answer(self, refresh_token: str | None, *, audience: Audience = DEFAULT_AUDIENCE) -> TokenSet:
        self._issued += 1
        now = self._clock.now()
        suffix = "".join(f"@{part}" for part in (audience.resource, audience.audience) if part)
        return TokenSet(
            access_token=AccessToken(f"at-{self._issued}{suffix}"),
            expires_at=now + self.life,
            requested_at=now,
            refresh_token=None if refresh_token is None else RefreshToken(refresh_token),
            id_token=IdToken(self.id_tokens.popleft()) if self.id_tokens else None,
        )
