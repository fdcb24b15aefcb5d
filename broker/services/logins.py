"""
Logins, without their HTTP: what is asked of the authorization server, and what becomes of its answer.

    begin       a transaction, and where the browser is sent
                (the browser keeps it meanwhile, in a cookie: services.login_cookies)
    consume     a state is used once, whichever process the answer comes to
    complete    code ▸ tokens ▸ who is it ▸ a grant ▸ a session; whatever fails leaves no token behind
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import assert_never

from broker.core import login as core
from broker.core.grant import EndReason, Origin
from broker.core.login import LoginOptions, LoginTransaction
from broker.core.oauth import FailureKind, TokenFailure
from broker.core.pkce import SECRET_BYTES, code_challenge
from broker.core.secret import IdToken, RefreshToken, Secret
from broker.core.session import Session, same_user
from broker.core.troubleshooting import key_of_authorization_error, yaml_path
from broker.errors import BrokerError, LoginFailed, ProviderError
from broker.services.clock import Clock, Randomness
from broker.services.provider import AuthorizationRequest, AuthorizationServer
from broker.services.sessions import Sessions
from broker.services.spool import Entry
from broker.services.tasks import Tasks
from broker.services.tokens import TokenBroker
from broker.services.unanswered import UnansweredLogins
from broker.services.vault import ForeignRecord
from broker.stores.base import Store

USED = b"\x01"

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizationResponse:
    """
    What came back with the browser (RFC 6749 section 4.1.2).

    Attributes:
        code: The authorization code.
        error: The ``error`` instead; it is what anybody may write.
        iss: ``iss`` (RFC 9207).
    """

    code: Secret | None
    error: str | None
    iss: str | None


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """A login that succeeded: the session that has begun."""

    session: Session


@dataclass(frozen=True, slots=True)
class Declined:
    """A login of somebody for whom no session may begin here, or for whom nobody waits any more."""


@dataclass(frozen=True, slots=True)
class Unanswered:
    """The authorization server can't say who it is without asking the user, and was told not to (``prompt=none``)."""


BeginSession = Callable[[Session], Awaitable[bool]]
"""
Begins the session of a login that succeeded. Returns False if none may begin; raises ``BrokerError`` if it can't.
"""


@dataclass(slots=True)
class _Caller:
    """Whoever waits for a login to be completed."""

    is_gone: bool = False


