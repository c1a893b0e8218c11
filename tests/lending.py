"""Postgres databases that are lent to one test after another, since making one takes longer than most tests do."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeVar

import psycopg
from psycopg import sql

from tests.postgres import Postgres

T = TypeVar("T")

# A lent database is put back as far as its rows go, so nothing else of it may be changed.
_KEEP_THE_SCHEMA = """
    CREATE FUNCTION first.refuse() RETURNS event_trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'this database is lent: a test that alters one takes one of its own'; END $$;
    CREATE EVENT TRIGGER lent ON ddl_command_start EXECUTE FUNCTION first.refuse();
"""
_CUT_OFF = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> %s"
_NEW_EPOCH = """
    UPDATE revision SET epoch = gen_random_uuid();
    UPDATE change SET entity_id = (SELECT epoch FROM revision) WHERE entity_kind = 'epoch';
"""


class Lent(Generic[T]):
    """A database, and what came of preparing it. Put back, it is as it was then, but for the epoch, which is new."""

    def __init__(self, url: str, prepare: Callable[[str], T]) -> None:
        self.url = url
        self.prepared = prepare(url)
        # As a replica it takes rows in any order: what is put back minds its foreign keys.
        self._connection = psycopg.connect(url, autocommit=True, options="-c session_replication_role=replica")
        names = [name for (name,) in self._rows("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        pairs = [(sql.Identifier("public", name), sql.Identifier("first", name)) for name in names]
        copies = [sql.SQL("CREATE TABLE {} AS TABLE {}").format(copy, table) for table, copy in pairs]
        self._run(sql.SQL("CREATE SCHEMA first"), *copies, sql.SQL(_KEEP_THE_SCHEMA))
        sequences = self._rows("SELECT sequencename, last_value FROM pg_sequences WHERE schemaname = 'public'")
        self._putting_back = (
            # Whoever is just committing is waited for.
            sql.SQL("LOCK TABLE {} IN EXCLUSIVE MODE").format(sql.SQL(", ").join(table for table, _ in pairs)),
            *(sql.SQL("DELETE FROM {}").format(table) for table, _ in pairs),
            *(sql.SQL("INSERT INTO {} TABLE {}").format(table, copy) for table, copy in pairs),
            *(
                sql.SQL("SELECT setval({}, {}, {})").format(name, 1 if last is None else last, last is not None)
                for name, last in sequences
            ),
            sql.SQL(_NEW_EPOCH),
        )

    def put_back(self) -> None:
        """Cut off whoever is still connected, and restore every row."""
        self._rows(_CUT_OFF, self._connection.info.backend_pid)
        self._run(*self._putting_back)

    def close(self) -> None:
        """Let go of the connection."""
        self._connection.close()

    def _rows(self, query: Any, *values: Any) -> list[tuple[Any, ...]]:
        return self._connection.execute(query, values).fetchall()

    def _run(self, *statements: sql.Composable) -> None:
        """Run statements in one transaction."""
        self._connection.execute(sql.SQL(";").join(statements))


class Lender(Generic[T]):
    """Lends databases that `prepare` has been at, each to one borrower at a time."""

    def __init__(self, postgres: Postgres, prepare: Callable[[str], T]) -> None:
        self._postgres = postgres
        self._prepare = prepare
        self._all: list[Lent[T]] = []
        self._free: list[Lent[T]] = []

    @contextmanager
    def lend(self) -> Iterator[Lent[T]]:
        """Give a database until the block ends."""
        lent = self._free.pop() if self._free else self._one_more()
        yield lent
        # Not after a failure, which may have left anything behind.
        lent.put_back()
        self._free.append(lent)

    def close(self) -> None:
        """Let go of all connections."""
        for lent in self._all:
            lent.close()

    def _one_more(self) -> Lent[T]:
        self._all.append(Lent(self._postgres.new_database(), self._prepare))
        return self._all[-1]
