"""Answers to requests with a proof of possession (RFC 9449): nonces are read from them, and refusals of the proof."""

from broker.core.challenge import refuses_proof
from broker.core.response_head import ResponseHead
from broker.web.connection import CallerConnection
from broker.web.gate import Call
from broker.web.relay import Relay, challenges_of
from broker.web.streams import Streams


class ProvenRelay(Relay):
    """A relay of which the broker reads more: only requests that carried a proof pay for it."""

    def __init__(
        self,
        connection: CallerConnection,
        call: Call,
        *,
        hold_401: bool,
        streams: Streams,
    ) -> None:
        """
        Args:
            connection: Where the answer goes.
            call: What it answers. Its lane learns the nonce of the answer.
            hold_401: Whether a 401 is held back, so that the request can be sent again.
            streams: End it with the leave by which it is given, if it takes longer than one read.
        """
        super().__init__(connection, call, hold_401=hold_401, streams=streams)

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        self._learn(head)
        self.proof_refused = head.status == 401 and refuses_proof(challenges_of(head))
        super().on_head(head, body, complete=complete)

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        self._learn(head)
        super().on_upgraded(head, body)

    def _learn(self, head: ResponseHead) -> None:
        self.nonce_given = bool(head.dpop_nonce) and self._call.lane.learn_nonce(self._call.head, head.dpop_nonce)
