"""Interceptors for gRPC servers: no method runs unless the holder of the caller's API key may do what it does.

    guard = Guard(authorizer, {"/acme.devices.v1.DeviceApi/GetDevice": Rule("devices:read", device="device_id")})
    server = guard.server(ThreadPoolExecutor())

`guard.server` is `grpc.server` with the interceptor in it, and refuses to start while the map omits a method.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Generic, TypeAlias, TypeVar

import grpc
import grpc.aio

from texture_auth.answers import unanswered
from texture_auth.authorizer import DEFAULT_TIMEOUT, Authorizes
from texture_auth.decision import Decision, Outcome, Question
from texture_auth.rechecks import Call, Clock, Rechecks, Watch
from texture_auth.rules import PUBLIC, Mode, Rule, Rules, check, check_permissions, device_reader, methods_of
from texture_auth.vantage import NOBODY, TrustedPeers, context_of_rpc
from texture_auth.verdicts import (
    KEY_HEADER,
    Hook,
    Verdict,
    Verdicts,
    checked,
    decided,
    deciding,
    failed,
    presented,
    status_of,
    too_late,
)

NO_DEVICE = "?"
"""Stands for a device that the caller does not name: no device has this id, so the answer is as for one that does not
exist, where the empty one would be a fault of the asking service."""
RECHECK_SECONDS = 60.0

_SAN = "x509_subject_alternative_name"
UNMAPPED = Decision(outcome=Outcome.DENIED, reason="METHOD_NOT_MAPPED", http_status_code=403)
_UNMAPPED_NAME = "(not in the map)"

_S = TypeVar("_S", bound=grpc.Server | grpc.aio.Server)
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class BaseGuard:
    """What guards of all kinds of gRPC server share: all but asking, and the calls themselves."""

    def __init__(
        self,
        rules: Rules,
        *,
        mode: Mode = Mode.ENFORCE,
        trusted: TrustedPeers = NOBODY,
        timeout: float = DEFAULT_TIMEOUT,
        recheck_seconds: float = RECHECK_SECONDS,
        hook: Hook | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Make a guard by a map from full method names to what they ask for.

        `timeout` (seconds) bounds a question beside the deadline of the call that it is about. Streams are asked about
        again after `recheck_seconds`, or sooner where time alone may change the answer. Raises MapError for rules
        that ask for what there is not.
        """
        if recheck_seconds <= 0 or timeout <= 0:
            raise ValueError("seconds must be more than none")
        check_permissions(rules)
        self.rules = dict(rules)
        self.clock = clock or Clock()
        self._mode = mode
        self._trusted = trusted
        self._timeout = timeout
        self._recheck_seconds = recheck_seconds
        self._verdicts = Verdicts(hook)
        self._wrapped: dict[str, tuple[Handler, Handler]] = {}

    def counts(self) -> Mapping[tuple[str, str, bool], int]:
        """Return how many verdicts there were, by method, reason, and whether the call went on."""
        return self._verdicts.counts()

    def check_services(self, services: Iterable[str]) -> None:
        """Raise MapError, unless the map names exactly the methods of these services, by their full names."""
        check(self.rules, itertools.chain.from_iterable(methods_of(service) for service in services))

    def wrapped(self, method: str, handler: Handler, wrap: Callable[[str, Rule, Handler], Handler]) -> Handler | None:
        """Return what serves a method instead of its handler; None for one that the map does not name."""
        rule = self.rules.get(method)
        if rule is None:
            self._verdicts.tell(Verdict(method=_UNMAPPED_NAME, permission="", decision=UNMAPPED, mode=Mode.ENFORCE))
            return None
        if rule is PUBLIC:
            return handler
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, wrap(method, rule, handler))
        return known[1]

    def call(self, method: str, rule: Rule, context: Any) -> Call:
        """Return what a call is, by its servicer context."""
        metadata = context.invocation_metadata() or ()
        names = [name.decode(errors="replace") for name in context.auth_context().get(_SAN, ())]
        return Call(
            method=method,
            rule=rule,
            mode=rule.mode or self._mode,
            key=presented([value for name, value in metadata if name == KEY_HEADER]),
            context=context_of_rpc(context.peer(), names, metadata, self._trusted),
        )

    def watch(self, call: Call, stream: Any) -> Watch:
        """Return what is to be known of a stream."""
        return Watch(call, stream, self._recheck_seconds)

    def time_to_ask(self, remaining: float | None) -> float:
        """Return for how long a question may take, by how much time its call has left: none when that is past."""
        return self._timeout if remaining is None else min(self._timeout, remaining)

    def tell(self, call: Call, decision: Decision, *, recheck: bool = False) -> bool:
        """Tell of a decision, and return whether the call goes on."""
        verdict = Verdict(
            method=call.method, permission=call.rule.permission, decision=decision, mode=call.mode, recheck=recheck
        )
        self._verdicts.tell(verdict)
        return verdict.passed

    def tell_recheck(self, call: Call, decision: Decision) -> bool:
        """Tell of the decision of a re-check, and return whether the call goes on."""
        return self.tell(call, decision, recheck=True)


