"""`token-broker handles`: the credentials by which callers without a browser name a grant."""

import argparse

from broker.cli.admin_client import AdminClient, printable, quoted
from broker.cli.bounds import bounds_by_option, handle_bounds, instant
from broker.cli.running import numbers, show_handle, show_table, with_admin_api
from broker.config.settings import Settings


def list_handles(options: argparse.Namespace) -> int:
    """Show all handles, or those of one grant, without the credentials."""
    query = {"grant": options.grant} if options.grant else {}

    async def ask(client: AdminClient, _settings: Settings) -> None:
        answer = await client.ask("GET", "/handles", query=query)
        show_table(
            ("id", "grant", "label", "routes", "networks", "ends", "keys"),
            (
                [
                    handle.get("id"),
                    handle.get("grant"),
                    handle.get("label"),
                    ", ".join(handle.get("routes", ())),
                    ", ".join(handle.get("networks", ())),
                    instant(handle.get("ends_at")),
                    numbers(handle.get("keys")),
                ]
                for handle in answer["handles"]
            ),
        )

    return with_admin_api(options.config, ask)


def issue_handle(options: argparse.Namespace) -> int:
    """Issue a handle for a grant, and print it."""

    async def ask(client: AdminClient, _settings: Settings) -> None:
        with bounds_by_option(options):
            answer = await client.ask("POST", f"/grants/{quoted(options.grant)}/handles", handle_bounds(options))
        show_handle(answer)

    return with_admin_api(options.config, ask)


def rotate_handle(options: argparse.Namespace) -> int:
    """Issue a successor, and print it; the handle itself is taken for the overlap."""

    async def ask(client: AdminClient, _settings: Settings) -> None:
        content = {"overlap": options.overlap} if options.overlap else {}
        show_handle(await client.ask("POST", f"/handles/{quoted(options.handle)}/rotate", content))

    return with_admin_api(options.config, ask)


def revoke_handle(options: argparse.Namespace) -> int:
    """End a handle now."""

    async def ask(client: AdminClient, _settings: Settings) -> None:
        answer = await client.ask("DELETE", f"/handles/{quoted(options.handle)}")
        print(f"{printable(answer.get('revoked'))}: ended")

    return with_admin_api(options.config, ask)
