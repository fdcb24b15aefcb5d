import pytest

from broker.core.handle import Handle, is_handle, permits
from broker.core.paths import read_target


@pytest.mark.parametrize(
    ("credential", "expected"),
    [
        (b"tbh_" + b"A" * 43, True),
        (b"tbh_" + b"A" * 42, False),
        (b"tbh_" + b"A" * 44, False),
        (b"TBH_" + b"A" * 43, False),
        (b"tbh_" + b"A" * 43 + b"\n", False),
        (b"tbh_" + b"A" * 42 + b"=", False),
        (b"eyJhbGciOiJub25lIn0.e30.", False),
        (b"", False),
    ],
)
def test_only_the_exact_form_is_a_handle(credential: bytes, expected: bool) -> None:
    """Nothing longer, shorter or otherwise spelled is looked up."""
    assert expected == is_handle(credential)


def handle(**attributes: object) -> Handle:
    return Handle(**{"id": "h", "grant_id": "g", "created_at": 0.0, **attributes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("attributes", "path", "address", "expected"),
    [
        ({}, "/api", "192.0.2.1", True),
        ({"routes": ("/api/orders",)}, "/api/orders", "192.0.2.1", True),
        ({"routes": ("/api/orders",)}, "/api/orders/new", "192.0.2.1", True),
        ({"routes": ("/api/orders",)}, "/api/ordersx", "192.0.2.1", False),
        ({"routes": ("/api/orders",)}, "/api", "192.0.2.1", False),
        ({"routes": ("/API/Orders",)}, "/api/orders", "192.0.2.1", True),
        ({"routes": ("/",)}, "/api", "192.0.2.1", True),
        ({"networks": ("192.0.2.0/24", "2001:db8::/32")}, "/api", "192.0.2.1", True),
        ({"networks": ("192.0.2.0/24", "2001:db8::/32")}, "/api", "2001:db8::1", True),
        ({"networks": ("192.0.2.0/24",)}, "/api", "198.51.100.1", False),
        ({"networks": ("192.0.2.0/24",)}, "/api", "::ffff:192.0.2.1", True),
        ({"networks": ("192.0.2.0/24",)}, "/api", "::ffff:198.51.100.1", False),
        ({"networks": ("192.0.2.0/24",)}, "/api", "not an address", False),
    ],
)
def test_a_handle_is_bound_to_routes_and_networks(
    attributes: dict[str, object], path: str, address: str, expected: bool
) -> None:
    """Each bound that is set must hold; one that isn't set binds nothing."""
    assert expected == permits(handle(**attributes), target=read_target(path.encode(), b""), address=address)


def test_every_reading_of_a_path_must_be_permitted() -> None:
    """The upstream may read it in any of them."""
    bound = handle(routes=("/api/orders",))
    assert permits(bound, target=read_target(b"/api/orders/a;v=1", b""), address="192.0.2.1")
    assert not permits(bound, target=read_target(b"/api/orders%61", b""), address="192.0.2.1")
    assert not permits(handle(routes=("/api/orders;v=1",)), target=read_target(b"/api/orders;v=1", b""), address="::1")
