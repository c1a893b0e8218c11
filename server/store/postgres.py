"""Postgres: everything that is peculiar to it stands here."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from functools import reduce
from operator import or_
from typing import Any, TypeVar

import peewee
import psycopg
from psycopg.abc import PQGen
from psycopg.conninfo import conninfo_to_dict, make_conninfo
from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool, PoolTimeout

from server.store.contract import News, OutcomeUnknown, StoreUnavailable, deadline_within, seconds_left
from server.store.fields import instant

T = TypeVar("T")

# The longest that a transaction waits for a connection, and for the write lock, where its caller would wait longer.
CONNECTION_SECONDS = 2.0
LOCK_SECONDS = 5.0
# What a statement may take where no caller's deadline is nearer.
STATEMENT_SECONDS = 30.0
# How long the server waits for the next statement of a transaction. A process that vanished in the middle of one, with
# its machine or the network, must not keep the write lock until the server's own keepalives find out, hours later; nor
# longer than others wait for it.
IDLE_SECONDS = 4.0
# How long a connection may take to prove that it is alive.
PROOF_SECONDS = 1.0
# How long an answer is waited for where the caller's deadline has passed: enough to end a transaction in good order.
LAST_ANSWER_SECONDS = 0.1
# How much later than the server, which gives up on a statement by itself, this side gives up on the server.
GRACE_SECONDS = 1.0

# What a connection is like where the URL does not say otherwise. The limits of TCP find out about connections that
# nobody waits for, before anybody does.
_CONNECTION = {
    "application_name": "texture-auth",
    "connect_timeout": "2",
    # A standby lags behind: it would still allow what has been revoked.
    "target_session_attrs": "primary",
    "keepalives_idle": "5",
    "keepalives_interval": "2",
    "keepalives_count": "3",
    "tcp_user_timeout": "10000",
}
# On which every commit, and every acknowledgement of one, is announced.
_CHANNEL = "texture_auth"
_NOW = "(extract(epoch FROM clock_timestamp()) * 1000000)::bigint"
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


class _Connection(psycopg.Connection[Any]):
    """A connection for whose answers nobody waits beyond the deadline of the call under way.

    The limits that the server keeps are of no use where the server, or the way to it, has gone silent.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.made = time.monotonic()

    def wait(self, gen: PQGen[T], interval: float = 0.1, timeout: float | None = None) -> T:
        """Wait for an answer. Raises OperationalError, after closing the connection, where it does not come in time."""
        longest = max(LAST_ANSWER_SECONDS, min(seconds_left(), STATEMENT_SECONDS + GRACE_SECONDS))
        try:
            return super().wait(gen, interval, longest if timeout is None else min(timeout, longest))
        except psycopg.OperationalError as error:
            if self.pgconn.transaction_status != TransactionStatus.ACTIVE:
                raise
            # The answer may still come, and must not be taken for that to the next question.
            self.close()
            raise psycopg.OperationalError("the database did not answer in time") from error


