"""Watching the event log: in order, at least once, never one skipped, whoever is cut off, slow or not welcome."""

from __future__ import annotations

import itertools
import random
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from texture.auth.v1 import caller_service_pb2
from texture.auth.v1 import event_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_OPERATOR

from server.service import events
from server.service.housekeeping import prune_events
from server.wire.seats import Seats
from server.wire.servicers import events as servicer
from tests.harness import Client, Refused, Service, as_refused, refused
from tests.operate.process import wait_until
from tests.store.support import make_event
from tests.wire.helpers import OTHER_WORKSPACE, WORKSPACE, make_key, make_workspace, revoke
from tests.wire.test_events import every_event, types_of

ROOT = Path(__file__).parents[2]
HOUR = timedelta(hours=1)
SECONDS = 60


@contextmanager
def watching(client: Client, **given: Any) -> Iterator[Any]:
    """Watch events until the block ends."""
    stream = client.events.WatchEvents(pb.WatchEventsRequest(**given), timeout=SECONDS)
    try:
        yield stream
    finally:
        stream.cancel()


def take(stream: Any, count: int) -> list[pb.LoggedEvent]:
    """Read so many events."""
    found: list[pb.LoggedEvent] = []
    while len(found) < count:
        found += next(stream).events
    return found


def ending(stream: Any) -> Refused:
    """Read to the end, which must be an error of this service."""
    with pytest.raises(grpc.RpcError) as caught:
        for _ in stream:
            pass
    return as_refused(caught.value)


def test_what_is_there_comes_first_and_then_what_is_recorded(grid: Service) -> None:
    with watching(grid.operator) as stream:
        assert types_of(list(next(stream).events)) == ["caller.created", "workspace.created"]
        for _ in range(3):
            key_id = make_key(grid).key.key_id
            assert types_of(take(stream, 1)) == ["key.created"]
            revoke(grid, key_id)
            assert types_of(take(stream, 1)) == ["key.revoked"]


def test_what_is_watched_is_what_is_listed(grid: Service) -> None:
    with watching(grid.operator) as stream:
        first = next(stream)
        make_key(grid)
        seen = [*first.events, *take(stream, 1)]
    assert seen == every_event(grid)
    assert first.cursor == first.events[-1].cursor


def test_only_what_matches_is_watched(grid: Service) -> None:
    make_workspace(grid, OTHER_WORKSPACE)
    with watching(grid.operator, workspace_id=WORKSPACE, types=["key.revoked", "key.created"]) as stream:
        assert list(next(stream).events) == []
        make_key(grid, workspace_id=OTHER_WORKSPACE)
        key_id = make_key(grid).key.key_id
        revoke(grid, key_id)
        found = take(stream, 2)
    assert types_of(found) == ["key.created", "key.revoked"]
    assert {logged.event.subject_id for logged in found} == {key_id}


