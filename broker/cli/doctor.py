"""`token-broker doctor`: what is wrong between a configuration and the live servers and the store that it names."""

import argparse
import json
import logging
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

from broker.cli.admin_client import AdminClient, CommandRefused, printable
from broker.cli.grants import tokens_in
from broker.cli.running import with_settings
from broker.config.settings import Settings
from broker.core.diagnosis import Finding, Verdict
from broker.core.provider import ProviderOptions
from broker.core.secret import RefreshToken
from broker.core.troubleshooting import yaml_path
from broker.errors import ConfigError
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.doctor import Doctor
from broker.services.outbound import Outbound
from broker.services.provider import AuthorizationServer
from broker.services.rotation_probe import RotationProbe
from broker.services.store_probe import examine_store


def doctor(options: argparse.Namespace) -> int:
    """Examine the store and the providers, and print what is found. Returns 1 if anything is wrong."""
    # What it would log is what it prints.
    logging.getLogger("broker").addHandler(logging.NullHandler())

    async def examine(settings: Settings) -> int:
        chosen = settings.providers
        if options.provider is not None:
            if options.provider not in chosen:
                raise CommandRefused(f"providers.{printable(options.provider)}: there is no such provider")
            chosen = {options.provider: chosen[options.provider]}
        if options.spend is not None and len(chosen) != 1:
            options.wrong("--spend goes with --provider, which says whose grant it is")
        spent = None if options.spend is None else _refresh_token(options.spend, *chosen.values())
        seen = await _seen_by_the_broker(settings)

        async def findings(name: str, provider: ProviderOptions) -> AsyncIterator[Finding]:
            async for finding in _examine(name, provider, settings, spent):
                yield finding
            for finding in seen.get(name, ()):
                yield finding

        wrong = False
        if options.provider is None:
            store = examine_store(settings.store, clock=SystemClock(), randomness=SystemRandomness())
            wrong |= await _is_store_wrong(store)
        for name, provider in chosen.items():
            wrong |= await _is_wrong(name, findings(name, provider))
        return 1 if wrong else 0

    return with_settings(options.config, examine)


def _refresh_token(path: Path, provider: ProviderOptions) -> RefreshToken:
    """Return the refresh token of a grant that nobody needs."""
    if provider.dpop:
        raise CommandRefused("--spend: tokens that are bound to a key (dpop) can't be tried out")
    token = tokens_in(path, provider.token_response).get("refresh_token")
    if not isinstance(token, str):
        raise CommandRefused(f"{path}: the token response has no refresh_token")
    return RefreshToken(token)


async def _seen_by_the_broker(settings: Settings) -> dict[str, list[Finding]]:
    """Ask the broker that serves by this configuration what refreshes showed it, if it runs and has an admin API."""
    if settings.admin.token is None:
        return {}
    try:
        async with AdminClient(settings.admin) as client:
            answer = await client.ask("GET", "/providers")
        return {each["name"]: [_finding(differs) for differs in each["differs"]] for each in answer["providers"]}
    except (CommandRefused, KeyError, ValueError):  # it doesn't run, or is of another version
        return {}


def _finding(said: Mapping[str, Any]) -> Finding:
    text = f"as the broker has seen, {said['text']}"
    return Finding(verdict=Verdict(said["verdict"]), key=said["key"], text=text, fitting=said["fitting"])


async def _is_wrong(name: str, findings: AsyncIterator[Finding]) -> bool:
    """Print what is found, and what would fit."""
    print(f"{name}:")
    wrong, fitting = False, dict[str, object]()
    async for finding in findings:
        wrong |= finding.verdict is Verdict.ERROR
        fitting.update(finding.fitting)
        _show(finding, yaml_path(name, finding.key))
    if fitting:
        print(f"  what would fit, if this is the server that you mean:\n    providers:\n      {name}:")
        for key, value in fitting.items():
            print(f"        {key}: {json.dumps(value)}")  # JSON is YAML, and escapes what a terminal would obey
    return wrong


async def _is_store_wrong(findings: AsyncIterator[Finding]) -> bool:
    """Print what is found of the store."""
    print("store:")
    wrong = False
    async for finding in findings:
        wrong |= finding.verdict is Verdict.ERROR
        _show(finding, finding.key)
    return wrong


def _show(finding: Finding, where: str | None) -> None:
    print(f"  {finding.verdict.value:8}{'' if where is None else f'{where}: '}{printable(finding.text)}")


async def _examine(
    name: str, provider: ProviderOptions, settings: Settings, spent: RefreshToken | None
) -> AsyncIterator[Finding]:
    try:
        outbound = Outbound(provider.tls, insecure=provider.insecure)
    except ConfigError as fault:
        yield Finding(verdict=Verdict.ERROR, key="tls", text=str(fault))
        return
    examined = Doctor(
        name,
        provider,
        redirect_uri=f"{settings.public_url}{settings.base_path}/callback/{name}",
        outbound=outbound,
        clock=SystemClock(),
        randomness=SystemRandomness(),
    )
    wrong = False
    try:
        async for finding in examined.examine():
            wrong |= finding.verdict is Verdict.ERROR
            yield finding
    finally:
        await outbound.close()
    if spent is not None and not wrong:
        async for finding in _spend(name, provider, settings, spent):
            yield finding


async def _spend(
    name: str, provider: ProviderOptions, settings: Settings, token: RefreshToken
) -> AsyncIterator[Finding]:
    default = settings.login.default_provider or name
    routes = [route for route in settings.routes if (route.provider or default) == name and route.token.grant is None]
    audiences = {route.audience.key: route.audience for route in routes if route.audience.key}
    clock = SystemClock()
    server = AuthorizationServer(
        name,
        provider,
        outbound=Outbound(provider.tls, insecure=provider.insecure),
        clock=clock,
        randomness=SystemRandomness(),
    )
    try:
        async for finding in RotationProbe(server, token, clock=clock).examine(audiences.values()):
            yield finding
    finally:
        await server.close()
