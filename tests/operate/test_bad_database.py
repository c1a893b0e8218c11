"""A database file that is not what it should be: what a client sees of it, and what health says."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as key_pb

from server import app
from server.settings import Settings
from server.store.sqlite import OTHER_FILE_SECONDS, SqliteEngine
from tests.harness import Client, Service, refused, running_service
from tests.operate.process import Server, client, health, run, serving, wait_until
from tests.wire.links_helpers import (
    create_workspace,
    get_key,
    one,
    reason,
    register,
    register_all,
    server_key,
)

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

UNAVAILABLE = (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
NOISE = b"this is no database " * 1_000
FLAGS = ("--insecure-plaintext", "--peppers-file", "peppers", "--database", "sqlite:auth.db")


@pytest.fixture
def operator_key(tmp_path: Path) -> str:
    """The key of the operator of a database that a production server may be started on."""
    (tmp_path / "peppers").write_text(f"2030-01 {'a1' * 32}\n")
    settings = Settings(database=f"sqlite:{tmp_path / 'auth.db'}", peppers_file=tmp_path / "peppers")
    app.migrate(settings)
    return app.bootstrap(settings, "operator")


def assert_unavailable(server: Server, calling: Client, api_key: str) -> None:
    """Make sure that neither a question nor a change is answered, that health says so, and that it is logged."""
    for call in (lambda: reason(calling, api_key), lambda: server_key(calling)):
        found = refused(call)
        assert (found.code, found.reason) == UNAVAILABLE
        assert found.retry_seconds
        assert "auth.db" not in found.message
    with closing(grpc.insecure_channel(server.address)) as channel:
        wait_until(lambda: health(channel) == "NOT_SERVING", "health says that the store is away")
    assert any(line["event"] == "store unavailable" for line in server.log)


def assert_well(server: Server, calling: Client, api_key: str) -> None:
    with closing(grpc.insecure_channel(server.address)) as channel:
        wait_until(lambda: health(channel) == "SERVING", "health says that the store is there")
    assert reason(calling, api_key) == "PERMITTED"


@pytest.mark.parametrize("content", [NOISE, NOISE[:10], b""], ids=["noise", "less than a header", "nothing"])
def test_a_server_does_not_start_on_a_file_that_is_no_database_and_leaves_it_alone(
    tmp_path: Path, operator_key: str, content: bytes
) -> None:
    for path in tmp_path.glob("auth.db*"):
        path.unlink()
    (tmp_path / "auth.db").write_bytes(content)

    done = run(tmp_path, "serve", "--listen", "127.0.0.1:0", *FLAGS)

    # An empty file is a database without tables, which 'migrate' fills.
    assert done.returncode == (4 if content else 1)
    assert "texture-auth migrate" in done.stderr
    assert "Traceback" not in done.stderr
    if content:
        assert (tmp_path / "auth.db").read_bytes() == content


def test_a_file_that_is_no_database_in_its_place_is_unavailable_and_left_alone(
    tmp_path: Path, operator_key: str
) -> None:
    path = tmp_path / "auth.db"
    with serving(tmp_path, *FLAGS) as server, client(server, operator_key) as calling:
        create_workspace(calling)
        api_key = server_key(calling).api_key
        assert_well(server, calling, api_key)
        path.rename(tmp_path / "away")
        path.write_bytes(NOISE)
        time.sleep(2 * OTHER_FILE_SECONDS)

        assert_unavailable(server, calling, api_key)

        assert path.read_bytes() == NOISE
        (tmp_path / "away").rename(path)
        assert_well(server, calling, api_key)


def test_while_another_database_stands_in_its_place_it_is_neither_read_nor_written(
    tmp_path: Path, operator_key: str
) -> None:
    path = tmp_path / "auth.db"
    other = tmp_path / "other"
    app.migrate(Settings(database=f"sqlite:{other / 'auth.db'}"))
    with serving(tmp_path, *FLAGS) as server, client(server, operator_key) as calling:
        create_workspace(calling)
        made = server_key(calling)
        path.rename(tmp_path / "away")
        (other / "auth.db").rename(path)
        before = path.read_bytes()
        time.sleep(2 * OTHER_FILE_SECONDS)

        assert_unavailable(server, calling, made.api_key)

        assert path.read_bytes() == before
        path.unlink()
        (tmp_path / "away").rename(path)
        assert_well(server, calling, made.api_key)
        assert get_key(calling, made.key.key_id) == made.key


def make_read_only(path: Path) -> None:
    """Make a closed file one that SQLite only reads, whoever asks: root minds no mode, but SQLite minds its header.

    Its 18th byte is the version of the format that is needed to write.
    """
    with path.open("r+b") as file:
        file.seek(18)
        file.write(b"\x03")
    with closing(sqlite3.connect(path)) as database, pytest.raises(sqlite3.OperationalError, match="readonly"):
        database.execute("DELETE FROM caller")


def test_on_a_database_that_is_read_only_decisions_go_on_and_changes_are_unavailable(
    tmp_path: Path, operator_key: str
) -> None:
    with serving(tmp_path, *FLAGS) as server, client(server, operator_key) as calling:
        create_workspace(calling)
        made = server_key(calling)
        register(calling, "user-1", "battery-1")
        server.process.terminate()
        assert server.exit_code() == 0
    make_read_only(tmp_path / "auth.db")

    with serving(tmp_path, *FLAGS) as server, client(server, operator_key) as calling:
        for call in (
            lambda: server_key(calling),
            lambda: register(calling, "user-1", "battery-2"),
            lambda: calling.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=made.key.key_id)),
        ):
            found = refused(call)
            assert (found.code, found.reason) == UNAVAILABLE
            assert found.retry_seconds
        assert reason(calling, made.api_key, "battery-1") == "PERMITTED"
        assert get_key(calling, made.key.key_id) == made.key
        assert_well(server, calling, made.api_key)
        assert any("readonly" in line.get("cause", "") for line in server.log)


def fill(service: Service) -> int:
    """Register devices until there is no more room, and return how many were."""
    registered = 0
    while True:
        batch = [one(f"{registered + number:06}" + "x" * 100) for number in range(100)]
        try:
            register_all(service.operator, *batch)
        except grpc.RpcError:
            return registered
        registered += len(batch)


def test_when_the_disk_is_full_decisions_go_on_and_changes_are_unavailable_and_leave_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        engine = service.app._database.engine
        assert isinstance(engine, SqliteEngine)
        # For every connection that is opened from here on: there are as yet none of the threads that answer calls.
        with engine.reading() as database:
            (pages,) = database.execute_sql("PRAGMA page_count").fetchone()
        engine.database.pragma("max_page_count", pages + 100, permanent=True)
        client = service.operator
        create_workspace(client)
        made = server_key(client)
        register(client, "user-1", "battery-1")
        registered = fill(service)
        assert registered

        found = refused(register_all, client, *(one(f"more-{number}" + "x" * 100) for number in range(100)))

        assert (found.code, found.reason) == UNAVAILABLE
        assert found.retry_seconds
        assert reason(client, made.api_key, "battery-1") == "PERMITTED"
        assert health(service.channel) == "SERVING"
        assert service.query("SELECT count(*) AS number FROM device") == [{"number": registered + 1}]
    with running_service(tmp_path) as service:
        register(service.operator, "user-1", "battery-2")
        assert reason(service.operator, made.api_key, "battery-2") == "PERMITTED"
