"""Answers to requests with a proof of possession (RFC 9449): nonces are read from them, and refusals of the proof."""

from broker.core.challenge import refuses_proof
from broker.core.response_head import ResponseHead
from broker.web.relay import Relay, challenges_of


class ProvenRelay(Relay):
    """A relay of which the broker reads more: only requests that carried a proof pay for it."""

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        self._learn(head)
        self.proof_refused = head.status == 401 and refuses_proof(challenges_of(head))
        super().on_head(head, body, complete=complete)

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        self._learn(head)
        super().on_upgraded(head, body)

    def _learn(self, head: ResponseHead) -> None:
        self.nonce_given = bool(head.dpop_nonce) and self._call.lane.learn_nonce(self._call.head, head.dpop_nonce)
