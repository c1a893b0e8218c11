"""What was counted is stored once, whatever becomes of the store meanwhile."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from server.domain.decision import Decision
from server.domain.reasons import Reason
from server.domain.usage import UsageReport
from server.service import usage
from server.service.counting import UNCOUNTED, Use, UseCounter
from server.service.usage import UsageReporter
from server.store.contract import Notes, OutcomeUnknown, Store, StoreUnavailable
from server.store.peewee_store import PeeweeStore
from tests.builders import DEVICE_ID, make_key
from tests.harness import TurnedClock
from tests.operate.process import wait_until
from tests.store.files import new_engine
from tests.store.support import SERVER_KEY_ID, populate

KEY = make_key()


def use_key(reporter: UsageReporter) -> None:
    """Use the key on the device."""
    decision = Decision(reason=Reason.PERMITTED, key=KEY, generation=KEY.generations[0])
    reporter.counter.count(Use(decision, "devices:read", DEVICE_ID), "device-api")


class Faulty:
    """A store to which notes get through or not, or whose answer is lost, as it is told for the next time."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.fault = ""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    @contextmanager
    def note(self, *, durable: bool = True) -> Iterator[Notes]:
        fault, self.fault = self.fault, ""
        if fault == "away":
            raise StoreUnavailable("on purpose")
        with self._store.note(durable=durable) as notes:
            yield notes
        if fault == "answer lost":
            raise OutcomeUnknown("on purpose")


@contextmanager
def made(folder: Path) -> Iterator[Faulty]:
    store = PeeweeStore(new_engine(folder / "auth.db"))
    populate(store)
    try:
        yield Faulty(store)
    finally:
        store.close()


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Faulty]:
    with made(tmp_path) as faulty:
        yield faulty


def reporter_on(store: Faulty, clock: TurnedClock | None = None, *, counting: bool = True) -> UsageReporter:
    clock = clock or TurnedClock()
    return UsageReporter(store, UseCounter(clock) if counting else UNCOUNTED, clock, counting=counting)


def stored(store: Faulty) -> tuple[int, int]:
    """Return how many uses, and how many touches, are stored."""
    with store.read() as reader:
        uses = reader.list_key_usage(SERVER_KEY_ID, None, None, None, 100).rows
        touches = reader.list_key_devices(SERVER_KEY_ID, None, 100).rows
    return sum(use.span.count for use in uses), sum(touch.span.count for touch in touches)


def reports(store: Faulty) -> list[UsageReport]:
    with store.read() as reader:
        return list(reader.usage_reports())


@settings(max_examples=25, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 3), st.sampled_from(["", "away", "answer lost"]), st.booleans()), max_size=12
    )
)
def test_every_use_is_stored_once_whatever_becomes_of_the_store(steps: list[tuple[int, str, bool]]) -> None:
    with TemporaryDirectory() as folder, made(Path(folder)) as store:
        clock = TurnedClock()
        reporter = reporter_on(store, clock)
        for count, fault, report in steps:
            for _ in range(count):
                use_key(reporter)
            clock.turn(timedelta(minutes=20))
            store.fault = fault
            with suppress(StoreUnavailable):
                reporter.flush(report=report)
        store.fault = ""
        reporter.flush()
        total = sum(count for count, _, _ in steps)
        assert stored(store) == (total, total)


def test_nothing_is_written_where_there_is_nothing_to_say(store: Faulty) -> None:
    reporter = reporter_on(store)
    before = store.version()
    reporter.flush()
    assert store.version() == before
    use_key(reporter)
    reporter.flush()
    assert store.version() != before


def test_it_stores_by_itself_and_what_is_left_at_the_end_and_is_forgotten_then(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "FLUSH_SECONDS", 0.01)
    reporter = reporter_on(store)
    reporter.start()
    assert len(reports(store)) == 1
    use_key(reporter)
    wait_until(lambda: stored(store) == (1, 1), "it is stored")
    store.fault = "away"
    use_key(reporter)
    wait_until(lambda: stored(store) == (2, 2), "it is stored once the store is back")
    use_key(reporter)
    reporter.stop()
    assert stored(store) == (3, 3)
    assert reports(store) == []


def test_one_that_is_not_asked_for_anything_reports_now_and_then(
    store: Faulty, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(usage, "REPORT_SECONDS", 0.01)
    reporter = reporter_on(store)
    reporter.start()
    wait_until(lambda: reports(store)[0].sequence > 2, "it reports again")
    reporter.stop()


@pytest.mark.parametrize(("took", "pause"), [(0.0, 0.0), (0.01, 0.19), (0.2, 3.8), (5.0, usage.REPORT_SECONDS)])
def test_what_takes_long_is_done_less_often_so_that_it_takes_a_twentieth_of_the_time(took: float, pause: float) -> None:
    assert usage.pause_after(took) == pytest.approx(pause)


def test_one_that_never_began_says_nothing_at_its_end(store: Faulty) -> None:
    reporter_on(store).stop()
    assert reports(store) == []


def test_one_that_does_not_count_says_so_and_is_remembered(store: Faulty) -> None:
    reporter = reporter_on(store, counting=False)
    reporter.start()
    use_key(reporter)
    (report,) = reports(store)
    assert report.uncounted_time == report.report_time
    reporter.stop()
    (report,) = reports(store)
    assert report.end_time is not None
    assert stored(store) == (0, 0)


def test_uses_that_there_was_no_room_for_are_told_of_for_good(store: Faulty) -> None:
    clock = TurnedClock()
    reporter = UsageReporter(store, UseCounter(clock, most=0), clock, counting=True)
    use_key(reporter)
    lost = clock.now
    clock.turn(timedelta(hours=1))
    reporter.flush()
    reporter.flush(end=True)
    (report,) = reports(store)
    assert (report.uncounted_time, report.end_time) == (lost, clock.now)
