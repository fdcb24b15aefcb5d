"""Logins from which nobody comes back."""

import logging
from collections import Counter

from broker.core.troubleshooting import yaml_path

SUSPICIOUS = 3
"""So many in a row are told. Users give up now and then, and robots follow links."""

log = logging.getLogger(__name__)


class UnansweredLogins:
    """
    Tells the operator when logins are begun and none is answered.

    A server that doesn't know the redirect URI, or the client, must show that to the user and send nobody back (RFC
    6749 section 4.1.2.1): all that is seen of it here is silence.
    """

    def __init__(self) -> None:
        self._in_a_row: Counter[str] = Counter()

    def begun(self, provider: str, redirect_uri: str) -> None:
        """A browser was sent to *provider*, to come back to *redirect_uri*."""
        self._in_a_row[provider] += 1
        if self._in_a_row[provider] == SUSPICIOUS:
            log.warning(
                "logins_stay_unanswered",
                extra={
                    "provider": provider,
                    "redirect_uri": redirect_uri,
                    "look_at": yaml_path(provider, "redirect_uri"),
                },
            )

    def answered(self, provider: str) -> None:
        """A browser came back, with a code or an error."""
        self._in_a_row[provider] = 0
