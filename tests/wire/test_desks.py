"""How calls are taken on under load: in turn among callers, and none held up by those that wait for something else."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_KEY_ADMIN

from server.app import DECIDING_THREADS, WAITING_FOR_EACH_THREAD
from server.store.peewee_store import PeeweeReader
from server.wire.desks import LANES, Desk, Lane
from tests.harness import refused, running_service
from tests.operate.process import wait_until
from tests.wire.helpers import make_key, make_workspace, question, reason_of, with_wrong_secret
from tests.wire.test_deadlines import AUTHORIZE, LIST, half_sent, held_up

SECONDS = 30


@contextmanager
def desk(*, threads: int = 1, queue: int = 100, aside: int = 4) -> Iterator[Desk]:
    made = Desk("others", threads=threads, queue=queue, aside=aside)
    yield made
    made.shutdown()


def lanes(made: Desk, count: int) -> list[Lane]:
    """Return lanes that are not the same."""
    found = list(dict.fromkeys(made.lane(str(number)) for number in range(1000)))
    assert len(found) == LANES
    return found[:count]


class Held:
    """Work that goes on until it is let go."""

    def __init__(self) -> None:
        self.started, self.go_on = threading.Event(), threading.Event()
        self.times: list[float] = []

    def __call__(self) -> None:
        self.times.append(time.monotonic())
        self.started.set()
        assert self.go_on.wait(SECONDS)

    def hold(self, lane: Lane) -> None:
        lane.submit(self)
        assert self.started.wait(SECONDS)


class TestDesk:
    def test_of_those_that_wait_each_lane_has_its_turn(self) -> None:
        done: list[str] = []
        with desk() as made:
            one, two = lanes(made, 2)
            held = Held()
            held.hold(one)
            for number in range(3):
                one.submit(done.append, f"one {number}")
            for number in range(2):
                two.submit(done.append, f"two {number}")
            held.go_on.set()
            wait_until(lambda: made.idle, "all is done")

        assert done == ["one 0", "two 0", "one 1", "two 1", "one 2"]

    def test_whoever_floods_it_leaves_room_for_others(self) -> None:
        with desk(queue=40) as made:
            flooding, *others = lanes(made, 3)
            held = Held()
            held.hold(flooding)
            while not flooding.full:
                flooding.submit(int)
            assert made.waiting == 35
            for other in others:
                assert not other.full
                other.submit(int)
            held.go_on.set()

    def test_no_more_wait_than_may_however_many_lanes_there_are(self) -> None:
        with desk(queue=40) as made:
            held = Held()
            held.hold(made.lane(""))
            while not all(lane.full for lane in lanes(made, LANES)):
                for lane in lanes(made, LANES):
                    if not lane.full:
                        lane.submit(int)
            assert made.waiting == 40
            held.go_on.set()

    def test_so_many_are_worked_on_at_once(self) -> None:
        with desk(threads=2) as made:
            held = [Held() for _ in range(3)]
            held[0].hold(made.lane(""))
            held[1].hold(made.lane(""))
            made.lane("").submit(held[2])
            assert (made.busy, made.waiting, made.idle) == (2, 1, False)
            assert not held[2].started.wait(0.05)
            held[0].go_on.set()
            assert held[2].started.wait(SECONDS)
            for each in held:
                each.go_on.set()

    def test_who_steps_aside_is_worked_past_and_comes_back(self) -> None:
        aside, back = Held(), Held()
        with desk() as made:

            def work() -> None:
                with made.aside():
                    aside()
                back()

            made.lane("").submit(work)
            assert aside.started.wait(SECONDS)
            passing = threading.Event()
            made.lane("").submit(passing.set)
            assert passing.wait(SECONDS)
            wait_until(lambda: made.busy == 1, "only the one aside is left")
            aside.go_on.set()
            assert back.started.wait(SECONDS)
            # It counts again, so that nobody goes past it.
            later = threading.Event()
            made.lane("").submit(later.set)
            assert not later.wait(0.05)
            back.go_on.set()
            assert later.wait(SECONDS)

    def test_work_that_fails_is_told_and_holds_nobody_up(self, capsys: pytest.CaptureFixture[str]) -> None:
        with desk() as made:
            made.lane("").submit(int, "x")
            done = threading.Event()
            made.lane("").submit(done.set)
            assert done.wait(SECONDS)
        assert "internal fault" in capsys.readouterr().out

    def test_all_is_done_once_however_many_hand_it_in(self) -> None:
        done: list[int] = []
        with desk(threads=3, queue=100_000, aside=3) as made:

            def work(number: int) -> None:
                if number % 7 == 0:
                    with made.aside():
                        time.sleep(0)
                done.append(number)

            def hand_in(start: int) -> None:
                for number in range(start, 4000, 4):
                    made.lane(str(number % 11)).submit(work, number)

            with ThreadPoolExecutor(4) as pool:
                list(pool.map(hand_in, range(4)))
            wait_until(lambda: made.idle, "all is done")
        assert sorted(done) == list(range(4000))

    def test_what_is_handed_in_after_the_end_is_dropped(self) -> None:
        with desk() as made:
            pass
        made.lane("").submit(pytest.fail)


# Over the wire


def test_a_caller_who_floods_the_service_does_not_starve_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_service(tmp_path, threads=1, queue=40) as service:
        make_workspace(service)
        flooding = service.caller("flooding", ROLE_KEY_ADMIN).workspaces.ListWorkspaces
        other = service.caller("other", ROLE_KEY_ADMIN).workspaces.ListWorkspaces
        order: list[str] = []
        with held_up(service, monkeypatch) as started:
            flood = [flooding.future(LIST, timeout=SECONDS) for _ in range(60)]
            assert started.wait(SECONDS)
            desk = service.app._server._others
            wait_until(
                lambda: sum(call.done() for call in flood) + desk.waiting + desk.busy == 60, "the flood has arrived"
            )
            refusals = sum(call.done() for call in flood)
            for call in flood:
                call.add_done_callback(lambda _: order.append("flooding"))
            turn = other.future(LIST, timeout=SECONDS)
            turn.add_done_callback(lambda _: order.append("other"))
            wait_until(lambda: desk.waiting == 36, "the other waits too")
        codes = [call.code() for call in flood]

        assert turn.code() is grpc.StatusCode.OK
        assert codes.count(grpc.StatusCode.RESOURCE_EXHAUSTED) == refusals
        # As many as wait, and those that are worked on, or stepped aside for a moment before they were held up.
        assert 20 <= refusals <= 24
        # After those, and at most one that stood before it.
        assert order.index("other") <= refusals + 6


def test_decisions_are_made_while_every_other_call_is_held_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(tmp_path, threads=1, queue=1) as service:
        make_workspace(service)
        api_key = make_key(service).api_key
        with held_up(service, monkeypatch) as started:
            call = service.operator.workspaces.ListWorkspaces.future(LIST)
            assert started.wait(SECONDS)
            answer = service.operator.authorize.Authorize(question(api_key))
            assert reason_of(answer) == "PERMITTED"
        call.result()


@contextmanager
def slow_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Hold up every read of customers' keys until the block ends."""
    held, real = Held(), PeeweeReader.keys

    def slow(self: PeeweeReader, ids: Any) -> Any:
        held()
        return real(self, ids)

    with monkeypatch.context() as patch:
        patch.setattr(PeeweeReader, "keys", slow)
        try:
            yield held
        finally:
            held.go_on.set()


