"""Waiting until no process decides from before a change (CONSISTENCY rule 6)."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta

import structlog

from server.domain.revision import Revision
from server.service.facts import boottime
from server.service.following import fenced_after
from server.service.telemetry import SILENT, BarrierOutcome, Telemetry
from server.service.waiting import aside
from server.store.contract import Member, Store, StoreUnavailable, seconds_left

# How long a change that takes nothing away is waited for at most.
SETTLING_SECONDS = 0.25
# How long the members are left alone between two looks at them, where nothing is heard of them.
_LOOK_SECONDS = 0.05
# What of a call's time is left for its answer.
_ANSWER_SECONDS = 0.05

_log = structlog.get_logger("texture_auth.barrier")


@dataclass(frozen=True, slots=True)
class Propagation:
    """How far a change that takes authority away had reached when its call returned."""

    complete: bool
    acknowledged: int
    fenced: int
    elapsed: timedelta


# Where every decision asks the store, what is committed has reached every process.
AT_ONCE = Propagation(complete=True, acknowledged=0, fenced=0, elapsed=timedelta())


class Barrier:
    """Waits for all who decide from memory. Safe for use by many threads."""

    def __init__(self, store: Store, telemetry: Telemetry = SILENT, clock: Callable[[], float] = boottime) -> None:
        self._store = store
        self._telemetry = telemetry
        self._clock = clock
        self._news = threading.Condition()
        self._heard = 0

    def heard(self) -> None:
        """Take note that somebody has acknowledged something."""
        with self._news:
            self._heard += 1
            self._news.notify_all()

    def wait(self, revision: Revision, *, immediately: bool = False) -> Propagation:
        """Wait until each process has applied a revision, which is committed, or has fenced itself since.

        With `immediately`, nobody is waited for. Returns what was reached at the call's deadline, if that comes first.
        Raises StoreUnavailable where the store has lost the revision.
        """
        if self._store.version() is not None:
            self._telemetry.barrier(0.0, "acknowledged")
            return AT_ONCE
        if immediately:
            return Propagation(complete=False, acknowledged=0, fenced=0, elapsed=timedelta())
        began = self._clock()
        outcome: BarrierOutcome = "failed"
        try:
            done = self._wait(revision, math.inf)
            outcome = "incomplete" if not done.complete else "fenced" if done.fenced else "acknowledged"
        finally:
            self._telemetry.barrier(self._clock() - began, outcome)
        return done

    def settle(self, revision: Revision) -> None:
        """Wait until each process has applied a change that takes nothing away, so that it is of use, but not for long.

        Nothing is promised of it: a process that is slow to hear denies for a little longer.
        """
        if self._store.version() is None:
            self._wait(revision, SETTLING_SECONDS)

    def _wait(self, revision: Revision, longest: float) -> Propagation:
        roll = _Roll(revision, self._clock())
        while True:
            heard = self._heard
            now = self._clock()
            members = self._members(revision)
            if members is not None:
                roll.call(members, now)
            left = min(seconds_left() - _ANSWER_SECONDS, longest - (self._clock() - roll.began))
            if roll.complete or left <= 0:
                return Propagation(
                    complete=roll.complete,
                    acknowledged=roll.acknowledged,
                    fenced=roll.fenced,
                    elapsed=timedelta(seconds=self._clock() - roll.began),
                )
            with aside(), self._news:
                self._news.wait_for(lambda before=heard: self._heard != before, min(left, _LOOK_SECONDS))  # type: ignore[misc]

    def _members(self, revision: Revision) -> Mapping[str, Member] | None:
        """Return the members in a snapshot that still has the revision; None where the store cannot be asked."""
        try:
            with self._store.read() as reader:
                members = {member.process_id: member for member in reader.members()}
                held = reader.holds(revision)
        except StoreUnavailable as error:
            _log.warning("cannot see who has applied a change", cause=str(error))
            return None
        if not held:
            raise StoreUnavailable("the database has lost the change")
        return members


class _Roll:
    """Whom a change is waited for, and who of them has been heard of.

    It is made after the commit, and `call`ed with snapshots that began later: who is not in the first of them remembers
    nothing from before the commit.
    """

    def __init__(self, revision: Revision, began: float) -> None:
        self.began = began
        self.acknowledged = 0
        self.fenced = 0
        self._revision = revision
        self._waiting: dict[str, Member] | None = None

    @property
    def complete(self) -> bool:
        """Tell whether nobody is waited for any more."""
        return self._waiting is not None and not self._waiting

    def call(self, members: Mapping[str, Member], now: float) -> None:
        """Strike off those who have applied the change or have left, and those who have fenced themselves by now."""
        waiting = members if self._waiting is None else self._waiting
        still = {}
        for process_id, first in waiting.items():
            member = members.get(process_id)
            if member is None or member.acknowledged >= self._revision.number:
                self.acknowledged += 1
            elif now - self.began >= fenced_after(first.lease).total_seconds():
                self.fenced += 1
            else:
                still[process_id] = first
        self._waiting = still
