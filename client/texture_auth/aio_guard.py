"""What `texture_auth.guard` is for sync servers, for `grpc.aio` ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

import grpc
import grpc.aio

from texture_auth.aio import AuthorizesAsync
from texture_auth.decision import Decision, Question
from texture_auth.guard import NO_DEVICE, UNMAPPED, BaseGuard, Handler, NotingServer, all_answers
from texture_auth.rechecks import AsyncRechecks, Call
from texture_auth.rules import Rule, Rules, check, device_reader
from texture_auth.verdicts import checked, decided, deciding, failed, status_of, too_late


class AsyncGuard(BaseGuard):
    """Guards an aio server. Its handlers must be coroutines or async generators."""

    def __init__(self, authorizer: AuthorizesAsync, rules: Rules, **settings: Any) -> None:
        """Take what answers, the map, and the settings of BaseGuard."""
        super().__init__(rules, **settings)
        self._authorizer = authorizer
        self.rechecks = AsyncRechecks(self._ask_many, self.tell_recheck, self.clock)

    def server(self, *, interceptors: Sequence[Any] = (), **options: Any) -> grpc.aio.Server:
        """Return what `grpc.aio.server` does, guarded; its `start` raises MapError unless the map is whole.

        Other interceptors see only calls that were let on.
        """
        return _Server(self, grpc.aio.server(interceptors=[_Interceptor(self), *interceptors], **options))

    def interceptor(self, services: Iterable[str]) -> grpc.aio.ServerInterceptor:
        """Return the interceptor for a server made elsewhere, given the full names of all services that it serves.

        Raises MapError unless the map is whole.
        """
        self.check_services(services)
        return _Interceptor(self)

    async def ask(self, call: Call, device: str, remaining: float | None) -> Decision:
        """Return the decision about a call."""
        timeout = self.time_to_ask(remaining)
        if isinstance(call.key, Decision):
            return call.key
        if timeout <= 0:
            return too_late()
        try:
            return checked(
                await self._authorizer.authorize(call.key, call.rule.permission, device, call.context, timeout=timeout)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            return failed(error)

    async def _ask_many(self, questions: Sequence[Question]) -> list[Decision]:
        try:
            answers = await self._authorizer.authorize_many(questions, timeout=self.time_to_ask(None))
            return all_answers(questions, answers)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            return [failed(error)] * len(questions)


class _Interceptor(grpc.aio.ServerInterceptor):
    def __init__(self, guard: AsyncGuard) -> None:
        self._guard = guard

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None
        return self._guard.wrapped(handler_call_details.method, handler, self._wrap) or _unmapped()

    def _wrap(self, method: str, rule: Rule, handler: Handler) -> Handler:
        make, inner = _shape(handler)
        if not handler.request_streaming and not handler.response_streaming:
            behave = _answering(self._guard, method, rule, inner)
        else:
            behave = _streaming(self._guard, method, rule, handler, inner)
        made: Handler = make(behave, handler.request_deserializer, handler.response_serializer)
        return made


def _shape(handler: Handler) -> tuple[Any, Any]:
    """Return what makes a handler of the shape of this one, and this one's behaviour."""
    if handler.request_streaming:
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler, handler.stream_stream
        return grpc.stream_unary_rpc_method_handler, handler.stream_unary
    if handler.response_streaming:
        return grpc.unary_stream_rpc_method_handler, handler.unary_stream
    return grpc.unary_unary_rpc_method_handler, handler.unary_unary


async def _abort(context: Any, decision: Decision) -> None:
    status = status_of(decision)
    await context.abort(status.code, status.details, status.trailing_metadata)


def _unmapped() -> Handler:
    async def refuse(_requests: Any, context: Any) -> None:
        await _abort(context, UNMAPPED)

    # Of this shape none has to wait for a request.
    return grpc.stream_unary_rpc_method_handler(refuse)


def _answering(guard: AsyncGuard, method: str, rule: Rule, inner: Any) -> Callable[[Any, Any], Awaitable[Any]]:
    device_of = device_reader(rule)

    async def behave(request: Any, context: Any) -> Any:
        call = guard.call(method, rule, context)
        device = "" if device_of is None else device_of(request) or NO_DEVICE
        decision = await guard.ask(call, device, context.time_remaining())
        if not guard.tell(call, decision):
            await _abort(context, decision)
        with deciding(decision):
            return await inner(request, context)

    return behave


def _streaming(
    guard: AsyncGuard, method: str, rule: Rule, handler: Handler, inner: Any
) -> Callable[[Any, Any], Awaitable[Any]]:
    device_of = device_reader(rule)

    async def behave(argument: Any, context: Any) -> Any:
        stream = _Stream(guard, guard.call(method, rule, context), context)
        with deciding(None):
            return await stream.serve(handler, inner, argument, device_of)

    return behave


