"""
The token broker: a grant and an audience in, a token out.

    peek    a live token that this process knows; no I/O, for the hot path
    token   the same, or whatever it takes: read the store, refresh, wait for whoever refreshes

While the access token lives, neither a provider nor a store that is down is noticed.
"""

import asyncio
import logging
from collections.abc import Callable, Mapping

from broker.core.audience import DEFAULT_AUDIENCE, Audience
from broker.core.behaviour import Seen
from broker.core.grant import EndReason, Grant, Origin, new_grant
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome, TokenSet
from broker.core.outcome import Cause, LoginNeeded, Token, TokenResult, Unavailable
from broker.core.secret import RefreshToken
from broker.core.upkeep import keep_alive_at
from broker.errors import StoreError
from broker.services import metrics
from broker.services.answers import Answers, HasSession
from broker.services.clock import Clock, Randomness
from broker.services.health import Provider, ProviderHealth
from broker.services.known import UNSAVED, Known, KnownGrants, KnownToken
from broker.services.news import News
from broker.services.provider import AuthorizationServer, Identity
from broker.services.refresher import STORE_RETRY_SECONDS, Acquire, Refresher, Want
from broker.services.register import Register
from broker.services.rejections import Rejections
from broker.services.revocations import Revocations
from broker.services.spool import Entry, Spool
from broker.services.tasks import Tasks
from broker.services.together import Together
from broker.services.token_exchange import TokenExchange
from broker.services.vault import ForeignRecord, StoredGrant, Unchanged, Vault
from broker.stores.base import Event, Store, Topic

REPORT_SECONDS = 5.0

log = logging.getLogger(__name__)


