"""How callers without a browser say who they are, as the operator configures it."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from broker.core.options import OptionError, option
from broker.core.provider import ID_TOKEN_ALGORITHMS

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerIssuerOptions:
    """An issuer whose signed tokens name callers. A caller's grant is the imported one of the same subject."""

    issuer: str = option("`iss` of the tokens; its metadata names its keys.", example="https://idp.example.com")
    audience: str = option("What `aud` must hold: the broker's own name there, never an upstream's.")
    jwks_uri: str | None = option("Its keys, where its metadata doesn't name them.", default=None)
    algorithms: tuple[str, ...] = option("JWS algorithms that are taken.", default=("ES256", "PS256", "RS256"))
    subject_claim: str = option("The claim that names the caller.", default="sub")
    provider: str = option("The provider of the callers' grants.")

    def __post_init__(self) -> None:
        if not self.audience:
            raise OptionError("audience", "the audience that callers ask for")
        if not self.algorithms:
            raise OptionError("algorithms", "at least one algorithm")
        for index, name in enumerate(self.algorithms):
            if name not in ID_TOKEN_ALGORITHMS:
                raise OptionError(f"algorithms[{index}]", "one of " + ", ".join(sorted(ID_TOKEN_ALGORITHMS)))


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerCertificateOptions:
    """Whose calls come with a certain client certificate."""

    provider: str = option("The provider of the caller's grant.")
    subject: str = option("The grant's subject.")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallersOptions:
    """Callers without a browser, beside handles, which need no configuration."""

    jwt: tuple[CallerIssuerOptions, ...] = option("Issuers whose tokens name callers.", default=())
    certificates: Mapping[str, CallerCertificateOptions] = option(
        "Callers by the SHA-256 of their certificate, in hexadecimal. A trusted proxy that ends TLS names the "
        "certificate in `Client-Cert` (RFC 9440); from anybody else the field is dropped.",
        default_factory=dict,
    )

    def __post_init__(self) -> None:
        if len({each.issuer for each in self.jwt}) != len(self.jwt):
            raise OptionError("jwt", "each issuer once")
        for fingerprint in self.certificates:
            if not _FINGERPRINT.fullmatch(fingerprint):
                expected = "64 hexadecimal digits in lower case as the key"
                raise OptionError(f"certificates.{fingerprint}", expected, found=fingerprint)
