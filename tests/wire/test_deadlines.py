"""How long a call may take, and how many may wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import key_service_pb2, workspace_service_pb2

from server.service.workspaces import WorkspaceService
from server.store.contract import StoreUnavailable, seconds_left
from server.wire.server import SIDE_THREADS
from tests.harness import Service, refused, running_service
from tests.wire.helpers import make_key, make_workspace

AUTHORIZE, CHECK = "/texture.auth.v1.AuthorizeService/Authorize", "/grpc.health.v1.Health/Check"
SERVING = health_pb2.HealthCheckResponse.SERVING
LIST = workspace_service_pb2.ListWorkspacesRequest()


@contextmanager
def held_up(service: Service, monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Hold up every ListWorkspaces until the block ends; the event is set once one is being worked on."""
    started, go_on = threading.Event(), threading.Event()
    real = WorkspaceService.list_workspaces

    def slow(self: WorkspaceService, *args: Any) -> Any:
        started.set()
        assert go_on.wait(30)
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WorkspaceService, "list_workspaces", slow)
        try:
            yield started
        finally:
            go_on.set()


def seconds_seen(service: Service, monkeypatch: pytest.MonkeyPatch, timeout: float | None) -> float:
    """Return how long a call with this deadline believes that it may take."""
    seen = []
    real = WorkspaceService.list_workspaces

    def looking(self: WorkspaceService, *args: Any) -> Any:
        seen.append(seconds_left())
        return real(self, *args)

    with monkeypatch.context() as patch:
        patch.setattr(WorkspaceService, "list_workspaces", looking)
        call = service.channel.unary_unary(
            "/texture.auth.v1.WorkspaceService/ListWorkspaces",
            workspace_service_pb2.ListWorkspacesRequest.SerializeToString,
            workspace_service_pb2.ListWorkspacesResponse.FromString,
        )
        call(LIST, timeout=timeout, metadata=(("authorization", f"Bearer {service.operator_key}"),))
    return seen[0]


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_the_callers_deadline_is_the_calls(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 18 < seconds_seen(service, monkeypatch, timeout=25) < 24


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_a_call_without_a_deadline_gets_the_default(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 5 < seconds_seen(service, monkeypatch, timeout=None) <= 10


def test_the_default_deadline_can_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(tmp_path, default_deadline_seconds=3) as service:
        assert 0 < seconds_seen(service, monkeypatch, timeout=None) <= 3


def test_a_change_whose_deadline_passes_meanwhile_is_not_made(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(service)
    before = service.query("SELECT number FROM revision")
    store = service.app._resources.store

    monkeypatch.setattr("server.store.peewee_store.seconds_left", lambda: 0.0)

    with pytest.raises(StoreUnavailable, match="deadline"), store.write() as writer:
        writer.remove_devices(["home-battery-1"])
    assert service.query("SELECT number FROM revision") == before


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_a_deadline_that_passed_in_the_queue_is_refused_before_any_work(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    worked: list[object] = []
    monkeypatch.setattr("server.wire.gate.seconds_for", lambda _context, _default: 0.0)
    monkeypatch.setattr(type(service.app._resources.store), "read", lambda *_: worked.append(1))

    found = refused(service.operator.workspaces.ListWorkspaces, LIST)

    assert (found.code, found.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "DEADLINE_TOO_SHORT")
    assert "past" in found.message
    assert worked == []


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_a_store_that_keeps_a_call_past_its_deadline_does_not_pass_for_one_that_is_away(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise StoreUnavailable("busy")

    monkeypatch.setattr("server.wire.errors.seconds_left", lambda: 0.0)
    monkeypatch.setattr(WorkspaceService, "list_workspaces", away)
    assert refused(service.operator.workspaces.ListWorkspaces, LIST).reason == "DEADLINE_TOO_SHORT"


def half_sent(channel: grpc.Channel, method: str, credential: str | None, until: threading.Event) -> Any:
    """Begin a call whose message does not come until the event is set, which ends it without one."""

    def never() -> Iterator[bytes]:
        until.wait()
        yield from ()

    call: Any = channel.stream_unary(method)
    metadata = () if credential is None else (("authorization", f"Bearer {credential}"),)
    return call.future(never(), metadata=metadata)


def test_calls_without_a_message_do_not_keep_the_threads_from_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.wire.gate.MESSAGE_SECONDS", 0.5)
    until = threading.Event()
    with running_service(tmp_path, threads=2) as service:
        stub: Any = health_pb2_grpc.HealthStub(service.channel)
        with grpc.insecure_channel(service.address, (("grpc.use_local_subchannel_pool", 1),)) as another:
            try:
                credentials = [None, service.operator_key] * 4
                calls = [half_sent(another, AUTHORIZE, credential, until) for credential in credentials]
                calls += [half_sent(another, CHECK, None, until) for _ in range(SIDE_THREADS)]
                # Those who are not known are told so at once; the others, after a while.
                assert {call.code() for call in calls[::2]} >= {grpc.StatusCode.UNAUTHENTICATED}
                assert stub.Check(health_pb2.HealthCheckRequest(), timeout=30).status == SERVING
                service.operator.workspaces.ListWorkspaces(LIST)
            finally:
                until.set()


def test_a_call_that_ends_without_a_message_is_told_so(tmp_path: Path) -> None:
    until = threading.Event()
    until.set()
    with running_service(tmp_path) as service:
        call = half_sent(service.channel, AUTHORIZE, service.operator_key, until)
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "without a message" in call.details()


@pytest.fixture
def narrow(tmp_path: Path) -> Iterator[Service]:
    """A server with one thread and room for one more call to wait."""
    with running_service(tmp_path, threads=1, queue=1) as service:
        yield service


def test_calls_beyond_the_queue_are_refused_at_once_and_told_when_to_come_back(
    narrow: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers: list[Future[Any]] = []
        with held_up(narrow, monkeypatch) as started:
            answers.append(pool.submit(narrow.operator.workspaces.ListWorkspaces, LIST))
            assert started.wait(30)
            answers.append(pool.submit(narrow.operator.workspaces.ListWorkspaces, LIST))
            deadline = time.monotonic() + 30
            while not narrow.app._server._others.lane("").full and time.monotonic() < deadline:
                time.sleep(0.001)

            found = refused(narrow.operator.keys.GetKey, key_service_pb2.GetKeyRequest(key_id="x"))

            assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
            assert found.retry_seconds == 1
        for answer in answers:
            answer.result(30)
    # and when there is room again, calls are worked on again
    narrow.operator.workspaces.ListWorkspaces(LIST)


def test_health_can_be_watched_while_every_thread_is_busy(narrow: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Any = health_pb2_grpc.HealthStub(narrow.channel)
    with ThreadPoolExecutor(1) as pool:
        with held_up(narrow, monkeypatch) as started:
            answer = pool.submit(narrow.operator.workspaces.ListWorkspaces, LIST)
            assert started.wait(30)
            watching = stub.Watch(health_pb2.HealthCheckRequest(), timeout=60)
            assert next(watching).status == SERVING
            watching.cancel()
        answer.result(30)


def test_health_answers_while_every_thread_is_busy(narrow: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    stub: Any = health_pb2_grpc.HealthStub(narrow.channel)
    with ThreadPoolExecutor(1) as pool:
        with held_up(narrow, monkeypatch) as started:
            answer = pool.submit(narrow.operator.workspaces.ListWorkspaces, LIST)
            assert started.wait(30)
            found = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
            assert found.status == health_pb2.HealthCheckResponse.SERVING
        answer.result(30)


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_metadata_beyond_the_limit_is_refused(service: Service) -> None:
    call = service.channel.unary_unary(
        "/texture.auth.v1.AuthorizeService/Authorize",
        pb.AuthorizeRequest.SerializeToString,
        pb.AuthorizeResponse.FromString,
    )
    with pytest.raises(grpc.RpcError) as caught:
        call(pb.AuthorizeRequest(), timeout=30, metadata=(("x-large", "x" * 20_000),))
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_connections_beyond_the_limit_are_refused(tmp_path: Path) -> None:
    with running_service(tmp_path, connections=1) as service:
        make_workspace(service)
        with grpc.insecure_channel(service.address, (("grpc.use_local_subchannel_pool", 1),)) as another:
            call: Any = another.unary_unary("/texture.auth.v1.WorkspaceService/ListWorkspaces")
            with pytest.raises(grpc.RpcError) as caught:
                call(b"", timeout=30)
            assert isinstance(caught.value, grpc.Call)
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        # who is connected stays so
        make_key(service)


def test_a_call_without_time_is_refused_by_the_real_deadline(tmp_path: Path) -> None:
    """The client gives up by itself; what matters is that nothing has changed."""
    with running_service(tmp_path) as service:
        request = workspace_service_pb2.CreateWorkspaceRequest()
        with pytest.raises(grpc.RpcError) as caught:
            service.operator.workspaces.CreateWorkspace(request, timeout=0.000_001)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        assert not service.operator.workspaces.ListWorkspaces(LIST).workspaces
