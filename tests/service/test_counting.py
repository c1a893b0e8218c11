"""Uses of keys are counted exactly, whoever counts at the same time, and within bounds."""

from __future__ import annotations

import itertools
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.decision import Decision
from server.domain.kinds import KeyKind
from server.domain.reasons import Reason
from server.domain.usage import Span, UsageBatch, UsageReport
from server.service import counting
from server.service.counting import Pending, Use, UseCounter
from tests.builders import NOW, make_key
from tests.harness import TurnedClock

HOUR = timedelta(hours=1)
REPORT = UsageReport(process_id="p", sequence=1, start_time=NOW, report_time=NOW)


def use_of(key_id: str = "Key0000000000001", device_id: str = "", permission: str = "devices:read") -> Use:
    key = make_key(KeyKind.SERVER, key_id=key_id)
    return Use(Decision(reason=Reason.PERMITTED, key=key, generation=key.generations[0]), permission, device_id)


def handed_over(counter: UseCounter, pending: Pending | None = None) -> UsageBatch:
    pending = Pending() if pending is None else pending
    counter.hand_over(pending)
    return pending.batch(REPORT)


def counts(batch: UsageBatch) -> Counter[tuple[str, str]]:
    """Return the counts by key and caller."""
    found: Counter[tuple[str, str]] = Counter()
    for bucket, span in batch.uses.items():
        found[bucket.key_id, bucket.caller_id] += span.count
    return found