class _RefusedError(Exception):
    """Says that a stream has been refused before it began."""


class _Stream:
    def __init__(self, guard: AsyncGuard, call: Call, context: Any) -> None:
        self._guard = guard
        self._call = call
        self._context = context
        self._watch = guard.watch(call, self)
        self._refused: asyncio.Future[Decision] = asyncio.get_running_loop().create_future()

    async def serve(self, handler: Handler, inner: Any, argument: Any, device_of: Callable[[Any], str] | None) -> Any:
        try:
            try:
                admitted, context = await self._admitted(handler, argument, device_of)
            except _RefusedError:
                return await _abort(self._context, self._refused.result())
            return await self._watched(asyncio.ensure_future(_run(inner, handler, admitted, context)))
        finally:
            self._guard.rechecks.remove(self._watch)

    def refuse(self, decision: Decision) -> None:
        self._guard.rechecks.remove(self._watch)
        if not self._refused.done():
            self._refused.set_result(decision)

    async def admit(self, device: str) -> None:
        """Return once a device may be asked for on this stream. Raises _RefusedError when it may not."""
        decision = self._watch.fresh(device, self._guard.clock.now())
        if decision is None:
            decision = await self._guard.ask(self._call, device, self._context.time_remaining())
            if not self._guard.tell(self._call, decision):
                self.refuse(decision)
            elif not self._refused.done():
                self._watch.learn(device, decision, self._guard.clock.now())
                self._guard.rechecks.put(self._watch)
        if self._refused.done():
            raise _RefusedError
        decided(decision)

    async def _admitted(
        self, handler: Handler, argument: Any, device_of: Callable[[Any], str] | None
    ) -> tuple[Any, Any]:
        """Return what the handler is called with, once the stream may begin."""
        if device_of is None:
            await self.admit("")
            return argument, self._context
        if not handler.request_streaming:
            await self.admit(device_of(argument) or NO_DEVICE)
            return argument, self._context
        requests = _Requests(self, self._context, device_of)
        await requests.begin()
        return aiter(requests), _ReadingContext(self._context, requests)

    async def _watched(self, work: asyncio.Future[Any]) -> Any:
        """Return what the handler does, unless the stream is refused before: then its end is not waited for."""
        try:
            await asyncio.wait({work, self._refused}, return_when=asyncio.FIRST_COMPLETED)
            if self._refused.done():
                await _abort(self._context, self._refused.result())
            return await work
        finally:
            if not work.done():
                work.cancel()
                await asyncio.wait({work})
            if not work.cancelled():
                work.exception()


async def _run(inner: Any, handler: Handler, argument: Any, context: Any) -> Any:
    answering = inner(argument, context)
    if not handler.response_streaming or not hasattr(answering, "__aiter__"):
        return await answering
    async for response in answering:
        await context.write(response)
    return None


class _Requests:
    """The requests of a stream, each of them looked at before the handler sees it."""

    def __init__(self, stream: _Stream, context: Any, device_of: Callable[[Any], str]) -> None:
        self._stream = stream
        self._context = context
        self._device_of = device_of
        self._ahead: list[Any] = []

    async def begin(self) -> None:
        """Look at the first request: the handler may answer before it reads."""
        self._ahead = [await self._next()]
        if self._ahead[0] is grpc.aio.EOF:
            await self._stream.admit(NO_DEVICE)

    async def read(self) -> Any:
        if self._ahead:
            return self._ahead.pop()
        try:
            return await self._next()
        except _RefusedError:
            # To the handler it is as if the client had gone: it is cancelled here.
            return await asyncio.get_running_loop().create_future()

    async def __aiter__(self) -> AsyncIterator[Any]:
        while (request := await self.read()) is not grpc.aio.EOF:
            yield request

    async def _next(self) -> Any:
        request = await self._context.read()
        if request is not grpc.aio.EOF:
            await self._stream.admit(self._device_of(request) or NO_DEVICE)
        return request


class _ReadingContext:
    """A servicer context by which nothing can be read that was not looked at."""

    def __init__(self, context: Any, requests: _Requests) -> None:
        self._context = context
        self.read = requests.read

    def __getattr__(self, name: str) -> Any:
        return getattr(self._context, name)


class _Server(NotingServer[grpc.aio.Server], grpc.aio.Server):
    async def start(self) -> None:
        check(self._guard.rules, self._served.methods())
        await self._server.start()

    async def stop(self, grace: float | None) -> None:
        await self._server.stop(grace)

    async def wait_for_termination(self, timeout: float | None = None) -> bool:  # noqa: ASYNC109 - grpcio's
        return await self._server.wait_for_termination(timeout)
