"""What a process remembers of the store, so that it decides from memory, and the rules that keep that exact.

The rules are those of CONSISTENCY.md, and are named where they are kept. A fact is one entity, or the knowledge that
there is none. Every usable fact is true at `applied`, the revision that the memory reflects; whoever decides looks
facts up, decides, and then asks `still` whether they are those of `applied`, and `applied` is current.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from server.domain.errors import ErrorReason, Refusal
from server.domain.model import Device, Key
from server.domain.revision import Revision
from server.service.telemetry import SILENT, CacheKind, Telemetry
from server.service.waiting import aside
from server.store.contract import (
    CALLER,
    CERTIFICATE_NAME,
    DEVICE,
    KEY,
    Changes,
    Reader,
    Store,
    StoreUnavailable,
    seconds_left,
)

T = TypeVar("T")

# An entity: its kind and its id, as the change log has them.
Place = tuple[str, str]

KINDS: Sequence[CacheKind] = ("key", "device", "caller", "certificate_name")
# How many of each kind are remembered beside keys and devices, whose number is a setting. A name of a certificate takes
# about 250 bytes, a caller 1 kB.
MOST_CALLERS = 10_000
# How many entities of each kind are remembered not to exist, apart from the others, so that a storm of unknown keys
# drives out no known one. Each takes about 300 bytes.
MOST_ABSENT = 10_000
# How many entities have their floors remembered. Each takes about 250 bytes.
MOST_FLOORS = 50_000
# More changes than this at once, and it is cheaper to forget everything.
MOST_CHANGES = 10_000
# How many revisions are remembered to be of this history.
MOST_KNOWN = 1_000
# How often an answer is tried from memory that others keep changing, before it is read from the store.
TRIES = 4
# How old a snapshot may be that is answered from without a lease: as old as what a lease allows.
DIRECT_SECONDS = 2.0
# How many loads of different entities may go on side by side without waiting for one another's.
STRIPES = 64
# A second chance is given to so many entries in a row at most.
_CHANCES = 8

_LONG_AGO = datetime.fromtimestamp(0, UTC)
_NO_LABELS: Mapping[str, str] = {}


def boottime() -> float:
    """Return a time that goes on while the machine is suspended; elsewhere than on Linux, one that may not."""
    clock: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
    return time.clock_gettime(clock)


class Fact:
    """An entity as it is at `applied` for as long as the fact is `live`; its `value` is None where there is none."""

    __slots__ = ("live", "used", "value")

    def __init__(self, value: Any, *, live: bool = True) -> None:
        self.value = value
        self.live = live
        self.used = False


class _Shelf:
    """Facts of one kind, so many at most. What was looked up since it was last considered for removal stays."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.facts: dict[str, Fact] = {}
        # Whose turn it is to be considered: every fact has one, and some that are gone do. Together these take half of
        # what an OrderedDict does.
        self._turns: deque[str] = deque()

    def put(self, entity_id: str, fact: Fact) -> None:
        self.remove(entity_id)
        self.facts[entity_id] = fact
        self._turns.append(entity_id)
        chances = _CHANCES
        while len(self.facts) > self.most:
            oldest_id = self._turns.popleft()
            oldest = self.facts.get(oldest_id)
            if oldest is None:
                continue
            if oldest is fact:
                self._turns.append(oldest_id)
            elif oldest.used and chances:
                chances -= 1
                oldest.used = False
                self._turns.append(oldest_id)
            else:
                # Whoever still holds it would not hear of its end.
                oldest.live = False
                del self.facts[oldest_id]
        if len(self._turns) > 2 * self.most:
            self._turns = deque(self.facts)

    def remove(self, entity_id: str) -> None:
        fact = self.facts.pop(entity_id, None)
        if fact is not None:
            fact.live = False

    def clear(self) -> None:
        for fact in self.facts.values():
            fact.live = False
        self.facts.clear()
        self._turns.clear()


class _History:
    """One history of revisions, as long as it goes on: which revisions are known to be of it."""

    def __init__(self) -> None:
        self.known: dict[Revision, None] = {}

    def add(self, revision: Revision) -> None:
        self.known.pop(revision, None)
        while len(self.known) >= MOST_KNOWN:
            self.known.pop(next(iter(self.known)), None)
        self.known[revision] = None


