"""doctor: what is wrong, and what to do about it."""

from __future__ import annotations

import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
import pytest

from server import app, doctor
from server.doctor import Finding, Level
from server.settings import Settings
from server.store import schema
from server.store.postgres_condition import PostgresCondition
from tests.harness import Service, running_service
from tests.operate.certificates import DAY, Authority, Certificate, Validity, make_certificate
from tests.operate.process import environment, run, serving
from tests.postgres import Postgres
from tests.wire.links_helpers import BACKEND_URI, create_link, create_workspace, server_key

ONE = f"one {'a1' * 32}"
TWO = f"two {'b2' * 32}"
LACKS_ALL = "it lacks " + ", ".join(sorted(path.stem for path in schema.MIGRATIONS.glob("0*.py")))
CLIENT_VARIABLES = {"TEXTURE_AUTH_ADDRESS", "TEXTURE_AUTH_CALLER_KEY"}

Look = Callable[..., list[Finding]]


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder with peppers and a migrated database, for their owner alone."""
    (tmp_path / "peppers").touch(0o600)
    (tmp_path / "peppers").write_text(ONE)
    app.migrate(Settings(database=f"sqlite:{tmp_path / 'auth.db'}"))
    app.bootstrap(Settings(database=f"sqlite:{tmp_path / 'auth.db'}", peppers_file=tmp_path / "peppers"), "operator")
    return tmp_path


def flags_of(folder: Path, **changes: object) -> dict[str, object]:
    """Return the settings with which all is well."""
    chosen = {"database": f"sqlite:{folder / 'auth.db'}", "peppers_file": folder / "peppers"}
    return {**chosen, "insecure_plaintext": True, **changes}


@pytest.fixture
def look(prepared: Path) -> Look:
    """Examine the prepared folder with other settings."""

    def examine(variables: Mapping[str, str] | None = None, now: datetime | None = None, **changes: object) -> Any:
        clock = app.system_clock if now is None else lambda: now
        return list(doctor.examine(flags_of(prepared, **changes), variables or {}, CLIENT_VARIABLES, clock))

    return examine


def bad(found: list[Finding]) -> list[tuple[str, str, str]]:
    """Return check, level and text of those that are not well, each of which must say what to do."""
    worse = [finding for finding in found if finding.level is not Level.OK]
    assert all(finding.to_do for finding in worse)
    return [(finding.check, finding.level.value, finding.found) for finding in worse]


def only(found: list[Finding]) -> tuple[str, str, str]:
    """Return the one finding that is not well."""
    (one,) = bad(found)
    return one


def texts(found: list[Finding], check: str) -> list[str]:
    return [finding.found for finding in found if finding.check == check]


def tables_of(path: Path) -> dict[str, bytes]:
    """Return what is in the folder of a database, by name."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.is_file()}


