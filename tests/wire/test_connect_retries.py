"""Completions of one Connect link that race, and completions whose answer was lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import connect_service_pb2 as pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.caller_pb2 import ROLE_CONNECT
from texture.auth.v1.key_pb2 import KEY_STATE_ACTIVE, KEY_STATE_REVOKED, Key

from tests.harness import Client, Refused, Service, as_refused, refused
from tests.wire.links_helpers import (
    WORKSPACE,
    complete,
    completion,
    connect_key,
    create_link,
    create_workspace,
    devices,
    get_device,
    get_key,
    get_link,
    link_state,
    query_of,
    reason,
    scoped_keys,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
RACERS = 16


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    return service.operator


class TestRaces:
    def test_of_sixteen_racing_completions_one_wins(self, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key)
        start = threading.Barrier(RACERS)

        def race(number: int) -> pb.CompleteConnectLinkResponse | Refused:
            start.wait()
            try:
                return complete(operator, link.link_token, f"battery-{number}")
            except grpc.RpcError as error:
                return as_refused(error)

        with ThreadPoolExecutor(RACERS) as pool:
            outcomes = list(pool.map(race, range(RACERS)))
        won = [outcome for outcome in outcomes if not isinstance(outcome, Refused)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert len(won) == 1
        assert {(found.code, found.reason) for found in lost} == {(FAILED_PRECONDITION, "CONNECT_LINK_COMPLETED")}
        assert devices(operator) == [won[0].devices[0].device_id]
        assert scoped_keys(operator) == [won[0].scoped_key.key_id]
        assert get_link(operator, link.connect_link.connect_link_id) == won[0].connect_link

    def test_of_sixteen_end_users_who_claim_one_device_at_once_one_has_it(self, operator: Client) -> None:
        api_key = connect_key(operator).api_key
        links = [create_link(operator, api_key) for _ in range(RACERS)]
        start = threading.Barrier(RACERS)

        def race(link: pb.CreateConnectLinkResponse) -> pb.CompleteConnectLinkResponse | Refused:
            start.wait()
            try:
                return complete(operator, link.link_token, "battery-1")
            except grpc.RpcError as error:
                return as_refused(error)

        with ThreadPoolExecutor(RACERS) as pool:
            outcomes = list(pool.map(race, links))
        (won,) = [outcome for outcome in outcomes if not isinstance(outcome, Refused)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, Refused)]
        assert {(found.code, found.reason) for found in lost} == {(FAILED_PRECONDITION, "DEVICE_OWNED_BY_ANOTHER")}
        assert get_device(operator, "battery-1").reference_id == won.connect_link.reference_id
        assert scoped_keys(operator) == [won.scoped_key.key_id]
        states = [link_state(operator, link.connect_link.connect_link_id) for link in links]
        assert sorted(states) == ["COMPLETED"] + ["OPEN"] * (RACERS - 1)

    def test_racing_retries_of_one_request_leave_one_working_key(self, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key)
        start = threading.Barrier(RACERS)

        def race(_number: int) -> str:
            start.wait()
            return complete(operator, link.link_token, "battery-1", request_id="once").scoped_api_key

        with ThreadPoolExecutor(RACERS) as pool:
            api_keys = list(pool.map(race, range(RACERS)))
        reasons = sorted(reason(operator, api_key, "battery-1") for api_key in api_keys)
        assert reasons == ["KEY_REVOKED"] * (RACERS - 1) + ["PERMITTED"]
        assert scoped_keys(operator, KEY_STATE_ACTIVE) == [
            get_link(operator, link.connect_link.connect_link_id).scoped_key_id
        ]


class TestRetries:
    def test_a_retry_gets_a_fresh_key_and_the_one_that_nobody_saw_is_revoked(
        self, service: Service, operator: Client
    ) -> None:
        link = create_link(operator, connect_key(operator).api_key, client_state="s")
        lost = complete(operator, link.link_token, "battery-2", "battery-1", request_id="once")
        assert reason(operator, lost.scoped_api_key, "battery-1") == "PERMITTED"
        service.clock.turn(timedelta(minutes=1))
        again = complete(operator, link.link_token, "battery-2", "battery-1", request_id="once")

        assert again.scoped_api_key != lost.scoped_api_key
        assert again.scoped_key.key_id != lost.scoped_key.key_id
        assert reason(operator, again.scoped_api_key, "battery-1") == "PERMITTED"
        assert reason(operator, lost.scoped_api_key, "battery-1") == "KEY_REVOKED"
        assert get_key(operator, lost.scoped_key.key_id).state == KEY_STATE_REVOKED
        assert get_key(operator, lost.scoped_key.key_id).state_reason
        assert again.connect_link.scoped_key_id == again.scoped_key.key_id
        assert again.connect_link.end_time == lost.connect_link.end_time
        assert query_of(again.redirect_uri) == {"texture_scoped_key": [again.scoped_api_key], "client_state": ["s"]}
        assert get_link(operator, link.connect_link.connect_link_id) == again.connect_link

    def test_a_retry_names_the_devices_as_they_are_in_the_order_of_the_request(self, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        names = ["zulu", "alpha", "mike"]
        first = complete(operator, token, *names, request_id="once")
        again = complete(operator, token, *names, request_id="once")
        assert [device.device_id for device in first.devices] == names
        assert list(again.devices) == list(first.devices)

    def test_a_retry_after_the_links_time_still_gets_its_answer(self, service: Service, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        complete(operator, token, "battery-1", request_id="once")
        service.clock.turn(timedelta(hours=23))
        again = complete(operator, token, "battery-1", request_id="once")
        assert reason(operator, again.scoped_api_key, "battery-1") == "PERMITTED"

    def test_a_retry_hands_out_nothing_once_the_links_key_is_revoked(self, operator: Client) -> None:
        site = connect_key(operator)
        token = create_link(operator, site.api_key).link_token
        complete(operator, token, "battery-1", request_id="once")
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=site.key.key_id))
        found = refused(complete, operator, token, "battery-1", request_id="once")
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "CONNECT_LINK_KEY_NOT_LIVE")
        assert len(scoped_keys(operator)) == 1

    def test_a_device_that_changed_hands_in_between_is_not_given_back(self, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key)
        complete(operator, link.link_token, "battery-1", "battery-2", request_id="once")
        operator.devices.TransferDevices(
            device_pb.TransferDevicesRequest(
                workspace_id=WORKSPACE,
                reference_id=link.connect_link.reference_id,
                device_ids=["battery-1"],
                new_reference_id="user-2",
            )
        )
        again = complete(operator, link.link_token, "battery-1", "battery-2", request_id="once")
        assert [device.device_id for device in again.devices] == ["battery-2"]
        assert get_device(operator, "battery-1").reference_id == "user-2"
        assert reason(operator, again.scoped_api_key, "battery-1") == "DEVICE_NOT_PERMITTED"

    def test_another_request_id_is_another_request(self, operator: Client) -> None:
        token = create_link(operator, connect_key(operator).api_key).link_token
        complete(operator, token, "battery-1", request_id="once")
        found = refused(complete, operator, token, "battery-1", request_id="twice")
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "CONNECT_LINK_COMPLETED")

    def test_another_caller_cannot_retry_it(self, service: Service, operator: Client) -> None:
        backend = service.caller("connect-backend", ROLE_CONNECT)
        token = create_link(operator, connect_key(operator).api_key).link_token
        first = complete(operator, token, "battery-1", request_id="once")
        found = refused(complete, backend, token, "battery-1", request_id="once")
        assert found.reason == "CONNECT_LINK_COMPLETED"
        assert reason(operator, first.scoped_api_key, "battery-1") == "PERMITTED"

    @pytest.mark.parametrize("other", ["devices", "link"])
    def test_a_request_id_is_refused_for_something_else(self, operator: Client, other: str) -> None:
        api_key = connect_key(operator).api_key
        token, second = (create_link(operator, api_key).link_token for _ in range(2))
        first = complete(operator, token, "battery-1", request_id="once")
        if other == "devices":
            request = completion(token, "battery-2", request_id="once")
        else:
            request = completion(second, "battery-1", request_id="once")
        found = refused(operator.connect.CompleteConnectLink, request)
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["request_id"]
        assert reason(operator, first.scoped_api_key, "battery-1") == "PERMITTED"


TOUCHED = {
    "revoked": lambda client, key_id: client.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id)),
    "suspended": lambda client, key_id: client.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=key_id)),
    "rotated": lambda client, key_id: client.keys.RotateKey(key_pb.RotateKeyRequest(key_id=key_id)),
    "narrowed": lambda client, key_id: client.keys.UpdateKey(
        key_pb.UpdateKeyRequest(
            key=Key(key_id=key_id, permissions=["devices:read"]), update_mask=FieldMask(paths=["permissions"])
        )
    ),
}


@pytest.mark.parametrize("touch", TOUCHED)
def test_a_replay_does_not_undo_what_was_done_to_the_key_since(service: Service, operator: Client, touch: str) -> None:
    token = create_link(operator, connect_key(operator).api_key).link_token
    done = complete(operator, token, "battery-1", request_id="once")
    service.clock.turn(timedelta(minutes=1))
    TOUCHED[touch](operator, done.scoped_key.key_id)
    before = get_key(operator, done.scoped_key.key_id)

    found = refused(complete, operator, token, "battery-1", request_id="once")

    assert (found.code, found.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_REPEATED")
    assert found.metadata == {"key_id": done.scoped_key.key_id}
    assert get_key(operator, done.scoped_key.key_id) == before
    assert len(scoped_keys(operator)) == 1
