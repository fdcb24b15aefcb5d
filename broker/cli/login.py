"""`token-broker login`: tokens for a machine without a browser, which their user allows on another one (RFC 8628)."""

import argparse
import asyncio
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from broker.cli.admin_client import AdminClient, CommandRefused, printable
from broker.cli.bounds import bounds_by_option, handle_bounds
from broker.cli.grants import provider_of
from broker.cli.running import show_handed_over, show_handle, with_admin_api
from broker.config import load
from broker.config.settings import Settings
from broker.core.oauth import TokenFailure, TokenSet
from broker.core.secret import RefreshToken
from broker.errors import BrokerError, ProviderError
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationServer


def login(options: argparse.Namespace) -> int:
    """Let a user allow it elsewhere, and hand the tokens over: to a configured grant, or to a new one with a handle."""
    logging.getLogger("broker").addHandler(logging.NullHandler())
    if (options.provider is None) == (options.grant is None):
        options.wrong("--provider is needed, or --grant in its place")
    if options.grant is not None and handle_bounds(options):
        options.wrong("--grant issues no handle that could have bounds: routes name the grant")

    async def ask(client: AdminClient, settings: Settings) -> None:
        name, provider = provider_of(options, settings)
        if options.grant is None and options.subject is None and "openid" not in provider.scope.split():
            raise CommandRefused("--subject is needed: without the scope openid nobody says who the user is")
        await client.ask("GET", "/handles")  # nobody shall log in for a broker that doesn't answer
        clock = SystemClock()
        try:
            server = AuthorizationServer(
                name,
                provider,
                outbound=Outbound(provider.tls, insecure=provider.insecure),
                clock=clock,
                randomness=SystemRandomness(),
            )
            try:
                dpop_key = server.new_dpop_key()
                tokens = await _device_login(server, dpop_key)
                async with _revoked_unless_kept(server, tokens):
                    content = {
                        **await _owner(server, tokens, options),
                        **_members(tokens, now=clock.now()),
                        **({} if dpop_key is None else {"dpop_key": dpop_key.reveal()}),
                        **handle_bounds(options),
                    }
                    with bounds_by_option(options):
                        answer = await client.ask("POST", "/grants", content)
            finally:
                await server.close()
        except BrokerError as fault:
            raise CommandRefused(f"{printable(name)}: {printable(fault)}") from None
        if options.grant is None:
            show_handle(answer)
        else:
            show_handed_over(options.grant, answer)

    return with_admin_api(options.config, ask, reader=load)  # the provider wants the client's secret


async def _owner(server: AuthorizationServer, tokens: TokenSet, options: argparse.Namespace) -> dict[str, object]:
    """Return what says whose the tokens are."""
    if options.grant is None:
        return {"provider": server.name, "subject": await _subject(server, tokens, options.subject)}
    if options.subject is not None:
        _ = await _subject(server, tokens, options.subject)
    return {"grant": options.grant}


async def _device_login(server: AuthorizationServer, dpop_key: RefreshToken | None) -> TokenSet:
    authorization = await server.device_flow.start(server.options.scope)
    print(
        f"Go to {printable(authorization.verification_uri)} and enter {printable(authorization.user_code)}",
        file=sys.stderr,
        flush=True,
    )
    outcome = await server.device_flow.finish(authorization, dpop_key=dpop_key)
    if isinstance(outcome, TokenFailure):
        where = f" (look at {outcome.look_at})" if outcome.look_at else ""
        raise CommandRefused(f"no tokens: {printable(outcome.error or outcome.detail)}{where}")
    if outcome.refresh_token is None:
        # What can't be renewed is revoked by nobody either, but it ends by itself soon.
        raise CommandRefused(f"providers.{server.name}.scope: the server gave no refresh token for it")
    return outcome


@asynccontextmanager
async def _revoked_unless_kept(server: AuthorizationServer, tokens: TokenSet) -> AsyncIterator[None]:
    """Revoke *tokens* if the block fails or is interrupted: nobody else knows of them."""
    try:
        yield
    except BaseException:
        assert tokens.refresh_token is not None  # else nothing would have been returned
        try:
            is_revoked = await asyncio.shield(server.revoke(tokens.refresh_token))
        except ProviderError:
            is_revoked = False
        if not is_revoked:
            print("the tokens of this login could not be revoked", file=sys.stderr)
        raise


async def _subject(server: AuthorizationServer, tokens: TokenSet, wanted: str | None) -> str:
    """Return whose tokens they are: as a checked id token says, or else as the operator does."""
    identity = None if tokens.id_token is None else await server.check_refreshed(tokens.id_token)
    if identity is not None and wanted in (None, identity.subject):
        return identity.subject
    if identity is None and wanted is not None and tokens.id_token is None:
        return wanted
    if identity is None:
        raise CommandRefused("the id token is missing or can't be believed")
    raise CommandRefused(f"--subject: it is {printable(identity.subject)} who logged in")


def _members(tokens: TokenSet, *, now: float) -> dict[str, object]:
    secrets = {
        "access_token": tokens.access_token,
        "refresh_token": tokens.refresh_token,
        "id_token": tokens.id_token,
    }
    members: dict[str, object] = {name: secret.reveal() for name, secret in secrets.items() if secret is not None}
    members["expires_in"] = max(tokens.expires_at - now, 0.0)
    if tokens.refresh_expires_at is not None:
        members["refresh_expires_in"] = max(tokens.refresh_expires_at - now, 0.0)
    if tokens.scope is not None:
        members["scope"] = tokens.scope
    return members
