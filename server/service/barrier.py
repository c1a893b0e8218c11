"""Waiting until no process decides from before a change (CONSISTENCY rule 6)."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta

import structlog

from server.domain.revision import Revision
from server.service.facts import boottime
from server.service.following import fenced_after
from server.store.contract import Member, Store, StoreUnavailable, seconds_left

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

    def __init__(self, store: Store, clock: Callable[[], float] = boottime) -> None:
        self._store = store
        self._clock = clock
        self._news = threading.Condition()
        self._heard = 0

    def heard(self) -> None:
        """Take note that somebody has acknowledged something."""
        with self._news:
            self._heard += 1
            self._news.notify_all()

    def wait(self, revision: Revision, *, immediately: bool = False) -> Propagation:
        """Wait, unless it is to be done `immediately`, until each process has applied a revision, which is committed, or has fenced itself since.

        Returns what was reached at the call's deadline, if that comes first. Raises StoreUnavailable where the store
        has lost the revision.
        """
        if self._store.version() is not None:
            return AT_ONCE
        if immediately:
            return Propagation(complete=False, acknowledged=0, fenced=0, elapsed=timedelta())
        began = self._clock()
        waiting: dict[str, Member] | None = None
        acknowledged = fenced = 0
        while True:
            heard = self._heard
            elapsed = self._since(began)
            try:
                # A later snapshot than the commit: who is not on it has read everything after the commit.
                with self._store.read() as reader:
                    members = {member.process_id: member for member in reader.members()}
                    held = reader.holds(revision)
            except StoreUnavailable as error:
                _log.warning("cannot see who has applied a change", cause=str(error))
            else:
                if not held:
                    raise StoreUnavailable("the database has lost the change")
                waiting = members if waiting is None else waiting
                for process_id, first in list(waiting.items()):
                    member = members.get(process_id)
                    if member is None or member.acknowledged >= revision.number:
                        acknowledged += 1
                    elif elapsed >= fenced_after(first.lease):
                        fenced += 1
                    else:
                        continue
                    del waiting[process_id]
                if not waiting:
                    return Propagation(
                        complete=True, acknowledged=acknowledged, fenced=fenced, elapsed=self._since(began)
                    )
            left = seconds_left() - _ANSWER_SECONDS
            if left <= 0:
                return Propagation(complete=False, acknowledged=acknowledged, fenced=fenced, elapsed=self._since(began))
            self._listen(heard, min(left, _LOOK_SECONDS))

    def _since(self, began: float) -> timedelta:
        return timedelta(seconds=self._clock() - began)

    def _listen(self, heard: int, seconds: float) -> None:
        """Wait for the next acknowledgement after so many."""
        with self._news:
            self._news.wait_for(lambda: self._heard != heard, seconds)
