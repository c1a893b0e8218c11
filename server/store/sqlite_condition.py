"""How a SQLite store is: what an operator would want to know of its file."""

from __future__ import annotations

import shutil
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from server.store.sqlite import SqliteEngine

# Some of the tables that every release has had.
OUR_TABLES = frozenset({"schema_migration", "revision", "api_key", "event"})
_PROBLEMS_TOLD = 3


@dataclass(frozen=True, slots=True)
class SqliteCondition:
    """What was found. Sizes are in bytes; `foreign` is a database of another program, which an empty one is not."""

    version: str
    size: int
    free: int
    foreign: bool
    written_ahead: bool
    problems: tuple[str, ...]
    open_to_others: bool


def examine(engine: SqliteEngine, path: Path) -> SqliteCondition:
    """Look at a store, through an engine on its file. Raises StoreUnavailable."""
    with engine.reading() as database:
        tables = frozenset(database.get_tables())
        checked = [row[0] for row in database.execute_sql(f"PRAGMA quick_check({_PROBLEMS_TOLD})").fetchall()]
        return SqliteCondition(
            version=sqlite3.sqlite_version,
            size=path.stat().st_size,
            free=shutil.disk_usage(path.parent).free,
            foreign=bool(tables) and not tables >= OUR_TABLES,
            written_ahead=engine.database.pragma("journal_mode") == "wal",
            problems=() if checked == ["ok"] else tuple(checked),
            open_to_others=open_to_others(path),
        )


def open_to_others(path: Path) -> bool:
    """Tell whether anybody but its owner may read a file, or write to it."""
    return bool(path.stat().st_mode & 0o077)
