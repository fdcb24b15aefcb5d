"""Watches how an authorization server treats refresh tokens, and tells once where the configuration doesn't fit."""

import logging
from collections import Counter, OrderedDict

from broker.core.behaviour import Seen, judge_behaviour, seen_in
from broker.core.diagnosis import Verdict
from broker.core.grant import Grant
from broker.core.oauth import FailureKind, TokenFailure, TokenOutcome
from broker.core.provider import ProviderOptions
from broker.core.refresh import takes_again
from broker.services import metrics
from broker.services.clock import Clock

LIMIT = 1000
"""So many grants with a lost answer are remembered."""

log = logging.getLogger(__name__)


class Learning:
    """
    What one process sees of one provider.

    The counts of all processes are a metric, and the configuration is never changed by them.
    """

    def __init__(self, name: str, options: ProviderOptions, *, clock: Clock) -> None:
        self._name = name
        self._options = options
        self._clock = clock
        self._counts: Counter[Seen] = Counter()
        self._told: set[tuple[str | None, str]] = set()
        self._lost: OrderedDict[str, None] = OrderedDict()

    def watch(self, grant: Grant, outcome: TokenOutcome) -> None:
        """Learn from the answer to the refresh token of *grant*."""
        assert grant.refresh_token is not None
        again = grant.id in self._lost or (grant.intent is not None and grant.intent.carried)
        in_time = takes_again(grant, self._options, now=self._clock.now())
        for seen in seen_in(outcome, presented=grant.refresh_token, again=again, in_time=in_time):
            self._counts[seen] += 1
            metrics.PROVIDER_BEHAVIOUR.labels(self._name, seen.value).inc()
        self._remember(grant, outcome)
        self._tell()

    def _remember(self, grant: Grant, outcome: TokenOutcome) -> None:
        """A request may be sent again before the grant says that its answer was lost."""
        if isinstance(outcome, TokenFailure) and outcome.kind is FailureKind.IN_DOUBT:
            self._lost[grant.id] = None
            if len(self._lost) > LIMIT:
                self._lost.popitem(last=False)
        elif not isinstance(outcome, TokenFailure) or outcome.kind is FailureKind.PERMANENT:
            self._lost.pop(grant.id, None)

    def _tell(self) -> None:
        for finding in judge_behaviour(self._counts, self._options):
            if (finding.key, finding.text) in self._told:
                continue
            self._told.add((finding.key, finding.text))
            log.log(
                logging.WARNING if finding.verdict is Verdict.WARNING else logging.INFO,
                "provider_behaviour_differs",
                extra={
                    "provider": self._name,
                    "detail": finding.text,
                    "look_at": f"providers.{self._name}.{finding.key}",
                    "fitting": dict(finding.fitting),
                },
            )
