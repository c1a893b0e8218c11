"""Finding and cancelling Connect links, and where they stand."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, timedelta

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import connect_service_pb2 as pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.connect_link_pb2 import CONNECT_LINK_STATE_CANCELLED

from server.domain.token import TokenKind, mint, new_id
from tests.harness import Client, Service, refused
from tests.wire.links_helpers import (
    BACKEND_URI,
    SITE_URI,
    cancel,
    complete,
    connect_key,
    create_link,
    create_workspace,
    forbid_links,
    get_link,
    link_state,
    register_uris,
    server_key,
    unregister_workspace_uris,
    with_wrong_secret,
)

NOT_FOUND = grpc.StatusCode.NOT_FOUND
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    return service.operator


class TestFinding:
    def test_a_link_is_found_by_its_id_and_by_its_token(self, operator: Client) -> None:
        made = create_link(operator, connect_key(operator).api_key)
        by_id = operator.connect.GetConnectLink(
            pb.GetConnectLinkRequest(connect_link_id=made.connect_link.connect_link_id)
        )
        by_token = operator.connect.GetConnectLink(pb.GetConnectLinkRequest(link_token=made.link_token))
        assert by_id.connect_link == by_token.connect_link == made.connect_link

    @pytest.mark.parametrize("link_id", ["", "0000000000000000", "nonsense", "ü" * 500])
    def test_an_unknown_id_is_not_found(self, operator: Client, link_id: str) -> None:
        found = refused(operator.connect.GetConnectLink, pb.GetConnectLinkRequest(connect_link_id=link_id))
        assert (found.code, found.reason) == (NOT_FOUND, "CONNECT_LINK_NOT_FOUND")

    @pytest.mark.parametrize(
        "change",
        [
            lambda _: "",
            lambda _: "nonsense",
            lambda token: "ü" + token,
            lambda token: token + "0",
            lambda token: token[:-1],
            lambda token: token.swapcase(),
            with_wrong_secret,
            lambda _: mint(TokenKind.LINK, new_id()).text,
            lambda token: mint(TokenKind.CONNECT, token.split("_")[1]).text,
        ],
        ids=["empty", "noise", "more before", "more after", "less", "other case", "wrong secret", "unknown", "key"],
    )
    def test_a_malformed_unknown_or_wrong_token_is_not_found(
        self, operator: Client, change: Callable[[str], str]
    ) -> None:
        token = change(create_link(operator, connect_key(operator).api_key).link_token)
        asked = pb.GetConnectLinkRequest(link_token=token)
        found = refused(operator.connect.GetConnectLink, asked)
        assert (found.code, found.reason) == (NOT_FOUND, "CONNECT_LINK_NOT_FOUND")
        assert token == "" or token not in repr(found)

    def test_asking_for_no_link_is_invalid(self, operator: Client) -> None:
        found = refused(operator.connect.GetConnectLink, pb.GetConnectLinkRequest())
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["link"]


class TestStates:
    def test_a_fresh_link_is_open(self, operator: Client) -> None:
        made = create_link(operator, connect_key(operator).api_key)
        assert link_state(operator, made.connect_link.connect_link_id) == "OPEN"

    def test_a_completed_link_is_completed_for_good(self, service: Service, operator: Client) -> None:
        key = connect_key(operator)
        made = create_link(operator, key.api_key)
        done = complete(operator, made.link_token, "battery-1")
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key.key.key_id))
        service.clock.turn(timedelta(days=30))
        link = get_link(operator, made.connect_link.connect_link_id)
        assert link_state(operator, link.connect_link_id) == "COMPLETED"
        assert link == done.connect_link
        assert link.scoped_key_id == done.scoped_key.key_id
        assert link.end_time == link.create_time

    def test_a_link_expires_at_the_very_instant(self, service: Service, operator: Client) -> None:
        link_id = create_link(operator, connect_key(operator).api_key).connect_link.connect_link_id
        service.clock.turn(timedelta(hours=4) - timedelta(microseconds=1))
        assert link_state(operator, link_id) == "OPEN"
        service.clock.turn(timedelta(microseconds=1))
        assert link_state(operator, link_id) == "EXPIRED"

    def test_revoking_its_key_blocks_an_open_link(self, operator: Client) -> None:
        key = connect_key(operator)
        link_id = create_link(operator, key.api_key).connect_link.connect_link_id
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key.key.key_id))
        assert link_state(operator, link_id) == "BLOCKED"

    def test_suspending_its_key_blocks_a_link_while_that_is_so(self, operator: Client) -> None:
        key = connect_key(operator)
        link_id = create_link(operator, key.api_key).connect_link.connect_link_id
        operator.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=key.key.key_id))
        assert link_state(operator, link_id) == "BLOCKED"
        operator.keys.ResumeKey(key_pb.ResumeKeyRequest(key_id=key.key.key_id))
        assert link_state(operator, link_id) == "OPEN"

    def test_the_end_of_its_key_blocks_a_link(self, service: Service, operator: Client) -> None:
        ends = Timestamp()
        ends.FromDatetime(service.clock.now + timedelta(hours=1))
        link_id = create_link(operator, connect_key(operator, expire_time=ends).api_key).connect_link.connect_link_id
        service.clock.turn(timedelta(hours=1))
        assert link_state(operator, link_id) == "BLOCKED"

    def test_taking_the_permission_from_its_key_blocks_a_link(self, operator: Client) -> None:
        key = server_key(operator)
        link_id = create_link(operator, key.api_key, BACKEND_URI).connect_link.connect_link_id
        forbid_links(operator, key.key.key_id)
        assert link_state(operator, link_id) == "BLOCKED"

    def test_unregistering_the_uri_from_the_connect_key_blocks_a_link(self, operator: Client) -> None:
        key = connect_key(operator)
        link_id = create_link(operator, key.api_key).connect_link.connect_link_id
        register_uris(operator, key.key.key_id, "https://elsewhere.example/done")
        assert link_state(operator, link_id) == "BLOCKED"
        register_uris(operator, key.key.key_id, SITE_URI)
        assert link_state(operator, link_id) == "OPEN"

    def test_unregistering_the_uri_from_the_workspace_blocks_a_server_keys_link(self, operator: Client) -> None:
        link_id = create_link(operator, server_key(operator).api_key, BACKEND_URI).connect_link.connect_link_id
        unregister_workspace_uris(operator)
        assert link_state(operator, link_id) == "BLOCKED"

    def test_rotating_its_key_leaves_a_link_open(self, operator: Client) -> None:
        key = connect_key(operator)
        link_id = create_link(operator, key.api_key).connect_link.connect_link_id
        operator.keys.RotateKey(key_pb.RotateKeyRequest(key_id=key.key.key_id))
        assert link_state(operator, link_id) == "OPEN"


class TestCancelling:
    def test_a_cancelled_link_is_cancelled_for_good(self, service: Service, operator: Client) -> None:
        made = create_link(operator, connect_key(operator).api_key)
        service.clock.turn(timedelta(minutes=1))
        cancelled = cancel(operator, made.connect_link.connect_link_id, reason="the user left")
        assert cancelled.connect_link.state == CONNECT_LINK_STATE_CANCELLED
        assert cancelled.cancel_time.ToDatetime(UTC) == service.clock.now
        assert cancelled.connect_link.end_time == cancelled.cancel_time
        assert cancelled.revision
        service.clock.turn(timedelta(days=1))
        assert link_state(operator, made.connect_link.connect_link_id) == "CANCELLED"

    def test_cancelling_again_changes_nothing(self, service: Service, operator: Client) -> None:
        link_id = create_link(operator, connect_key(operator).api_key).connect_link.connect_link_id
        first = cancel(operator, link_id)
        service.clock.turn(timedelta(minutes=1))
        assert cancel(operator, link_id) == first

    def test_a_retry_with_the_same_request_id_changes_nothing(self, service: Service, operator: Client) -> None:
        link_id = create_link(operator, connect_key(operator).api_key).connect_link.connect_link_id
        first = cancel(operator, link_id, request_id="once")
        service.clock.turn(timedelta(minutes=1))
        again = cancel(operator, link_id, request_id="once")
        assert again.connect_link == first.connect_link
        assert again.cancel_time == first.cancel_time

    def test_a_completed_link_cannot_be_cancelled(self, operator: Client) -> None:
        made = create_link(operator, connect_key(operator).api_key)
        complete(operator, made.link_token, "battery-1")
        found = refused(cancel, operator, made.connect_link.connect_link_id)
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "CONNECT_LINK_COMPLETED")

    def test_a_blocked_link_can_be_cancelled(self, operator: Client) -> None:
        key = connect_key(operator)
        link_id = create_link(operator, key.api_key).connect_link.connect_link_id
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key.key.key_id))
        assert cancel(operator, link_id).connect_link.state == CONNECT_LINK_STATE_CANCELLED

    def test_an_unknown_link_is_not_found(self, operator: Client) -> None:
        found = refused(cancel, operator, "0000000000000000")
        assert (found.code, found.reason) == (NOT_FOUND, "CONNECT_LINK_NOT_FOUND")

    def test_a_reason_of_more_than_500_characters_is_refused(self, operator: Client) -> None:
        link_id = create_link(operator, connect_key(operator).api_key).connect_link.connect_link_id
        found = refused(cancel, operator, link_id, reason="x" * 501)
        assert list(found.violations) == ["reason"]
        assert link_state(operator, link_id) == "OPEN"
