"""The machines catch a process, or a barrier, that breaks one rule of CONSISTENCY.md.

Each variant is the real class with one rule broken, which its docstring names, and stands for a fault that somebody may
make one day: a machine that does not find it is of no use against that fault.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any, TypeVar
from unittest import mock

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from server.domain.revision import Revision
from server.service import authorization
from server.service.barrier import AT_ONCE, Propagation, _Roll
from server.service.base import Call, Mutation, Resources
from server.service.facts import FactCache, Known, Place, Reading, SharedClock
from server.service.following import LEASE, Follower, Report, fenced_after
from server.service.memo import Conclusion, Memo
from server.store.contract import Changes, Member, Reader, Writer
from server.store.peewee_store import PeeweeReader
from tests.builders import NOW
from tests.service.machines import Again, Expiry, Members, Memory, OneFile, Pauses
from tests.service.world import Broken, Clock, LeasedStore, Waiter, WaitingRoom, World

T = TypeVar("T")

# It ends with the first example that is caught. Which are tried depends, for all that is derandomized, on which modules
# are loaded, whose constants hypothesis draws: of the rarer faults one example in seventy shows.
QUICK = settings(
    max_examples=2_000,
    stateful_step_count=20,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def caught(machine: type[World]) -> bool:
    """Tell whether a machine finds a promise broken. Any other fault passes on."""
    try:
        run_state_machine_as_test(machine, settings=QUICK)
    except Broken:
        return True
    return False


# Rule 2: identity.


class TakesALeaseBeforeItsRow(Follower):
    """Rule 2: a process commits its row before it takes its first lease."""

    def enrol(self) -> None:
        report = self.read()
        self._cache.apply(report.reading)
        self._cache.extend(report.reading.began + self._lease.total_seconds())
        super().enrol()


# Rule 3: catch-up.


class ReadsTheClockLate(Follower):
    """Rule 3: t0 first, then the snapshot."""

    def take(self, report: Report) -> None:
        super().take(replace(report, reading=replace(report.reading, began=self._clock())))


class GoesOnWithoutALiveRow(Follower):
    """Rules 3 and 7: a lease is extended only if the own row says `live`."""

    def take(self, report: Report) -> None:
        assert self._process_id is not None
        own = Member(process_id=self._process_id, fencing=False, lease=self._lease, acknowledged=0)
        others = [member for member in report.members if member.process_id != self._process_id]
        super().take(replace(report, members=[*others, own]))


class ForgetsNothing(FactCache):
    """Rule 3: what the changes name is evicted."""

    def _evict(self, changes: Changes) -> None:
        super()._evict(replace(changes, touched=frozenset()))


class TakesWhatCannotBeToldForNothing(FactCache):
    """Rule 3: where changes were pruned, or history was lost, everything is forgotten."""

    def read(self, reader: Reader, began: float, version: object | None) -> Reading:
        reading = super().read(reader, began, version)
        if reading.changes is None and reading.since is not None:
            return replace(reading, changes=Changes(reading.head, frozenset(), frozenset({reading.since})))
        return reading


class ReaderOfNumbers(PeeweeReader):
    """Rule 3: the nonce at `applied` is read, and has to match."""

    def changes_since(self, revision: Revision, limit: int) -> Changes | None:
        found = self._database.execute_sql('SELECT "nonce" FROM "change" WHERE "revision" = ?', (revision.number,))
        nonces = {nonce for (nonce,) in found.fetchall()}
        return super().changes_since(replace(revision, nonce=min(nonces, default=revision.nonce)), limit)


class StoreOfNumbers(LeasedStore):
    """A store that is read so."""

    @contextmanager
    def read(self) -> Iterator[Reader]:
        with super().read() as reader:
            assert isinstance(reader, PeeweeReader)
            yield ReaderOfNumbers(reader._database, reader._now)


class AppliesWhatWasReadElsewhere(FactCache):
    """Rules 3 and 4: what was read before history was lost is not mixed with what was read after."""

    def _meets(self, head: Revision, changes: Changes) -> bool:  # noqa: ARG002 - that is what is wrong with it
        return True


# Rule 4: fill.


class FillsRegardless(FactCache):
    """Rule 4: a fact that is older than its floor does not enter."""

    def _insert(self, head: Revision, values: Mapping[Place, Any]) -> None:
        self._floors.clear()
        super()._insert(head, values)


class ForgetsFloors(FactCache):
    """Rule 4: forgetting a floor raises the global floor to it."""

    def _evict(self, changes: Changes) -> None:
        floor = self._floor
        super()._evict(changes)
        self._floor = floor


# Rule 5: decide.


class DecidesWithoutALease(FactCache):
    """Rule 5: the lease is looked at after the decision."""

    def still(self, applied: Revision | None) -> bool:
        return applied is self._applied and applied is not None


class DecidesFromWhatWas(FactCache):
    """Rule 5: and so is whether the facts are those of `applied`."""

    def still(self, applied: Revision | None) -> bool:  # noqa: ARG002 - that is what is wrong with it
        return super().still(self._applied)


class AnswersAJoinedCallerAtOnce(FactCache):
    """Rule 5: misses, and callers that joined another's load, come back through the check."""

    def decide(self, wanted: Collection[Place], at_least: Revision | None, work: Callable[[Known], T]) -> T:
        applied = self._applied
        if applied is not None and at_least is None and not self._lapsed:
            self._load([place for place in wanted if self.look(*place) is None])
            facts = {place: fact for place in wanted if (fact := self.look(*place)) is not None}
            if len(facts) == len(wanted):
                return work(Known(applied, facts))
        return super().decide(wanted, at_least, work)


