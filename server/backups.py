"""Backups of a SQLite store: taken while it is served, and put back while it is not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from server.app import StartRefused, refuse_newer
from server.settings import Settings
from server.store import schema, sqlite_copies
from server.store.contract import StoreUnavailable
from server.store.sqlite import SqliteEngine
from server.store.sqlite_copies import CopyRefused, Undone


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that was taken: how far its history goes, and its size in bytes."""

    revision: int
    newest_event_time: datetime | None
    size: int


@dataclass(frozen=True, slots=True)
class Restored:
    """A backup that was put back, and how far its history goes.

    `pending` are migrations that it lacks. `aside` is where the database that it replaced is kept, None where there was
    none; `undone` is what had ended there and has not here, None where that could not be told.
    """

    revision: int
    newest_event_time: datetime | None
    pending: tuple[str, ...]
    aside: Path | None = None
    undone: Undone | None = None


def backup(settings: Settings, file: Path) -> Backup:
    """Copy the store of the settings into a new file. Raises StartRefused, with what to do."""
    source = _sqlite_path(settings, "take a backup with pg_dump, or by point-in-time recovery")
    if os.path.lexists(file):
        raise StartRefused(f"{file} exists, and a backup overwrites nothing: name another file")
    with _refusals(), sqlite_copies.copied(source, file) as copy:
        contents, size = sqlite_copies.contents(copy), copy.stat().st_size
        sqlite_copies.publish(copy, file)
        return Backup(contents.revision, contents.newest_event_time, size)


def restore(settings: Settings, file: Path, now: datetime, *, replacing: bool) -> Restored:
    """Put a backup in the place of the settings' store. Raises StartRefused, with what to do; then nothing has changed.

    A store that is there is replaced only if told so, and kept beside it.
    """
    target = _sqlite_path(settings, "restore with pg_restore, or by point-in-time recovery")
    aside = target.with_name(f"{target.name}.before-{now:%Y%m%dT%H%M%SZ}")
    if os.path.lexists(target) and not replacing:
        raise StartRefused(f"{target} exists: say --replace to keep it aside and put {file} in its place")
    with _refusals(), sqlite_copies.copied(file, target) as copy:
        pending = _pending(copy)
        contents = sqlite_copies.contents(copy)
        if not os.path.lexists(target):
            sqlite_copies.set_logs_aside(target, aside)
            sqlite_copies.publish(copy, target)
            return Restored(contents.revision, contents.newest_event_time, pending)
        with sqlite_copies.held(target) as before:
            undone = None if before is None else sqlite_copies.undone(before, copy)
            sqlite_copies.replace(copy, target, aside)
        return Restored(contents.revision, contents.newest_event_time, pending, aside, undone)


def _pending(copy: Path) -> tuple[str, ...]:
    engine = SqliteEngine(copy, read_only=True)
    with closing(engine):
        state = schema.inspect(engine)
    refuse_newer(state)
    return state.pending


def _sqlite_path(settings: Settings, instead: str) -> Path:
    if settings.sqlite_path is None:
        raise StartRefused(f"{settings.database_name} is not a SQLite file: {instead}; the README says how")
    # Where it really is: what a link leads to is replaced, not the link.
    return settings.sqlite_path.resolve()


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except (CopyRefused, StoreUnavailable) as error:
        raise StartRefused(str(error)) from error
