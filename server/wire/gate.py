"""The one wrapper around every RPC: caller authentication, the role table, limits, errors and the access log."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeAlias

import grpc
import structlog
from google.protobuf.message import DecodeError

from server.domain.errors import ErrorReason, Refusal, Violation
from server.domain.model import Caller
from server.store.contract import StoreUnavailable
from server.wire import policy
from server.wire.errors import CODES, as_refusal, status_of
from server.wire.rpc import CURRENT, Rpc

# What a request may weigh. gRPC itself refuses far larger ones, without saying which field is to blame.
MAXIMUM_MESSAGE_BYTES = 1024 * 1024

_BEARER = "bearer "
_log = structlog.get_logger("texture_auth.access")

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Authenticator(Protocol):
    """Whoever can tell callers by their credentials."""

    def authenticate(self, credential: str) -> Caller:
        """Return the caller. Raises Refusal."""


class Gate(grpc.ServerInterceptor):
    """Lets through the calls that may pass.

    `on_store_unavailable` is told of each call that failed for want of the store, so that health follows at once.
    """

    def __init__(
        self, authenticator: Authenticator, open_reflection: bool, on_store_unavailable: Callable[[], None]
    ) -> None:
        self._authenticator = authenticator
        self._open = policy.OPEN | (policy.REFLECTION if open_reflection else frozenset())
        self._on_store_unavailable = on_store_unavailable
        self._wrapped: dict[str, Handler] = {}

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the wrapped handler of a method, made once."""
        method = handler_call_details.method
        wrapped = self._wrapped.get(method)
        if wrapped is None:
            handler = continuation(handler_call_details)
            if handler is None or method in self._open:
                return handler
            wrapped = self._wrap(method, handler)
            self._wrapped[method] = wrapped
        return wrapped

    def _wrap(self, method: str, handler: Handler) -> Handler:
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(self._unary(method, handler), None, handler.response_serializer)
        if handler.stream_stream is not None:
            return grpc.stream_stream_rpc_method_handler(
                self._stream(method, handler.stream_stream),
                handler.request_deserializer,
                handler.response_serializer,
            )
        raise NotImplementedError(f"{method} is of a kind that no RPC here has been so far")

    def _unary(self, method: str, handler: Handler) -> Callable[[bytes, grpc.ServicerContext], Any]:
        behavior = handler.unary_unary
        deserialize = handler.request_deserializer
        if behavior is None or deserialize is None:  # pragma: no cover - as generated
            raise TypeError(method)

        def call(raw: bytes, context: grpc.ServicerContext) -> Any:
            started = time.perf_counter()
            rpc = None
            try:
                rpc = Rpc(method, self._authenticator.authenticate(_credential(context)))
                _require_role(rpc)
                CURRENT.set(rpc)
                response = behavior(_parsed(raw, deserialize), context)
            except Exception as error:  # noqa: BLE001 - every failure has an answer
                refusal = self._refused(method, rpc, error, started)
            else:
                _log_call(method, rpc, grpc.StatusCode.OK, started)
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
            rpc = None
            try:
                rpc = Rpc(method, self._authenticator.authenticate(_credential(context)))
                _require_role(rpc)
            except Exception as error:  # noqa: BLE001 - every failure has an answer
                refusal = self._refused(method, rpc, error, started)
            else:
                _log_call(method, rpc, grpc.StatusCode.OK, started)
                yield from behavior(requests, context)
                return
            context.abort_with_status(status_of(refusal))

        return call

    def _refused(self, method: str, rpc: Rpc | None, error: Exception, started: float) -> Refusal:
        """Log a failure and return what the caller is told of it."""
        refusal = as_refusal(error)
        if isinstance(error, StoreUnavailable):
            self._on_store_unavailable()
            _log.warning("store unavailable", method=method, cause=str(error))
        if refusal.reason is ErrorReason.PEPPER_UNAVAILABLE:
            _log.error("pepper missing", method=method, **refusal.metadata)
        if refusal.reason is ErrorReason.INTERNAL_FAULT:
            _log.error("internal fault", method=method, exc_info=error, **refusal.metadata)
        _log_call(method, rpc, CODES[refusal.reason], started, error_reason=refusal.reason.name, **refusal.metadata)
        return refusal


def _require_role(rpc: Rpc) -> None:
    """Make sure that the caller may call this method. Raises Refusal (CALLER_ROLE_MISSING)."""
    roles = policy.ROLES.get(rpc.method, frozenset())
    if rpc.caller.roles.isdisjoint(roles):
        names = ", ".join(sorted(role.value for role in roles)) or "none"
        raise Refusal(
            ErrorReason.CALLER_ROLE_MISSING,
            f"{rpc.caller.caller_id} may not call {rpc.method}, which needs one of these roles: {names}",
            metadata={"caller_id": rpc.caller.caller_id, "roles": names},
        )


def _credential(context: grpc.ServicerContext) -> str:
    for name, value in context.invocation_metadata():
        if name == "authorization" and isinstance(value, str) and value[: len(_BEARER)].lower() == _BEARER:
            return value[len(_BEARER) :].strip()
    raise Refusal(ErrorReason.CALLER_CREDENTIAL_MISSING, "this call needs 'authorization: Bearer txk_svc_…' metadata")


def _parsed(raw: bytes, deserialize: Callable[[bytes], Any]) -> Any:
    if len(raw) > MAXIMUM_MESSAGE_BYTES:
        description = f"has {len(raw)} bytes, more than {MAXIMUM_MESSAGE_BYTES}"
        raise Refusal(
            ErrorReason.MESSAGE_TOO_LARGE,
            f"the message {description}",
            violations=(Violation("", description),),
        )
    try:
        return deserialize(raw)
    except DecodeError:
        description = "is not a message of the type that this RPC takes"
        raise Refusal(
            ErrorReason.MESSAGE_MALFORMED,
            f"the request {description}",
            violations=(Violation("", description),),
        ) from None


def _log_call(method: str, rpc: Rpc | None, code: grpc.StatusCode, started: float, **more: object) -> None:
    line: dict[str, object] = {
        "method": method,
        "caller": None if rpc is None else rpc.caller.caller_id,
        "code": code.name,
        "milliseconds": round((time.perf_counter() - started) * 1000, 3),
    }
    # A later part wins over an earlier one of the same name; a log that fails must not fail the call.
    _log.info("rpc", **{**more, **({} if rpc is None else rpc.notes), **line})
