"""RotateKey, over the wire."""

from __future__ import annotations

from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import KEY_STATE_SUSPENDED, Key

from server.domain.token import parse
from tests.harness import Service, refused
from tests.wire.helpers import (
    authorize,
    current_revision,
    duration,
    event_types,
    get_key,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    reason_for,
    rotate,
    suspend,
    timestamp,
    update_key,
)

INSTANT = timedelta(microseconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LIFETIME = 100 * DAY


@pytest.fixture
def grid(service: Service) -> Service:
    """A service whose scoped keys live for 100 days."""
    make_workspace(service, scoped_key_lifetime=duration(LIFETIME))
    return service


def generations(key: Key) -> list[tuple[int, str, bool]]:
    return [(one.generation, one.last_four, one.HasField("retire_time")) for one in key.generations]


def test_both_secrets_work_until_the_overlap_ends_and_then_only_the_new_one(grid: Service) -> None:
    made = make_key(grid)

    rotated = rotate(grid, made.key.key_id, overlap=2 * HOUR)

    assert rotated.key.key_id == made.key.key_id
    for _ in range(2):
        assert reason_for(grid, made.api_key) == reason_for(grid, rotated.api_key) == "PERMITTED"
        grid.clock.turn(HOUR - INSTANT)
    grid.clock.turn(2 * INSTANT)
    assert reason_for(grid, made.api_key) == "KEY_RETIRED"
    assert reason_for(grid, rotated.api_key) == "PERMITTED"


@pytest.mark.parametrize("overlap", [None, timedelta()])
def test_without_an_overlap_the_old_secret_ends_at_once(grid: Service, overlap: timedelta | None) -> None:
    made = make_key(grid)

    rotated = rotate(grid, made.key.key_id, overlap=overlap)

    assert rotated.propagation.complete
    assert reason_for(grid, made.api_key, at_least_revision=rotated.revision) == "KEY_RETIRED"
    assert reason_for(grid, rotated.api_key, at_least_revision=rotated.revision) == "PERMITTED"


def test_a_rotation_keeps_everything_but_the_secret(grid: Service) -> None:
    made = make_key(
        grid,
        description="a",
        labels={"a": "b"},
        permissions=["devices:list"],
        allowed_cidrs=["10.0.0.0/8"],
        allowed_manufacturers=["acme"],
        expire_time=timestamp(grid.clock.now + DAY),
    )
    grid.clock.turn(HOUR)

    rotated = rotate(grid, made.key.key_id, overlap=HOUR)

    expected = Key()
    expected.CopyFrom(made.key)
    expected.update_time.CopyFrom(timestamp(grid.clock.now))
    expected.generations[0].retire_time.CopyFrom(timestamp(grid.clock.now + HOUR))
    expected.generations.add(generation=2, last_four=rotated.api_key[-4:], create_time=timestamp(grid.clock.now))
    assert rotated.key == expected == get_key(grid, made.key.key_id)


@pytest.mark.parametrize("kind", ["server", "connect", "scoped"])
def test_the_new_secret_is_of_the_same_kind_and_id(grid: Service, kind: str) -> None:
    if kind == "scoped":
        scoped = make_scoped_key(grid, "mine")
        key, old = scoped.scoped_key, scoped.scoped_api_key
    else:
        made = make_key(grid) if kind == "server" else make_connect_key(grid)
        key, old = made.key, made.api_key

    new = rotate(grid, key.key_id).api_key

    before, after = parse(old), parse(new)
    assert before is not None
    assert after is not None
    assert (after.kind, after.public_id) == (before.kind, before.public_id)
    assert after.text != before.text


def test_while_an_overlap_runs_another_rotation_is_refused_and_says_until_when(grid: Service) -> None:
    made = make_key(grid)
    first = rotate(grid, made.key.key_id, overlap=HOUR)
    until = grid.clock.now + HOUR
    grid.clock.turn(HOUR - INSTANT)

    error = refused(rotate, grid, made.key.key_id)

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "ROTATION_IN_PROGRESS")
    assert error.metadata == {"retire_time": until.isoformat()}
    assert current_revision(grid) == first.revision
    grid.clock.turn(INSTANT)
    assert generations(rotate(grid, made.key.key_id).key)[-1][0] == 3


