"""Chores: done in their time, one after the other, whatever becomes of each of them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest
import structlog

from server import app
from server.service.housekeeping import Chore, Housekeeper
from server.settings import Settings
from server.store.contract import StoreUnavailable
from tests.harness import TurnedClock, running_service
from tests.operate.process import DEADLINE_SECONDS, wait_until
from tests.wire.helpers import count_rows, make_key, make_workspace

ALWAYS = 0.001
NEVER = 3600.0


class Work:
    """Work that fails when it is told to, has a number of portions, and lets a test wait for the next of them."""

    def __init__(self, portions: int = 1) -> None:
        self.failure: Exception | None = None
        self.left = portions
        self.done = 0
        self._begun = threading.Semaphore(0)

    def __call__(self) -> bool:
        self._begun.release()
        if self.failure is not None:
            raise self.failure
        self.done += 1
        self.left -= 1
        return self.left > 0

    def wait_for(self, times: int) -> None:
        for _ in range(times):
            assert self._begun.acquire(timeout=DEADLINE_SECONDS)


def test_a_chore_is_done_again_and_again_until_the_housekeeper_stops() -> None:
    work = Work()
    keeper = Housekeeper([Chore("work", ALWAYS, work)])
    keeper.start()
    work.wait_for(5)
    keeper.stop()
    assert not keeper._thread.is_alive()
    done = work.done
    keeper.run_once()
    assert work.done == done, "nothing begins after a stop"


def test_each_chore_has_a_period_of_its_own() -> None:
    often, seldom = Work(), Work()
    keeper = Housekeeper([Chore("seldom", NEVER, seldom), Chore("often", ALWAYS, often)], first_seconds=0)
    keeper.start()
    often.wait_for(20)
    keeper.stop()
    assert seldom.done == 1


def test_the_first_time_is_soon_and_not_at_once() -> None:
    often, seldom = Work(), Work()
    keeper = Housekeeper([Chore("seldom", NEVER, seldom), Chore("often", ALWAYS, often)], first_seconds=NEVER)
    keeper.start()
    often.wait_for(3)
    keeper.stop()
    assert seldom.done == 0


def test_what_has_many_portions_is_done_at_once_and_the_others_have_their_turn_between() -> None:
    long, other = Work(portions=50), Work()
    seen: list[int] = []

    def watch() -> bool:
        seen.append(long.done)
        return other()

    keeper = Housekeeper([Chore("long", NEVER, long), Chore("other", 0.0, watch)], first_seconds=0)
    keeper.start()
    long.wait_for(50)
    keeper.stop()
    assert long.left == 0
    assert len({number for number in seen if number < 50}) > 10


@pytest.mark.parametrize(
    ("failure", "event", "level"),
    [
        (StoreUnavailable("the file is away"), "chore put off", "warning"),
        (ValueError("a fault"), "chore failed", "error"),
        (RuntimeError(), "chore failed", "error"),
    ],
    ids=["the store", "a fault", "another"],
)
def test_a_failure_is_told_and_ends_neither_the_thread_nor_the_other_chores(
    failure: Exception, event: str, level: str
) -> None:
    failing, other = Work(), Work()
    failing.failure = failure
    keeper = Housekeeper([Chore("failing", ALWAYS, failing), Chore("other", ALWAYS, other)])
    with structlog.testing.capture_logs() as lines:
        keeper.start()
        failing.wait_for(3)
        other.wait_for(3)
        failing.failure = None
        wait_until(lambda: failing.done, "it is done after all")
        keeper.stop()
    assert len(lines) >= 2
    assert {(line["event"], line["log_level"], line["chore"]) for line in lines} == {(event, level, "failing")}
    if level == "warning":
        assert lines[0]["cause"] == "the file is away"
    else:
        assert lines[0]["exc_info"] is failure


def test_once_means_every_portion_of_every_chore_and_no_chore_suffers_for_another() -> None:
    failing, long = Work(), Work(portions=7)
    failing.failure = ValueError("a fault")
    with structlog.testing.capture_logs() as lines:
        Housekeeper([Chore("failing", NEVER, failing), Chore("long", NEVER, long)]).run_once()
    assert (long.done, len(lines)) == (7, 1)


def test_a_stop_comes_between_two_portions_of_what_never_ends() -> None:
    endless = Work(portions=10**9)
    keeper = Housekeeper([Chore("endless", ALWAYS, endless)])
    keeper.start()
    endless.wait_for(10)
    keeper.stop()
    assert not keeper._thread.is_alive()


def test_without_chores_there_is_no_thread() -> None:
    keeper = Housekeeper([])
    keeper.start()
    assert not keeper._thread.is_alive()
    keeper.run_once()
    keeper.stop()


@pytest.mark.parametrize("end", [lambda running: running.stop(), lambda running: running.drain()(DEADLINE_SECONDS)])
def test_a_server_deletes_old_events_by_itself_until_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: Callable[[app.App], object]
) -> None:
    monkeypatch.setattr(app, "Housekeeper", partial(Housekeeper, first_seconds=0))
    with running_service(tmp_path) as service:
        make_workspace(service)
        make_key(service)
        assert count_rows(service, "event") > 1
        clock = TurnedClock()
        clock.turn(timedelta(days=1, microseconds=1))
        settings = Settings(
            development=True,
            database=f"sqlite:{service.database}",
            development_folder=tmp_path,
            listen="127.0.0.1:0",
            event_retention_days=1,
        )
        another = app.App(settings, clock)
        try:
            another.start()
            wait_until(lambda: count_rows(service, "event") == 1, "the other server deletes them")
            assert another._housekeeper._thread.is_alive()
            end(another)
            wait_until(lambda: not another._housekeeper._thread.is_alive(), "its housekeeper ends")
        finally:
            another.stop()


def test_while_the_store_is_away_old_events_wait_for_the_next_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The test alone says when.
    monkeypatch.setattr(app, "Housekeeper", partial(Housekeeper, first_seconds=NEVER))
    with running_service(tmp_path, event_retention_days=1) as service:
        make_workspace(service)
        service.clock.turn(timedelta(days=2))
        elsewhere = service.database.with_name("elsewhere.db")
        before = count_rows(service, "event")
        assert before > 1
        service.database.rename(elsewhere)
        with structlog.testing.capture_logs() as lines:
            service.app._housekeeper.run_once()
        assert ("chore put off", "prune events") in {(line["event"], line.get("chore")) for line in lines}
        elsewhere.rename(service.database)
        assert count_rows(service, "event") == before
        service.app._housekeeper.run_once()
        assert count_rows(service, "event") == 1
