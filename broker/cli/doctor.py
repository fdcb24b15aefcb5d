"""`token-broker doctor`: what is wrong between a configuration and the live servers that it names."""

import argparse
import json
import logging

from broker.cli.admin_client import CommandRefused, printable
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
        wrong = [name for name, provider in chosen.items() if await _is_wrong(name, provider, settings)]
        return 1 if wrong else 0

    return with_settings(options.config, examine)


async def _is_wrong(name: str, provider: ProviderOptions, settings: Settings) -> bool:
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
    if fitting:
        print(f"  what would fit, if this is the server that you mean:\n    providers:\n      {name}:")
        for key, value in fitting.items():
            print(f"        {key}: {json.dumps(value)}")  # JSON is YAML, and escapes what a terminal would obey
    return wrong


def _show(name: str, finding: Finding) -> None:
    where = yaml_path(name, finding.key)
    print(f"  {finding.verdict.value:8}{'' if where is None else f'{where}: '}{printable(finding.text)}")