def test_force_replaces_the_secret_whose_answer_was_lost_and_leaves_the_older_one_its_overlap(grid: Service) -> None:
    made = make_key(grid)
    lost = rotate(grid, made.key.key_id, overlap=2 * HOUR)
    grid.clock.turn(HOUR)

    forced = rotate(grid, made.key.key_id, force=True)

    assert reason_for(grid, lost.api_key) == "KEY_RETIRED"
    assert reason_for(grid, forced.api_key) == "PERMITTED"
    assert authorize(grid, made.api_key).valid_for == duration(HOUR)
    assert forced.key.generations[0].retire_time == lost.key.generations[0].retire_time
    assert [number for number, _, _ in generations(forced.key)] == [1, 2, 3]
    grid.clock.turn(HOUR)
    assert reason_for(grid, made.api_key) == "KEY_RETIRED"
    assert reason_for(grid, forced.api_key) == "PERMITTED"


def test_force_may_be_used_again_and_again(grid: Service) -> None:
    made = make_key(grid)
    secrets = [rotate(grid, made.key.key_id, overlap=HOUR).api_key]
    secrets += [rotate(grid, made.key.key_id, force=True).api_key for _ in range(3)]

    assert [reason_for(grid, secret) for secret in secrets] == ["KEY_RETIRED"] * 3 + ["PERMITTED"]
    assert reason_for(grid, made.api_key) == "PERMITTED"


