"""Statements that are asked for often, as text that is made once.

Peewee takes longer to put a statement together than the database to carry it out, and much of what this service does
is a handful of them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any, TypeVar

import peewee

T = TypeVar("T")

# Rows that one INSERT carries: the narrowest limit of the databases is on the number of values in a statement.
ROWS_A_STATEMENT = 500

Row = dict[str, Any]
Convert = Callable[[Any], Any]


@dataclass(frozen=True)
class _Shape:
    """A table as statements name it. `read` and `written` convert those columns that are not kept as they are."""

    name: str
    columns: tuple[str, ...]
    read: tuple[tuple[int, Convert], ...]
    written: Mapping[str, Convert]

    def row(self, values: Sequence[Any]) -> Row:
        made = list(values)
        for place, convert in self.read:
            made[place] = convert(made[place])
        return dict(zip(self.columns, made, strict=True))


@cache
def _shape(table: type[peewee.Model]) -> _Shape:
    meta: Any = table._meta  # noqa: SLF001 - Peewee's own way to a table
    fields: Sequence[peewee.Field] = meta.sorted_fields
    own = [field for field in fields if type(field).python_value is not peewee.Field.python_value]
    return _Shape(
        name=meta.table_name,
        columns=tuple(field.name for field in fields),
        read=tuple((place, field.python_value) for place, field in enumerate(fields) if field in own),
        written={field.name: field.db_value for field in own},
    )


def portions(many: Sequence[T]) -> Iterator[Sequence[T]]:
    """Return as many of them at a time as one statement carries."""
    for start in range(0, len(many), ROWS_A_STATEMENT):
        yield many[start : start + ROWS_A_STATEMENT]


def storable(ids: Collection[str]) -> list[str]:
    """Return the ids that a row could have. Postgres has no NUL in a text, and refuses to be asked for one."""
    return [one for one in ids if "\0" not in one]


def select(
    database: Any, table: type[peewee.Model], column: str, values: Sequence[Any], *, order: str | None = None
) -> list[Row]:
    """Return the rows whose column has one of these values, in no order unless one is asked for."""
    if not values:
        return []
    shape = _shape(table)
    text = _select(table, column, len(values), database.param, order)
    return [shape.row(found) for found in database.execute_sql(text, list(values)).fetchall()]


def insert(
    database: Any,
    table: type[peewee.Model],
    new: Sequence[Row],
    *,
    conflict: tuple[str, ...] = (),
    preserve: tuple[str, ...] = (),
) -> None:
    """Insert rows, all with the same columns; those that are there by those of `conflict` take over `preserve`."""
    text = _insert(table, tuple(new[0]), len(new), database.param, conflict, preserve)
    database.execute_sql(text, _values(table, new))


def update(database: Any, table: type[peewee.Model], key: str, row: Row, *, where: Row | None = None) -> int:
    """Store all columns of a row that is there by its key, and only `where` others are so; return how many it was."""
    where = where or {}
    names = tuple(name for name in row if name != key)
    values = [{name: row[name] for name in names}, {key: row[key], **where}]
    text = _update(table, names, (key, *where), database.param)
    count: int = database.execute_sql(text, _values(table, values)).rowcount
    return count


def delete(database: Any, table: type[peewee.Model], column: str, values: Sequence[Any]) -> None:
    """Delete the rows whose column has one of these values."""
    if values:
        text = f'DELETE FROM "{_shape(table).name}" WHERE {_is_one_of(column, len(values), database.param)}'  # noqa: S608 - no values
        database.execute_sql(text, list(values))


def _values(table: type[peewee.Model], new: Sequence[Row]) -> list[Any]:
    written = _shape(table).written
    return [written[name](value) if name in written else value for row in new for name, value in row.items()]


def _is_one_of(column: str, count: int, place: str) -> str:
    return f'"{column}" IN ({", ".join([place] * count)})'


@lru_cache(maxsize=1024)
def _select(table: type[peewee.Model], column: str, count: int, place: str, order: str | None) -> str:
    shape = _shape(table)
    columns = ", ".join(f'"{name}"' for name in shape.columns)
    ordered = "" if order is None else f' ORDER BY "{order}"'
    return f'SELECT {columns} FROM "{shape.name}" WHERE {_is_one_of(column, count, place)}{ordered}'  # noqa: S608 - no values


@lru_cache(maxsize=1024)
def _insert(
    table: type[peewee.Model],
    names: tuple[str, ...],
    count: int,
    place: str,
    conflict: tuple[str, ...],
    preserve: tuple[str, ...],
) -> str:
    one = f"({', '.join([place] * len(names))})"
    text = f'INSERT INTO "{_shape(table).name}" ({_quoted(names)}) VALUES {", ".join([one] * count)}'  # noqa: S608 - no values
    if conflict:
        taken_over = ", ".join(f'"{name}" = EXCLUDED."{name}"' for name in preserve)
        text += f" ON CONFLICT ({_quoted(conflict)}) DO UPDATE SET {taken_over}"
    return text


@lru_cache(maxsize=1024)
def _update(table: type[peewee.Model], names: tuple[str, ...], where: tuple[str, ...], place: str) -> str:
    changed = ", ".join(f'"{name}" = {place}' for name in names)
    chosen = " AND ".join(f'"{name}" = {place}' for name in where)
    return f'UPDATE "{_shape(table).name}" SET {changed} WHERE {chosen}'  # noqa: S608 - no values


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(f'"{name}"' for name in names)
