"""Freshness: whatever the order of things, nobody decides from before a change that was waited for.

A machine runs several processes on one store, each with the real cache and follower, with a clock of its own making and
pauses at every wait: between a snapshot and what is done with it, between a commit and each look at who has applied it.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from server.domain.revision import Revision
from server.service import facts
from server.service.barrier import _Roll
from server.service.facts import FactCache, Reading, SharedClock
from server.service.following import LEASE, Follower, Report, fenced_after
from server.store.contract import KEY
from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import NOW, make_key, make_workspace
from tests.store.files import new_engine

KEYS = ("LeasedKey0000001", "LeasedKey0000002")
PROCESSES = range(2)
# So few that they drive one another out.
MOST = 1
Names = dict[str, str | None]


class LeasedStore(PeeweeStore):
    """A store that does not tell its version, as one on a server does not: whoever remembers it needs a lease."""

    def version(self) -> None:
        """Tell nothing."""


@dataclass
class Process:
    """A process, and what it has read and not yet taken."""

    cache: FactCache
    follower: Follower
    report: Report | None = None
    fill: tuple[Reading, dict[Any, Any]] | None = None


@cache
def template() -> bytes:
    """Return a migrated file with a workspace."""
    with tempfile.TemporaryDirectory() as folder:
        engine = new_engine(Path(folder) / "auth.db")
        store = PeeweeStore(engine)
        with store.write() as writer:
            writer.add_workspace(make_workspace())
        store.close()
        return (Path(folder) / "auth.db").read_bytes()


class Freshness(RuleBasedStateMachine):
    """Processes that decide from memory, writers, and callers who wait for changes."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="fresh-"))
        (self.folder / "auth.db").write_bytes(template())
        self.store = LeasedStore(SqliteEngine(self.folder / "auth.db"))
        self.now = 1000.0
        self.names: Names = dict.fromkeys(KEYS)
        self.history: dict[int, Names] = {}
        self.rolls: list[tuple[Revision, _Roll]] = []
        self.promised = 0
        with self.store.read() as reader:
            self.history[reader.head().number] = dict(self.names)
        self.processes: list[Process] = []

    @initialize()
    def begin(self) -> None:
        self.processes = [self.new_process() for _ in PROCESSES]

    def teardown(self) -> None:
        self.store.close()
        shutil.rmtree(self.folder)

    def clock(self) -> float:
        return self.now

    def new_process(self) -> Process:
        made = FactCache(self.store, keys=MOST, devices=MOST, loads=4, clock=self.clock)
        follower = Follower(self.store, made, SharedClock(self.clock), lambda: None, clock=self.clock)
        return Process(made, follower)

    @rule(seconds=st.sampled_from([0.01, 0.3, 1.0, LEASE.total_seconds(), fenced_after(LEASE).total_seconds()]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(key_id=st.sampled_from(KEYS))
    def a_key_is_changed_and_that_is_waited_for(self, key_id: str) -> None:
        with self.store.write() as writer:
            name = str(writer.revision.number)
            # One restriction stands for all that a decision depends on.
            key = make_key(key_id=key_id, allowed_manufacturers=frozenset({name}))
            if self.names[key_id] is None:
                writer.add_key(key)
            else:
                writer.replace_key(replace(key, update_time=NOW))
        self.names = self.names | {key_id: name}
        self.history[writer.revision.number] = dict(self.names)
        self.rolls.append((writer.revision, _Roll(writer.revision, self.now)))

    @rule(data=st.data())
    def somebody_looks_who_has_applied_a_change(self, data: st.DataObject) -> None:
        if not self.rolls:
            return
        number = data.draw(st.integers(0, len(self.rolls) - 1))
        revision, roll = self.rolls[number]
        now = self.now
        with self.store.read() as reader:
            roll.call({member.process_id: member for member in reader.members()}, now)
        if roll.complete:
            self.promised = max(self.promised, revision.number)
            del self.rolls[number]

    @rule(number=st.sampled_from(PROCESSES))
    def a_process_reads(self, number: int) -> None:
        process = self.processes[number]
        if process.follower.process_id is None:
            process.follower.enrol()
        process.report = process.follower.read()

    @rule(number=st.sampled_from(PROCESSES))
    def a_process_takes_what_it_has_read(self, number: int) -> None:
        process = self.processes[number]
        if process.report is not None:
            process.follower.take(process.report)
            process.report = None

    @rule(number=st.sampled_from(PROCESSES))
    def a_process_acknowledges(self, number: int) -> None:
        self.processes[number].follower.acknowledge()

    @rule(number=st.sampled_from(PROCESSES))
    def a_process_follows(self, number: int) -> None:
        self.processes[number].follower.turn()

    @rule(number=st.sampled_from(PROCESSES), key_id=st.sampled_from(KEYS))
    def a_process_begins_to_fill(self, number: int, key_id: str) -> None:
        process = self.processes[number]
        if process.cache.applied is not None:
            with self.store.read() as reader:
                reading = process.cache.read(reader, self.now, None)
                process.fill = reading, facts._read_values(reader, [(KEY, key_id)])

    @rule(number=st.sampled_from(PROCESSES))
    def a_process_ends_to_fill(self, number: int) -> None:
        process = self.processes[number]
        if process.fill is not None:
            reading, values = process.fill
            if process.cache.apply(reading):
                process.cache._insert(reading.head, values)
            process.fill = None

    @rule(number=st.sampled_from(PROCESSES), key_id=st.sampled_from(KEYS))
    def a_process_decides(self, number: int, key_id: str) -> None:
        known = self.processes[number].cache.decide([(KEY, key_id)], None, lambda known: known)
        key = known.value(KEY, key_id)
        found = None if key is None else min(key.allowed_manufacturers)
        assert found == self.history[known.revision.number][key_id], "an answer is true at its revision"
        assert known.revision.number >= self.promised, "an answer is from no earlier than what was waited for"

    @rule(number=st.sampled_from(PROCESSES))
    def a_process_tidies(self, number: int) -> None:
        self.processes[number].follower.tidy()

    @rule(number=st.sampled_from(PROCESSES), politely=st.booleans())
    def a_process_ends_and_another_begins(self, number: int, politely: bool) -> None:
        if politely:
            self.processes[number].follower.leave()
        self.processes[number] = self.new_process()

    @rule()
    def the_history_of_changes_is_pruned(self) -> None:
        with self.store._engine.writing() as database:
            database.execute_sql('DELETE FROM "change" WHERE "revision" < (SELECT "number" FROM "revision")')
            database.commit()

    @invariant()
    def what_is_remembered_is_true_at_what_is_applied(self) -> None:
        for process in self.processes:
            applied = process.cache.applied
            for shelf in (process.cache._known[KEY], process.cache._absent[KEY]):
                for key_id, fact in shelf.facts.items():
                    assert applied is not None
                    found = None if fact.value is None else min(fact.value.allowed_manufacturers)
                    assert found == self.history[applied.number][key_id]


THOROUGH = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_nobody_decides_from_before_a_change_that_was_waited_for() -> None:
    run_state_machine_as_test(Freshness, settings=THOROUGH)
