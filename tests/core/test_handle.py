import pytest

from broker.core.handle import Handle, is_handle, permits


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
    ("attributes", "path", "address", "now", "expected"),
    [
        ({}, "/api", "192.0.2.1", 1.0, True),
        ({"ends_at": 2.0}, "/api", "192.0.2.1", 1.9, True),
        ({"ends_at": 2.0}, "/api", "192.0.2.1", 2.0, False),
        ({"routes": ("/api/orders",)}, "/api/orders", "192.0.2.1", 1.0, True),
        ({"routes": ("/api/orders",)}, "/api/orders/new", "192.0.2.1", 1.0, True),
        ({"routes": ("/api/orders",)}, "/api/ordersx", "192.0.2.1", 1.0, False),
        ({"routes": ("/api/orders",)}, "/api", "192.0.2.1", 1.0, False),
        ({"routes": ("/API/Orders",)}, "/api/orders", "192.0.2.1", 1.0, True),
        ({"routes": ("/",)}, "/api", "192.0.2.1", 1.0, True),
        ({"networks": ("192.0.2.0/24", "2001:db8::/32")}, "/api", "192.0.2.1", 1.0, True),
        ({"networks": ("192.0.2.0/24", "2001:db8::/32")}, "/api", "2001:db8::1", 1.0, True),
        ({"networks": ("192.0.2.0/24",)}, "/api", "198.51.100.1", 1.0, False),
        ({"networks": ("192.0.2.0/24",)}, "/api", "not an address", 1.0, False),
    ],
)
def test_a_handle_is_bound_to_routes_networks_and_an_end(
    attributes: dict[str, object], path: str, address: str, now: float, expected: bool
) -> None:
    """Each bound that is set must hold; one that isn't set binds nothing."""
    assert expected == permits(handle(**attributes), path=path, address=address, now=now)
