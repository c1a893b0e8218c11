"""Counting what keys are used for, in memory, on the way of every decision: so it takes no lock, and next to no time.

Only a key that was presented with a right secret has a use, whatever the decision: nobody else can write to what is
known of a key. All is handed over to whoever stores it, now and then, and nothing that was counted is lost on that way.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta

from server.domain.decision import Decision
from server.domain.reasons import Reason
from server.domain.usage import Bucket, Span, UsageBatch, UsageReport

# How many different uses are told apart between two times that they are handed over, and how many may wait to be
# stored. Each takes about 600 bytes. Beyond that a use is counted for its key alone and, beyond twice that, not at all.
MOST_TALLIES = 10_000
MOST_WAITING = 10_000

_HOUR = timedelta(hours=1)
_NEVER = datetime.min.replace(tzinfo=UTC)


class Tally:
    """The uses of a bucket, on one device, or on none. `left_out` says that devices were touched that are not named.

    To count is to take the next number, which is one step to all threads, and so is to look how many were taken: a
    number is taken for that too.
    """

    __slots__ = ("bucket", "caller_id", "device_id", "first", "last", "left_out", "listed", "looked", "take", "until")

    def __init__(self, bucket: Bucket, device_id: str, now: datetime, *, left_out: bool = False) -> None:
        self.bucket = bucket
        self.caller_id = bucket.caller_id
        self.device_id = device_id
        self.left_out = left_out
        self.first = self.last = now
        self.until = bucket.hour + _HOUR
        self.take: Callable[[], int] = itertools.count().__next__
        self.looked = 0
        self.listed = False

    def counted(self) -> int:
        """Return how often it was counted since this was asked last. For one thread at a time."""
        number = self.take()
        looked, self.looked = self.looked, number + 1
        return number - looked


class Pending:
    """What was counted and is to be stored."""

    def __init__(self, most: int = MOST_WAITING) -> None:
        self._most = most
        self._uses: dict[Bucket, Span] = {}
        self._touches: dict[tuple[str, str], Span] = {}
        self._left_out: dict[str, datetime] = {}
        # The time of the last use that is not even counted for its key.
        self.lost_time: datetime | None = None

    def __bool__(self) -> bool:
        return bool(self._uses) or self.lost_time is not None

    def add(self, tally: Tally, count: int) -> None:
        """Add what a tally has counted."""
        bucket, span = tally.bucket, Span(count, tally.first, tally.last)
        if bucket not in self._uses and len(self._uses) >= self._most:
            bucket = bucket.coarser()
        if not bucket.key_id or (bucket not in self._uses and len(self._uses) >= 2 * self._most):
            self.lost_time = max(span.last_time, self.lost_time or span.last_time)
            return
        self._uses[bucket] = span.plus(self._uses.get(bucket))
        touch = (bucket.key_id, tally.device_id)
        if tally.left_out or (tally.device_id and touch not in self._touches and len(self._touches) >= self._most):
            self._left_out[bucket.key_id] = max(span.last_time, self._left_out.get(bucket.key_id, span.last_time))
        elif tally.device_id:
            self._touches[touch] = span.plus(self._touches.get(touch))

    def batch(self, report: UsageReport) -> UsageBatch:
        """Return it as it is to be stored."""
        return UsageBatch(uses=self._uses, touches=self._touches, left_out=self._left_out, report=report)


class Use:
    """What a decision was made about, whoever asks: to be kept with an answer that is given again."""

    __slots__ = ("device_id", "generation", "key_id", "permission", "reason", "retiring", "tally")

    def __init__(self, decision: Decision, permission: str, device_id: str) -> None:
        """Take a decision about a key that is known. A device counts as touched where it was allowed."""
        key, generation = decision.key, decision.generation
        if key is None or generation is None:
            raise ValueError("nobody is known to have used a key")
        self.key_id = key.key_id
        self.generation = generation.number
        self.retiring = generation.retire_time is not None
        self.permission = permission
        self.reason = decision.reason
        self.device_id = device_id if decision.allowed else ""
        self.tally: Tally | None = None

    def bucket(self, hour: datetime, caller_id: str) -> Bucket:
        """Return what it is counted with in an hour, for a caller."""
        return Bucket(self.key_id, hour, self.generation, self.retiring, caller_id, self.permission, self.reason)


class Counter:
    """Counts nothing. `UseCounter` does."""

    def count(self, use: Use, caller_id: str) -> None:
        """Count a use, by what a caller asked."""

    def count_all(self, uses: Iterable[Use], caller_id: str) -> None:
        """Count uses of one moment."""

    def hand_over(self, to: Pending) -> None:
        """Add what was counted since the last time to what is to be stored. For one thread at a time."""


UNCOUNTED = Counter()


class UseCounter(Counter):
    """Counts. Safe for use by many threads."""

    def __init__(self, clock: Callable[[], datetime], most: int = MOST_TALLIES) -> None:
        self._clock = clock
        self._most = most
        self._hour = _NEVER
        self._tallies: dict[tuple[Bucket, str], Tally] = {}
        self._lost = Tally(Bucket("", _NEVER, 0, False, "", "", Reason.PERMITTED), "", _NEVER)
        # Those that were counted since they were handed over last. However threads take turns, none is missed: one is
        # marked as not listed before it is looked at, and whoever counts looks at the mark afterwards.
        self._listed: deque[Tally] = deque()

    def count(self, use: Use, caller_id: str) -> None:
        """Count a use."""
        self._count(use, caller_id, self._clock())

    def count_all(self, uses: Iterable[Use], caller_id: str) -> None:
        """Count uses of one moment."""
        now = self._clock()
        for use in uses:
            self._count(use, caller_id, now)

    def hand_over(self, to: Pending) -> None:
        """Add what was counted."""
        self._tallies = {}
        for _ in range(len(self._listed)):
            tally = self._listed.popleft()
            tally.listed = False
            count = tally.counted()
            if count:
                to.add(tally, count)

    def _count(self, use: Use, caller_id: str, now: datetime) -> None:
        tally = use.tally
        if tally is None or tally.caller_id != caller_id or now >= tally.until:
            tally = use.tally = self._tally(use, caller_id, now)
        # Before it is counted, so that nothing is ever known to have happened without its time.
        tally.last = now
        tally.take()
        if not tally.listed:
            tally.listed = True
            self._listed.append(tally)

    def _tally(self, use: Use, caller_id: str, now: datetime) -> Tally:
        hour = self._hour
        if not hour <= now < hour + _HOUR:
            hour = self._hour = now.replace(minute=0, second=0, microsecond=0)
        bucket = use.bucket(hour, caller_id)
        tallies = self._tallies
        place = (bucket, use.device_id)
        found = tallies.get(place)
        if found is None and len(tallies) < self._most:
            found = tallies.setdefault(place, Tally(bucket, use.device_id, now))
        if found is not None:
            return found
        bucket, left_out = bucket.coarser(), bool(use.device_id)
        place = (bucket, "*" * left_out)
        found = tallies.get(place)
        if found is None and len(tallies) < 2 * self._most:
            found = tallies.setdefault(place, Tally(bucket, "", now, left_out=left_out))
        return found or self._lost