class ComparesNumbers(FactCache):
    """Rule 5 and G3: `applied` is no earlier than a revision only in that revision's own history."""

    def reaches(self, applied: Revision, at_least: Revision | None) -> bool:
        return at_least is None or at_least.number <= applied.number


class AnswersAgainWhateverHasChanged(Memo[Any]):
    """Rules 3 and 5: what follows from a fact ends with it."""

    def find(self, asked: bytes) -> Conclusion[Any] | None:
        return self._conclusions.get(self._digest(asked))


class AnswersAgainWithoutLooking(Memo[Any]):
    """Rule 5: the lease, and `applied`, are looked at for an answer that is given again too."""

    def current(self, asked: bytes) -> Conclusion[Any] | None:
        self._cache._clock()
        return self.find(asked)


class LooksUpTheRevisionLate(Memo[Any]):
    """Rule 5: `applied` is looked up before the facts, or one of before may stand beside a revision of after."""

    def current(self, asked: bytes) -> Conclusion[Any] | None:
        found = self.find(asked)
        self._cache._clock()
        return found if self._cache.still(self._cache.applied) else None


# Rule 6: barrier.


class AcknowledgesWhatItRead(Follower):
    """Rule 6: what is acknowledged has been applied."""

    def read(self) -> Report:
        report = super().read()
        assert self._process_id is not None
        self._store.acknowledge(self._process_id, report.reading.head)
        return report


class CountsALease(_Roll):
    """Rule 6: W passes, not L, since clocks go wrong."""

    def call(self, members: Mapping[str, Member], now: float) -> None:
        super().call(members, now + (fenced_after(LEASE) - LEASE).total_seconds())


class CountsItsOwnLease(_Roll):
    """Rule 2: a process has the lease that the database says."""

    def call(self, members: Mapping[str, Member], now: float) -> None:
        own = {process_id: replace(member, lease=LEASE) for process_id, member in members.items()}
        super().call(own, now)


