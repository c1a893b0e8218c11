"""A service with a method of every shape, servers that guard it, and what stands for an authorizer."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import grpc.aio
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from texture_auth import AuthorizedKey, Context, Decision, DeviceScope, Outcome, Question
from texture_auth.aio_guard import AsyncGuard
from texture_auth.answers import unanswered
from texture_auth.guard import BaseGuard, Guard
from texture_auth.rechecks import Clock
from texture_auth.rules import Rule, Rules
from texture_auth.verdicts import current_decision

SERVICE = "texture.tests.guard.Shapes"
_GLANCE = 0.01
_PATIENCE = 30
KEY = "txk_srv_a-key-that-nobody-holds"


def _described() -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="tests/guard.proto", package="texture.tests.guard", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    device = file.message_type.add(name="Device")
    device.field.add(name="id", number=1, type=types.TYPE_STRING, label=types.LABEL_OPTIONAL)
    request = file.message_type.add(name="Request")
    request.field.add(name="device_id", number=1, type=types.TYPE_STRING, label=types.LABEL_OPTIONAL)
    nested = request.field.add(name="device", number=2, type=types.TYPE_MESSAGE, label=types.LABEL_OPTIONAL)
    nested.type_name = ".texture.tests.guard.Device"
    request.field.add(name="count", number=3, type=types.TYPE_INT32, label=types.LABEL_OPTIONAL)
    request.field.add(name="device_ids", number=4, type=types.TYPE_STRING, label=types.LABEL_REPEATED)
    response = file.message_type.add(name="Response")
    response.field.add(name="text", number=1, type=types.TYPE_STRING, label=types.LABEL_OPTIONAL)
    service = file.service.add(name="Shapes")
    for name, (client_streams, server_streams) in STREAMS.items():
        service.method.add(
            name=name,
            input_type=".texture.tests.guard.Request",
            output_type=".texture.tests.guard.Response",
            client_streaming=client_streams,
            server_streaming=server_streams,
        )
    pool = descriptor_pool.Default()
    pool.Add(file)
    return pool


STREAMS = {
    "Get": (False, False),
    "List": (False, False),
    "Follow": (False, True),
    "Upload": (True, False),
    "Talk": (True, True),
}
_pool = _described()
Request: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("texture.tests.guard.Request"))
Response: Any = message_factory.GetMessageClass(_pool.FindMessageTypeByName("texture.tests.guard.Response"))


def path(name: str) -> str:
    return f"/{SERVICE}/{name}"


RULES: Rules = {
    path("Get"): Rule("devices:read", device="device.id"),
    path("List"): Rule("devices:list"),
    path("Follow"): Rule("devices:read", device="device_id"),
    path("Upload"): Rule("devices:command", device="device_id"),
    path("Talk"): Rule("devices:command", device="device_id"),
}

_MAKERS: dict[tuple[bool, bool], Any] = {
    (False, False): grpc.unary_unary_rpc_method_handler,
    (False, True): grpc.unary_stream_rpc_method_handler,
    (True, False): grpc.stream_unary_rpc_method_handler,
    (True, True): grpc.stream_stream_rpc_method_handler,
}


def register(server: Any, behaviours: dict[str, Callable[..., Any]]) -> None:
    """Register behaviours as generated code does."""
    handlers = {
        name: _MAKERS[STREAMS[name]](behave, Request.FromString, Response.SerializeToString)
        for name, behave in behaviours.items()
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    server.add_registered_method_handlers(SERVICE, handlers)


class Stub:
    """Calls a method of any shape, with a key unless told otherwise."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel

    def call(
        self, name: str, request: Any, *, key: str | None = KEY, metadata: Sequence[Any] = (), **options: Any
    ) -> Any:
        maker = {
            (False, False): self._channel.unary_unary,
            (False, True): self._channel.unary_stream,
            (True, False): self._channel.stream_unary,
            (True, True): self._channel.stream_stream,
        }[STREAMS[name]]
        keys = () if key is None else (("texture-api-key", key),)
        options.setdefault("timeout", 30)
        return maker(path(name), Request.SerializeToString, Response.FromString)(
            request, metadata=(*keys, *metadata), **options
        )


def allowed(**changes: Any) -> Decision:
    return Decision(
        outcome=Outcome.ALLOWED,
        reason="PERMITTED",
        http_status_code=200,
        key=AuthorizedKey(key_id="Key0000000000001", kind="SERVER", workspace_id="acme"),
        device_scope=DeviceScope(workspace_id="acme"),
        decision_id="decision-1",
        **changes,
    )


def denied(reason: str, http_status_code: int, missing_permission: str = "") -> Decision:
    return Decision(
        outcome=Outcome.DENIED,
        reason=reason,
        http_status_code=http_status_code,
        missing_permission=missing_permission,
        decision_id="decision-2",
    )


UNANSWERED = unanswered("STORE_UNAVAILABLE", "the database is away", grpc.StatusCode.UNAVAILABLE)


@dataclass
class Oracle:
    """An authorizer that answers as it is told, and keeps what it was asked."""

    answer: Callable[[Question], Any] = lambda _question: allowed()
    asked: list[Question] = field(default_factory=list)
    timeouts: list[float | None] = field(default_factory=list)

    def authorize(
        self,
        api_key: str,
        permission: str,
        device_id: str = "",
        context: Context | None = None,
        *,
        timeout: float | None = None,
        **_options: Any,
    ) -> Decision:
        question = Question(api_key=api_key, permission=permission, device_id=device_id, context=context)
        return self.authorize_many([question], timeout=timeout)[0]

    def authorize_many(
        self, questions: Sequence[Question], *, timeout: float | None = None, **_options: Any
    ) -> list[Decision]:
        self.asked += questions
        self.timeouts.append(timeout)
        return [self.answer(question) for question in questions]

    def says(self, decision: Decision) -> None:
        """Answer everything with this from now on."""
        self.answer = lambda _question: decision


