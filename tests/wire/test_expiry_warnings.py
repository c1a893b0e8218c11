"""Whoever watches the events learns in time that a key is about to expire: once for each warning, whatever happens."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.json_format import MessageToDict
from texture.auth.v1 import key_service_pb2
from texture.auth.v1.key_pb2 import Key

from server.service import expiry
from server.service.expiry import warn_of_expiry
from tests.harness import Service
from tests.wire.helpers import make_key, make_scoped_key, revoke, suspend, timestamp
from tests.wire.test_events import every_event

DAY = timedelta(days=1)
HOUR = timedelta(hours=1)


def warn(service: Service) -> None:
    """Do the chore until there is nothing more to do."""
    while warn_of_expiry(service.app._resources):
        pass


def warnings(service: Service) -> list[tuple[str, int]]:
    """Return the warnings so far: which key, and how many days ahead."""
    return [
        (logged.event.subject_id, int(MessageToDict(logged.event.after)["expires_within_days"]))
        for logged in every_event(service, types=["key.expiring"])
    ]


def pass_days(service: Service, days: int) -> None:
    """Let days go by, with the chore done every few hours."""
    for _ in range(days * 3):
        service.clock.turn(8 * HOUR)
        warn(service)


def key_for(service: Service, lifetime: timedelta, **given: Any) -> str:
    return make_key(service, expire_time=timestamp(service.clock.now + lifetime), **given).key.key_id


def move(service: Service, key_id: str, lifetime: timedelta) -> None:
    key = Key(key_id=key_id, expire_time=timestamp(service.clock.now + lifetime))
    request = key_service_pb2.UpdateKeyRequest(key=key, update_mask=FieldMask(paths=["expire_time"]))
    service.operator.keys.UpdateKey(request)


@pytest.fixture
def begun(grid: Service) -> Service:
    """A service that has done the chore before."""
    warn(grid)
    return grid


def test_a_key_is_warned_of_thirty_seven_and_one_days_ahead(begun: Service) -> None:
    key_id = key_for(begun, 40 * DAY)
    make_key(begun)
    for days, expected in (
        (9, []),
        (2, [30]),
        (21, [30]),
        (2, [30, 7]),
        (4, [30, 7]),
        (1, [30, 7, 1]),
        (9, [30, 7, 1]),
    ):
        pass_days(begun, days)
        assert warnings(begun) == [(key_id, ahead) for ahead in expected]


def test_a_warning_says_what_expires_and_when(begun: Service) -> None:
    key_id = key_for(begun, 7 * DAY + HOUR)
    begun.clock.turn(HOUR)
    warn(begun)

    (logged,) = every_event(begun, types=["key.expiring"])
    event = logged.event
    assert (event.workspace_id, event.subject_id, event.caller_id) == ("grid-one", key_id, "expiry-warning")
    assert event.reason == "expires within 7 days"
    assert event.after["key_id"] == key_id
    assert event.after["expire_time"] == (begun.clock.now + 7 * DAY).isoformat()
    assert not event.HasField("before")


def test_a_scoped_key_is_warned_of_too(begun: Service) -> None:
    key = make_scoped_key(begun, "device-1").scoped_key
    left = key.expire_time.ToDatetime(tzinfo=begun.clock.now.tzinfo) - begun.clock.now
    begun.clock.turn(left - 30 * DAY)
    warn(begun)
    assert warnings(begun) == [(key.key_id, 30)]


@pytest.mark.parametrize(("lifetime", "expected"), [(20, [7, 1]), (7, [1]), (5, [1]), (0.5, [])])
def test_a_key_with_less_time_gets_the_warnings_that_are_still_ahead(
    begun: Service, lifetime: float, expected: list[int]
) -> None:
    key_id = key_for(begun, lifetime * DAY)
    pass_days(begun, 21)
    assert warnings(begun) == [(key_id, ahead) for ahead in expected]


def test_a_key_whose_expiry_is_moved_is_warned_of_anew(begun: Service) -> None:
    key_id = key_for(begun, 8 * DAY)
    pass_days(begun, 2)
    assert warnings(begun) == [(key_id, 7)]
    move(begun, key_id, 31 * DAY)
    pass_days(begun, 31)
    assert warnings(begun) == [(key_id, ahead) for ahead in (7, 30, 7, 1)]


def test_a_key_that_is_not_live_is_not_warned_of(begun: Service) -> None:
    gone, off, live = (key_for(begun, 8 * DAY) for _ in range(3))
    revoke(begun, gone)
    suspend(begun, off)
    pass_days(begun, 2)
    assert warnings(begun) == [(live, 7)]
    begun.operator.keys.ResumeKey(key_service_pb2.ResumeKeyRequest(key_id=off))
    pass_days(begun, 6)
    assert Counter(warnings(begun)) == Counter([(live, 7), (live, 1), (off, 1)])


def test_keys_from_before_the_first_time_are_not_all_warned_of_at_once(grid: Service) -> None:
    key_id = key_for(grid, 5 * DAY)
    warn(grid)
    assert warnings(grid) == []
    pass_days(grid, 5)
    assert warnings(grid) == [(key_id, 1)]


def test_after_a_time_without_a_server_only_the_nearest_warning_comes(begun: Service) -> None:
    keys = {days: key_for(begun, days * DAY) for days in (31, 32, 45, 70)}
    begun.clock.turn(31 * DAY + HOUR)
    warn(begun)
    assert warnings(begun) == [(keys[45], 30), (keys[32], 1)]


def test_a_clock_that_is_set_back_brings_no_warning_again(begun: Service) -> None:
    key_id = key_for(begun, 8 * DAY)
    pass_days(begun, 2)
    begun.clock.turn(-2 * DAY)
    pass_days(begun, 3)
    assert warnings(begun) == [(key_id, 7)]


def test_many_are_warned_of_in_portions_each_once(begun: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expiry, "KEYS_AT_ONCE", 3)
    # All but the last few at the same instant.
    keys = [key_for(begun, 8 * DAY) for _ in range(8)] + [key_for(begun, 8 * DAY + HOUR) for _ in range(2)]
    begun.clock.turn(2 * DAY)
    assert warn_of_expiry(begun.app._resources)
    warn(begun)
    assert sorted(warnings(begun)) == sorted((key_id, 7) for key_id in keys)
