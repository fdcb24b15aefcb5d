"""How a command begins and ends: the configuration is read, and what goes wrong becomes a line and an exit code."""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from broker.cli.admin_client import AdminClient, CommandRefused, printable
from broker.config import ConfigErrors, load, load_for_operator
from broker.config.settings import Settings


def with_settings(
    config: Path, command: Callable[[Settings], Awaitable[int]], *, reader: Callable[[Path], Settings] = load
) -> int:
    """Run *command* with the settings of *config*, which *reader* reads, and return the exit code."""
    try:
        return asyncio.run(_awaited(command(reader(config))))
    except (ConfigErrors, CommandRefused) as refusal:
        print(refusal, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def with_admin_api(
    config: Path,
    command: Callable[[AdminClient, Settings], Awaitable[None]],
    *,
    reader: Callable[[Path], Settings] = load_for_operator,
) -> int:
    """
    Run *command* with a connection to the broker that serves by *config*, and return the exit code.

    Args:
        config: The configuration.
        command: What to ask.
        reader: Reads the configuration; by default with ``admin.token`` as its only real secret.
    """

    async def connected(settings: Settings) -> int:
        async with AdminClient(settings.admin) as client:
            await command(client, settings)
        return 0

    return with_settings(config, connected, reader=reader)


def show_table(names: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print *rows* below the *names* of their columns, aligned."""
    lines = [list(names), *([printable(value) for value in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(names))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def numbers(values: Iterable[int] | None) -> str:
    """Return a list of numbers as the cell of a table."""
    return ", ".join(map(str, values or ()))


def show_handle(answer: dict[str, object]) -> None:
    """Print a credential alone on standard output, for scripts, and what it belongs to on standard error."""
    print(
        f"handle {printable(answer.get('id'))} of grant {printable(answer.get('grant'))}; it is shown only now:",
        file=sys.stderr,
    )
    print(answer["handle"])


def show_handed_over(name: str, answer: dict[str, object]) -> None:
    """Say that a configured grant has new tokens."""
    print(f"{printable(name)}: handed over, as grant {printable(answer.get('id'))}")


async def _awaited(running: Awaitable[int]) -> int:
    return await running