@dataclass(frozen=True, slots=True)
class Reading:
    """What one snapshot told. `began` is the boot time before it, `version` the store's version before it.

    `changes` is None where those since `since` cannot be told.
    """

    began: float
    version: object | None
    history: _History
    since: Revision | None
    changes: Changes | None
    head: Revision


@dataclass(frozen=True, slots=True)
class Known:
    """Facts of one revision, by their places."""

    revision: Revision
    facts: Mapping[Place, Fact]

    def value(self, kind: str, entity_id: str) -> Any:
        """Return an entity, None where there is none or it was not asked for."""
        fact = self.facts.get((kind, entity_id))
        return None if fact is None else fact.value


class FactCache:
    """The facts that decisions are made from. Safe for use by many threads; a hit takes no lock.

    On a store that has a version, that tells at each decision whether anything was committed. On one that has none, a
    `Follower` keeps the cache up to date and grants it leases, and beyond its lease nothing is answered from it.

    `keys` and `devices` are how many of each are remembered: a key takes about 700 bytes, a device 350. `loads` is how
    many calls may be waiting for the store at once; further ones are refused.
    """

    def __init__(
        self,
        store: Store,
        *,
        keys: int,
        devices: int,
        loads: int,
        clock: Callable[[], float] = boottime,
        telemetry: Telemetry = SILENT,
    ) -> None:
        self._store = store
        self._clock = clock
        self._telemetry = telemetry
        self._lock = threading.Lock()
        most = {KEY: keys, DEVICE: devices, CALLER: MOST_CALLERS, CERTIFICATE_NAME: MOST_CALLERS}
        self._known = {kind: _Shelf(number) for kind, number in most.items()}
        self._absent = {kind: _Shelf(min(number, MOST_ABSENT)) for kind, number in most.items()}
        self._floors: OrderedDict[Place, int] = OrderedDict()
        self._floor = 0
        self._history = _History()
        self._applied: Revision | None = None
        self._version: object | None = None
        self._fresh_until = float("-inf")
        self._loads = threading.BoundedSemaphore(loads)
        self._stripes = [threading.Lock() for _ in range(STRIPES)]
        self._head = 0
        # How often facts of each kind were decided from, and had to be asked of the store. Threads that count at the
        # same moment may lose a count, which is cheaper than a lock.
        self._looked = dict.fromkeys(most, 0)
        self._missed = dict.fromkeys(most, 0)
        self._told = (dict(self._looked), dict(self._missed))

    @property
    def applied(self) -> Revision | None:
        """The revision that is reflected; None where nothing is."""
        return self._applied

    def count(self, kind: str, hits: int) -> None:
        """Take note of facts that something was decided from without asking for them here."""
        self._looked[kind] += hits

    def tell(self) -> None:
        """Tell what is remembered, and what was looked up since this was told last. For one thread."""
        telemetry = self._telemetry
        looked, missed = dict(self._looked), dict(self._missed)
        before_looked, before_missed = self._told
        self._told = looked, missed
        for kind in KINDS:
            misses = missed[kind] - before_missed[kind]
            telemetry.cache_miss(kind, misses)
            telemetry.cache_hit(kind, max(0, looked[kind] - before_looked[kind] - misses))
            telemetry.cache_size(kind, len(self._known[kind].facts) + len(self._absent[kind].facts))
        applied = self._applied
        if applied is not None:
            telemetry.applied(applied.number)
            telemetry.head(max(self._head, applied.number))
        if self._store.version() is None:
            telemetry.lease_left(max(0.0, self._fresh_until - self._clock()))

    def look(self, kind: str, entity_id: str) -> Fact | None:
        """Return a fact if it is remembered."""
        fact = self._known[kind].facts.get(entity_id) or self._absent[kind].facts.get(entity_id)
        if fact is not None:
            fact.used = True
        return fact

    def still(self, applied: Revision | None) -> bool:
        """Tell whether facts that were found live at a revision are current (rules 5 and 10).

        It is to be asked after the decision, with no wait between it and handing the answer over. Raises
        StoreUnavailable.
        """
        version = self._store.version()
        current = self._clock() < self._fresh_until if version is None else version == self._version
        # Last, since a lease, or a version, may be of a later revision.
        return current and applied is self._applied and applied is not None

    def reaches(self, applied: Revision, at_least: Revision | None) -> bool:
        """Tell whether a revision that was `applied` is known to be a certain one or later in its history."""
        if at_least is None or at_least == applied:
            return True
        return at_least in self._history.known and at_least.number <= applied.number

    def decide(self, wanted: Collection[Place], at_least: Revision | None, work: Callable[[Known], T]) -> T:
        """Return what `work` makes of facts: of one revision, that is current, and `at_least` a certain one or later.

        The work may be done several times, and is to have no effects. What it refuses counts as what it returns.
        Raises Refusal (REVISION_NOT_VERIFIABLE, OVERLOADED), StoreUnavailable.
        """
        for _ in range(TRIES):
            applied = self._applied
            if applied is None or not self.reaches(applied, at_least):
                if self._lapsed:
                    break
                self._catch_up(at_least)
                continue
            facts = {place: fact for place in wanted if (fact := self.look(*place)) is not None}
            if len(facts) < len(wanted):
                if self._lapsed:
                    break
                self._load([place for place in wanted if place not in facts])
                continue
            done = _attempt(work, Known(applied, facts))
            if self.still(applied):
                for kind, _ in wanted:
                    self._looked[kind] += 1
                return done()
            if self._lapsed:
                break
            if self._applied is applied:
                self._catch_up(None)
        return self._decide_directly(wanted, at_least, work)

    def read(self, reader: Reader, began: float, version: object | None) -> Reading:
        """Return what a snapshot tells, that was begun after `began` and `version` were looked up (rule 3)."""
        history, since = self._history, self._applied
        changes = None if since is None else reader.changes_since(since, MOST_CHANGES)
        return Reading(
            began=began,
            version=version,
            history=history,
            since=since,
            changes=changes,
            head=reader.head() if changes is None else changes.head,
        )

    def apply(self, reading: Reading) -> bool:
        """Make the memory reflect what was read (rule 3). Tell whether the reading was of the history that goes on."""
        with self._lock:
            return self._apply(reading)

    def extend(self, until: float) -> None:
        """Let answers be given from memory until an instant of the boot time."""
        self._fresh_until = max(self._fresh_until, until)

    def close(self) -> None:
        """Forget everything, and answer nothing from memory until there is a lease again."""
        with self._lock:
            self._fresh_until = float("-inf")
            self._begin_history(None)

    @property
    def _lapsed(self) -> bool:
        """Tell whether nothing may be answered from memory, so that there is no use in filling it."""
        return self._store.version() is None and self._clock() >= self._fresh_until

    def _catch_up(self, at_least: Revision | None) -> None:
        """Apply what has changed; find out about a revision that an answer is to be of. Raises Refusal."""
        began, version = self._clock(), self._store.version()
        with aside(), self._store.read() as reader:
            if at_least is not None:
                verify(reader, at_least)
            reading = self.read(reader, began, version)
        with self._lock:
            if self._apply(reading) and at_least is not None:
                self._history.add(at_least)

    def _apply(self, reading: Reading) -> bool:
        if reading.history is not self._history:
            return False
        self._head = max(self._head, reading.head.number)
        if reading.changes is None:
            if reading.since is not self._applied:
                return False
            self._begin_history(reading.head)
        elif not self._meets(reading.head, reading.changes):
            return False
        else:
            self._evict(reading.changes)
            for revision in reading.changes.passed:
                self._history.add(revision)
        self._version = reading.version
        return True

    def _meets(self, head: Revision, changes: Changes) -> bool:
        """Tell whether changes are of one line with what was applied since they were read.

        Of two readings that began at the same revision, one may be of a line that the store has lost, by a failover or
        a restored copy, and the other of the line in its place. The next reading tells which of them goes on.
        """
        return self._applied in changes.passed or head in self._history.known

    def _begin_history(self, head: Revision | None) -> None:
        """Begin anew: everything that was remembered may be of another history."""
        for shelf in (*self._known.values(), *self._absent.values()):
            shelf.clear()
        self._floors.clear()
        self._floor = self._head = 0 if head is None else head.number
        self._history = _History()
        if head is not None:
            self._history.add(head)
        self._applied = head

    def _evict(self, changes: Changes) -> None:
        head = changes.head
        for place in changes.touched:
            kind, entity_id = place
            if kind in self._known:
                self._known[kind].remove(entity_id)
                self._absent[kind].remove(entity_id)
                self._floors[place] = max(head.number, self._floors.pop(place, 0))
        while len(self._floors) > MOST_FLOORS:
            _, forgotten = self._floors.popitem(last=False)
            self._floor = max(self._floor, forgotten)
        # Last, so that nobody finds a fact of before beside a revision of after.
        if self._applied is None or head.number > self._applied.number:
            self._applied = head

    def _load(self, missing: Collection[Place]) -> None:
        """Remember what is missing, once for all who miss it (rule 4). Raises Refusal (OVERLOADED)."""
        if not self._loads.acquire(blocking=False):
            self._telemetry.shed("loads_full")
            raise Refusal(ErrorReason.OVERLOADED, "as many calls wait for the database as may; nothing was done, retry")
        try:
            with ExitStack() as stack:
                stack.enter_context(aside())
                for number in sorted({hash(place) % STRIPES for place in missing}):
                    stripe = self._stripes[number]
                    if not stripe.acquire(timeout=min(seconds_left(), threading.TIMEOUT_MAX)):
                        raise StoreUnavailable("the database did not answer those who asked before")
                    stack.callback(stripe.release)
                wanted = [place for place in missing if self.look(*place) is None]
                if wanted:
                    self._fill(wanted)
        finally:
            self._loads.release()

    def _fill(self, wanted: Collection[Place]) -> None:
        for kind, _ in wanted:
            self._missed[kind] += 1
        began, version = self._clock(), self._store.version()
        with self._store.read() as reader:
            reading = self.read(reader, began, version)
            values = _read_values(reader, wanted)
        with self._lock:
            if self._apply(reading):
                self._insert(reading.head, values)

    def _insert(self, head: Revision, values: Mapping[Place, Any]) -> None:
        """Remember what was read at a revision, unless it has changed since, or that cannot be told (rule 4)."""
        for place, value in values.items():
            if head.number >= max(self._floor, self._floors.get(place, 0)):
                kind, entity_id = place
                (self._absent if value is None else self._known)[kind].put(entity_id, Fact(value))

    def _decide_directly(self, wanted: Collection[Place], at_least: Revision | None, work: Callable[[Known], T]) -> T:
        while True:
            began = self._clock()
            done = _attempt(work, self._directly(wanted, at_least))
            # A process may be held up between its snapshot and its answer. Where versions tell, a call is answered from
            # a snapshot of its own time; elsewhere nobody answers from one that is older than a lease (G2).
            if self._store.version() is not None or self._clock() - began < DIRECT_SECONDS:
                return done()
            if not seconds_left():
                raise StoreUnavailable("the database takes longer to answer than an answer may be old")

    def _directly(self, wanted: Collection[Place], at_least: Revision | None) -> Known:
        """Return facts of one snapshot that begins now."""
        with aside(), self._store.read() as reader:
            if at_least is not None:
                verify(reader, at_least)
            head = reader.head()
            values = _read_values(reader, wanted)
        # Nobody will hear of their end, so nothing may be concluded from them for later.
        return Known(head, {place: Fact(value, live=False) for place, value in values.items()})


