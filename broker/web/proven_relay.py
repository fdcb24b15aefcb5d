"""Answers to requests with a proof of possession (RFC 9449): nonces are read from them, and refusals of the proof."""

from collections.abc import Callable

from broker.core.challenge import refuses_proof
from broker.core.request_head import RequestHead
from broker.core.response_head import ResponseHead
from broker.services.session_cache import LiveSession
from broker.web.connection import CallerConnection
from broker.web.relay import Relay, challenges_of
from broker.web.streams import Streams


class ProvenRelay(Relay):
    """A relay of which the broker reads more: only requests that carried a proof pay for it."""

    def __init__(
        self,
        connection: CallerConnection,
        request: RequestHead,
        *,
        learn_nonce: Callable[[bytes], bool],
        hold_401: bool,
        streams: Streams,
        session: LiveSession | None,
    ) -> None:
        """
        Args:
            connection: Where the answer goes.
            request: What it answers.
            learn_nonce: Takes the nonce of the answer; returns whether it is one.
            hold_401: Whether a 401 is held back, so that the request can be sent again.
            streams: End it with the session, if it takes longer than one read.
            session: Whose answer it is; None for nobody's.
        """
        super().__init__(connection, request, hold_401=hold_401, streams=streams, session=session)
        self._learn_nonce = learn_nonce

    def on_head(self, head: ResponseHead, body: bytes, *, complete: bool) -> None:
        self._learn(head)
        self.proof_refused = head.status == 401 and refuses_proof(challenges_of(head))
        super().on_head(head, body, complete=complete)

    def on_upgraded(self, head: ResponseHead, body: bytes) -> None:
        self._learn(head)
        super().on_upgraded(head, body)

    def _learn(self, head: ResponseHead) -> None:
        self.nonce_given = bool(head.dpop_nonce) and self._learn_nonce(head.dpop_nonce)
