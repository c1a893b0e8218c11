"""Devices that change hands, and devices that go."""

from __future__ import annotations

from datetime import UTC, timedelta

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as key_pb

from tests.harness import Client, Service, refused
from tests.wire.links_helpers import (
    create_workspace,
    get_device,
    listed,
    reason,
    register,
    remove,
    scoped_key,
    server_key,
    transfer,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
OTHER = "grid-two"


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    create_workspace(service.operator, OTHER)
    return service.operator


class TestTransferring:
    def test_the_old_owners_key_loses_a_device_and_the_new_owners_gains_it(self, operator: Client) -> None:
        seller = scoped_key(operator, "user-1", ["battery-1", "battery-2"]).api_key
        buyer = scoped_key(operator, "user-2", ["battery-9"]).api_key
        server = server_key(operator).api_key
        answer = transfer(operator, "battery-1", reason="sold")
        assert answer.propagation.complete
        assert answer.revision
        assert [(device.device_id, device.reference_id) for device in answer.devices] == [("battery-1", "user-2")]
        assert reason(operator, seller, "battery-1") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, buyer, "battery-1") == "PERMITTED"
        assert reason(operator, seller, "battery-2") == "PERMITTED"
        assert reason(operator, buyer, "battery-2") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, server, "battery-1") == "PERMITTED"

    def test_a_device_may_go_to_another_workspace(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1", manufacturer="acme")
        here, there = server_key(operator).api_key, server_key(operator, OTHER).api_key
        moved = transfer(operator, "battery-1", new_workspace_id=OTHER, new_reference_id="user-1").devices[0]
        assert (moved.workspace_id, moved.reference_id, moved.manufacturer) == (OTHER, "user-1", "acme")
        assert get_device(operator, "battery-1") == moved
        assert reason(operator, here, "battery-1") == "DEVICE_NOT_FOUND"
        assert reason(operator, there, "battery-1") == "PERMITTED"
        assert listed(operator) == []
        assert listed(operator, workspace_id=OTHER) == ["battery-1"]

    def test_devices_come_back_in_the_order_of_the_request_with_their_first_time(
        self, service: Service, operator: Client
    ) -> None:
        register(operator, "user-1", "alpha", "zulu")
        made = service.clock.now
        service.clock.turn(timedelta(minutes=1))
        answer = transfer(operator, "zulu", "alpha")
        assert [device.device_id for device in answer.devices] == ["zulu", "alpha"]
        for device in answer.devices:
            assert device.create_time.ToDatetime(UTC) == made
            assert device.update_time.ToDatetime(UTC) == service.clock.now
            assert get_device(operator, device.device_id) == device

    def test_a_transfer_to_the_owner_itself_changes_nothing(self, service: Service, operator: Client) -> None:
        before = register(operator, "user-1", "battery-1")[0]
        service.clock.turn(timedelta(minutes=1))
        answer = transfer(operator, "battery-1", new_reference_id="user-1")
        assert get_device(operator, "battery-1") == before
        assert list(answer.devices) == [before], "what is answered is what is kept"

    def test_a_device_that_has_changed_hands_since_is_not_taken_and_then_none_is(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1", "battery-2")
        transfer(operator, "battery-2", new_reference_id="user-3")
        found = refused(transfer, operator, "battery-1", "battery-2")
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "DEVICE_OWNED_BY_ANOTHER")
        assert found.metadata["device_ids"] == "battery-2"
        assert get_device(operator, "battery-1").reference_id == "user-1"

    @pytest.mark.parametrize("missing", ["unknown", "elsewhere", "not an id"])
    def test_a_device_that_is_not_in_the_workspace_is_not_found_and_then_none_moves(
        self, operator: Client, missing: str
    ) -> None:
        register(operator, "user-1", "battery-1")
        register(operator, "user-1", "elsewhere", workspace_id=OTHER)
        found = refused(transfer, operator, "battery-1", missing)
        assert (found.code, found.reason) == (NOT_FOUND, "DEVICE_NOT_FOUND")
        assert found.metadata["device_ids"] == missing
        assert get_device(operator, "battery-1").reference_id == "user-1"

    def test_both_workspaces_must_exist(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1")
        for fields in ({"workspace_id": "nowhere"}, {"new_workspace_id": "nowhere"}):
            found = refused(transfer, operator, "battery-1", **fields)
            assert (found.code, found.reason) == (NOT_FOUND, "WORKSPACE_NOT_FOUND")

    def test_a_device_named_twice_is_refused_by_its_place(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1")
        found = refused(transfer, operator, "battery-1", "battery-1")
        assert list(found.violations) == ["device_ids[1]"]
        assert get_device(operator, "battery-1").reference_id == "user-1"

    @pytest.mark.parametrize(
        ("fields", "at_fault"),
        [
            ({"workspace_id": ""}, "workspace_id"),
            ({"reference_id": ""}, "reference_id"),
            ({"new_reference_id": ""}, "new_reference_id"),
            ({"new_reference_id": "a b"}, "new_reference_id"),
            ({"reason": "x" * 501}, "reason"),
        ],
    )
    def test_a_faulty_field_is_named(self, operator: Client, fields: dict[str, str], at_fault: str) -> None:
        assert list(refused(transfer, operator, "battery-1", **fields).violations) == [at_fault]

    def test_none_and_more_than_a_thousand_are_refused(self, operator: Client) -> None:
        assert list(refused(transfer, operator).violations) == ["device_ids"]
        assert list(refused(transfer, operator, *(f"d-{n}" for n in range(1001))).violations) == ["device_ids"]

    def test_a_retry_changes_nothing_and_returns_the_devices_as_they_are(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1")
        transfer(operator, "battery-1", request_id="once")
        transfer(operator, "battery-1", reference_id="user-2", new_reference_id="user-3")
        again = transfer(operator, "battery-1", request_id="once")
        assert [device.reference_id for device in again.devices] == ["user-3"]
        assert get_device(operator, "battery-1").reference_id == "user-3"


class TestRemoving:
    def test_no_key_reaches_a_removed_device(self, service: Service, operator: Client) -> None:
        scoped = scoped_key(operator, "user-1", ["battery-1", "battery-2"]).api_key
        server = server_key(operator).api_key
        answer = remove(operator, "battery-1")
        assert list(answer.removed_device_ids) == ["battery-1"]
        assert answer.remove_time.ToDatetime(UTC) == service.clock.now
        assert answer.propagation.complete
        assert answer.revision
        assert reason(operator, scoped, "battery-1") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, server, "battery-1") == "DEVICE_NOT_FOUND"
        assert reason(operator, scoped, "battery-2") == "PERMITTED"

    @pytest.mark.parametrize("missing", ["unknown", "elsewhere", "not an id"])
    def test_a_device_that_is_not_in_the_workspace_is_not_found_and_then_none_is_removed(
        self, operator: Client, missing: str
    ) -> None:
        register(operator, "user-1", "battery-1")
        register(operator, "user-1", "elsewhere", workspace_id=OTHER)
        found = refused(remove, operator, "battery-1", missing)
        assert (found.code, found.reason) == (NOT_FOUND, "DEVICE_NOT_FOUND")
        assert found.metadata["device_ids"] == missing
        assert listed(operator) == ["battery-1"]

    def test_what_is_missing_may_be_skipped(self, operator: Client) -> None:
        register(operator, "user-1", "alpha", "zulu")
        elsewhere = register(operator, "user-1", "elsewhere", workspace_id=OTHER)[0]
        answer = remove(operator, "zulu", "unknown", "elsewhere", "alpha", allow_missing=True)
        assert list(answer.removed_device_ids) == ["zulu", "alpha"]
        assert get_device(operator, "elsewhere") == elsewhere
        assert not remove(operator, "zulu", allow_missing=True).removed_device_ids

    def test_a_removed_device_may_be_registered_for_somebody_else(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1", manufacturer="acme")
        remove(operator, "battery-1")
        assert register(operator, "user-2", "battery-1", workspace_id=OTHER)[0].manufacturer == ""

    def test_an_end_users_keys_are_left_as_they_are(self, operator: Client) -> None:
        key = scoped_key(operator, "user-1", ["battery-1"])
        remove(operator, "battery-1")
        assert operator.keys.GetKey(key_pb.GetKeyRequest(key_id=key.key_id)).key.state == 1
        register(operator, "user-1", "battery-1")
        assert reason(operator, key.api_key, "battery-1") == "PERMITTED"

    def test_a_retry_removes_nothing_even_where_the_device_is_back(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1")
        assert list(remove(operator, "battery-1", request_id="once").removed_device_ids) == ["battery-1"]
        register(operator, "user-1", "battery-1")
        assert not remove(operator, "battery-1", request_id="once").removed_device_ids
        assert listed(operator) == ["battery-1"]

    def test_a_device_named_twice_is_refused_by_its_place(self, operator: Client) -> None:
        found = refused(remove, operator, "battery-1", "battery-1", allow_missing=True)
        assert list(found.violations) == ["device_ids[1]"]

    def test_the_workspace_must_exist(self, operator: Client) -> None:
        found = refused(remove, operator, "battery-1", workspace_id="nowhere", allow_missing=True)
        assert (found.code, found.reason) == (NOT_FOUND, "WORKSPACE_NOT_FOUND")
