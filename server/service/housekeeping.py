"""What a server does by itself from time to time, whatever it is asked."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import structlog

from server.service.base import Resources
from server.service.telemetry import SILENT, ChoreOutcome, Telemetry
from server.store.contract import StoreUnavailable

# How long after its start a server does its chores for the first time, unless they come sooner by themselves.
FIRST_SECONDS = 10.0
# How long a stop waits for the portion under way. The thread is left alone after that, and ends with the process.
STOP_SECONDS = 5.0
PRUNING_SECONDS = 3600.0
# How many events, or changes, one transaction deletes, so that no writer waits long for it.
EVENTS_AT_ONCE = 1000
CHANGES_AT_ONCE = 5000
# How many revisions are known by what they touched. A process that is behind by more forgets everything, and a token of
# an older revision cannot be verified any more.
KEPT_REVISIONS = 100_000
FORGETTING_SECONDS = 600.0

_log = structlog.get_logger("texture_auth.housekeeping")


@dataclass(frozen=True, slots=True)
class Chore:
    """Something to do every so many seconds.

    `work` does a portion, in which nobody is kept waiting, and tells whether there is more to do now.
    """

    name: str
    period_seconds: float
    work: Callable[[], bool]


def prune_events(resources: Resources, retention: timedelta) -> bool:
    """Delete a portion of the events that are older than the retention; tell whether there may be more."""
    with resources.store.write() as writer:
        pruned = writer.prune_events(resources.clock() - retention, EVENTS_AT_ONCE)
    if pruned:
        _log.info("events pruned", count=pruned)
    return pruned == EVENTS_AT_ONCE


def prune_changes(resources: Resources) -> bool:
    """Forget a portion of what old revisions touched; tell whether there may be more."""
    with resources.store.write() as writer:
        return writer.prune_changes(KEPT_REVISIONS, CHANGES_AT_ONCE) > 0


class Housekeeper:
    """Does chores in a thread of its own, each in its period. No failure of one ends the thread or the others."""

    def __init__(
        self, chores: Sequence[Chore], first_seconds: float = FIRST_SECONDS, telemetry: Telemetry = SILENT
    ) -> None:
        self._chores = chores
        self._telemetry = telemetry
        self._first_seconds = first_seconds
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="housekeeping", daemon=True)

    def start(self) -> None:
        """Begin, if there is anything to do."""
        if self._chores:
            self._thread.start()

    def drain(self) -> None:
        """Begin nothing any more."""
        self._stopping.set()

    def stop(self) -> None:
        """Drain, and wait for the portion under way, but not for long."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)

    def run_once(self) -> None:
        """Do every chore now, in the calling thread, until there is nothing more to do."""
        for chore in self._chores:
            while not self._stopping.is_set() and self._do(chore):
                pass

    def _keep(self) -> None:
        now = time.monotonic()
        due = [now + min(self._first_seconds, chore.period_seconds) for chore in self._chores]
        while not self._stopping.wait(max(0.0, min(due) - time.monotonic())):
            for place, chore in enumerate(self._chores):
                if time.monotonic() >= due[place] and not self._stopping.is_set():
                    # The others have their turn between two portions.
                    more = self._do(chore)
                    due[place] = time.monotonic() + (0.0 if more else chore.period_seconds)

    def _do(self, chore: Chore) -> bool:
        """Do a portion of a chore, and tell whether there is more to do now. After a failure there is not."""
        more = False
        outcome: ChoreOutcome = "done"
        try:
            more = chore.work()
        except StoreUnavailable as error:
            outcome = "put_off"
            _log.warning("chore put off", chore=chore.name, cause=str(error))
        except Exception as error:  # noqa: BLE001 - whatever it was, the other chores and the next time are not to blame
            outcome = "failed"
            _log.error("chore failed", chore=chore.name, exc_info=error)
        self._telemetry.chore(chore.name, outcome)
        return more