class TokenBroker:
    """The engine's front: coalesces callers, remembers live tokens, hears what the replicas do."""

    def __init__(
        self,
        *,
        store: Store,
        vault: Vault,
        spool: Spool,
        servers: Mapping[str, AuthorizationServer],
        clock: Clock,
        randomness: Randomness,
        cache_ttl_seconds: float = 5.0,
        max_known: int = 100_000,
        acquire: Acquire | None = None,
        has_session: HasSession | None = None,
    ) -> None:
        """
        Args:
            store: For events; grants go through *vault*.
            vault: Where grants are kept.
            spool: Where answers are kept until the vault has them. It is open.
            servers: The authorization servers by configured name.
            clock: Time.
            randomness: Ids and jitter.
            cache_ttl_seconds: How long a grant isn't read again while nothing is heard of it.
            max_known: How many grants are remembered.
            acquire: Gets tokens for a grant that has no refresh token.
            has_session: Says whether a session hangs on a grant, so that what a dead process had of its login is kept.
        """
        self._vault = vault
        self._clock = clock
        self._randomness = randomness
        self._news = News()
        self._rejections = Rejections()
        self._tasks = Tasks()
        self._running: dict[tuple[str, str], asyncio.Task[TokenResult]] = {}
        self._reading: Together[str, Known | StoreError | None] = Together()
        self._identified: list[Callable[[Grant, Identity], None]] = []
        self._store_rests_until = float("-inf")
        self.providers = {
            name: Provider(
                server=server,
                health=ProviderHealth(
                    name,
                    store,
                    clock,
                    randomness,
                    max_concurrent=server.options.max_concurrent_token_requests,
                ),
            )
            for name, server in servers.items()
        }
        options = {name: server.options for name, server in servers.items()}
        self._known = KnownGrants(options, clock, ttl_seconds=cache_ttl_seconds, limit=max_known)
        self._register = Register(vault, self._known, self._news, clock, randomness)
        self.revocations = Revocations(vault, servers, clock)
        self._answers = Answers(
            vault=vault,
            spool=spool,
            register=self._register,
            revocations=self.revocations,
            known=self._known,
            providers=self.providers,
            clock=clock,
            randomness=randomness,
            tasks=self._tasks,
            identified=self._tell_identified,
            has_session=has_session or _has_no_session,
        )
        self.refresher = Refresher(
            vault=vault,
            answers=self._answers,
            token_exchange=TokenExchange(
                register=self._register, known=self._known, clock=clock, randomness=randomness
            ),
            register=self._register,
            known=self._known,
            providers=self.providers,
            clock=clock,
            randomness=randomness,
            news=self._news,
            tasks=self._tasks,
            owner=randomness.token_bytes(8).hex(),
            acquire=acquire or _acquire_nothing,
        )
        self._unsubscribe = store.subscribe(self._heard)

    # --- asking for a token

    def peek(self, grant_id: str, audience: Audience = DEFAULT_AUDIENCE) -> Token | None:
        """Return a live token that this process knows for sure, or None: then ask :meth:`token`."""
        seen = self._known.fresh(grant_id)
        if seen is None:
            return None
        now = self._clock.now()
        held = seen.token(audience, now)
        if held is None or (now >= held.due_at and (grant_id, audience.key) not in self._running):
            return None
        return held.token

    async def token(
        self, grant_id: str, audience: Audience = DEFAULT_AUDIENCE, *, rejected_generation: int | None = None
    ) -> TokenResult:
        """
        Return a token that may be sent upstream now, or why there is none. Never raises for what others do.

        Args:
            grant_id: Whose token.
            audience: For whom.
            rejected_generation: The generation of a token that an upstream has just answered with 401. What is
                returned is newer, unless a newer one would be refused as well (it is returned again then).
        """
        seen = self._known.get(grant_id)
        if seen is None or self._known.is_stale(seen):
            if (held := self._while_the_store_rests(seen, audience, rejected_generation)) is not None:
                return held
            try:
                seen = await self._read(grant_id)
            except StoreError as fault:
                return self._without_store(seen, audience, rejected_generation, fault)
        if seen is None:
            return LoginNeeded("unknown_grant")
        if seen.ended is not None:
            return LoginNeeded(seen.ended)
        now = self._clock.now()
        known = seen.token(audience, now)
        if known is not None and self._is_good(grant_id, audience, known, rejected_generation):
            if now >= known.due_at:
                _ = self._start(Want(grant_id=grant_id, audience=audience))
            if known.token.generation == rejected_generation:
                return await self._in_place_of(known.token, seen, grant_id, audience)
            return known.token
        if known is not None and (grant_id, audience.key) not in self._running:
            metrics.PROVIDER_BEHAVIOUR.labels(seen.provider, Seen.REFUSED_EARLY.value).inc()
        want = Want(grant_id=grant_id, audience=audience, rejected_generation=rejected_generation)
        # Shielded: a caller that hangs up must not cancel a rotation that others wait for.
        return await asyncio.shield(self._start(want))

    def _is_good(self, grant_id: str, audience: Audience, known: KnownToken, rejected_generation: int | None) -> bool:
        """Return whether *known* should be sent: it isn't the one that was refused, or another would be refused too."""
        if known.token.generation != rejected_generation:
            return True
        if (grant_id, audience.key) in self._running:
            return False  # the first of many that were refused has begun to replace it
        age = self._clock.now() - known.issued_at
        return not self._rejections.worth_a_refresh(grant_id, age_seconds=age)

    async def _in_place_of(self, refused: Token, seen: Known, grant_id: str, audience: Audience) -> TokenResult:
        """
        Return what the store has in place of a refused token that is too young for a refresh; the same if nothing else.

        Another replica may have written new tokens over young ones, as a hand-over does, and this one not have heard.
        """
        try:
            latest = await self._read(grant_id)
        except StoreError as fault:
            return self._without_store(seen, audience, refused.generation, fault)
        if latest is None:
            return LoginNeeded("unknown_grant")
        if latest.ended is not None:
            return LoginNeeded(latest.ended)
        held = latest.token(audience, self._clock.now())
        return refused if held is None else held.token

    def _while_the_store_rests(
        self, seen: Known | None, audience: Audience, rejected_generation: int | None
    ) -> Token | None:
        """A store that has just failed isn't asked about a live token: each caller would wait for its deadline."""
        if self._clock.monotonic() >= self._store_rests_until:
            return None
        return self._live(seen, audience, rejected_generation)

    def _live(self, seen: Known | None, audience: Audience, rejected_generation: int | None) -> Token | None:
        known = None if seen is None or seen.ended is not None else seen.token(audience, self._clock.now())
        return None if known is None or known.token.generation == rejected_generation else known.token

    def _without_store(
        self, seen: Known | None, audience: Audience, rejected_generation: int | None, fault: StoreError
    ) -> TokenResult:
        """What is known may be old, but a live token is a live token."""
        if not isinstance(fault, ForeignRecord):  # one record says nothing of the others
            self._store_rests_until = self._clock.monotonic() + STORE_RETRY_SECONDS
        if (token := self._live(seen, audience, rejected_generation)) is not None:
            return token
        log.debug("no_token_without_store", extra={"error": str(fault)})
        return Unavailable(Cause.STORE, STORE_RETRY_SECONDS)

    async def _read(self, grant_id: str) -> Known | None:
        """Read a grant once for all who ask for it now: a page's calls come all at once."""
        seen = await self._reading.read(grant_id, self._read_once, grant_id)
        if isinstance(seen, StoreError):
            raise seen
        return seen

    async def _read_once(self, grant_id: str) -> Known | StoreError | None:
        self._known.begin_read(grant_id)
        try:
            seen = await self._read_stored(grant_id)
        finally:
            is_overtaken = self._known.end_read(grant_id)
        # Whoever heard of something finds it: once is enough.
        return await self._read_stored(grant_id) if is_overtaken else seen

    async def _read_stored(self, grant_id: str) -> Known | StoreError | None:
        seen = self._known.get(grant_id)
        version = 0 if seen is None else seen.version
        stored: StoredGrant | Unchanged | None
        try:
            stored = await self._vault.read_again(grant_id, version=version)
            if isinstance(stored, Unchanged):
                if (confirmed := self._known.confirm(grant_id, version)) is not None:
                    return confirmed
                stored = await self._vault.read(grant_id)
            if stored is None:
                seen = self._known.get(grant_id)
                if seen is not None and (seen.stale_at == UNSAVED or seen.ended is not None):
                    return seen
                await self._vault.confirm_gone(grant_id)
                return None
        except StoreError as fault:
            return fault
        self._known.learn(stored.grant, version=stored.version)
        return self._known.get(grant_id)

    def _start(self, want: Want) -> "asyncio.Task[TokenResult]":
        """Return the refresh that runs for this grant and audience, or begin one."""
        key = (want.grant_id, want.audience.key)
        running = self._running.get(key)
        if running is not None:
            metrics.TOKEN_REFRESH_COALESCED.inc()
            return running
        task = self.refresher.start(want)
        self._running[key] = task
        task.add_done_callback(lambda _: self._running.pop(key, None))
        return task

    # --- grants

    def receive_login(self, provider: str, tokens: TokenSet) -> Entry:
        """
        Take the first token response of a login, before anything else is awaited: from here on its tokens are either a
        session's or revoked, whatever happens. It ends by :meth:`finish_login` or :meth:`abandon_login`.
        """
        return self._answers.receive_login(provider, tokens)

    def finish_login(self, entry: Entry) -> None:
        """Say that a login's grant and session are stored. The browser is answered after it."""
        self._answers.finish_login(entry)

    def abandon_login(self, entry: Entry) -> None:
        """Say that nobody will use what a login brought. It is ended and revoked in the background."""
        self._answers.abandon_login(entry)

    async def adopt(
        self,
        provider: str,
        tokens: TokenSet,
        *,
        subject: str,
        origin: Origin,
        keep_until: float | None,
        ttl_seconds: float,
        dpop_key: RefreshToken | None = None,
        login: Entry | None = None,
        grant_id: str | None = None,
    ) -> Grant:
        """
        Make a grant of a first token response.

        Args:
            provider: The configured name of the authorization server.
            tokens: The response.
            subject: Whose it is.
            origin: Who brought it.
            keep_until: Unix seconds until which it is kept alive; None for ever.
            ttl_seconds: How long its record lives unless :meth:`touch` is called.
            dpop_key: The key that the tokens are bound to, if they are.
            login: What :meth:`receive_login` made of the response. It is to be abandoned if this fails.
            grant_id: The id of a grant that no login brings; None draws one.

        Raises:
            GrantExists: If another grant has this id. It is a ``StoreError``.
            StoreError: If it isn't known whether it was stored.
        """
        if login is not None:
            grant_id = login.grant_id
        grant = new_grant(
            tokens,
            grant_id=grant_id or self._randomness.token_bytes(16).hex(),
            provider=provider,
            subject=subject,
            origin=origin,
            keep_until=keep_until,
            dpop_key=dpop_key,
        )
        options = self.providers[provider].server.options
        due_at = keep_alive_at(grant, options, jitter=self._randomness.uniform(0, 1))
        await self._vault.create(grant, ttl_seconds=ttl_seconds, due_at=due_at)
        metrics.GRANT_EVENTS.labels(provider, "created").inc()
        log.info("grant_created", extra={"grant": grant.id, "provider": provider, "origin": origin})
        self._known.learn(grant)
        return grant

    async def grant(self, grant_id: str) -> Grant | None:
        """Return the grant as it stands in the store, or None. Raises ``StoreError``."""
        stored = await self._vault.read(grant_id)
        return None if stored is None else stored.grant

    async def grants(self, provider: str | None = None, subject: str | None = None) -> list[Grant]:
        """As :meth:`stored_grants`, without what is said of their records."""
        return [stored.grant for stored in await self.stored_grants(provider, subject)]

    async def stored_grants(self, provider: str | None = None, subject: str | None = None) -> list[StoredGrant]:
        """
        Return the live grants of a provider's subject, or else all that no browser brought.

        Raises:
            StoreError: If the store can't be asked.
        """
        return await (self._vault.find_unattended() if subject is None else self._vault.find(provider or "", subject))

    async def end(self, grant_id: str, reason: EndReason, *, revoke: bool = True) -> Grant | None:
        """
        End a grant on every replica.

        Args:
            grant_id: The grant.
            reason: Why.
            revoke: Whether its refresh token is to be revoked: by :attr:`revocations` now, or by the keep-alive later.

        Returns:
            The grant as it was, with its tokens; None if it had ended before.

        Raises:
            StoreError: If it isn't known whether that was written. Call this again then.
        """
        return await self._register.end(grant_id, reason, revoke=revoke)

    async def touch(self, grant_id: str, ttl_seconds: float) -> None:
        """Let the grant's record live *ttl_seconds* from now, as its session does. Raises ``StoreError``."""
        await self._vault.touch(grant_id, ttl_seconds)

    # --- hearing and telling

    def on_identified(self, listener: Callable[[Grant, Identity], None]) -> None:
        """Call *listener* whenever a refreshed id token says anew who the grant's user is."""
        self._identified.append(listener)

    def _tell_identified(self, grant: Grant, identity: Identity) -> None:
        for listener in self._identified:
            listener(grant, identity)

    def _heard(self, event: Event) -> None:
        match event.topic:
            case Topic.GENERATION:
                self._known.outdate(event.key, event.number)
                self._news.heard(event.key)
            case Topic.GRANT_ENDED:
                self._known.end(event.key, "ended", generation=event.number)
                self._news.heard(event.key)
            case Topic.PROVIDER:
                if event.key in self.providers:
                    self.providers[event.key].health.heard(event)
            case Topic.RESYNC:
                self._known.outdate_all()
            case Topic.SESSION_ENDED:
                pass

    # --- life

    async def report(self) -> None:
        """Bring the gauge of grants up to date now and then, until cancelled."""
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            for (provider, state), count in self._known.counts.items():
                metrics.GRANTS.labels(provider, state).set(count)

    async def recover(self) -> None:
        """Save what dead processes of this host left behind. Call this before the first request is served."""
        await self._answers.recover()

    async def close(self, timeout_seconds: float) -> None:
        """Let running refreshes end, then stop. What couldn't be saved stays in the spool."""
        self._unsubscribe()
        cancelled = await self._tasks.drain(timeout_seconds)
        if cancelled:
            log.warning("refreshes_cancelled", extra={"count": cancelled})


async def _has_no_session(_grant_id: str) -> bool:
    return False


async def _acquire_nothing(_grant: Grant, _audience: Audience) -> TokenOutcome:
    return TokenFailure(kind=FailureKind.OPERATOR, detail="nothing acquires tokens without a refresh token")
