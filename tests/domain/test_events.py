from __future__ import annotations

import base64
import json
from collections.abc import Callable
from dataclasses import fields, replace
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.events import Entity, Event, EventType, Json, Origin, describe, snapshot
from server.domain.kinds import KeyKind, Permission, Role
from server.domain.model import Caller, ConnectLink, Device, Generation, Key, Workspace
from server.domain.token import TokenKind
from tests.builders import (
    NOW,
    make_caller,
    make_connect_link,
    make_device,
    make_generation,
    make_key,
    make_workspace,
)

ORIGIN = Origin(caller_id="dashboard", on_behalf_of_key_id="k", reason="as asked", request_id="r")
ENTITIES: list[tuple[Callable[..., Entity], str, str | None]] = [
    (make_workspace, "grid-one", "grid-one"),
    (make_key, "ServerKey0000001", "grid-one"),
    (make_device, "inverter-1", "grid-one"),
    (make_connect_link, "ConnectLink00001", "grid-one"),
    (make_caller, "device-api", None),
]


@pytest.mark.parametrize(("make", "subject_id", "workspace_id"), ENTITIES)
def test_an_event_says_what_it_is_about_and_who_asked(
    make: Callable[..., Entity], subject_id: str, workspace_id: str | None
) -> None:
    entity = make()
    assert describe(EventType.KEY_UPDATED, ORIGIN, None, entity, NOW) == Event(
        event_id=None,
        type=EventType.KEY_UPDATED,
        event_time=NOW,
        workspace_id=workspace_id,
        subject_id=subject_id,
        origin=ORIGIN,
        before=None,
        after=snapshot(entity),
    )


def test_an_event_of_a_change_holds_both_sides() -> None:
    before, after = make_key(), make_key(display_name="renamed")
    event = describe(EventType.KEY_UPDATED, ORIGIN, before, after, NOW)
    assert event.before == snapshot(before)
    assert event.after == snapshot(after)
    assert event.before != event.after


def test_an_event_of_a_removal_is_about_what_was_there_before() -> None:
    event = describe(EventType.DEVICE_REMOVED, ORIGIN, make_device(), None, NOW)
    assert (event.subject_id, event.workspace_id, event.after) == ("inverter-1", "grid-one", None)
    assert event.before == snapshot(make_device())


def test_a_device_that_changes_workspace_is_an_event_of_the_one_it_goes_to() -> None:
    event = describe(EventType.DEVICE_TRANSFERRED, ORIGIN, make_device(), make_device(workspace_id="grid-two"), NOW)
    assert event.workspace_id == "grid-two"


def test_an_event_about_nothing_is_an_error() -> None:
    with pytest.raises(ValueError, match="about something"):
        describe(EventType.KEY_UPDATED, ORIGIN, None, None, NOW)


def test_the_name_of_an_event_begins_with_what_it_is_about() -> None:
    for event_type in EventType:
        subject, _, done = event_type.value.partition(".")
        assert event_type.name == f"{subject}_{done}".upper()


# --- Snapshots ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("entity", [Workspace, Key, Device, ConnectLink, Caller, Generation])
def test_every_field_of_bytes_is_marked_secret(entity: type) -> None:
    for part in fields(entity):
        assert ("bytes" in str(part.type)) is bool(part.metadata.get("secret"))
        assert part.repr is not bool(part.metadata.get("secret"))


@given(st.binary(min_size=32, max_size=32))
def test_a_snapshot_never_holds_a_secret_field(digest: bytes) -> None:
    generations = (make_generation(TokenKind.SERVER, "0" * 16, digest=digest, retire_time=NOW),) * 2
    for entity in (
        make_key(generations=generations),
        make_caller(generations=generations),
        make_connect_link(digest=digest),
        generations[0],
    ):
        text = json.dumps(snapshot(entity))
        assert "digest" not in text
        for spelling in (digest.hex(), base64.b64encode(digest).decode(), repr(digest)[2:-1]):
            assert spelling not in text


@pytest.mark.parametrize("make", [make for make, _, _ in ENTITIES])
def test_a_snapshot_holds_every_field_that_is_not_secret_and_is_json(make: Callable[..., Entity]) -> None:
    entity = make()
    shown = snapshot(entity)
    assert list(shown) == [part.name for part in fields(entity) if not part.metadata.get("secret")]
    assert json.loads(json.dumps(shown)) == shown