class TestCommand:
    def test_all_is_well_with_a_prepared_store_and_nothing_is_changed(self, prepared: Path) -> None:
        before = tables_of(prepared)
        done = run(
            prepared,
            *("doctor", "--database", "sqlite:auth.db", "--peppers-file", "peppers", "--insecure-plaintext"),
        )
        assert done.returncode == 0, done.stdout + done.stderr
        assert tables_of(prepared) == before
        lines = done.stdout.splitlines()
        assert {line.split()[0] for line in lines} == {"ok"}
        assert {line.split()[1] for line in lines} == {"settings", "peppers", "database", "schema", "clock", "tls"}
        assert done.stderr == ""

    def test_it_exits_with_1_on_a_failure_and_says_the_same_in_json(self, prepared: Path) -> None:
        arguments = ("doctor", "--database", "sqlite:auth.db", "--peppers-file", "peppers")
        done = run(prepared, *arguments)
        assert done.returncode == 1
        failure = next(line for line in done.stdout.splitlines() if line.startswith("failure"))
        assert "TEXTURE_AUTH_TLS_CERTIFICATE" in failure
        assert " -> " in failure
        as_json = run(prepared, *arguments, "--json")
        assert as_json.returncode == 1
        report = json.loads(as_json.stdout)
        assert report["healthy"] is False
        assert [row["check"] for row in report["findings"] if row["level"] == "failure"] == ["tls"]

    def test_warnings_alone_exit_with_0(self, prepared: Path) -> None:
        (prepared / "peppers").chmod(0o644)
        arguments = ("doctor", "--database", "sqlite:auth.db", "--peppers-file", "peppers", "--insecure-plaintext")
        done = run(prepared, *arguments, "--json")
        assert done.returncode == 0
        assert json.loads(done.stdout)["healthy"] is True
        assert "warning" in done.stdout

    def test_beside_a_server_that_writes_it_leaves_everything_as_it_is(self, prepared: Path) -> None:
        own = ("--database", "sqlite:auth.db", "--peppers-file", "peppers", "--insecure-plaintext")
        with serving(prepared, *own):
            names = {file.name for file in prepared.iterdir()}
            assert {"auth.db-wal", "auth.db-shm"} <= names
            done = run(prepared, "doctor", *own)
            assert done.returncode == 0, done.stdout
            assert {file.name for file in prepared.iterdir()} == names

    def test_the_variables_of_the_command_line_itself_are_known(self, prepared: Path) -> None:
        own = {
            "TEXTURE_AUTH_ADDRESS": "127.0.0.1:1",
            "TEXTURE_AUTH_CALLER_KEY": "x",
            "TEXTURE_AUTH_CALLER_KEY_FILE": "x",
            "TEXTURE_AUTH_TLS_CA": str(make_certificate(prepared).chain),
            "TEXTURE_AUTH_CLIENT_PLAINTEXT": "1",
        }
        arguments = ("doctor", "--database", "sqlite:auth.db", "--peppers-file", "peppers", "--insecure-plaintext")
        done = run(prepared, *arguments, env=own)
        assert done.returncode == 0
        assert "warning" not in done.stdout


