"""
The command line.

Exit codes: 0 if all is well, 1 if the command was refused or failed, 2 if the command line itself is wrong. What went
wrong goes to standard error, a configuration's mistakes one per line: ``file:line:column: key: expected …, found …``.
"""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from broker import __version__

# Only what every command needs is imported above: `--help` and `keys new` must not wait for a web server.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name, by default those of the process, and return its exit code."""
    options = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] = options.command
    return command(options)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="token-broker",
        description="A reverse proxy that holds the tokens, so that the caller never does.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"token-broker {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add(commands, "run", _run, "serve by a configuration").add_argument("config", metavar="CONFIG", type=Path)
    demo = _add(commands, "demo", _demo, "a whole installation on this machine: log in, watch tokens rotate")
    demo.add_argument("--port", type=int, default=0, help="serve on this port of localhost; by default on a free one")
    check = _add(commands, "check", _check, "check a configuration, without any call over the network")
    check.add_argument("config", metavar="CONFIG", type=Path)
    check.add_argument(
        "--pretend-secrets",
        action="store_true",
        help="take every secret and file that the configuration refers to for present",
    )
    keys = commands.add_parser("keys", help="the keys that seal sessions and grants", allow_abbrev=False)
    key_commands = keys.add_subparsers(title="commands", metavar="COMMAND", required=True)
    new = _add(key_commands, "new", _new_key, "make a key and print it")
    new.add_argument("--file", metavar="PATH", type=Path, help="write it to a new file that only its owner can read")
    schema = _add(commands, "schema", _schema, "print the JSON Schema of the configuration, for editors")
    schema.add_argument("--markdown", action="store_true", help="print the reference of the configuration instead")
    return parser


def _add(
    commands: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", allow_abbrev=False
    )
    parser.set_defaults(command=command)
    return parser


def _run(options: argparse.Namespace) -> int:
    from broker.config import ConfigErrors, load
    from broker.web.server import run

    try:
        settings = load(options.config)
    except ConfigErrors as errors:
        return _refused(errors)
    return run(settings)


def _demo(options: argparse.Namespace) -> int:
    from broker.demo.installation import run

    return run(port=options.port)


def _check(options: argparse.Namespace) -> int:
    from broker.config import ConfigErrors, PretendedSource, load

    try:
        settings = load(options.config, source=PretendedSource() if options.pretend_secrets else None)
    except ConfigErrors as errors:
        return _refused(errors)
    for notice in settings.warnings:
        print(f"{notice.at}: warning: {notice.key}: {notice.text}", file=sys.stderr)
    print(f"{options.config}: good")
    return 0


def _refused(errors: Exception) -> int:
    print(errors, file=sys.stderr)
    return 1


def _new_key(options: argparse.Namespace) -> int:
    from broker.services.clock import SystemRandomness
    from broker.services.keyring import new_key

    key = new_key(SystemRandomness()).reveal()
    if options.file is None:
        print(key)
        return 0
    try:
        # O_EXCL refuses a symbolic link, too: nobody else chooses where the key goes.
        descriptor = os.open(options.file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123 - of a descriptor
            file.write(f"{key}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        print(f"{options.file}: the key can't be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


def _schema(options: argparse.Namespace) -> int:
    if options.markdown:
        from broker.config.reference import reference as text
    else:
        from broker.config.schema import schema_text as text
    print(text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
