"""Migrations make what the code expects, whole or not at all, once, whoever else is migrating."""

from __future__ import annotations

import re
import shutil
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path

import pytest
from peewee import IntegrityError, Model
from playhouse.schema_diff import diff_models

from server.store import schema, tables
from server.store.contract import Store, StoreUnavailable
from server.store.peewee_store import PeeweeStore
from server.store.schema import SchemaState
from server.store.sqlite import SqliteEngine
from tests.store.files import ROOT, SOON, migrated_engine
from tests.store.support import PATIENCE, Threads, dump, populate

NAMES = tuple(sorted(path.stem for path in schema.MIGRATIONS.glob("[0-9]*.py")))

MigrationWriter = Callable[[str, str], None]


def schema_of(path: Path) -> dict[tuple[str, str], str]:
    """Return the statements that made each table and index of a file, as one would write them on one line."""
    with closing(sqlite3.connect(path)) as connection:
        rows = connection.execute("SELECT type, name, sql FROM sqlite_master WHERE tbl_name <> 'schema_migration'")
        return {(kind, name): re.sub(r"\s+", " ", sql or "(made with its table)").strip() for kind, name, sql in rows}


def empty_engine(path: Path) -> SqliteEngine:
    """Return an engine on a new file that nothing has been done to."""
    engine = SqliteEngine(path, busy_seconds=PATIENCE)
    engine.create()
    return engine


