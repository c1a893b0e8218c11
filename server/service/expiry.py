"""Warnings of keys that are about to expire, as events."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

import structlog

from server.domain.events import Event, EventType, Origin, describe
from server.domain.model import Key, KeyState
from server.service.base import Resources
from server.store.contract import ExpiryMark, Writer

# How many days ahead a warning is recorded.
WARNINGS = (30, 7, 1)
WARNING_SECONDS = 600.0
# How many keys one transaction looks at, so that no writer waits long for it.
KEYS_AT_ONCE = 200
# Who is named in the events.
WARNING_CALLER = "expiry-warning"

_log = structlog.get_logger("texture_auth.expiry")


def warn_of_expiry(resources: Resources) -> bool:
    """Record a portion of the warnings that are due; tell whether there may be more.

    For each number of days there is a mark, which moves on in the transaction that records the warnings: the expiry up
    to which their turn has come. So each is recorded once, whoever does the chore, and again where an expiry is moved
    beyond the mark. A key that is made, moved or resumed when its turn is over gets the next one; where no server ran
    for a while, a key gets the nearest alone.
    """
    with resources.store.write() as writer:
        now = resources.time(writer)
        more = [_warn(writer, days, now) for days in WARNINGS]
    return any(more)


def _warn(writer: Writer, days: int, now: datetime) -> bool:
    """Record a portion of the warnings of so many days; tell whether there may be more."""
    until = now + timedelta(days=days)
    mark = writer.expiry_mark(days)
    if mark is None:
        # Those who expire earlier have had no warning, and get the next: not all of them one now.
        writer.set_expiry_mark(ExpiryMark(days=days, expire_time=until))
        return False
    found = writer.expiring_keys(mark, until, KEYS_AT_ONCE)
    more = len(found) == KEYS_AT_ONCE
    nearer = now + timedelta(days=max((other for other in WARNINGS if other < days), default=0))
    due = [key for key in found if _expires_after(key, nearer) and key.state_at(now) is KeyState.ACTIVE]
    writer.record(_event(key, days, now) for key in due)
    if due:
        _log.info("expiry warnings", days=days, count=len(due))
    if more:
        mark = ExpiryMark(days=days, expire_time=found[-1].expire_time or until, key_id=found[-1].key_id)
    else:
        # By a clock that was set back, some have had their turn already.
        mark = ExpiryMark(days=days, expire_time=max(until, mark.expire_time))
    writer.set_expiry_mark(mark)
    return more


def _expires_after(key: Key, instant: datetime) -> bool:
    return key.expire_time is not None and key.expire_time > instant


def _event(key: Key, days: int, now: datetime) -> Event:
    origin = Origin(caller_id=WARNING_CALLER, reason=f"expires within {days} {'day' if days == 1 else 'days'}")
    event = describe(EventType.KEY_EXPIRING, origin, None, key, now)
    return replace(event, after={**(event.after or {}), "expires_within_days": days})
