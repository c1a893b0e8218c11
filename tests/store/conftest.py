"""A SQLite store for the tests that are not the conformance suite, which brings its own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from server.store.contract import Store
from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.store.files import SOON, new_engine
from tests.store.support import Threads, populate


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file of the test is."""
    return tmp_path / "auth.db"


@pytest.fixture
def engine(path: Path) -> SqliteEngine:
    """Return the engine of a new, migrated file. It does not wait long for other writers."""
    return new_engine(path, busy_seconds=SOON)


@pytest.fixture
def store(engine: SqliteEngine) -> Iterator[Store]:
    """Give the store on it, with one entity of each kind."""
    store = PeeweeStore(engine)
    populate(store)
    yield store
    store.close()


@pytest.fixture
def threads(store: Store) -> Threads:
    """Return a way to other threads."""
    return Threads(at_end=store.close)