def test_a_snapshot_of_a_key_reads_like_its_record() -> None:
    key = make_key(
        KeyKind.SCOPED,
        labels={"b": "2", "a": "1"},
        permissions=frozenset({Permission.DEVICES_READ, Permission.DEVICES_COMMAND}),
        allowed_networks=(ip_network("10.0.0.0/8"), ip_network("2001:db8::/32")),
        allowed_manufacturers=frozenset({"globex", "acme"}),
        expire_time=NOW,
    )
    assert snapshot(key) == {
        "key_id": "ScopedKey0000001",
        "workspace_id": "grid-one",
        "kind": "scoped",
        "state": "active",
        "display_name": "a scoped key",
        "description": "",
        "labels": {"a": "1", "b": "2"},
        "permissions": ["devices:command", "devices:read"],
        "allowed_networks": ["10.0.0.0/8", "2001:db8::/32"],
        "allowed_manufacturers": ["acme", "globex"],
        "redirect_uris": [],
        "reference_id": "end-user-1",
        "connect_link_id": "ConnectLink00001",
        "expire_time": "2026-07-01T12:00:00+00:00",
        "generations": [
            {
                "number": 1,
                "pepper_id": "pepper-1",
                "last_four": key.generations[0].last_four,
                "create_time": "2026-06-01T12:00:00+00:00",
                "retire_time": None,
            }
        ],
        "create_time": "2026-06-01T12:00:00+00:00",
        "update_time": "2026-06-01T12:00:00+00:00",
        "suspend_time": None,
        "revoke_time": None,
        "expose_time": None,
        "state_reason": "",
        "created_by_caller_id": "dashboard",
        "created_by_key_id": None,
    }
    assert list(labels_of(snapshot(key))) == ["a", "b"]


def labels_of(shown: dict[str, Json]) -> dict[str, Json]:
    labels = shown["labels"]
    assert isinstance(labels, dict)
    return labels


def test_a_snapshot_lists_roles_in_order() -> None:
    assert snapshot(make_caller(roles=frozenset(Role)))["roles"] == sorted(role.value for role in Role)


@pytest.mark.parametrize(
    ("lifetime", "expected"),
    [
        pytest.param(timedelta(minutes=1), "60s", id="a minute"),
        pytest.param(timedelta(hours=4), "14400s", id="four hours"),
        pytest.param(timedelta(seconds=90, milliseconds=500), "90.5s", id="half a second"),
        pytest.param(timedelta(days=7), "604800s", id="a week"),
        pytest.param(timedelta(days=365), "31536000s", id="a year"),
        pytest.param(timedelta(days=3650), "315360000s", id="ten years"),
        pytest.param(timedelta(seconds=1234567), "1234567s", id="seven digits"),
        pytest.param(timedelta(seconds=60, microseconds=1), "60.000001s", id="a microsecond"),
    ],
)
def test_a_snapshot_tells_a_lifetime_exactly(lifetime: timedelta, expected: str) -> None:
    assert snapshot(make_workspace(scoped_key_lifetime=lifetime))["scoped_key_lifetime"] == expected


@given(st.timedeltas(min_value=timedelta(), max_value=timedelta(days=3650)))
def test_two_lifetimes_look_alike_only_where_they_are(lifetime: timedelta) -> None:
    shown = snapshot(make_workspace(scoped_key_lifetime=lifetime))["scoped_key_lifetime"]
    assert isinstance(shown, str)
    assert timedelta(seconds=float(shown.removesuffix("s"))) == lifetime


def test_a_time_is_told_with_its_offset() -> None:
    there = datetime(2026, 7, 1, 14, tzinfo=timezone(timedelta(hours=2)))
    shown = snapshot(make_device(create_time=there))["create_time"]
    assert shown == "2026-07-01T14:00:00+02:00"
    assert datetime.fromisoformat(shown) == datetime(2026, 7, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize("value", [b"secret", 1.5, object(), {"set"}])
def test_a_value_of_a_kind_that_nobody_thought_of_is_an_error_and_not_written_down(value: object) -> None:
    with pytest.raises(TypeError, match="an event cannot hold a") as raised:
        snapshot(replace(make_device(), manufacturer=value))  # type: ignore[arg-type] # that is the point
    assert "secret" not in str(raised.value)
