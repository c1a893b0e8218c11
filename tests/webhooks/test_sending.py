"""What endpoints are told by a real server, with a clock that tests turn, over HTTPS to real receivers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from texture.auth.v1 import webhook_service_pb2 as pb
from texture.auth.v1 import workspace_service_pb2
from texture.auth.v1.webhook_pb2 import (
    WEBHOOK_DELIVERY_STATE_DELIVERED,
    WEBHOOK_DELIVERY_STATE_FAILED,
    WEBHOOK_DELIVERY_STATE_PENDING,
    WEBHOOK_DISABLE_REASON_FAILING,
    WEBHOOK_DISABLE_REASON_GONE,
    WEBHOOK_ENDPOINT_STATE_ACTIVE,
    WEBHOOK_ENDPOINT_STATE_DISABLED,
    WebhookDelivery,
    WebhookEndpoint,
)

from server.service.deliveries import LEASE, Dispatcher
from tests.harness import Service, running_service
from tests.metrics.scrapes import measured, shows
from tests.operate.certificates import Certificate
from tests.operate.process import wait_until
from tests.webhooks.receiver import Receiver, receiving, settings_for, status
from tests.wire.helpers import (
    OTHER_WORKSPACE,
    USER,
    WORKSPACE,
    duration,
    events_of,
    make_key,
    make_workspace,
    register,
    revoke,
)

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


@pytest.fixture(params=["sqlite", "postgres"])
def grid(tmp_path: Path, ca: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server that may send to receivers here, with one workspace: once on each kind of database."""
    settings = settings_for(ca)
    if request.param == "postgres":
        settings["database"] = request.getfixturevalue("postgres_url")
    with running_service(tmp_path, **settings) as running:
        make_workspace(running)
        yield running


def create(service: Service, url: str, **fields: Any) -> pb.CreateWebhookEndpointResponse:
    request = pb.CreateWebhookEndpointRequest(**{"workspace_id": WORKSPACE, "url": url, **fields})
    return service.operator.webhooks.CreateWebhookEndpoint(request)


def endpoint_of(service: Service, created: pb.CreateWebhookEndpointResponse) -> WebhookEndpoint:
    request = pb.GetWebhookEndpointRequest(webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id)
    return service.operator.webhooks.GetWebhookEndpoint(request).webhook_endpoint


def update(service: Service, created: pb.CreateWebhookEndpointResponse, **values: Any) -> WebhookEndpoint:
    endpoint = WebhookEndpoint(webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id, **values)
    request = pb.UpdateWebhookEndpointRequest(webhook_endpoint=endpoint, update_mask=FieldMask(paths=list(values)))
    return service.operator.webhooks.UpdateWebhookEndpoint(request).webhook_endpoint


def deliveries(service: Service, created: pb.CreateWebhookEndpointResponse, **fields: Any) -> list[WebhookDelivery]:
    request = pb.ListWebhookDeliveriesRequest(
        webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id, **fields
    )
    return list(service.operator.webhooks.ListWebhookDeliveries(request).webhook_deliveries)


def wait_for_state(
    service: Service, created: pb.CreateWebhookEndpointResponse, state: int, count: int = 1
) -> list[WebhookDelivery]:
    """Wait until so many deliveries are in a state, and return them."""

    def found() -> list[WebhookDelivery]:
        rows = deliveries(service, created, state=state)
        return rows if len(rows) >= count else []

    done: list[WebhookDelivery] = wait_until(found, "deliveries in a state")
    return done


def wait_for_attempts(service: Service, created: pb.CreateWebhookEndpointResponse, attempts: int) -> WebhookDelivery:
    """Wait until the one delivery has been tried so often, and the outcome is noted."""

    def tried() -> WebhookDelivery | None:
        for one in deliveries(service, created):
            if one.attempts == attempts and one.last_attempt_time.ToDatetime() == now(service):
                return one
        return None

    found: WebhookDelivery = wait_until(tried, f"{attempts} attempts")
    return found


def now(service: Service) -> Any:
    return service.clock.now.replace(tzinfo=None)


def replay(service: Service, created: pb.CreateWebhookEndpointResponse, **fields: Any) -> int:
    request = pb.ReplayWebhookDeliveriesRequest(
        webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id, **fields
    )
    return int(service.operator.webhooks.ReplayWebhookDeliveries(request).count)


# --- What is sent -------------------------------------------------------------------------------------------------


