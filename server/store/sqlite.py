"""SQLite: everything that is peculiar to it stands here."""

from __future__ import annotations

import mmap
import os
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import peewee

from server.store.contract import News, StoreUnavailable, seconds_left
from server.store.fields import microseconds

# How long a writer waits for the lock before it gives up.
BUSY_SECONDS = 5.0

_PRAGMAS = (
    # A commit that has returned survives a loss of power.
    ("synchronous", "full"),
    ("foreign_keys", 1),
)
_RETRY_SECONDS = 0.02
# The head of the index of the write-ahead log (`-shm`). Every commit counts it up and sums it anew before it returns.
_HEAD_BYTES = 48
# For how long a file that was where it was is taken to be there still, by whoever decides from memory.
OTHER_FILE_SECONDS = 0.02


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
        self._name = str(path)
        self._busy_seconds = busy_seconds
        self._read_only = read_only
        self.database = peewee.SqliteDatabase(
            looking_uri(path) if read_only else uri(path, "rw"),
            pragmas=(*_PRAGMAS, ("query_only", 1)) if read_only else _PRAGMAS,
            timeout=busy_seconds,
            uri=True,
        )
        self._identity: tuple[int, int] | None = None
        self._same_file_until = float("-inf")
        self._head: _Head | None = None
        self._unwatch: Callable[[], object] = lambda: None
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

    def noting(self, *, durable: bool) -> AbstractContextManager[peewee.Database]:  # noqa: ARG002 - all are
        """Open a transaction, for which there is one lock here."""
        return self.writing()

    def announce(self, news: News) -> None:
        """Do nothing: `version` tells everybody at once."""

    def commit(self) -> None:
        """Commit what `writing` has opened; one that fails has not been made."""
        self.database.commit()

    def version(self) -> bytes:
        """Return a value that every commit changes, by whatever connection or process (CONSISTENCY rule 10).

        It is what SQLite itself compares to find out whether its cache is still good, and what moves
        `PRAGMA data_version`. Asking by that pragma takes forty times as long, and gives up the interpreter's lock,
        which under load costs far more. So does looking whether the file is still where it was, which is why that is
        done every `OTHER_FILE_SECONDS`: in less no process starts on another file, and changes it. Raises
        StoreUnavailable.
        """
        now = time.monotonic()
        if now >= self._same_file_until:
            self._refuse_other_file()
            self._same_file_until = now + OTHER_FILE_SECONDS
        head = self._head
        if head is None:
            head = self._watch()
        return head.shared[:_HEAD_BYTES]

    def await_news(self, seconds: float) -> News:
        """Wait for the time to pass: who can ask for the version needs no news."""
        time.sleep(seconds)
        return News(0)

    def now(self) -> datetime:
        """Return the time of this machine, which all processes on a file share."""
        return datetime.now(UTC)

    def now_as_text(self) -> str:
        """Return that time as a number."""
        return str(microseconds(self.now()))

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
                # The next connection minds them again, and the last one to go folds the log into the file.
                self.database.close()

    def close(self) -> None:
        """Close the calling thread's connection, and stop watching; those of other threads close as the threads end."""
        self.database.close()
        self._head = None
        self._unwatch()

    def _refuse_other_file(self) -> tuple[int, int]:
        """Make sure that the file is still where it was, and return which one it is."""
        try:
            found = os.stat(self._name)  # noqa: PTH116 - a third of the time, and this is done for each decision
        except OSError as error:
            raise StoreUnavailable(f"{self._path}: {error.strerror}") from error
        identity = (found.st_dev, found.st_ino)
        if self._identity is not None and self._identity != identity:
            raise StoreUnavailable(f"{self._path} was replaced by another file: stop this process, then start it again")
        return identity

    def _watch(self) -> _Head:
        """Map the head of the log's index, of the file that this engine is about."""
        with self.reading() as database:
            # A snapshot is open, so there is an index, and the file is the one that it was when this engine began.
            database.execute_sql("SELECT 1 FROM sqlite_master").fetchone()
            with self._failures_named():
                head, self._unwatch = _watched(self._path, self)
        self._head = head
        return head

    def _connect(self) -> None:
        """Make sure that this thread has a connection, and that the file is still where it was."""
        identity = self._refuse_other_file()
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


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of an index in shared memory, and the connection for whose sake the index stays where it is."""

    shared: mmap.mmap
    file: int
    connection: sqlite3.Connection

    def close(self) -> None:
        """Let go. The connection is the first to go: a file's locks are lost as soon as anything of it is closed."""
        self.connection.close()
        self.shared.close()
        os.close(self.file)


# By device and inode of the index, each with those who use it. Closing any descriptor of a file drops all the locks
# that the process has on it, and SQLite has some on this one while it is in use: so a process has one descriptor,
# closed with the last engine.
_HEADS: dict[tuple[int, int], tuple[_Head, set[int]]] = {}
_HEADS_LOCK = threading.Lock()


def _watched(path: Path, engine: SqliteEngine) -> tuple[_Head, Callable[[], object]]:
    """Return the head of the index of an engine's file, and what is to be called when it is of no more use."""
    index = beside(path, "-shm")
    try:
        found = index.stat()
        identity = (found.st_dev, found.st_ino)
        with _HEADS_LOCK:
            if identity not in _HEADS:
                _HEADS[identity] = _opened(path, index), set()
            head, users = _HEADS[identity]
            users.add(id(engine))
    except OSError as error:
        raise StoreUnavailable(f"{index}: {error.strerror}") from error
    return head, weakref.finalize(engine, _released, identity, id(engine))


def _opened(path: Path, index: Path) -> _Head:
    # It never writes, but may: the last connection to close folds the log into the file.
    connection = sqlite3.connect(uri(path, "rw"), uri=True, check_same_thread=False, isolation_level=None)
    # Having read once, it keeps the log and its index from being removed by whoever is the last to close them.
    with closing(connection.execute("SELECT 1 FROM sqlite_master")) as cursor:
        cursor.fetchall()
    file = os.open(index, os.O_RDONLY | os.O_CLOEXEC)
    return _Head(mmap.mmap(file, _HEAD_BYTES, prot=mmap.PROT_READ), file, connection)


def _released(identity: tuple[int, int], user: int) -> None:
    with _HEADS_LOCK:
        # Two threads that began to watch at once have one place among the users, and let go of it twice.
        head, users = _HEADS.get(identity, (None, set()))
        users.discard(user)
        if head is not None and not users:
            del _HEADS[identity]
            head.close()
