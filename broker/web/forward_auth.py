"""
Forward-auth: judges requests that a gateway holds, by the same gate that judges those which the broker forwards itself.

    secret or certificate ▸ the original request ▸ the gate ▸ fields for the gateway, and the access token if both
    sides allow it

The gateway copies the fields that it is told to copy, each in place of what the caller sent. So the answer has all of
them that go upstream, the caller's own cookies included, from which ours are taken out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from aiohttp import web

from broker.core.forward_auth import (
    CERTIFICATE_FIELDS,
    DIALECTS,
    SECRET_FIELD,
    ForwardAuthOptions,
    OriginalRequest,
    original_request,
    shows_certificate,
    shows_secret,
)
from broker.core.forwarded import TrustedProxies
from broker.core.headers import canonical
from broker.core.routing import Route
from broker.errors import BadRequest, BrokerError, CallerError, Forbidden, OperatorError
from broker.services import metrics
from broker.web.connection import CallerConnection
from broker.web.gate import Call, Gate
from broker.web.middleware import ASKED
from broker.web.problems import OwnResponse

Refuse = Callable[[web.Request, BrokerError], web.Response]
"""Logs and counts a refusal, and returns what the caller is told of it."""


@dataclass(frozen=True, slots=True)
class _Asked:
    """The original request, as far as the answer to its caller depends on it."""

    method: str
    raw_path: str
    headers: Mapping[str, str]


class ForwardAuth:
    """The endpoint that gateways ask."""

    def __init__(
        self,
        options: ForwardAuthOptions,
        *,
        gate: Gate,
        routes: Sequence[Route],
        public_url: str,
        base_path: str,
        refuse: Refuse,
    ) -> None:
        """
        Args:
            options: Who may ask, and how it asks.
            gate: Judges.
            routes: The routes that the gate knows.
            public_url: The origin under which browsers reach the gateway.
            base_path: The path of the broker's own endpoints.
            refuse: ``Outermost.refuse``.
        """
        self._options = options
        self._dialect = DIALECTS[options.gateway]
        self._gateways = TrustedProxies(options.networks)
        self._gate = gate
        names = [name for route in routes for name in route.headers.assign]
        self._own_names = frozenset(canonical(name.encode()) for name in names)
        if not options.client_certificates:
            self._own_names |= CERTIFICATE_FIELDS
        self._copied = frozenset({"authorization", "cookie", *(name.lower() for name in names)})
        self._public_url = public_url
        self._scheme = urlsplit(public_url).scheme
        self._path = f"{base_path}/auth"
        self._refuse = refuse

    def register(self, app: web.Application) -> None:
        """Add the endpoint to *app*. Call this before anything else takes what is below ``base_path``."""
        app.router.add_route("*", self._path, self.handle)
        if self._dialect.target is None:
            app.router.add_route("*", f"{self._path}/{{target:.*}}", self.handle)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Say whether the original request may go on."""
        try:
            call = await self._judge(request)
            response = self._allow(call)
        except BrokerError as error:
            metrics.FORWARD_AUTH.labels("refused" if isinstance(error, CallerError) else "unavailable").inc()
            return self._tell(error, self._refuse(request, error))
        metrics.FORWARD_AUTH.labels("allowed").inc()
        return response

    async def _judge(self, request: web.Request) -> Call:
        connection = request.protocol
        assert isinstance(connection, CallerConnection)
        self._check_gateway(request, connection)
        message = request._message  # noqa: SLF001 - its target is the one that came; request.path is decoded
        original = original_request(
            self._dialect,
            request.raw_headers,
            method=message.method,
            below=message.path.encode("utf-8", "surrogateescape").removeprefix(self._path.encode()),
            scheme=self._scheme,
            own_names=self._own_names,
        )
        request[ASKED] = _Asked(original.method, original.target.decode("latin-1"), request.headers)
        call = self._gate.judge(
            method=original.method,
            target=original.target,
            version=(1, 1),
            block=self._gate.fields.read(original.lines),
            peer=connection.peer,
        )
        _check_websocket(original, call)
        await self._gate.admit(call)
        self._gate.limit(call)
        return call

    def _check_gateway(self, request: web.Request, connection: CallerConnection) -> None:
        """Whoever isn't a gateway learns nothing, not even whether there is a session."""
        if self._options.networks and not self._gateways.trusts(connection.peer):
            raise Forbidden("not from one of forward_auth.networks")
        if not (
            shows_certificate(connection.certificate, self._options.certificate_names)
            or shows_secret(request.raw_headers, self._options.secrets)
        ):
            raise Forbidden("nothing of forward_auth.secrets or forward_auth.certificate_names is shown")

    def _allow(self, call: Call) -> web.Response:
        release = self._options.release_token and call.lane.route.release_token
        if release and call.is_bound:
            # A proof is for one request, with a nonce of the upstream's, whose answers only the gateway sees.
            raise OperatorError("release_token: a token that is bound to a key (dpop) can't be given to a gateway")
        lines = call.lane.made_here(call.head, token=call.token if release else None, session=call.session)
        headers: dict[str, str] = {}
        for line in lines:
            name, _, value = _text(line).partition(": ")
            if name.lower() in self._copied:
                # Several lines of cookies are one to a gateway (RFC 9113 section 8.2.3).
                headers[name] = f"{headers[name]}; {value}" if name in headers else value
        if self._dialect.takes_removals:
            absent = self._copied - {name.lower() for name in headers}
            headers["X-Envoy-Auth-Headers-To-Remove"] = ",".join(sorted({*absent, SECRET_FIELD.decode()}))
        return OwnResponse(status=self._dialect.allowed_status, headers=headers)

    def _tell(self, error: BrokerError, response: web.Response) -> web.Response:
        """Put a refusal into words that the gateway understands."""
        response.headers["X-Problem"] = error.code
        location = response.headers.get("Location")
        if location is not None:
            # Gateways would resolve a relative one against the address of the broker.
            response.headers["Location"] = response.headers["X-Login-URL"] = f"{self._public_url}{location}"
        if self._dialect.knows_only_401_and_403 and not (response.status >= 500 or response.status in {401, 403}):
            response.set_status(401 if location is not None else 403)
            response.headers.popall("Location", None)
        return response


def _check_websocket(original: OriginalRequest, call: Call) -> None:
    """The gateway would open a WebSocket, even where the gate would have made a plain call of it."""
    if original.is_websocket and not call.head.upgrade:
        raise Forbidden("not a WebSocket's handshake, or the route takes none")


def _text(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError:
        raise BadRequest("a cookie isn't UTF-8") from None
