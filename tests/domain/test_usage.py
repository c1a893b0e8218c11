from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.kinds import KeyKind
from server.domain.token import TokenKind
from server.domain.usage import SILENCE, CallerUse, Retirement, Span, UsageReport, judge
from tests.builders import KEY_IDS, NOW, make_generation

ROTATED = NOW
MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
MOMENT = timedelta(microseconds=1)
OLD = make_generation(TokenKind.SERVER, KEY_IDS[KeyKind.SERVER], retire_time=NOW + 30 * HOUR)


def report(at: timedelta, **changes: object) -> UsageReport:
    """Return the report of a process, made so long after the rotation."""
    values = {"process_id": "p", "sequence": 1, "start_time": NOW, "report_time": NOW + at} | changes
    return UsageReport(**values)  # type: ignore[arg-type]


def use(at: timedelta, caller_id: str = "device-api", count: int = 1) -> CallerUse:
    return CallerUse(caller_id, Span(count, NOW, NOW + at))


def judged(
    at: timedelta, *reports: UsageReport, uses: tuple[CallerUse, ...] = (), quiet_for: timedelta = HOUR
) -> Retirement:
    return judge(OLD, ROTATED, uses, reports, quiet_for, NOW + at)


def test_a_secret_that_was_not_used_since_the_rotation_is_safe_to_end_once_all_have_reported_for_long_enough() -> None:
    assert not judged(HOUR, report(HOUR - MOMENT)).safe
    found = judged(HOUR, report(HOUR), report(HOUR + MOMENT))
    assert found.safe
    assert (found.last_use, found.uses) == (None, ())
    assert (found.reported_until, found.safe_time) == (NOW + HOUR, NOW + HOUR)


def test_a_use_begins_the_wait_anew_and_the_last_one_is_named() -> None:
    uses = (use(MINUTE, "first"), use(HOUR, "last", 7), use(2 * MINUTE, "second"))
    found = judged(2 * HOUR - MOMENT, report(2 * HOUR - MOMENT), uses=uses)
    assert not found.safe
    assert found.last_use == uses[1]
    assert [one.caller_id for one in found.uses] == ["last", "second", "first"]
    assert found.safe_time == NOW + 2 * HOUR
    assert judged(2 * HOUR, report(2 * HOUR), uses=uses).safe


def test_one_process_that_lags_keeps_it_from_being_safe() -> None:
    now = HOUR + MINUTE
    assert not judged(now, report(now), report(HOUR - MOMENT)).safe
    assert judged(now, report(now), report(HOUR)).safe


def test_without_a_report_nothing_is_safe_and_nobody_knows_when() -> None:
    found = judged(100 * HOUR, quiet_for=timedelta())
    assert (found.safe, found.reported_until, found.safe_time) == (False, None, None)


def test_a_report_of_the_moment_of_the_rotation_proves_nothing() -> None:
    assert not judged(MINUTE, report(timedelta()), quiet_for=timedelta()).safe
    assert judged(MINUTE, report(MOMENT), quiet_for=timedelta()).safe


def test_a_process_that_vanished_may_have_seen_a_use_until_it_was_silent_for_long() -> None:
    vanished = report(5 * MINUTE)
    until = 5 * MINUTE + SILENCE
    found = judged(until + HOUR - MOMENT, vanished, report(until + HOUR - MOMENT))
    assert not found.safe
    assert (found.silent_processes, found.unsure_until, found.safe_time) == (1, NOW + until, NOW + until + HOUR)
    assert judged(until + HOUR, vanished, report(until + HOUR)).safe


def test_a_process_that_vanished_before_the_rotation_says_nothing_about_it() -> None:
    found = judged(HOUR, report(-SILENCE), report(HOUR))
    assert (found.safe, found.silent_processes, found.unsure_until) == (True, 0, None)


def test_a_process_that_ended_in_good_order_holds_nothing_up() -> None:
    assert judged(HOUR, report(MINUTE, end_time=NOW + MINUTE), report(HOUR)).safe


def test_while_a_process_does_not_count_nothing_is_ever_safe() -> None:
    idle = report(9 * HOUR, uncounted_time=NOW + 9 * HOUR)
    for quiet_for in (timedelta(), HOUR):
        found = judged(9 * HOUR, idle, report(9 * HOUR), quiet_for=quiet_for)
        assert (found.safe, found.safe_time) == (False, None)


def test_what_went_uncounted_counts_as_a_use_from_then_on() -> None:
    ended = report(MINUTE, uncounted_time=NOW + MINUTE, end_time=NOW + MINUTE)
    assert not judged(HOUR + MINUTE - MOMENT, ended, report(HOUR + MINUTE - MOMENT)).safe
    assert judged(HOUR + MINUTE, ended, report(HOUR + MINUTE)).safe


@pytest.mark.parametrize("silent_for", [SILENCE, SILENCE + MOMENT])
def test_a_process_is_silent_after_a_minute_and_not_before(silent_for: timedelta) -> None:
    assert report(timedelta()).silent(NOW + silent_for) == (silent_for > SILENCE)
    assert report(timedelta()).running(NOW + silent_for) == (silent_for == SILENCE)


def test_spans_add_up() -> None:
    one, other = Span(2, NOW, NOW + HOUR), Span(3, NOW - MINUTE, NOW + MINUTE)
    assert one.plus(None) == one
    assert one.plus(other) == other.plus(one) == Span(5, NOW - MINUTE, NOW + HOUR)


minutes = st.integers(-120, 600).map(lambda number: number * MINUTE)


@given(
    uses=st.lists(minutes.filter(lambda at: at >= timedelta()), max_size=3),
    reports=st.lists(st.tuples(minutes, st.booleans()), max_size=4),
    quiet_for=st.integers(0, 120).map(lambda number: number * MINUTE),
    now=minutes,
)
def test_what_is_safe_was_not_used_for_as_long_as_was_asked_for_by_all_that_anybody_can_know(
    uses: list[timedelta], reports: list[tuple[timedelta, bool]], quiet_for: timedelta, now: timedelta
) -> None:
    past = [(min(at, now), ended) for at, ended in reports]
    made = [report(at, end_time=NOW + at if ended else None) for at, ended in past]
    seen = tuple(use(at, str(number)) for number, at in enumerate(uses) if at <= now)
    found = judged(now, *made, uses=seen, quiet_for=quiet_for)
    running = [at for at, ended in past if not ended and now - at <= SILENCE]
    if found.safe:
        assert running
        # No process that runs could still report a use within the time that was to be quiet.
        begin = min(running) - quiet_for
        assert begin >= timedelta()
        assert all(at <= begin for at in uses if at <= now)
        for at, ended in past:
            if not ended and now - at > SILENCE:
                assert at + SILENCE <= max(begin, timedelta())
    elif running:
        # When it will be is not a time of which all have reported already.
        assert found.safe_time is not None
        assert found.safe_time >= NOW + min(running)
