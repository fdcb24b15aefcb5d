"""
What an upstream says with a 401: its challenges, whether it asks for a stronger login, and whether it refused a proof.

Source: RFC 9110 section 11.6.1 (WWW-Authenticate), RFC 6750 section 3, RFC 9449 section 7.1, RFC 9470.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain

STEP_UP_ERROR = "insufficient_user_authentication"

MAX_FIELD_CHARACTERS = 8192
MAX_ACR_VALUES_CHARACTERS = 512

PROOF_ERRORS = frozenset({"invalid_dpop_proof", "use_dpop_nonce"})

_TOKEN_SCHEMES = frozenset({"bearer", "dpop"})

_TOKEN = r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"
_SEPARATOR = re.compile(r"[ \t]*(?:,[ \t]*)*")
_PARAMETER = re.compile(
    rf'(?P<name>{_TOKEN})[ \t]*=[ \t]*(?:(?P<token>{_TOKEN})|"(?P<quoted>(?:[^"\\]|\\.)*)")(?=[ \t]*(?:,|$))'
)
_SCHEME = re.compile(rf"(?P<scheme>{_TOKEN})(?:[ \t]+(?P<token68>[A-Za-z0-9._~+/-]+=*)(?=[ \t]*(?:,|$))|(?=[ \t,]|$))")
_ESCAPED = re.compile(r"\\(.)")
_PRINTABLE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*")
_NUMBER = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class StepUp:
    """
    The login that an upstream asks for (RFC 9470 section 3).

    Attributes:
        parameters: ``acr_values`` and ``max_age``, as far as they were said and make sense.
    """

    parameters: Mapping[str, str]


def read_step_up(values: list[str]) -> StepUp | None:
    """
    Return the login that a 401 asks for; None if it asks for none.

    Whatever can't be read is no such challenge: the 401 then passes for one that a newer token may cure.

    Args:
        values: The values of its ``WWW-Authenticate`` lines.
    """
    for scheme, parameters in chain.from_iterable(map(challenges, values)):
        if scheme in _TOKEN_SCHEMES and parameters.get("error") == STEP_UP_ERROR:
            acr_values, max_age = parameters.get("acr_values", ""), parameters.get("max_age", "")
            asked = {}
            if len(acr_values) <= MAX_ACR_VALUES_CHARACTERS and _PRINTABLE.fullmatch(acr_values):
                asked["acr_values"] = acr_values
            if _NUMBER.fullmatch(max_age):
                asked["max_age"] = max_age
            return StepUp(asked)
    return None


def refuses_proof(values: Iterable[str]) -> bool:
    """
    Return whether a 401 refuses the proof of possession, and says nothing of the token: a newer one won't help.

    Args:
        values: The values of its ``WWW-Authenticate`` lines.

    Source: RFC 9449 sections 7.1 and 9.
    """
    return any(
        scheme == "dpop" and parameters.get("error") in PROOF_ERRORS
        for scheme, parameters in chain.from_iterable(map(challenges, values))
    )


def challenges(value: str) -> Iterator[tuple[str, Mapping[str, str]]]:
    """
    Yield the challenges of one field line, each as its scheme and its parameters, names in lower case.

    It stops at what can't be read. Where a parameter comes twice the challenge says nothing.

    Source: RFC 9110 sections 11.2 and 11.3.
    """
    if len(value) > MAX_FIELD_CHARACTERS:
        return
    scheme, parameters, doubled = "", dict[str, str](), False
    position = 0
    while True:
        position = _end_of(_SEPARATOR.match(value, position), position)
        parameter = _PARAMETER.match(value, position) if scheme else None
        if parameter is not None:
            name = parameter["name"].lower()
            doubled |= name in parameters
            parameters[name] = parameter["token"] or _ESCAPED.sub(r"\1", parameter["quoted"] or "")
            position = parameter.end()
            continue
        following = _SCHEME.match(value, position)
        if scheme and (following is not None or position == len(value)):
            yield scheme, {} if doubled else parameters
        if following is None:
            return
        scheme, parameters, doubled = following["scheme"].lower(), {}, False
        position = following.end()


def _end_of(match: re.Match[str] | None, position: int) -> int:
    return position if match is None else match.end()
