"""What becomes of scoped keys when devices change hands: the story of a battery, its sellers and its buyers."""

from __future__ import annotations

import grpc
import pytest
from texture.auth.v1.key_pb2 import KEY_STATE_ACTIVE

from tests.harness import Client, Service, refused
from tests.wire.links_helpers import (
    BACKEND_URI,
    WORKSPACE,
    complete,
    completion,
    create_link,
    create_workspace,
    get_device,
    get_key,
    link_state,
    listed,
    one,
    reason,
    register,
    register_all,
    remove,
    scoped_key,
    scoped_keys,
    server_key,
    transfer,
)

SELLER = "user-1"
BUYER = "user-2"
ELSEWHERE = "grid-two"
CONFLICT = (grpc.StatusCode.FAILED_PRECONDITION, "DEVICE_OWNED_BY_ANOTHER")


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    create_workspace(service.operator, ELSEWHERE)
    return service.operator


class TestTransfer:
    def test_a_sold_device_answers_to_the_buyer_and_the_sellers_key_lives_on_for_the_rest(
        self, operator: Client
    ) -> None:
        seller = scoped_key(operator, SELLER, ["battery", "charger"])
        buyer = scoped_key(operator, BUYER, ["thermostat"])
        assert reason(operator, seller.api_key, "battery") == "PERMITTED"
        assert reason(operator, buyer.api_key, "battery") == "DEVICE_NOT_PERMITTED"
        before = get_key(operator, seller.key_id)

        transfer(operator, "battery")

        for permission in ("devices:read", "devices:command"):
            assert reason(operator, seller.api_key, "battery", permission) == "DEVICE_NOT_PERMITTED"
            assert reason(operator, buyer.api_key, "battery", permission) == "PERMITTED"
        assert get_key(operator, seller.key_id) == before
        assert before.state == KEY_STATE_ACTIVE
        assert reason(operator, seller.api_key, "charger") == "PERMITTED"
        assert reason(operator, buyer.api_key, "charger") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, seller.api_key) == "PERMITTED"
        assert sorted(scoped_keys(operator)) == sorted([seller.key_id, buyer.key_id]), "nothing is minted by a sale"

    def test_every_key_of_the_seller_loses_the_device_and_every_key_of_the_buyer_gains_it(
        self, operator: Client
    ) -> None:
        sellers = [scoped_key(operator, SELLER, ["battery"]).api_key for _ in range(2)]
        buyers = [scoped_key(operator, BUYER, ["thermostat"]).api_key for _ in range(2)]
        transfer(operator, "battery")
        assert [reason(operator, key, "battery") for key in sellers] == ["DEVICE_NOT_PERMITTED"] * 2
        assert [reason(operator, key, "battery") for key in buyers] == ["PERMITTED"] * 2

    def test_a_device_that_comes_back_is_reached_again_by_the_key_that_was_left(self, operator: Client) -> None:
        seller = scoped_key(operator, SELLER, ["battery"])
        transfer(operator, "battery")
        assert reason(operator, seller.api_key, "battery") == "DEVICE_NOT_PERMITTED"
        transfer(operator, "battery", reference_id=BUYER, new_reference_id=SELLER)
        assert reason(operator, seller.api_key, "battery") == "PERMITTED"

    def test_a_buyer_without_a_key_gets_one_by_connecting_the_device(self, operator: Client) -> None:
        scoped_key(operator, SELLER, ["battery"])
        transfer(operator, "battery")
        buyer = scoped_key(operator, BUYER, ["battery"])
        assert reason(operator, buyer.api_key, "battery") == "PERMITTED"

    @pytest.mark.parametrize("new_owner", [SELLER, BUYER])
    def test_a_device_that_goes_to_another_workspace_is_out_of_reach_of_every_key_that_stays(
        self, operator: Client, new_owner: str
    ) -> None:
        seller = scoped_key(operator, SELLER, ["battery", "charger"])
        neighbour = scoped_key(operator, BUYER, ["thermostat"])
        there = scoped_key(operator, new_owner, ["far"], workspace_id=ELSEWHERE)
        transfer(operator, "battery", new_workspace_id=ELSEWHERE, new_reference_id=new_owner)
        assert reason(operator, there.api_key, "battery") == "PERMITTED"
        # Even where the owner is called the same.
        assert reason(operator, seller.api_key, "battery") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, neighbour.api_key, "battery") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, seller.api_key, "charger") == "PERMITTED"
        assert get_key(operator, seller.key_id).state == KEY_STATE_ACTIVE


