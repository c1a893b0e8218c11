"""Dispatchers that are turned by hand: what goes wrong in one, and what two of different processes do to each other."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from texture.auth.v1.webhook_pb2 import WEBHOOK_ENDPOINT_STATE_ACTIVE

from server.domain.webhooks import DISABLE_AFTER
from server.outbound import Answered
from server.service.deliveries import LEASE, Dispatcher
from server.store.contract import StoreUnavailable, seconds_left
from server.store.webhook_rows import WebhookReading
from tests.harness import Service, running_service
from tests.operate.process import wait_until
from tests.webhooks.test_sending import create, endpoint_of
from tests.wire.helpers import make_key, make_workspace

URL = "https://hooks.example/"
GOOD, BAD = Answered(204), Answered(500)


@dataclass
class Poster:
    """Answers as it is told to, and remembers where it posted."""

    answer: Callable[[], Answered] = lambda: GOOD
    posted: list[str] = field(default_factory=list)

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered:  # noqa: ARG002 - as posters are
        self.posted.append(url)
        return self.answer()


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[Service]:
    """A server with one workspace, which does nothing by itself."""
    with running_service(tmp_path) as running:
        running.app._dispatcher.stop()
        running.app._housekeeper.stop()
        running.app._usage.stop()
        make_workspace(running)
        yield running


def dispatcher(service: Service, poster: Poster) -> Dispatcher:
    return Dispatcher(service.app._resources, poster)


def wait_for_end(one: Dispatcher) -> None:
    """Wait until all that was begun has ended; it is noted at the next turn."""
    wait_until(lambda: len(one._ended) == one._in_flight.total(), "the attempts end")


def fail(*_: Any) -> Any:
    raise RuntimeError("can't")


def test_threads_that_cannot_be_started_leave_room_for_when_they_can(
    grid: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    create(grid, URL)
    poster = Poster()
    one = dispatcher(grid, poster)
    make_key(grid)
    for _ in range(3):
        with monkeypatch.context() as patch:
            patch.setattr("server.service.deliveries.threading.Thread.start", fail)
            with pytest.raises(RuntimeError):
                one.turn()
        grid.clock.turn(LEASE)
    one.turn()
    wait_for_end(one)
    assert poster.posted == [URL]


def test_what_is_new_is_not_forgotten_for_a_turn_that_fails(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.service.deliveries.PAUSE_SECONDS", 0.01)
    create(grid, URL)
    make_key(grid)
    read, failures = WebhookReading.webhook_standings, [fail]
    monkeypatch.setattr(
        WebhookReading, "webhook_standings", lambda reader: failures.pop()() if failures else read(reader)
    )
    poster = Poster()
    one = dispatcher(grid, poster)
    one.start()
    wait_until(lambda: poster.posted, "it is sent")
    one.stop()
    assert failures == []


def test_a_failure_that_ends_after_another_process_has_delivered_does_not_disable_an_endpoint(grid: Service) -> None:
    created = create(grid, URL)
    released = threading.Event()

    def answer_late() -> Answered:
        released.wait()
        return BAD

    slow, quick = Poster(lambda: BAD), Poster()
    one, other = dispatcher(grid, slow), dispatcher(grid, quick)
    make_key(grid)
    one.turn()
    wait_for_end(one)
    one.turn()
    grid.clock.turn(DISABLE_AFTER)
    for _ in range(2):
        make_key(grid)
    slow.answer = answer_late
    one.turn()
    other.turn()
    wait_for_end(other)
    other.turn()
    released.set()
    wait_for_end(one)
    one.turn()
    assert endpoint_of(grid, created).state == WEBHOOK_ENDPOINT_STATE_ACTIVE
    assert (len(slow.posted), len(quick.posted)) == (2, 2)


def test_a_stop_does_not_wait_long_for_a_store_that_does_not_answer(
    grid: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.service.deliveries.STOP_SECONDS", 0.1)
    for _ in range(10):
        create(grid, URL)
    make_key(grid)
    one = dispatcher(grid, Poster())
    one.turn()
    wait_for_end(one)
    waited: list[float] = []

    def note(**_: Any) -> Any:
        waited.append(min(seconds_left(), 5.0))
        time.sleep(waited[-1])
        raise StoreUnavailable("no answer")

    monkeypatch.setattr(grid.app._resources.store, "note", note)
    one.stop()
    assert sum(waited) < 1.0