def test_force_with_an_overlap_is_refused_while_one_runs(grid: Service) -> None:
    made = make_key(grid)
    rotate(grid, made.key.key_id, overlap=HOUR)

    error = refused(rotate, grid, made.key.key_id, overlap=HOUR, force=True)

    assert (error.code, set(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {"overlap"})


def test_force_is_an_ordinary_rotation_where_no_overlap_runs(grid: Service) -> None:
    made = make_key(grid)

    rotated = rotate(grid, made.key.key_id, overlap=HOUR, force=True)

    assert reason_for(grid, made.api_key) == reason_for(grid, rotated.api_key) == "PERMITTED"


@pytest.mark.parametrize("overlap", [INSTANT, 30 * DAY])
def test_an_overlap_has_up_to_thirty_days(grid: Service, overlap: timedelta) -> None:
    made = make_key(grid)
    rotated = rotate(grid, made.key.key_id, overlap=overlap)

    assert rotated.key.generations[0].retire_time == timestamp(grid.clock.now + overlap)


OVERLAPS = {
    "negative": duration(-HOUR),
    "barely negative": Duration(nanos=-1000),
    "more than thirty days": duration(30 * DAY + INSTANT),
    "longer than time": Duration(seconds=10**15),
    "of two signs": Duration(seconds=10, nanos=-1),
    "with too many nanoseconds": Duration(nanos=1_000_000_000),
}


@pytest.mark.parametrize("overlap", OVERLAPS)
def test_an_overlap_that_is_no_length_of_time_up_to_thirty_days_is_refused(grid: Service, overlap: str) -> None:
    made = make_key(grid)
    request = pb.RotateKeyRequest(key_id=made.key.key_id, overlap=OVERLAPS[overlap])

    error = refused(grid.operator.keys.RotateKey, request)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert set(error.violations) == {"overlap"}
    assert reason_for(grid, made.api_key) == "PERMITTED"


def test_an_overlap_ends_with_the_keys_expiry(grid: Service) -> None:
    end = grid.clock.now + HOUR
    made = make_key(grid, expire_time=timestamp(end))

    rotated = rotate(grid, made.key.key_id, overlap=DAY)

    assert rotated.key.expire_time == rotated.key.generations[0].retire_time == timestamp(end)


@pytest.mark.parametrize("kind", ["server", "connect"])
@pytest.mark.parametrize("overlap", [None, HOUR])
def test_an_expired_server_or_connect_key_needs_a_later_expiry_first(
    grid: Service, kind: str, overlap: timedelta | None
) -> None:
    make = make_key if kind == "server" else make_connect_key
    made = make(grid, expire_time=timestamp(grid.clock.now + HOUR))
    grid.clock.turn(HOUR)

    error = refused(rotate, grid, made.key.key_id, overlap=overlap)

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_IS_EXPIRED")
    assert "expire_time" in error.message
    update_key(grid, made.key.key_id, expire_time=timestamp(grid.clock.now + HOUR))
    rotated = rotate(grid, made.key.key_id, overlap=overlap)
    assert reason_for(grid, rotated.api_key, permission="connect_links:create") == "PERMITTED"


def test_a_scoped_key_is_renewed_by_its_rotation(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")
    grid.clock.turn(LIFETIME - HOUR)

    rotated = rotate(grid, scoped.scoped_key.key_id)

    assert rotated.key.expire_time == timestamp(grid.clock.now + LIFETIME)
    assert reason_for(grid, rotated.api_key, permission="devices:read", device_id="mine") == "PERMITTED"


def test_the_old_secret_of_a_scoped_key_gains_no_time_by_the_renewal(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")
    grid.clock.turn(LIFETIME - HOUR)

    rotated = rotate(grid, scoped.scoped_key.key_id, overlap=30 * DAY)

    assert authorize(grid, scoped.scoped_api_key).valid_for == duration(HOUR)
    grid.clock.turn(HOUR)
    assert reason_for(grid, scoped.scoped_api_key) == "KEY_RETIRED"
    assert reason_for(grid, rotated.api_key) == "PERMITTED"


def test_an_expired_scoped_key_is_renewed_without_an_overlap(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")
    grid.clock.turn(LIFETIME)
    assert reason_for(grid, scoped.scoped_api_key) == "KEY_EXPIRED"

    rotated = rotate(grid, scoped.scoped_key.key_id)

    assert reason_for(grid, rotated.api_key) == "PERMITTED"
    assert reason_for(grid, scoped.scoped_api_key) == "KEY_RETIRED"


def test_an_expired_scoped_key_cannot_be_given_an_overlap(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")
    grid.clock.turn(LIFETIME)

    error = refused(rotate, grid, scoped.scoped_key.key_id, overlap=HOUR)

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "KEY_IS_EXPIRED")
    assert reason_for(grid, scoped.scoped_api_key) == "KEY_EXPIRED"


# As `overlap` promises: the old secret never works longer than it would have without the rotation.
@pytest.mark.parametrize("when", ["before the expiry", "after the expiry"])
def test_an_old_secret_works_no_longer_by_a_rotation_after_the_expiry_was_brought_forward(
    grid: Service, when: str
) -> None:
    scoped = make_scoped_key(grid, "mine")
    key_id = scoped.scoped_key.key_id
    rotate(grid, key_id, overlap=20 * DAY)
    update_key(grid, key_id, expire_time=timestamp(grid.clock.now + 5 * DAY))
    grid.clock.turn(4 * DAY if when == "before the expiry" else 6 * DAY)

    rotate(grid, key_id, force=True)

    grid.clock.turn(2 * DAY)
    assert reason_for(grid, scoped.scoped_api_key) in ("KEY_RETIRED", "KEY_EXPIRED")


def test_a_suspended_key_gets_a_new_secret_and_stays_suspended(grid: Service) -> None:
    made = make_key(grid)
    suspend(grid, made.key.key_id)

    rotated = rotate(grid, made.key.key_id)

    assert rotated.key.state == KEY_STATE_SUSPENDED
    assert reason_for(grid, rotated.api_key) == "KEY_SUSPENDED"


def test_the_secrets_of_a_key_are_listed_oldest_first(grid: Service) -> None:
    made = make_key(grid)
    secrets = [made.api_key, *(rotate(grid, made.key.key_id).api_key for _ in range(3))]

    listed = generations(get_key(grid, made.key.key_id))

    assert listed == [(number, secret[-4:], number < 4) for number, secret in enumerate(secrets, start=1)]
    assert event_types(grid, made.key.key_id) == ["key.created", *["key.rotated"] * 3]


def test_a_rotation_that_is_refused_leaves_the_secret_in_force(grid: Service) -> None:
    made = make_key(grid)
    refusals: list[dict[str, Any]] = [{"overlap": 31 * DAY}, {"reason": "x" * 501}, {"request_id": "a b"}]

    for fields in refusals:
        assert refused(rotate, grid, made.key.key_id, **fields).code == grpc.StatusCode.INVALID_ARGUMENT

    assert get_key(grid, made.key.key_id) == made.key
    assert reason_for(grid, made.api_key) == "PERMITTED"


def test_a_scoped_key_takes_the_lifetime_that_its_workspace_has_now(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine").scoped_key
    assert scoped.expire_time.ToDatetime(tzinfo=UTC) == grid.clock.now + LIFETIME
