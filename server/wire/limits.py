"""What a server takes on: how many calls at once, for how long, how large, over how many connections."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial, update_wrapper
from typing import Any

import grpc

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
# How often callers may do so.
CALLER_KEEPALIVE_SECONDS = 10
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
            # Callers look more often than gRPC admits by default, which would have them go away.
            ("grpc.http2.min_recv_ping_interval_without_data_ms", CALLER_KEEPALIVE_SECONDS * 1000),
            ("grpc.max_connection_age_ms", AGE_SECONDS * 1000),
            ("grpc.max_connection_age_grace_ms", AGE_GRACE_SECONDS * 1000),
            # A second server on the same address must fail to start, not take half of the calls.
            ("grpc.so_reuseport", int(self.shares_port)),
        )


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