def _attempt(work: Callable[[Known], T], known: Known) -> Callable[[], T]:
    """Do work, and return what hands over what came of it: a result, or a refusal, which is as stale as its facts."""
    try:
        done = work(known)
    except Refusal as error:
        refusal = error

        def refuse() -> T:
            raise refusal

        return refuse
    return lambda: done


class SharedClock:
    """The time by the store's clock, which all processes share, as estimated from the last time it was read (rule 8).

    It is never behind, so that nothing is in force for longer than it should be. Until it was read first, it is the
    time of this machine.
    """

    def __init__(self, clock: Callable[[], float] = boottime) -> None:
        self._clock = clock
        self._read: tuple[datetime, float] | None = None

    def __call__(self) -> datetime:
        """Return the time in UTC."""
        if self._read is None:
            return datetime.now(UTC)
        then, began = self._read
        return then + timedelta(seconds=self._clock() - began)

    def set(self, then: datetime, began: float) -> None:
        """Take note of a time that was read after an instant of the boot time."""
        self._read = then, began


def verify(reader: Reader, revision: Revision) -> None:
    """Make sure that a revision is of the snapshot's history. Raises Refusal (REVISION_NOT_VERIFIABLE)."""
    if not reader.holds(revision):
        raise not_verifiable()


def not_verifiable() -> Refusal:
    """Return the refusal of a revision that this store's history does not have."""
    return Refusal(ErrorReason.REVISION_NOT_VERIFIABLE, "at_least_revision: is not a revision of this store's history")