def test_an_event_arrives_signed_and_says_what_the_event_log_says(grid: Service, receiver: Receiver) -> None:
    created = create(grid, receiver.url)
    key_id = make_key(grid).key.key_id
    revoke(grid, key_id)

    receiver.wait_for(2)

    (request,) = receiver.of_type("key.revoked")
    assert request.signed_by(created.signing_secret)
    assert not request.signed_by("whsec_" + "A" * 44)
    event = events_of(grid, key_id)[-1]
    shown = MessageToDict(event, preserving_proto_field_name=True)
    payload = request.payload
    assert payload["type"] == event.type
    assert payload["timestamp"] == grid.clock.now.isoformat()
    assert payload["data"]["event_id"] == event.event_id
    for name in ("workspace_id", "subject_id", "caller_id", "reason", "before", "after"):
        assert payload["data"][name] == shown.get(name, ""), name
    (delivery, _) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED, 2)
    assert delivery.webhook_delivery_id == request.message_id
    assert (delivery.event_id, delivery.event_type, delivery.attempts) == (event.event_id, "key.revoked", 1)
    assert delivery.last_http_status_code == 204


def test_no_secret_of_a_key_is_ever_sent(grid: Service, receiver: Receiver) -> None:
    create(grid, receiver.url)
    made = make_key(grid)
    receiver.wait_for(1)
    assert made.key.key_id in receiver.received[0].body
    assert made.api_key not in receiver.received[0].body
    assert "digest" not in receiver.received[0].body


def test_an_endpoint_is_told_of_its_workspace_and_its_types_alone_and_not_of_the_past(
    grid: Service, receiver: Receiver
) -> None:
    make_workspace(grid, OTHER_WORKSPACE)
    make_key(grid)
    create(grid, receiver.url, event_types=["key.created", "device.registered"])
    make_key(grid, workspace_id=OTHER_WORKSPACE)
    revoke(grid, make_key(grid, display_name="mine").key.key_id)
    register(grid, "battery")

    receiver.wait_for(2)

    assert sorted(one.payload["type"] for one in receiver.received) == ["device.registered", "key.created"]
    (of_key,) = receiver.of_type("key.created")
    assert of_key.payload["data"]["after"]["display_name"] == "mine"


def test_each_of_several_endpoints_is_told_once(grid: Service, receiver: Receiver, certificate: Certificate) -> None:
    with receiving(certificate) as other:
        create(grid, receiver.url, event_types=["key.created"])
        create(grid, other.url, event_types=["key.created"])
        for _ in range(5):
            make_key(grid)
        receiver.wait_for(5)
        other.wait_for(5)
        assert {len({one.message_id for one in each.received}) for each in (receiver, other)} == {5}


def test_a_test_is_sent_once_whatever_the_types(grid: Service, receiver: Receiver) -> None:
    created = create(grid, receiver.url, event_types=["key.revoked"])
    receiver.reply = status("500 Oh")
    request = pb.TestWebhookEndpointRequest(
        webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id, request_id="once"
    )
    first = grid.operator.webhooks.TestWebhookEndpoint(request).webhook_delivery
    again = grid.operator.webhooks.TestWebhookEndpoint(request).webhook_delivery
    assert again.webhook_delivery_id == first.webhook_delivery_id

    (done,) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_FAILED)

    assert (done.event_type, done.event_id, done.last_http_status_code) == ("webhook.test", "", 500)
    (received,) = receiver.received
    assert received.payload["type"] == "webhook.test"
    assert received.signed_by(created.signing_secret)


def test_during_an_overlap_both_secrets_sign_and_after_it_the_new_one_alone(grid: Service, receiver: Receiver) -> None:
    created = create(grid, receiver.url, event_types=["key.created"])
    rotated = grid.operator.webhooks.RotateWebhookSecret(
        pb.RotateWebhookSecretRequest(
            webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id, overlap=duration(HOUR)
        )
    )
    signed = []
    for count in (1, 2):
        make_key(grid)
        request = receiver.wait_for(count)[-1]
        signed.append((request.signed_by(created.signing_secret), request.signed_by(rotated.signing_secret)))
        grid.clock.turn(HOUR)
    assert signed == [(True, True), (False, True)]