def test_a_long_log_is_looked_through_bit_by_bit(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(9):
        key_id = make_key(grid).key.key_id
    revoke(grid, key_id)
    monkeypatch.setattr(events, "IDS_AT_ONCE", 2)
    with watching(grid.operator, types=["key.revoked"]) as stream:
        (found,) = take(stream, 1)
        assert found.event.subject_id == key_id
        with watching(grid.operator, types=["key.created"], after=found.cursor) as other:
            next(other)
            made = make_key(grid)
            assert [logged.event.subject_id for logged in take(other, 1)] == [made.key.key_id]


def test_only_what_is_new_is_watched_where_that_is_asked_for(grid: Service) -> None:
    make_key(grid)
    with watching(grid.operator, only_new=True) as stream:
        first = next(stream)
        assert list(first.events) == []
        made = make_key(grid)
        assert [logged.event.subject_id for logged in take(stream, 1)] == [made.key.key_id]
    assert [logged.event.subject_id for logged in every_event(grid, after=first.cursor)] == [made.key.key_id]


def test_the_cursor_of_a_filter_that_does_not_match_does_not_stay_behind(
    grid: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "PROGRESS_SECONDS", 0.0)
    with watching(grid.operator, types=["end_user.erased"]) as stream:
        next(stream)
        make_key(grid)
        message = next(stream)
    assert list(message.events) == []
    assert message.cursor == every_event(grid)[-1].cursor


def test_an_empty_message_comes_now_and_then_where_nothing_happens(
    grid: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(events, "SILENT_SECONDS", 0.0)
    monkeypatch.setattr(servicer, "ADMISSION_SECONDS", 0.01)
    with watching(grid.operator, only_new=True) as stream:
        messages = list(itertools.islice(stream, 3))
    assert {message.cursor for message in messages} == {every_event(grid)[-1].cursor}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"after": "garbage"}, "after"),
        ({"types": ["nonsense"]}, "types[0]"),
        ({"after": "AAAAAAAAAAAAAAAAAAAAAA", "only_new": True}, "only_new"),
    ],
)
def test_what_cannot_be_watched_is_refused(grid: Service, given: dict[str, Any], field: str) -> None:
    with watching(grid.operator, **given) as stream:
        error = ending(stream)
    assert (error.code, set(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {field})


def test_a_workspace_that_does_not_exist_cannot_be_watched(grid: Service) -> None:
    with watching(grid.operator, workspace_id="nowhere") as stream:
        assert ending(stream).reason == "WORKSPACE_NOT_FOUND"


# Who may


def test_only_operators_watch(grid: Service) -> None:
    for client, reason in (
        (grid.caller("asks", ROLE_AUTHORIZER), "CALLER_ROLE_MISSING"),
        (grid.client(None), "CALLER_CREDENTIAL_MISSING"),
    ):
        with watching(client) as stream:
            assert ending(stream).reason == reason


def test_a_stream_ends_when_its_caller_is_revoked(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "ADMISSION_SECONDS", 0.05)
    client = grid.caller("watches", ROLE_OPERATOR)
    with watching(client) as stream, watching(grid.operator) as other:
        next(stream)
        next(other)
        grid.operator.callers.RevokeCaller(caller_service_pb2.RevokeCallerRequest(caller_id="watches"))
        error = ending(stream)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_REVOKED")
        assert types_of(take(other, 1)) == ["caller.revoked"]


def test_a_stream_ends_when_its_caller_loses_the_role(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "ADMISSION_SECONDS", 0.05)
    client = grid.caller("watches", ROLE_OPERATOR)
    with watching(client) as stream:
        next(stream)
        request = caller_service_pb2.UpdateCallerRequest()
        request.caller.caller_id = "watches"
        request.caller.roles.append(ROLE_AUTHORIZER)
        request.update_mask.paths.append("roles")
        grid.operator.callers.UpdateCaller(request)
        assert ending(stream).reason == "CALLER_ROLE_MISSING"


# How many, and how slow


def test_more_streams_than_seats_are_refused_until_one_is_free(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servicer, "ADMISSION_SECONDS", 0.05)
    seats: Seats = grid.app._server._seats
    with watching(grid.operator) as first:
        next(first)
        taken = 0
        while seats._free.acquire(blocking=False):
            taken += 1
        assert taken == 63
        with watching(grid.operator) as more:
            error = ending(more)
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert error.retry_seconds
        # Whoever is served goes on.
        make_key(grid)
        take(first, 1)
    # Its seat is free once the server has found out that it is gone.
    wait_until(lambda: seats._free.acquire(blocking=False), "the seat is free")


def test_a_reader_that_has_stopped_reading_holds_up_nobody_else(grid: Service) -> None:
    # More than its connection takes in advance.
    with grid.app._resources.store.write() as writer:
        writer.record([make_event(reason="x" * 500)] * 3_000)
    with watching(grid.operator) as stalled, watching(grid.operator, only_new=True) as other:
        next(stalled)
        next(other)
        for _ in range(3):
            made = make_key(grid)
            assert [logged.event.subject_id for logged in take(other, 1)] == [made.key.key_id]
        # And it has missed nothing, when it goes on.
        assert types_of(take(stalled, 2_805)[-3:]) == ["key.created"] * 3


def test_a_stream_that_the_retention_has_overtaken_ends_and_says_so(grid: Service) -> None:
    watch = grid.app._server._events.watch("", (), "", only_new=False)
    first = watch.next(0)
    assert first is not None
    make_key(grid)
    grid.clock.turn(2 * HOUR)
    make_key(grid)
    assert not prune_events(grid.app._resources, HOUR)

    assert refused_in(lambda: watch.next(SECONDS)) == "CURSOR_EXPIRED"


def test_what_was_pruned_before_a_stream_began_anew_does_not_end_it(grid: Service) -> None:
    grid.clock.turn(2 * HOUR)
    made = make_key(grid)
    assert not prune_events(grid.app._resources, HOUR)
    with watching(grid.operator) as stream:
        assert [logged.event.subject_id for logged in take(stream, 1)] == [made.key.key_id]


def refused_in(work: Any) -> str:
    from server.domain.errors import Refusal

    with pytest.raises(Refusal) as caught:
        work()
    return caught.value.reason.name


# The end


def test_a_server_that_drains_sends_those_who_watch_elsewhere(grid: Service) -> None:
    with watching(grid.operator) as stream:
        next(stream)
        finished = grid.app.drain()
        error = ending(stream)
        assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "SHUTTING_DOWN")
        assert error.retry_seconds
        wait_until(lambda: finished(0.05), "nothing is in flight any more")


