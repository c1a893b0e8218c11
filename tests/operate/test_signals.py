"""How a server ends: what is in flight finishes, nothing new begins."""

from __future__ import annotations

import contextlib
import os
import signal
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER

from tests.harness import Client
from tests.operate.process import (
    COMMAND,
    DEADLINE_SECONDS,
    Server,
    client,
    environment,
    health,
    health_stub,
    serving,
    wait_until,
)
from tests.wire.links_helpers import WORKSPACE, create_workspace

# With one thread, a server that does not answer is a server whose thread is in the call that was made before.
ONE_THREAD = ("--development", "--threads", "1", "--log-format", "json", "--drain-seconds", "3600")
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def writers_kept_waiting(server: Server) -> Iterator[sqlite3.Connection]:
    """Hold the database's write lock until the block ends or the connection rolls back."""
    path = server.folder / "var" / "texture-auth.db"
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        yield holder


def call_in_flight(calling: Client, channel: grpc.Channel) -> Any:
    """Begin a call that waits for the lock, and return its future once the server's one thread is in it."""
    future = calling.keys.CreateKey.future(
        key_pb.CreateKeyRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="in flight"), timeout=60
    )

    def busy() -> bool:
        try:
            calling.callers.ListCallers(caller_pb.ListCallersRequest(), timeout=0.25)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code is grpc.StatusCode.DEADLINE_EXCEEDED
        return False

    wait_until(busy, "the server's thread is in the call")
    return future


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_is_idle_ends_at_once_with_zero(tmp_path: Path, number: signal.Signals) -> None:
    with serving(tmp_path) as server, client(server) as calling:
        calling.callers.ListCallers(caller_pb.ListCallersRequest())
        server.process.send_signal(number)
        assert server.exit_code() == 0
        assert "Traceback" not in server.output


def test_a_signal_that_comes_while_it_is_starting_ends_it_with_zero_too(tmp_path: Path) -> None:
    # A full pipe holds the server up while it says where it listens, when it is up but has not done all it will do.
    readable, writable = os.pipe()
    os.set_blocking(writable, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writable, b"." * 4096)
    os.set_blocking(writable, True)
    log = tmp_path / "log"
    with os.fdopen(readable, "rb") as full, log.open("wb") as errors:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--development", "--listen", "127.0.0.1:0"],
            cwd=tmp_path,
            env=environment(),
            stdin=subprocess.DEVNULL,
            stdout=writable,
            stderr=errors,
        )
        os.close(writable)
        try:
            wait_until(lambda: b"SERVING" in log.read_bytes(), "the server is up")
            process.send_signal(signal.SIGTERM)
            printed = full.read()
            assert process.wait(DEADLINE_SECONDS) == 0
            assert b"serving on" in printed
        finally:
            process.kill()
            process.wait()


def test_after_sigterm_the_call_in_flight_finishes_and_new_ones_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path, *ONE_THREAD) as server, client(server) as calling:
        create_workspace(calling)
        with closing(grpc.insecure_channel(server.address)) as channel:
            seen = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(seen).status == health_pb2.HealthCheckResponse.SERVING
            with writers_kept_waiting(server) as holder:
                future = call_in_flight(calling, channel)
                server.process.send_signal(signal.SIGTERM)

                assert next(seen).status == NOT_SERVING
                seen.cancel()
                wait_until(lambda: refused_as_unavailable(server), "new calls are refused")
                assert not future.done()
                assert server.process.poll() is None
                holder.rollback()
            made = future.result()
        assert server.exit_code() == 0
    with serving(tmp_path) as server, client(server) as calling:
        assert calling.keys.GetKey(key_pb.GetKeyRequest(key_id=made.key.key_id)).key == made.key


def refused_as_unavailable(server: Server) -> bool:
    with closing(grpc.insecure_channel(server.address)) as channel:
        return health(channel, 0.25) == "UNAVAILABLE"


def test_a_second_signal_stops_at_once_with_one(tmp_path: Path) -> None:
    with serving(tmp_path, *ONE_THREAD) as server, client(server) as calling:
        create_workspace(calling)
        with closing(grpc.insecure_channel(server.address)) as channel, writers_kept_waiting(server):
            future = call_in_flight(calling, channel)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: refused_as_unavailable(server), "new calls are refused")
            server.process.send_signal(signal.SIGTERM)
            assert server.exit_code() == 1
            assert isinstance(future.exception(), grpc.RpcError)
        events = [line["event"] for line in server.log]
        assert "stopped at once" in events
        # It did not wait for the call to give up on the lock.
        assert "store unavailable" not in events


def test_somebody_who_watches_health_does_not_hold_up_the_end(tmp_path: Path) -> None:
    with (
        serving(tmp_path, "--development", "--drain-seconds", "3600") as server,
        closing(grpc.insecure_channel(server.address)) as channel,
    ):
        seen = health_stub(channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(seen).status == health_pb2.HealthCheckResponse.SERVING
        server.process.send_signal(signal.SIGTERM)
        assert next(seen).status == NOT_SERVING
        assert server.exit_code(10) == 0


def test_a_call_that_does_not_finish_in_time_is_cut_off_and_the_server_ends(tmp_path: Path) -> None:
    flags = ("--development", "--threads", "1", "--log-format", "json", "--drain-seconds", "0.1")
    with serving(tmp_path, *flags) as server, client(server) as calling:
        create_workspace(calling)
        with closing(grpc.insecure_channel(server.address)) as channel, writers_kept_waiting(server):
            future = call_in_flight(calling, channel)
            server.process.send_signal(signal.SIGTERM)
            error = future.exception()
            assert isinstance(error, grpc.Call)
            assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
            assert server.exit_code() == 0
