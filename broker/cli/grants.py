"""`token-broker grants`: what the broker holds for callers without a browser."""

import argparse
import sys
from collections.abc import Mapping
from pathlib import Path

from broker.cli.admin_client import AdminClient, CommandRefused, printable, quoted
from broker.cli.bounds import bounds_by_option, handle_bounds, instant
from broker.cli.running import numbers, show_handed_over, show_handle, show_table, with_admin_api
from broker.config.settings import Settings
from broker.core.json_object import at_path, read_object
from broker.core.lifetimes import date_time, number
from broker.core.provider import ProviderOptions
from broker.core.standing import GrantType
from broker.core.token_response import shown_word

MAX_RESPONSE_BYTES = 256 << 10
TEXTS = ("access_token", "refresh_token", "id_token", "scope", "session_id")
LIFETIMES = ("expires_in", "expires_at", "refresh_expires_in")


def list_grants(options: argparse.Namespace) -> int:
    """Show the imported and standing grants, or those of one user."""
    query = {"provider": options.provider, "subject": options.subject} if options.subject else {}
    if bool(options.provider) != bool(options.subject):
        options.wrong("--provider and --subject go together")

    async def ask(client: AdminClient, settings: Settings) -> None:
        answer = await client.ask("GET", "/grants", query=query)
        columns = ("id", "provider", "subject", "origin", "state", "generation", "ended", "name")
        rows = ([*(grant.get(name) for name in columns), numbers(grant.get("keys"))] for grant in answer["grants"])
        show_table([*columns, "keys"], rows)
        for grant in answer["grants"]:
            _tell_how_to_fill(grant, settings)

    return with_admin_api(options.config, ask)


def show_grant(options: argparse.Namespace) -> int:
    """Show all that may be said of one grant."""

    async def ask(client: AdminClient, settings: Settings) -> None:
        grant = await client.ask("GET", f"/grants/{quoted(options.grant)}")
        for name, value in grant.items():
            shown = instant(value) if name.endswith("_at") else ", ".join(value) if isinstance(value, list) else value
            print(f"{printable(name)}: {printable(shown)}")
        _tell_how_to_fill(grant, settings)

    return with_admin_api(options.config, ask)


def _tell_how_to_fill(grant: Mapping[str, object], settings: Settings) -> None:
    """Say on standard error what helps where a configured grant has no tokens, and only somebody else can get them."""
    name = grant.get("name")
    configured = settings.grants.get(name) if isinstance(name, str) else None
    if configured is not None and configured.type is GrantType.IMPORTED and grant.get("state") in {"empty", "ended"}:
        ways = f"`token-broker grants import --grant {name}` or `token-broker login --grant {name}`"
        print(f"{name}: it waits for tokens: hand them over by {ways}", file=sys.stderr)


def import_grant(options: argparse.Namespace) -> int:
    """Hand a token response over to the broker: for a configured grant, or for a new one whose handle is printed."""
    owner = (options.provider, options.subject)
    if None in owner if options.grant is None else owner != (None, None):
        options.wrong("--provider and --subject go together, or --grant takes their place")
    if options.grant is not None and handle_bounds(options):
        options.wrong("--grant issues no handle that could have bounds: routes name the grant")

    async def ask(client: AdminClient, settings: Settings) -> None:
        _, provider = provider_of(options, settings)
        tokens = tokens_in(options.file, provider.token_response)
        if options.grant is not None:
            answer = await client.ask("POST", "/grants", {"grant": options.grant, **tokens})
            show_handed_over(options.grant, answer)
            return
        content = {"provider": options.provider, "subject": options.subject, **tokens, **handle_bounds(options)}
        with bounds_by_option(options):
            answer = await client.ask("POST", "/grants", content)
        show_handle(answer)

    return with_admin_api(options.config, ask)


def provider_of(options: argparse.Namespace, settings: Settings) -> tuple[str, ProviderOptions]:
    """Return the name and the options of whose tokens are handed over: ``--provider``, or that of ``--grant``."""
    name = options.provider
    if options.grant is not None:
        grant = settings.grants.get(options.grant)
        if grant is None or grant.type is not GrantType.IMPORTED:
            raise CommandRefused(f"grants.{printable(options.grant)}: there is no such grant of type imported")
        name = grant.provider
    provider = settings.providers.get(name)
    if provider is None:
        raise CommandRefused(f"providers.{printable(name)}: there is no such provider")
    return name, provider


def revoke_grant(options: argparse.Namespace) -> int:
    """End a grant with its handles, here and at its authorization server."""

    async def ask(client: AdminClient, _settings: Settings) -> None:
        answer = await client.ask("DELETE", f"/grants/{quoted(options.grant)}")
        print(f"{printable(answer.get('grant'))}: {_ending(answer)}")

    return with_admin_api(options.config, ask)


def _ending(answer: Mapping[str, object]) -> str:
    if answer.get("had_ended"):
        return "it had ended already" + (
            ", and the provider confirms it now" if answer.get("revoked_at_provider") else ""
        )
    return (
        f"ended here, {'and at the provider' if answer.get('revoked_at_provider') else 'the provider did not confirm'}"
    )


def tokens_in(path: Path | None, names: Mapping[str, str]) -> dict[str, object]:
    """
    Return what the broker takes of the token response in a file, or on standard input.

    Args:
        path: The file; None for standard input.
        names: Paths of members that have other names there.

    Raises:
        CommandRefused: If there is nothing to take. It names the file.
    """
    try:
        return read_tokens(_read(path), names)
    except CommandRefused as refusal:
        raise CommandRefused(f"{'' if path is None else f'{printable(path)}: '}{refusal}") from None


def read_tokens(document: bytes, names: Mapping[str, str]) -> dict[str, object]:
    """
    Return what the broker takes of a token response; other members are ignored (RFC 6749 section 5.1).

    Args:
        document: JSON, as the token endpoint answered.
        names: Paths of members that have other names there.

    Raises:
        CommandRefused: If it is no JSON object, an error, or holds neither a refresh token nor a session to live by.
    """
    response = read_object(document)
    if response is None:
        raise CommandRefused("the token response is no JSON object")
    found = {name: at_path(response, names.get(name, name)) for name in (*TEXTS, *LIFETIMES)}
    tokens: dict[str, object] = {name: found[name] for name in TEXTS if isinstance(found[name], str) and found[name]}
    for name in LIFETIMES:
        lifetime = number(found[name])
        if lifetime is not None or date_time(found[name]) is not None:
            tokens[name] = found[name] if lifetime is None else lifetime
    if not {"refresh_token", "session_id"} & tokens.keys():
        # Whoever pipes it from a client that shows no status sees no other sign of it (RFC 6749 section 5.2).
        error = shown_word(at_path(response, names.get("error", "error")))
        if error is not None:
            raise CommandRefused(f"the token response is an error of the authorization server: {error}")
        raise CommandRefused("the token response has neither a refresh_token nor a session_id")
    return tokens


def _read(path: Path | None) -> bytes:
    # Never an argument: every user of the machine can read the command lines of all processes.
    try:
        if path is None:
            return sys.stdin.buffer.read(MAX_RESPONSE_BYTES)
        with path.open("rb") as file:
            return file.read(MAX_RESPONSE_BYTES)
    except OSError as error:
        raise CommandRefused(f"the token response can't be read: {error.strerror}") from None
