"""What keys were used for, and when an old secret of one may be done without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from server.domain.model import Generation
from server.domain.reasons import Reason

# A process that has not reported for so long has ended without a word: none that can reach the store is silent for as
# long, and one that cannot reach it decides nothing.
SILENCE = timedelta(minutes=1)


class Bucket(NamedTuple):
    """What uses of keys are counted apart by.

    `hour` is when the hour began, in UTC. `retiring` says that the secret had been replaced by a rotation. The caller
    and the permission are empty where they could not be told apart, for want of room.
    """

    key_id: str
    hour: datetime
    generation: int
    retiring: bool
    caller_id: str
    permission: str
    reason: Reason

    def coarser(self) -> Bucket:
        """Return the bucket for want of room: the key's, whoever asked for what."""
        return self._replace(caller_id="", permission="")


@dataclass(frozen=True, slots=True)
class Span:
    """How often something happened, and when first and last."""

    count: int
    first_time: datetime
    last_time: datetime

    def plus(self, other: Span | None) -> Span:
        """Return both together."""
        if other is None:
            return self
        first, last = min(self.first_time, other.first_time), max(self.last_time, other.last_time)
        return Span(self.count + other.count, first, last)


class Use(NamedTuple):
    """The uses of a bucket."""

    bucket: Bucket
    span: Span


class Touch(NamedTuple):
    """How often a key was allowed something on a device, and when."""

    key_id: str
    device_id: str
    span: Span


@dataclass(frozen=True, slots=True)
class LastUse:
    """When a key was last presented with a right secret, and whether devices it reached were left out, when last."""

    time: datetime
    devices_left_out_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageReport:
    """How far a process has come: what it answered before `report_time` is counted and stored.

    `sequence` counts what it has stored. Up to `uncounted_time` it may have answered what it did not count. It has
    ended in good order where there is an `end_time`.
    """

    process_id: str
    sequence: int
    start_time: datetime
    report_time: datetime
    end_time: datetime | None = None
    uncounted_time: datetime | None = None

    def silent(self, now: datetime) -> bool:
        """Tell whether it has ended without a word."""
        return self.end_time is None and now - self.report_time > SILENCE

    def running(self, now: datetime) -> bool:
        """Tell whether it goes on."""
        return self.end_time is None and not self.silent(now)

    def unsure_until(self, now: datetime) -> datetime | None:
        """Return until when it may have answered what is not counted; None where all is."""
        if self.silent(now):
            return self.report_time + SILENCE
        return self.uncounted_time


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageBatch:
    """What a process has counted since its last report, and its report.

    `left_out` are keys of whose devices some were left out for want of room, and when last.
    """

    uses: Mapping[Bucket, Span]
    touches: Mapping[tuple[str, str], Span]
    left_out: Mapping[str, datetime]
    report: UsageReport


@dataclass(frozen=True, slots=True)
class CallerUse:
    """By whom an old secret was presented since it was replaced."""

    caller_id: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Retirement:
    """What is known of a secret that was replaced at `rotation_time`: who has used it since, and whether it is needed.

    It is `safe` to end once it was not used for as long as was asked for, by all that processes have reported. All of
    them have reported up to `reported_until`; None where no process has. `unsure_until` is until when uses may have
    gone uncounted, by processes that ended without a word or do not count; None where that is not since the rotation.
    `safe_time` is when it will be safe if nobody uses it any more; None where a process runs that does not count.
    """

    generation: int
    rotation_time: datetime
    retire_time: datetime
    uses: tuple[CallerUse, ...]
    last_use: CallerUse | None
    reported_until: datetime | None
    unsure_until: datetime | None
    silent_processes: int
    safe: bool
    safe_time: datetime | None


def judge(
    old: Generation,
    rotation_time: datetime,
    uses: Iterable[CallerUse],
    reports: Sequence[UsageReport],
    quiet_for: timedelta,
    now: datetime,
) -> Retirement:
    """Find out whether an old secret may be done without.

    What counts as its last use is the last that is known of or, if later, the last that could be without being known.
    From then on, all processes must have reported for as long as `quiet_for`.
    """
    by_caller = tuple(sorted(uses, key=lambda use: (use.span.last_time, use.caller_id), reverse=True))
    last_use = by_caller[0] if by_caller else None
    running = [report for report in reports if report.running(now)]
    unsure = [until for report in reports if (until := report.unsure_until(now)) and until > rotation_time]
    reported_until = min((report.report_time for report in running), default=None)
    known_uses = [] if last_use is None else [last_use.span.last_time]
    quiet_since = max([rotation_time, *known_uses, *unsure])
    safe = reported_until is not None and reported_until > quiet_since and reported_until - quiet_since >= quiet_for
    uncounting = any(report.uncounted_time == report.report_time for report in running)
    return Retirement(
        generation=old.number,
        rotation_time=rotation_time,
        retire_time=old.retire_time or now,
        uses=by_caller,
        last_use=last_use,
        reported_until=reported_until,
        unsure_until=max(unsure, default=None),
        silent_processes=sum(report.silent(now) and report.report_time + SILENCE > rotation_time for report in reports),
        safe=safe,
        safe_time=None if uncounting or reported_until is None else quiet_since + quiet_for,
    )
