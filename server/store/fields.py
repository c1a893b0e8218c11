"""Columns for the values of the domain."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

from peewee import BigIntegerField, TextField

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def instant(count: int) -> datetime:
    """Return the instant of so many microseconds since 1970 UTC."""
    return _EPOCH + timedelta(microseconds=count)


def microseconds(time: datetime) -> int:
    """Return how many microseconds after 1970 UTC an instant is."""
    return (time - _EPOCH) // _MICROSECOND


class InstantField(BigIntegerField):
    """An instant, as microseconds since 1970 UTC: exact, ordered, and the same on every database."""

    def db_value(self, value: datetime | None) -> int | None:
        """Return the column's value."""
        return None if value is None else microseconds(value)

    def python_value(self, value: int | None) -> datetime | None:
        """Return the domain's value."""
        return None if value is None else instant(value)


class DurationField(BigIntegerField):
    """A length of time, as microseconds."""

    def db_value(self, value: timedelta | None) -> int | None:
        """Return the column's value."""
        return None if value is None else value // _MICROSECOND

    def python_value(self, value: int | None) -> timedelta | None:
        """Return the domain's value."""
        return None if value is None else timedelta(microseconds=value)


class JsonField(TextField):
    """JSON in a text column: it is kept and returned, never searched."""

    def db_value(self, value: Any) -> str | None:
        """Return the column's value."""
        return None if value is None else json.dumps(value, separators=(",", ":"), sort_keys=True)

    def python_value(self, value: str | None) -> Any:
        """Return the domain's value."""
        return None if value is None else json.loads(value)
