"""The life of a key, over the wire: suspended, resumed, revoked. What else is done to keys has files of its own."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import (
    KEY_STATE_ACTIVE,
    KEY_STATE_EXPIRED,
    KEY_STATE_REVOKED,
    KEY_STATE_SUSPENDED,
    KeyState,
)

from tests.harness import Service, refused
from tests.wire.helpers import (
    event_types,
    get_key,
    make_connect_key,
    make_key,
    make_scoped_key,
    reason_for,
    revoke,
    rotate,
    suspend,
    timestamp,
    update_key,
)

HOUR = timedelta(hours=1)


def resume(service: Service, key_id: str) -> pb.ResumeKeyResponse:
    return service.operator.keys.ResumeKey(pb.ResumeKeyRequest(key_id=key_id))


@pytest.mark.parametrize("key_id", ["", "0" * 16, "\x00", "é", "x" * 10_000])
@pytest.mark.parametrize("method", ["GetKey", "SuspendKey", "ResumeKey", "RotateKey", "RevokeKey", "ListKeyEvents"])
def test_there_is_no_key_of_an_unknown_id(shared_grid: Service, method: str, key_id: str) -> None:
    request = getattr(pb, f"{method}Request")(key_id=key_id)

    error = refused(getattr(shared_grid.operator.keys, method), request)

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


def test_there_is_no_key_of_an_unknown_id_to_update(grid: Service) -> None:
    error = refused(update_key, grid, "0" * 16, display_name="x")

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


def test_a_suspended_key_is_off_until_it_is_resumed(grid: Service) -> None:
    made = make_key(grid)
    grid.clock.turn(HOUR)

    suspended = grid.operator.keys.SuspendKey(pb.SuspendKeyRequest(key_id=made.key.key_id, reason="audit"))
    assert (suspended.key.state, suspended.key.state_reason) == (KEY_STATE_SUSPENDED, "audit")
    assert suspended.key.suspend_time == suspended.key.update_time == timestamp(grid.clock.now)
    assert suspended.propagation.complete
    assert reason_for(grid, made.api_key, at_least_revision=suspended.revision) == "KEY_SUSPENDED"

    resumed = resume(grid, made.key.key_id)
    assert (resumed.key.state, resumed.key.state_reason) == (KEY_STATE_ACTIVE, "")
    assert not resumed.key.HasField("suspend_time")
    assert reason_for(grid, made.api_key, at_least_revision=resumed.revision) == "PERMITTED"


def test_a_revoked_key_says_when_and_why(grid: Service) -> None:
    made = make_key(grid)
    suspend(grid, made.key.key_id)
    grid.clock.turn(HOUR)

    revoked = grid.operator.keys.RevokeKey(pb.RevokeKeyRequest(key_id=made.key.key_id, reason="leaked"))

    assert (revoked.key.state, revoked.key.state_reason) == (KEY_STATE_REVOKED, "leaked")
    assert revoked.key.revoke_time == timestamp(grid.clock.now)
    assert not revoked.key.HasField("suspend_time")
    assert revoked.propagation.complete
    assert get_key(grid, made.key.key_id) == revoked.key


@pytest.mark.parametrize("method", ["SuspendKey", "ResumeKey", "RevokeKey"])
def test_doing_it_again_changes_nothing(grid: Service, method: str) -> None:
    key_id = make_key(grid).key.key_id
    suspend(grid, key_id)
    call, request = getattr(grid.operator.keys, method), getattr(pb, f"{method}Request")
    first = call(request(key_id=key_id, reason="first"))
    events = event_types(grid, key_id)
    grid.clock.turn(HOUR)

    again = call(request(key_id=key_id, reason="second"))

    assert (again.key, again.revision) == (first.key, first.revision)
    assert event_types(grid, key_id) == events


@pytest.mark.parametrize("method", ["SuspendKey", "ResumeKey", "RotateKey", "UpdateKey"])
def test_nothing_leaves_the_revoked_state(grid: Service, method: str) -> None:
    made = make_key(grid)
    revoke(grid, made.key.key_id)
    before = get_key(grid, made.key.key_id)
    if method == "UpdateKey":
        error = refused(update_key, grid, made.key.key_id, display_name="x")
    else:
        request = getattr(pb, f"{method}Request")(key_id=made.key.key_id)
        error = refused(getattr(grid.operator.keys, method), request)

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_IS_REVOKED")
    assert get_key(grid, made.key.key_id) == before
    assert reason_for(grid, made.api_key) == "KEY_REVOKED"


def test_revoking_one_key_touches_no_other(grid: Service) -> None:
    mine, other, connect = make_key(grid), make_key(grid), make_connect_key(grid)
    scoped = make_scoped_key(grid, "mine")
    others = [get_key(grid, key.key_id) for key in (other.key, connect.key, scoped.scoped_key)]

    revoke(grid, mine.key.key_id)

    assert reason_for(grid, mine.api_key) == "KEY_REVOKED"
    assert [get_key(grid, key.key_id) for key in others] == others
    assert reason_for(grid, other.api_key) == "PERMITTED"
    assert reason_for(grid, connect.api_key, permission="connect_links:create") == "PERMITTED"
    assert reason_for(grid, scoped.scoped_api_key, permission="devices:read", device_id="mine") == "PERMITTED"


def test_revoking_the_key_that_made_a_scoped_key_leaves_the_scoped_key(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")

    revoke(grid, scoped.scoped_key.created_by_key_id)

    assert reason_for(grid, scoped.scoped_api_key) == "PERMITTED"


@pytest.mark.parametrize("ending", ["suspended", "expired", "rotated"])
def test_a_key_in_any_state_can_be_revoked(grid: Service, ending: str) -> None:
    made = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR) if ending == "expired" else None)
    if ending == "suspended":
        suspend(grid, made.key.key_id)
    if ending == "rotated":
        rotate(grid, made.key.key_id, overlap=HOUR)
    grid.clock.turn(HOUR)

    revoke(grid, made.key.key_id)

    assert KeyState.Name(get_key(grid, made.key.key_id).state) == "KEY_STATE_REVOKED"
    assert reason_for(grid, made.api_key) == "KEY_REVOKED"


def test_a_key_whose_time_ran_out_while_it_was_suspended_is_expired_once_resumed(grid: Service) -> None:
    made = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR))
    suspend(grid, made.key.key_id)
    grid.clock.turn(HOUR)

    assert get_key(grid, made.key.key_id).state == KEY_STATE_SUSPENDED
    assert resume(grid, made.key.key_id).key.state == KEY_STATE_EXPIRED
    assert reason_for(grid, made.api_key) == "KEY_EXPIRED"
