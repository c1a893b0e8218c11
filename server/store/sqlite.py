"""SQLite: everything that is peculiar to it stands here."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import peewee

from server.store.contract import StoreUnavailable, seconds_left

# How long a writer waits for the lock before it gives up.
BUSY_SECONDS = 5.0

_PRAGMAS = (
    # A commit that has returned survives a loss of power.
    ("synchronous", "full"),
    ("foreign_keys", 1),
)
_RETRY_SECONDS = 0.02


def looking_uri(path: Path) -> str:
    """Return the URI to open a file by that is to be looked at, and left as it is.

    Where there is no log, a connection that may not write would leave an empty one behind; one that may, but does not,
    tidies up. Where there is one, a connection that may write could be the last to go, and fold it in.
    """
    return uri(path, "ro" if beside(path, "-wal").exists() else "rw")


def beside(path: Path, suffix: str) -> Path:
    """Return the file that SQLite keeps beside a database: `-wal` its log, `-shm` that log's index, `-journal`."""
    return path.with_name(path.name + suffix)


def uri(path: Path, mode: str) -> str:
    """Return the URI to open a file by, which does not make it: `rw`, or `ro` to read only."""
    return f"file:{quote(str(path.absolute()))}?mode={mode}"


class SqliteEngine:
    """Connections to one SQLite file, one for each thread, and its transactions.

    The file is never made by opening it: only `create` does that, so that a file that was moved away is noticed, and
    not replaced by an empty one. A file that took the place of the one first opened is never used: the old one's log
    may lie beside it, and SQLite would read that log into it.

    A `read_only` engine changes nothing, and leaves a store that it did not find in write-ahead mode as it is.
    """

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS, *, read_only: bool = False) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self._read_only = read_only
        self.database = peewee.SqliteDatabase(
            looking_uri(path) if read_only else uri(path, "rw"),
            pragmas=(*_PRAGMAS, ("query_only", 1)) if read_only else _PRAGMAS,
            timeout=busy_seconds,
            uri=True,
        )
        self._identity: tuple[int, int] | None = None
        # SQLite's own lock is polled for, and is not fair. Within the process, writers queue here first.
        self._writers = threading.Lock()

    def create(self) -> None:
        """Make an empty file, readable by its owner alone, where there is none. Raises StoreUnavailable.

        A file that is there is not so much as opened: closing it would drop the locks that this process has on it.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileExistsError):
                os.close(os.open(self._path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreUnavailable(f"cannot create {self._path}: {error.strerror}") from error

    @contextmanager
    def reading(self) -> Iterator[peewee.Database]:
        """Open a snapshot: every statement of the block sees the same state. Raises StoreUnavailable."""
        self._refuse_nesting()
        with self._failures_named():
            self._connect()
            self.database.begin()
            try:
                # The snapshot is taken by the first read, not by BEGIN.
                yield self.database
            finally:
                self._end()

    @contextmanager
    def writing(self) -> Iterator[peewee.Database]:
        """Take the write lock, and open a transaction that the caller commits; it is rolled back otherwise.

        Raises StoreUnavailable, also where the lock is not to be had in time.
        """
        self._refuse_nesting()
        patience = min(self._busy_seconds, seconds_left())
        waits_until = time.monotonic() + patience
        if not self._writers.acquire(timeout=patience):
            raise StoreUnavailable("other writers keep the database busy")
        try:
            with self._failures_named():
                self._connect()
                left = max(0.0, waits_until - time.monotonic())
                self.database.execute_sql(f"PRAGMA busy_timeout = {round(left * 1000)}")
                try:
                    self.database.begin("IMMEDIATE")
                finally:
                    self.database.execute_sql(f"PRAGMA busy_timeout = {round(self._busy_seconds * 1000)}")
                try:
                    yield self.database
                finally:
                    self._end()
        finally:
            self._writers.release()

    def commit(self) -> None:
        """Commit what `writing` has opened; one that fails has not been made."""
        self.database.commit()

    @contextmanager
    def migrating(self) -> Iterator[peewee.Database]:
        """Keep other writers out, and commit when the block ends. Raises StoreUnavailable.

        Foreign keys are not minded inside, so that a table that others refer to can be rebuilt, but before the commit.
        """
        with self._failures_named():
            self._connect()
            self.database.pragma("foreign_keys", 0)
            try:
                with self.database.atomic("EXCLUSIVE"):
                    yield self.database
                    broken = self.database.execute_sql("PRAGMA foreign_key_check").fetchall()
                    if broken:
                        raise StoreUnavailable(f"the migration would leave {len(broken)} rows that refer to nothing")
            finally:
                self.database.pragma("foreign_keys", 1)

    def close(self) -> None:
        """Close the calling thread's connection; those of other threads close as the threads end."""
        self.database.close()

    def _connect(self) -> None:
        """Make sure that this thread has a connection, and that the file is still where it was."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error
        identity = (found.st_dev, found.st_ino)
        if self._identity not in (None, identity):
            raise StoreUnavailable(f"{self._path} was replaced by another file: stop this process, then start it again")
        if self.database.connect(reuse_if_open=True):
            try:
                if not self._read_only and self.database.pragma("journal_mode") != "wal":
                    self._write_ahead()
            except BaseException:
                self.database.close()
                raise
        self._identity = identity

    def _refuse_nesting(self) -> None:
        if not self.database.is_closed() and self.database.connection().in_transaction:
            raise RuntimeError("a thread has one transaction at a time")

    def _write_ahead(self) -> None:
        """Turn on the write-ahead log, which stays on. The busy timeout does not apply to this, so wait here."""
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                self.database.pragma("journal_mode", "wal")
            except peewee.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(_RETRY_SECONDS)
            else:
                return

    def _end(self) -> None:
        """Roll back what the block has not committed."""
        if self.database.connection().in_transaction:
            self.database.rollback()

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (peewee.IntegrityError, peewee.ProgrammingError, sqlite3.IntegrityError, sqlite3.ProgrammingError):
            raise  # a fault of ours, not of the database
        except (peewee.DatabaseError, sqlite3.DatabaseError) as error:
            # The driver's words name files and conditions, never values.
            raise StoreUnavailable(str(error)) from error