class AsyncOracle:
    """The same for event loops."""

    def __init__(self, oracle: Oracle) -> None:
        self._oracle = oracle

    async def authorize(self, *question: Any, **options: Any) -> Decision:
        return self._oracle.authorize(*question, **options)

    async def authorize_many(self, questions: Sequence[Question], **options: Any) -> list[Decision]:
        return self._oracle.authorize_many(questions, **options)


class TurnedTime(Clock):
    """A time that stands still until it is turned. Who waits for it looks again and again."""

    def __init__(self) -> None:
        self.time = 1_000.0

    def now(self) -> float:
        return self.time

    def wait(self, condition: threading.Condition, seconds: float) -> None:  # noqa: ARG002
        super().wait(condition, _GLANCE)

    async def wait_async(self, event: asyncio.Event, seconds: float) -> None:  # noqa: ARG002
        await super().wait_async(event, _GLANCE)


@dataclass
class Handlers:
    """What is behind the guard, in both forms. Notes what it came to see; `more` lets those go on that wait."""

    ran: list[str] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    more: threading.Event = field(default_factory=threading.Event)

    def sync(self) -> dict[str, Callable[..., Any]]:
        def follow(request: Any, context: Any) -> Iterator[Any]:
            yield self._one("Follow", request.device_id)
            self.more.wait(_PATIENCE)
            yield Response(text="more")

        def upload(requests: Iterator[Any], context: Any) -> Any:
            self.ran.append("Upload")
            return Response(text=" ".join(self._look(request) for request in requests))

        def talk(requests: Iterator[Any], context: Any) -> Iterator[Any]:
            self.ran.append("Talk")
            yield Response(text="welcome")
            for request in requests:
                yield Response(text=self._look(request))

        return {
            "Get": lambda request, _context: self._one("Get", request.device.id),
            "List": lambda _request, _context: self._one("List", ""),
            "Follow": follow,
            "Upload": upload,
            "Talk": talk,
        }

    def aio(self) -> dict[str, Callable[..., Any]]:
        async def get(request: Any, context: Any) -> Any:
            return self._one("Get", request.device.id)

        async def list_(request: Any, context: Any) -> Any:
            return self._one("List", "")

        async def follow(request: Any, context: Any) -> AsyncIterator[Any]:
            yield self._one("Follow", request.device_id)
            await asyncio.get_running_loop().run_in_executor(None, self.more.wait, _PATIENCE)
            yield Response(text="more")

        async def upload(requests: AsyncIterator[Any], context: Any) -> Any:
            self.ran.append("Upload")
            return Response(text=" ".join([self._look(request) async for request in requests]))

        # In the form that reads and writes by itself.
        async def talk(_requests: Any, context: Any) -> None:
            self.ran.append("Talk")
            await context.write(Response(text="welcome"))
            while (request := await context.read()) is not grpc.aio.EOF:
                await context.write(Response(text=self._look(request)))

        return {"Get": get, "List": list_, "Follow": follow, "Upload": upload, "Talk": talk}

    def _one(self, name: str, device_id: str) -> Any:
        self.ran.append(name)
        self.seen.append(device_id)
        return Response(text=_reason())

    def _look(self, request: Any) -> str:
        self.seen.append(request.device_id)
        return f"{request.device_id}:{_reason()}"


def _reason() -> str:
    decision = current_decision()
    return "" if decision is None else decision.reason


@dataclass(frozen=True)
class Guarded:
    """A running server of the service, the guard of it, and what is on both sides."""

    guard: BaseGuard
    oracle: Oracle
    handlers: Handlers
    time: TurnedTime
    stub: Stub
    channel: grpc.Channel


@contextmanager
def guarded(form: str, **settings: Any) -> Iterator[Guarded]:
    """Serve by a `sync` server or an `aio` one. Settings are those of its guard; `authorizer` answers, if given."""
    oracle, handlers, time = Oracle(), Handlers(), TurnedTime()
    settings = {"rules": RULES, "clock": time, **settings}
    authorizer = settings.pop("authorizer", None)
    guard: Guard | AsyncGuard
    if form == "sync":
        guard = Guard(authorizer or oracle, **settings)
        running = _serving(guard, handlers)
    else:
        guard = AsyncGuard(authorizer or AsyncOracle(oracle), **settings)
        running = _serving_aio(guard, handlers)
    with running as port, grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield Guarded(guard, oracle, handlers, time, Stub(channel), channel)
        handlers.more.set()


@contextmanager
def _serving(guard: Guard, handlers: Handlers) -> Iterator[int]:
    with ThreadPoolExecutor(8) as threads:
        server = guard.server(threads)
        register(server, handlers.sync())
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            yield port
        finally:
            server.stop(None).wait()


@contextmanager
def _serving_aio(guard: AsyncGuard, handlers: Handlers) -> Iterator[int]:
    started: queue.SimpleQueue[Any] = queue.SimpleQueue()

    async def serve() -> None:
        server = guard.server()
        register(server, handlers.aio())
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        over = asyncio.Event()
        started.put((port, asyncio.get_running_loop(), over))
        await over.wait()
        await server.stop(None)

    thread = threading.Thread(target=asyncio.run, args=(serve(),))
    thread.start()
    port, loop, over = started.get(timeout=_PATIENCE)
    try:
        yield port
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join()


@contextmanager
def logged() -> Iterator[list[logging.LogRecord]]:
    """Collect what guards log."""
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign, assignment]
    logger = logging.getLogger("texture_auth.guard")
    logger.addHandler(handler)
    try:
        yield records
    finally:
        logger.removeHandler(handler)
