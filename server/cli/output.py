"""What the command line prints: tables for people, JSON for scripts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import UTC
from typing import Any

import click
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from rich.text import Text


def show(message: Message, as_json: bool, secret: str = "", leave_out: Sequence[str] = ()) -> None:
    """Print one message, a line for each field that is set; then the secret of a creation, on a line of its own."""
    if as_json:
        click.echo(_json(message))
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for descriptor, value in message.ListFields():
        if descriptor.name not in leave_out:
            table.add_row(Text(descriptor.name, style="bold"), Text(_text(descriptor, value)))
    _print(table)
    if secret:
        click.echo(f"\nShown once, and kept nowhere:\n{secret}")


def as_json_object(message: Message) -> Any:
    """Return a message as `--json` prints it, to be a part of something larger."""
    return json.loads(_json(message))


def show_reply(reply: Message, message: Message, as_json: bool, secret: str = "") -> None:
    """Print the message inside a reply; as JSON, the whole reply."""
    if as_json:
        click.echo(_json(reply))
    else:
        show(message, as_json=False, secret=secret)


def show_rows(name: str, rows: Sequence[Message], columns: Sequence[str], more: bool, as_json: bool) -> None:
    """Print a list, a row each."""
    if as_json:
        inner = ",\n".join(_json(row) for row in rows)
        click.echo(f'{{"{name}": [{inner}]}}')
    elif not rows:
        click.echo(f"no {name}", err=True)
    else:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for column in columns:
            table.add_column(column, overflow="fold", no_wrap=column.endswith("_id"))
        for row in rows:
            table.add_row(*(Text(_field_text(row, column)) for column in columns))
        _print(table)
    if more:
        click.echo("there are more: raise --limit", err=True)


def _print(table: Table) -> None:
    console = Console()
    if console.is_terminal:
        console.print(table)
        return
    # In a pipe or a file nothing is wrapped, so that ids survive a copy.
    wide = Console(width=10_000)
    with wide.capture() as capture:
        wide.print(table)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def _json(message: Message) -> str:
    return MessageToJson(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _field_text(message: Message, name: str) -> str:
    descriptor: Any = message.DESCRIPTOR.fields_by_name[name]
    return _text(descriptor, getattr(message, name))


def _text(descriptor: FieldDescriptor, value: Any) -> str:
    if isinstance(value, Timestamp):
        return "" if value == Timestamp() else f"{value.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}Z"
    if isinstance(value, Duration):
        return str(value.ToTimedelta())
    if isinstance(value, Message):
        return ", ".join(f"{inner.name}={_text(inner, part)}" for inner, part in value.ListFields())
    if descriptor.message_type is not None and descriptor.message_type.GetOptions().map_entry:
        return ", ".join(f"{name}={text}" for name, text in sorted(value.items()))
    if descriptor.is_repeated:
        return _joined(descriptor, value)
    if descriptor.enum_type is not None:
        return _word(descriptor, value)
    return str(value)


def _joined(descriptor: FieldDescriptor, values: Iterable[Any]) -> str:
    if descriptor.message_type is not None:
        return "; ".join(
            ", ".join(f"{inner.name}={_text(inner, part)}" for inner, part in value.ListFields()) for value in values
        )
    if descriptor.enum_type is not None:
        return ", ".join(_word(descriptor, value) for value in values)
    return ", ".join(str(value) for value in values)


def _word(descriptor: FieldDescriptor, number: int) -> str:
    """Return an enum value without the prefix that its enum gives to all of them."""
    enum = descriptor.enum_type
    if enum is None or number not in enum.values_by_number:
        return str(number)
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    return enum.values_by_number[number].name.removeprefix(prefix)
