"""GetRotation and RetireGeneration, over the wire: an old secret is ended once it is known that nobody needs it."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture.auth.v1.connect_service_pb2 import CreateConnectLinkRequest

from server.domain.usage import UsageBatch, UsageReport
from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    REDIRECT_URI,
    authorize,
    duration,
    event_types,
    events_of,
    get_key,
    make_connect_key,
    make_key,
    make_workspace,
    question,
    reason_for,
    revoke,
    rotate,
    timestamp,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
FAILED = grpc.StatusCode.FAILED_PRECONDITION
INVALID = grpc.StatusCode.INVALID_ARGUMENT


def rotation_of(service: Service, key_id: str, quiet_for: timedelta | None = None) -> list[pb.ReplacedSecret]:
    request = pb.GetRotationRequest(key_id=key_id)
    if quiet_for is not None:
        request.quiet_for.CopyFrom(duration(quiet_for))
    return list(service.operator.keys.GetRotation(request).replaced)


def retire(service: Service, key_id: str, generation: int = 1, **fields: Any) -> pb.RetireGenerationResponse:
    return service.operator.keys.RetireGeneration(
        pb.RetireGenerationRequest(key_id=key_id, generation=generation, **fields)
    )


def another_process(service: Service, **changes: Any) -> None:
    """Have another process report, now unless told otherwise."""
    now = service.clock.now
    values: dict[str, Any] = {"process_id": "another", "sequence": 1, "start_time": now, "report_time": now} | changes
    report = UsageReport(**values)
    with service.app._resources.store.note() as notes:
        notes.add_usage(UsageBatch(uses={}, touches={}, left_out={}, report=report))


def test_a_key_that_was_never_rotated_has_no_old_secret(grid: Service) -> None:
    assert rotation_of(grid, make_key(grid).key.key_id) == []


def test_who_uses_the_old_secret_since_the_rotation_is_told_and_when_last(grid: Service) -> None:
    key = make_key(grid)
    for _ in range(5):
        authorize(grid, key.api_key)
    rotated = rotate(grid, key.key.key_id, overlap=DAY)
    began = grid.clock.now
    for caller_id, times in (("device-api", 2), ("command-api", 1)):
        grid.clock.turn(MINUTE)
        caller = grid.caller(caller_id, ROLE_AUTHORIZER)
        for _ in range(times):
            caller.authorize.Authorize(question(key.api_key))
    authorize(grid, rotated.api_key)

    (old,) = rotation_of(grid, key.key.key_id)

    assert [(use.caller_id, use.count) for use in old.uses] == [("command-api", 1), ("device-api", 2)]
    assert [use.last_time for use in old.uses] == [timestamp(began + 2 * MINUTE), timestamp(began + MINUTE)]
    assert (old.generation, old.rotation_time, old.retire_time) == (1, timestamp(began), timestamp(began + DAY))
    assert not old.safe_to_retire
    assert old.safe_time == timestamp(began + 2 * MINUTE + HOUR)
    assert old.reported_until_time == timestamp(grid.clock.now)


def test_it_is_safe_to_end_once_it_was_not_used_for_as_long_as_is_asked_for(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    authorize(grid, key.api_key)
    for turned, expected in ((HOUR - MINUTE, False), (MINUTE, True)):
        grid.clock.turn(turned)
        (old,) = rotation_of(grid, key.key.key_id)
        assert old.safe_to_retire is expected
        (longer,) = rotation_of(grid, key.key.key_id, quiet_for=2 * HOUR)
        assert not longer.safe_to_retire


def test_a_use_of_a_connect_key_is_one_too(grid: Service) -> None:
    site = make_connect_key(grid)
    rotate(grid, site.key.key_id, overlap=DAY)
    grid.clock.turn(HOUR)
    assert rotation_of(grid, site.key.key_id)[0].safe_to_retire
    grid.operator.connect.CreateConnectLink(CreateConnectLinkRequest(api_key=site.api_key, redirect_uri=REDIRECT_URI))
    (old,) = rotation_of(grid, site.key.key_id)
    assert (old.safe_to_retire, [use.count for use in old.uses]) == (False, [1])


def test_a_secret_that_has_ended_tells_who_still_tries(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id)
    assert reason_for(grid, key.api_key) == "KEY_RETIRED"
    (old,) = rotation_of(grid, key.key.key_id)
    assert [(use.caller_id, use.count) for use in old.uses] == [("dev-operator", 1)]


def test_a_process_that_lags_or_does_not_count_keeps_it_from_being_safe(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    grid.clock.turn(HOUR)
    another_process(grid, report_time=grid.clock.now - MINUTE / 2)
    (old,) = rotation_of(grid, key.key.key_id)
    assert not old.safe_to_retire
    assert old.reported_until_time == timestamp(grid.clock.now - MINUTE / 2)
    another_process(grid, sequence=2, uncounted_time=grid.clock.now)
    (old,) = rotation_of(grid, key.key.key_id, quiet_for=timedelta())
    assert not old.safe_to_retire
    assert not old.HasField("safe_time")
    another_process(grid, sequence=3, end_time=grid.clock.now)
    assert rotation_of(grid, key.key.key_id)[0].safe_to_retire


def test_a_process_that_vanished_makes_it_uncertain_and_it_is_said_until_when(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    grid.clock.turn(30 * MINUTE)
    another_process(grid)
    vanished = grid.clock.now
    grid.clock.turn(HOUR)
    (old,) = rotation_of(grid, key.key.key_id)
    assert (old.safe_to_retire, old.processes_silent) == (False, 1)
    assert old.unsure_until_time == timestamp(vanished + MINUTE)
    assert old.safe_time == timestamp(vanished + MINUTE + HOUR)

    error = refused(retire, grid, key.key.key_id)
    assert (error.code, error.reason) == (FAILED, "ROTATION_NOT_PROVEN")
    assert error.metadata == {"safe_time": (vanished + MINUTE + HOUR).isoformat()}

    grid.clock.turn(MINUTE)
    assert rotation_of(grid, key.key.key_id)[0].safe_to_retire


def test_an_unused_old_secret_is_ended_before_its_time_and_at_once(grid: Service) -> None:
    key = make_key(grid)
    rotated = rotate(grid, key.key.key_id, overlap=DAY)
    grid.clock.turn(HOUR)

    retired = retire(grid, key.key.key_id, reason="nobody has it")

    assert retired.propagation.complete
    assert retired.key.generations[0].retire_time == timestamp(grid.clock.now)
    assert reason_for(grid, key.api_key, at_least_revision=retired.revision) == "KEY_RETIRED"
    assert reason_for(grid, rotated.api_key) == "PERMITTED"
    last = events_of(grid, key.key.key_id)[-1]
    assert (last.type, last.reason) == ("key.generation_retired", "nobody has it")
    # Another rotation may follow, since no overlap runs.
    rotate(grid, key.key.key_id)


def test_one_that_is_used_is_not_ended_and_the_last_user_is_named(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    caller = grid.caller("device-api", ROLE_AUTHORIZER)
    caller.authorize.Authorize(question(key.api_key))
    used = grid.clock.now
    grid.clock.turn(HOUR - MINUTE)

    error = refused(retire, grid, key.key.key_id)

    assert (error.code, error.reason) == (FAILED, "ROTATION_IN_USE")
    assert error.metadata == {
        "last_caller_id": "device-api",
        "last_use_time": used.isoformat(),
        "safe_time": (used + HOUR).isoformat(),
    }
    assert "device-api" in error.message
    assert reason_for(grid, key.api_key) == "PERMITTED"
    assert event_types(grid, key.key.key_id)[-1] == "key.rotated"

    retire(grid, key.key.key_id, force=True)
    assert reason_for(grid, key.api_key) == "KEY_RETIRED"


def test_right_after_a_rotation_nothing_is_proven(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    error = refused(retire, grid, key.key.key_id, quiet_for=duration(timedelta()))
    assert error.reason == "ROTATION_NOT_PROVEN"
    grid.clock.turn(timedelta(microseconds=1))
    retire(grid, key.key.key_id, quiet_for=duration(timedelta()))


def test_one_that_has_ended_stays_as_it_is(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id)
    before = get_key(grid, key.key.key_id)
    assert retire(grid, key.key.key_id).key == before
    assert event_types(grid, key.key.key_id)[-1] == "key.rotated"


@pytest.mark.parametrize("generation", [0, -1, 2, 3, 2**31 - 1])
def test_the_secret_in_force_and_one_that_there_is_not_cannot_be_ended(grid: Service, generation: int) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    error = refused(retire, grid, key.key.key_id, generation, force=True)
    assert (error.code, set(error.violations)) == (INVALID, {"generation"})


@pytest.mark.parametrize("quiet_for", [timedelta(days=30, microseconds=1), -timedelta(microseconds=1)])
def test_a_quiet_time_that_cannot_be_is_refused(grid: Service, quiet_for: timedelta) -> None:
    key_id = make_key(grid).key.key_id
    for error in (
        refused(rotation_of, grid, key_id, quiet_for),
        refused(retire, grid, key_id, quiet_for=duration(quiet_for)),
    ):
        assert (error.code, set(error.violations)) == (INVALID, {"quiet_for"})


def test_nothing_of_a_revoked_key_is_ended(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=DAY)
    revoke(grid, key.key.key_id)
    assert refused(retire, grid, key.key.key_id, force=True).reason == "KEY_IS_REVOKED"


@pytest.mark.parametrize("call", [rotation_of, retire])
def test_of_a_key_that_there_is_not_nothing_is_told_or_ended(grid: Service, call: Any) -> None:
    for key_id in ("0" * 16, "", "\0"):
        error = refused(call, grid, key_id)
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


def test_where_uses_are_not_counted_only_force_ends_a_secret(tmp_path: Path) -> None:
    with running_service(tmp_path, count_use=False) as service:
        make_workspace(service)
        key = make_key(service)
        rotate(service, key.key.key_id, overlap=10 * DAY)
        service.clock.turn(5 * DAY)
        assert not rotation_of(service, key.key.key_id)[0].safe_to_retire
        error = refused(retire, service, key.key.key_id)
        assert (error.reason, error.metadata) == ("ROTATION_NOT_PROVEN", {})
        retire(service, key.key.key_id, force=True)
        assert reason_for(service, key.api_key) == "KEY_RETIRED"
