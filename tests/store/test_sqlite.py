"""SQLite: the conformance suite, and what is peculiar to a file."""

from __future__ import annotations

import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from server.store.contract import KeyFilter, Store
from server.store.peewee_store import PeeweeReader, PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import NOW, make_workspace
from tests.store.conformance import StoreConformance
from tests.store.files import (
    migrated_engine,
    name_in,
    new_engine,
    rename,
    unavailable,
    workspaces_seen_by_another_process,
)
from tests.store.support import Threads, dump, populate


class TestSqlite(StoreConformance):
    """Every promise holds on SQLite."""

    @pytest.fixture
    def engine(self, tmp_path: Path) -> SqliteEngine:
        """Return the engine of a new file."""
        return new_engine(tmp_path / "auth.db")


class TestCreating:
    """The file is made by `create`, and by nothing else."""

    def test_the_file_and_those_beside_it_are_for_its_owner_alone(self, store: Store, path: Path) -> None:
        with store.read() as reader:
            reader.head()
            found = {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()}
        assert found == {"auth.db": 0o600, "auth.db-wal": 0o600, "auth.db-shm": 0o600}

    def test_folders_on_the_way_are_made(self, tmp_path: Path) -> None:
        engine = migrated_engine(tmp_path / "a" / "b" / "auth.db")
        with engine.reading() as database:
            assert database.table_exists("revision")
        engine.close()

    def test_a_file_that_is_there_is_left_as_it_is(self, store: Store, engine: SqliteEngine) -> None:
        before = dump(engine)
        store.close()
        engine.create()
        assert dump(engine) == before

    @pytest.mark.parametrize("where", ["file/auth.db", "folder"])
    def test_a_place_where_no_file_can_be_is_unavailable(self, tmp_path: Path, where: str) -> None:
        (tmp_path / "file").touch()
        (tmp_path / "folder").mkdir()
        engine = SqliteEngine(tmp_path / where)
        assert unavailable(lambda: migrated_engine(tmp_path / where))
        assert unavailable(PeeweeStore(engine).ping)

    @pytest.mark.parametrize("name", ["a b", "a#b", "a?mode=memory", "a%41", "ü⚡", "a;b'c\"d", "file:x", "a&b=c"])
    def test_any_name_will_do(self, tmp_path: Path, name: str) -> None:
        store = PeeweeStore(migrated_engine(tmp_path / name / name))
        populate(store)
        store.close()
        assert [file.name for file in (tmp_path / name).iterdir()] == [name]
        with closing(sqlite3.connect(tmp_path / name / name)) as connection:
            assert connection.execute("SELECT count(*) FROM workspace").fetchone() == (2,)

    def test_creating_it_again_while_it_is_in_use_loses_no_commit(self, store: Store, path: Path) -> None:
        # Closing any descriptor of a file drops every lock that the process has on it. Another process then believes
        # that nobody else has the file open, and removes the log that commits are still being written to.
        before = workspaces_seen_by_another_process(path)
        SqliteEngine(path).create()
        assert workspaces_seen_by_another_process(path) == before
        with store.write() as writer:
            writer.add_workspace(make_workspace(workspace_id="acknowledged"))
        assert workspaces_seen_by_another_process(path) == before | {"acknowledged"}


class TestOrigins:
    """Keys are few by where they come from, and many in a workspace."""

    @pytest.mark.parametrize("by", ["descends_from_key_id", "connect_link_id", "created_by_key_id"])
    def test_keys_are_found_by_their_origin_without_going_over_their_workspace(
        self, store: Store, by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        plans: list[str] = []
        rows_of = PeeweeReader._rows

        def explained(reader: PeeweeReader, query: Any) -> list[dict[str, Any]]:
            statement, values = reader._database.get_sql_context().sql(query).query()
            plan = reader._database.execute_sql(f"EXPLAIN QUERY PLAN {statement}", values).fetchall()
            plans.append(" ".join(str(step[-1]) for step in plan))
            return rows_of(reader, query)

        monkeypatch.setattr(PeeweeReader, "_rows", explained)
        with store.read() as reader:
            for which in (KeyFilter(workspace_id="w", now=NOW), KeyFilter(workspace_id="w", now=NOW, **{by: "x"})):  # type: ignore[arg-type]
                reader.list_keys(which, None, 10)

        over_all, by_origin = plans
        assert "workspace_id" in over_all
        assert "workspace_id" not in by_origin
        assert "SEARCH" in by_origin
        assert "SCAN api_key" not in by_origin


class TestNesting:
    """A thread has one transaction at a time; a second one is a fault of ours, and not taken for an outage."""

    def test_a_transaction_inside_another_is_refused_as_what_it_is(self, store: Store) -> None:
        with store.write():
            with pytest.raises(RuntimeError, match="one transaction"), store.read():
                pass
            with pytest.raises(RuntimeError, match="one transaction"), store.write():
                pass
        with store.read() as reader, pytest.raises(RuntimeError, match="one transaction"), store.write():
            pass
        assert reader is not None


class TestConnections:
    """Every thread's connection is set up, and let go of."""

    def test_every_connection_writes_ahead_flushes_fully_and_minds_foreign_keys(
        self, engine: SqliteEngine, threads: Threads
    ) -> None:
        def settings() -> tuple[object, ...]:
            with engine.reading():
                database = engine.database
                return (
                    database.pragma("journal_mode"),
                    database.pragma("synchronous"),
                    database.pragma("foreign_keys"),
                )

        assert settings() == threads.elsewhere(settings) == ("wal", 2, 1)
        with engine.writing():
            assert engine.database.pragma("synchronous") == 2
            assert engine.database.pragma("foreign_keys") == 1

    @pytest.mark.parametrize("how", ["VACUUM INTO", "a backup", "a copy"])
    def test_a_restored_store_is_written_ahead_however_it_was_saved(
        self, store: Store, path: Path, tmp_path: Path, how: str
    ) -> None:
        saved = tmp_path / "saved.db"
        committed = rename(store)
        if how == "a copy":
            store.close()
            shutil.copy(path, saved)
        else:
            with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(saved)) as target:
                if how == "VACUUM INTO":
                    source.execute("VACUUM INTO ?", (str(saved),))
                else:
                    source.backup(target)
        restored_engine = SqliteEngine(saved)
        restored = PeeweeStore(restored_engine)
        with restored.read() as reader:
            assert reader.head() == committed
        rename(restored, "after it")
        with restored_engine.reading():
            assert restored_engine.database.pragma("journal_mode") == "wal"
        restored.close()

    def test_nothing_is_left_open_once_every_thread_has_closed(self, tmp_path: Path) -> None:
        store = PeeweeStore(new_engine(tmp_path / "auth.db"))
        populate(store)
        Threads(at_end=store.close).together(4, lambda _: rename(store))
        store.close()
        # The last connection to go tidies up.
        assert [file.name for file in tmp_path.iterdir()] == ["auth.db"]

    def test_a_store_that_was_closed_can_be_used_again(self, store: Store) -> None:
        store.close()
        store.close()
        rename(store, "again")
        assert name_in(store) == "again"

    def test_two_stores_on_one_file_see_each_others_commits(self, store: Store, path: Path) -> None:
        other = PeeweeStore(SqliteEngine(path))
        for name in ("one", "two"):
            committed = rename(store, name)
            with other.read() as reader:
                assert reader.head() == committed
            committed = rename(other, f"{name} by the other")
            with store.read() as reader:
                assert reader.head() == committed
        other.close()
