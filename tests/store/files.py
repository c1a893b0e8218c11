"""What the tests of SQLite share."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import closing
from functools import cache
from pathlib import Path
from uuid import uuid4

from server.domain.revision import Revision
from server.store import schema
from server.store.contract import Store, StoreUnavailable
from server.store.sqlite import SqliteEngine
from tests.builders import WORKSPACE_ID, make_workspace

ROOT = Path(__file__).parents[2]

# Where a test waits for a refusal, it is not for long.
SOON = 0.1


def new_engine(path: Path, busy_seconds: float = 30) -> SqliteEngine:
    """Return an engine on a new, migrated file: a copy of one, which is quicker, with an epoch of its own."""
    engine = SqliteEngine(path, busy_seconds)
    engine.create()
    path.write_bytes(_migrated())
    with closing(sqlite3.connect(path)) as connection, connection:
        epoch = str(uuid4())
        connection.execute("UPDATE revision SET epoch = ?", (epoch,))
        connection.execute("UPDATE change SET entity_id = ? WHERE entity_kind = 'epoch'", (epoch,))
    return engine


def migrated_engine(path: Path) -> SqliteEngine:
    """Return an engine on a new file that was migrated itself."""
    engine = SqliteEngine(path, 30)
    engine.create()
    schema.migrate(engine)
    return engine


@cache
def _migrated() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "auth.db"
        migrated_engine(path).close()
        return path.read_bytes()


def rename(store: Store, name: str = "renamed") -> Revision:
    """Write something."""
    with store.write() as writer:
        writer.replace_workspace(make_workspace(display_name=name))
    return writer.revision


def name_in(store: Store) -> str:
    """Read what `rename` writes."""
    with store.read() as reader:
        workspace = reader.workspace(WORKSPACE_ID)
    assert workspace is not None
    return workspace.display_name


def unavailable(work: Callable[[], object]) -> bool:
    """Tell whether something ends in StoreUnavailable."""
    try:
        work()
    except StoreUnavailable:
        return True
    return False


def workspaces_seen_by_another_process(path: Path) -> set[str]:
    """Return the ids of the workspaces that another process finds in a file, which it opens and closes."""
    program = (
        "import sqlite3, sys; from contextlib import closing\n"
        "with closing(sqlite3.connect(sys.argv[1])) as connection:\n"
        "    for row in connection.execute('SELECT workspace_id FROM workspace'): print(*row)"
    )
    return set(subprocess.check_output([sys.executable, "-c", program, str(path)], text=True).split())


def writing_process(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    """Start a process that writes, and prints the number of each revision that was committed."""
    command = [sys.executable, "-m", "tests.store.writing_process", str(path), name, str(count)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
