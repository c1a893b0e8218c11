"""A process that writes to a store: `python -m tests.store.writing_process FILE NAME COUNT`.

It makes workspaces NAME-0, NAME-1 and so on, COUNT of them or without end for 0, each in a transaction of its own, and
prints the number of each revision once its commit has returned.
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import make_workspace


def main(path: str, name: str, count: str) -> None:
    """Write until there is enough."""
    store = PeeweeStore(SqliteEngine(Path(path), busy_seconds=30))
    for number in range(int(count)) if int(count) else itertools.count():
        with store.write() as writer:
            writer.add_workspace(make_workspace(workspace_id=f"{name}-{number}"))
        sys.stdout.write(f"{writer.revision.number}\n")
        sys.stdout.flush()
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
