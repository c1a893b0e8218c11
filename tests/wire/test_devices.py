"""Who owns which device."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import device_service_pb2 as pb
from texture.auth.v1.device_pb2 import Device

from tests.harness import Client, Service, refused
from tests.wire.links_helpers import (
    WORKSPACE,
    create_workspace,
    get_device,
    listed,
    one,
    reason,
    register,
    register_all,
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


class TestRegistering:
    def test_new_devices_are_recorded_and_returned_in_order(self, service: Service, operator: Client) -> None:
        answer = register_all(operator, one("zulu", manufacturer="acme"), one("alpha", "user-2"))
        assert [device.device_id for device in answer.devices] == ["zulu", "alpha"]
        device = answer.devices[0]
        assert (device.workspace_id, device.reference_id, device.manufacturer) == (WORKSPACE, "user-1", "acme")
        assert device.create_time.ToDatetime(UTC) == device.update_time.ToDatetime(UTC) == service.clock.now
        assert answer.revision
        assert [get_device(operator, device.device_id) for device in answer.devices] == list(answer.devices)

    def test_a_known_device_may_be_given_another_maker(self, service: Service, operator: Client) -> None:
        before = register_all(operator, one("battery-1", manufacturer="acme")).devices[0]
        service.clock.turn(timedelta(minutes=1))
        after = register_all(operator, one("battery-1", manufacturer="volt-way")).devices[0]
        assert after.manufacturer == "volt-way"
        assert after.create_time == before.create_time
        assert after.update_time.ToDatetime(UTC) == service.clock.now
        assert get_device(operator, "battery-1") == after

    def test_an_empty_maker_leaves_what_is_recorded(self, service: Service, operator: Client) -> None:
        before = register_all(operator, one("battery-1", manufacturer="acme")).devices[0]
        service.clock.turn(timedelta(minutes=1))
        assert register_all(operator, one("battery-1")).devices[0] == before
        assert get_device(operator, "battery-1") == before

    def test_what_is_registered_is_reached_at_once(self, operator: Client) -> None:
        api_key = server_key(operator).api_key
        assert reason(operator, api_key, "battery-1") == "DEVICE_NOT_FOUND"
        register(operator, "user-1", "battery-1")
        assert reason(operator, api_key, "battery-1") == "PERMITTED"

    @pytest.mark.parametrize("taken_by", ["another end user", "another workspace"])
    def test_a_device_that_somebody_else_has_is_a_conflict_and_then_none_is_recorded(
        self, operator: Client, taken_by: str
    ) -> None:
        if taken_by == "another end user":
            theirs = register(operator, "user-2", "battery-9")[0]
        else:
            theirs = register(operator, "user-1", "battery-9", workspace_id=OTHER)[0]
        known = register_all(operator, one("known", manufacturer="acme")).devices[0]
        found = refused(
            register_all, operator, one("new-1"), one("known", manufacturer="other"), one("battery-9"), one("new-2")
        )
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "DEVICE_OWNED_BY_ANOTHER")
        assert found.metadata["device_ids"] == "battery-9"
        assert get_device(operator, "battery-9") == theirs
        assert get_device(operator, "known") == known
        for device_id in ("new-1", "new-2"):
            missing = refused(get_device, operator, device_id)
            assert missing.reason == "DEVICE_NOT_FOUND"

    def test_a_workspace_must_exist(self, operator: Client) -> None:
        found = refused(register_all, operator, one("battery-1"), workspace_id="nowhere")
        assert (found.code, found.reason) == (NOT_FOUND, "WORKSPACE_NOT_FOUND")

    def test_every_fault_is_named_by_its_place(self, operator: Client) -> None:
        found = refused(
            register_all,
            operator,
            one("fine"),
            one("not fine"),
            one("no-user", ""),
            one("bad-user", "user 1"),
            one("bad-maker", manufacturer="Acme"),
            one("fine"),
            one(""),
            workspace_id="",
        )
        assert found.code is INVALID_ARGUMENT
        fields = {field.removesuffix(".device_id") if "[5]" in field else field for field in found.violations}
        assert fields == {
            "workspace_id",
            "devices[1].device_id",
            "devices[2].reference_id",
            "devices[3].reference_id",
            "devices[4].manufacturer",
            "devices[5]",
            "devices[6].device_id",
        }

    @pytest.mark.parametrize("device_id", ["a", "A.b:c_d-e", "0" * 128])
    def test_an_id_may_be(self, operator: Client, device_id: str) -> None:
        register(operator, "user-1", device_id)
        assert get_device(operator, device_id).device_id == device_id

    @pytest.mark.parametrize("device_id", ["-a", "a/b", "ü", "0" * 129, "a\n", " a", "a,b"])
    def test_an_id_may_not_be(self, operator: Client, device_id: str) -> None:
        assert list(refused(register_all, operator, one(device_id)).violations) == ["devices[0].device_id"]

    def test_a_thousand_devices_go_at_once(self, operator: Client) -> None:
        names = [f"device-{number}" for number in range(1000)]
        assert [device.device_id for device in register(operator, "user-1", *names)] == names
        assert sorted(listed(operator, page_size=1000)) == sorted(names)
        assert list(remove(operator, *names).removed_device_ids) == names
        assert listed(operator) == []

    @pytest.mark.parametrize("count", [0, 1001])
    def test_none_and_more_than_a_thousand_are_refused(self, operator: Client, count: int) -> None:
        found = refused(register_all, operator, *(one(f"device-{number}") for number in range(count)))
        assert list(found.violations) == ["devices"]

    def test_a_retry_changes_nothing_and_returns_the_devices_as_they_are(
        self, service: Service, operator: Client
    ) -> None:
        register_all(operator, one("battery-2"), one("battery-1"), request_id="once")
        service.clock.turn(timedelta(minutes=1))
        changed = register_all(operator, one("battery-1", manufacturer="acme")).devices[0]
        again = register_all(operator, one("battery-2"), one("battery-1"), request_id="once")
        assert [device.device_id for device in again.devices] == ["battery-2", "battery-1"]
        assert again.devices[1] == changed

    def test_a_retry_does_not_bring_back_what_was_removed(self, operator: Client) -> None:
        register_all(operator, one("battery-1"), request_id="once")
        remove(operator, "battery-1")
        assert not register_all(operator, one("battery-1"), request_id="once").devices
        assert listed(operator) == []

    @pytest.mark.parametrize("device_id", ["", "unknown", "not an id"])
    def test_an_unknown_device_is_not_found(self, operator: Client, device_id: str) -> None:
        found = refused(get_device, operator, device_id)
        assert (found.code, found.reason) == (NOT_FOUND, "DEVICE_NOT_FOUND")


class TestListing:
    def test_devices_are_listed_in_order_of_registration_whatever_happened_to_them_since(
        self, operator: Client
    ) -> None:
        for device_id in ("charlie", "alpha", "bravo"):
            register(operator, "user-1", device_id)
        register_all(operator, one("charlie", manufacturer="acme"))
        transfer(operator, "alpha")
        assert listed(operator) == ["charlie", "alpha", "bravo"]

    def test_filters_narrow_the_list(self, operator: Client) -> None:
        register(operator, "user-1", "one-acme", manufacturer="acme")
        register(operator, "user-1", "one-volt", manufacturer="volt")
        register(operator, "user-2", "two-acme", manufacturer="acme")
        register(operator, "user-2", "two-unknown")
        register(operator, "user-1", "elsewhere", workspace_id=OTHER, manufacturer="acme")
        assert listed(operator) == ["one-acme", "one-volt", "two-acme", "two-unknown"]
        assert listed(operator, reference_id="user-1") == ["one-acme", "one-volt"]
        assert listed(operator, manufacturers=["acme"]) == ["one-acme", "two-acme"]
        assert listed(operator, manufacturers=["acme", "volt"]) == ["one-acme", "one-volt", "two-acme"]
        assert listed(operator, reference_id="user-2", manufacturers=["acme"]) == ["two-acme"]
        assert listed(operator, reference_id="nobody") == []

    def test_the_scope_of_an_answer_can_be_passed_on(self, operator: Client) -> None:
        register(operator, "user-1", "one-acme", manufacturer="acme")
        register(operator, "user-1", "one-volt", manufacturer="volt")
        register(operator, "user-2", "two-acme", manufacturer="acme")
        register(operator, "user-1", "elsewhere", workspace_id=OTHER)
        everything = server_key(operator).api_key
        restricted = server_key(operator, allowed_manufacturers=["acme"]).api_key
        scoped = scoped_key(operator, "user-1", ["one-acme"]).api_key
        expected = {
            everything: ["one-acme", "one-volt", "two-acme"],
            restricted: ["one-acme", "two-acme"],
            scoped: ["one-acme", "one-volt"],
        }
        for api_key, names in expected.items():
            question = authorize_pb.AuthorizeRequest(api_key=api_key, permission="devices:list")
            scope = operator.authorize.Authorize(question).device_scope
            found = listed(
                operator,
                workspace_id=scope.workspace_id,
                reference_id=scope.reference_id,
                manufacturers=scope.manufacturers,
            )
            assert found == names
            # What may be listed is what may be read.
            for device_id in ("one-acme", "one-volt", "two-acme", "elsewhere"):
                assert (reason(operator, api_key, device_id) == "PERMITTED") == (device_id in names)

    def test_pages_hold_every_device_once(self, operator: Client) -> None:
        names = [f"device-{number:02}" for number in range(7)]
        register(operator, "user-1", *names)
        register(operator, "user-2", "other")
        found, token = [], ""
        sizes = []
        while True:
            request = pb.ListDevicesRequest(
                workspace_id=WORKSPACE, reference_id="user-1", page_size=3, page_token=token
            )
            page = operator.devices.ListDevices(request)
            sizes.append(len(page.devices))
            found += [device.device_id for device in page.devices]
            token = page.next_page_token
            if not token:
                break
        assert found == names
        assert sizes == [3, 3, 1]

    def test_a_device_that_stays_is_listed_once_while_others_come_and_go(self, operator: Client) -> None:
        for number in range(6):
            register(operator, "user-1", f"device-{number}")
        first = operator.devices.ListDevices(pb.ListDevicesRequest(workspace_id=WORKSPACE, page_size=3))
        remove(operator, "device-0", "device-4")
        register(operator, "user-1", "a-new-one")
        rest = listed(operator, page_size=1000, page_token=first.next_page_token)
        assert [device.device_id for device in first.devices] == ["device-0", "device-1", "device-2"]
        assert rest == ["device-3", "device-5", "a-new-one"]

    def test_without_a_size_a_page_has_fifty_and_never_more_than_a_thousand(self, operator: Client) -> None:
        register(operator, "user-1", *(f"device-{number}" for number in range(1000)))
        register(operator, "user-1", "device-1000")
        assert len(listed(operator)) == 50
        assert len(listed(operator, page_size=5000)) == 1000

    @pytest.mark.parametrize(
        ("fields", "at_fault"),
        [
            ({"page_size": -1}, "page_size"),
            ({"page_token": "nonsense"}, "page_token"),
            ({"page_token": "ü"}, "page_token"),
            ({"manufacturers": ["Acme"]}, "manufacturers[0]"),
            ({"manufacturers": [f"maker-{number}" for number in range(65)]}, "manufacturers"),
            ({"workspace_id": ""}, "workspace_id"),
        ],
    )
    def test_what_cannot_be_listed_is_refused(self, operator: Client, fields: dict[str, Any], at_fault: str) -> None:
        found = refused(listed, operator, **fields)
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == [at_fault]

    def test_a_page_token_is_for_its_filter_only(self, operator: Client) -> None:
        register(operator, "user-1", "battery-1", "battery-2")
        request = pb.ListDevicesRequest(workspace_id=WORKSPACE, page_size=1)
        token = operator.devices.ListDevices(request).next_page_token
        others: list[dict[str, Any]] = [
            {"reference_id": "user-1"},
            {"workspace_id": OTHER},
            {"manufacturers": ["acme"]},
        ]
        for other in others:
            assert list(refused(listed, operator, page_token=token, **other).violations) == ["page_token"]

    def test_an_unknown_workspace_is_not_found(self, operator: Client) -> None:
        found = refused(listed, operator, workspace_id="nowhere")
        assert (found.code, found.reason) == (NOT_FOUND, "WORKSPACE_NOT_FOUND")


def test_devices_of_unknown_makers_are_reached_by_no_key_that_is_restricted_to_makers(operator: Client) -> None:
    register(operator, "user-1", "known", manufacturer="acme")
    register(operator, "user-1", "unknown")
    api_key = server_key(operator, allowed_manufacturers=["acme"]).api_key
    assert reason(operator, api_key, "known") == "PERMITTED"
    assert reason(operator, api_key, "unknown") == "MANUFACTURER_NOT_PERMITTED"
    assert isinstance(get_device(operator, "unknown"), Device)
