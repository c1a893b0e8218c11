"""Where calls wait for their message.

gRPC hands a call to a pool once its headers are here, and has the thread that takes it ask for the message and wait for
it. Yet the message is all but always there by then, and the waiting costs two switches of threads: a fifth of what
grpcio takes for a call. An entrance asks for the message first, and hands a call on that has it. No thread is spent on
a call without one, unless it does not come for a moment: then one finds out whether the caller may call at all, and
waits with a limit.

This uses the inside of grpcio, which is why `pyproject.toml` names its release, and `tests/wire/test_arrivals.py` holds
the release to it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc import _server as inside
from grpc._cython import cygrpc  # type: ignore[attr-defined]

from server.domain.errors import ErrorReason, Refusal
from server.wire.desks import HANDED_ON, Desk, Lane

_LOOK_SECONDS = 0.05


class Expected(Iterator[bytes]):
    """The one message of a call, of which gRPC has been asked."""

    def __init__(self, state: Any) -> None:
        self._state = state
        self._message: bytes | None = None
        self.here = False

    def arrive(self) -> None:
        """Take what gRPC has received: a message, or nothing, where the call ended without."""
        with self._state.condition:
            self._message, self._state.request = self._state.request, None
            self.here = True
            self._state.condition.notify_all()

    def __next__(self) -> bytes:
        """Return the message, waiting for it. Raises grpc.RpcError where the call was taken back."""
        with self._state.condition:
            while not self.here:
                self._state.condition.wait()
        message, self._message = self._message, None
        if message is not None:
            return message
        if self._state.client == "cancelled":
            raise grpc.RpcError
        raise StopIteration


@dataclass(frozen=True, slots=True)
class _Wait:
    """A thread that waits for a message, until when, and of which desk it is."""

    due: float
    began: float
    desk: Desk | None


class Arrivals:
    """Sees to calls whose message does not arrive: none waits for ever, nor keeps others from a thread for long."""

    def __init__(self) -> None:
        self._expected: dict[Expected, tuple[float, Callable[[], None]]] = {}
        self._waiting: dict[grpc.ServicerContext, _Wait] = {}
        # Of the rest, those that have stepped aside. They are few, so these have a lock.
        self._aside: dict[grpc.ServicerContext, _Wait] = {}
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="arrivals", daemon=True)

    def start(self) -> None:
        """Begin to watch."""
        self._thread.start()

    def stop(self) -> None:
        """Watch no more."""
        self._stopping.set()

    def expect(self, message: Expected, hand_on: Callable[[], None]) -> None:
        """Have a call handed on once its message has `arrived`, or after a moment without."""
        # One operation on a dictionary is one step to all threads, so this needs no lock.
        self._expected[message] = time.monotonic(), hand_on

    def arrived(self, message: Expected) -> None:
        """Hand on a call whose message is here, unless it was already."""
        expected = self._expected.pop(message, None)
        if expected is not None:
            expected[1]()

    def receive(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, seconds: float, desk: Desk | None = None
    ) -> bytes:
        """Return the one message of a call. A thread that waits for more than a moment for it steps aside.

        Raises Refusal: DEADLINE_TOO_SHORT where it does not come in time, MESSAGE_MALFORMED where there is none.
        """
        if isinstance(messages, Expected) and messages.here:
            return _next(messages, seconds)
        now = time.monotonic()
        self._waiting[context] = _Wait(now + seconds, now, desk)
        try:
            return _next(messages, seconds)
        finally:
            if self._waiting.pop(context, None) is None:
                with self._lock:
                    del self._aside[context]
                if desk is not None:
                    desk.step_back()

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            now = time.monotonic()
            for message, (began, _) in self._expected.copy().items():
                if now > began + _LOOK_SECONDS:
                    self.arrived(message)
            for context, wait in self._waiting.copy().items():
                if now > wait.began + _LOOK_SECONDS:
                    self._step_aside(context)
            with self._lock:
                late = [context for context, wait in self._aside.items() if now > wait.due]
            for context in late:
                context.cancel()

    def _step_aside(self, context: grpc.ServicerContext) -> None:
        with self._lock:
            wait = self._waiting.pop(context, None)
            if wait is None:
                return
            self._aside[context] = wait
        if wait.desk is not None:
            wait.desk.step_aside()


def _next(messages: Iterator[bytes], seconds: float) -> bytes:
    try:
        return next(messages)
    except StopIteration:
        raise Refusal(ErrorReason.MESSAGE_MALFORMED, "the request ends without a message") from None
    except grpc.RpcError:
        raise Refusal(
            ErrorReason.DEADLINE_TOO_SHORT, f"the message did not arrive within {seconds:.1f} s, or was taken back"
        ) from None


class Entrance(ThreadPoolExecutor):
    """The pool that gRPC hands the calls of a method and a lane to, as ones that receive a stream. It starts no thread.

    They go on to the lane with their message or, where as many wait there as may, to be refused by `refuse` on a pool
    that waits for no calls.
    """

    def __init__(
        self, lane: Lane, arrivals: Arrivals, refuse: Callable[..., Any], refusing_pool: ThreadPoolExecutor
    ) -> None:
        super().__init__(max_workers=1)
        self._lane = lane
        self._arrivals = arrivals
        self._refuse = refuse
        self._refusing_pool = refusing_pool

    def submit(self, function: Callable[..., Any], /, *args: Any, **_: Any) -> Future[Any]:
        """Ask for the message of a call, and hand it on later. The future that is returned tells nothing of it.

        It is called on gRPC's own thread, under the lock of the call.
        """
        work, event, state, behavior, _messages, *serializers = args
        message = Expected(state)

        def hand_on() -> None:
            pool, behave = (self._refusing_pool, self._refuse) if self._lane.full else (self._lane, behavior)
            pool.submit(function, work, event, state, behave, lambda: message, *serializers)

        receive = inside._receive_message(state, event.call, None)  # noqa: SLF001 - see above

        def arrive(received: Any) -> Any:
            done = receive(received)
            message.arrive()
            self._arrivals.arrived(message)
            return done

        self._arrivals.expect(message, hand_on)
        event.call.start_server_batch((cygrpc.ReceiveMessageOperation(0),), arrive)
        state.due.add(inside._RECEIVE_MESSAGE_TOKEN)  # noqa: SLF001
        return HANDED_ON
