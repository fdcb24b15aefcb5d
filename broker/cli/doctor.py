"""`token-broker doctor`: what is wrong between a configuration and the live servers that it names."""

import argparse
import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from broker.cli.admin_client import AdminClient, CommandRefused, printable
from broker.cli.running import with_settings
from broker.config.settings import Settings
from broker.core.diagnosis import Finding, Verdict
from broker.core.provider import ProviderOptions
from broker.core.troubleshooting import yaml_path
from broker.errors import ConfigError
from broker.services.clock import SystemClock, SystemRandomness
from broker.services.doctor import Doctor
from broker.services.outbound import Outbound


def doctor(options: argparse.Namespace) -> int:
    """Examine the providers, and print what is found. Returns 1 if anything is wrong."""
    # What it would log is what it prints.
    logging.getLogger("broker").addHandler(logging.NullHandler())

    async def examine(settings: Settings) -> int:
        chosen = settings.providers
        if options.provider is not None:
            if options.provider not in chosen:
                raise CommandRefused(f"providers.{printable(options.provider)}: there is no such provider")
            chosen = {options.provider: chosen[options.provider]}
        seen = await _seen_by_the_broker(settings)
        wrong = [name for name, provider in chosen.items() if await _is_wrong(name, provider, settings, seen)]
        return 1 if wrong else 0

    return with_settings(options.config, examine)


async def _seen_by_the_broker(settings: Settings) -> dict[str, list[Finding]]:
    """Ask the broker that serves by this configuration what refreshes showed it, if it runs and has an admin API."""
    if settings.admin.token is None:
        return {}
    try:
        async with AdminClient(settings.admin) as client:
            answer = await client.ask("GET", "/providers")
        return {each["name"]: [_finding(differs) for differs in each["differs"]] for each in answer["providers"]}
    except (CommandRefused, KeyError):
        return {}


def _finding(said: Mapping[str, Any]) -> Finding:
    text = f"as the broker has seen, {said['text']}"
    return Finding(verdict=Verdict(said["verdict"]), key=said["key"], text=text, fitting=said["fitting"])


async def _is_wrong(
    name: str, provider: ProviderOptions, settings: Settings, seen: Mapping[str, Sequence[Finding]]
) -> bool:
    print(f"{name}:")
    try:
        outbound = Outbound(provider.tls, insecure=provider.insecure)
    except ConfigError as fault:
        _show(name, Finding(verdict=Verdict.ERROR, key="tls", text=str(fault)))
        return True
    examined = Doctor(
        name,
        provider,
        redirect_uri=f"{settings.public_url}{settings.base_path}/callback/{name}",
        outbound=outbound,
        clock=SystemClock(),
        randomness=SystemRandomness(),
    )
    wrong, fitting = False, dict[str, object]()
    try:
        async for finding in examined.examine():
            wrong |= finding.verdict is Verdict.ERROR
            fitting.update(finding.fitting)
            _show(name, finding)
    finally:
        await outbound.close()
    for finding in seen.get(name, ()):
        fitting.update(finding.fitting)
        _show(name, finding)
    if fitting:
        print(f"  what would fit, if this is the server that you mean:\n    providers:\n      {name}:")
        for key, value in fitting.items():
            print(f"        {key}: {json.dumps(value)}")  # JSON is YAML, and escapes what a terminal would obey
    return wrong


def _show(name: str, finding: Finding) -> None:
    where = yaml_path(name, finding.key)
    print(f"  {finding.verdict.value:8}{'' if where is None else f'{where}: '}{printable(finding.text)}")