class Logins:
    """Begins and completes logins."""

    def __init__(
        self,
        *,
        servers: Mapping[str, AuthorizationServer],
        tokens: TokenBroker,
        sessions: Sessions,
        store: Store,
        options: LoginOptions,
        public_url: str,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """
        Args:
            servers: The authorization servers by configured name.
            tokens: Keeps the grants.
            sessions: Says how long sessions live.
            store: Remembers used states.
            options: How users log in.
            public_url: The origin of every ``redirect_uri``.
            clock: Time.
            randomness: State, nonce and verifier.
        """
        self._servers = servers
        self._tokens = tokens
        self._sessions = sessions
        self._store = store
        self._options = options
        self._public_url = public_url
        self._clock = clock
        self._randomness = randomness
        self._unanswered = UnansweredLogins()
        self._tasks = Tasks()
        sessions.on_replaced(self._release)

    # --- beginning

    async def begin(
        self,
        provider: str,
        *,
        return_url: str,
        parameters: Mapping[str, str],
        replaces: str | None,
        silent: bool = False,
    ) -> tuple[LoginTransaction, str]:
        """
        Return a new attempt and where the browser is sent to. Nothing is kept here.

        Args:
            provider: A configured name.
            return_url: Where the user wants to go.
            parameters: What the login's caller chose among what the configuration allows.
            replaces: The store key of the session that the browser has.
            silent: Whether it runs in a frame and must not ask the user anything.

        Raises:
            ProviderError: If the provider's metadata can't be had.
        """
        transaction = core.begin(
            [self._randomness.token_bytes(SECRET_BYTES) for _ in range(3)],
            provider=provider,
            return_url=return_url,
            now=self._clock.now(),
            parameters=parameters,
            replaces=replaces,
            silent=silent,
        )
        redirect_uri = self._redirect_uri(provider)
        request = AuthorizationRequest(
            redirect_uri=redirect_uri,
            state=transaction.state,
            nonce=transaction.nonce,
            code_challenge=code_challenge(transaction.code_verifier.reveal()),
            parameters=parameters,
            silent=silent,
        )
        url = await self._servers[provider].authorization_url(request)
        self._unanswered.begun(provider, redirect_uri)
        return transaction, url

    def _redirect_uri(self, provider: str) -> str:
        """One for each provider, so that no answer is taken for another's (RFC 9700 section 4.4)."""
        return f"{self._public_url}{self._options.base_path}/callback/{provider}"

    # --- completing

    async def consume(self, transaction: LoginTransaction) -> None:
        """
        Use the state of an attempt up, for every process and for ever.

        Raises:
            LoginFailed: If it was used before.
            StoreError: If that can't be written down; the attempt is still good, unless the store did it without
                saying so.
        """
        self._unanswered.answered(transaction.provider)  # whatever comes of it
        key = core.use_of(transaction.state)
        if await self._store.create(key, USED, ttl_seconds=self._options.timeout_seconds) is None:
            raise LoginFailed("the state was used before")

    async def complete(
        self, transaction: LoginTransaction, response: AuthorizationResponse, begin_session: BeginSession
    ) -> LoggedIn | Declined | Unanswered:
        """
        Turn an authorization response into a grant and a session.

        A caller that hangs up cuts nothing off: what has come by then is ended and revoked in the background, as it is
        after each failure.

        Args:
            transaction: The attempt that it answers. Its state is consumed.
            response: What came.
            begin_session: Begins the session, once it is known whose it is and its grant is stored.

        Raises:
            LoginFailed: If the answer must be refused, or is an error.
            ProviderError: If the server is down, or refuses the broker itself.
            StoreError: If the grant or the session can't be kept.
        """
        try:
            return await self._complete(transaction, response, begin_session)
        except LoginFailed as failure:
            if failure.look_at is not None:
                log.warning(
                    "login_not_possible",
                    extra={
                        "provider": transaction.provider,
                        "error": str(failure),
                        "look_at": yaml_path(transaction.provider, failure.look_at),
                    },
                )
            raise

    async def _complete(
        self, transaction: LoginTransaction, response: AuthorizationResponse, begin_session: BeginSession
    ) -> LoggedIn | Declined | Unanswered:
        server = self._servers[transaction.provider]
        await server.check_issuer(response.iss)
        if response.error is not None:
            return _judge_error(transaction, response.error)
        if response.code is None:
            raise LoginFailed("the authorization response holds no code")
        caller = _Caller()
        redeeming = self._redeem(server, transaction, response.code, begin_session, caller)
        try:
            # Shielded: from here on there are tokens, which a caller that hangs up must not leave behind.
            outcome = await asyncio.shield(self._tasks.spawn(redeeming, name="login:redeem"))
        except asyncio.CancelledError:
            caller.is_gone = True
            raise
        if isinstance(outcome, BrokerError):
            raise outcome
        return outcome

    async def _redeem(
        self,
        server: AuthorizationServer,
        transaction: LoginTransaction,
        code: Secret,
        begin_session: BeginSession,
        caller: _Caller,
    ) -> LoggedIn | Declined | BrokerError:
        """Exchange the code, and go on with what comes. Errors are returned: nobody may be left to wait for them."""
        dpop_key = server.new_dpop_key()
        answer = await server.exchange_code(
            code=code,
            code_verifier=transaction.code_verifier,
            redirect_uri=self._redirect_uri(transaction.provider),
            dpop_key=dpop_key,
        )
        if isinstance(answer, TokenFailure):
            return _failure(answer)
        entry = self._tokens.receive_login(transaction.provider, answer)
        outcome: LoggedIn | Declined | BrokerError | None = None
        try:
            outcome = await self._log_in(server, transaction, entry, dpop_key, begin_session, caller)
        except BrokerError as error:
            outcome = error
        finally:
            # Also where this process stops in the middle of it.
            if isinstance(outcome, LoggedIn) and not caller.is_gone:
                self._tokens.finish_login(entry)
            else:
                self._tokens.abandon_login(entry)
        return outcome

    async def _log_in(
        self,
        server: AuthorizationServer,
        transaction: LoginTransaction,
        entry: Entry,
        dpop_key: RefreshToken | None,
        begin_session: BeginSession,
        caller: _Caller,
    ) -> LoggedIn | Declined:
        tokens = entry.answer
        identity = await server.identify(
            id_token=tokens.id_token,
            access_token=tokens.access_token,
            nonce=transaction.nonce,
            parameters=transaction.parameters,
            dpop_key=dpop_key,
        )
        times = self._sessions.times_of_login()
        grant = await self._tokens.adopt(
            transaction.provider,
            tokens,
            subject=identity.subject,
            origin=Origin.BROWSER,
            keep_until=times.ends_at,
            ttl_seconds=times.grant_ttl_seconds,
            dpop_key=dpop_key,
            login=entry,
        )
        session = Session(
            grant_id=grant.id,
            provider=transaction.provider,
            issuer=identity.issuer,
            subject=identity.subject,
            claims=identity.claims,
            authenticated_at=times.authenticated_at,
            last_seen_at=times.authenticated_at,
            ends_at=times.ends_at,
            provider_session=identity.provider_session,
        )
        # The browser keeps the session that it had, if nobody is there to be given the new one's cookie.
        has_begun = not caller.is_gone and await begin_session(session)
        return LoggedIn(session) if has_begun else Declined()

    # --- ending

    async def end_grant(self, grant_id: str, *, revoke: bool = True) -> IdToken | None:
        """
        End the grant of a session that is about to end, and revoke it at the provider in the background.

        The session must end after it: nobody finds the grant of a session that is gone, so a crash in between would
        leave the grant alive. A session whose grant has ended is there for the next attempt.

        Args:
            grant_id: The grant.
            revoke: Whether the provider is told. Some end every grant of the user's session with it.

        Returns:
            Its id token, for ``id_token_hint``; also where it had ended before.

        Raises:
            StoreError: If it isn't known whether that was written. The session must not end then.
        """
        try:
            grant = await self._tokens.end(grant_id, EndReason.LOGOUT, revoke=revoke)
            if grant is None:
                grant = await self._tokens.grant(grant_id)
        except ForeignRecord as fault:
            # During a rolling upgrade. Nobody shall stay logged in for that, and the grant ends with its record.
            log.warning("grant_not_ended", extra={"grant": grant_id, "error": str(fault)})
            return None
        if revoke:  # also what an attempt before left to be done
            self._tasks.launch(self._tokens.revocations.revoke(grant_id), name="login:revoke")
        return None if grant is None else grant.id_token

    async def _release(self, replaced: Session, by: Session) -> None:
        # To revoke the same user's old grant could end the new one too: both hang on one session at the provider.
        _ = await self.end_grant(replaced.grant_id, revoke=not same_user(replaced, by))

    async def close(self, timeout_seconds: float = 5.0) -> None:
        """Let logins and revocations under way end."""
        await self._tasks.drain(timeout_seconds)


_SERVER_FAULTS = frozenset({"server_error", "temporarily_unavailable"})
"""What stands for the statuses 500 and 503, which a redirect can't have (RFC 6749 section 4.1.2.1)."""

_SILENT_ERRORS = frozenset({"login_required", "interaction_required", "consent_required", "account_selection_required"})
"""What ``prompt=none`` is answered where somebody must be asked (OpenID Connect Core section 3.1.2.6)."""


def _judge_error(transaction: LoginTransaction, error: str) -> Unanswered:
    asked_nothing = transaction.silent or transaction.parameters.get("prompt") == "none"
    if asked_nothing and error in _SILENT_ERRORS:
        return Unanswered()
    shown = error if len(error) <= 64 and error.isascii() and error.isprintable() else "an unprintable error"
    detail = f"the authorization server answered {shown}"
    if error in _SERVER_FAULTS:
        raise ProviderError(detail)
    raise LoginFailed(detail, look_at=key_of_authorization_error(error))


def _failure(failure: TokenFailure) -> BrokerError:
    """Return what it means for the user that a code brought no tokens."""
    detail = f"the code brought no tokens: {failure.error or failure.detail or failure.status}"
    match failure.kind:
        case FailureKind.PERMANENT:
            # RFC 6749 section 5.2: also what a code is answered whose redirect_uri isn't that of the request.
            return LoginFailed(detail, look_at="redirect_uri" if failure.error == "invalid_grant" else None)
        case FailureKind.OPERATOR | FailureKind.TRANSIENT | FailureKind.IN_DOUBT:
            return ProviderError(detail, retry_after_seconds=failure.retry_after_seconds)
        case _:
            assert_never(failure.kind)
