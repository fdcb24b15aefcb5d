"""TLS on the broker's own listener, as the operator configures it."""

from dataclasses import dataclass

from broker.core.options import OptionError, option
from broker.core.secret import Secret


@dataclass(frozen=True, slots=True, kw_only=True)
class ListenTlsOptions:
    """TLS on the public listener. Without it, whoever stands in front of the broker ends TLS."""

    certificate_file: str = option("The certificate with its chain (PEM).", example="/etc/ssl/broker.pem")
    key_file: str | None = option("Its private key (PEM), if it isn't in the same file.", default=None)
    key_password: Secret | None = option("The password of the private key.", default=None)
    client_ca_file: str | None = option(
        "The CA (PEM) of gateways' certificates. Whoever connects may show one, and needn't; TLS is 1.3 then, and no "
        "session is resumed, so that each connection stands for itself.",
        default=None,
        example="/etc/ssl/gateways-ca.pem",
    )

    def __post_init__(self) -> None:
        if self.key_password is not None and not self.key_password.reveal():
            raise OptionError("key_password", "a password")
