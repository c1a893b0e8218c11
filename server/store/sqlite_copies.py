"""Copies of a SQLite store: taken while it is in use, checked, and put in its place while nobody uses it.

Whatever fails, and wherever it is cut off, no file under its final name is half written, and none is lost.
"""

from __future__ import annotations

import errno
import fcntl
import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from server.store.fields import InstantField
from server.store.sqlite import beside, looking_uri, uri
from server.store.sqlite_condition import OUR_TABLES

# How long another process may keep a store to itself before a copy is given up.
BUSY_SECONDS = 30.0

_LOGS = ("-wal", "-shm", "-journal")
# The byte of the log's index that each connection keeps locked for as long as it lasts (SQLite's src/os_unix.c).
_INDEX_USERS = 128
_IN_USE = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})


class CopyRefused(Exception):  # noqa: N818 - it names a state
    """A copy that was not taken, or not put in its place, and why. What was there before still is."""


@dataclass(frozen=True, slots=True)
class Contents:
    """How far a store's history goes."""

    revision: int
    newest_event_time: datetime | None


@dataclass(frozen=True, slots=True)
class Undone:
    """What ended in one store and has not ended in an older copy of it: ids of keys and of callers.

    `gone_end_users` are those of whom the store holds nothing any more, as `workspace_id reference_id`.
    """

    revoked_keys: tuple[str, ...]
    suspended_keys: tuple[str, ...]
    rotated_keys: tuple[str, ...]
    revoked_callers: tuple[str, ...]
    rotated_callers: tuple[str, ...]
    gone_end_users: tuple[str, ...]


@contextmanager
def copied(source: Path, final: Path) -> Iterator[Path]:
    """Copy a store, which may be in use, to a temporary file beside its final place, and check the copy.

    The copy is one snapshot, in one file, for its owner alone, and on the disk. It is removed when the block ends:
    `publish` or `replace` keep it. Raises CopyRefused: where the source is damaged or no store, and for whatever fails
    inside the block.
    """
    copy = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
    try:
        if not source.is_file():
            raise CopyRefused(f"{source} is no file")
        with _failures_named(f"{source} cannot be copied to {final}"):
            os.close(os.open(copy, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
            _fill(source, copy)
            _sync(copy)
        yield copy
    finally:
        for file in (copy, *(beside(copy, suffix) for suffix in _LOGS)):
            with suppress(OSError):
                file.unlink(missing_ok=True)


def contents(path: Path) -> Contents:
    """Return how far the history of a store that nobody uses goes. Raises CopyRefused."""
    with _failures_named(f"{path} cannot be read"), closing(_looking(path)) as connection:
        (revision,) = connection.execute("SELECT number FROM revision").fetchone()
        newest = connection.execute("SELECT event_time FROM event ORDER BY event_id DESC LIMIT 1").fetchone()
        return Contents(revision, None if newest is None else InstantField().python_value(newest[0]))


def publish(copy: Path, final: Path) -> None:
    """Give a copy its final name, which nothing has. Raises CopyRefused."""
    with _failures_named(f"{final} cannot be made"):
        try:
            os.link(copy, final)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            # A file system without links. Whatever takes the name between these two lines is lost.
            if os.path.lexists(final):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST)) from None
            copy.rename(final)
        _sync(final.parent)


def replace(copy: Path, final: Path, aside: Path) -> None:
    """Put a copy in the place of a store that is `held`, which is kept under another name. Raises CopyRefused.

    At every instant the final name is that of the one or of the other, whole.
    """
    with _failures_named(f"{final} cannot be replaced"):
        owner = final.stat()
        if (owner.st_uid, owner.st_gid) != (os.geteuid(), os.getegid()):
            os.chown(copy, owner.st_uid, owner.st_gid)
        os.link(final, aside)
        try:
            set_logs_aside(final, aside)
            copy.rename(final)
        except BaseException:
            aside.unlink()
            raise
        _sync(final.parent)


def set_logs_aside(path: Path, aside: Path) -> tuple[Path, ...]:
    """Rename what SQLite left beside a store, so that it is not read into another one in its place; return the names.

    Raises CopyRefused where a process still uses it.
    """
    with _failures_named(f"what lies beside {path} cannot be renamed"):
        if _log_in_use(beside(path, "-shm")):
            raise _in_use(path)
        renamed = []
        for suffix in _LOGS:
            if beside(path, suffix).exists():
                beside(path, suffix).rename(beside(aside, suffix))
                renamed.append(beside(aside, suffix))
        return tuple(renamed)


@contextmanager
def held(path: Path) -> Iterator[sqlite3.Connection | None]:
    """Keep every other process out of a store until the block ends, with its log folded in.

    Gives None where it is damaged; then only `replace` looks whether anybody uses it. Raises CopyRefused where any
    process has it open. One that comes meanwhile, and waits, finds afterwards that the
    file was moved, and SQLite lets it write nothing.
    """
    connection = None
    try:
        with _failures_named(f"{path} cannot be taken"):
            connection = sqlite3.connect(uri(path, "rw"), uri=True, timeout=1)
            connection.isolation_level = None
            try:
                _take(connection, path)
            except sqlite3.DatabaseError as error:
                if _code(error) not in _DAMAGED:
                    raise
                connection.close()
                connection = None
        yield connection
    finally:
        if connection is not None:
            connection.close()