# Never one skipped


def recording_process(service: Service) -> subprocess.Popen[bytes]:
    """Start a process that records events."""
    given = (str(service.app._settings.database), str(service.folder), "40")
    return subprocess.Popen([sys.executable, "-m", "tests.wire.recording_process", *given], cwd=ROOT)


def newest_event_id(service: Service) -> int:
    with service.app._resources.store.read() as reader:
        return reader.event_log().newest_event_id


class Interrupted:
    """Watches in many streams, each from a late cursor of the one before. What it saw first is `seen`."""

    def __init__(self, service: Service, seed: int) -> None:
        self.service = service
        self.chance = random.Random(seed)
        self.cursor = ""
        self.seen: list[int] = []

    def watch_until(self, written: threading.Event) -> list[int]:
        while True:
            over = written.is_set()
            with watching(self.service.operator, after=self.cursor) as stream:
                for message in itertools.islice(stream, self.chance.randint(1, 4)):
                    self.take(message)
            if over and self.seen[-1] == newest_event_id(self.service):
                return self.seen

    def take(self, message: pb.WatchEventsResponse) -> None:
        ids = [int(logged.event.event_id) for logged in message.events]
        assert ids == sorted(ids)
        # Not the cursor of every message: what was on its way comes again.
        if self.chance.random() < 0.8:
            self.cursor = message.cursor
        self.seen += [event_id for event_id in ids if not self.seen or event_id > self.seen[-1]]


def test_whoever_is_cut_off_again_and_again_misses_nothing_of_what_many_write(
    grid: Service, monkeypatch: pytest.MonkeyPatch, unmeasured_processes: None
) -> None:
    monkeypatch.setattr(servicer, "ADMISSION_SECONDS", 0.05)
    monkeypatch.setattr(events, "SILENT_SECONDS", 0.1)
    monkeypatch.setattr(events, "EVENTS_AT_ONCE", 7)
    written = threading.Event()

    def write(number: int) -> None:
        for count in range(40):
            with grid.app._resources.store.write() as writer:
                writer.record([make_event(request_id=f"writer-{number}")] * (1 + count % 3))

    with ThreadPoolExecutor(5) as pool:
        watchers = [pool.submit(Interrupted(grid, seed).watch_until, written) for seed in range(2)]
        try:
            processes = [recording_process(grid) for _ in range(2)]
            for writer in [pool.submit(write, number) for number in range(3)]:
                writer.result(SECONDS)
            assert [process.wait(SECONDS) for process in processes] == [0, 0]
        finally:
            written.set()
        found = [watcher.result(SECONDS) for watcher in watchers]
    everything = [int(logged.event.event_id) for logged in every_event(grid, page_size=1000)]
    assert len(everything) > 2 * 2 * 40 + 3 * 40
    assert found == [everything, everything]


def test_a_refusal_before_anything_was_sent_is_rich(grid: Service) -> None:
    raw: Any = grid.operator.channel.unary_stream("/texture.auth.v1.EventService/WatchEvents", None, None)
    assert refused(lambda: next(raw(b"\xff\xff\xff"))).reason == "MESSAGE_MALFORMED"
