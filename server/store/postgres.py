"""Postgres: everything that is peculiar to it stands here."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import peewee
import psycopg
from psycopg_pool import ConnectionPool, PoolTimeout

from server.store.contract import StoreUnavailable, seconds_left

# The longest that a transaction waits for a connection, and for the write lock, where its caller would wait longer.
CONNECTION_SECONDS = 2.0
LOCK_SECONDS = 5.0
# What a statement may take where no caller's deadline is nearer.
STATEMENT_SECONDS = 30.0
# Any number will do, so long as every migration of this project takes the same.
_MIGRATION_LOCK = 7_297_004

# The pool tells every failed attempt to connect; the calls that failed for want of it say so themselves.
logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)


class _PooledDatabase(peewee.PostgresqlDatabase):
    """Peewee on whatever connection the engine has taken from the pool for this thread."""

    def __init__(self) -> None:
        self.checked_out = threading.local()
        super().__init__("pooled", prefer_psycopg3=True)

    def _connect(self) -> Any:
        return self.checked_out.connection

    def _close(self, conn: Any) -> None:
        """Leave the connection to the pool."""


class PostgresEngine:
    """Transactions on a Postgres database, over a pool of connections.

    `connections` is how many threads may be in a transaction at once; one more waits, for two seconds at most.
    """

    def __init__(self, url: str, connections: int) -> None:
        self.database: Any = _PooledDatabase()
        self._pool: ConnectionPool[psycopg.Connection[Any]] = ConnectionPool(
            url,
            min_size=1,
            max_size=connections,
            # Tries again at once when the next transaction asks, instead of waiting ever longer by itself.
            reconnect_timeout=1.0,
            check=ConnectionPool.check_connection,
            kwargs={"autocommit": True, "connect_timeout": 2, "application_name": "texture-auth"},
            open=False,
        )
        self._opened = threading.Lock()

    def create(self) -> None:
        """Do nothing: a database is made by those who run Postgres."""

    @contextmanager
    def reading(self) -> Iterator[peewee.Database]:
        """Open a snapshot: every statement of the block sees the same state. Raises StoreUnavailable."""
        with self._transaction("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"):
            yield self.database

    @contextmanager
    def writing(self) -> Iterator[peewee.Database]:
        """Take the write lock, and open a transaction that the caller commits; it is rolled back otherwise.

        Raises StoreUnavailable, also where the lock is not to be had in time.
        """
        with self._transaction("BEGIN ISOLATION LEVEL READ COMMITTED"):
            # Whoever comes later waits here, and then sees all that was committed before.
            self.database.execute_sql('SELECT 1 FROM "revision" WHERE "row" = 1 FOR UPDATE')
            yield self.database

    @contextmanager
    def migrating(self) -> Iterator[peewee.Database]:
        """Keep other migrations out, and commit when the block ends. Raises StoreUnavailable."""
        with self._transaction("BEGIN ISOLATION LEVEL READ COMMITTED"):
            self.database.execute_sql(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})")
            # Peewee believes that no transaction is open, and would begin one of its own for each migration.
            self.database.push_transaction(self.database.transaction())
            try:
                yield self.database
            finally:
                self.database.pop_transaction()
            self.database.commit()

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[None]:
        """Run a block in a transaction, which ends with it. What the block has not committed is rolled back."""
        if not self.database.is_closed():
            raise RuntimeError("a thread has one transaction at a time")
        limits = (
            f"SET LOCAL statement_timeout = {_milliseconds(STATEMENT_SECONDS)};"
            f"SET LOCAL lock_timeout = {_milliseconds(LOCK_SECONDS)}"
        )
        try:
            self._open()
            with self._pool.connection(timeout=min(CONNECTION_SECONDS, seconds_left())) as connection:
                self.database.checked_out.connection = connection
                self.database.connect()
                try:
                    connection.execute(f"{begin};{limits}")
                    yield
                finally:
                    self.database.close()
                    if not connection.closed and connection.info.transaction_status:
                        connection.rollback()
        except (peewee.IntegrityError, peewee.ProgrammingError) as error:
            # A fault of ours, not of the database. Its first line names the constraint; the rest quotes the row.
            raise type(error)(str(error).splitlines()[0]) from None
        except PoolTimeout as error:
            raise StoreUnavailable("no connection to the database") from error
        except (peewee.DatabaseError, peewee.InterfaceError, psycopg.Error) as error:
            # The first line: the rest may quote the statement.
            raise StoreUnavailable(str(error).splitlines()[0] if str(error) else type(error).__name__) from error

    def _open(self) -> None:
        """Start the pool's threads when they are first needed, after any fork."""
        if self._pool.closed:
            with self._opened:
                self._pool.open()


def _milliseconds(longest: float) -> int:
    """Return how long something may take, in view of the caller's deadline: at least a millisecond."""
    return max(1, round(min(longest, seconds_left() * 0.95) * 1000))
