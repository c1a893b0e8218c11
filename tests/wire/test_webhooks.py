"""WebhookService: what endpoints may be, who may change them, and what is remembered of them."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import webhook_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_CONNECT, ROLE_DEVICES, ROLE_KEY_ADMIN
from texture.auth.v1.webhook_pb2 import (
    WEBHOOK_DELIVERY_STATE_PENDING,
    WEBHOOK_DISABLE_REASON_REQUESTED,
    WEBHOOK_ENDPOINT_STATE_ACTIVE,
    WEBHOOK_ENDPOINT_STATE_DISABLED,
    WebhookDelivery,
    WebhookEndpoint,
)

from server.domain.webhooks import MAXIMUM_ENDPOINTS
from tests.harness import Service, refused
from tests.operate.process import wait_until
from tests.wire.helpers import OTHER_WORKSPACE, WORKSPACE, count_rows, duration, make_key, make_workspace, timestamp
from tests.wire.rpcs import WEBHOOK_URL

HOUR = timedelta(hours=1)
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


@pytest.fixture
def grid(service: Service) -> Service:
    make_workspace(service)
    return service


def create(service: Service, **fields: Any) -> pb.CreateWebhookEndpointResponse:
    given = {"workspace_id": WORKSPACE, "url": WEBHOOK_URL} | fields
    return service.operator.webhooks.CreateWebhookEndpoint(pb.CreateWebhookEndpointRequest(**given))


def get(service: Service, webhook_endpoint_id: str) -> WebhookEndpoint:
    request = pb.GetWebhookEndpointRequest(webhook_endpoint_id=webhook_endpoint_id)
    return service.operator.webhooks.GetWebhookEndpoint(request).webhook_endpoint


def update_request(webhook_endpoint_id: str, **values: Any) -> pb.UpdateWebhookEndpointRequest:
    endpoint = WebhookEndpoint(webhook_endpoint_id=webhook_endpoint_id, **values)
    return pb.UpdateWebhookEndpointRequest(webhook_endpoint=endpoint, update_mask=FieldMask(paths=list(values)))


def event_types(service: Service) -> list[str]:
    of_endpoints = "SELECT type FROM event WHERE subject_kind = 'webhook_endpoint' ORDER BY event_id"
    return [row["type"] for row in service.query(of_endpoints)]


def test_an_endpoint_is_created_and_found(grid: Service) -> None:
    created = create(grid, description="to the CRM", event_types=["key.revoked", "key.created"])
    endpoint = created.webhook_endpoint
    assert (endpoint.workspace_id, endpoint.url, endpoint.description) == (WORKSPACE, WEBHOOK_URL, "to the CRM")
    assert list(endpoint.event_types) == ["key.created", "key.revoked"]
    assert (endpoint.state, endpoint.disable_reason) == (WEBHOOK_ENDPOINT_STATE_ACTIVE, 0)
    assert [one.number for one in endpoint.secrets] == [1]
    assert created.signing_secret.startswith("whsec_")
    assert get(grid, endpoint.webhook_endpoint_id) == endpoint
    listed = grid.operator.webhooks.ListWebhookEndpoints(pb.ListWebhookEndpointsRequest(workspace_id=WORKSPACE))
    assert list(listed.webhook_endpoints) == [endpoint]
    assert event_types(grid) == ["webhook_endpoint.created"]


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"workspace_id": ""}, {"workspace_id"}),
        ({"url": ""}, {"url"}),
        ({"url": "http://hooks.example/"}, {"url"}),
        ({"url": "https://127.0.0.1/"}, {"url"}),
        ({"url": "https://localhost:8443/"}, {"url"}),
        ({"description": "x" * 1001}, {"description"}),
        ({"event_types": ["key.created", "key.*"]}, {"event_types[1]"}),
        ({"event_types": ["caller.created"]}, {"event_types[0]"}),
        ({"event_types": ["key.created"] * 65}, {"event_types"}),
        ({"url": "", "description": "\0", "request_id": "a b"}, {"url", "description", "request_id"}),
    ],
)
def test_what_an_endpoint_must_not_be_is_named(grid: Service, fields: dict[str, Any], violations: set[str]) -> None:
    error = refused(create, grid, **fields)
    assert (error.code, error.reason, set(error.violations)) == (*INVALID, violations)
    assert count_rows(grid, "webhook_endpoint") == 0


def test_a_workspace_that_is_not_there_has_no_endpoints(grid: Service) -> None:
    assert refused(create, grid, workspace_id="nowhere").reason == "WORKSPACE_NOT_FOUND"
    listing = pb.ListWebhookEndpointsRequest(workspace_id="nowhere")
    assert refused(grid.operator.webhooks.ListWebhookEndpoints, listing).reason == "WORKSPACE_NOT_FOUND"


def test_a_workspace_has_so_many_endpoints_and_no_more(grid: Service) -> None:
    made = [create(grid) for _ in range(MAXIMUM_ENDPOINTS)]
    error = refused(create, grid)
    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "WEBHOOK_ENDPOINTS_TOO_MANY")
    assert error.metadata == {"maximum": "20"}
    make_workspace(grid, OTHER_WORKSPACE)
    create(grid, workspace_id=OTHER_WORKSPACE)
    gone = made[0].webhook_endpoint.webhook_endpoint_id
    grid.operator.webhooks.DeleteWebhookEndpoint(pb.DeleteWebhookEndpointRequest(webhook_endpoint_id=gone))
    create(grid)


def test_the_named_fields_are_changed_and_no_others(grid: Service) -> None:
    before = create(grid, description="old", event_types=["key.created"]).webhook_endpoint
    grid.clock.turn(HOUR)
    request = update_request(before.webhook_endpoint_id, url="https://other.invalid/", event_types=[])
    request.webhook_endpoint.description = "not asked for"
    after = grid.operator.webhooks.UpdateWebhookEndpoint(request).webhook_endpoint
    assert (after.url, after.description, list(after.event_types)) == ("https://other.invalid/", "old", [])
    assert after.update_time.ToDatetime() - before.update_time.ToDatetime() == HOUR
    assert get(grid, before.webhook_endpoint_id) == after
    grid.operator.webhooks.UpdateWebhookEndpoint(request)
    assert event_types(grid) == ["webhook_endpoint.created", "webhook_endpoint.updated"]


def test_an_endpoint_is_disabled_and_enabled(grid: Service) -> None:
    endpoint_id = create(grid).webhook_endpoint.webhook_endpoint_id
    for state, reason in (
        (WEBHOOK_ENDPOINT_STATE_DISABLED, WEBHOOK_DISABLE_REASON_REQUESTED),
        (WEBHOOK_ENDPOINT_STATE_ACTIVE, 0),
    ):
        changed = grid.operator.webhooks.UpdateWebhookEndpoint(update_request(endpoint_id, state=state))
        assert (changed.webhook_endpoint.state, changed.webhook_endpoint.disable_reason) == (state, reason)
    request = update_request(endpoint_id, state=0)
    error = refused(grid.operator.webhooks.UpdateWebhookEndpoint, request)
    assert (error.code, error.reason, set(error.violations)) == (*INVALID, {"webhook_endpoint.state"})


@pytest.mark.parametrize("url", ["http://hooks.example/", "https://10.0.0.1/"])
def test_an_endpoint_is_not_moved_to_where_none_could_be_made(grid: Service, url: str) -> None:
    endpoint = create(grid).webhook_endpoint
    error = refused(grid.operator.webhooks.UpdateWebhookEndpoint, update_request(endpoint.webhook_endpoint_id, url=url))
    assert (error.code, error.reason, set(error.violations)) == (*INVALID, {"webhook_endpoint.url"})
    assert get(grid, endpoint.webhook_endpoint_id) == endpoint


def test_a_rotated_secret_is_another_one_and_the_old_one_ends_with_the_overlap(grid: Service) -> None:
    created = create(grid)
    rotate = grid.operator.webhooks.RotateWebhookSecret
    endpoint_id = created.webhook_endpoint.webhook_endpoint_id
    rotated = rotate(pb.RotateWebhookSecretRequest(webhook_endpoint_id=endpoint_id, overlap=duration(HOUR)))
    assert rotated.signing_secret != created.signing_secret
    old, new = rotated.webhook_endpoint.secrets
    assert (old.number, new.number) == (1, 2)
    assert old.retire_time.ToDatetime() == (grid.clock.now + HOUR).replace(tzinfo=None)
    assert not new.HasField("retire_time")
    at_once = rotate(pb.RotateWebhookSecretRequest(webhook_endpoint_id=endpoint_id)).webhook_endpoint
    assert [one.number for one in at_once.secrets] == [3]
    assert event_types(grid)[1:] == ["webhook_endpoint.secret_rotated"] * 2


@pytest.mark.parametrize("overlap", [-HOUR, timedelta(days=30, microseconds=1)])
def test_an_overlap_that_is_too_long_or_negative_is_refused(grid: Service, overlap: timedelta) -> None:
    endpoint_id = create(grid).webhook_endpoint.webhook_endpoint_id
    request = pb.RotateWebhookSecretRequest(webhook_endpoint_id=endpoint_id, overlap=duration(overlap))
    error = refused(grid.operator.webhooks.RotateWebhookSecret, request)
    assert (error.code, error.reason, set(error.violations)) == (*INVALID, {"overlap"})


def test_a_deleted_endpoint_is_gone_with_all_that_was_its(grid: Service) -> None:
    endpoint_id = create(grid).webhook_endpoint.webhook_endpoint_id
    request = pb.DeleteWebhookEndpointRequest(webhook_endpoint_id=endpoint_id, reason="moved", request_id="once")
    grid.operator.webhooks.DeleteWebhookEndpoint(request)
    assert refused(get, grid, endpoint_id).reason == "WEBHOOK_ENDPOINT_NOT_FOUND"
    for table in ("webhook_endpoint", "webhook_secret", "webhook_progress"):
        assert count_rows(grid, table) == 0
    grid.operator.webhooks.DeleteWebhookEndpoint(request)
    request.request_id = "twice"
    error = refused(grid.operator.webhooks.DeleteWebhookEndpoint, request)
    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "WEBHOOK_ENDPOINT_NOT_FOUND")


def test_a_repeat_shows_no_secret_again_and_names_the_endpoint(grid: Service) -> None:
    created = create(grid, request_id="once")
    error = refused(create, grid, request_id="once")
    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_REPEATED")
    assert error.metadata == {"webhook_endpoint_id": created.webhook_endpoint.webhook_endpoint_id}
    assert count_rows(grid, "webhook_endpoint") == 1


def test_an_actor_must_be_able_to_configure_the_workspace(grid: Service) -> None:
    fit = make_key(grid, permissions=["workspace:configure"]).key.key_id
    unfit = make_key(grid, permissions=["keys:manage"]).key.key_id
    create(grid, on_behalf_of_key_id=fit)
    error = refused(create, grid, on_behalf_of_key_id=unfit)
    assert error.reason == "ACTOR_PERMISSION_MISSING"
    assert error.metadata["permission"] == "workspace:configure"


def test_only_key_admins_and_operators_may_call(grid: Service) -> None:
    request = pb.ListWebhookEndpointsRequest(workspace_id=WORKSPACE)
    grid.caller("dashboard", ROLE_KEY_ADMIN).webhooks.ListWebhookEndpoints(request)
    other = grid.caller("other", ROLE_AUTHORIZER, ROLE_CONNECT, ROLE_DEVICES)
    assert refused(other.webhooks.ListWebhookEndpoints, request).reason == "CALLER_ROLE_MISSING"


def test_a_replay_names_ids_or_a_time_and_not_both(grid: Service) -> None:
    endpoint_id = create(grid).webhook_endpoint.webhook_endpoint_id
    since = timestamp(grid.clock.now)
    both: dict[str, Any] = {"webhook_delivery_ids": ["msg_1"], "failed_since": since}
    fields: dict[str, Any]
    for fields in ({}, both):
        request = pb.ReplayWebhookDeliveriesRequest(webhook_endpoint_id=endpoint_id, **fields)
        error = refused(grid.operator.webhooks.ReplayWebhookDeliveries, request)
        assert (error.code, error.reason, set(error.violations)) == (*INVALID, {"webhook_delivery_ids"})


def test_a_secret_that_was_put_in_the_place_of_another_signs_nothing(grid: Service) -> None:
    mine, theirs = (create(grid).webhook_endpoint.webhook_endpoint_id for _ in range(2))
    with grid.app._resources.store.write() as writer:
        # As somebody who can write to the database might do, to have messages signed by a secret that he knows.
        changed, other = writer.webhook_endpoint(mine), writer.webhook_endpoint(theirs)
        assert changed is not None
        assert other is not None
        writer.replace_webhook_endpoint(replace(changed, secrets=other.secrets))
    make_key(grid)

    def failed() -> WebhookDelivery | None:
        request = pb.ListWebhookDeliveriesRequest(webhook_endpoint_id=mine)
        listed = grid.operator.webhooks.ListWebhookDeliveries(request).webhook_deliveries
        return next((one for one in listed if one.event_type == "key.created" and one.last_error), None)

    delivery = wait_until(failed, "the attempt")
    assert delivery.last_error == "secret_unreadable"
    assert delivery.state == WEBHOOK_DELIVERY_STATE_PENDING


def test_no_secret_is_in_the_log_or_in_what_is_shown(grid: Service) -> None:
    with structlog.testing.capture_logs() as lines:
        created = create(grid)
        endpoint_id = created.webhook_endpoint.webhook_endpoint_id
        rotated = grid.operator.webhooks.RotateWebhookSecret(
            pb.RotateWebhookSecretRequest(webhook_endpoint_id=endpoint_id)
        )
    for secret in (created.signing_secret, rotated.signing_secret):
        assert secret not in repr(lines)
        assert secret.removeprefix("whsec_") not in repr(lines)
        assert secret not in str(get(grid, endpoint_id))
