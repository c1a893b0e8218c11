"""ListKeyEvents, over the wire: who did what to a key, when, and why."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, MessageToJson
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_KEY_ADMIN
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER, Key

from tests.harness import Service, refused
from tests.wire.helpers import (
    WORKSPACE,
    current_revision,
    events_of,
    make_key,
    make_scoped_key,
    rotate,
    suspend,
    timestamp,
    update_key,
    update_request,
)

MINUTE = timedelta(minutes=1)


def live_a_life(service: Service) -> tuple[Key, str]:
    """Take a key through everything, as an internal service on behalf of another key."""
    dashboard = service.caller("dashboard", ROLE_KEY_ADMIN).keys
    actor = make_key(service).key.key_id
    asked: dict[str, Any] = {"on_behalf_of_key_id": actor}
    key = dashboard.CreateKey(
        pb.CreateKeyRequest(
            workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="before", request_id="r-0", **asked
        )
    ).key
    update = update_request(key.key_id, display_name="after")
    update.MergeFrom(pb.UpdateKeyRequest(reason="why 1", request_id="r-1", **asked))
    requests = [
        update,
        pb.SuspendKeyRequest(key_id=key.key_id, reason="why 2", request_id="r-2", **asked),
        pb.ResumeKeyRequest(key_id=key.key_id, reason="why 3", request_id="r-3", **asked),
        pb.RotateKeyRequest(key_id=key.key_id, reason="why 4", request_id="r-4", **asked),
        pb.RevokeKeyRequest(key_id=key.key_id, reason="why 5", request_id="r-5", **asked),
    ]
    for request in requests:
        service.clock.turn(MINUTE)
        getattr(dashboard, type(request).__name__.removesuffix("Request"))(request)
    return key, actor


def test_every_change_says_who_what_when_and_why(grid: Service) -> None:
    began = grid.clock.now
    key, actor = live_a_life(grid)

    events = events_of(grid, key.key_id)

    assert [event.type for event in events] == [
        "key.created",
        "key.updated",
        "key.suspended",
        "key.resumed",
        "key.rotated",
        "key.revoked",
    ]
    assert [event.reason for event in events] == ["", *(f"why {number}" for number in range(1, 6))]
    assert [event.request_id for event in events] == [f"r-{number}" for number in range(6)]
    for number, event in enumerate(events):
        assert event.event_time == timestamp(began + number * MINUTE)
        assert (event.caller_id, event.on_behalf_of_key_id) == ("dashboard", actor)
        assert (event.workspace_id, event.subject_id) == (WORKSPACE, key.key_id)
    ids = [int(event.event_id) for event in events]
    assert ids == sorted(set(ids))


def test_an_event_shows_the_key_before_and_after(grid: Service) -> None:
    key, _ = live_a_life(grid)

    created, updated, suspended, resumed, rotated, revoked = events_of(grid, key.key_id)

    assert not created.HasField("before")
    assert created.after["display_name"] == updated.before["display_name"] == "before"
    assert updated.after["display_name"] == "after"
    assert (suspended.before["state"], suspended.after["state"]) == ("active", "suspended")
    assert (resumed.before["state"], resumed.after["state"]) == ("suspended", "active")
    assert [len(MessageToDict(side)["generations"]) for side in (rotated.before, rotated.after)] == [1, 2]
    assert (revoked.before["state"], revoked.after["state"]) == ("active", "revoked")
    assert revoked.after["state_reason"] == "why 5"


def test_one_event_begins_where_the_one_before_ended(grid: Service) -> None:
    key, _ = live_a_life(grid)

    events = events_of(grid, key.key_id)

    assert all(later.before == earlier.after for earlier, later in pairwise(events))


def test_no_event_holds_a_secret_a_digest_or_a_pepper(grid: Service) -> None:
    made = make_key(grid)
    secrets = [made.api_key, rotate(grid, made.key.key_id).api_key]
    scoped = make_scoped_key(grid, "mine")
    pepper = (grid.folder / "peppers").read_text().split()[1]

    text = "".join(
        MessageToJson(event)
        for key_id in (made.key.key_id, scoped.scoped_key.key_id, scoped.scoped_key.created_by_key_id)
        for event in events_of(grid, key_id)
    )

    assert "digest" not in text
    assert "secret" not in text
    assert pepper not in text
    for secret in (*secrets, scoped.scoped_api_key):
        assert secret.rsplit("_", 1)[1][:32] not in text


def test_the_event_of_a_scoped_key_names_the_key_that_made_the_link(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine").scoped_key

    (event,) = events_of(grid, scoped.key_id)

    assert (event.type, event.caller_id) == ("key.created", "dev-operator")
    assert event.on_behalf_of_key_id == scoped.created_by_key_id != ""


def test_the_events_of_a_key_are_its_own(grid: Service) -> None:
    mine, other = make_key(grid).key.key_id, make_key(grid).key.key_id
    suspend(grid, other)

    assert [event.type for event in events_of(grid, mine)] == ["key.created"]


def test_a_refused_change_leaves_no_event(grid: Service) -> None:
    key_id = make_key(grid).key.key_id
    revision = current_revision(grid)

    refused(update_key, grid, key_id, display_name="")
    refused(rotate, grid, key_id, overlap=timedelta(days=31))

    assert len(events_of(grid, key_id)) == 1
    assert current_revision(grid) == revision


def test_events_come_in_pages(grid: Service) -> None:
    key, _ = live_a_life(grid)
    types: list[str] = []
    token = ""
    while True:
        page = grid.operator.keys.ListKeyEvents(
            pb.ListKeyEventsRequest(key_id=key.key_id, page_size=4, page_token=token)
        )
        types += [event.type for event in page.events]
        token = page.next_page_token
        if not token:
            break

    assert types == [event.type for event in events_of(grid, key.key_id)]


@pytest.mark.parametrize(("field", "value"), [("page_size", -1), ("page_token", "garbage")])
def test_a_page_that_cannot_be_is_refused(grid: Service, field: str, value: Any) -> None:
    request = pb.ListKeyEventsRequest(key_id=make_key(grid).key.key_id, **{field: value})

    assert set(refused(grid.operator.keys.ListKeyEvents, request).violations) == {field}