def slim(key: Key) -> Key:
    """Return a key with only what decisions depend on, and what is alike in many of them kept once."""
    return replace(
        key,
        display_name="",
        description="",
        labels=_NO_LABELS,
        permissions=_shared(key.permissions),
        allowed_networks=_shared(key.allowed_networks),
        allowed_manufacturers=_shared(key.allowed_manufacturers),
        redirect_uris=(),
        connect_link_id=None,
        create_time=_LONG_AGO,
        update_time=_LONG_AGO,
        suspend_time=None,
        revoke_time=None,
        expose_time=None,
        state_reason="",
        created_by_caller_id="",
        created_by_key_id=None,
        workspace_id=_shared(key.workspace_id),
        reference_id=_shared(key.reference_id),
        generations=tuple(
            replace(one, pepper_id=_shared(one.pepper_id), last_four="", create_time=_LONG_AGO)
            for one in key.generations
        ),
    )


def slim_device(device: Device) -> Device:
    """Return a device with only what decisions depend on, and what is alike in many of them kept once."""
    return replace(
        device,
        workspace_id=_shared(device.workspace_id),
        reference_id=_shared(device.reference_id),
        manufacturer=_shared(device.manufacturer),
        create_time=_LONG_AGO,
        update_time=_LONG_AGO,
    )


