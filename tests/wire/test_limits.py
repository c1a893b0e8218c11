"""Answers and errors that are large must still arrive."""

from __future__ import annotations

import grpc
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT

from tests.harness import Service, refused
from tests.wire.helpers import WORKSPACE, make_key, make_workspace

MANY_URIS = [f"https://app.example/{number:02}{'x' * 2000}" for number in range(50)]


def test_a_request_with_a_thousand_faults_is_refused_with_the_first_of_them(grid: Service) -> None:
    devices = [device_pb.DeviceRegistration(device_id="not an id", reference_id="") for _ in range(1000)]

    found = refused(
        grid.operator.devices.RegisterDevices,
        device_pb.RegisterDevicesRequest(workspace_id=WORKSPACE, devices=devices),
    )

    assert (found.code, found.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert 10 < len(found.violations) < 1000
    assert "more)" in found.message


def test_a_list_of_large_keys_comes_in_pages_that_a_client_accepts(grid: Service) -> None:
    for _ in range(30):
        make_key(grid, kind=KEY_KIND_CONNECT, redirect_uris=MANY_URIS)
    request = key_pb.ListKeysRequest(workspace_id=WORKSPACE, page_size=1000)
    listed = []
    while True:
        page = grid.operator.keys.ListKeys(request)
        assert 1 <= len(page.keys) < 30
        listed += [key.key_id for key in page.keys]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(listed) == len(set(listed)) == 30


def test_the_events_of_a_large_key_can_be_listed(grid: Service) -> None:
    key_id = make_key(grid, kind=KEY_KIND_CONNECT, redirect_uris=MANY_URIS).key.key_id
    for _ in range(15):
        grid.operator.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=key_id))
        grid.operator.keys.ResumeKey(key_pb.ResumeKeyRequest(key_id=key_id))
    page = grid.operator.keys.ListKeyEvents(key_pb.ListKeyEventsRequest(key_id=key_id))
    assert page.events
    assert page.next_page_token


def test_a_key_is_rotated_any_number_of_times_and_remembers_its_last_secrets(grid: Service) -> None:
    key_id = make_key(grid).key.key_id
    for _ in range(15):
        rotated = grid.operator.keys.RotateKey(key_pb.RotateKeyRequest(key_id=key_id))
    numbers = [generation.generation for generation in rotated.key.generations]
    assert numbers == list(range(6, 17))


def test_an_id_with_a_nul_is_that_of_nothing(service: Service) -> None:
    make_workspace(service)
    found = refused(service.operator.keys.GetKey, key_pb.GetKeyRequest(key_id="\0"))
    assert found.reason == "KEY_NOT_FOUND"
    found = refused(service.operator.workspaces.GetWorkspace, workspace_pb.GetWorkspaceRequest(workspace_id="a\0b"))
    assert found.reason == "WORKSPACE_NOT_FOUND"
    found = refused(service.operator.devices.GetDevice, device_pb.GetDeviceRequest(device_id="\0"))
    assert found.reason == "DEVICE_NOT_FOUND"
