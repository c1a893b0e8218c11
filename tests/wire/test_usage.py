"""What keys were used for, over the wire."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2, device_service_pb2, workspace_service_pb2
from texture.auth.v1 import usage_service_pb2 as pb
from texture.auth.v1.authorize_service_pb2 import DECISION_ALLOW, DECISION_DENY, REASON_PERMITTED, Reason
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_DEVICES
from texture.auth.v1.connect_service_pb2 import CreateConnectLinkRequest
from texture.auth.v1.key_service_pb2 import GetRotationRequest

from server.service.counting import UseCounter
from server.store import usage_rows
from tests.harness import Service, refused, running_service
from tests.operate.process import wait_until
from tests.wire.helpers import (
    REDIRECT_URI,
    USER,
    WORKSPACE,
    authorize,
    current_revision,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    question,
    register,
    rotate,
    suspend,
    timestamp,
    with_wrong_secret,
)

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def usage_of(service: Service, key_id: str, **fields: Any) -> pb.GetKeyUsageResponse:
    return service.operator.usage.GetKeyUsage(pb.GetKeyUsageRequest(key_id=key_id, **fields))


def counts(response: pb.GetKeyUsageResponse) -> dict[tuple[str, str, str, int], int]:
    """Return how often a key was used, by caller, permission, reason and generation."""
    return {
        (use.caller_id, use.permission, Reason.Name(use.reason).removeprefix("REASON_"), use.generation): use.count
        for use in response.totals
    }


def touched(service: Service, key_id: str) -> dict[str, int]:
    response = service.operator.usage.ListKeyDevices(pb.ListKeyDevicesRequest(key_id=key_id))
    assert not response.incomplete
    return {touch.device_id: touch.count for touch in response.touches}


def test_a_key_that_was_never_used_says_so(grid: Service) -> None:
    response = usage_of(grid, make_key(grid).key.key_id)
    assert response == pb.GetKeyUsageResponse()


def test_every_answer_counts_the_first_and_the_repeated_alone_and_in_a_batch(grid: Service) -> None:
    register(grid, "battery-1", "battery-2")
    key = make_key(grid)
    for _ in range(3):
        authorize(grid, key.api_key, "devices:read", "battery-1")
    asked = [("devices:read", "battery-1"), ("devices:command", "battery-2"), ("devices:list", "")]
    questions = [
        authorize_service_pb2.Question(api_key=key.api_key, permission=permission, device_id=device_id)
        for permission, device_id in asked
    ]
    for _ in range(2):
        grid.operator.authorize.BatchAuthorize(authorize_service_pb2.BatchAuthorizeRequest(questions=questions))

    response = usage_of(grid, key.key.key_id)

    assert counts(response) == {
        ("dev-operator", "devices:read", "PERMITTED", 1): 5,
        ("dev-operator", "devices:command", "PERMITTED", 1): 2,
        ("dev-operator", "devices:list", "PERMITTED", 1): 2,
    }
    assert {(use.decision, use.reason) for use in response.hours} == {(DECISION_ALLOW, REASON_PERMITTED)}
    assert not response.incomplete
    assert touched(grid, key.key.key_id) == {"battery-1": 5, "battery-2": 2}


def test_callers_are_told_apart_though_they_ask_the_same(grid: Service) -> None:
    key = make_key(grid)
    callers = {caller_id: grid.caller(caller_id, ROLE_AUTHORIZER) for caller_id in ("device-api", "command-api")}
    for caller_id in ("device-api", "command-api", "command-api", "device-api", "command-api"):
        callers[caller_id].authorize.Authorize(question(key.api_key))

    assert counts(usage_of(grid, key.key.key_id)) == {
        ("device-api", "devices:list", "PERMITTED", 1): 2,
        ("command-api", "devices:list", "PERMITTED", 1): 3,
    }


def test_denials_count_with_their_reason_and_touch_nothing(grid: Service) -> None:
    register(grid, "battery-1")
    key = make_key(grid, permissions=["devices:read"])
    authorize(grid, key.api_key, "devices:command", "battery-1")
    authorize(grid, key.api_key, "devices:read", "unheard-of")
    suspend(grid, key.key.key_id)
    for _ in range(2):
        authorize(grid, key.api_key, "devices:read", "battery-1")

    response = usage_of(grid, key.key.key_id)

    assert counts(response) == {
        ("dev-operator", "devices:command", "PERMISSION_NOT_GRANTED", 1): 1,
        ("dev-operator", "devices:read", "DEVICE_NOT_FOUND", 1): 1,
        ("dev-operator", "devices:read", "KEY_SUSPENDED", 1): 2,
    }
    assert {use.decision for use in response.totals} == {DECISION_DENY}
    assert touched(grid, key.key.key_id) == {}


def test_nobody_without_the_right_secret_writes_to_what_a_key_was_used_for(grid: Service) -> None:
    key = make_key(grid)
    for api_key in (with_wrong_secret(key.api_key), key.api_key[:-1], key.key.key_id, ""):
        authorize(grid, api_key)
    grid.operator.authorize.ExplainAuthorization(
        authorize_service_pb2.ExplainAuthorizationRequest(api_key=key.api_key, permission="devices:list")
    )

    assert usage_of(grid, key.key.key_id) == pb.GetKeyUsageResponse()
    assert grid.query("SELECT * FROM key_usage") == []


def test_a_connect_key_is_used_by_making_links(grid: Service) -> None:
    site = make_connect_key(grid)
    request = CreateConnectLinkRequest(api_key=site.api_key, redirect_uri=REDIRECT_URI)
    grid.operator.connect.CreateConnectLink(request)
    suspend(grid, site.key.key_id)
    refused(grid.operator.connect.CreateConnectLink, request)

    assert counts(usage_of(grid, site.key.key_id)) == {
        ("dev-operator", "connect_links:create", "PERMITTED", 1): 1,
        ("dev-operator", "connect_links:create", "KEY_SUSPENDED", 1): 1,
    }


def test_uses_are_told_by_the_hour_and_by_the_secret(grid: Service) -> None:
    key = make_key(grid)
    began = grid.clock.now
    authorize(grid, key.api_key)
    grid.clock.turn(90 * MINUTE)
    authorize(grid, key.api_key)
    rotated = rotate(grid, key.key.key_id, overlap=HOUR)
    for api_key in (key.api_key, rotated.api_key):
        authorize(grid, api_key)

    response = usage_of(grid, key.key.key_id)

    told = [(use.hour_time.ToDatetime(), use.generation, use.secret_replaced, use.count) for use in response.hours]
    first, second = (moment.replace(tzinfo=None) for moment in (began, began + HOUR))
    # Of the old secret, uses before and after the rotation are on lines of their own.
    assert told == [(first, 1, False, 1), (second, 1, False, 1), (second, 1, True, 1), (second, 2, False, 1)]
    assert counts(response) == {
        ("dev-operator", "devices:list", "PERMITTED", 1): 3,
        ("dev-operator", "devices:list", "PERMITTED", 2): 1,
    }
    assert response.last_use_time == timestamp(began + 90 * MINUTE)
    only = usage_of(grid, key.key.key_id, start_time=timestamp(began), end_time=timestamp(began + HOUR))
    assert [use.count for use in only.hours] == [use.count for use in only.totals] == [1]
    assert only.totals[0].last_time == timestamp(began)
    assert only.last_use_time == response.last_use_time


def test_only_the_first_page_has_the_totals(grid: Service) -> None:
    register(grid, "battery-1")
    key = make_key(grid)
    for permission in ("devices:read", "devices:command"):
        authorize(grid, key.api_key, permission, "battery-1")

    first = usage_of(grid, key.key.key_id, page_size=1)
    second = usage_of(grid, key.key.key_id, page_size=1, page_token=first.next_page_token)

    assert (len(first.hours), len(first.totals), len(second.hours), len(second.totals)) == (1, 2, 1, 0)
    assert not second.next_page_token


def test_times_the_wrong_way_round_are_refused(grid: Service) -> None:
    now = timestamp(grid.clock.now)
    request = pb.GetKeyUsageRequest(key_id=make_key(grid).key.key_id, start_time=now, end_time=now)

    error = refused(grid.operator.usage.GetKeyUsage, request)

    assert (error.code, set(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {"end_time"})


def test_who_touched_a_device_is_told_also_once_it_is_removed(grid: Service) -> None:
    register(grid, "battery-1")
    key, other = make_key(grid), make_key(grid)
    began = grid.clock.now
    authorize(grid, key.api_key, "devices:read", "battery-1")
    grid.clock.turn(HOUR)
    for api_key in (key.api_key, other.api_key):
        authorize(grid, api_key, "devices:command", "battery-1")

    def told() -> dict[str, tuple[int, Any, Any]]:
        devices = grid.caller(f"devices-{grid.clock.now:%H%M}", ROLE_DEVICES)
        response = devices.usage.ListDeviceKeys(pb.ListDeviceKeysRequest(device_id="battery-1"))
        assert not response.incomplete
        return {one.key_id: (one.count, one.first_time, one.last_time) for one in response.touches}

    now = timestamp(began + HOUR)
    expected = {key.key.key_id: (2, timestamp(began), now), other.key.key_id: (1, now, now)}
    assert told() == expected
    grid.operator.devices.RemoveDevices(
        device_service_pb2.RemoveDevicesRequest(workspace_id=WORKSPACE, device_ids=["battery-1"])
    )
    grid.clock.turn(MINUTE)
    assert told() == expected


@pytest.mark.parametrize("device_id", ["unheard-of", "", "\0", "x" * 1000])
def test_a_device_that_never_was_is_not_found(grid: Service, device_id: str) -> None:
    error = refused(grid.operator.usage.ListDeviceKeys, pb.ListDeviceKeysRequest(device_id=device_id))
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "DEVICE_NOT_FOUND")


def test_an_erased_end_user_leaves_nothing_even_where_it_is_not_stored_yet(grid: Service) -> None:
    scoped = make_scoped_key(grid, "battery-1")
    server_key = make_key(grid)
    for api_key in (scoped.scoped_api_key, server_key.api_key):
        authorize(grid, api_key, "devices:read", "battery-1")
    usage_of(grid, server_key.key.key_id)
    for api_key in (scoped.scoped_api_key, server_key.api_key):
        authorize(grid, api_key, "devices:read", "battery-1")

    grid.operator.workspaces.EraseEndUser(
        workspace_service_pb2.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id=USER)
    )

    assert counts(usage_of(grid, server_key.key.key_id)) == {("dev-operator", "devices:read", "PERMITTED", 1): 2}
    assert grid.query("SELECT * FROM device_touch") == []
    for table in ("key_usage", "key_last_use"):
        used = {row["key_id"] for row in grid.query(f"SELECT key_id FROM {table}")}
        assert server_key.key.key_id in used
        assert scoped.scoped_key.key_id not in used


def test_counting_moves_no_revision(grid: Service) -> None:
    key = make_key(grid)
    before = current_revision(grid)
    authorize(grid, key.api_key)
    usage_of(grid, key.key.key_id)
    assert current_revision(grid) == before


def test_what_was_counted_survives_an_orderly_end(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        make_workspace(service)
        key = make_key(service)
        for _ in range(7):
            authorize(service, key.api_key)
    with running_service(tmp_path) as service:
        assert [use.count for use in usage_of(service, key.key.key_id).totals] == [7]
        # The one before has ended, and said so.
        assert len(service.query("SELECT * FROM usage_report")) == 1


def test_while_the_store_is_away_counts_are_kept(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        make_workspace(service)
        key = make_key(service)
        authorize(service, key.api_key)
        elsewhere = service.database.with_name("elsewhere.db")
        service.database.rename(elsewhere)
        error = refused(service.operator.usage.GetKeyUsage, pb.GetKeyUsageRequest(key_id=key.key.key_id))
        assert error.reason == "STORE_UNAVAILABLE"
        elsewhere.rename(service.database)
        authorize(service, key.api_key)
        assert [use.count for use in usage_of(service, key.key.key_id).totals] == [2]


def test_a_service_that_is_told_not_to_counts_nothing_and_says_that_it_knows_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path, count_use=False) as service:
        make_workspace(service)
        key = make_key(service)
        for _ in range(2):
            authorize(service, key.api_key)
        response = usage_of(service, key.key.key_id)
        assert (len(response.hours), len(response.totals), response.incomplete) == (0, 0, True)
        assert not response.HasField("last_use_time")


def test_what_another_process_has_counted_is_told_and_what_it_may_not_have_yet_is_not_proven(tmp_path: Path) -> None:
    with running_service(tmp_path) as one, running_service(tmp_path) as two:
        make_workspace(one)
        key = make_key(one)
        rotate(one, key.key.key_id, overlap=48 * HOUR)
        two.clock.turn(HOUR)
        authorize(two, key.api_key)
        wait_until(lambda: usage_of(one, key.key.key_id).totals, "the other process stores it by itself")
        assert counts(usage_of(one, key.key.key_id)) == {("dev-operator", "devices:list", "PERMITTED", 1): 1}

        one.clock.turn(2 * HOUR)
        (old,) = one.operator.keys.GetRotation(GetRotationRequest(key_id=key.key.key_id)).replaced
        # The other process has reported, an hour ago by the clock of this one; a minute later it would have.
        assert (old.safe_to_retire, old.processes_silent) == (False, 1)
        two.clock.turn(HOUR + MINUTE)
        two.operator.keys.GetRotation(GetRotationRequest(key_id=key.key.key_id))
        one.clock.turn(MINUTE)
        (old,) = one.operator.keys.GetRotation(GetRotationRequest(key_id=key.key.key_id)).replaced
        assert (old.safe_to_retire, old.processes_silent) == (True, 0)


def test_where_a_key_touches_more_devices_than_are_remembered_the_answers_say_so(
    grid: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage_rows, "MOST_TOUCHES", 2)
    devices = [f"battery-{number}" for number in range(3)]
    register(grid, *devices)
    key, other = make_key(grid), make_key(grid)
    authorize(grid, other.api_key, "devices:read", devices[0])
    for device_id in devices:
        authorize(grid, key.api_key, "devices:read", device_id)

    def asked(key_id: str) -> pb.ListKeyDevicesResponse:
        return grid.operator.usage.ListKeyDevices(pb.ListKeyDevicesRequest(key_id=key_id))

    assert (len(asked(key.key.key_id).touches), asked(key.key.key_id).incomplete) == (2, True)
    assert (len(asked(other.key.key_id).touches), asked(other.key.key_id).incomplete) == (1, False)
    for device_id in devices:
        found = grid.operator.usage.ListDeviceKeys(pb.ListDeviceKeysRequest(device_id=device_id))
        assert found.incomplete


def test_where_too_much_goes_on_to_tell_all_apart_nothing_is_lost_and_the_answer_says_so(grid: Service) -> None:
    counter = grid.app._usage.counter
    assert isinstance(counter, UseCounter)
    counter._most = 2
    keys = [make_key(grid) for _ in range(4)]
    with grid.app._usage._turn_taken():  # so that nothing is stored meanwhile
        for key in keys:
            for _ in range(3):
                authorize(grid, key.api_key)

    responses = [usage_of(grid, key.key.key_id) for key in keys]

    assert [sum(use.count for use in response.totals) for response in responses] == [3] * 4
    assert [response.incomplete for response in responses] == [False, False, True, True]
    assert {use.caller_id for response in responses[2:] for use in response.hours} == {""}