def test_an_end_user_who_is_erased_in_between_is_sent_by_the_pseudonym(grid: Service, receiver: Receiver) -> None:
    receiver.reply = status("503 Later")
    created = create(grid, receiver.url, event_types=["device.registered"])
    register(grid, "battery")
    wait_for_attempts(grid, created, 1)
    assert USER in receiver.received[0].body
    grid.operator.workspaces.EraseEndUser(
        workspace_service_pb2.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id=USER)
    )
    receiver.reply = status("200 OK")

    grid.clock.turn(HOUR)

    later = receiver.wait_for(2)[-1]
    assert later.message_id == receiver.received[0].message_id
    assert USER not in later.body
    assert "erased:" in later.body


# --- Failures -----------------------------------------------------------------------------------------------------


def test_a_failed_delivery_is_tried_again_under_the_same_id_until_it_arrives(grid: Service, receiver: Receiver) -> None:
    receiver.reply = status("500 Oh")
    created = create(grid, receiver.url, event_types=["key.created"])
    make_key(grid)
    for attempt in (1, 2, 3):
        done = wait_for_attempts(grid, created, attempt)
        assert done.state == WEBHOOK_DELIVERY_STATE_PENDING
        assert done.next_attempt_time.ToDatetime() > now(grid)
        grid.clock.turn(HOUR)
    receiver.reply = status("200 OK")
    grid.clock.turn(6 * HOUR)

    (done,) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED)

    assert len({one.message_id for one in receiver.received}) == 1
    assert len({one.headers["webhook-timestamp"] for one in receiver.received}) == len(receiver.received)
    assert done.attempts == len(receiver.received)


def test_a_delivery_is_not_tried_before_its_time(grid: Service, receiver: Receiver) -> None:
    receiver.reply = status("429 Slowly", "Retry-After: 3600")
    created = create(grid, receiver.url, event_types=["key.created"])
    make_key(grid)
    done = wait_for_attempts(grid, created, 1)
    assert done.next_attempt_time.ToDatetime() == now(grid) + HOUR
    grid.clock.turn(HOUR - timedelta(microseconds=1))
    # Another one comes and goes meanwhile, so there was time to be too early.
    request = pb.TestWebhookEndpointRequest(webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id)
    grid.operator.webhooks.TestWebhookEndpoint(request)
    receiver.wait_for(2)
    assert [one.payload["type"] for one in receiver.received] == ["key.created", "webhook.test"]
    grid.clock.turn(timedelta(microseconds=1))
    receiver.wait_for(3)
    assert receiver.received[2].message_id == receiver.received[0].message_id


def test_a_delivery_that_never_arrives_is_given_up_and_can_be_replayed(grid: Service, receiver: Receiver) -> None:
    receiver.reply = status("500 Oh")
    created = create(grid, receiver.url, event_types=["key.created"])
    make_key(grid)
    wait_for_attempts(grid, created, 1)
    grid.clock.turn(3 * DAY)
    (given_up,) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_FAILED)
    assert given_up.attempts == 2
    receiver.reply = status("200 OK")
    grid.clock.turn(30 * DAY)
    update(grid, created, state=WEBHOOK_ENDPOINT_STATE_ACTIVE)
    assert replay(grid, created, failed_since=given_up.create_time) == 1

    (done,) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED)

    assert done.webhook_delivery_id == given_up.webhook_delivery_id
    assert {one.message_id for one in receiver.received} == {done.webhook_delivery_id}
    assert replay(grid, created, failed_since=given_up.create_time) == 0
    assert replay(grid, created, webhook_delivery_ids=[done.webhook_delivery_id, "msg_nothing"]) == 1
    receiver.wait_for(4)


def test_an_event_that_is_not_kept_any_more_is_given_up_and_the_endpoint_is_not_to_blame(
    grid: Service, receiver: Receiver
) -> None:
    receiver.reply = status("503 Later", "Retry-After: 3600")
    created = create(grid, receiver.url, event_types=["key.created"])
    make_key(grid)
    wait_for_attempts(grid, created, 1)
    register(grid, "battery")
    with grid.app._resources.store.write() as writer:
        writer.prune_events(grid.clock.now + DAY, 1000)
    grid.clock.turn(HOUR)

    (done,) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_FAILED)

    assert (done.last_error, done.last_http_status_code, len(receiver.received)) == ("event_not_kept", 0, 1)
    assert endpoint_of(grid, created).state == WEBHOOK_ENDPOINT_STATE_ACTIVE


