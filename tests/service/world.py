"""A world in which processes decide from memory, with time and waits of the tester's making.

The cache, the follower, the barrier and the store are the real ones, on a database file. Time passes only as the world
says, each process has a clock of its own, and whatever else is to happen while somebody waits for the store happens
then. The world keeps the history of all that was ever committed, and so knows what each answer had to be.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any
from uuid import UUID

from hypothesis.stateful import RuleBasedStateMachine

from server.domain.revision import Revision
from server.service.barrier import AT_ONCE, Barrier, Propagation, _Roll
from server.service.base import Resources
from server.service.facts import FactCache, Reading, SharedClock
from server.service.following import RATE_ERROR, Follower, Report, fenced_after
from server.service.memo import Memo
from server.store.contract import Member, OutcomeUnknown, Reader, Writer
from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import NOW, PEPPERS, make_workspace
from tests.store.files import new_engine

# Clocks go as wrong as they may.
RATES = (1 - RATE_ERROR, 1 + RATE_ERROR)
# So few entities of a kind that they drive one another out.
MOST = 1
# Seconds are sums of fractions.
ROUNDING = 1e-6


class Broken(AssertionError):  # noqa: N818 - it names what came of a promise
    """A promise that was not kept."""


def promise(kept: bool, what: str) -> None:
    """Raise Broken unless a promise was kept."""
    if not kept:
        raise Broken(what)


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


@dataclass
class Moment:
    """A revision: what there was, and until when nothing had come after it, nor had it been lost."""

    before: Revision | None
    values: Mapping[str, Any]
    ended: float | None = None


class Engine(SqliteEngine):
    """An engine whose clock is the world's, and the outcome of whose commits may be unknown."""

    def __init__(self, world: World, path: Path) -> None:
        super().__init__(path)
        self._world = world

    def now(self) -> datetime:
        return self._world.wall()

    def commit(self) -> None:
        fate, self._world.fate = self._world.fate, ""
        if fate == "not made":
            raise OutcomeUnknown("the connection was lost")
        super().commit()
        self._world.committed()
        if fate == "made":
            raise OutcomeUnknown("the connection was lost")


class LeasedStore(PeeweeStore):
    """A store that does not tell its version, as one on a server does not: whoever remembers it needs a lease.

    Before and after each transaction somebody waits.
    """

    def __init__(self, world: World, engine: Engine) -> None:
        super().__init__(engine)
        self._world = world

    def version(self) -> object | None:
        return None

    @contextmanager
    def read(self) -> Iterator[Reader]:
        self._world.wait()
        with super().read() as reader:
            yield reader
        self._world.wait()

    @contextmanager
    def write(self) -> Iterator[Writer]:
        self._world.wait()
        with super().write() as writer:
            yield writer
        self._world.wait()

    def enrol(self, process_id: str, lease: timedelta) -> None:
        self._world.wait()
        super().enrol(process_id, lease)
        self._world.wait()

    def acknowledge(self, process_id: str, revision: Revision) -> bool:
        self._world.wait()
        noted = super().acknowledge(process_id, revision)
        self._world.wait()
        return noted

    def leave(self, process_ids: Collection[str]) -> None:
        self._world.wait()
        super().leave(process_ids)
        self._world.wait()


class VersionedStore(LeasedStore):
    """A store that does tell its version, as a file does."""

    def version(self) -> object | None:
        return self._engine.version()


class Clock:
    """The clock of one machine, that is never set, and goes on while the machine is suspended."""

    def __init__(self, world: World, rate: float) -> None:
        self.rate = rate
        self.slept = 0.0
        self._world = world
        self._began = world.now

    def __call__(self) -> float:
        self._world.clock_is_read()
        return 1000 + (self._world.now - self._began) * self.rate


@dataclass
class Process:
    """A process, and what it has read and not yet taken. Until `astray`, it may not know that its row was lost."""

    clock: Clock
    lease: timedelta
    shared_clock: SharedClock
    cache: FactCache
    follower: Follower
    memo: Memo[Any]
    report: Report | None = None
    fills: list[tuple[Reading, dict[Any, Any]]] = field(default_factory=list)
    astray: float = float("-inf")
    following: bool = False
    deciding: bool = False

    @property
    def leased(self) -> bool:
        """Tell whether it may answer from memory."""
        return self.clock() < self.cache._fresh_until


