"""Calls wait for their message without a thread, which uses grpcio's inside: these hold its release to that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from texture.auth.v1 import workspace_service_pb2 as pb

from server.app import DECIDING_THREADS
from server.wire.arrivals import Arrivals
from tests.harness import Service, running_service
from tests.operate.process import wait_until

LIST = "/texture.auth.v1.WorkspaceService/ListWorkspaces"
AUTHORIZE = "/texture.auth.v1.AuthorizeService/Authorize"


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    with running_service(tmp_path) as running:
        yield running


def begun(service: Service, message: bytes, send: threading.Event, method: str = LIST) -> Any:
    """Begin a call of which only the headers are sent until `send` is set."""

    def messages() -> Iterator[bytes]:
        send.wait(30)
        yield message

    call: Any = service.channel.stream_unary(method)
    return call.future(messages(), timeout=20, metadata=(("authorization", f"Bearer {service.operator_key}"),))


def arrivals(service: Service) -> Arrivals:
    return service.app._server._arrivals


@pytest.mark.parametrize("seconds", [0.0, 0.02, 0.2])
def test_a_message_that_comes_after_its_headers_is_answered(service: Service, seconds: float) -> None:
    send = threading.Event()
    call = begun(service, b"", send)
    assert not send.wait(seconds)
    send.set()
    assert call.code() is grpc.StatusCode.OK
    assert pb.ListWorkspacesResponse.FromString(call.result()) == pb.ListWorkspacesResponse()


def test_while_a_message_is_on_its_way_no_thread_waits_for_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.wire.arrivals._LOOK_SECONDS", 60.0)
    send = threading.Event()
    calls = [begun(service, b"", send, AUTHORIZE) for _ in range(5 * DECIDING_THREADS)]
    wait_until(lambda: len(arrivals(service)._expected) == len(calls), "all are expected")
    assert service.app._server._decisions.idle
    send.set()
    assert {call.code() for call in calls} == {grpc.StatusCode.INVALID_ARGUMENT}


@pytest.mark.parametrize("handed_on", [False, True], ids=["at once", "after a moment"])
def test_a_call_that_is_taken_back_before_its_message_leaves_nothing_behind(service: Service, handed_on: bool) -> None:
    send = threading.Event()
    call = begun(service, b"", send)
    found = arrivals(service)
    wait_until(lambda: bool(found._waiting or found._aside) if handed_on else bool(found._expected), "it is awaited")
    call.cancel()
    wait_until(lambda: not (found._expected or found._waiting or found._aside), "it is forgotten")
    wait_until(lambda: service.app._server._others.idle, "no thread waits")
    send.set()


def test_a_server_stops_while_messages_are_on_their_way(tmp_path: Path) -> None:
    send = threading.Event()
    with running_service(tmp_path) as service:
        calls = [begun(service, b"", send) for _ in range(20)]
        wait_until(lambda: bool(arrivals(service)._expected), "they are awaited")
    send.set()
    assert {call.code() for call in calls} <= {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}


def test_many_calls_at_once_are_each_answered_by_their_own_message(service: Service) -> None:
    stub: Any = service.channel.unary_unary(LIST)
    metadata = (("authorization", f"Bearer {service.operator_key}"),)

    def wrong(page_size: int) -> str:
        with pytest.raises(grpc.RpcError) as caught:
            stub(pb.ListWorkspacesRequest(page_size=-page_size).SerializeToString(), metadata=metadata, timeout=20)
        return str(caught.value.details())

    sizes = range(1, 200)
    with ThreadPoolExecutor(16) as pool:
        for size, details in zip(sizes, pool.map(wrong, sizes), strict=True):
            assert "page_size" in details, size
