"""What a server takes on: how many calls at once, for how long, how large, over how many connections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc

from server.domain.errors import ErrorReason, Refusal

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

# How much of the time that a caller gives is worked for. The rest is for the answer, or for a caller that is to be told
# that the database is silent, and not to find out by its own deadline.
_WORKING_SHARE = 0.9
# gRPC tells a call without a deadline by one that is some centuries away.
_NO_DEADLINE_SECONDS = 1e9
# How much the memory of the best time gives way, towards longer with each call and towards shorter with each refusal.
_LONGER, _SHORTER = 1.1, 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How much a server takes on at once. See the settings of the same names."""

    threads: int
    queue: int
    connections: int
    default_deadline_seconds: float

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
            # A second server on the same address must fail to start, not take half of the calls.
            ("grpc.so_reuseport", 0),
        )


class CountingPool(ThreadPoolExecutor):
    """A pool that knows how many calls are being worked on or wait for a thread."""

    def __init__(self, threads: int, queue: int) -> None:
        super().__init__(max_workers=threads, thread_name_prefix="rpc")
        self._most = threads + queue
        self._lock = threading.Lock()
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Tell whether there is nothing to do."""
        return self._under_way == 0

    @property
    def full(self) -> bool:
        """Tell whether as many calls wait as may."""
        return self._under_way >= self._most

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Work on something."""
        with self._lock:
            self._under_way += 1
        try:
            future = super().submit(function, *args, **kwargs)
        except BaseException:
            self._done(None)
            raise
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: Future[Any] | None) -> None:
        with self._lock:
            self._under_way -= 1


class Pace:
    """The best time that calls of one method took lately: what has less time left than that cannot finish.

    The memory gives way with every call, so that it follows the machine, and with every refusal, so that it never shuts
    a method for good.
    """

    def __init__(self) -> None:
        self._best_seconds = 0.0

    def check(self, seconds: float) -> None:
        """Make sure that a call with so much time left can finish. Raises Refusal (DEADLINE_TOO_SHORT)."""
        if not seconds:
            raise Refusal(ErrorReason.DEADLINE_TOO_SHORT, "the deadline was past before the call was looked at")
        if seconds < self._best_seconds:
            left, needed = f"{seconds * 1000:.1f} ms", f"{self._best_seconds * 1000:.1f} ms"
            self._best_seconds *= _SHORTER
            raise Refusal(
                ErrorReason.DEADLINE_TOO_SHORT,
                f"the deadline leaves {left}, and such a call takes {needed} at best",
            )

    def record(self, seconds: float) -> None:
        """Remember how long a call took that was answered."""
        self._best_seconds = min(seconds, self._best_seconds * _LONGER) if self._best_seconds else seconds


def seconds_for(context: grpc.ServicerContext, default: float) -> float:
    """Return how long a call may be worked on: until shortly before its deadline, or of the default if it has none."""
    remaining = context.time_remaining()
    given = default if remaining is None or remaining > _NO_DEADLINE_SECONDS else remaining
    return given * _WORKING_SHARE


def aside(handler: grpc.RpcMethodHandler[Any, Any], pool: ThreadPoolExecutor) -> grpc.RpcMethodHandler[Any, Any]:
    """Return a unary handler whose calls are worked on by a pool of their own, and so wait for no others."""
    behavior = handler.unary_unary
    if behavior is None:
        return handler

    def call(request: Any, context: grpc.ServicerContext) -> Any:
        return behavior(request, context)

    call.experimental_thread_pool = pool  # type: ignore[attr-defined]  # gRPC's way of naming the pool of a method
    return grpc.unary_unary_rpc_method_handler(call, handler.request_deserializer, handler.response_serializer)
