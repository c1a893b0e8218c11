"""backup and restore: what was acknowledged is there, and what was lost is said."""

from __future__ import annotations

import os
import re
import resource
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER

from server import app, backups
from server.app import StartRefused
from server.settings import Settings
from server.store import schema, sqlite_copies
from server.store.contract import StoreUnavailable
from server.store.sqlite import SqliteEngine
from tests.harness import Client, refused
from tests.operate.process import COMMAND, client, environment, run, serving, wait_until
from tests.wire.links_helpers import WORKSPACE, create_workspace, get_key, reason, server_key

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
ASIDE = "texture-auth.db.before-20300101T120000Z"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the store that a development server was stopped on, with a workspace in it."""
    folder = tmp_path_factory.mktemp("stopped")
    with serving(folder) as server, client(server) as calling:
        create_workspace(calling)
    return folder


@pytest.fixture
def folder(stopped: Path, tmp_path: Path) -> Path:
    """A copy of such a folder."""
    shutil.copytree(stopped, tmp_path, dirs_exist_ok=True)
    return tmp_path


def database_of(folder: Path) -> Path:
    return folder / "var" / "texture-auth.db"


def settings(path: Path) -> Settings:
    return Settings(database=f"sqlite:{path}")


def taken(folder: Path, name: str = "backup.db") -> Path:
    """Take a backup, in this process, while no server runs."""
    backups.backup(settings(database_of(folder)), folder / name)
    return folder / name


def restored(folder: Path, file: Path, *, replacing: bool = True) -> backups.Restored:
    """Restore a backup, in this process."""
    return backups.restore(settings(database_of(folder)), file, NOW, replacing=replacing)


def everything(folder: Path) -> dict[str, bytes]:
    """Return every file below a folder, and what is in it, but for SQLite's shared memory."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.suffix != ".db-shm")
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def revoke(calling: Client, key_id: str) -> str:
    """Revoke a key, and return the revision of that."""
    return calling.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=key_id)).revision


@contextmanager
def writing(calling: Client) -> Iterator[list[str]]:
    """Create keys, one after another, until the block ends; give those that were acknowledged."""
    acknowledged: list[str] = []
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            acknowledged.append(server_key(calling).api_key)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield acknowledged
    finally:
        over.set()
        thread.join()