class ListsBeforeTheCommit(Members):
    """Rule 6: the processes are listed in a later snapshot than the commit's."""

    before: Mapping[str, Member] = {}

    def change(self, device_id: str, *, there: bool = True, request_id: str = "", fate: str = "") -> None:
        happening, self.happening = self.happening, True
        self.before = self.barrier.look(self.head)
        self.happening = happening
        super().change(device_id, there=there, request_id=request_id, fate=fate)

    def new_waiter(self, revision: Revision) -> Waiter:
        waiter = super().new_waiter(revision)
        waiter.roll.call(self.before, self.barrier._clock())
        return waiter


class CountsFromTheRequest(Members):
    """Rule 6: commit first, then start the timer."""

    began = 0.0

    def change(self, device_id: str, *, there: bool = True, request_id: str = "", fate: str = "") -> None:
        self.began = self.barrier._clock()
        super().change(device_id, there=there, request_id=request_id, fate=fate)

    def new_waiter(self, revision: Revision) -> Waiter:
        waiter = super().new_waiter(revision)
        waiter.roll.began = self.began
        return waiter


class RetryReturnsAtOnce(Resources):
    """Rule 6: who finds a change made waits for it as the first call did."""

    def carry_out(
        self,
        call: Call,
        work: Callable[[Writer, datetime], T],
        entity_id: Callable[[T], str],
        again: Callable[[Writer, str, datetime], T],
        *,
        over: Callable[[], bool] = lambda: True,
        narrows: bool = False,
    ) -> Mutation[T]:
        made = False

        def first(writer: Writer, now: datetime) -> T:
            nonlocal made
            value = work(writer, now)
            made = bool(writer._touched)  # type: ignore[attr-defined]
            return value

        room = self.barrier
        assert isinstance(room, WaitingRoom)

        class Impatient(WaitingRoom):
            def wait(self, revision: Revision, *, immediately: bool = False) -> Propagation:
                return room.wait(revision, immediately=immediately) if made else AT_ONCE

        real = Resources(self.store, self.peppers, self.clock, self.cache, Impatient(room._world, room._clock))  # type: ignore[arg-type]
        return real.carry_out(call, first, entity_id, again, over=over, narrows=narrows)


# Rule 7: leaving.


class StrikesOffOnSuspicion(Follower):
    """Rule 7: who is marked `fencing` is struck off only W later."""

    def _note_fencing(self, members: Sequence[Member]) -> None:
        super()._note_fencing(members)
        self._fencing = dict.fromkeys(self._fencing, self._clock())


class LeavesBeforeItStops(Follower):
    """Rule 7: who leaves answers nothing from memory any more."""

    def leave(self) -> None:
        if self._process_id is not None:
            self._store.leave([self._process_id])
        super().leave()


# Rule 8: time.


class TakesTheTimeForThatOfNow(SharedClock):
    """Rule 8: the database's time is of no earlier than when the reading began, and is counted on from there."""

    def set(self, then: datetime, began: float) -> None:  # noqa: ARG002 - that is what is wrong with it
        super().set(then, self._clock())


class GoesByTheMachine(SharedClock):
    """Rule 8: the time is the database's, whatever the machine's own clock is set to."""

    def __call__(self) -> datetime:
        assert isinstance(self._clock, Clock)
        world = self._clock._world
        assert isinstance(world, Expiry)
        return NOW + timedelta(seconds=world.now) + world.machine_stepped


class AnswersForWhatHasExpired(Expiry):
    """Rule 5: before `valid_until` an answer is handed over, or not at all."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = mock.patch.object(authorization, "_overtaken", return_value=False)
        self.patch.start()

    def teardown(self) -> None:
        self.patch.stop()
        super().teardown()


# Rule 10: one file.


class TakesTheVersionLate(FactCache):
    """Rule 10: the version is looked up before the snapshot."""

    def _apply(self, reading: Reading) -> bool:
        return super()._apply(replace(reading, version=self._store.version()))


class ForgetsTheVersion(FactCache):
    """Rule 10: the version is looked up after the decision."""

    def still(self, applied: Revision | None) -> bool:
        return applied is self._applied and applied is not None


# The words: t0 is of a clock that goes on while the machine is suspended.


class StoppingClock(Pauses):
    """The words: t0 is of a clock that goes on while the machine is suspended."""

    def clock_of(self, clock: Clock) -> Callable[[], float]:
        return lambda: clock() - clock.slept


def variant(machine: type[World], **classes: type[object]) -> type[World]:
    """Return a machine with other classes than the service's."""
    return type(machine.__name__, (machine,), classes)


