"""
The command line.

Exit codes: 0 if all is well, 1 if the command was refused or failed, 2 if the command line itself is wrong, 130 if it
was interrupted by Ctrl-C, 141 if whoever reads the output has gone, as a shell says of what SIGPIPE ends. What went
wrong goes to standard error, a configuration's mistakes one per line: ``file:line:column: key: expected …, found …``.
"""

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib import import_module
from pathlib import Path
from typing import TypeAlias

from broker import __version__

_OF_FULL_DISKS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"

EPILOG = (
    "Exit codes: 0 all is well, 1 refused or failed, 2 a wrong command line, 130 interrupted. What went wrong is on "
    "standard error. All commands are explained in docs/reference/cli.md."
)
GRANT = "its id, or its name in the configuration"

# Only what every command needs is imported above: `--help` and `keys new` must not wait for a web server.


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command that *arguments* name, by default those of the process, and return its exit code."""
    try:
        try:
            options = _parser().parse_args(arguments)
            command: Callable[[argparse.Namespace], int] = options.command
            return command(options)
        finally:
            if sys.stdout is not None:  # it is where standard output was closed before the start
                sys.stdout.flush()  # here, and not at the interpreter's end, where it couldn't be told
    except BrokenPipeError:
        _abandon_output()
        return 128 + signal.SIGPIPE
    except OSError as fault:
        if fault.errno not in _OF_FULL_DISKS:
            raise
        _abandon_output()
        print(f"token-broker: the output can't be written: {fault.strerror}", file=sys.stderr)
        return 1


def _abandon_output() -> None:
    """Let what is still to be written go nowhere: the interpreter would try once more at its end."""
    with suppress(OSError, ValueError, AttributeError):  # a stream without a descriptor needs no such thing
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="token-broker",
        description="A reverse proxy that holds the tokens, so that the caller never does.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"token-broker {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _config(_add(commands, "run", _run, "serve by a configuration"))
    demo = _add(commands, "demo", _demo, "a whole installation on this machine: log in, watch tokens rotate")
    demo.add_argument("--port", type=_port, default=0, help="serve on this port of localhost; by default on a free one")
    check = _add(commands, "check", _check, "check a configuration, without any call over the network")
    _config(check).add_argument(
        "--pretend-secrets",
        action="store_true",
        help="take every secret and file that the configuration refers to for present",
    )
    doctor = _add(
        commands,
        "doctor",
        _of("doctor", "doctor"),
        "probe the store and the providers of a configuration, and say what would fit",
    )
    _config(doctor).add_argument("--provider", metavar="NAME", help="only this one, and not the store")
    doctor.add_argument(
        "--spend",
        metavar="PATH",
        type=Path,
        help="try out what becomes of refresh tokens, with a token response that nobody needs: its grant ends",
    )
    keys = _group(commands, "keys", "the keys that seal sessions and grants")
    new = _add(keys, "new", _new_key, "make a key and print it")
    new.add_argument("--file", metavar="PATH", type=Path, help="write it to a new file that only its owner can read")
    login = _add(
        commands,
        "login",
        _of("login", "login"),
        "get tokens on a machine without a browser: for a configured grant, or for a new one with a handle",
    )
    _config(login).add_argument("--provider", metavar="NAME", help="a new grant: where the user logs in")
    login.add_argument("--grant", metavar="NAME", help="a configured grant of type imported; no handle is printed")
    login.add_argument("--subject", help="who must log in; needed where the provider doesn't say who did")
    _bounds(login)
    _add_grants(_group(commands, "grants", "what the broker holds for callers without a browser"))
    _add_handles(_group(commands, "handles", "the credentials by which callers without a browser name a grant"))
    schema = _add(commands, "schema", _schema, "print the JSON Schema of the configuration, for editors")
    schema.add_argument("--markdown", action="store_true", help="print the reference of the configuration instead")
    return parser


def _add_grants(commands: Commands) -> None:
    listing = _add(commands, "list", _of("grants", "list_grants"), "show the imported and standing grants")
    _config(listing)
    listing.add_argument("--provider", metavar="NAME", help="of one user: at this provider")
    listing.add_argument("--subject", help="of one user, browsers' grants too")
    taking = _add(
        commands,
        "import",
        _of("grants", "import_grant"),
        "hand a token response over: to a configured grant, or to a new one, and print a handle for it",
    )
    _config(taking)
    taking.add_argument("--provider", metavar="NAME", help="a new grant: whose tokens they are")
    taking.add_argument("--subject", help="a new grant: the user or service that they are for")
    taking.add_argument("--grant", metavar="NAME", help="a configured grant of type imported; no handle is printed")
    taking.add_argument("--file", metavar="PATH", type=Path, help="where the JSON is; by default standard input")
    _bounds(taking)
    showing = _add(commands, "show", _of("grants", "show_grant"), "show one grant")
    _grant(_config(showing))
    ending = _add(
        commands, "revoke", _of("grants", "revoke_grant"), "end a grant with its handles, here and at its provider"
    )
    _grant(_config(ending))


def _add_handles(commands: Commands) -> None:
    listing = _add(commands, "list", _of("handles", "list_handles"), "show the handles, without the credentials")
    _config(listing).add_argument("--grant", help=f"only those of this grant: {GRANT}")
    issuing = _add(commands, "issue", _of("handles", "issue_handle"), "issue a handle for a grant, and print it")
    _grant(_config(issuing))
    _bounds(issuing)
    overlap = "how long the old one is taken, such as 10m; by default 0s"
    rotating = _add(commands, "rotate", _of("handles", "rotate_handle"), "issue a successor of a handle, and print it")
    _config(rotating).add_argument("handle", metavar="HANDLE", help="its id, not the credential")
    rotating.add_argument("--overlap", metavar="DURATION", type=_duration, help=overlap)
    ending = _add(commands, "revoke", _of("handles", "revoke_handle"), "end a handle now")
    _config(ending).add_argument("handle", metavar="HANDLE", help="its id, not the credential")


def _bounds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--label", help="what the handle is for, in your words")
    parser.add_argument("--route", metavar="PATH", action="append", help="a path that it may be used for; repeatable")
    parser.add_argument("--network", metavar="CIDR", action="append", help="where it may be used from; repeatable")
    parser.add_argument("--ends-at", metavar="TIME", type=_instant, help="when it ends, such as 2030-01-31T00:00:00Z")


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text[:6]) < 65536):
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, not {text!r}")
    return int(text)


def _duration(text: str) -> float:
    from broker.core.units import parse_duration

    seconds = parse_duration(text)
    if seconds is None:
        raise argparse.ArgumentTypeError(f"expected a duration such as 30s or 10m, not {text!r}")
    return seconds


def _instant(text: str) -> float:
    moment = None
    with suppress(ValueError):
        moment = datetime.fromisoformat(text)
    if moment is None or moment.tzinfo is None:
        raise argparse.ArgumentTypeError(f"expected a time with its zone such as 2030-01-31T00:00:00Z, not {text!r}")
    return moment.timestamp()


def _grant(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("grant", metavar="GRANT", help=GRANT)


def _config(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    parser.add_argument("config", metavar="CONFIG", type=Path, help="the configuration: a YAML file")
    return parser


def _group(commands: Commands, name: str, summary: str) -> Commands:
    return commands.add_parser(name, help=summary, allow_abbrev=False).add_subparsers(
        title="commands", metavar="COMMAND", required=True
    )


def _of(module: str, name: str) -> Callable[[argparse.Namespace], int]:
    """Return a command of broker.cli, which is imported when it runs."""

    def command(options: argparse.Namespace) -> int:
        implementation: Callable[[argparse.Namespace], int] = getattr(import_module(f"broker.cli.{module}"), name)
        return implementation(options)

    return command


def _add(
    commands: Commands,
    name: str,
    command: Callable[[argparse.Namespace], int],
    summary: str,
) -> argparse.ArgumentParser:
    parser = commands.add_parser(
        name, help=summary, description=f"{summary[0].upper()}{summary[1:]}.", epilog=EPILOG, allow_abbrev=False
    )
    # What no parser can say of its options, their command does: `wrong` shows the usage and exits with 2.
    parser.set_defaults(command=command, wrong=parser.error)
    return parser


def _run(options: argparse.Namespace) -> int:
    from broker.config import ConfigErrors, load
    from broker.web.supervised import run

    try:
        settings = load(options.config)
    except ConfigErrors as errors:
        return _refused(errors)
    return run(settings, lambda: load(options.config))


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
        with _undone_unless_written(options.file), open(descriptor, "w", encoding="ascii") as file:  # noqa: PTH123
            file.write(f"{key}\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        print(f"{options.file}: the key can't be written: {error.strerror}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _undone_unless_written(path: Path) -> Iterator[None]:
    """Remove the new file at *path* if the block fails: a half of a key would stand in the way of a whole one."""
    try:
        yield
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _schema(options: argparse.Namespace) -> int:
    if options.markdown:
        from broker.config.reference import reference as text
    else:
        from broker.config.schema import schema_text as text
    print(text(), end="")
    return 0


if __name__ == "__main__":
    sys.exit(main())
