"""SQLite: a file that is away or damaged, a lock that is kept, a disk that is full, a write that fails."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

import peewee
import pytest

from server.domain.revision import Revision
from server.domain.token import TokenKind
from server.store import schema
from server.store.contract import DeviceFilter, Store, StoreUnavailable, Writer
from server.store.peewee_store import PeeweeStore
from server.store.sqlite import SqliteEngine
from tests.builders import DEVICE_ID, WORKSPACE_ID, make_device, make_generation, make_key, make_workspace
from tests.store.files import (
    SOON,
    migrated_engine,
    name_in,
    new_engine,
    rename,
    unavailable,
)
from tests.store.support import PATIENCE, Threads, dump, populate


class TestMissing:
    """A file that is not there, or not what it should be, is StoreUnavailable."""

    def test_a_missing_file_is_unavailable_and_not_made_by_opening_it(self, path: Path) -> None:
        engine = SqliteEngine(path, SOON)
        store = PeeweeStore(engine)
        for work in (store.ping, lambda: rename(store), lambda: schema.inspect(engine), lambda: schema.migrate(engine)):
            assert unavailable(work)
        # Not even where it went away after the engine had looked for it.
        with pytest.raises(peewee.OperationalError):
            engine.database.connect()
        assert list(path.parent.iterdir()) == []

    @pytest.mark.parametrize("what", ["the file", "its folder"])
    def test_what_was_moved_away_is_unavailable_until_it_comes_back_in_every_thread(
        self, tmp_path: Path, what: str
    ) -> None:
        folder = tmp_path / "folder"
        store = PeeweeStore(new_engine(folder / "auth.db", SOON))
        populate(store)
        home, away = (folder, tmp_path / "away") if what == "its folder" else (folder / "auth.db", folder / "away")
        with ExitStack() as stack:
            others = [stack.enter_context(Threads(at_end=store.close).another()) for _ in range(3)]

            def everywhere(work: Callable[[int], object]) -> list[object]:
                return [other.submit(work, number).result(PATIENCE) for number, other in enumerate(others)]

            # One has read, one has written, and one has not opened the file yet.
            assert others[0].submit(name_in, store).result(PATIENCE) == make_workspace().display_name
            others[1].submit(rename, store, "before").result(PATIENCE)
            home.rename(away)
            for _ in range(2):
                assert everywhere(lambda _: unavailable(store.ping)) == [True] * 3
                assert everywhere(lambda _: unavailable(lambda: rename(store))) == [True] * 3
                assert unavailable(store.ping)
                assert not (folder / "auth.db").exists()
            away.rename(home)
            assert everywhere(lambda _: name_in(store)) == ["before"] * 3
            everywhere(lambda number: rename(store, f"after {number}"))
            assert everywhere(lambda _: name_in(store)) == ["after 2"] * 3
        store.close()

    def test_a_commit_during_which_the_file_was_moved_away_is_there_when_it_comes_back(
        self, store: Store, path: Path
    ) -> None:
        with store.write() as writer:
            writer.replace_workspace(make_workspace(display_name="on the way"))
            path.rename(path.with_name("away"))
        assert unavailable(store.ping)
        path.with_name("away").rename(path)
        assert name_in(store) == "on the way"

    def test_a_store_that_was_deleted_and_made_anew_is_a_new_history_that_nobody_takes_for_the_old(
        self, store: Store, threads: Threads, path: Path
    ) -> None:
        with store.read() as reader:
            old = reader.head()
        path.unlink()
        assert unavailable(store.ping)
        anew = PeeweeStore(migrated_engine(path))
        # Who had the old one open keeps away from the new one, whichever thread asks.
        assert unavailable(store.ping)
        assert unavailable(lambda: rename(store))
        assert threads.elsewhere(lambda: unavailable(store.ping))
        with anew.read() as reader:
            assert reader.head().epoch != old.epoch
            assert not reader.holds(old)
            assert reader.list_workspaces(None, 10).rows == ()
        anew.close()

    def test_a_file_that_another_took_the_place_of_is_never_read_into_the_other(
        self, store: Store, tmp_path: Path, path: Path
    ) -> None:
        other = PeeweeStore(new_engine(tmp_path / "other.db"))
        with other.write() as writer:
            writer.add_workspace(make_workspace(workspace_id="restored"))
        other.close()
        rename(store)
        # As an operator would who restores a copy and forgets the log of the old file that lies beside it.
        (tmp_path / "other.db").rename(path)
        seen = []
        for _ in range(2):
            try:
                with store.read() as reader:
                    seen.append([workspace.workspace_id for workspace in reader.list_workspaces(None, 10).rows])
            except StoreUnavailable:
                # To say so is an answer too.
                seen.append(["restored"])
        assert seen == [["restored"]] * 2

    def test_a_file_that_is_no_database_is_unavailable_and_left_alone(self, path: Path) -> None:
        noise = b"this is not a database\n" * 1_000
        path.write_bytes(noise)
        engine = SqliteEngine(path, SOON)
        store = PeeweeStore(engine)
        for work in (store.ping, lambda: rename(store), lambda: schema.inspect(engine), lambda: schema.migrate(engine)):
            assert unavailable(work)
        store.close()
        assert path.read_bytes() == noise

    def test_a_file_without_tables_is_unavailable(self, path: Path) -> None:
        engine = SqliteEngine(path, SOON)
        engine.create()
        store = PeeweeStore(engine)
        assert unavailable(store.ping)
        assert unavailable(lambda: rename(store))
        schema.migrate(engine)
        store.ping()
        store.close()

    def test_a_store_without_its_revision_row_is_unavailable(self, store: Store, engine: SqliteEngine) -> None:
        with engine.writing() as database:
            database.execute_sql("DELETE FROM revision")
            database.commit()
        assert unavailable(store.ping)
        assert unavailable(lambda: rename(store))

    def test_a_file_that_is_damaged_further_on_is_unavailable(self, store: Store, path: Path) -> None:
        devices = [make_device(device_id=f"{number:04}" + "x" * 200) for number in range(2_000)]
        with store.write() as writer:
            writer.put_devices(devices)
        store.close()
        size = path.stat().st_size
        with path.open("r+b") as file:
            # The first rows of the list can still be read, the later ones cannot.
            file.seek(size // 2)
            file.write(b"\xff" * (size - size // 2))
        with store.read() as reader:
            assert len(reader.list_devices(DeviceFilter(workspace_id=WORKSPACE_ID), None, 10).rows) == 10
        with pytest.raises(StoreUnavailable), store.read() as reader:
            reader.list_devices(DeviceFilter(workspace_id=WORKSPACE_ID), None, 2_000)


class TestBusyAndFull:
    """A lock that is not to be had, and a disk that is full."""

    def test_while_another_process_keeps_the_lock_reads_go_on_and_writes_are_refused(
        self, store: Store, threads: Threads, path: Path
    ) -> None:
        with closing(sqlite3.connect(path, isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            another.execute("UPDATE workspace SET display_name = 'by another'")
            for _ in range(2):
                assert unavailable(lambda: rename(store))
                assert name_in(store) == make_workspace().display_name
                # A thread that is new here needs a connection, and gets one.
                assert threads.elsewhere(lambda: name_in(store)) == make_workspace().display_name
                assert threads.elsewhere(lambda: unavailable(lambda: rename(store)))
            another.execute("COMMIT")
        assert name_in(store) == "by another"
        rename(store)
        assert threads.elsewhere(lambda: name_in(store)) == "renamed"

    def test_a_writer_waits_for_another_process_that_lets_go_in_time(self, tmp_path: Path) -> None:
        store = PeeweeStore(new_engine(tmp_path / "auth.db", busy_seconds=PATIENCE))
        populate(store)
        with closing(sqlite3.connect(tmp_path / "auth.db", isolation_level=None)) as another:
            about_to = threading.Event()
            another.execute("BEGIN IMMEDIATE")

            def write() -> Revision:
                about_to.set()
                return rename(store)

            with Threads(at_end=store.close).another() as other:
                waiting = other.submit(write)
                assert about_to.wait(PATIENCE)
                another.execute("UPDATE workspace SET display_name = 'by another'")
                another.execute("COMMIT")
                waiting.result(PATIENCE)
        assert name_in(store) == "renamed"
        store.close()

    def test_a_restored_file_that_was_busy_at_first_is_written_ahead_from_then_on(
        self, store: Store, path: Path, tmp_path: Path
    ) -> None:
        committed = rename(store)
        with closing(sqlite3.connect(path)) as source:
            source.execute("VACUUM INTO ?", (str(tmp_path / "saved.db"),))
        engine = SqliteEngine(tmp_path / "saved.db", SOON)
        restored = PeeweeStore(engine)
        with closing(sqlite3.connect(tmp_path / "saved.db", isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            assert unavailable(lambda: rename(restored))
            another.execute("COMMIT")
        with restored.read() as reader:
            assert reader.head() == committed
            assert engine.database.pragma("journal_mode") == "wal"
        restored.close()

    def test_while_another_thread_keeps_the_lock_reads_go_on_and_writes_are_refused(
        self, store: Store, threads: Threads
    ) -> None:
        with store.write() as writer:
            writer.replace_workspace(make_workspace(display_name="first"))
            assert threads.elsewhere(lambda: unavailable(lambda: rename(store)))
            assert threads.elsewhere(lambda: name_in(store)) == make_workspace().display_name
        assert threads.elsewhere(lambda: name_in(store)) == "first"
        threads.elsewhere(lambda: rename(store))
        assert name_in(store) == "renamed"

    def test_a_full_disk_is_unavailable_and_leaves_nothing_behind(self, store: Store, engine: SqliteEngine) -> None:
        before = dump(engine)
        with engine.reading():
            pages = engine.database.pragma("page_count")
        assert engine.database.pragma("max_page_count", pages + 1) == pages + 1

        def fill() -> None:
            with store.write() as writer:
                writer.replace_workspace(make_workspace(display_name="renamed"))
                writer.put_devices([make_device(device_id=f"{number}" + "x" * 1_000) for number in range(100)])

        assert unavailable(fill)
        assert dump(engine) == before
        engine.database.pragma("max_page_count", 1_000_000)
        fill()
        assert name_in(store) == "renamed"


TWO_IN_FORCE = tuple(make_generation(TokenKind.SERVER, "NewKey0000000001", number) for number in (1, 2))


class TestFailing:
    """A write that fails leaves nothing behind, wherever it fails."""

    @pytest.mark.parametrize(
        "fail",
        [
            lambda writer: writer.add_key(make_key(key_id="NewKey0000000001", workspace_id="no-workspace")),
            lambda writer: writer.add_key(make_key(key_id="NewKey0000000001", generations=TWO_IN_FORCE)),
            lambda writer: writer.put_devices([make_device(device_id="a"), make_device(workspace_id="no-workspace")]),
        ],
        ids=["a key of no workspace", "two generations in force", "a device of no workspace"],
    )
    def test_a_write_that_breaks_a_constraint_half_way_is_rolled_back(
        self, store: Store, engine: SqliteEngine, fail: Callable[[Writer], None]
    ) -> None:
        before = dump(engine)

        def work() -> None:
            with store.write() as writer:
                writer.replace_workspace(make_workspace(display_name="never"))
                writer.remove_devices([DEVICE_ID])
                fail(writer)

        with pytest.raises(peewee.IntegrityError):
            work()
        assert dump(engine) == before
        rename(store)
        assert name_in(store) == "renamed"

    def test_a_commit_that_fails_is_rolled_back(self, store: Store, engine: SqliteEngine) -> None:
        before = dump(engine)

        def work() -> None:
            with store.write() as writer:
                # Now the constraint is looked at by the commit only.
                engine.database.execute_sql("PRAGMA defer_foreign_keys = ON")
                writer.put_devices([make_device(device_id="new", workspace_id="no-workspace")])

        with pytest.raises(peewee.IntegrityError):
            work()
        assert dump(engine) == before
        rename(store)
        assert name_in(store) == "renamed"
