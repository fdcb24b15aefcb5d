"""Secrets are compared by what takes equally long for each wrong one, and looked up by what has no nearness."""

import ast
from pathlib import Path

import pytest

from broker.core.secret import Secret
from broker.services.clock import SystemRandomness
from broker.services.keyring import Keyring, new_key

ROOT = Path(__file__).parents[1]
# The nonce of a DPoP proof is the server's, told to whoever asks (RFC 9449 section 8): no secret.
MODULES = sorted(set((ROOT / "broker").rglob("*.py")) - {ROOT / "broker/services/dpop.py"})
SECRET_NAMES = frozenset({"proof", "signature", "session_id", "expected_token", "code_verifier", "csrf_token", "nonce"})


def early_ends(source: str) -> list[int]:
    """Return the lines that compare a secret by ``==``, ``!=`` or ``in``, which end at the first difference."""
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Compare)
        and any(isinstance(operator, ast.Eq | ast.NotEq | ast.In | ast.NotIn) for operator in node.ops)
        and sum(_is_secret(operand) for operand in (node.left, *node.comparators)) > 0
        and not any(isinstance(operand, ast.Constant) for operand in (node.left, *node.comparators))
    ]


def _is_secret(node: ast.expr) -> bool:
    match node:
        case ast.Call(func=ast.Attribute(attr="reveal")):
            return True
        case ast.Call(func=ast.Attribute(value=inner, attr="encode" | "decode")):
            return _is_secret(inner)
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in SECRET_NAMES
        case _:
            return False


@pytest.mark.parametrize("module", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_cr_06_no_module_compares_a_secret_byte_by_byte(module: Path) -> None:
    """Whoever has a secret in hand compares it by compare_digest, or as a Secret, which does."""
    assert [] == early_ends(module.read_text())


@pytest.mark.parametrize(
    "line", ["a.reveal() == b", "b != a.reveal().encode()", "proof == other", "self.nonce != given", "x in session_id"]
)
def test_cr_06_such_a_comparison_is_found(line: str) -> None:
    """What the test above is worth."""
    assert [1] == early_ends(line)


def test_cr_06_a_near_miss_looks_up_another_place() -> None:
    """A wrong id is sought under a keyed hash of itself: how near it is to a right one shows nowhere, not even there."""
    keyring = Keyring([new_key(SystemRandomness())])
    right = "A" * 43
    near = [right[:at] + "B" + right[at + 1 :] for at in range(43)]
    places = [keyring.lookup_keys("session", name)[0].partition(":")[2] for name in (right, *near)]

    assert len(set(places)) == len(places)
    assert all(_common(places[0], place) < 8 for place in places[1:])


def _common(one: str, other: str) -> int:
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))


def test_cr_06_secrets_compare_by_content() -> None:
    """Equal ones are equal, and the last character counts as the first."""
    assert Secret("s" * 32) == Secret("s" * 32)
    assert Secret("s" * 32) != Secret("s" * 31 + "t")
    assert Secret("s" * 32) != Secret("t" + "s" * 31)
