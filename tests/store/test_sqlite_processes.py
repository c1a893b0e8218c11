"""SQLite: many processes, and one that is killed."""

from __future__ import annotations

import shutil
from pathlib import Path

from server.store.contract import KeyFilter, Store
from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import NOW, WORKSPACE_ID, make_key, make_workspace
from tests.store.files import (
    name_in,
    rename,
    writing_process,
)
from tests.store.support import PATIENCE, SERVER_KEY_ID, changes_of


class TestProcesses:
    """Many processes, and one that is killed."""

    def test_what_was_acknowledged_survives_the_death_of_the_process(self, store: Store, path: Path) -> None:
        with store.read() as reader:
            before = reader.head().number
        with writing_process(path, "w", 0) as process:
            assert process.stdout is not None
            acknowledged = [int(process.stdout.readline()) for _ in range(20)]
            process.kill()
            # What it still managed to say counts too, but for a line that was cut off.
            acknowledged += [int(line) for line in process.stdout if line.endswith("\n")]
        assert process.returncode < 0
        assert acknowledged == list(range(before + 1, before + len(acknowledged) + 1))
        # One more may have been committed, and not been acknowledged any more.
        with store.read() as reader:
            head = reader.head().number
            assert acknowledged[-1] <= head <= acknowledged[-1] + 1
            for number in range(head - before):
                assert reader.workspace(f"w-{number}") == make_workspace(workspace_id=f"w-{number}")
            assert reader.workspace(f"w-{head - before}") is None
        engine = SqliteEngine(path)
        for number in acknowledged:
            assert {changed[1:] for changed in changes_of(engine, number)} == {
                ("workspace", f"w-{number - before - 1}")
            }
        engine.close()
        rename(store, "after it")
        assert name_in(store) == "after it"

    def test_processes_that_write_at_once_take_turns(self, store: Store, path: Path) -> None:
        with store.read() as reader:
            before = reader.head().number
        processes = [writing_process(path, f"p{number}", 15) for number in range(3)]
        acknowledged = []
        for process in processes:
            said, _ = process.communicate(timeout=PATIENCE)
            assert process.returncode == 0
            acknowledged += [int(line) for line in said.split()]
        assert sorted(acknowledged) == list(range(before + 1, before + 46))
        with store.read() as reader:
            assert reader.head().number == before + 45
            assert all(reader.workspace(f"p{process}-{number}") for process in range(3) for number in range(15))

    def test_a_copy_taken_while_closed_is_the_same_store(self, store: Store, path: Path) -> None:
        committed = rename(store)
        store.close()
        copy = PeeweeStore(SqliteEngine(Path(shutil.copy(path, path.with_name("copy.db")))))
        with copy.read() as reader:
            assert reader.holds(committed)
            assert [key.key_id for key in reader.list_keys(KeyFilter(workspace_id=WORKSPACE_ID, now=NOW), None, 9).rows]
            assert reader.keys([SERVER_KEY_ID]) == {SERVER_KEY_ID: make_key()}
        # From here on they are two histories with one epoch, and the nonce tells them apart.
        original, other = rename(store, "original"), rename(copy, "copy")
        assert (original.epoch, original.number) == (other.epoch, other.number)
        with store.read() as reader:
            assert reader.holds(original)
            assert not reader.holds(other)
        copy.close()