@pytest.fixture
def eager_switches() -> Iterator[None]:
    """Have threads take turns as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("eager_switches")
def test_no_use_is_lost_or_counted_twice_while_many_threads_count_and_another_hands_over() -> None:
    counter, each, callers = UseCounter(TurnedClock()), 20_000, ["a", "b", "a", "b"]
    shared = use_of(device_id="battery-1")
    handed: list[UsageBatch] = []
    done = threading.Event()

    def count(caller_id: str) -> None:
        for number in range(each):
            counter.count(shared, caller_id)
            if number % 100 == 0:
                counter.count(use_of(device_id="battery-2"), caller_id)

    def hand_over() -> None:
        while not done.is_set():
            handed.append(handed_over(counter))

    counting = [threading.Thread(target=count, args=(caller_id,)) for caller_id in callers]
    handing = threading.Thread(target=hand_over)
    for thread in (*counting, handing):
        thread.start()
    for thread in counting:
        thread.join()
    done.set()
    handing.join()
    handed.append(handed_over(counter))

    total: Counter[tuple[str, str]] = Counter()
    touches: Counter[str] = Counter()
    for batch in handed:
        total += counts(batch)
        for (_, device_id), span in batch.touches.items():
            touches[device_id] += span.count
    expected = 2 * (each + each // 100)
    assert total == {("Key0000000000001", "a"): expected, ("Key0000000000001", "b"): expected}
    assert touches == {"battery-1": 4 * each, "battery-2": 4 * each // 100}


@given(steps=st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xy"), st.booleans()), max_size=60))
def test_every_use_is_handed_over_once_whatever_is_handed_over_between(steps: list[tuple[str, str, bool]]) -> None:
    counter, uses = UseCounter(TurnedClock()), {key: use_of(key) for key in "abc"}
    found: Counter[tuple[str, str]] = Counter()
    for key, caller_id, hand_over in steps:
        counter.count(uses[key], caller_id)
        if hand_over:
            found += counts(handed_over(counter))
    found += counts(handed_over(counter))
    assert found == Counter((key, caller_id) for key, caller_id, _ in steps)


def test_uses_are_counted_in_the_hour_in_which_they_are() -> None:
    clock = TurnedClock()
    counter, use = UseCounter(clock), use_of()
    began = clock.now
    for by in (HOUR - timedelta(microseconds=1), timedelta(microseconds=1), HOUR):
        counter.count(use, "a")
        clock.turn(by)
    counter.count(use, "a")

    found = {bucket.hour: span for bucket, span in handed_over(counter).uses.items()}

    assert found == {
        began: Span(2, began, began + HOUR - timedelta(microseconds=1)),
        began + HOUR: Span(1, began + HOUR, began + HOUR),
        began + 2 * HOUR: Span(1, began + 2 * HOUR, began + 2 * HOUR),
    }


def test_a_denial_is_a_use_but_no_touch() -> None:
    key = make_key()
    denied = Decision(reason=Reason.DEVICE_NOT_FOUND, key=key, generation=key.generations[0])
    counter = UseCounter(TurnedClock())
    counter.count(Use(denied, "devices:read", "battery-1"), "a")

    batch = handed_over(counter)

    assert [bucket.reason for bucket in batch.uses] == [Reason.DEVICE_NOT_FOUND]
    assert batch.touches == {}


def test_a_key_that_is_not_known_has_no_use() -> None:
    with pytest.raises(ValueError, match="nobody is known"):
        Use(Decision(reason=Reason.KEY_UNKNOWN), "devices:read", "battery-1")


def test_where_there_is_no_room_uses_are_counted_for_their_key_and_devices_are_left_out() -> None:
    counter = UseCounter(TurnedClock(), most=3)
    for number in range(10):
        counter.count(use_of(device_id=f"battery-{number}"), "a")

    batch = handed_over(counter)

    assert counts(batch) == {("Key0000000000001", "a"): 3, ("Key0000000000001", ""): 7}
    assert len(batch.touches) == 3
    assert set(batch.left_out) == {"Key0000000000001"}
    assert {bucket.permission for bucket in batch.uses if not bucket.caller_id} == {""}


def test_where_there_is_no_room_for_keys_it_is_known_that_uses_are_lost() -> None:
    clock = TurnedClock()
    counter, pending = UseCounter(clock, most=2), Pending()
    for number in range(10):
        counter.count(use_of(f"Key{number}"), "a")
    clock.turn(HOUR)
    batch = handed_over(counter, pending)
    assert sum(counts(batch).values()) == 4
    assert pending.lost_time == clock.now - HOUR


@pytest.mark.parametrize("most", [1, 3, 100])
def test_what_waits_to_be_stored_is_bounded_too(most: int) -> None:
    counter, pending = UseCounter(TurnedClock()), Pending(most)
    for number in range(20):
        counter.count(use_of(f"Key{number % 5}", f"battery-{number}"), "a")
        counter.hand_over(pending)
    batch = pending.batch(REPORT)
    assert len(batch.uses) <= 2 * most
    assert len(batch.touches) <= most
    if most == 100:
        assert sum(counts(batch).values()) == 20
        assert pending.lost_time is None
    else:
        assert batch.left_out
        assert (pending.lost_time is not None) == (sum(counts(batch).values()) < 20)


def interrupted(work: Callable[[], object], after: int, meanwhile: Callable[[], object]) -> bool:
    """Do some work and, after so many of its instructions, something else, as another thread would in its turn.

    Tell whether the work has so many.
    """
    seen, before = 0, sys.gettrace()

    def trace(frame: FrameType, event: str, _arg: object) -> Any:
        nonlocal seen
        if frame.f_code.co_filename != counting.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            seen += 1
            if seen == after:
                meanwhile()
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return seen >= after


@pytest.mark.parametrize("counted_before", [False, True])
@pytest.mark.parametrize(
    "what", ["counts, and another counts", "counts, and another looks", "looks, and another counts"]
)
def test_whenever_threads_take_turns_nothing_is_lost_or_counted_twice(what: str, counted_before: bool) -> None:
    for after in itertools.count(1):
        counter, use = UseCounter(TurnedClock()), use_of(device_id="battery-1")
        handed: list[UsageBatch] = []

        def count(counter: UseCounter = counter, use: Use = use) -> None:
            counter.count(use, "a")

        def look(counter: UseCounter = counter, handed: list[UsageBatch] = handed) -> None:
            handed.append(handed_over(counter))

        if counted_before:
            count()
        turns: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
            "counts, and another counts": (count, count),
            "counts, and another looks": (count, look),
            "looks, and another counts": (look, count),
        }
        work, meanwhile = turns[what]
        more = interrupted(work, after, meanwhile)
        look()
        expected = (work is count) + (meanwhile is count and more) + counted_before
        assert sum(sum(counts(batch).values()) for batch in handed) == expected, f"after {after} instructions"
        if not more:
            assert after > 20
            return