def test_an_endpoint_that_is_gone_is_disabled_with_an_event_and_told_nothing_more(
    grid: Service, receiver: Receiver, certificate: Certificate
) -> None:
    receiver.reply = status("410 Gone")
    with receiving(certificate) as other:
        create(grid, other.url, event_types=["webhook_endpoint.disabled"])
        created = create(grid, receiver.url, event_types=["key.created"])
        make_key(grid)
        (told,) = other.wait_for(1)
        assert told.payload["data"]["subject_id"] == created.webhook_endpoint.webhook_endpoint_id
        assert told.payload["data"]["after"]["disable_reason"] == "gone"
        disabled = endpoint_of(grid, created)
        assert (disabled.state, disabled.disable_reason) == (
            WEBHOOK_ENDPOINT_STATE_DISABLED,
            WEBHOOK_DISABLE_REASON_GONE,
        )
        make_key(grid)
        register(grid, "battery")
        receiver.reply = status("200 OK")
        assert update(grid, created, state=WEBHOOK_ENDPOINT_STATE_ACTIVE).disable_reason == 0
        # What was recorded while it was disabled is sent now, and what had failed is not.
        (done,) = wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED)
        assert len(receiver.received) == 2
        assert receiver.received[1].message_id == done.webhook_delivery_id


def test_an_endpoint_that_fails_for_days_is_disabled(grid: Service, receiver: Receiver) -> None:
    receiver.reply = status("500 Oh")
    created = create(grid, receiver.url, event_types=["key.created"])
    make_key(grid)
    wait_for_attempts(grid, created, 1)
    grid.clock.turn(2 * DAY)
    make_key(grid)
    receiver.wait_for(2)
    assert endpoint_of(grid, created).state == WEBHOOK_ENDPOINT_STATE_ACTIVE
    grid.clock.turn(DAY)

    disabled = wait_until(
        lambda: (found := endpoint_of(grid, created)).state == WEBHOOK_ENDPOINT_STATE_DISABLED and found, "disabled"
    )

    assert disabled.disable_reason == WEBHOOK_DISABLE_REASON_FAILING


def test_an_answer_in_between_saves_an_endpoint_from_being_disabled(grid: Service, receiver: Receiver) -> None:
    created = create(grid, receiver.url, event_types=["key.created"])
    for count in range(1, 5):
        receiver.reply = status("500 Oh" if count % 2 else "200 OK")
        make_key(grid)
        receiver.wait_for(count)
        wait_until(lambda: all(one.last_attempt_time.seconds for one in deliveries(grid, created)), "noted")
        grid.clock.turn(2 * DAY)
    assert endpoint_of(grid, created).state == WEBHOOK_ENDPOINT_STATE_ACTIVE


def test_receivers_that_never_answer_hold_up_no_other(
    grid: Service, receiver: Receiver, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    # They are waited for until the end of the test.
    monkeypatch.setattr(grid.app._dispatcher._poster, "_total_seconds", 3600)
    with receiving(certificate) as dead:
        dead.reply = dead.silent
        waited_for = [create(grid, dead.url, event_types=["key.created"]) for _ in range(3)]
        created = create(grid, receiver.url, event_types=["key.created"])
        for _ in range(10):
            make_key(grid)
        receiver.wait_for(10)
        wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED, 10)
        assert len(dead.received) <= 3 * 2
        for one in waited_for:
            assert not any(found.HasField("last_attempt_time") for found in deliveries(grid, one))


@pytest.mark.parametrize(("quick_seconds", "at_once"), [(3600, 8), (0, 2)])
def test_a_receiver_that_took_the_last_webhook_at_once_is_sent_more_at_a_time(
    grid: Service,
    receiver: Receiver,
    certificate: Certificate,
    monkeypatch: pytest.MonkeyPatch,
    quick_seconds: int,
    at_once: int,
) -> None:
    monkeypatch.setattr("server.service.deliveries.QUICK_SECONDS", quick_seconds)
    monkeypatch.setattr(grid.app._dispatcher._poster, "_total_seconds", 3600)
    with receiving(certificate) as watched:
        created = create(grid, watched.url, event_types=["key.created"])
        make_key(grid)
        wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED)
        watched.reply = watched.silent
        for _ in range(10):
            make_key(grid)
        watched.wait_for(1 + at_once)
        # Another is told of ten events, one after another, so there was time for more.
        create(grid, receiver.url, event_types=["key.revoked"])
        for count in range(1, 11):
            revoke(grid, make_key(grid).key.key_id)
            receiver.wait_for(count)
        assert len(watched.received) == 1 + at_once