class TestSettings:
    def test_bad_values_are_told_all_at_once_and_never_quoted(
        self, look: Look, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("TEXTURE_AUTH_LISTEN", "5ec2e7-nowhere")
        monkeypatch.setenv("TEXTURE_AUTH_THREADS", "5ec2e7")
        found = look()
        assert [finding.level for finding in found] == [Level.FAILURE] * 2
        assert {finding.found.split(":")[0] for finding in found} == {"TEXTURE_AUTH_LISTEN", "TEXTURE_AUTH_THREADS"}
        assert "5ec2e7" not in str(found)

    @pytest.mark.parametrize(
        ("name", "nearest"),
        [
            ("TEXTURE_AUTH_THREDS", "TEXTURE_AUTH_THREADS"),
            ("TEXTURE_AUTH_TLS_CERT", "TEXTURE_AUTH_TLS_CERTIFICATE"),
            ("TEXTURE_AUTH_CALLERKEY", "TEXTURE_AUTH_CALLER_KEY"),
            ("TEXTURE_AUTH_", "texture-auth serve --help"),
        ],
    )
    def test_a_variable_that_nothing_reads_is_named_with_the_nearest_that_is_read(
        self, look: Look, name: str, nearest: str
    ) -> None:
        found = look({name: "5ec2e7", "HOME": "/", "texture_auth_threads": "3"})
        assert only(found) == ("settings", "warning", f"{name} is set, and nothing reads it")
        assert nearest in found[0].to_do
        assert "5ec2e7" not in str(found)


class TestMetrics:
    @pytest.mark.parametrize("listen", ["127.0.0.1:9464", "[::1]:9464", "localhost:0"])
    def test_on_loopback_all_is_well(self, look: Look, listen: str) -> None:
        assert texts(look(metrics_listen=listen), "metrics") == [f"served on {listen}, on loopback only"]

    def test_elsewhere_whoever_asks_is_answered(self, look: Look) -> None:
        found = look(metrics_listen="192.0.2.1:9464")
        assert only(found) == ("metrics", "warning", "served on 192.0.2.1:9464, in plain text and to whoever asks")

    def test_where_there_are_none_nothing_is_said(self, look: Look) -> None:
        assert texts(look(), "metrics") == []


class TestEnvoy:
    def test_a_file_of_routes_is_read(self, look: Look, tmp_path: Path) -> None:
        routes = tmp_path / "routes.txt"
        routes.write_text("GET /v1/devices devices:list\n")
        assert texts(look(envoy=True, envoy_routes=routes), "envoy") == [f"answered, with the routes of {routes}"]
        routes.write_text("GET /v1/devices devices:lost\n")
        found = look(envoy=True, envoy_routes=routes)
        assert only(found)[:2] == ("envoy", "failure")
        assert "TEXTURE_AUTH_ENVOY_ROUTES: line 1: the permission must be" in str(found)

    def test_without_one_it_is_said_what_that_means(self, look: Look) -> None:
        assert "or are denied" in texts(look(envoy=True), "envoy")[0]
        assert texts(look(), "envoy") == []


class TestSqlite:
    def test_a_missing_file_is_a_failure_and_is_not_made(self, look: Look, prepared: Path) -> None:
        found = look(database=f"sqlite:{prepared / 'other' / 'auth.db'}")
        assert only(found)[:2] == ("database", "failure")
        assert "texture-auth migrate" in str(found)
        assert not (prepared / "other").exists()

    def test_what_development_will_make_is_no_failure_and_is_not_made(self, look: Look, tmp_path: Path) -> None:
        new = tmp_path / "new"
        found = look(database=f"sqlite:{new / 'auth.db'}", development=True, peppers_file=None)
        assert bad(found) == []
        assert not new.exists()

    def test_a_file_that_is_no_database_is_a_failure(self, look: Look, prepared: Path) -> None:
        (prepared / "auth.db").write_text("this is no database " * 1000)
        check, level, text = only(look())
        assert (check, level) == ("database", "failure")
        assert "not a database" in text

    def test_a_database_of_another_program_is_a_failure(self, look: Look, prepared: Path) -> None:
        with closing(sqlite3.connect(prepared / "other.db")) as database:
            database.execute("CREATE TABLE note (text)")
        (prepared / "other.db").chmod(0o600)
        found = look(database=f"sqlite:{prepared / 'other.db'}")
        assert [one[2] for one in bad(found)] == [f"sqlite:{prepared / 'other.db'} is a database of another program"]

    def test_a_damaged_database_is_a_failure(self, look: Look, prepared: Path) -> None:
        damage(prepared / "auth.db")
        assert ("database", "failure") in {one[:2] for one in bad(look())}

    def test_a_file_that_others_may_read_is_a_warning(self, look: Look, prepared: Path) -> None:
        (prepared / "auth.db").chmod(0o640)
        found = look()
        assert only(found)[:2] == ("database", "warning")
        assert f"chmod 600 {prepared / 'auth.db'}" in {finding.to_do for finding in found}

    def test_a_log_that_is_off_is_a_warning_and_stays_off(self, look: Look, prepared: Path) -> None:
        with closing(sqlite3.connect(prepared / "auth.db")) as database:
            database.execute("PRAGMA journal_mode = DELETE")
        assert "write-ahead log is off" in only(look())[2]
        with closing(sqlite3.connect(prepared / "auth.db")) as database:
            assert database.execute("PRAGMA journal_mode").fetchone() == ("delete",)

    def test_a_disk_that_is_nearly_full_is_a_warning(self, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage("/")._replace(free=doctor.LEAST_FREE - 1)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        assert only(look())[2] == "only 256.0 MiB are free beside the database"

    def test_what_a_log_that_was_left_behind_holds_is_seen_and_left_there(self, look: Look, prepared: Path) -> None:
        program = (
            "import dataclasses, os, sys; from pathlib import Path\n"
            "from server import app; from server.settings import Settings\n"
            "folder = Path(sys.argv[1])\n"
            "settings = Settings(database=f'sqlite:{folder}/auth.db', peppers_file=folder / 'peppers')\n"
            "database = app.open_database(settings)\n"
            "with database.store.write() as writer:\n"
            "    caller = writer.caller('operator')\n"
            "    writer.replace_caller(dataclasses.replace(caller, revoke_time=app.system_clock()))\n"
            "os._exit(0)"
        )
        run_program(program, str(prepared))
        log = prepared / "auth.db-wal"
        before = log.read_bytes()
        assert before
        assert "under one: secrets of keys: 0, of callers: 0; open Connect links: 0" in texts(look(), "peppers")
        assert log.read_bytes() == before


class TestSchema:
    @pytest.mark.parametrize(
        ("statement", "text", "to_do"),
        [
            ("DELETE FROM schema_migration", LACKS_ALL, "run 'texture-auth migrate'"),
            (
                "INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2030-01-01')",
                "it was migrated by a newer release (9999_later)",
                "run that release",
            ),
        ],
    )
    def test_another_releases_schema_is_a_failure(
        self, look: Look, prepared: Path, statement: str, text: str, to_do: str
    ) -> None:
        with closing(sqlite3.connect(prepared / "auth.db")) as database, database:
            database.execute(statement)
        found = look()
        assert (only(found)[1], only(found)[2]) == ("failure", text)
        assert to_do in {finding.to_do for finding in found}

    def test_an_empty_file_lacks_every_migration(self, look: Look, prepared: Path) -> None:
        (prepared / "empty.db").touch(0o600)
        assert ("schema", "failure", LACKS_ALL) in bad(look(database=f"sqlite:{prepared / 'empty.db'}"))


class TestPeppers:
    def test_they_are_counted_and_one_that_nothing_needs_may_be_removed(self, tmp_path: Path) -> None:
        with running_service(tmp_path, peppers=ONE) as service:
            key_id = furnish(service)
        found = examine_peppers(tmp_path, f"{TWO}\n{ONE}")
        assert bad(found) == []
        told = texts(found, "peppers")
        assert "two signs, and one verify only" in told
        assert "under two: secrets of keys: 0, of callers: 0; open Connect links: 0" in told
        counts = "under one: secrets of keys: 1, of callers: 1; open Connect links: 1, such as those of "
        assert f"{counts}{key_id}, dev-operator" in told
        told = texts(examine_peppers(tmp_path, f"{ONE}\n{TWO}"), "peppers")
        assert "under two: nothing in force; it may be removed" in told

    def test_one_that_is_needed_and_not_here_is_a_failure(self, tmp_path: Path) -> None:
        with running_service(tmp_path, peppers=ONE) as service:
            furnish(service)
        check, level, text = only(examine_peppers(tmp_path, TWO))
        assert (check, level) == ("peppers", "failure")
        assert text == "one is not here, and is needed: secrets of keys: 1, of callers: 1; open Connect links: 1"

    @pytest.mark.parametrize("content", [None, f"{'a1' * 32} one", "one a1", ""])
    def test_those_that_cannot_be_read_are_a_failure_and_not_quoted(
        self, look: Look, prepared: Path, content: str | None
    ) -> None:
        (prepared / "peppers").unlink()
        if content is not None:
            (prepared / "peppers").touch(0o600)
            (prepared / "peppers").write_text(content)
        found = look()
        assert bad(found)[0][:2] == ("peppers", "failure")
        assert "TEXTURE_AUTH_PEPPERS_FILE" in bad(found)[0][2]
        assert ("one is not here" in bad(found)[1][2]) == (len(bad(found)) == 2)
        assert "a1" not in str(found)

    def test_a_file_that_others_may_read_is_a_warning(self, look: Look, prepared: Path) -> None:
        (prepared / "peppers").chmod(0o604)
        assert only(look()) == (
            "peppers",
            "warning",
            f"{prepared / 'peppers'} is open to other users of this machine",
        )


class TestTls:
    def tls(self, look: Look, made: Certificate, now: datetime | None = None) -> list[Finding]:
        found = look(now=now, insecure_plaintext=None, tls_certificate=made.chain, tls_private_key=made.private_key)
        return [finding for finding in found if finding.check == "tls"]

    def test_a_certificate_in_order_is_well_and_its_names_are_listed(self, look: Look, tmp_path: Path) -> None:
        authority = Authority(tmp_path)
        made = authority.issue(
            "server",
            hosts=("auth.example", "127.0.0.1"),
            uris=("spiffe://example/auth",),
            validity=Validity(ends=90 * DAY),
            with_chain=True,
        )
        found = self.tls(look, made)
        assert bad(found) == []
        assert "auth.example, 127.0.0.1, spiffe://example/auth" in found[0].found
        assert len(found) == 3

    @pytest.mark.parametrize(
        ("validity", "level", "text"),
        [
            (Validity(ends=29 * DAY), "warning", "is valid until"),
            (Validity(ends=31 * DAY), None, ""),
            (Validity(begins=-3 * DAY, ends=-DAY), "failure", "expired on"),
            (Validity(begins=DAY, ends=90 * DAY), "failure", "is not valid before"),
        ],
    )
    def test_its_time_is_looked_at(
        self, look: Look, tmp_path: Path, validity: Validity, level: str | None, text: str
    ) -> None:
        found = self.tls(look, make_certificate(tmp_path, validity=validity))
        if level is None:
            assert bad(found) == []
        else:
            assert only(found)[1] == level
            assert text in only(found)[2]

    def test_an_issuer_that_has_expired_is_a_failure_too(self, look: Look, tmp_path: Path) -> None:
        made = Authority(tmp_path).issue(
            "server", hosts=("localhost",), validity=Validity(ends=9999 * DAY), with_chain=True
        )
        found = self.tls(look, made, now=datetime.now(UTC) + 4000 * DAY)
        assert "certificate 2 of 2 expired" in only(found)[2]

    def test_a_certificate_without_names_is_a_warning(self, look: Look, tmp_path: Path) -> None:
        found = self.tls(look, make_certificate(tmp_path, hosts=(), validity=Validity(ends=90 * DAY)))
        assert "no subject alternative names" in only(found)[2]

    def test_a_chain_that_does_not_hold_together_is_a_warning(self, look: Look, tmp_path: Path) -> None:
        made = Authority(tmp_path).issue("server", hosts=("localhost",), validity=Validity(ends=90 * DAY))
        with made.chain.open("ab") as file:
            file.write(Authority(tmp_path, "another").certificate.read_bytes())
        assert "out of order" in only(self.tls(look, made))[2]

    def test_a_key_of_another_certificate_is_a_failure(self, look: Look, tmp_path: Path) -> None:
        made = Certificate(make_certificate(tmp_path).chain, make_certificate(tmp_path, "other").private_key)
        found = self.tls(look, made)
        assert only(found)[1] == "failure"
        assert "is not the private key of" in only(found)[2]
        assert "the key is of" in found[0].to_do

    def test_a_file_that_is_missing_is_a_failure(self, look: Look, tmp_path: Path) -> None:
        made = make_certificate(tmp_path)
        made.chain.unlink()
        assert only(self.tls(look, made))[1] == "failure"

    def test_a_private_key_that_others_may_read_is_a_warning(self, look: Look, tmp_path: Path) -> None:
        made = make_certificate(tmp_path, validity=Validity(ends=90 * DAY))
        made.private_key.chmod(0o644)
        assert only(self.tls(look, made))[1:] == (
            "warning",
            f"{made.private_key} is open to other users of this machine",
        )

    def test_without_tls_it_says_what_serve_would(self, look: Look) -> None:
        assert "keys must not cross a network in plain text" in only(look(insecure_plaintext=None))[2]
        assert only(look(listen="0.0.0.0:50051"))[1] == "warning"


class TestClock:
    def test_an_event_of_the_future_is_a_warning(self, look: Look) -> None:
        check, level, text = only(look(now=datetime.now(UTC) - timedelta(minutes=5)))
        assert (check, level) == ("clock", "warning")
        assert "in the future" in text

    @pytest.mark.parametrize(("seconds", "level"), [(0.9, "ok"), (2, "warning"), (61, "failure")])
    @pytest.mark.parametrize("sign", [1, -1])
    def test_how_far_two_clocks_are_apart_says_how_bad_it_is(self, seconds: float, sign: int, level: str) -> None:
        condition = PostgresCondition("18.0", 18, False, (), 100, timedelta(seconds=sign * seconds))
        assert doctor._postgres_clock(condition).level.value == level


class TestPostgres:
    def examine(self, url: str, folder: Path, **changes: Any) -> list[Finding]:
        flags = flags_of(folder, database=url, **changes)
        return list(doctor.examine(flags, {}, CLIENT_VARIABLES))

    def test_all_is_well_but_for_what_these_tests_turned_off(self, postgres_url: str, prepared: Path) -> None:
        settings = Settings(database=postgres_url, peppers_file=prepared / "peppers")
        app.bootstrap(settings, "operator")
        found = self.examine(postgres_url, prepared)
        assert {one[2].split()[0] for one in bad(found)} == {"fsync", "full_page_writes", "synchronous_commit"}
        assert {one[1] for one in bad(found)} == {"warning"}
        assert "under one: secrets of keys: 0, of callers: 1; open Connect links: 0" in texts(found, "peppers")
        assert texts(found, "schema") == ["it is this release's"]
        assert len(texts(found, "clock")) == 2

    def test_a_setting_of_this_database_counts_and_not_another_ones(self, postgres_url: str, prepared: Path) -> None:
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            name = connection.info.dbname
            connection.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = on'.encode())
        found = self.examine(postgres_url, prepared)
        assert "synchronous_commit" not in str(bad(found))

    def test_a_clock_that_is_off_is_found(self, postgres_url: str, prepared: Path) -> None:
        flags = flags_of(prepared, database=postgres_url)

        def slow() -> datetime:
            return app.system_clock() - timedelta(seconds=90)

        found = list(doctor.examine(flags, {}, CLIENT_VARIABLES, slow))
        (text,) = [one[2] for one in bad(found) if one[1] == "failure"]
        assert "ahead of this machine's" in text

    def test_more_threads_than_connections_are_a_warning(self, postgres_url: str, prepared: Path) -> None:
        found = self.examine(postgres_url, prepared, threads=256)
        assert any("one of these servers takes up to 265" in one[2] for one in bad(found))

    def test_the_connections_of_all_workers_of_a_server_are_counted(self, postgres_url: str, prepared: Path) -> None:
        found = self.examine(postgres_url, prepared, threads=8, workers=30)
        assert any("one of these servers takes up to 510" in one[2] for one in bad(found))

    def test_a_database_that_was_not_migrated_is_a_failure(self, postgres: Postgres, prepared: Path) -> None:
        url = postgres.new_database(migrated=False)
        try:
            found = self.examine(url, prepared)
        finally:
            postgres.drop(url)
        assert ("schema", "failure", LACKS_ALL) in bad(found)

    def test_a_standby_and_a_release_that_was_not_tested_are_found(self) -> None:
        # What a standby answers is known; running one here is not worth the minutes.
        condition = PostgresCondition("12.4", 12, True, (), 100, timedelta())
        found = list(doctor._postgres(Settings(database="postgresql://h/d"), condition))
        assert [(one[1], one[2][:20]) for one in bad(found)] == [
            ("warning", "postgresql://h/d: Po"),
            ("failure", "this is a standby: n"),
        ]

    def test_one_that_cannot_be_reached_is_a_failure_with_the_reason(self, prepared: Path) -> None:
        found = self.examine("postgresql://u@127.0.0.1:1/d", prepared)
        assert only(found)[:2] == ("database", "failure")
        assert "refused" in only(found)[2]

    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://u:5ec2e7@127.0.0.1:1/d",
            "postgresql://u:a@5ec2e7@127.0.0.1:1/d",
            "postgresql://u:a/5ec2e7@127.0.0.1:1/d",
            "postgresql://u:a?5ec2e7@127.0.0.1:1/d",
            "postgresql://u@127.0.0.1:1/d?password=5ec2e7",
        ],
    )
    def test_a_password_in_the_url_is_never_told(self, prepared: Path, url: str) -> None:
        found = self.examine(url, prepared)
        assert only(found)[:2] == ("database", "failure")
        assert "5ec2e7" not in str(found)

    def test_a_user_without_rights_is_a_failure(self, postgres_url: str, prepared: Path) -> None:
        role = f"nobody_{prepared.name.replace('-', '_')}"[:60]
        with psycopg.connect(postgres_url, autocommit=True) as connection:
            connection.execute(f'CREATE ROLE "{role}" LOGIN'.encode())
            try:
                url = f"{postgres_url}{'&' if '?' in postgres_url else '?'}options=-crole%3D{role}"
                found = self.examine(url, prepared)
            finally:
                connection.execute(f'DROP ROLE "{role}"'.encode())
        assert any("may read every table" in finding.to_do for finding in found)


def furnish(service: Service) -> str:
    """Make a key and an open link with it; return the key's id."""
    create_workspace(service.operator)
    made = server_key(service.operator)
    create_link(service.operator, made.api_key, BACKEND_URI)
    return made.key.key_id


def examine_peppers(folder: Path, peppers: str) -> list[Finding]:
    """Examine what `running_service` left in a folder, at its clock, with these peppers."""
    flags = {"database": f"sqlite:{folder / 'texture-auth.db'}", "peppers": peppers, "insecure_plaintext": True}
    return list(doctor.examine(flags, {}, (), lambda: datetime(2030, 1, 1, 12, 1, tzinfo=UTC)))


def damage(path: Path) -> None:
    """Overwrite the middle of a database with noise."""
    content = bytearray(path.read_bytes())
    content[4096 : len(content) - 4096] = b"\xa5" * (len(content) - 8192)
    path.write_bytes(content)


def run_program(program: str, *arguments: str) -> None:
    """Run some Python in a process of its own."""
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=60, env=environment())
