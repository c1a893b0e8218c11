"""UpdateKey, over the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import (
    KEY_KIND_CONNECT,
    KEY_STATE_ACTIVE,
    KEY_STATE_EXPIRED,
    Key,
)

from tests.harness import Service, refused
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    REDIRECT_URI,
    event_types,
    get_key,
    make_connect_key,
    make_key,
    make_scoped_key,
    reason_for,
    timestamp,
    update_key,
)

HOUR = timedelta(hours=1)
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


NEW_VALUES: dict[str, Any] = {
    "display_name": "renamed",
    "description": "described",
    "labels": {"new": "label"},
    "permissions": ["devices:list", "keys:manage"],
    "allowed_cidrs": ["192.0.2.0/24"],
    "allowed_manufacturers": ["zenith"],
    "expire_time": timestamp(datetime(2031, 1, 1, tzinfo=UTC)),
}


@pytest.mark.parametrize("path", NEW_VALUES)
def test_an_update_sets_the_named_field_and_no_other(grid: Service, path: str) -> None:
    before = make_key(grid, description="before", labels={"old": "label"}, allowed_cidrs=["10.0.0.0/8"]).key
    grid.clock.turn(HOUR)

    updated = update_key(grid, before.key_id, path, **NEW_VALUES).key

    expected = Key()
    expected.CopyFrom(before)
    expected.ClearField(path)  # type: ignore[arg-type]
    expected.MergeFrom(Key(**{path: NEW_VALUES[path]}))
    expected.update_time.CopyFrom(timestamp(grid.clock.now))
    assert updated == expected == get_key(grid, before.key_id)


@pytest.mark.parametrize(
    "path", ["description", "labels", "allowed_cidrs", "allowed_manufacturers", "expire_time", "redirect_uris"]
)
def test_an_update_to_nothing_clears_a_field_that_may_be_empty(grid: Service, path: str) -> None:
    given = {name: value for name, value in NEW_VALUES.items() if name != "permissions"}
    before = make_key(grid, **given).key

    updated = update_key(grid, before.key_id, path).key

    assert getattr(updated, path) == getattr(Key(), path)


def test_an_update_sets_the_redirect_uris_of_a_connect_key(grid: Service) -> None:
    key_id = make_connect_key(grid).key.key_id

    updated = update_key(grid, key_id, redirect_uris=["https://app.example/new"]).key

    assert list(updated.redirect_uris) == ["https://app.example/new"]


def test_an_update_takes_effect_at_once(grid: Service) -> None:
    made = make_key(grid)

    narrowed = update_key(grid, made.key.key_id, permissions=["devices:read"])
    assert narrowed.propagation.complete
    assert reason_for(grid, made.api_key) == "PERMISSION_NOT_GRANTED"
    update_key(grid, made.key.key_id, permissions=["devices:list"], allowed_cidrs=["10.0.0.0/8"])
    assert reason_for(grid, made.api_key, client_ip="192.0.2.1") == "ADDRESS_NOT_PERMITTED"
    assert reason_for(grid, made.api_key, client_ip="10.0.0.1") == "PERMITTED"


def test_an_update_that_changes_nothing_leaves_no_trace(grid: Service) -> None:
    created = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR))
    grid.clock.turn(timedelta(minutes=1))

    same = update_key(grid, created.key.key_id, display_name="a key", expire_time=created.key.expire_time)

    assert (same.key, same.revision) == (created.key, created.revision)
    assert event_types(grid, created.key.key_id) == ["key.created"]


@pytest.mark.parametrize(
    ("paths", "values", "field"),
    [
        ([], {}, "update_mask"),
        (["*"], {"display_name": "x"}, "update_mask"),
        (["key.display_name"], {"display_name": "x"}, "update_mask"),
        (["displayName"], {"display_name": "x"}, "update_mask"),
        (["labels.team"], {"labels": {"team": "x"}}, "update_mask"),
        (["kind"], {"kind": KEY_KIND_CONNECT}, "update_mask"),
        (["workspace_id"], {"workspace_id": OTHER_WORKSPACE}, "update_mask"),
        (["state"], {"state": KEY_STATE_ACTIVE}, "update_mask"),
        (["reference_id"], {"reference_id": OTHER_USER}, "update_mask"),
        (["key_id"], {}, "update_mask"),
        (["display_name", "nonsense"], {"display_name": "x"}, "update_mask"),
        (["permissions"], {}, "key.permissions"),
        (["permissions"], {"permissions": ["fly"]}, "key.permissions[0]"),
        (["display_name"], {}, "key.display_name"),
        (["description"], {"description": "x" * 1001}, "key.description"),
        (["labels"], {"labels": {"UPPER": ""}}, "key.labels"),
        (["allowed_cidrs"], {"allowed_cidrs": ["10.1.2.3/8"]}, "key.allowed_cidrs[0]"),
        (["allowed_manufacturers"], {"allowed_manufacturers": ["Acme"]}, "key.allowed_manufacturers[0]"),
        (["redirect_uris"], {"redirect_uris": [REDIRECT_URI]}, "key.redirect_uris"),
        (["expire_time"], {"expire_time": timestamp(datetime(2029, 1, 1, tzinfo=UTC))}, "key.expire_time"),
        (["expire_time"], {"expire_time": Timestamp(seconds=-(10**15))}, "key.expire_time"),
    ],
    ids=str,
)
def test_an_update_that_cannot_be_is_refused(
    grid: Service, paths: list[str], values: dict[str, Any], field: str
) -> None:
    before = make_key(grid).key
    request = pb.UpdateKeyRequest(key=Key(key_id=before.key_id, **values))
    request.update_mask.paths.extend(paths)

    error = refused(grid.operator.keys.UpdateKey, request)

    assert (error.code, error.reason) == INVALID
    assert set(error.violations) == {field}
    assert get_key(grid, before.key_id) == before


def test_a_reason_without_end_is_refused(grid: Service) -> None:
    key_id = make_key(grid).key.key_id
    requests: list[tuple[Any, Any]] = [
        (grid.operator.keys.SuspendKey, pb.SuspendKeyRequest(key_id=key_id, reason="x" * 501)),
        (grid.operator.keys.ResumeKey, pb.ResumeKeyRequest(key_id=key_id, reason="x" * 501)),
        (grid.operator.keys.RotateKey, pb.RotateKeyRequest(key_id=key_id, reason="x" * 501)),
        (grid.operator.keys.RevokeKey, pb.RevokeKeyRequest(key_id=key_id, reason="a\nb")),
    ]
    errors = [refused(method, request) for method, request in requests]

    assert [set(error.violations) for error in errors] == [{"reason"}] * 4
    assert event_types(grid, key_id) == ["key.created"]


def test_a_connect_key_keeps_at_least_one_redirect_uri(grid: Service) -> None:
    error = refused(update_key, grid, make_connect_key(grid).key.key_id, "redirect_uris")

    assert set(error.violations) == {"key.redirect_uris"}


@pytest.mark.parametrize("api_key", ["connect", "scoped"])
def test_no_update_gives_a_key_more_than_its_kind_allows(grid: Service, api_key: str) -> None:
    key = make_connect_key(grid).key if api_key == "connect" else make_scoped_key(grid, "mine").scoped_key

    error = refused(update_key, grid, key.key_id, permissions=["keys:manage"])

    assert set(error.violations) == {"key.permissions[0]"}


def test_a_scoped_key_may_expire_sooner_and_never_later(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")
    key_id, end = scoped.scoped_key.key_id, scoped.scoped_key.expire_time.ToDatetime(tzinfo=UTC)

    later = refused(update_key, grid, key_id, expire_time=timestamp(end + timedelta(microseconds=1)))
    never = refused(update_key, grid, key_id, "expire_time")
    sooner = update_key(grid, key_id, expire_time=timestamp(grid.clock.now + HOUR)).key

    assert [set(error.violations) for error in (later, never)] == [{"key.expire_time"}] * 2
    assert sooner.expire_time == timestamp(grid.clock.now + HOUR)
    grid.clock.turn(HOUR)
    assert reason_for(grid, scoped.scoped_api_key) == "KEY_EXPIRED"
    assert set(refused(update_key, grid, key_id, expire_time=timestamp(end)).violations) == {"key.expire_time"}


def test_an_expired_server_key_lives_on_with_a_later_expiry(grid: Service) -> None:
    made = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR))
    grid.clock.turn(HOUR)
    assert get_key(grid, made.key.key_id).state == KEY_STATE_EXPIRED

    update_key(grid, made.key.key_id, expire_time=timestamp(grid.clock.now + HOUR))

    assert get_key(grid, made.key.key_id).state == KEY_STATE_ACTIVE
    assert reason_for(grid, made.api_key) == "PERMITTED"