@pytest.fixture
def migrations(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MigrationWriter:
    """Let the migrations be a copy of the real ones, and return a function that adds to them."""
    folder = tmp_path / "migrations"
    shutil.copytree(schema.MIGRATIONS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(schema, "MIGRATIONS", folder)

    def write(name: str, body: str) -> None:
        lines = "".join(f"    {line}\n" for line in body.splitlines())
        (folder / f"{name}.py").write_text(f"from peewee import *\n\n\ndef up(migrator, db):\n{lines}")

    return write


class TestWhatMigrationsMake:
    """The schema is that of the models, to the letter."""

    def test_a_migrated_file_has_exactly_the_tables_indexes_and_constraints_of_the_models(self, tmp_path: Path) -> None:
        migrated_engine(tmp_path / "migrated.db").close()
        engine = empty_engine(tmp_path / "models.db")
        with engine.migrating() as database, database.bind_ctx(tables.TABLES):
            database.create_tables(tables.TABLES, safe=False)
        engine.close()
        made, expected = schema_of(tmp_path / "migrated.db"), schema_of(tmp_path / "models.db")
        assert made.keys() == expected.keys()
        for name, statement in expected.items():
            assert made[name] == statement

    def test_no_difference_to_the_models_is_found(self, engine: SqliteEngine) -> None:
        with engine.reading() as database:
            assert not diff_models(database, tables.TABLES)
            # So that this test can fail.
            assert diff_models(database, [type("Missing", (Model,), {})])

    def test_every_table_of_the_models_is_listed(self) -> None:
        models = {
            model
            for model in vars(tables).values()
            # What others are made from is no table itself.
            if isinstance(model, type) and issubclass(model, Model) and not model.__subclasses__()
        }
        assert set(tables.TABLES) == models

    def test_no_table_is_bound_to_a_database(self) -> None:
        assert [table._meta.database for table in tables.TABLES] == [None] * len(tables.TABLES)

    def test_a_new_history_begins_at_revision_0_with_an_epoch_and_a_nonce_of_its_own(self, tmp_path: Path) -> None:
        heads = []
        for name in ("one.db", "two.db"):
            store = PeeweeStore(migrated_engine(tmp_path / name))
            with store.read() as reader:
                heads.append(reader.head())
            store.close()
        one, two = heads
        assert one.number == two.number == 0
        assert one.epoch != two.epoch
        assert one.nonce != two.nonce

    def test_migrations_are_numbered_from_one_without_gaps(self) -> None:
        files = sorted(path.name for path in schema.MIGRATIONS.iterdir() if path.name != "__pycache__")
        assert files
        assert [re.sub(r"_[a-z0-9_]+\.py$", "", name) for name in files] == [
            f"{number:04}" for number in range(1, len(files) + 1)
        ]


class TestInspecting:
    """What a store lacks, and what it has that is unknown here."""

    def test_an_empty_file_lacks_everything_and_is_not_changed_by_looking(self, tmp_path: Path) -> None:
        engine = empty_engine(tmp_path / "auth.db")
        for _ in range(2):
            state = schema.inspect(engine)
            assert state == SchemaState(pending=NAMES, unknown=())
            assert state != SchemaState((), ())
        engine.close()
        assert schema_of(tmp_path / "auth.db") == {}

    def test_a_migrated_file_lacks_nothing(self, engine: SqliteEngine) -> None:
        state = schema.inspect(engine)
        assert state == SchemaState(pending=(), unknown=())
        assert state == SchemaState((), ())

    def test_a_file_of_a_newer_release_is_told_apart_and_left_alone(self, engine: SqliteEngine) -> None:
        with engine.migrating() as database:
            database.execute_sql(
                "INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2030-01-01 00:00:00')"
            )
        state = schema.inspect(engine)
        assert state == SchemaState(pending=(), unknown=("9999_later",))
        assert state != SchemaState((), ())
        before = dump(engine)
        assert schema.migrate(engine) == ()
        assert dump(engine) == before
        assert schema.inspect(engine) == state

    def test_a_file_of_an_older_release_lacks_what_came_since(
        self, engine: SqliteEngine, migrations: MigrationWriter
    ) -> None:
        migrations("9002_second", "pass")
        migrations("9003_third", "pass")
        assert schema.inspect(engine) == SchemaState(pending=("9002_second", "9003_third"), unknown=())


class TestMigrating:
    """All or nothing, once, in order."""

    def test_migrating_says_what_it_did_and_does_nothing_twice(self, tmp_path: Path) -> None:
        engine = empty_engine(tmp_path / "auth.db")
        assert schema.migrate(engine) == NAMES
        store = PeeweeStore(engine)
        populate(store)
        before, made = dump(engine), schema_of(tmp_path / "auth.db")
        assert schema.migrate(engine) == ()
        assert dump(engine) == before
        assert schema_of(tmp_path / "auth.db") == made
        store.close()

    def test_what_is_pending_is_applied_in_order_to_a_store_in_use(
        self, store: Store, engine: SqliteEngine, migrations: MigrationWriter
    ) -> None:
        before = dump(engine)
        migrations("9003_third", "db.execute_sql('INSERT INTO added VALUES (2)')")
        migrations("9002_second", "db.execute_sql('CREATE TABLE added (number INTEGER)')")
        assert schema.migrate(engine) == ("9002_second", "9003_third")
        assert schema.inspect(engine) == SchemaState((), ())
        assert dump(engine) == before
        with engine.reading() as database:
            assert database.execute_sql("SELECT number FROM added").fetchall() == [(2,)]
        store.ping()

    @pytest.mark.parametrize(
        "failure",
        ["raise RuntimeError('on purpose')", "db.execute_sql('INSERT INTO no_such_table VALUES (1)')"],
        ids=["an error of its own", "an error of the database"],
    )
    def test_a_migration_that_fails_takes_those_before_it_back_with_it(
        self, store: Store, engine: SqliteEngine, path: Path, migrations: MigrationWriter, failure: str
    ) -> None:
        before, made = dump(engine), schema_of(path)
        create = "db.execute_sql('CREATE TABLE third (number INTEGER)')"
        migrations("9002_second", "db.execute_sql('CREATE TABLE second (number INTEGER)')")
        migrations("9003_third", f"{create}\ndb.execute_sql('DELETE FROM device')\n{failure}")
        for _ in range(2):
            with pytest.raises(Exception, match=r"on purpose|no_such_table"):
                schema.migrate(engine)
            assert dump(engine) == before
            assert schema_of(path) == made
            assert schema.inspect(engine) == SchemaState(pending=("9002_second", "9003_third"), unknown=())
        migrations("9003_third", "pass")
        assert schema.migrate(engine) == ("9002_second", "9003_third")
        store.ping()

    def test_a_first_migration_that_fails_leaves_an_empty_file(
        self, tmp_path: Path, migrations: MigrationWriter
    ) -> None:
        migrations("9002_second", "raise RuntimeError('on purpose')")
        engine = empty_engine(tmp_path / "auth.db")
        with pytest.raises(RuntimeError, match="on purpose"):
            schema.migrate(engine)
        with engine.reading() as database:
            assert database.get_tables() == []
        assert schema.inspect(engine).pending == (*NAMES, "9002_second")
        engine.close()

    def test_a_migration_may_rebuild_a_table_that_others_refer_to(
        self, store: Store, engine: SqliteEngine, migrations: MigrationWriter
    ) -> None:
        # On SQLite most changes of a column are made so.
        before = dump(engine)
        migrations(
            "9002_second",
            "migrator.migrate(migrator.alter_column_type('workspace', 'display_name', TextField(null=True)))",
        )
        assert schema.migrate(engine) == ("9002_second",)
        assert dump(engine) == before
        with engine.reading() as database:
            assert database.execute_sql("PRAGMA foreign_key_check").fetchall() == []
            assert engine.database.pragma("foreign_keys") == 1
        store.ping()

    def test_a_migration_that_leaves_rows_that_refer_to_nothing_is_rolled_back(
        self, store: Store, engine: SqliteEngine, migrations: MigrationWriter
    ) -> None:
        before = dump(engine)
        migrations("9002_second", "db.execute_sql('DELETE FROM workspace')")
        with pytest.raises((IntegrityError, StoreUnavailable)):
            schema.migrate(engine)
        assert dump(engine) == before
        assert schema.inspect(engine).pending == ("9002_second",)
        assert engine.database.pragma("foreign_keys") == 1
        store.ping()

    def test_nobody_else_writes_while_a_migration_runs(
        self, engine: SqliteEngine, path: Path, migrations: MigrationWriter
    ) -> None:
        migrations(
            "9002_second",
            "import sqlite3\n"
            "from contextlib import closing\n"
            f"with closing(sqlite3.connect({str(path)!r}, timeout=0)) as another:\n"
            "    another.execute('DELETE FROM device')",
        )
        with pytest.raises((sqlite3.OperationalError, StoreUnavailable), match="database is locked"):
            schema.migrate(engine)


class TestMigratingAtOnce:
    """Many that start together: one migrates, the others find it done."""

    def test_of_many_threads_on_one_file_one_migrates(self, tmp_path: Path) -> None:
        engine = empty_engine(tmp_path / "auth.db")
        # The file is in use already. How many start on a new one is the next test.
        schema.inspect(engine)
        assert sorted(migrate_at_once(tmp_path / "auth.db", 8)) == [()] * 7 + [NAMES]
        assert schema.inspect(engine) == SchemaState((), ())
        engine.close()

    def test_of_many_that_start_at_once_on_a_new_file_one_migrates_and_none_fails(self, tmp_path: Path) -> None:
        for attempt in range(10):
            path = tmp_path / f"{attempt}.db"
            assert sorted(migrate_at_once(path, 8)) == [()] * 7 + [NAMES]

    def test_a_new_file_is_waited_for_while_another_process_is_at_work_on_it(self, tmp_path: Path) -> None:
        path = tmp_path / "auth.db"
        engine = empty_engine(path)
        with closing(sqlite3.connect(path, isolation_level=None)) as another:
            another.execute("BEGIN IMMEDIATE")
            with Threads(at_end=engine.close).another() as other:
                waiting = other.submit(schema.migrate, engine)
                # A migration that waits is not done before the other lets go, however long that takes.
                done, _ = wait([waiting], timeout=SOON)
                another.execute("COMMIT")
                assert waiting.result(PATIENCE) == NAMES
                assert done == set()

    def test_of_many_processes_one_migrates(self, tmp_path: Path) -> None:
        path = tmp_path / "auth.db"
        engine = empty_engine(path)
        schema.inspect(engine)
        program = (
            "import sys; from pathlib import Path; from server.store import schema; "
            "from server.store.sqlite import SqliteEngine\n"
            "engine = SqliteEngine(Path(sys.argv[1]), 30); engine.create()\n"
            "print('ready', flush=True); sys.stdin.readline()\n"
            "print(len(schema.migrate(engine))); engine.close()"
        )
        command = [sys.executable, "-c", program, str(path)]
        processes = [
            subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            for _ in range(3)
        ]
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()
        applied = [int(process.communicate(timeout=PATIENCE)[0]) for process in processes]
        assert sorted(applied) == [0, 0, len(NAMES)]
        assert schema.inspect(engine) == SchemaState((), ())
        engine.close()


def migrate_at_once(path: Path, count: int) -> list[tuple[str, ...]]:
    """Let many threads, each with an engine of its own, begin to use a file at once; return what each applied."""
    barrier = threading.Barrier(count)

    def migrate(_number: int) -> tuple[str, ...]:
        engine = SqliteEngine(path, busy_seconds=PATIENCE)
        barrier.wait(PATIENCE)
        try:
            engine.create()
            return schema.migrate(engine)
        finally:
            engine.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(migrate, range(count)))
