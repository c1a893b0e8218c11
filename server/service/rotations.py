"""Ending an old secret, once it is known that nobody needs it."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from server.domain import lifecycle
from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.events import EventType, describe
from server.domain.kinds import Permission
from server.domain.model import Key
from server.domain.usage import Retirement, judge
from server.service.base import Call, Mutation, Resources, actor_of, require_key
from server.service.usage import UsageReporter
from server.store.contract import Reader, Writer

# How long a secret must not have been used before it is taken for one that nobody needs, unless told otherwise.
DEFAULT_QUIET = timedelta(hours=1)
LONGEST_QUIET = timedelta(days=30)


class RotationService:
    """Tells who still uses secrets that were replaced, and ends them."""

    def __init__(self, resources: Resources, reporter: UsageReporter) -> None:
        self._resources = resources
        self._reporter = reporter

    def get_rotation(self, key_id: str, quiet_for: timedelta | None) -> tuple[Retirement, ...]:
        """Tell, of each secret that was replaced and is kept, who has used it since, the oldest first.

        Raises Refusal: FIELD_INVALID, KEY_NOT_FOUND.
        """
        quiet = _checked_quiet(quiet_for)
        self._reporter.flush(report=True)
        with self._resources.store.read() as reader:
            return _retirements(reader, require_key(reader, key_id), quiet, self._resources.clock())

    def retire_generation(
        self, call: Call, key_id: str, number: int, quiet_for: timedelta | None, *, force: bool
    ) -> Mutation[Key]:
        """End the overlap of an old secret. Refusals: see KeyService.RetireGeneration in `key_service.proto`."""
        call.refuse_if_invalid()
        quiet = _checked_quiet(quiet_for)
        self._reporter.flush(report=True)

        def work(writer: Writer, now: datetime) -> Key:
            before = require_key(writer, key_id)
            actor_of(writer, call, before.workspace_id, Permission.KEYS_MANAGE, now)
            after = lifecycle.retire(before, number, now)
            if after == before:
                return before
            if not force:
                found = {one.generation: one for one in _retirements(writer, before, quiet, now)}
                _check_unused(found[number])
            after = replace(after, update_time=now)
            writer.replace_key(after)
            writer.record([describe(EventType.KEY_GENERATION_RETIRED, call.origin, before, after, now)])
            return after

        return self._resources.carry_out(
            call,
            work,
            lambda key: key.key_id,
            lambda writer, again_id, _now: require_key(writer, again_id),
            narrows=True,
        )


def _checked_quiet(quiet_for: timedelta | None) -> timedelta:
    if quiet_for is None:
        return DEFAULT_QUIET
    if not timedelta() <= quiet_for <= LONGEST_QUIET:
        raise invalid("quiet_for", f"must be from 0 to {LONGEST_QUIET.days} days")
    return quiet_for


def _retirements(reader: Reader, key: Key, quiet_for: timedelta, now: datetime) -> tuple[Retirement, ...]:
    uses, reports = reader.usage_of_replaced(key.key_id), reader.usage_reports()
    return tuple(
        judge(old, following.create_time, uses.get(old.number, ()), reports, quiet_for, now)
        for old, following in zip(key.generations, key.generations[1:], strict=False)
    )


def _check_unused(found: Retirement) -> None:
    """Make sure that a secret may be ended. Raises Refusal: ROTATION_IN_USE, ROTATION_NOT_PROVEN."""
    if found.safe:
        return
    until = {} if found.safe_time is None else {"safe_time": found.safe_time.isoformat()}
    last = found.last_use
    if last is not None and (found.unsure_until is None or last.span.last_time >= found.unsure_until):
        when = last.span.last_time.isoformat()
        raise Refusal(
            ErrorReason.ROTATION_IN_USE,
            f"the old secret was used after the rotation, last at {when} and for {last.caller_id or 'some caller'}; "
            "force ends it all the same",
            metadata={"last_caller_id": last.caller_id, "last_use_time": when, **until},
        )
    raise Refusal(
        ErrorReason.ROTATION_NOT_PROVEN,
        "that nobody needs the old secret is not certain yet: not every process has reported for long enough since the "
        "rotation; force ends it all the same",
        metadata=until,
    )