def test_a_fault_while_outcomes_are_noted_takes_no_room_and_holds_up_no_other(
    grid: Service, receiver: Receiver, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    with receiving(certificate) as unlucky:
        created = create(grid, unlucky.url, event_types=["key.created"])
        other = create(grid, receiver.url, event_types=["key.created"])
        noting = Dispatcher._note_those_of

        def fail(self: Dispatcher, webhook_endpoint_id: str, attempts: Any) -> None:
            if webhook_endpoint_id == created.webhook_endpoint.webhook_endpoint_id:
                raise ZeroDivisionError
            noting(self, webhook_endpoint_id, attempts)

        with monkeypatch.context() as patch:
            patch.setattr(Dispatcher, "_note_those_of", fail)
            for _ in range(10):
                make_key(grid)
            wait_for_state(grid, other, WEBHOOK_DELIVERY_STATE_DELIVERED, 10)
            # It goes on being sent to, though nothing of that is noted.
            unlucky.wait_for(10)
        grid.clock.turn(LEASE)
        wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED, 10)
        assert len({one.message_id for one in unlucky.received}) == 10


def test_endpoints_that_are_failing_leave_room_for_those_that_are_not(
    grid: Service, receiver: Receiver, certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grid.app._dispatcher._poster, "_total_seconds", 3600)
    monkeypatch.setattr("server.service.deliveries.MOST_AT_ONCE", 4)
    monkeypatch.setattr("server.service.deliveries.MOST_FAILING_AT_ONCE", 2)
    with receiving(certificate) as dead:
        dead.reply = status("503 Later", "Retry-After: 3600")
        failing = [create(grid, dead.url, event_types=["key.created"]) for _ in range(6)]
        make_key(grid)
        for one in failing:
            wait_for_attempts(grid, one, 1)
        dead.received.clear()
        dead.reply = dead.silent
        grid.clock.turn(HOUR)
        dead.wait_for(2)
        created = create(grid, receiver.url, event_types=["key.created"])
        for _ in range(5):
            make_key(grid)
        wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED, 5)
        assert len(dead.received) == 2


def test_attempts_are_counted_and_how_long_the_first_has_been_due_is_shown(
    tmp_path: Path, ca: Path, receiver: Receiver
) -> None:
    with measured(tmp_path, **settings_for(ca)) as service:
        where = service.app.metrics_address
        make_workspace(service)
        created = create(service, receiver.url, event_types=["key.created"])
        make_key(service)
        shows(where, 1, "webhook_attempts_total", outcome="delivered")
        receiver.reply = status("500 Oh")
        make_key(service)
        shows(where, 1, "webhook_attempts_total", outcome="put_off")
        service.clock.turn(3 * DAY)
        shows(where, 1, "webhook_attempts_total", outcome="given_up")
        update(service, created, state=WEBHOOK_ENDPOINT_STATE_ACTIVE)
        shows(where, 0, "webhook_lag_seconds")
        replayed = deliveries(service, created, state=WEBHOOK_DELIVERY_STATE_FAILED)
        receiver.reply = receiver.silent
        receiver.received.clear()
        assert replay(service, created, webhook_delivery_ids=[one.webhook_delivery_id for one in replayed]) == 1
        # Two are sent at once, and the third waits.
        for _ in range(2):
            make_key(service)
        receiver.wait_for(2)
        service.clock.turn(timedelta(seconds=7))
        shows(where, 7, "webhook_lag_seconds")


def test_old_deliveries_are_deleted_by_the_server_itself(grid: Service, receiver: Receiver) -> None:
    created = create(grid, receiver.url, event_types=["key.created"])
    make_key(grid)
    wait_for_state(grid, created, WEBHOOK_DELIVERY_STATE_DELIVERED)
    grid.clock.turn(30 * DAY)
    grid.app._housekeeper.run_once()
    assert len(deliveries(grid, created)) == 1
    grid.clock.turn(timedelta(microseconds=1))
    grid.app._housekeeper.run_once()
    assert deliveries(grid, created) == []


def test_nothing_of_what_signs_is_kept_in_plain_text(grid: Service, receiver: Receiver) -> None:
    created = create(grid, receiver.url)
    receiver.reply = status("500 Oh")
    make_key(grid)
    receiver.wait_for(1)
    plain = created.signing_secret.removeprefix("whsec_")
    for table in ("webhook_endpoint", "webhook_secret", "webhook_delivery", "event", "request"):
        kept = json.dumps(grid.query(f"SELECT * FROM {table}"), default=lambda value: bytes(value).hex())
        assert plain not in kept
        assert created.signing_secret not in kept