def all_answers(questions: Sequence[Question], answers: Iterable[object]) -> list[Decision]:
    """Return the answers to many questions: that many, whatever came."""
    found = [checked(answer) for answer in answers]
    if len(found) == len(questions):
        return found
    return [unanswered("ANSWER_UNKNOWN", "there are not as many answers as questions")] * len(questions)


class Guard(BaseGuard):
    """Guards a sync server."""

    def __init__(self, authorizer: Authorizes, rules: Rules, **settings: Any) -> None:
        """Take what answers, the map, and the settings of BaseGuard."""
        super().__init__(rules, **settings)
        self._authorizer = authorizer
        self.rechecks = Rechecks(self._ask_many, self.tell_recheck, self.clock)

    def server(
        self, thread_pool: ThreadPoolExecutor, *, interceptors: Sequence[Any] = (), **options: Any
    ) -> grpc.Server:
        """Return what `grpc.server` does, guarded; its `start` raises MapError unless the map is whole.

        Other interceptors see only calls that were let on. A stream of responses occupies a thread of the pool for as
        long as its handler runs, as without a guard, and no more than that.
        """
        return _Server(self, grpc.server(thread_pool, interceptors=[_Interceptor(self), *interceptors], **options))

    def interceptor(self, services: Iterable[str]) -> grpc.ServerInterceptor:
        """Return the interceptor for a server made elsewhere, given the full names of all services that it serves.

        Raises MapError unless the map is whole.
        """
        self.check_services(services)
        return _Interceptor(self)

    def ask(self, call: Call, device: str, remaining: float | None) -> Decision:
        """Return the decision about a call."""
        timeout = self.time_to_ask(remaining)
        if isinstance(call.key, Decision):
            return call.key
        if timeout <= 0:
            return too_late()
        try:
            return checked(
                self._authorizer.authorize(call.key, call.rule.permission, device, call.context, timeout=timeout)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            return failed(error)

    def _ask_many(self, questions: Sequence[Question]) -> list[Decision]:
        try:
            answers = self._authorizer.authorize_many(questions, timeout=self.time_to_ask(None))
            return all_answers(questions, answers)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            return [failed(error)] * len(questions)


class _Interceptor(grpc.ServerInterceptor):
    def __init__(self, guard: Guard) -> None:
        self._guard = guard

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Handler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = continuation(handler_call_details)
        if handler is None:
            return None
        return self._guard.wrapped(handler_call_details.method, handler, self._wrap) or _unmapped()

    def _wrap(self, method: str, rule: Rule, handler: Handler) -> Handler:
        guard = self._guard
        converters = (handler.request_deserializer, handler.response_serializer)
        if not handler.request_streaming and not handler.response_streaming:
            return grpc.unary_unary_rpc_method_handler(_answering(guard, method, rule, handler), *converters)
        shape = (
            grpc.stream_stream_rpc_method_handler if handler.request_streaming else grpc.unary_stream_rpc_method_handler
        )
        return shape(_streaming(guard, method, rule, handler), *converters)


def _unmapped() -> Handler:
    def refuse(_requests: Any, context: grpc.ServicerContext) -> Any:
        context.abort_with_status(status_of(UNMAPPED))

    # Of this shape none has to wait for a request.
    return grpc.stream_unary_rpc_method_handler(refuse)


def _answering(guard: Guard, method: str, rule: Rule, handler: Handler) -> Callable[[Any, grpc.ServicerContext], Any]:
    inner = handler.unary_unary
    device_of = device_reader(rule)

    def behave(request: Any, context: grpc.ServicerContext) -> Any:
        call = guard.call(method, rule, context)
        device = "" if device_of is None else device_of(request) or NO_DEVICE
        decision = guard.ask(call, device, context.time_remaining())
        if not guard.tell(call, decision):
            context.abort_with_status(status_of(decision))
        with deciding(decision):
            return inner(request, context)  # type: ignore[misc]

    return behave


def _streaming(guard: Guard, method: str, rule: Rule, handler: Handler) -> Callable[..., Any]:
    """Return what serves a stream.

    It has grpcio's form for behaviours that answer through a callback, which any thread may call: so a stream can be
    ended while its handler's thread is blocked. To the client, one response by this form is what a unary one is.
    """
    device_of = device_reader(rule)

    def behave(argument: Any, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        stream = _Stream(guard, guard.call(method, rule, context), context, send)
        with deciding(None):
            stream.serve(handler, argument, device_of)

    behave.experimental_non_blocking = True  # type: ignore[attr-defined]
    return behave


class _RefusedError(Exception):
    """Ends a handler whose stream has been refused."""


class _Stream:
    def __init__(self, guard: Guard, call: Call, context: grpc.ServicerContext, send: Callable[[Any], None]) -> None:
        self._guard = guard
        self._call = call
        self._context = context
        self._send = send
        self._watch = guard.watch(call, self)
        self._lock = threading.Lock()
        self._over = False

    def serve(self, handler: Handler, argument: Any, device_of: Callable[[Any], str] | None) -> None:
        try:
            admitted = self._admitted(handler, argument, device_of)
            if handler.response_streaming:
                self._respond(handler, admitted)
            else:
                self._respond_once(handler, admitted)
        except Exception:
            # A stream that has been refused has its error.
            if self._finish():
                raise
        finally:
            self._guard.rechecks.remove(self._watch)
        if self._finish():
            self._send(None)

    def refuse(self, decision: Decision) -> None:
        self._guard.rechecks.remove(self._watch)
        if not self._finish() or not self._context.is_active():
            return
        status = status_of(decision)
        self._context.set_code(status.code)
        self._context.set_details(status.details)
        self._context.set_trailing_metadata(status.trailing_metadata)
        self._send(None)

    def _finish(self) -> bool:
        """Tell whether it is for the one who asks to end the stream."""
        with self._lock:
            first, self._over = not self._over, True
        return first

    def _admitted(self, handler: Handler, argument: Any, device_of: Callable[[Any], str] | None) -> Any:
        """Return what the handler is called with, once the stream may begin."""
        if device_of is None:
            self._admit("")
            return argument
        if not handler.request_streaming:
            self._admit(device_of(argument) or NO_DEVICE)
            return argument
        requests = self._checked(argument, device_of)
        # The handler may answer before it reads, so the first request is looked at before it runs.
        first = list(itertools.islice(requests, 1))
        if not first:
            self._admit(NO_DEVICE)
        return itertools.chain(first, requests)

    def _checked(self, requests: Iterator[Any], device_of: Callable[[Any], str]) -> Iterator[Any]:
        for request in requests:
            self._admit(device_of(request) or NO_DEVICE)
            yield request

    def _admit(self, device: str) -> None:
        decision = self._watch.fresh(device, self._guard.clock.now())
        if decision is None:
            decision = self._guard.ask(self._call, device, self._context.time_remaining())
            if not self._guard.tell(self._call, decision):
                self.refuse(decision)
            else:
                self._watch.learn(device, decision, self._guard.clock.now())
                self._guard.rechecks.put(self._watch)
        if self._over:
            raise _RefusedError
        decided(decision)

    def _respond(self, handler: Handler, argument: Any) -> None:
        serve = handler.stream_stream if handler.request_streaming else handler.unary_stream
        for response in serve(argument, self._context):  # type: ignore[misc]
            if self._over or response is None or not self._context.is_active():
                return
            self._send(response)

    def _respond_once(self, handler: Handler, argument: Any) -> None:
        response = handler.stream_unary(argument, self._context)  # type: ignore[misc]
        if self._over:
            return
        if response is None:
            raise TypeError("the handler returned no response")
        self._send(response)


class Served:
    """The methods that a server was given to serve."""

    def __init__(self) -> None:
        self._methods: dict[str, list[str]] = {}

    def register(self, service: str, handlers: Iterable[str]) -> None:
        """Note a service whose methods are told."""
        self._methods[service] = [f"/{service}/{name}" for name in handlers]

    def note(self, handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Note services whose methods are not told. What names no service is noticed when it is called, and refused."""
        for handler in handlers:
            if isinstance(handler, grpc.ServiceRpcHandler):
                self._methods.setdefault(handler.service_name(), [])

    def methods(self) -> list[str]:
        """Return the full names of all methods. Raises MapError for a service that is neither told nor described."""
        return [name for service, told in self._methods.items() for name in told or methods_of(service)]


class NotingServer(Generic[_S]):
    """A server that notes what it is to serve, and starts only if the map names all of it."""

    def __init__(self, guard: BaseGuard, server: _S) -> None:
        self._guard = guard
        self._server: _S = server
        self._served = Served()

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Note services, and serve them."""
        handlers = tuple(generic_rpc_handlers)
        self._served.note(handlers)
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Note a service, and serve it."""
        self._served.register(service_name, method_handlers)
        self._server.add_registered_method_handlers(service_name, method_handlers)

    def add_insecure_port(self, address: str) -> int:
        """Listen, and return the port."""
        return self._server.add_insecure_port(address)

    def add_secure_port(self, address: str, server_credentials: grpc.ServerCredentials) -> int:
        """Listen with TLS, and return the port."""
        return self._server.add_secure_port(address, server_credentials)


class _Server(NotingServer[grpc.Server], grpc.Server):
    def start(self) -> None:
        check(self._guard.rules, self._served.methods())
        self._server.start()

    def stop(self, grace: float | None) -> threading.Event:
        return self._server.stop(grace)

    def wait_for_termination(self, timeout: float | None = None) -> bool:
        return self._server.wait_for_termination(timeout)