@pytest.mark.parametrize(
    "machine",
    [
        pytest.param(variant(Members, follower_class=TakesALeaseBeforeItsRow), id="takes a lease before its row"),
        pytest.param(variant(Pauses, follower_class=ReadsTheClockLate), id="reads the clock late"),
        pytest.param(variant(Members, follower_class=GoesOnWithoutALiveRow), id="goes on without a live row"),
        pytest.param(variant(Pauses, cache_class=ForgetsNothing), id="forgets nothing"),
        pytest.param(
            variant(Memory, cache_class=TakesWhatCannotBeToldForNothing), id="takes what cannot be told for nothing"
        ),
        pytest.param(variant(Memory, store_class=StoreOfNumbers), id="trusts the number of applied"),
        pytest.param(variant(Memory, cache_class=AppliesWhatWasReadElsewhere), id="mixes readings"),
        pytest.param(variant(Pauses, cache_class=FillsRegardless), id="fills regardless of floors"),
        pytest.param(variant(Pauses, cache_class=ForgetsFloors), id="forgets floors"),
        pytest.param(variant(Pauses, cache_class=DecidesWithoutALease), id="decides without a lease"),
        pytest.param(variant(Pauses, cache_class=DecidesFromWhatWas), id="decides from what was"),
        pytest.param(variant(Pauses, cache_class=AnswersAJoinedCallerAtOnce), id="answers a joined caller at once"),
        pytest.param(variant(Memory, cache_class=ComparesNumbers), id="compares numbers"),
        pytest.param(variant(Again, memo_class=AnswersAgainWhateverHasChanged), id="answers again whatever changed"),
        pytest.param(variant(Again, memo_class=AnswersAgainWithoutLooking), id="answers again without looking"),
        pytest.param(variant(Again, memo_class=LooksUpTheRevisionLate), id="looks up the revision late"),
        pytest.param(variant(Pauses, follower_class=AcknowledgesWhatItRead), id="acknowledges what it read"),
        pytest.param(variant(Pauses, roll_class=CountsALease), id="counts a lease"),
        pytest.param(variant(Pauses, roll_class=CountsItsOwnLease), id="counts its own lease"),
        pytest.param(ListsBeforeTheCommit, id="lists before the commit"),
        pytest.param(CountsFromTheRequest, id="counts from the request"),
        pytest.param(variant(Members, resources_class=RetryReturnsAtOnce), id="a retry returns at once"),
        pytest.param(variant(Members, follower_class=StrikesOffOnSuspicion), id="strikes off on suspicion"),
        pytest.param(variant(Members, follower_class=LeavesBeforeItStops), id="leaves before it stops"),
        pytest.param(variant(Expiry, shared_clock_class=TakesTheTimeForThatOfNow), id="takes the time for that of now"),
        pytest.param(variant(Expiry, shared_clock_class=GoesByTheMachine), id="goes by its machine's clock"),
        pytest.param(AnswersForWhatHasExpired, id="answers for what has expired"),
        pytest.param(StoppingClock, id="stops its clock"),
        pytest.param(variant(OneFile, cache_class=TakesTheVersionLate), id="takes the version late"),
        pytest.param(variant(OneFile, cache_class=ForgetsTheVersion), id="forgets the version"),
    ],
)
def test_the_machine_catches_one_that(machine: type[World]) -> None:
    assert caught(machine)
