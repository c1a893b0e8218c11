"""The one wrapper around every RPC: caller authentication, the role table, limits, errors and the access log."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeAlias, cast

import grpc
import structlog

from server.domain.errors import ErrorReason, Refusal, Violation
from server.domain.model import Caller
from server.service.telemetry import Telemetry
from server.service.waiting import ASIDE
from server.store.contract import begin_call
from server.wire import policy
from server.wire.arrivals import Arrivals, Entrance
from server.wire.desks import Desk, Lane
from server.wire.errors import CODES, as_refusal, status_of
from server.wire.limits import (
    LEAST_SECONDS,
    MAXIMUM_MESSAGE_BYTES,
    MESSAGE_SECONDS,
    OPEN_MESSAGE_SECONDS,
    on_pool,
    seconds_for,
)
from server.wire.messages import parsed
from server.wire.rpc import CURRENT, Rpc
from server.wire.seats import Seats
from server.wire.tls import certificate_names

_BEARER = "bearer "
_OK = grpc.StatusCode.OK.name
_log = structlog.get_logger("texture_auth.access")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Authenticator(Protocol):
    """Whoever can tell callers by their credentials."""

    def authenticate(self, credential: str) -> Caller:
        """Return the caller of a `svc` key. Raises Refusal."""

    def authenticate_certificate(self, names: Collection[str]) -> Caller:
        """Return the caller that goes by a name of a verified certificate. Raises Refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """What a gate stands before.

    Calls are worked on at two desks, so that those that change things, which wait for others, hold up no decision; what
    must wait for no call, health and refusals, by `side_pool`; what is watched, and has no end, in `seats`. `arrivals`
    waits for messages. `default_seconds` is the deadline of a call that comes without one, `log_allow_sample` the share
    of mere ALLOWs that are logged.
    `on_store_unavailable` is told of each call that failed for want of the store, so that health follows at once.
    """

    authenticator: Authenticator
    decisions: Desk
    others: Desk
    side_pool: ThreadPoolExecutor
    seats: Seats
    arrivals: Arrivals
    open_reflection: bool
    default_seconds: float
    log_allow_sample: float
    on_store_unavailable: Callable[[], None]
    telemetry: Telemetry

    def desk_of(self, method: str) -> Desk:
        """Return where calls of a method are worked on."""
        return self.decisions if method in policy.DECISIONS else self.others


