"""Which URLs the broker calls."""

import pytest

from broker.core.outbound_urls import url_refusal


@pytest.mark.parametrize(
    ("url", "insecure", "allowed"),
    [
        ("https://as.example/token", False, True),
        ("https://as.example:8443/token?a=b", False, True),
        ("http://127.0.0.1:1/token", False, True),
        ("http://[::1]:1/token", False, True),
        ("http://localhost/token", False, True),
        ("http://as.example/token", False, False),
        ("http://as.example/token", True, True),
        ("http://127.0.0.1.evil.example/token", False, False),
        ("http://localhost.evil.example/", False, False),
        ("https://169.254.169.254/latest/meta-data", False, False),
        ("http://169.254.169.254/latest/meta-data", True, False),
        ("https://[fe80::1]/", False, False),
        ("https://[::ffff:169.254.169.254]/", False, False),
        ("https://[fd00:ec2::254]/", True, False),
        ("https://0.0.0.0/", False, False),
        ("https://user:pass@as.example/", False, False),
        ("https://as.example/\r\nX: y", False, False),
        ("https://as.example:99999/", False, False),
        ("file:///etc/passwd", True, False),
        ("ftp://as.example/", True, False),
        ("//as.example/", True, False),
        ("as.example", True, False),
        ("https://", False, False),
        ("", False, False),
    ],
)
def test_lg_05_only_fitting_urls_are_called(url: str, insecure: bool, allowed: bool) -> None:
    """Only https to anywhere but link-local addresses; http to loopback, or where the operator allows it."""
    assert allowed is (url_refusal(url, insecure=insecure) is None)
