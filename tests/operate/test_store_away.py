"""While the store is away or busy nothing is decided, and nobody has to restart anything afterwards."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER

from server.store.sqlite import OTHER_FILE_SECONDS
from tests.harness import Service, refused, running_service
from tests.operate.process import health, health_stub, wait_until
from tests.wire.links_helpers import (
    WORKSPACE,
    create_workspace,
    get_key,
    reason,
    register,
    server_key,
)

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE


def move_away(service: Service) -> Path:
    elsewhere = service.database.with_name("elsewhere.db")
    service.database.rename(elsewhere)
    time.sleep(2 * OTHER_FILE_SECONDS)  # after this no decision comes from the file that is away
    return elsewhere


def calls(service: Service, api_key: str) -> Iterator[tuple[Callable[..., Any], Any]]:
    """One call of each service, of those that read and of those that write."""
    client = service.operator
    yield client.authorize.Authorize, authorize_pb.AuthorizeRequest(api_key=api_key, permission="devices:list")
    yield client.authorize.Authorize, authorize_pb.AuthorizeRequest(permission="devices:list")
    question = authorize_pb.Question(api_key=api_key, permission="devices:list")
    yield client.authorize.BatchAuthorize, authorize_pb.BatchAuthorizeRequest(questions=[question])
    yield client.keys.LookupKey, key_pb.LookupKeyRequest(api_key=api_key)
    yield client.keys.RevokeKey, key_pb.RevokeKeyRequest(key_id=api_key.split("_")[2])
    yield client.connect.GetConnectLink, connect_pb.GetConnectLinkRequest(connect_link_id="0" * 16)
    yield client.devices.ListDevices, device_pb.ListDevicesRequest(workspace_id=WORKSPACE)
    yield client.workspaces.ListWorkspaces, workspace_pb.ListWorkspacesRequest()
    yield client.callers.RotateCallerKey, caller_pb.RotateCallerKeyRequest(caller_id="dev-operator")


def test_while_the_database_is_away_nothing_is_decided_and_then_all_goes_on(service: Service) -> None:
    create_workspace(service.operator)
    api_key = server_key(service.operator).api_key
    register(service.operator, "user-1", "battery-1")
    assert reason(service.operator, api_key, "battery-1") == "PERMITTED"
    watched = health_stub(service.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING

    elsewhere = move_away(service)
    for method, request in calls(service, api_key):
        found = refused(method, request)
        assert (found.code, found.reason) == (UNAVAILABLE, "STORE_UNAVAILABLE")
        assert found.retry_seconds is not None
        assert found.retry_seconds > 0
        assert str(service.database) not in found.message
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    assert not service.database.exists(), "no empty database may take the place of the one that is away"

    elsewhere.rename(service.database)
    assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
    watched.cancel()
    assert reason(service.operator, api_key, "battery-1") == "PERMITTED"
    register(service.operator, "user-1", "battery-2")
    assert reason(service.operator, api_key, "battery-2") == "PERMITTED"


def test_health_finds_out_by_itself_when_nobody_calls(service: Service) -> None:
    elsewhere = move_away(service)
    wait_until(lambda: health(service.channel) == "NOT_SERVING", "health says that the store is away")
    name = authorize_pb.DESCRIPTOR.services_by_name["AuthorizeService"].full_name
    stub = health_stub(service.channel)
    assert stub.Check(health_pb2.HealthCheckRequest(service=name), timeout=10).status == (
        health_pb2.HealthCheckResponse.NOT_SERVING
    )
    elsewhere.rename(service.database)
    wait_until(lambda: health(service.channel) == "SERVING", "health says that the store is back")


def test_what_was_committed_before_the_database_went_away_is_there_when_it_is_back(service: Service) -> None:
    create_workspace(service.operator)
    made = server_key(service.operator)
    elsewhere = move_away(service)
    refused(server_key, service.operator)
    elsewhere.rename(service.database)
    wait_until(lambda: health(service.channel) == "SERVING", "the store is back")
    assert get_key(service.operator, made.key.key_id) == made.key
    listed = service.operator.keys.ListKeys(key_pb.ListKeysRequest(workspace_id=WORKSPACE)).keys
    assert [key.key_id for key in listed] == [made.key.key_id]


def test_a_file_that_is_no_database_is_no_reason_to_allow_anything(service: Service) -> None:
    create_workspace(service.operator)
    api_key = server_key(service.operator).api_key
    elsewhere = move_away(service)
    service.database.write_bytes(b"this is no database " * 1000)
    found = refused(reason, service.operator, api_key)
    assert (found.code, found.reason) == (UNAVAILABLE, "STORE_UNAVAILABLE")
    elsewhere.rename(service.database)
    assert reason(service.operator, api_key) == "PERMITTED"


def test_while_somebody_else_keeps_the_lock_writes_fail_and_decisions_go_on(service: Service) -> None:
    create_workspace(service.operator)
    api_key = server_key(service.operator).api_key
    register(service.operator, "user-1", "battery-1")
    with closing(sqlite3.connect(service.database, isolation_level=None)) as holder:
        holder.execute("BEGIN IMMEDIATE")
        waiting = service.operator.keys.CreateKey.future(
            key_pb.CreateKeyRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="waits"), timeout=60
        )
        answered = 0
        while not waiting.done():
            assert reason(service.operator, api_key, "battery-1") == "PERMITTED"
            answered += 1
        found = refused(waiting.result)
        assert (found.code, found.reason) == (UNAVAILABLE, "STORE_UNAVAILABLE")
        assert found.retry_seconds
        assert answered > 1
        assert health(service.channel) == "SERVING"
        holder.execute("ROLLBACK")
    assert server_key(service.operator).api_key
    listed = service.operator.keys.ListKeys(key_pb.ListKeysRequest(workspace_id=WORKSPACE)).keys
    assert len(listed) == 2


def test_a_server_that_was_stopped_leaves_nothing_running(tmp_path: Path) -> None:
    def health_threads() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if thread.name == "health"}

    before = health_threads()
    with running_service(tmp_path):
        own = health_threads() - before
        assert len(own) == 1
    (thread,) = own
    thread.join(5)
    assert not thread.is_alive()


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_the_databases_files_are_for_their_owner_alone(service: Service, suffix: str) -> None:
    create_workspace(service.operator)
    assert service.database.with_name(service.database.name + suffix).stat().st_mode & 0o077 == 0