class Gate(grpc.ServerInterceptor):
    """Lets through the calls that may pass."""

    def __init__(self, house: House) -> None:
        self._house = house
        self._open = policy.OPEN | (policy.REFLECTION if house.open_reflection else frozenset())
        self._opened: dict[str, Handler] = {}
        self._wrapped: dict[tuple[str, Lane], Handler] = {}
        self._overloaded: dict[str, Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of a method, made once for each lane.

        A stream is refused here while too many calls wait, any other call once its message is here.
        """
        method = handler_call_details.method
        if method in self._open:
            return self._opened.get(method) or self._open_handler(method, continuation(handler_call_details))
        lane = self._house.desk_of(method).lane(_credential(handler_call_details.invocation_metadata) or "")
        wrapped = self._wrapped.get((method, lane))
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            wrapped = self._wrapped[method, lane] = self._wrap(method, handler, lane)
        return self._overloaded.get(method, wrapped) if lane.full else wrapped

    def _open_handler(self, method: str, handler: Handler | None) -> Handler | None:
        if handler is not None:
            self._opened[method] = self._open_to_all(handler) if method in policy.OPEN else handler
        return self._opened.get(method)

    def _open_to_all(self, handler: Handler) -> Handler:
        """Return the handler of a method that is open to everybody, which waits neither for calls nor for messages."""
        pool, deserialize, serialize = self._house.side_pool, handler.request_deserializer, handler.response_serializer
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(on_pool(handler.unary_stream, pool), deserialize, serialize)
        behavior = handler.unary_unary
        if behavior is None:  # pragma: no cover - there is no other kind
            raise TypeError(handler)

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            try:
                message = self._house.arrivals.receive(messages, context, OPEN_MESSAGE_SECONDS)
                request = _request(message, deserialize)
            except Refusal as error:
                refusal = error
            else:
                return behavior(request, context)
            context.abort_with_status(status_of(refusal))
            return None

        return grpc.stream_unary_rpc_method_handler(on_pool(call, pool), None, serialize)

    def _wrap(self, method: str, handler: Handler, lane: Lane) -> Handler:
        refuse, side_pool = self._refusing(method), self._house.side_pool
        if handler.unary_unary is not None:
            # As one that receives a stream: a caller is known before a message is waited for that does not come.
            entrance = Entrance(lane, self._house.arrivals, refuse, side_pool)
            unary = on_pool(self._unary(method, handler, lane.desk), entrance)
            return grpc.stream_unary_rpc_method_handler(unary, None, handler.response_serializer)
        if handler.stream_stream is not None:
            self._overloaded[method] = grpc.stream_stream_rpc_method_handler(on_pool(refuse, side_pool))
            return grpc.stream_stream_rpc_method_handler(
                on_pool(self._stream(method, handler.stream_stream), lane),
                handler.request_deserializer,
                handler.response_serializer,
            )
        if handler.unary_stream is not None:
            watched = on_pool(self._watched(method, handler), self._house.seats)
            return grpc.unary_stream_rpc_method_handler(watched, None, handler.response_serializer)
        raise NotImplementedError(f"{method} is of a kind that no RPC here has been so far")

    def _unary(
        self, method: str, handler: Handler, desk: Desk
    ) -> Callable[[Iterator[bytes], grpc.ServicerContext], Any]:
        behavior = handler.unary_unary
        deserialize = handler.request_deserializer
        if behavior is None:  # pragma: no cover - it is called for no others
            raise TypeError(method)

        def call(messages: Iterator[bytes], context: grpc.ServicerContext) -> Any:
            started = time.perf_counter()
            rpc = Rpc(method)
            seconds = seconds_for(context, self._house.default_seconds)
            begin_call(seconds)
            ASIDE.set(desk.aside)
            try:
                if seconds < LEAST_SECONDS:
                    self._house.telemetry.shed("deadline_past")
                    raise Refusal(ErrorReason.DEADLINE_TOO_SHORT, "the deadline was past before any work was done")
                self._admit(rpc, context)
                CURRENT.set(rpc)
                raw = self._house.arrivals.receive(messages, context, min(seconds, MESSAGE_SECONDS), desk)
                response = behavior(_request(raw, deserialize), context)
            except Exception as error:  # noqa: BLE001 - every failure has an answer
                refusal = self._refused(rpc, error, started)
            else:
                self._house.telemetry.rpc(method, _OK, time.perf_counter() - started)
                if not rpc.routine or random.random() < self._house.log_allow_sample:  # noqa: S311 - no secret
                    _log_call(rpc, _OK, started)
                return response
            # Outside the except block, since abort itself raises.
            context.abort_with_status(status_of(refusal))
            return None

        return call

    def _stream(
        self, method: str, behavior: Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], Iterator[Any]]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
            started = time.perf_counter()
            rpc = Rpc(method)
            begin_call(self._house.default_seconds)
            refusal = None
            try:
                self._admit(rpc, context)
            except Exception as error:  # noqa: BLE001 - every failure has an answer
                refusal = self._refused(rpc, error, started)
            if refusal is not None:
                context.abort_with_status(status_of(refusal))
            self._house.telemetry.rpc(method, _OK, time.perf_counter() - started)
            _log_call(rpc, _OK, started)
            yield from behavior(requests, context)

        return call

    def _watched(self, method: str, handler: Handler) -> Callable[[bytes, grpc.ServicerContext], Iterator[Any]]:
        """Return the behavior of a stream that goes on until somebody ends it, in a seat of its own."""
        behavior, deserialize = handler.unary_stream, handler.request_deserializer
        if behavior is None:  # pragma: no cover - it is called for no others
            raise TypeError(method)

        def responses(rpc: Rpc, message: bytes, context: grpc.ServicerContext, started: float) -> Iterator[Any]:
            self._admit(rpc, context)
            request = _request(message, deserialize)
            with self._house.seats.taken():
                opened = False
                for response in behavior(request, context):
                    if not opened:
                        opened = True
                        self._house.telemetry.rpc(method, _OK, time.perf_counter() - started)
                        _log_call(rpc, _OK, started)
                    yield response

        def call(message: bytes, context: grpc.ServicerContext) -> Iterator[Any]:
            started = time.perf_counter()
            rpc = Rpc(method)
            rpc.admit_again = partial(self._admit, rpc, context)
            # What is waited for has deadlines of its own; the stream has none.
            begin_call(math.inf)
            CURRENT.set(rpc)
            try:
                yield from responses(rpc, message, context, started)
            except Exception as error:  # noqa: BLE001 - every failure has an answer
                # Not how long the stream was open, which would be no call's time.
                refusal = self._refused(rpc, error, time.perf_counter())
            else:
                return
            context.abort_with_status(status_of(refusal))

        return call

    def _refusing(self, method: str) -> Callable[[Any, grpc.ServicerContext], Any]:
        """Return what refuses calls of a method while too many calls wait."""

        def refuse(_request: Any, context: grpc.ServicerContext) -> Any:
            started = time.perf_counter()
            self._house.telemetry.shed("queue_full")
            error = Refusal(ErrorReason.OVERLOADED, "as many calls wait as may; nothing was done, retry")
            context.abort_with_status(status_of(self._refused(Rpc(method), error, started)))

        return refuse

    def _admit(self, rpc: Rpc, context: grpc.ServicerContext) -> None:
        """Find out who calls, and make sure that they may. Raises Refusal (CALLER_*)."""
        caller = self._caller(context)
        rpc.caller_id = caller.caller_id
        roles = policy.ROLES.get(rpc.method, frozenset())
        if caller.roles.isdisjoint(roles):
            names = ", ".join(sorted(role.value for role in roles)) or "none"
            raise Refusal(
                ErrorReason.CALLER_ROLE_MISSING,
                f"{caller.caller_id} may not call {rpc.method}, which needs one of these roles: {names}",
                metadata={"caller_id": caller.caller_id, "roles": names},
            )

    def _caller(self, context: grpc.ServicerContext) -> Caller:
        """Return who calls: by the credential in the metadata or, where there is none, by the client certificate."""
        authenticator = self._house.authenticator
        credential = _credential(context.invocation_metadata())
        if credential is not None:
            return authenticator.authenticate(credential)
        names = certificate_names(cast("Mapping[str, Sequence[bytes]]", context.auth_context()))
        if names:
            return authenticator.authenticate_certificate(names)
        raise Refusal(
            ErrorReason.CALLER_CREDENTIAL_MISSING,
            "this call needs 'authorization: Bearer txk_svc_…' metadata, or a client certificate that names a caller",
        )

    def _refused(self, rpc: Rpc, error: Exception, started: float) -> Refusal:
        """Log a failure and return what the caller is told of it."""
        refusal = as_refusal(error)
        if refusal.reason in (ErrorReason.STORE_UNAVAILABLE, ErrorReason.OUTCOME_UNKNOWN):
            self._house.on_store_unavailable()
            _log.warning("store unavailable", method=rpc.method, cause=str(error))
        if refusal.reason is ErrorReason.PEPPER_UNAVAILABLE:
            _log.error("pepper missing", method=rpc.method, **refusal.metadata)
        if refusal.reason is ErrorReason.INTERNAL_FAULT:
            _log.error("internal fault", method=rpc.method, exc_info=error, **refusal.metadata)
        code = CODES[refusal.reason].name
        self._house.telemetry.rpc(rpc.method, code, time.perf_counter() - started)
        _log_call(rpc, code, started, error_reason=refusal.reason.name, **refusal.metadata)
        return refusal


def _credential(metadata: Iterable[tuple[str, str | bytes]]) -> str | None:
    """Return the Bearer credential of metadata, None where there is none."""
    for name, value in metadata:
        if name == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    return None


def _request(raw: bytes, deserialize: Callable[[bytes], Any] | None) -> Any:
    """Return the request that bytes are, which is the bytes where a method takes them as they are."""
    if len(raw) > MAXIMUM_MESSAGE_BYTES:
        description = f"has {len(raw)} bytes, more than {MAXIMUM_MESSAGE_BYTES}"
        raise Refusal(
            ErrorReason.MESSAGE_TOO_LARGE,
            f"the message {description}",
            violations=(Violation("", description),),
        )
    return raw if deserialize is None else parsed(raw, deserialize)


def _log_call(rpc: Rpc, code: str, started: float, **more: object) -> None:
    line: dict[str, object] = {
        "method": rpc.method,
        "caller": rpc.caller_id or None,
        "code": code,
        "milliseconds": round((time.perf_counter() - started) * 1000, 3),
    }
    # A later part wins over an earlier one of the same name; a log that fails must not fail the call.
    _log.info("rpc", **{**more, **rpc.notes, **line})
