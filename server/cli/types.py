"""What people type: times, lengths of time, labels, enums."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

_LENGTH = re.compile(r"(\d{1,6})(s|m|h|d)")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days"}


def parse_length(text: str) -> timedelta | None:
    """Return a length of time such as `90s`, `15m`, `24h` or `30d`; None for anything else."""
    form = _LENGTH.fullmatch(text)
    return None if form is None else timedelta(**{_UNITS[form[2]]: int(form[1])})


class LengthType(click.ParamType[Duration]):
    """A length of time."""

    name = "LENGTH"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Duration:
        """Return the message."""
        length = parse_length(str(value))
        if length is None:
            self.fail(f"{value!r} is not a length of time such as 90s, 15m, 24h or 30d", param, ctx)
        message = Duration()
        message.FromTimedelta(length)
        return message


class TimeType(click.ParamType[Timestamp]):
    """An instant: RFC 3339, or a length of time from now."""

    name = "TIME"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Timestamp:
        """Return the message."""
        length = parse_length(str(value))
        try:
            instant = datetime.now(UTC) + length if length is not None else datetime.fromisoformat(str(value))
        except (ValueError, OverflowError):
            instant = None
        if instant is None or instant.tzinfo is None:
            self.fail(f"{value!r} is neither a time such as 2030-01-31T12:00:00Z nor a length such as 30d", param, ctx)
        message = Timestamp()
        try:
            message.FromDatetime(instant)
        except (ValueError, OverflowError):
            self.fail(f"{value!r} is beyond the times that can be told", param, ctx)
        return message


class LabelType(click.ParamType[tuple[str, str]]):
    """A label: NAME=VALUE."""

    name = "NAME=VALUE"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        """Return the name and the value."""
        name, equals, text = str(value).partition("=")
        if not equals:
            self.fail(f"{value!r} is not NAME=VALUE", param, ctx)
        return name, text


LENGTH = LengthType()
TIME = TimeType()
LABEL = LabelType()
