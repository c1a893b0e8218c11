"""Staying a member of those who decide from memory, where that is by lease (CONSISTENCY rules 2, 3, 7 and 9)."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from server.domain.revision import Revision
from server.service.facts import FactCache, Reading, SharedClock, boottime
from server.store.contract import Member, News, Store, StoreUnavailable, deadline_within

# L: how long a process decides from memory without hearing from the store.
LEASE = timedelta(seconds=2)
# The bound on the error of clock rates, and the margin.
RATE_ERROR = 0.01
MARGIN = timedelta(milliseconds=50)
# How often a lease is renewed while it lasts; news come sooner.
POLLS_A_LEASE = 8
# How often a process says that it is alive, where it has nothing to acknowledge.
SIGNS_OF_LIFE_A_LEASE = 2
# A process that was silent for so many leases gets no more of them.
SILENT_LEASES = 5
# How long one turn may wait for the store.
TURN_SECONDS = 1.0

_log = structlog.get_logger("texture_auth.following")


def fenced_after(lease: timedelta) -> timedelta:
    """Return W: how long after a commit a process has fenced itself, if it has not heard of it."""
    return lease * (1 + RATE_ERROR) / (1 - RATE_ERROR) + MARGIN


@dataclass(frozen=True, slots=True)
class Report:
    """What one snapshot told of the facts, and of the members; and the time by the store's clock, read last."""

    reading: Reading
    members: Sequence[Member]
    time: datetime


class Follower:
    """One process among those who decide from memory: it enrols, keeps up, acknowledges, and leaves in good order.

    Each membership has an identity of its own. One that was ended by others is followed by a new one, which begins with
    nothing. `heard` is told of acknowledgements. The methods are for one thread, but for `stop`.
    """

    def __init__(
        self,
        store: Store,
        cache: FactCache,
        shared_clock: SharedClock,
        heard: Callable[[], None],
        *,
        lease: timedelta = LEASE,
        clock: Callable[[], float] = boottime,
    ) -> None:
        self._store = store
        self._cache = cache
        self._shared_clock = shared_clock
        self._heard = heard
        self._lease = lease
        self._pause = lease.total_seconds() / POLLS_A_LEASE
        self._clock = clock
        self._process_id: str | None = None
        self._acknowledged: Revision | None = None
        self._sign_of_life = float("-inf")
        self._fencing: dict[str, float] = {}
        self._tidied = float("-inf")
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="follower", daemon=True)

    @property
    def process_id(self) -> str | None:
        """The identity of the membership; None where there is none."""
        return self._process_id

    def start(self) -> None:
        """Become a member, if the store can be asked, and go on in a thread."""
        self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Leave. To be called once nothing is answered any more: what was granted is not waited for (rule 7)."""
        self._stopping.set()
        if self._thread.is_alive():
            # An announcement, even that nobody leaves, ends the wait for one.
            with suppress(StoreUnavailable), deadline_within(self._pause):
                self._store.leave([])
            self._thread.join()
        self.leave()

    def leave(self) -> None:
        """Answer nothing from memory any more, and end the membership."""
        self._cache.close()
        process_id, self._process_id = self._process_id, None
        if process_id is not None:
            try:
                with deadline_within(TURN_SECONDS):
                    self._store.leave([process_id])
            except StoreUnavailable as error:
                _log.warning("left without a word", cause=str(error))

    def turn(self) -> None:
        """Enrol if need be, then read, apply, extend the lease, and acknowledge. Raises StoreUnavailable."""
        if self._process_id is None:
            self.enrol()
        self.take(self.read())
        self.acknowledge()

    def enrol(self) -> None:
        """Become a member, before anything is remembered (rule 2). Raises StoreUnavailable."""
        process_id = uuid.uuid4().hex
        # Where the outcome is unknown, a row may be left behind, which is fenced for its silence.
        self._store.enrol(process_id, self._lease)
        self._process_id, self._acknowledged = process_id, None
        _log.info("enrolled", process=process_id)

    def read(self) -> Report:
        """Read what has changed, and who is a member. Raises StoreUnavailable."""
        began = self._clock()
        with self._store.read() as reader:
            return Report(self._cache.read(reader, began, None), tuple(reader.members()), reader.time())

    def take(self, report: Report) -> None:
        """Apply what was read, and extend the lease if this process is still a live member (rule 3)."""
        reading = report.reading
        self._note_fencing(report.members)
        self._shared_clock.set(report.time, reading.began)
        if not any(member.process_id == self._process_id and not member.fencing for member in report.members):
            _log.warning("membership ended", process=self._process_id)
            self._cache.close()
            self._process_id = None
        elif self._cache.apply(reading):
            self._cache.extend(reading.began + self._lease.total_seconds())

    def acknowledge(self) -> None:
        """Tell how far this process has come, and that it is alive. Raises StoreUnavailable."""
        applied, now = self._cache.applied, self._clock()
        if self._process_id is None or applied is None:
            return
        quiet = now - self._sign_of_life < self._lease.total_seconds() / SIGNS_OF_LIFE_A_LEASE
        if applied == self._acknowledged and quiet:
            return
        # One that is not noted is of another history, or of a member no more; the next reading tells.
        if self._store.acknowledge(self._process_id, applied):
            self._acknowledged, self._sign_of_life = applied, now

    def tidy(self) -> None:
        """Fence the silent, and strike off those that have been fencing for long enough (rule 7).

        Nobody is struck off on suspicion: one is marked, W is waited for by this process's own clock, and then nothing
        that was granted to it can be left. Raises StoreUnavailable.
        """
        self._store.fence_silent(self._lease * SILENT_LEASES)
        now = self._clock()
        done = [process_id for process_id, until in self._fencing.items() if now >= until]
        if done:
            self._store.leave(done)
            _log.info("struck off", processes=done)

    def _note_fencing(self, members: Sequence[Member]) -> None:
        """Remember since when each of the fencing has been known to be that."""
        now = self._clock()
        self._fencing = {
            member.process_id: self._fencing.get(member.process_id, now + fenced_after(member.lease).total_seconds())
            for member in members
            if member.fencing
        }

    def _turn(self) -> None:
        try:
            with deadline_within(TURN_SECONDS):
                self.turn()
                # It writes, and is not urgent: not with every commit of others.
                if self._clock() - self._tidied >= self._lease.total_seconds():
                    self.tidy()
                    self._tidied = self._clock()
        except StoreUnavailable as error:
            if not self._failing:
                _log.warning("cannot follow", cause=str(error))
            self._failing = True
        except Exception:  # noqa: BLE001 - a follower that dies leaves its process to read everything for ever
            _log.exception("cannot follow")
        else:
            self._failing = False

    def _follow(self) -> None:
        while not self._stopping.is_set():
            due = self._clock() + self._pause
            news = News(0)
            while News.COMMITTED not in news and not self._stopping.is_set() and (left := due - self._clock()) > 0:
                try:
                    news = self._store.await_news(left)
                except StoreUnavailable:
                    self._stopping.wait(left)
                if News.ACKNOWLEDGED in news:
                    self._heard()
            if not self._stopping.is_set():
                self._turn()