class TestOpenLinks:
    def test_an_open_link_of_the_seller_cannot_take_the_device_back(self, operator: Client) -> None:
        register(operator, SELLER, "battery", "charger")
        backend = server_key(operator).api_key
        link = create_link(operator, backend, BACKEND_URI, reference_id=SELLER)
        transfer(operator, "battery")

        error = refused(complete, operator, link.link_token, "charger", "battery", "new")

        assert (error.code, error.reason) == CONFLICT
        assert error.metadata["device_ids"] == "battery"
        assert get_device(operator, "battery").reference_id == BUYER
        assert listed(operator) == ["battery", "charger"], "none of the others was recorded"
        assert scoped_keys(operator) == []
        assert link_state(operator, link.connect_link.connect_link_id) == "OPEN"
        done = complete(operator, link.link_token, "charger", "new")
        assert reason(operator, done.scoped_api_key, "new") == "PERMITTED"
        assert reason(operator, done.scoped_api_key, "battery") == "DEVICE_NOT_PERMITTED"

    def test_nor_can_one_in_the_workspace_that_the_device_has_left(self, operator: Client) -> None:
        register(operator, SELLER, "battery")
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id=SELLER)
        transfer(operator, "battery", new_workspace_id=ELSEWHERE, new_reference_id=SELLER)
        error = refused(complete, operator, link.link_token, "battery")
        assert (error.code, error.reason) == CONFLICT
        assert get_device(operator, "battery").workspace_id == ELSEWHERE

    def test_an_open_link_of_the_buyer_may_name_the_device_once_it_is_theirs(self, operator: Client) -> None:
        register(operator, SELLER, "battery")
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id=BUYER)
        error = refused(complete, operator, link.link_token, "battery")
        assert (error.code, error.reason) == CONFLICT
        transfer(operator, "battery")
        done = complete(operator, link.link_token, "battery")
        assert reason(operator, done.scoped_api_key, "battery") == "PERMITTED"

    def test_a_completion_whose_answer_was_lost_gives_no_key_to_a_device_that_was_sold_since(
        self, operator: Client
    ) -> None:
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id=SELLER)
        request = completion(link.link_token, "battery", "charger", request_id="lost")
        operator.connect.CompleteConnectLink(request)
        transfer(operator, "battery")

        again = operator.connect.CompleteConnectLink(request)

        assert [device.device_id for device in again.devices] == ["charger"]
        assert reason(operator, again.scoped_api_key, "charger") == "PERMITTED"
        assert reason(operator, again.scoped_api_key, "battery") == "DEVICE_NOT_PERMITTED"
        assert get_device(operator, "battery").reference_id == BUYER


class TestRemoval:
    def test_a_removed_device_is_out_of_reach_and_the_key_lives_on_for_the_rest(self, operator: Client) -> None:
        key = scoped_key(operator, SELLER, ["battery", "charger"])
        before = get_key(operator, key.key_id)
        remove(operator, "battery")
        assert reason(operator, key.api_key, "battery") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, key.api_key, "charger") == "PERMITTED"
        assert get_key(operator, key.key_id) == before
        remove(operator, "charger")
        assert reason(operator, key.api_key, "charger") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, key.api_key) == "PERMITTED", "a list that holds nothing"
        assert get_key(operator, key.key_id) == before

    @pytest.mark.parametrize(("workspace_id", "reference_id"), [(WORKSPACE, BUYER), (ELSEWHERE, SELLER)])
    def test_whoever_registers_a_removed_device_owns_it_and_the_old_owners_key_does_not_reach_it(
        self, operator: Client, workspace_id: str, reference_id: str
    ) -> None:
        old = scoped_key(operator, SELLER, ["battery"])
        new = scoped_key(operator, reference_id, ["charger"], workspace_id=workspace_id)
        remove(operator, "battery")
        register(operator, reference_id, "battery", workspace_id=workspace_id)
        assert reason(operator, old.api_key, "battery") == "DEVICE_NOT_PERMITTED"
        assert reason(operator, new.api_key, "battery") == "PERMITTED"
        error = refused(register_all, operator, one("battery", SELLER))
        assert (error.code, error.reason) == CONFLICT

    def test_an_open_link_of_the_old_owner_records_a_removed_device_anew_unless_somebody_else_has_it(
        self, operator: Client
    ) -> None:
        backend = server_key(operator).api_key
        links = [create_link(operator, backend, BACKEND_URI, reference_id=SELLER).link_token for _ in range(2)]
        register(operator, SELLER, "battery", "charger")
        remove(operator, "battery", "charger")
        register(operator, BUYER, "battery")
        error = refused(complete, operator, links[0], "battery")
        assert (error.code, error.reason) == CONFLICT
        done = complete(operator, links[1], "charger")
        assert reason(operator, done.scoped_api_key, "charger") == "PERMITTED"