class TestBackup:
    def test_what_was_acknowledged_before_it_began_is_in_it_while_a_server_goes_on_writing(self, folder: Path) -> None:
        elsewhere = folder / "elsewhere"
        (elsewhere / "var").mkdir(parents=True)
        with serving(folder) as server, client(server) as calling:
            with writing(calling) as acknowledged:
                wait_until(lambda: len(acknowledged) > 20, "some keys are made")
                before = list(acknowledged)
                done = run(folder, "backup", "backup.db", "--database", "sqlite:var/texture-auth.db")
                assert done.returncode == 0, done.stderr
                wait_until(lambda: len(acknowledged) > len(before) + 5, "writers go on")
            assert reason(calling, acknowledged[-1]) == "PERMITTED"
        assert re.fullmatch(r"backup\.db: revision \d+, \d+ bytes, newest event of [-0-9]+ [:0-9]+Z\n", done.stdout), (
            done.stdout
        )
        assert [file.name for file in folder.glob("*backup*")] == ["backup.db"]
        assert stat.S_IMODE((folder / "backup.db").stat().st_mode) == 0o600

        for name in ("peppers", "operator.key"):
            shutil.copy(folder / "var" / name, elsewhere / "var" / name)
        done = run(elsewhere, "restore", str(folder / "backup.db"), "--database", "sqlite:var/texture-auth.db")
        assert done.returncode == 0, done.stderr
        with serving(elsewhere) as server, client(server) as calling:
            assert {reason(calling, api_key) for api_key in before} == {"PERMITTED"}

    def test_it_overwrites_nothing(self, folder: Path) -> None:
        (folder / "backup.db").write_text("precious")
        before = everything(folder)
        done = run(folder, "backup", "backup.db", "--database", "sqlite:var/texture-auth.db")
        assert done.returncode == 1
        assert "exists" in done.stderr
        assert everything(folder) == before

    def test_a_file_that_appears_meanwhile_is_not_overwritten_either(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = folder / "backup.db"
        check = sqlite_copies.contents

        def appears(copy: Path) -> sqlite_copies.Contents:
            file.write_text("precious")
            return check(copy)

        monkeypatch.setattr(sqlite_copies, "contents", appears)
        for links in (True, False):
            if not links:
                file.unlink()
                monkeypatch.setattr(os, "link", _no_links)
            with pytest.raises(StartRefused, match="File exists"):
                taken(folder)
            assert file.read_text() == "precious"
            assert list(folder.glob(".backup*")) == []

    def test_a_file_system_without_links_will_do(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(os, "link", _no_links)
        assert taken(folder).is_file()
        assert list(folder.glob(".backup*")) == []

    @pytest.mark.parametrize("where", ["missing/backup.db", "peppers/backup.db", "x" * 250])
    def test_a_place_where_no_file_can_be_is_a_clear_error(self, folder: Path, where: str) -> None:
        (folder / "peppers").touch()
        before = everything(folder)
        done = run(folder, "backup", where, "--database", "sqlite:var/texture-auth.db")
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert "Traceback" not in done.stderr
        assert everything(folder) == before

    def test_a_disk_that_fills_up_leaves_no_file(self, folder: Path) -> None:
        before = everything(folder)
        done = subprocess.run(
            [*COMMAND, "backup", "backup.db", "--database", "sqlite:var/texture-auth.db"],
            cwd=folder,
            env=environment(),
            capture_output=True,
            timeout=60,
            check=False,
            text=True,
            # A limit on the size of files stands in for a disk that is full.
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
        )
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert everything(folder) == before

    def test_a_process_that_is_killed_leaves_no_file_under_the_final_name(self, folder: Path) -> None:
        program = (
            "import os, signal, sys; from pathlib import Path\n"
            "from server.store import sqlite_copies\n"
            "sqlite_copies._sync = lambda path: os.kill(os.getpid(), signal.SIGKILL)\n"
            "with sqlite_copies.copied(Path(sys.argv[1]), Path(sys.argv[2])) as copy: pass"
        )
        arguments = [sys.executable, "-c", program, str(database_of(folder)), str(folder / "backup.db")]
        assert subprocess.run(arguments, check=False, timeout=60, env=environment()).returncode == -9
        assert not (folder / "backup.db").exists()
        assert taken(folder).is_file()

    @pytest.mark.parametrize("fault", ["missing", "noise", "foreign", "damaged", "refers to nothing"])
    def test_a_database_that_is_not_in_order_is_not_backed_up(self, folder: Path, fault: str) -> None:
        spoil(database_of(folder), fault)
        with pytest.raises(StartRefused):
            taken(folder)
        assert list(folder.glob("*backup*")) == []

    def test_postgres_is_refused_and_told_what_to_use(self, tmp_path: Path) -> None:
        for command in ("backup", "restore"):
            done = run(tmp_path, command, "file", "--database", "postgresql://u:5ec2e7@127.0.0.1:1/d")
            assert done.returncode == 1
            assert "pg_" in done.stderr
            assert "5ec2e7" not in done.stderr


class TestRestore:
    def test_it_undoes_what_came_after_and_says_what_works_again(self, folder: Path) -> None:
        with serving(folder) as server, client(server) as calling:
            revoked, suspended, rotated, kept = (server_key(calling) for _ in range(4))
            for caller_id in ("dashboard", "device-api"):
                calling.callers.CreateCaller(
                    caller_pb.CreateCallerRequest(caller_id=caller_id, roles=[ROLE_AUTHORIZER])
                )
            registration = device_pb.DeviceRegistration(device_id="battery-1", reference_id="user-1")
            calling.devices.RegisterDevices(
                device_pb.RegisterDevicesRequest(workspace_id=WORKSPACE, devices=[registration])
            )
            taken_by_command = run(folder, "backup", "backup.db", "--database", "sqlite:var/texture-auth.db")
            assert taken_by_command.returncode == 0
            revision = revoke(calling, revoked.key.key_id)
            calling.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=suspended.key.key_id))
            new = calling.keys.RotateKey(key_pb.RotateKeyRequest(key_id=rotated.key.key_id)).api_key
            calling.callers.RevokeCaller(caller_pb.RevokeCallerRequest(caller_id="dashboard"))
            calling.callers.RotateCallerKey(caller_pb.RotateCallerKeyRequest(caller_id="device-api"))
            forgotten = workspace_pb.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id="user-1")
            calling.workspaces.EraseEndUser(forgotten)
        done = run(folder, "restore", "backup.db", "--replace", "--database", "sqlite:var/texture-auth.db")
        assert done.returncode == 0, done.stderr
        said = done.stdout.splitlines()
        assert "every change after that is undone, revocations included" in said
        assert f"revoked keys that work again: 1: {revoked.key.key_id}" in said
        assert f"suspended keys that work again: 1: {suspended.key.key_id}" in said
        assert any(line.startswith("rotated keys") and line.endswith(f": 1: {rotated.key.key_id}") for line in said)
        assert "revoked callers that may call again: 1: dashboard" in said
        assert "callers whose old keys work again, and whose new ones do not: 1: device-api" in said
        assert f"end users who were erased or had gone, and are back: erase them again: 1: {WORKSPACE} user-1" in said
        assert kept.key.key_id not in done.stdout

        with serving(folder) as server, client(server) as calling:
            for made in (revoked, suspended, rotated, kept):
                assert reason(calling, made.api_key) == "PERMITTED"
            assert reason(calling, new) == "KEY_UNKNOWN"
            # Of the history that was lost, no revision is taken for one of this history: neither while it lies
            # ahead, nor once this one has come as far.
            for _ in range(8):
                assert not_verifiable(calling, kept.api_key, revision)
                server_key(calling)
            assert_number_reached(calling, folder)

    def test_a_database_behind_a_link_is_replaced_where_it_is(self, folder: Path) -> None:
        file = taken(folder)
        volume = folder / "volume"
        volume.mkdir()
        database_of(folder).rename(volume / "texture-auth.db")
        database_of(folder).symlink_to(volume / "texture-auth.db")
        done = restored(folder, file)
        assert database_of(folder).is_symlink()
        assert done.aside is not None
        assert (done.aside.parent, done.aside.is_symlink()) == (volume, False)

    def test_the_database_that_was_replaced_is_kept_whole(self, folder: Path) -> None:
        file = taken(folder)
        with serving(folder) as server, client(server) as calling:
            made = server_key(calling)
            server.process.kill()
            server.process.wait()
            # What was acknowledged is in the log alone.
            assert database_of(folder).with_name("texture-auth.db-wal").stat().st_size
        done = restored(folder, file)
        assert done.aside == folder / "var" / ASIDE
        names = {path.name for path in (folder / "var").iterdir()}
        assert names == {"texture-auth.db", ASIDE, "peppers", "operator.key"}
        with closing(sqlite3.connect(done.aside)) as old:
            assert old.execute("SELECT count(*) FROM api_key").fetchone() == (1,)
        with serving(folder) as server, client(server) as calling:
            assert reason(calling, made.api_key) == "KEY_UNKNOWN"

    def test_it_is_refused_while_a_server_runs_and_all_goes_on(self, folder: Path) -> None:
        file = taken(folder)
        with serving(folder) as server, client(server) as calling:
            made = server_key(calling)
            done = run(folder, "restore", str(file), "--replace", "--database", "sqlite:var/texture-auth.db")
            assert done.returncode == 1
            assert "in use" in done.stderr
            assert "stop every server" in done.stderr
            assert reason(calling, made.api_key) == "PERMITTED"
            assert get_key(calling, made.key.key_id) == made.key
            assert server_key(calling).api_key
        assert list((folder / "var").glob("*before*")) == []
        assert list((folder / "var").glob(".*")) == []

    def test_a_database_that_is_there_is_not_replaced_unless_told_so(self, folder: Path) -> None:
        file = taken(folder)
        before = everything(folder)
        done = run(folder, "restore", str(file), "--database", "sqlite:var/texture-auth.db")
        assert done.returncode == 1
        assert "--replace" in done.stderr
        assert everything(folder) == before

    @pytest.mark.parametrize(
        "fault", ["missing", "noise", "empty", "foreign", "damaged", "truncated", "refers to nothing", "newer"]
    )
    def test_a_file_that_is_not_in_order_is_refused_and_nothing_is_lost(self, folder: Path, fault: str) -> None:
        file = taken(folder)
        spoil(file, fault)
        before = everything(folder)
        with pytest.raises(StartRefused) as caught:
            restored(folder, file)
        assert str(caught.value)
        assert everything(folder) == before
        database_of(folder).unlink()
        with pytest.raises(StartRefused):
            restored(folder, file, replacing=False)
        assert not database_of(folder).exists()

    def test_one_that_lacks_migrations_is_restored_and_says_to_migrate(
        self, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        file = taken(folder)
        migrations = tmp_path / "migrations"
        shutil.copytree(schema.MIGRATIONS, migrations, ignore=shutil.ignore_patterns("__pycache__"))
        (migrations / "9999_next.py").write_text("def up(migrator, db):\n    pass\n")
        monkeypatch.setattr(schema, "MIGRATIONS", migrations)
        assert restored(folder, file).pending == ("9999_next",)
        assert app.migrate(settings(database_of(folder))) == ("9999_next",)

    def test_a_log_that_was_left_behind_is_not_read_into_it(self, folder: Path) -> None:
        file = taken(folder)
        with serving(folder) as server, client(server) as calling:
            made = server_key(calling)
            server.process.kill()
            server.process.wait()
        database_of(folder).rename(folder / "moved.db")
        log = (folder / "var" / "texture-auth.db-wal").read_bytes()
        assert log
        restored(folder, file, replacing=False)
        assert (folder / "var" / f"{ASIDE}-wal").read_bytes() == log
        with serving(folder) as server, client(server) as calling:
            assert reason(calling, made.api_key) == "KEY_UNKNOWN"

    def test_a_log_that_a_process_still_writes_to_is_left_to_it(self, folder: Path) -> None:
        file = taken(folder)
        with serving(folder) as server, client(server) as calling:
            server_key(calling)
            database_of(folder).rename(folder / "moved.db")
            before = {path.name for path in (folder / "var").iterdir()}
            done = run(folder, "restore", str(file), "--database", "sqlite:var/texture-auth.db")
            assert done.returncode == 1
            assert "in use" in done.stderr
            assert {path.name for path in (folder / "var").iterdir()} == before

    @pytest.mark.parametrize("fault", ["noise", "damaged", "truncated"])
    def test_a_damaged_database_is_replaced_and_kept(self, folder: Path, fault: str) -> None:
        file = taken(folder)
        for log in (folder / "var").glob("*.db-*"):
            log.unlink()
        spoil(database_of(folder), fault)
        spoilt = database_of(folder).read_bytes()
        done = restored(folder, file)
        assert done.undone is None
        assert done.aside is not None
        assert len(done.aside.read_bytes()) == len(spoilt)
        assert done.aside.read_bytes()[8192:] == spoilt[8192:]
        with serving(folder) as server, client(server) as calling:
            assert server_key(calling).api_key
        again = run(folder, "restore", str(file), "--replace", "--database", "sqlite:var/texture-auth.db")
        assert again.returncode == 0

    def test_a_damaged_database_is_not_replaced_while_a_server_runs(self, folder: Path) -> None:
        file = taken(folder)
        with serving(folder):
            spoil(database_of(folder), "noise")
            database_of(folder).with_name("texture-auth.db-wal").write_bytes(b"this is no log either")
            done = run(folder, "restore", str(file), "--replace", "--database", "sqlite:var/texture-auth.db")
            assert done.returncode == 1
            assert "in use" in done.stderr

    def test_who_came_while_it_was_replaced_can_do_no_harm(self, folder: Path) -> None:
        file, path = taken(folder), database_of(folder)
        # Nothing is locked yet by these two, which have the file open, or know it.
        engine = SqliteEngine(path)
        with engine.reading():
            pass
        engine.close()
        with closing(sqlite3.connect(path, isolation_level=None)) as early:
            restored(folder, file)
            # It would write a log under the new one's name.
            with pytest.raises(sqlite3.OperationalError, match="readonly"):
                early.execute("PRAGMA journal_mode = WAL")
        with pytest.raises(StoreUnavailable, match="replaced"), engine.reading():
            pass
        assert {found.name for found in path.parent.glob("*.db*")} == {path.name, ASIDE}

    def test_where_its_name_for_the_old_one_is_taken_nothing_changes(self, folder: Path) -> None:
        file = taken(folder)
        (folder / "var" / ASIDE).write_text("precious")
        before = sqlite_copies.contents(database_of(folder))
        with pytest.raises(StartRefused, match="File exists"):
            restored(folder, file)
        assert sqlite_copies.contents(database_of(folder)) == before
        assert list((folder / "var").glob(".*")) == []
        assert (folder / "var" / ASIDE).read_text() == "precious"


def not_verifiable(calling: Client, api_key: str, revision: str) -> bool:
    """Tell whether a decision at a revision is refused, since this history has no such revision."""
    request = authorize_pb.AuthorizeRequest(api_key=api_key, permission="devices:list", at_least_revision=revision)
    found = refused(calling.authorize.Authorize, request)
    return (found.code, found.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_VERIFIABLE")


def assert_number_reached(calling: Client, folder: Path) -> None:
    """Make sure that the restored history has come further than the one that was lost had."""
    numbers = []
    for path in (database_of(folder), next((folder / "var").glob("*before*"))):
        with closing(sqlite3.connect(path)) as connection:
            numbers.append(connection.execute("SELECT number FROM revision").fetchone()[0])
    assert numbers[0] > numbers[1]


def _no_links(*_: object) -> None:
    raise PermissionError(1, "Operation not permitted")


def spoil(path: Path, fault: str) -> None:
    """Do something to a database that nobody uses."""
    content = path.read_bytes()
    if fault == "missing":
        path.unlink()
    elif fault == "noise":
        path.write_bytes(b"this is no database " * 1000)
    elif fault == "empty":
        path.write_bytes(b"")
    elif fault == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif fault == "damaged":
        path.write_bytes(content[:8192] + b"\xa5" * (len(content) - 12288) + content[-4096:])
    else:
        if fault == "foreign":
            path.unlink()
        statement = {
            "foreign": "CREATE TABLE note (text)",
            "newer": "INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2030-01-01')",
            "refers to nothing": "INSERT INTO key_label VALUES ('NoKey', 'a', 'b')",
        }[fault]
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(statement)
