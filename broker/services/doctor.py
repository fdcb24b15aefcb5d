"""
Safe probes of a live authorization server.

Nothing is asked that could end anything: metadata and keys are read, a refresh token that never was is presented, to
see whether the client is believed, and a login is asked for that nobody makes. Credentials go only to a server that
speaks for the configured issuer.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

from broker.core.client_auth import ClientAuthMethod
from broker.core.diagnosis import (
    BY_SECRET,
    Finding,
    Verdict,
    judge_authorization,
    judge_clock,
    judge_issuer,
    judge_metadata,
    judge_nonsense,
)
from broker.core.json_object import read_object
from broker.core.oauth import TokenOutcome, TokenSet
from broker.core.outbound_urls import url_refusal
from broker.core.pkce import code_challenge
from broker.core.provider import SYMMETRIC_ALGORITHMS, ProviderOptions
from broker.core.troubleshooting import refuses_client
from broker.errors import ConfigError, ProviderError, ProviderProtocolError
from broker.services.authorization import Authorization, AuthorizationRequest
from broker.services.clock import Clock, Randomness
from broker.services.dpop import Proofs, new_dpop_key
from broker.services.jwks import Jwks
from broker.services.metadata import ENDPOINTS, TIMEOUT_SECONDS, Metadata, read_metadata
from broker.services.outbound import Answer, Outbound
from broker.services.token_requests import TokenRequests


class Doctor:
    """Examines one provider."""

    def __init__(
        self,
        name: str,
        options: ProviderOptions,
        *,
        redirect_uri: str,
        outbound: Outbound,
        clock: Clock,
        randomness: Randomness,
    ) -> None:
        """
        Args:
            name: The configured name.
            options: Its configuration.
            redirect_uri: Where its logins come back.
            outbound: Requests to it. The caller closes it.
            clock: The time.
            randomness: For a refresh token that never was.
        """
        self._name = name
        self._options = options
        self._redirect_uri = redirect_uri
        self._outbound = outbound
        self._clock = clock
        self._randomness = randomness
        self._metadata = Metadata(options, outbound=outbound, clock=clock, at=f"providers.{name}")

    async def examine(self) -> AsyncIterator[Finding]:
        """Probe, and yield what is found. It ends early where going on would be useless, or unsafe."""
        stopped = False
        for endpoint in ENDPOINTS:
            url = getattr(self._options, endpoint)
            if url is not None and (refusal := url_refusal(url, insecure=self._options.insecure)) is not None:
                stopped = True
                yield Finding(verdict=Verdict.ERROR, key=endpoint, text=f"it {refusal}")
        if self._metadata.discovers:
            async for finding in self._examine_metadata():
                stopped |= finding.verdict is Verdict.ERROR and finding.key in {"issuer", "metadata_url"}
                yield finding
        if stopped:
            return
        try:
            async for finding in self._examine_keys():
                yield finding
            async for finding in self._examine_client():
                yield finding
            async for finding in self._examine_authorization():
                yield finding
        finally:
            await self._metadata.close()

    async def _examine_metadata(self) -> AsyncIterator[Finding]:
        key = "metadata_url" if self._options.metadata_url is not None else "issuer"
        for url in self._metadata.places():
            sent_at = self._clock.now()
            exchange = await self._outbound.get(url, timeout_seconds=TIMEOUT_SECONDS)
            if not isinstance(exchange, Answer):
                yield Finding(verdict=Verdict.ERROR, key=key, text=f"no metadata at {url}: {exchange.reason}")
                return
            if exchange.status != 404:
                break
        else:
            text = "the server publishes no metadata: name its endpoints, with discovery off"
            yield Finding(verdict=Verdict.ERROR, key=key, text=text, fitting={"discovery": False})
            return
        clock = judge_clock(
            exchange.headers.get("Date"), sent_at=sent_at, received_at=self._clock.now(), options=self._options
        )
        if clock is not None:
            yield clock
        document = None if exchange.content is None else read_object(exchange.content)
        if exchange.status != 200 or document is None:
            text = f"no metadata at {url}: status {exchange.status}, or no JSON object"
            yield Finding(verdict=Verdict.ERROR, key=key, text=text)
            return
        issuer = judge_issuer(document, self._options)
        yield issuer
        if issuer.verdict is Verdict.ERROR:
            return
        try:
            read_metadata(document, self._options)
        except ProviderProtocolError as fault:
            yield Finding(verdict=Verdict.ERROR, key=key, text=str(fault))
            return
        for finding in judge_metadata(document, self._options):
            yield finding

    async def _examine_keys(self) -> AsyncIterator[Finding]:
        algorithms = [alg for alg in self._options.id_token_algorithms if alg not in SYMMETRIC_ALGORITHMS]
        if "openid" not in self._options.scope.split() or not algorithms:
            return
        keys = Jwks(self._metadata, outbound=self._outbound, clock=self._clock)
        try:
            usable = [alg for alg in algorithms if await keys.candidates(kid=None, alg=alg)]
        except ProviderError as fault:
            yield Finding(verdict=Verdict.ERROR, key="jwks_uri", text=str(fault))
            return
        finally:
            await keys.close()
        if usable:
            yield Finding(verdict=Verdict.GOOD, text=f"the server has keys for {', '.join(usable)}")
        else:
            text = f"the server has no key for any of {', '.join(algorithms)}"
            yield Finding(verdict=Verdict.ERROR, key="id_token_algorithms", text=text)

    async def _examine_client(self) -> AsyncIterator[Finding]:
        if self._options.auth_method is ClientAuthMethod.CLIENT_ACCESS_TOKEN and self._options.session_endpoint:
            yield Finding(verdict=Verdict.NOTE, text="whether this API takes the client is seen at its first use")
            return
        try:
            outcome = await self._ask_nonsense(self._options)
        except ConfigError as fault:
            yield Finding(verdict=Verdict.ERROR, key="client_assertion", text=str(fault))
            return
        finding = judge_nonsense(outcome, self._options)
        if (
            not isinstance(outcome, TokenSet)
            and refuses_client(outcome)
            and (fitting := await self._other_method()) is not None
        ):
            refused = self._options.auth_method.value
            text = f"the server refuses the client by {refused}, and takes the same secret by {fitting.value}"
            finding = replace(
                finding,
                key="token_endpoint_auth_method",
                text=text,
                fitting={"token_endpoint_auth_method": fitting.value},
            )
        yield finding

    async def _examine_authorization(self) -> AsyncIterator[Finding]:
        """Ask for a login, as a browser does in which nobody is logged in and nobody may be asked."""
        try:
            if await self._metadata.find("authorization_endpoint") is None:
                return
            if self._options.issuer is None and (await self._metadata.server()).issuer is None:
                text = "without an issuer no login succeeds once the server says who it is in its answers (RFC 9207)"
                yield Finding(verdict=Verdict.NOTE, key="issuer", text=text)
            url = await self._authorization_url()
        except (ProviderError, ConfigError) as fault:
            key = fault.look_at if isinstance(fault, ProviderError) else None
            yield Finding(verdict=Verdict.ERROR, key=key, text=str(fault))
            return
        exchange = await self._outbound.get(url, timeout_seconds=TIMEOUT_SECONDS)
        if isinstance(exchange, Answer):
            location = exchange.headers.get("Location")
            yield judge_authorization(exchange.status, location, redirect_uri=self._redirect_uri)
        else:
            text = f"the server doesn't answer a login: {exchange.reason}"
            yield Finding(verdict=Verdict.ERROR, key="authorization_endpoint", text=text)

    async def _authorization_url(self) -> str:
        silent = replace(
            self._options, authorization_parameters={**self._options.authorization_parameters, "prompt": "none"}
        )
        state, nonce, verifier = (self._randomness.token_bytes(32).hex() for _ in range(3))
        async with self._requests(silent) as requests:
            authorization = Authorization(
                self._name,
                silent,
                metadata=self._metadata,
                requests=requests,
                clock=self._clock,
                randomness=self._randomness,
            )
            return await authorization.url(
                AuthorizationRequest(
                    redirect_uri=self._redirect_uri, state=state, nonce=nonce, code_challenge=code_challenge(verifier)
                )
            )

    async def _other_method(self) -> ClientAuthMethod | None:
        """Return the way of presenting the secret that the server does take."""
        if self._options.auth_method not in BY_SECRET[:2]:
            return None
        (other,) = {*BY_SECRET[:2]} - {self._options.auth_method}
        changed = replace(self._options, token_endpoint_auth_method=other)
        outcome = await self._ask_nonsense(changed)
        return other if judge_nonsense(outcome, changed).verdict is Verdict.GOOD else None

    async def _ask_nonsense(self, options: ProviderOptions) -> TokenOutcome:
        never = f"token-broker-doctor-{self._randomness.token_bytes(16).hex()}"
        async with self._requests(options) as requests:
            return await requests.client_doubt() or await requests.ask(
                "refresh_token" if options.refresh_grant_type else None,
                {"refresh_token": never},
                url=options.refresh_endpoint,
                dpop_key=new_dpop_key() if options.dpop else None,
            )

    @asynccontextmanager
    async def _requests(self, options: ProviderOptions) -> AsyncIterator[TokenRequests]:
        requests = TokenRequests(
            self._name,
            options,
            metadata=self._metadata,
            outbound=self._outbound,
            clock=self._clock,
            randomness=self._randomness,
            proofs=Proofs(self._clock, self._randomness),
        )
        try:
            yield requests
        finally:
            await requests.close()
