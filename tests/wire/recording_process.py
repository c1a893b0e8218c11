"""A process that records events: `python -m tests.wire.recording_process DATABASE FOLDER COUNT`."""

from __future__ import annotations

import sys
from pathlib import Path

from server import app
from server.settings import Settings
from tests.store.support import make_event


def main(database: str, folder: str, count: str) -> None:
    settings = Settings(development=True, database=database, development_folder=Path(folder))
    store = app.open_database(settings, app.load_peppers(settings)).store
    for _ in range(int(count)):
        with store.write() as writer:
            writer.record([make_event(), make_event()])
    store.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