_SHARED: dict[Any, Any] = {}
_MOST_SHARED = 10_000


def _shared(value: T) -> T:
    """Return the first value that was equal to this one."""
    if len(_SHARED) >= _MOST_SHARED:
        _SHARED.clear()
    shared: T = _SHARED.setdefault(value, value)
    return shared


def _read_values(reader: Reader, wanted: Iterable[Place]) -> dict[Place, Any]:
    """Return what a snapshot has of entities, None for what it has not."""
    by_kind: dict[str, list[str]] = {}
    for kind, entity_id in wanted:
        by_kind.setdefault(kind, []).append(entity_id)
    values: dict[Place, Any] = {}
    for kind, ids in by_kind.items():
        values |= {(kind, entity_id): value for entity_id, value in _READ[kind](reader, ids).items()}
    return values


def _keys(reader: Reader, ids: Collection[str]) -> dict[str, Any]:
    found = reader.keys(ids)
    slimmed: dict[str, Any] = {key_id: slim(key) for key_id, key in found.items()}
    return slimmed | dict.fromkeys(key_id for key_id in ids if key_id not in found)


def _devices(reader: Reader, ids: Collection[str]) -> dict[str, Any]:
    found = reader.devices(ids)
    # By the ids that were read, which the entities hold too; so for keys.
    slimmed: dict[str, Any] = {device_id: slim_device(device) for device_id, device in found.items()}
    return slimmed | dict.fromkeys(device_id for device_id in ids if device_id not in found)


def _callers(reader: Reader, ids: Collection[str]) -> dict[str, Any]:
    return {key_id: reader.caller_of_key(key_id) for key_id in ids}


def _certificate_names(reader: Reader, ids: Collection[str]) -> dict[str, Any]:
    """Return the public id of the key of the caller who goes by each name."""
    values = {}
    for name in ids:
        callers = reader.callers_of_certificate([name])
        values[name] = callers[0].key_id if callers else None
    return values


_READ: Mapping[str, Callable[[Reader, Collection[str]], dict[str, Any]]] = {
    KEY: _keys,
    DEVICE: _devices,
    CALLER: _callers,
    CERTIFICATE_NAME: _certificate_names,
}
