"""What a server takes on: how many calls at once, for how long, how large, over how many connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import grpc

from server.domain.errors import ErrorReason, Refusal
from server.wire.desks import Desk

# What a request may weigh. gRPC itself refuses far larger ones, without saying which field is to blame.
MAXIMUM_MESSAGE_BYTES = 1024 * 1024
# What the metadata of a request may weigh: the default of gRPC's own clients for what they accept.
MAXIMUM_METADATA_BYTES = 8 * 1024
# How many calls one connection may have under way; more wait at the client.
STREAMS_A_CONNECTION = 256
HANDSHAKE_SECONDS = 10
# After so long without a call a connection is closed, and after so long without a sign of life it is asked for one.
IDLE_SECONDS = 30 * 60
KEEPALIVE_SECONDS = 60
# A connection is asked to end after so long, and ended after so much longer: longer no certificate counts than that.
AGE_SECONDS = 60 * 60
AGE_GRACE_SECONDS = 5 * 60

# How much of the time that a caller gives is worked for. The rest is for the answer, or for a caller that is to be told
# that the database is silent, and not to find out by its own deadline.
_WORKING_SHARE = 0.9
# gRPC tells a call without a deadline by one that is some centuries away.
_NO_DEADLINE_SECONDS = 1e9
# No call is answered in less.
LEAST_SECONDS = 0.001
# How long a message may take to arrive: one that is let in, and one that comes from anybody, such as for health.
MESSAGE_SECONDS = 5.0
OPEN_MESSAGE_SECONDS = 1.0
_LOOK_SECONDS = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a server takes on at once. See the settings of the same names.

    `threads` are for calls that do not decide, `deciding_threads` for those that do; `queue` is of each. `aside` is how
    many more calls of each may wait for the store, or for other processes, and let others go on.

    `shares_port` is for a worker of a group, whose supervisor sees that nobody else takes the port.
    """

    threads: int
    deciding_threads: int
    aside: int
    queue: int
    connections: int
    default_deadline_seconds: float
    shares_port: bool = False

    @property
    def options(self) -> tuple[tuple[str, int], ...]:
        """The limits that gRPC itself keeps."""
        return (
            # Beyond what a request may weigh, so that the gate can say which limit was passed and by how much.
            ("grpc.max_receive_message_length", 4 * MAXIMUM_MESSAGE_BYTES),
            ("grpc.max_metadata_size", MAXIMUM_METADATA_BYTES),
            ("grpc.absolute_max_metadata_size", MAXIMUM_METADATA_BYTES),
            ("grpc.max_concurrent_streams", STREAMS_A_CONNECTION),
            ("grpc.max_allowed_incoming_connections", self.connections),
            ("grpc.server_handshake_timeout_ms", HANDSHAKE_SECONDS * 1000),
            ("grpc.max_connection_idle_ms", IDLE_SECONDS * 1000),
            ("grpc.keepalive_time_ms", KEEPALIVE_SECONDS * 1000),
            ("grpc.max_connection_age_ms", AGE_SECONDS * 1000),
            ("grpc.max_connection_age_grace_ms", AGE_GRACE_SECONDS * 1000),
            # A second server on the same address must fail to start, not take half of the calls.
            ("grpc.so_reuseport", int(self.shares_port)),
        )


@dataclass(frozen=True, slots=True)
class _Wait:
    """A thread that waits for a message, until when, and of which desk it is."""

    due: float
    began: float
    desk: Desk | None


class Arrivals:
    """Ends calls whose message does not arrive: a thread waits for it, and must not wait for ever.

    gRPC hands a call over once its headers are here, and leaves the waiting for the message to the thread. One that
    waits for more than a moment steps aside.
    """

    def __init__(self) -> None:
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

    def receive(
        self, messages: Iterator[bytes], context: grpc.ServicerContext, seconds: float, desk: Desk | None = None
    ) -> bytes:
        """Return the one message of a call.

        Raises Refusal: DEADLINE_TOO_SHORT where it does not come in time, MESSAGE_MALFORMED where there is none.
        """
        now = time.monotonic()
        # One operation on a dictionary is one step to all threads, so this needs no lock.
        self._waiting[context] = _Wait(now + seconds, now, desk)
        try:
            return next(messages)
        except StopIteration:
            raise Refusal(ErrorReason.MESSAGE_MALFORMED, "the request ends without a message") from None
        except grpc.RpcError:
            raise Refusal(
                ErrorReason.DEADLINE_TOO_SHORT, f"the message did not arrive within {seconds:.1f} s, or was taken back"
            ) from None
        finally:
            if self._waiting.pop(context, None) is None:
                with self._lock:
                    del self._aside[context]
                if desk is not None:
                    desk.step_back()

    def _watch(self) -> None:
        while not self._stopping.wait(_LOOK_SECONDS):
            now = time.monotonic()
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


def seconds_for(context: grpc.ServicerContext, default: float) -> float:
    """Return how long a call may be worked on: until shortly before its deadline, or of the default if it has none."""
    remaining = context.time_remaining()
    given = default if remaining is None or remaining > _NO_DEADLINE_SECONDS else remaining
    return given * _WORKING_SHARE


def on_pool(behavior: Callable[..., Any], pool: ThreadPoolExecutor) -> Callable[..., Any]:
    """Return the behavior of a method as one that is worked on by a pool of its own, and so waits for no others."""
    # Whatever else gRPC is to know of it goes along, such as that a stream holds no thread.
    call = update_wrapper(partial(behavior), behavior)
    call.experimental_thread_pool = pool  # type: ignore[attr-defined]  # gRPC's way of naming the pool of a method
    return call