def test_a_storm_of_unknown_keys_leaves_known_ones_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(tmp_path, threads=1) as service, ExitStack() as stack:
        make_workspace(service)
        known = make_key(service).api_key
        authorizer = service.caller("device-api", ROLE_AUTHORIZER).authorize
        authorizer.Authorize(question(known))
        unknown = [make_unknown(number) for number in range(WAITING_FOR_EACH_THREAD)]
        held = stack.enter_context(slow_store(monkeypatch))
        storm = [authorizer.Authorize.future(question(key), timeout=SECONDS) for key in unknown]
        wait_until(lambda: service.app._server._decisions.busy == len(storm), "all of them wait")

        # Known keys are answered, and what would wait beyond that is refused at once, and counted.
        for _ in range(2 * DECIDING_THREADS):
            assert reason_of(authorizer.Authorize(question(known), timeout=SECONDS)) == "PERMITTED"
        found = refused(authorizer.Authorize, question(make_unknown(99)))
        assert (found.code, found.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")
        assert found.retry_seconds == 1
        held.go_on.set()
        assert [reason_of(call.result()) for call in storm] == ["KEY_UNKNOWN"] * len(storm)


def make_unknown(number: int) -> str:
    """Return a key that nobody made."""
    return with_wrong_secret(f"txk_srv_{number:016d}_{'x' * 38}")


def test_a_burst_for_one_key_that_is_not_known_yet_is_read_once_and_refused_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with running_service(tmp_path) as service:
        make_workspace(service)
        api_key = make_key(service).api_key
        service.operator.workspaces.ListWorkspaces(LIST)
        with slow_store(monkeypatch) as held:
            burst = [service.operator.authorize.Authorize.future(question(api_key)) for _ in range(24)]
            assert held.started.wait(SECONDS)
            wait_until(lambda: service.app._server._decisions.busy == len(burst), "all of them wait")
            held.go_on.set()
            assert [reason_of(call.result()) for call in burst] == ["PERMITTED"] * len(burst)

        assert len(held.times) == 1


def test_callers_whose_messages_do_not_come_hold_up_no_decision(tmp_path: Path) -> None:
    end = threading.Event()
    with running_service(tmp_path) as service:
        make_workspace(service)
        api_key = make_key(service).api_key
        with grpc.insecure_channel(service.address, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            calls = [half_sent(channel, AUTHORIZE, service.operator_key, end) for _ in range(3 * DECIDING_THREADS)]
            try:
                wait_until(lambda: service.app._server._decisions.busy >= DECIDING_THREADS, "they hold the threads")
                answer: pb.AuthorizeResponse = service.operator.authorize.Authorize(question(api_key), timeout=4)
                assert reason_of(answer) == "PERMITTED"
            finally:
                end.set()
            assert {call.code() for call in calls} == {grpc.StatusCode.INVALID_ARGUMENT}
