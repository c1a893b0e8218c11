"""What a process read of a history that the store has lost since, and of the one in its place."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from server.service import facts
from server.service.facts import FactCache, Reading
from server.store.contract import DEVICE, Store
from server.store.peewee_store import PeeweeStore
from tests.builders import make_device, make_workspace
from tests.store.files import new_engine

FIRST, SECOND = (DEVICE, "inverter-1"), (DEVICE, "inverter-2")


def change(store: Store, place: facts.Place, manufacturer: str) -> None:
    with store.write() as writer:
        writer.put_devices([make_device(device_id=place[1], manufacturer=manufacturer)])


@pytest.mark.parametrize("changes", [1, 2])
def test_what_was_read_before_and_after_changes_were_lost_is_never_mixed(tmp_path: Path, changes: int) -> None:
    path = tmp_path / "auth.db"
    store = PeeweeStore(new_engine(path))
    with store.write() as writer:
        writer.add_workspace(make_workspace())
    cache = FactCache(store, keys=9, devices=9, loads=9)

    def read(place: facts.Place) -> tuple[Reading, dict[facts.Place, object]]:
        with store.read() as reader:
            return cache.read(reader, 0.0, None), facts._read_values(reader, [place])

    def fill(reading: Reading, values: dict[facts.Place, object]) -> None:
        if cache.apply(reading):
            cache._insert(reading.head, values)

    fill(*read(FIRST))
    with closing(sqlite3.connect(path)) as database, closing(sqlite3.connect(":memory:")) as copy:
        database.backup(copy)
        change(store, FIRST, "lost")
        before = read(FIRST)
        copy.backup(database)
    for number in range(changes):
        change(store, SECOND, f"in its place {number}")
    after = read(SECOND)
    fill(*before)
    fill(*after)
    assert cache.look(*FIRST) is not None
    assert cache.look(*SECOND) is None, "the two do not stand side by side"
    fill(*read(SECOND))
    assert cache.look(*FIRST) is None, "the history that goes on counts"
    assert cache.look(*SECOND) is not None
    store.close()
