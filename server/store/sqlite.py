"""SQLite: everything that is peculiar to it stands here."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import peewee

from server.store.contract import StoreUnavailable

# How long a writer waits for the lock before it gives up.
BUSY_SECONDS = 5.0

_PRAGMAS = (
    ("journal_mode", "wal"),
    # A commit that has returned survives a loss of power.
    ("synchronous", "full"),
    ("foreign_keys", 1),
)


class SqliteEngine:
    """Connections to one SQLite file, one for each thread, and its transactions.

    The file is never made by opening it: only `create` does that, so that a file that was moved away is noticed, and
    not replaced by an empty one.
    """

    def __init__(self, path: Path, busy_seconds: float = BUSY_SECONDS) -> None:
        self._path = path
        self._busy_seconds = busy_seconds
        self.database = peewee.SqliteDatabase(
            f"file:{quote(str(path.absolute()))}?mode=rw", pragmas=_PRAGMAS, timeout=busy_seconds, uri=True
        )
        self._local = threading.local()
        # SQLite's own lock is polled for, and is not fair. Within the process, writers queue here first.
        self._writers = threading.Lock()

    def create(self) -> None:
        """Make an empty file, readable by its owner alone, where there is none. Raises StoreUnavailable."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            os.close(os.open(self._path, os.O_CREAT | os.O_RDWR, 0o600))
        except OSError as error:
            raise StoreUnavailable(f"cannot create {self._path}: {error.strerror}") from error

    @contextmanager
    def reading(self) -> Iterator[peewee.Database]:
        """Open a snapshot: every statement of the block sees the same state. Raises StoreUnavailable."""
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
        if not self._writers.acquire(timeout=self._busy_seconds):
            raise StoreUnavailable("other writers keep the database busy")
        try:
            with self._failures_named():
                self._connect()
                self.database.begin("IMMEDIATE")
                try:
                    yield self.database
                finally:
                    self._end()
        finally:
            self._writers.release()

    @contextmanager
    def migrating(self) -> Iterator[peewee.Database]:
        """Keep everybody else out, and commit when the block ends. Raises StoreUnavailable."""
        with self._failures_named():
            self._connect()
            with self.database.atomic("EXCLUSIVE"):
                yield self.database

    def close(self) -> None:
        """Close the calling thread's connection; those of other threads close as the threads end."""
        self.database.close()

    def _connect(self) -> None:
        """Make sure that this thread's connection is to the file that is at the path now."""
        try:
            found = self._path.stat()
        except OSError as error:
            self.database.close()
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error
        identity = (found.st_dev, found.st_ino)
        if not self.database.is_closed() and getattr(self._local, "identity", None) != identity:
            self.database.close()
        if self.database.connect(reuse_if_open=True):
            self._local.identity = identity

    def _end(self) -> None:
        """Roll back what the block has not committed."""
        if self.database.connection().in_transaction:
            self.database.rollback()

    @contextmanager
    def _failures_named(self) -> Iterator[None]:
        try:
            yield
        except (peewee.IntegrityError, peewee.ProgrammingError):
            raise  # a fault of ours, not of the database
        except peewee.DatabaseError as error:
            # The driver's words name files and conditions, never values.
            raise StoreUnavailable(str(error)) from error