@dataclass
class Waiter:
    """A caller who waits until a change is known everywhere."""

    revision: Revision
    roll: _Roll


class WaitingRoom(Barrier):
    """A barrier whose callers wait in the world, and look when it says so."""

    def __init__(self, world: World, clock: Clock) -> None:
        super().__init__(world.store, clock=clock)
        self.asked = False
        self._world = world

    def wait(self, revision: Revision, *, immediately: bool = False) -> Propagation:
        self.asked = True
        if not immediately:
            self._world.waiters.append(self._world.new_waiter(revision))
        return AT_ONCE

    def look(self, revision: Revision) -> Mapping[str, Member]:
        """Return the members, as those see them who wait."""
        members = self._members(revision)
        assert members is not None
        return members


class World(RuleBasedStateMachine):
    """What the machines share. The classes are those of the service, for variants of them to be put in their places."""

    cache_class: type[FactCache] = FactCache
    follower_class: type[Follower] = Follower
    memo_class: type[Memo[Any]] = Memo
    shared_clock_class: type[SharedClock] = SharedClock
    store_class: type[LeasedStore] = LeasedStore
    resources_class: type[Resources] = Resources
    roll_class: type[_Roll] = _Roll
    nothing: Mapping[str, Any] = {}

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.stepped = timedelta()
        self.fate = ""
        # What is to happen when somebody waits for the store, after how many other waits.
        self.meanwhile: list[tuple[int, Callable[[], object]]] = []
        self.happening = False
        self.happened = 0
        self.waiters: list[Waiter] = []
        self.processes: list[Process] = []
        self.fencing: dict[str, float] = {}
        self.promised: Revision | None = None
        self.folder = Path(tempfile.mkdtemp(prefix="fresh-"))
        (self.folder / "auth.db").write_bytes(template())
        self.store = self.store_class(self, Engine(self, self.folder / "auth.db"))
        with self.store._engine.reading():
            pass
        # What the world itself looks with.
        self.database = sqlite3.connect(self.folder / "auth.db", isolation_level=None)
        self.head = self.stored_head()
        self.moments = {self.head: Moment(None, dict(self.nothing))}
        self.pending: Mapping[str, Any] = {}
        self.barrier = WaitingRoom(self, Clock(self, 1.0))
        self.resources = self.new_resources(self.new_cache(Clock(self, 1.0)))

    def teardown(self) -> None:
        self.database.close()
        self.store.close()
        shutil.rmtree(self.folder)

    # Time and waiting.

    def wall(self) -> datetime:
        """Return the time by the database's clock."""
        return NOW + timedelta(seconds=self.now) + self.stepped

    def clock_is_read(self) -> None:
        """Whoever reads a clock may have been held up before."""

    def wait(self) -> None:
        """Let happen what is to happen while somebody waits for the store."""
        if self.happening:
            return
        self.check_leases()
        if self.meanwhile:
            waits, happen = self.meanwhile.pop(0)
            if waits:
                self.meanwhile.insert(0, (waits - 1, happen))
                return
            self.happening = True
            self.happened += 1
            try:
                happen()
            finally:
                self.happening = False
            self.check_leases()

    # Making things.

    def new_cache(self, clock: Clock) -> FactCache:
        return self.cache_class(self.store, keys=MOST, devices=MOST, loads=4, clock=clock)

    def new_process(self, rate: float, lease: timedelta) -> Process:
        clock = Clock(self, rate)
        local = self.clock_of(clock)
        made = self.cache_class(self.store, keys=MOST, devices=MOST, loads=4, clock=local)
        shared_clock = self.shared_clock_class(local)
        follower = self.follower_class(self.store, made, shared_clock, lambda: None, lease=lease, clock=local)
        return Process(clock, lease, shared_clock, made, follower, self.memo_class(made, self.wall, most=MOST + 1))

    def clock_of(self, clock: Clock) -> Callable[[], float]:
        """Return the clock that a process on a machine goes by."""
        return clock

    def new_resources(self, facts: FactCache) -> Resources:
        return self.resources_class(self.store, PEPPERS, self.wall, facts, self.barrier)

    def new_waiter(self, revision: Revision) -> Waiter:
        return Waiter(revision, self.roll_class(revision, self.barrier._clock()))

    # History.

    def stored_head(self) -> Revision:
        ((epoch, number, nonce),) = self.database.execute('SELECT "epoch", "number", "nonce" FROM "revision"')
        return Revision(UUID(epoch), number, nonce)

    def committed(self) -> None:
        """Take note of a commit, if it is of a change."""
        head = self.stored_head()
        if head != self.head:
            before = self.moments[self.head]
            self.moments[head] = Moment(self.head, {**before.values, **self.pending})
            before.ended = self.now
            self.head = head

    def is_of(self, earlier: Revision, later: Revision | None) -> bool:
        """Tell whether a revision is in the history of another one, or is that one."""
        while later is not None:
            if later == earlier:
                return True
            later = self.moments[later].before
        return False

    def numbered(self, number: int) -> Revision:
        """Return the revision of a number in the history that goes on."""
        found: Revision | None = self.head
        while found is not None and found.number > number:
            found = self.moments[found].before
        assert found is not None
        return found

    def held(self, revision: Revision) -> bool:
        """Tell whether the database can tell that a revision is of its history."""
        found = self.database.execute(
            'SELECT 1 FROM "change" WHERE "revision" = ? AND "nonce" = ?', (revision.number, revision.nonce)
        )
        return found.fetchone() is not None and self.is_of(revision, self.head)

    def lose_history(self, copy: sqlite3.Connection) -> None:
        """Put an earlier state of the database back: who was enrolled since then, and what was promised, is lost."""
        copy.backup(self.database)
        head = self.stored_head()
        lost: Revision | None = self.head
        while lost is not None and lost != head:
            moment = self.moments[lost]
            moment.ended = self.now if moment.ended is None else moment.ended
            lost = moment.before
        assert lost == head
        self.head = head
        self.moments[head].ended = None
        if self.promised is not None and not self.is_of(self.promised, head):
            self.promised = None
        members = self.members()
        for process in self.processes:
            if process.follower.process_id not in members:
                process.astray = self.now + fenced_after(process.lease).total_seconds()
        self.fencing.clear()

    def members(self) -> dict[str, tuple[str, int]]:
        """Return the state, and the number of the revision acknowledged, of each process that is enrolled."""
        return {
            process_id: (state, acknowledged)
            for process_id, state, acknowledged in self.database.execute(
                'SELECT "process_id", "state", "acknowledged" FROM "process"'
            )
        }

    # What is promised.

    def check_leases(self) -> None:
        """A lease implies a row, that is live or was lately; acknowledged implies no older usable state."""
        members = self.members()
        self.fencing = {
            process_id: self.fencing.get(process_id, self.now)
            for process_id, (state, _) in members.items()
            if state == "fencing"
        }
        for process in self.processes:
            if self.now <= process.astray or not process.leased:
                continue
            process_id, applied = process.follower.process_id, process.cache.applied
            promise(process_id in members, "who has a lease is a member")
            assert process_id is not None
            allowed = fenced_after(process.lease).total_seconds() + ROUNDING
            since = self.fencing.get(process_id, self.now)
            promise(self.now - since <= allowed, "who gets no more leases has none after a while")
            acknowledged = self.numbered(members[process_id][1])
            promise(self.is_of(acknowledged, applied), "who has acknowledged a change decides from no earlier state")

    def check_answer(
        self, process: Process, revision: Revision, asked: float, promised: Revision | None, *, remembered: bool
    ) -> Moment:
        """Whatever is answered is of a revision that there was, G1, and G2. Return what there was.

        What was not `remembered`, but read for this very call, after it was `asked`, may have been held up for longer.
        """
        moment = self.moments.get(revision)
        promise(moment is not None, "an answer is of a revision that there was")
        assert moment is not None
        if promised is not None and self.now > process.astray:
            promise(self.is_of(promised, revision), "G1: an answer is from no earlier than what was waited for")
        if moment.ended is not None and (remembered or moment.ended < asked):
            allowed = fenced_after(process.lease).total_seconds() + ROUNDING
            promise(self.now - moment.ended <= allowed, "G2: an answer is not from before what changed W ago")
        return moment