def undone(before: sqlite3.Connection, copy: Path) -> Undone | None:
    """Compare the store that is `held` with an older copy of it; None where one of them cannot be read."""
    try:
        with closing(_looking(copy)) as after:
            live = _ids(after, "SELECT key_id FROM api_key WHERE state = 'active'")
            callers = _ids(after, "SELECT caller_id FROM caller WHERE revoke_time IS NULL")
            generations = "SELECT key_id || ' ' || number FROM key_generation WHERE retire_time IS {} NULL"
            rotated = _ids(after, generations.format("")) & _ids(before, generations.format("NOT"))
            secrets = (
                "SELECT caller_id || ' ' || number FROM caller_generation JOIN caller USING (key_id) "
                "WHERE retire_time IS {} NULL"
            )
            renewed = _ids(after, secrets.format("")) & _ids(before, secrets.format("NOT"))
            end_users = "SELECT workspace_id || ' ' || reference_id FROM {} WHERE reference_id IS NOT NULL"
            there, here = (
                set().union(*(_ids(store, end_users.format(table)) for table in ("api_key", "device", "connect_link")))
                for store in (before, after)
            )
            return Undone(
                revoked_keys=tuple(sorted(live & _ids(before, "SELECT key_id FROM api_key WHERE state = 'revoked'"))),
                suspended_keys=tuple(
                    sorted(live & _ids(before, "SELECT key_id FROM api_key WHERE state = 'suspended'"))
                ),
                rotated_keys=tuple(sorted(live & {one.partition(" ")[0] for one in rotated})),
                rotated_callers=tuple(sorted(callers & {one.partition(" ")[0] for one in renewed})),
                gone_end_users=tuple(sorted(here - there)),
                revoked_callers=tuple(
                    sorted(callers & _ids(before, "SELECT caller_id FROM caller WHERE revoke_time IS NOT NULL"))
                ),
            )
    except sqlite3.Error:
        return None


def _ids(connection: sqlite3.Connection, query: str) -> set[str]:
    return {row[0] for row in connection.execute(query)}


def _fill(source: Path, copy: Path) -> None:
    """Copy in one step, so that writers neither wait nor make it begin again, and check what came of it."""
    deadline = time.monotonic() + BUSY_SECONDS

    def give_up(status: int, _remaining: int, _total: int) -> None:
        if status in _IN_USE and time.monotonic() > deadline:
            raise CopyRefused(f"{source} is kept busy by another process")

    with closing(_looking(source)) as origin, closing(sqlite3.connect(copy, isolation_level=None)) as target:
        # The file is synced as a whole, and thrown away where anything fails.
        target.execute("PRAGMA synchronous = OFF")
        origin.backup(target, progress=give_up)
        # One file, with nothing beside it.
        target.execute("PRAGMA journal_mode = DELETE")
        tables = {row[0] for row in target.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if not tables >= OUR_TABLES:
            raise CopyRefused(f"{source} is not a database of Texture Auth")
        problems = [str(row[0]) for row in target.execute("PRAGMA integrity_check(1)")]
        if problems == ["ok"]:
            problems = [f"a row of {row[0]} refers to nothing" for row in target.execute("PRAGMA foreign_key_check")]
        if problems and problems != ["ok"]:
            raise CopyRefused(f"{source} is damaged: {problems[0]}")


def _looking(path: Path) -> sqlite3.Connection:
    """Open a store that stays as it is."""
    connection = sqlite3.connect(looking_uri(path), uri=True, timeout=BUSY_SECONDS)
    connection.execute("PRAGMA query_only = 1")
    return connection


def _take(connection: sqlite3.Connection, path: Path) -> None:
    try:
        # Folds the log in and turns it off, which only the one connection that there is can do.
        connection.execute("PRAGMA journal_mode = DELETE")
        connection.execute("BEGIN EXCLUSIVE")
        if connection.execute("PRAGMA journal_mode").fetchone() != ("delete",):
            raise _in_use(path)
    except sqlite3.OperationalError as error:
        if _code(error) in _IN_USE:
            raise _in_use(path) from None
        raise


def _in_use(path: Path) -> CopyRefused:
    return CopyRefused(f"{path} is in use by a process: stop every server and whatever else has it open")


def _log_in_use(index: Path) -> bool:
    """Tell whether another process has a log open, by the index of it."""
    if not index.exists():
        return False
    with index.open("rb+") as file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _INDEX_USERS)
        except (BlockingIOError, PermissionError):
            return True
        return False


def _code(error: sqlite3.Error) -> int:
    """Return the primary code of an error: the low byte of the extended one."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF


def _sync(path: Path) -> None:
    """Make sure that a file, or the names in a folder, survive a loss of power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _failures_named(what: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise CopyRefused(f"{what}: {error.strerror}") from error
    except sqlite3.Error as error:
        raise CopyRefused(f"{what}: {error}") from error