class PostgresEngine:
    """Transactions on a Postgres database, over a pool of connections.

    `connections` is how many threads may be in a transaction at once; one more waits, for two seconds at most. The URL
    may name several hosts, of which the primary is used, and any parameter of libpq. Raises StoreUnavailable where
    libpq does not understand it.
    """

    def __init__(self, url: str, connections: int) -> None:
        try:
            given = conninfo_to_dict(url)
            parameters = make_conninfo(url, **{name: _CONNECTION[name] for name in _CONNECTION.keys() - given.keys()})
        except psycopg.ProgrammingError:
            # Its words may quote a password.
            raise StoreUnavailable("its URL is not one that Postgres's own library understands") from None
        self._parameters = parameters
        self._listener: _Connection | None = None
        self.database: Any = _PooledDatabase()
        self._pool: ConnectionPool[_Connection] = ConnectionPool(
            parameters,
            connection_class=_Connection,
            min_size=1,
            max_size=connections,
            # Tries again at once when the next transaction asks, instead of waiting ever longer by itself.
            reconnect_timeout=1.0,
            check=self._check,
            kwargs={"autocommit": True},
            open=False,
        )
        self._opened = threading.Lock()
        self._discarding = threading.Lock()
        self._discarded = -math.inf

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

        Raises StoreUnavailable, also where the lock is not to be had in time, or the server takes no writes.
        """
        with self._transaction("BEGIN ISOLATION LEVEL READ COMMITTED") as connection:
            try:
                # Whoever comes later waits here, and then sees all that was committed before.
                connection.execute('SELECT 1 FROM "revision" WHERE "row" = 1 FOR UPDATE')
            except psycopg.errors.ReadOnlySqlTransaction:
                # Another server may have taken its place, which only a new connection finds.
                self._discard(connection)
                raise
            yield self.database

    @contextmanager
    def noting(self, *, durable: bool) -> Iterator[peewee.Database]:
        """Open a transaction for what is no fact, without the write lock. Raises StoreUnavailable."""
        lasting = "" if durable else ";SET LOCAL synchronous_commit = off"
        with self._transaction(f"BEGIN ISOLATION LEVEL READ COMMITTED{lasting}"):
            yield self.database

    def announce(self, news: News) -> None:
        """Have `commit` notify the processes that listen (CONSISTENCY rule 9)."""
        # With the commit, since each statement is a way there and back.
        self.database.checked_out.announcement = f"NOTIFY {_CHANNEL}, '{news.name}';"

    def version(self) -> None:
        """Return nothing: to ask a server takes as long as to read from it."""

    def await_news(self, seconds: float) -> News:
        """Wait for a notification, on a connection of its own. Raises StoreUnavailable."""
        try:
            if self._listener is None:
                self._listener = self._listening()
            payloads = {notify.payload for notify in self._listener.notifies(timeout=seconds, stop_after=1)}
        except psycopg.Error as error:
            if self._listener is not None:
                self._listener.close()
                self._listener = None
            raise StoreUnavailable(_first_line(error)) from error
        return reduce(or_, (news for news in News if news.name in payloads), News(0))

    def now(self) -> datetime:
        """Return the time by the server's clock, at this instant of the transaction."""
        ((microseconds,),) = self.database.execute_sql(f"SELECT {_NOW}").fetchall()
        return instant(microseconds)

    def now_as_text(self) -> str:
        """Return the expression for that time."""
        return _NOW

    def commit(self) -> None:
        """Commit what `writing` or `noting` has opened. Raises OutcomeUnknown where the answer is lost on its way."""
        try:
            self.database.checked_out.connection.execute(f"{self.database.checked_out.announcement}COMMIT")
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            raise OutcomeUnknown(_first_line(error)) from error

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
        if self._listener is not None:
            self._listener.close()
            self._listener = None

    def _listening(self) -> _Connection:
        """Return a new connection that is told of announcements."""
        with deadline_within(CONNECTION_SECONDS):
            connection = _Connection.connect(self._parameters, autocommit=True)
            connection.execute(f"LISTEN {_CHANNEL}")
        return connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[_Connection]:
        """Run a block in a transaction, which ends with it. What the block has not committed is rolled back."""
        if not self.database.is_closed():
            raise RuntimeError("a thread has one transaction at a time")
        limits = (
            f"SET LOCAL statement_timeout = {_milliseconds(STATEMENT_SECONDS)};"
            f"SET LOCAL lock_timeout = {_milliseconds(LOCK_SECONDS)};"
            f"SET LOCAL idle_in_transaction_session_timeout = {round(IDLE_SECONDS * 1000)}"
        )
        try:
            self._open()
            with ExitStack() as stack:
                with deadline_within(CONNECTION_SECONDS):
                    connection = stack.enter_context(self._pool.connection(timeout=seconds_left()))
                self.database.checked_out.connection = connection
                self.database.checked_out.announcement = ""
                try:
                    self.database.connect()
                    connection.execute(f"{begin};{limits}")
                    yield connection
                finally:
                    self.database.close()
                    if not connection.closed and connection.info.transaction_status:
                        connection.rollback()
        except (peewee.IntegrityError, peewee.ProgrammingError) as error:
            # A fault of ours, not of the database. Its first line names the constraint; the rest quotes the row.
            raise type(error)(_first_line(error)) from None
        except PoolTimeout as error:
            raise StoreUnavailable("no connection to the database") from error
        except (peewee.DatabaseError, peewee.InterfaceError, psycopg.Error) as error:
            raise StoreUnavailable(_first_line(error)) from error

    def _check(self, connection: _Connection) -> None:
        """Make sure that a connection which lay in the pool still leads to the database. Raises psycopg.Error."""
        try:
            with deadline_within(PROOF_SECONDS):
                connection.execute("")
        except psycopg.Error:
            self._discard(connection)
            raise

    def _discard(self, connection: _Connection) -> None:
        """Close a connection, and with it the others of its time, which have most likely met with the same fate.

        Otherwise each of them would have to be tried, and the pool waits longer after every one that fails.
        """
        connection.close()
        with self._discarding:
            if connection.made > self._discarded:
                self._discarded = time.monotonic()
                self._pool.drain()

    def _open(self) -> None:
        """Start the pool's threads when they are first needed, after any fork."""
        if self._pool.closed:
            with self._opened:
                self._pool.open()


def _first_line(error: Exception) -> str:
    """Return what an error says, or is: of several lines the first, since the others may quote a statement or a row."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _milliseconds(longest: float) -> int:
    """Return how long something may take, in view of the caller's deadline: at least a millisecond."""
    return max(1, round(min(longest, seconds_left() * 0.95) * 1000))
