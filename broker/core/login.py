"""
One login attempt, from the redirect to the authorization server until its answer.

All of it travels in a sealed cookie of the browser that began it, so that a login that is begun costs the broker no
memory, and an answer that comes to another browser finds nothing (SECURITY LG-01, LG-03).
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from broker.core.options import OptionError, option
from broker.core.pkce import text_of
from broker.core.routing import RateLimitOptions
from broker.core.secret import Secret

FORMAT = 2
"""Version of the cookie's content."""

STATE = re.compile(r"[A-Za-z0-9_-]{43}")
"""What a state of ours looks like."""

_BASE_PATH = re.compile(r"(?:/[A-Za-z0-9_-]+)+")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginOptions:
    """How users log in and out."""

    base_path: str = "/bff"  # not an option of its own: the top of the configuration sets it
    default_provider: str | None = option(
        "Who is asked where the login URL names no provider; with one provider, that one.", default=None
    )
    timeout_seconds: float = option("How long a user may take to log in.", default=900.0)
    max_parallel: int = option("How many logins one browser may have open at once; older ones are given up.", default=6)
    client_rate_limit: RateLimitOptions = option(
        "How often one client may begin a login, and as often come back from one. A client is an IPv4 address or an "
        "IPv6 network of 64 bits, and may be a whole office. Each process counts for itself.",
        default=RateLimitOptions(requests_per_second=5, burst=100),
    )
    rate_limit: RateLimitOptions = option(
        "The same for all clients together.", default=RateLimitOptions(requests_per_second=200, burst=1000)
    )
    return_url: str = option("Where a login ends that came with no returnUrl.", default="/")
    logout_url: str = option("Where a logout ends.", default="/")

    def __post_init__(self) -> None:
        if not _BASE_PATH.fullmatch(self.base_path):
            raise OptionError("base_path", "a path such as /bff, without a slash at its end")
        if not 10 <= self.timeout_seconds <= 3600:
            raise OptionError("timeout", "a duration between 10s and 1h")
        if not 1 <= self.max_parallel <= 20:
            raise OptionError("max_parallel", "a number between 1 and 20")
        for key, value in {"return_url": self.return_url, "logout_url": self.logout_url}.items():
            if not re.fullmatch(r"/(?:[A-Za-z0-9._~-][A-Za-z0-9._~/-]*)?", value):
                raise OptionError(key, "a path of this site, such as / or /home")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoginTransaction:
    """
    What must be known when the authorization server answers.

    Attributes:
        state: Ties the answer to this attempt (RFC 6749 section 10.12).
        nonce: Ties the id token to it (OpenID Connect Core section 3.1.2.1).
        code_verifier: Ties the code to it (RFC 7636 section 4.1).
        provider: The configured name of the authorization server that was asked.
        return_url: Where the user wanted to go.
        started_at: Unix seconds.
        parameters: What was asked for by name (``acr_values``, ``max_age`` …), to be checked in the answer.
        replaces: The store key of the session that the browser had; a success ends it. It must be known from here:
            browsers don't send SameSite=Strict cookies with the answer.
        silent: Whether it runs in a frame and must not ask the user anything (``prompt=none``).
    """

    state: str = field(repr=False)
    nonce: str = field(repr=False)
    code_verifier: Secret
    provider: str
    return_url: str
    started_at: float
    parameters: Mapping[str, str] = field(default_factory=dict)
    replaces: str | None = None
    silent: bool = False

    def is_expired(self, *, now: float, timeout_seconds: float) -> bool:
        """Return whether the answer came too late; a start in the future, after a clock went back, isn't too late."""
        return now >= self.started_at + timeout_seconds


def begin(
    secrets: Sequence[bytes],
    *,
    provider: str,
    return_url: str,
    now: float,
    parameters: Mapping[str, str],
    replaces: str | None = None,
    silent: bool = False,
) -> LoginTransaction:
    """
    Return a new attempt.

    Args:
        secrets: Three times 32 random bytes.
        provider: Who is asked.
        return_url: Where the user wants to go.
        now: Unix seconds.
        parameters: Further parameters of the authorization request.
        replaces: The store key of the session that the browser has.
        silent: Whether it runs in a frame and must not ask the user anything.
    """
    state, nonce, verifier = (text_of(secret) for secret in secrets)
    return LoginTransaction(
        state=state,
        nonce=nonce,
        code_verifier=Secret(verifier),
        provider=provider,
        return_url=return_url,
        started_at=now,
        parameters=parameters,
        replaces=replaces,
        silent=silent,
    )


def attempt_of(state: str) -> str:
    """Return eight hexadecimal digits that name the attempt of *state*: parallel tabs have one cookie each."""
    return hashlib.sha256(state.encode()).hexdigest()[:8]


def use_of(state: str) -> str:
    """
    Return the store key under which it is remembered that *state* was used.

    It depends on no key of the installation: during a rotation processes differ in which they have, and a second name
    could be missing where the first is there. Of 256 random bits a plain hash tells nothing.
    """
    return f"state:{hashlib.sha256(state.encode()).hexdigest()}"


class UnknownTransaction(ValueError):
    """The cookie's content was written by another release."""


def encode(transaction: LoginTransaction) -> bytes:
    """Return the content of the transaction cookie, in clear: it must be sealed before it leaves the process."""
    document = [
        FORMAT,
        transaction.state,
        transaction.nonce,
        transaction.code_verifier.reveal(),
        transaction.provider,
        transaction.return_url,
        transaction.started_at,
        dict(transaction.parameters),
        transaction.replaces,
        transaction.silent,
    ]
    return json.dumps(document, separators=(",", ":")).encode()


def decode(content: bytes) -> LoginTransaction:
    """
    Return what :func:`encode` wrote.

    Raises:
        UnknownTransaction: If another release wrote it.
    """
    version, *members = json.loads(content)
    if version != FORMAT:
        raise UnknownTransaction(f"format {version!r}")
    state, nonce, code_verifier, provider, return_url, started_at, parameters, replaces, silent = members
    return LoginTransaction(
        state=state,
        nonce=nonce,
        code_verifier=Secret(code_verifier),
        provider=provider,
        return_url=return_url,
        started_at=started_at,
        parameters=parameters,
        replaces=replaces,
        silent=silent,
    )


@dataclass(frozen=True, slots=True)
class OpenAttempt:
    """
    A transaction cookie that a browser sent along.

    Attributes:
        name: The cookie's name.
        size: Bytes of its name and value.
        started_at: Unix seconds; None if it can't be read any more.
    """

    name: str
    size: int
    started_at: float | None


def given_up(
    attempts: Sequence[OpenAttempt], *, size: int, now: float, options: LoginOptions, budget_bytes: int = 4096
) -> list[str]:
    """
    Return the names of the cookies that make room for a new attempt.

    A browser sends all of them with each request, and servers refuse a ``Cookie`` line above 8 KiB: what isn't bounded
    here would lock the user out.

    Args:
        attempts: The cookies that came.
        size: Bytes of the new one.
        now: Unix seconds.
        options: How many may be open at once, and for how long.
        budget_bytes: What all of them may take together.
    """
    gone, room, places = [], budget_bytes - size, options.max_parallel - 1
    for attempt in sorted(attempts, key=lambda attempt: -(attempt.started_at or 0)):
        dead = attempt.started_at is None or now >= attempt.started_at + options.timeout_seconds
        if dead or attempt.size > room or places <= 0:
            gone.append(attempt.name)
        else:
            room -= attempt.size
            places -= 1
    return gone
