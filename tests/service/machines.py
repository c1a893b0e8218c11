"""Machines that search a world for an order of things in which a promise of freshness is broken."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any
from unittest import mock

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from server.domain.decision import ask
from server.domain.errors import ErrorReason, Refusal
from server.domain.exposure import Context
from server.domain.reasons import Reason
from server.domain.revision import Revision
from server.service import facts
from server.service.authorization import Answer, AuthorizationService, DecisionIds
from server.service.base import Call
from server.service.exposures import ExposureService
from server.service.facts import Known
from server.service.following import LEASE, RATE_ERROR, SILENT_LEASES, fenced_after
from server.service.memo import Conclusion
from server.service.rehashing import Rehashing
from server.store.contract import DEVICE, OutcomeUnknown, StoreUnavailable, Writer
from tests.builders import NOW, PEPPERS, api_key_of, make_device, make_key
from tests.service.world import RATES, Moment, Process, VersionedStore, World, promise

DEVICES = ("inverter-1", "inverter-2")
PROCESSES = range(2)
LEASES = (LEASE, LEASE, LEASE / 2, LEASE * 2)
# A little more than W, and a little less than L.
LONG = fenced_after(LEASE).total_seconds() + 0.01
SHORT = LEASE.total_seconds() - 0.01
# So that what ended before something is told from what ended meanwhile.
INSTANT = 0.001

numbers = st.sampled_from(PROCESSES)
devices = st.sampled_from(DEVICES)
rates = st.sampled_from(RATES)


@dataclass(frozen=True)
class Event:
    """What may happen while something is held up: to the device in question or to the other one, and for how long."""

    what: str
    same: bool
    seconds: float


events = st.builds(
    Event,
    what=st.sampled_from(
        ["a change", "a change is heard of", "a change is heard of", "time", "a suspension", "another fill"]
    ),
    same=st.sampled_from([True, True, False]),
    seconds=st.sampled_from([0.0, SHORT, LONG]),
)


class Processes(World):
    """Processes that decide from memory, pausing at each wait; writers, and callers who wait for changes.

    One manufacturer stands for all that a decision depends on.
    """

    nothing = dict.fromkeys(DEVICES)

    def __init__(self) -> None:
        super().__init__()
        self.interruptions: list[Callable[[], None]] = []
        self.few_floors = mock.patch.object(facts, "MOST_FLOORS", 1)
        self.few_floors.start()

    def teardown(self) -> None:
        self.few_floors.stop()
        super().teardown()

    @initialize(of_each=st.tuples(rates, rates), of_the_barrier=rates, leases=st.tuples(*[st.sampled_from(LEASES)] * 2))
    def begin(self, of_each: Sequence[float], of_the_barrier: float, leases: Sequence[timedelta]) -> None:
        self.barrier._clock.rate = of_the_barrier  # type: ignore[attr-defined]
        self.processes = [self.new_process(rate, lease) for rate, lease in zip(of_each, leases, strict=True)]
        for number in PROCESSES:
            self.follow(number)

    @rule(seconds=st.sampled_from([0.01, 1.0, SHORT, LONG]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(device_id=devices, there=st.sampled_from([True, True, False]))
    def a_device_is_changed_and_that_is_waited_for(self, device_id: str, there: bool) -> None:
        self.change(device_id, there=there)

    @precondition(lambda self: self.waiters)
    @rule(first=st.booleans())
    def somebody_looks_who_has_applied_a_change(self, first: bool) -> None:
        self.look(0 if first else -1)

    @rule(number=numbers)
    def a_process_follows(self, number: int) -> None:
        self.follow(number)

    @rule(number=numbers, device_id=devices)
    def a_process_decides(self, number: int, device_id: str) -> None:
        self.decide(number, device_id)

    @invariant()
    def a_lease_implies_a_live_row_and_acknowledged_implies_no_older_state(self) -> None:
        self.check_leases()

    @invariant()
    def what_is_remembered_is_true_at_what_is_applied(self) -> None:
        for process in self.processes:
            applied = process.cache.applied
            for shelf in (process.cache._known[DEVICE], process.cache._absent[DEVICE]):
                for device_id, fact in shelf.facts.items():
                    promise(applied is not None, "nothing is remembered of no revision")
                    assert applied is not None
                    found = None if fact.value is None else fact.value.manufacturer
                    what = "what is remembered is true at what is applied"
                    promise(found == self.moments[applied].values[device_id], what)

    # What rules, and what happens while somebody waits, do.

    def change(self, device_id: str, *, there: bool = True, request_id: str = "", fate: str = "") -> None:
        """Change a device, and wait for it, as the services do."""
        name = f"maker-{len(self.moments)}"

        def work(writer: Writer, _now: object) -> None:
            self.fate = fate
            self.pending = {device_id: name if there else None}
            if there:
                writer.put_devices([make_device(device_id=device_id, manufacturer=name)])
            else:
                writer.remove_devices([device_id])

        self.carry_out(work, request_id)

    def carry_out(self, work: Callable[[Writer, Any], None], request_id: str = "") -> None:
        """Do work as the services do. Who is not made to wait was told that all is done."""
        self.barrier.asked = False
        done = self.resources.carry_out(
            Call(caller_id="dashboard", method="Change", request_id=request_id, fingerprint=request_id),
            work,
            lambda _: "",
            lambda *_: None,
            narrows=True,
        )
        if not self.barrier.asked:
            self.promised = done.revision

    def happen(self, event: Event, number: int, device_id: str) -> None:
        """Let something happen to a process."""
        if not event.same:
            device_id = DEVICES[1 - DEVICES.index(device_id)]
        if event.what in ("a change", "a change is heard of"):
            self.change(device_id)
        if event.what == "a suspension":
            clock = self.processes[number].clock
            clock.slept += event.seconds * clock.rate
        self.now += event.seconds
        if event.what == "a change is heard of":
            self.follow(number)
        if event.what == "another fill":
            self.begin_to_fill(number, device_id)
            self.end_to_fill(number, -1)
        self.look(-1)

    def look(self, number: int) -> None:
        """Look for one of those who wait, if there are any, whom its change has reached."""
        if not self.waiters:
            return
        waiter = self.waiters[number]
        now = self.barrier._clock()
        try:
            members = self.barrier.look(waiter.revision)
        except StoreUnavailable:
            promise(not self.held(waiter.revision), "what the database still has can be waited for")
            self.waiters.remove(waiter)
            return
        waiter.roll.call(members, now)
        if waiter.roll.complete and waiter in self.waiters:
            if self.promised is None or self.is_of(self.promised, waiter.revision):
                self.promised = waiter.revision
            self.waiters.remove(waiter)

    def read(self, number: int) -> None:
        process = self.processes[number]
        if not process.following:
            if process.follower.process_id is None:
                process.follower.enrol()
            process.report = process.follower.read()

    def take(self, number: int) -> None:
        process = self.processes[number]
        if process.report is not None and not process.following:
            report, process.report = process.report, None
            process.follower.take(report)

    def follow(self, number: int) -> None:
        """Let a process follow; after which, if nothing has happened meanwhile, it knows all that there is."""
        process = self.processes[number]
        if process.following:
            return
        happened, process.following = self.happened, True
        try:
            process.follower.turn()
        finally:
            process.following = False
        if self.happened == happened and process.follower.process_id is not None:
            promise(process.cache.applied == self.head, "who has caught up knows all that there is")

    def begin_to_fill(self, number: int, device_id: str) -> None:
        process = self.processes[number]
        if process.cache.applied is not None:
            with self.store.read() as reader:
                reading = process.cache.read(reader, process.clock(), None)
                process.fills.append((reading, facts._read_values(reader, [(DEVICE, device_id)])))

    def end_to_fill(self, number: int, which: int) -> None:
        process = self.processes[number]
        if process.fills:
            reading, values = process.fills.pop(which)
            if process.cache.apply(reading):
                process.cache._insert(reading.head, values)

    def decide(
        self, number: int, device_id: str, at_least: Revision | None = None, held_up: Callable[[], None] | None = None
    ) -> None:
        """Ask a process, and see what it answers; it may be held up before it hands over what it decided first."""
        process = self.processes[number]
        if process.deciding:
            return
        asked, promised, happened = self.now, self.promised, self.happened
        remembered = False

        def work(known: Known) -> Known:
            nonlocal held_up, remembered
            remembered = known.facts[DEVICE, device_id] is process.cache.look(DEVICE, device_id)
            if held_up is not None:
                meanwhile, held_up = held_up, None
                self.happened += 1
                meanwhile()
            return known

        process.deciding = True
        try:
            known = process.cache.decide([(DEVICE, device_id)], at_least, work)
        except Refusal as refusal:
            unknown = at_least is not None and refusal.reason is ErrorReason.REVISION_NOT_VERIFIABLE
            promise(unknown, "an answer is refused only for a revision that it is to be of")
            assert at_least is not None
            promise(not self.held(at_least) or self.happened != happened, "G3: what can be verified is not refused")
            return
        finally:
            process.deciding = False
        moment = self.check_answer(process, known.revision, asked, promised, remembered=remembered)
        device = known.value(DEVICE, device_id)
        found = None if device is None else device.manufacturer
        promise(found == moment.values[device_id], "an answer is true at its revision")
        if at_least is not None:
            promise(self.is_of(at_least, known.revision), "G3: an answer is of the history of what it was asked of")
        process.memo.keep(device_id.encode(), Conclusion(found, (known.facts[DEVICE, device_id],), None))

    def answer_again(self, number: int, device_id: str, held_up: Sequence[Callable[[], None]] = ()) -> None:
        """Ask a process for what it concluded before; it may be held up whenever it reads its clock."""
        process = self.processes[number]
        if process.deciding:
            return
        asked, promised, applied = self.now, self.promised, process.cache.applied
        self.interruptions, process.deciding = list(held_up), True
        try:
            found = process.memo.current(device_id.encode())
        finally:
            self.interruptions, process.deciding = [], False
        if found is not None:
            assert applied is not None
            moment = self.check_answer(process, applied, asked, promised, remembered=True)
            promise(found.value == moment.values[device_id], "an answer that is given again is true at its revision")

    def clock_is_read(self) -> None:
        if self.interruptions:
            self.interruptions.pop(0)()

    def restart(self, number: int, rate: float, lease: timedelta) -> None:
        """Let a process crash, and another begin in its place."""
        process = self.processes[number]
        if not process.following and not process.deciding:
            self.processes[number] = self.new_process(rate, lease)


class Pauses(Processes):
    """Processes that are held up at any point."""

    @rule(
        number=numbers,
        device_id=devices,
        what=st.sampled_from(["a fill", "a load", "a report", "an answer"]),
        meanwhile=st.lists(events, min_size=1, max_size=3),
    )
    def something_is_held_up(self, number: int, device_id: str, what: str, meanwhile: Sequence[Event]) -> None:
        """Let things happen between a snapshot and what is done with it, or between a decision and handing it over."""

        def happen() -> None:
            for event in meanwhile:
                self.happen(event, number, device_id)

        self.follow(number)
        # What a fill is for is not remembered.
        self.decide(number, device_id if what in ("a report", "an answer") else DEVICES[1 - DEVICES.index(device_id)])
        if what == "a report":
            self.read(number)
            happen()
            self.take(number)
        elif what == "a fill":
            self.begin_to_fill(number, device_id)
            happen()
            self.end_to_fill(number, -1)
        elif what == "a load":
            # Once the snapshot has ended.
            self.meanwhile.insert(0, (1, happen))
        self.decide(number, device_id, held_up=happen if what == "an answer" else None)

    @rule(number=numbers, device_id=devices, seconds=st.sampled_from([SHORT, LONG]), suspended=st.booleans())
    def a_process_does_not_hear_of_a_change(self, number: int, device_id: str, seconds: float, suspended: bool) -> None:
        self.follow(number)
        self.decide(number, device_id)
        self.change(device_id)
        what = "a suspension" if suspended else "time"
        self.happen(Event(what, same=True, seconds=seconds), number, device_id)
        self.decide(number, device_id)


class Again(Processes):
    """Processes that answer what they have concluded before."""

    @rule(number=numbers, device_id=devices)
    def a_process_answers_again(self, number: int, device_id: str) -> None:
        self.answer_again(number, device_id)

    @rule(number=numbers, device_id=devices, first=events, second=events)
    def an_answer_that_is_given_again_is_held_up(
        self, number: int, device_id: str, first: Event, second: Event
    ) -> None:
        self.follow(number)
        self.decide(number, device_id)
        held_up = [partial(self.happen, event, number, device_id) for event in (first, second)]
        self.answer_again(number, device_id, held_up)
        self.answer_again(number, device_id)


class OneFile(Pauses, Again):
    """Processes on one machine, which need no lease: that nothing was committed since is seen by all (rule 10)."""

    store_class = VersionedStore

    def follow(self, number: int) -> None:
        """Let a process hear of nothing: it asks for itself."""

    def read(self, number: int) -> None:
        """Let a process hear of nothing."""

    def check_leases(self) -> None:
        """Find no leases."""

    def begin_to_fill(self, number: int, device_id: str) -> None:
        process = self.processes[number]
        if process.cache.applied is not None:
            version = self.store.version()
            self.wait()
            with self.store.read() as reader:
                reading = process.cache.read(reader, process.clock(), version)
                process.fills.append((reading, facts._read_values(reader, [(DEVICE, device_id)])))

    def check_answer(
        self, process: Process, revision: Revision, asked: float, promised: Revision | None, *, remembered: bool
    ) -> Moment:
        """Whatever is answered was so when it was asked, or later."""
        moment = super().check_answer(process, revision, asked, promised, remembered=remembered)
        promise(moment.ended is None or moment.ended >= asked, "an answer is not from before it was asked for")
        return moment

    def decide(
        self, number: int, device_id: str, at_least: Revision | None = None, held_up: Callable[[], None] | None = None
    ) -> None:
        self.now += INSTANT
        super().decide(number, device_id, at_least, held_up)

    def answer_again(self, number: int, device_id: str, held_up: Sequence[Callable[[], None]] = ()) -> None:
        self.now += INSTANT
        super().answer_again(number, device_id, held_up)


class Members(Processes):
    """Processes that come and go, crash, fall silent, are suspended, and whose clocks go wrong."""

    @rule(seconds=st.just(LEASE.total_seconds() * SILENT_LEASES * 1.1))
    def much_time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(number=numbers)
    def a_process_tidies(self, number: int) -> None:
        self.follow(number)
        self.processes[number].follower.tidy()

    @rule(number=numbers, politely=st.booleans(), rate=rates, lease=st.sampled_from(LEASES))
    def a_process_ends_and_another_begins(self, number: int, politely: bool, rate: float, lease: timedelta) -> None:
        if politely:
            self.processes[number].follower.leave()
        self.restart(number, rate, lease)

    @rule(
        number=numbers,
        device_id=devices,
        new=st.booleans(),
        before=st.sampled_from([0.0, LEASE.total_seconds()]),
        after=st.sampled_from([0.0, 0.1, SHORT]),
    )
    def a_change_waits_for_its_turn(self, number: int, device_id: str, new: bool, before: float, after: float) -> None:
        """Meanwhile a process reads, or even begins."""
        if new:
            self.processes[number].follower.leave()

        def meanwhile() -> None:
            self.now += before
            for other in PROCESSES:
                if new and other == number:
                    self.restart(number, 1.0, LEASE)
                self.follow(other)
            self.decide(number, device_id)

        self.meanwhile.insert(0, (0, meanwhile))
        self.change(device_id)
        self.follow(1 - number)
        self.now += after
        self.look(-1)
        self.decide(number, device_id)

    @rule(number=numbers, device_id=devices, seconds=st.sampled_from([0.0, 1.0, LONG]))
    def a_process_reads_but_does_not_acknowledge_for_long(self, number: int, device_id: str, seconds: float) -> None:
        self.now += LEASE.total_seconds() * SILENT_LEASES * 1.1
        self.read(number)
        self.take(number)
        self.decide(number, device_id)
        self.a_process_tidies(1 - number)
        self.now += seconds
        self.a_process_tidies(1 - number)
        self.change(device_id)
        self.follow(1 - number)
        self.look(-1)
        self.decide(number, device_id)

    @rule(number=numbers, seconds=st.sampled_from([1.0, LONG]))
    def a_machine_is_suspended(self, number: int, seconds: float) -> None:
        clock = self.processes[number].clock
        clock.slept += seconds * clock.rate
        self.now += seconds

    @rule(device_id=devices, made=st.booleans(), again=st.booleans())
    def the_answer_to_a_commit_is_lost(self, device_id: str, made: bool, again: bool) -> None:
        request_id = f"request-{self.now}-{len(self.moments)}"
        try:
            self.change(device_id, request_id=request_id, fate="made" if made else "not made")
        except OutcomeUnknown:
            if again:
                self.change(device_id, request_id=request_id)
                self.look(-1)

    @rule(number=numbers, device_id=devices)
    def somebody_finds_a_change_made_and_waits_for_it(self, number: int, device_id: str) -> None:
        self.follow(number)
        self.decide(number, device_id)
        self.change(device_id)
        self.carry_out(lambda *_: None)
        self.look(-1)
        self.decide(number, device_id)

    @rule(number=numbers, made=st.booleans())
    def a_process_does_not_know_whether_it_is_enrolled(self, number: int, made: bool) -> None:
        process = self.processes[number]
        if process.follower.process_id is None:
            self.meanwhile, self.fate = [], "made" if made else "not made"
            with suppress(OutcomeUnknown):
                process.follower.enrol()


class Memory(Processes):
    """A history that is pruned, lost, and gone on with."""

    def __init__(self) -> None:
        super().__init__()
        self.copy: sqlite3.Connection | None = None
        self.copied = self.head

    def teardown(self) -> None:
        if self.copy is not None:
            self.copy.close()
        super().teardown()

    @rule()
    def the_history_of_changes_is_pruned(self) -> None:
        self.database.execute('DELETE FROM "change" WHERE "revision" < (SELECT "number" FROM "revision")')

    @precondition(lambda self: self.copied is not self.head)
    @rule()
    def the_database_is_copied(self) -> None:
        if self.copy is None:
            self.copy = sqlite3.connect(":memory:")
        self.database.backup(self.copy)
        self.copied = self.head

    @precondition(lambda self: self.copy is not None and self.copied != self.head)
    @rule(device_id=devices, changes=st.integers(0, 2))
    def the_copy_is_put_back_and_gone_on_with(self, device_id: str, changes: int) -> None:
        assert self.copy is not None
        self.lose_history(self.copy)
        for _ in range(changes):
            self.change(device_id)

    @rule(
        number=numbers,
        device_id=devices,
        other_id=devices,
        what=st.sampled_from(["is heard of", "is held up as a fill", "is held up as a report"]),
        heard=st.booleans(),
        changes=st.integers(0, 2),
    )
    def a_change_is_lost(
        self, number: int, device_id: str, other_id: str, what: str, heard: bool, changes: int
    ) -> None:
        """It was read, and is applied at once, or only after other things happened in the place of the change."""
        self.follow(number)
        self.the_database_is_copied()
        self.change(device_id)
        if what == "is heard of":
            self.follow(number)
            self.decide(number, device_id)
        elif what == "is held up as a fill":
            self.begin_to_fill(number, device_id)
        else:
            self.read(number)
        lost = self.head
        self.the_copy_is_put_back_and_gone_on_with(other_id, changes)
        self.decide(number, device_id, at_least=self.head)
        self.decide(number, device_id, at_least=lost)
        # In whatever order the readings before and after come to be applied.
        self.begin_to_fill(number, other_id)
        if heard:
            self.follow(number)
        self.end_to_fill(number, 0)
        self.take(number)
        self.end_to_fill(number, 0)
        self.follow(number)
        self.decide(number, device_id)
        self.decide(number, device_id, at_least=lost)

    @rule(number=numbers, device_id=devices, back=st.integers(0, 3))
    def a_process_decides_from_no_earlier_than(self, number: int, device_id: str, back: int) -> None:
        revisions = list(self.moments)
        self.decide(number, device_id, at_least=revisions[max(-1 - back, -len(revisions))])


class Everything(Pauses, Again, Members, Memory):
    """All of these, and each step of a process by itself."""

    @rule(number=numbers)
    def a_process_reads(self, number: int) -> None:
        self.read(number)

    @precondition(lambda self: any(process.report for process in self.processes))
    @rule(number=numbers)
    def a_process_takes_what_it_has_read(self, number: int) -> None:
        self.take(number)

    @rule(number=numbers)
    def a_process_acknowledges(self, number: int) -> None:
        self.processes[number].follower.acknowledge()

    @precondition(lambda self: any(process.cache.applied for process in self.processes))
    @rule(number=numbers, device_id=devices)
    def a_process_begins_to_fill(self, number: int, device_id: str) -> None:
        self.begin_to_fill(number, device_id)

    @precondition(lambda self: any(process.fills for process in self.processes))
    @rule(number=numbers, first=st.booleans())
    def a_process_ends_to_fill(self, number: int, first: bool) -> None:
        self.end_to_fill(number, 0 if first else -1)


class Expiry(World):
    """A process that answers for a key that expires, by the database's clock, as it last heard of it."""

    nothing: Mapping[str, Any] = {"expires": NOW + timedelta(seconds=1)}

    def __init__(self) -> None:
        super().__init__()
        self.machine_stepped = timedelta()
        self.held_up: list[float] = []
        self.heard = NOW, 0.0

    @initialize(rate=rates)
    def begin(self, rate: float) -> None:
        self.process = self.new_process(rate, LEASE)
        resources = self.resources_class(
            self.store, PEPPERS, self.process.shared_clock, self.process.cache, self.barrier
        )
        self.service = AuthorizationService(resources, ExposureService(resources), Rehashing(resources), DecisionIds())
        with self.store.write() as writer:
            writer.add_key(make_key(expire_time=NOW + timedelta(seconds=1)))
        self.process.follower.enrol()
        self.a_process_follows(0.0)

    def clock_is_read(self) -> None:
        if self.held_up:
            self.now += self.held_up.pop(0)

    @rule(seconds=st.sampled_from([0.1, 1.0, LONG]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([-0.5, 0.5, 1.5, 3.0]))
    def the_key_is_to_expire_elsewhen(self, seconds: float) -> None:
        expires = self.wall() + timedelta(seconds=seconds)
        self.pending = {"expires": expires}
        with self.store.write() as writer:
            writer.replace_key(make_key(expire_time=expires))

    @rule(seconds=st.sampled_from([0.0, 0.7, LONG]))
    def a_process_follows(self, seconds: float) -> None:
        began = self.now
        report = self.process.follower.read()
        self.now += seconds
        self.process.follower.take(report)
        self.process.follower.acknowledge()
        self.heard = report.time, began

    @rule(minutes=st.sampled_from([-60, 60]))
    def the_clock_of_the_database_is_set(self, minutes: int) -> None:
        self.stepped += timedelta(minutes=minutes)

    @rule(minutes=st.sampled_from([-60, 60]))
    def the_clock_of_the_machine_is_set(self, minutes: int) -> None:
        self.machine_stepped += timedelta(minutes=minutes)

    @rule(held_up=st.lists(st.sampled_from([0.0, 0.4, 1.0]), max_size=4))
    def a_process_is_asked_about_the_key(self, held_up: list[float]) -> None:
        """And is held up before it reads its clock, time and again."""
        self.held_up = held_up
        question = ask(api_key_of(make_key()), "devices:list", "", Context())
        done = self.service.answer([question], "", "device-api")
        self.held_up = []
        (answer,) = done.answers
        assert isinstance(answer, Answer)
        expires = self.moments[done.revision].values["expires"]
        then, began = self.heard
        passed = timedelta(seconds=self.now - began)
        if answer.decision.reason is Reason.PERMITTED:
            promise(then + passed * (1 - RATE_ERROR) < expires, "a key that has expired allows nothing")
        else:
            promise(answer.decision.reason is Reason.KEY_EXPIRED, "a key is in force until it expires")
            promise(then + passed * (1 + RATE_ERROR) >= expires, "a key is in force until it expires")

    @rule(
        seconds=st.sampled_from([0.5, 1.5]),
        reading=st.sampled_from([0.0, 0.7, LONG]),
        held_up=st.lists(st.sampled_from([0.0, 0.4, 1.0]), max_size=8),
    )
    def a_key_expires_while_a_process_is_held_up(self, seconds: float, reading: float, held_up: list[float]) -> None:
        self.the_key_is_to_expire_elsewhen(seconds)
        self.a_process_follows(reading)
        self.a_process_is_asked_about_the_key(held_up)
