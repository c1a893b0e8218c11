"""A production server: it starts on what was prepared for it, or says what to do."""

from __future__ import annotations

import socket
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from texture.auth.v1 import caller_service_pb2 as caller_pb

from server import app
from server.settings import Settings
from tests.operate.certificates import make_certificate
from tests.operate.process import client, environment, health_stub, run, serving
from tests.wire.links_helpers import create_workspace, reason, server_key

PEPPERS = f"2030-01 {'a1' * 32}\n"
PLAINTEXT = ("--insecure-plaintext", "--peppers-file", "peppers", "--database", "sqlite:auth.db")


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder with peppers and a migrated database."""
    (tmp_path / "peppers").write_text(PEPPERS)
    app.migrate(settings(tmp_path))
    return tmp_path


def settings(folder: Path) -> Settings:
    return Settings(database=f"sqlite:{folder / 'auth.db'}", peppers_file=folder / "peppers")


def bootstrap(folder: Path, caller_id: str = "operator") -> str:
    """Do what the command does, in this process."""
    return app.bootstrap(settings(folder), caller_id)


def refusal(folder: Path, *flags: str, code: int = 1) -> str:
    done = run(folder, "serve", "--listen", "127.0.0.1:0", *flags)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_migrate_makes_a_database_for_its_owner_alone_and_says_what_it_did(tmp_path: Path) -> None:
    done = run(tmp_path, "migrate", "--database", "sqlite:some/folder/auth.db")
    assert done.returncode == 0, done.stderr
    assert "applied 0001_initial" in done.stdout
    assert stat.S_IMODE((tmp_path / "some" / "folder" / "auth.db").stat().st_mode) == 0o600
    again = run(tmp_path, "migrate", "--database", "sqlite:some/folder/auth.db")
    assert (again.returncode, again.stdout) == (0, "nothing to do\n")


def test_it_works_on_a_bootstrapped_operator(prepared: Path) -> None:
    done = run(prepared, "bootstrap", "--database", "sqlite:auth.db", "--peppers-file", "peppers")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    key = done.stdout.strip()
    with serving(prepared, *PLAINTEXT) as server, client(server, key) as calling:
        create_workspace(calling)
        assert reason(calling, server_key(calling).api_key) == "PERMITTED"
        caller = calling.callers.GetCaller(caller_pb.GetCallerRequest(caller_id="operator")).caller
        assert caller.display_name == "operator"
        assert key not in server.output


def test_bootstrap_says_on_standard_error_that_the_key_is_shown_once(prepared: Path) -> None:
    done = run(prepared, "bootstrap", "first", "--database", "sqlite:auth.db", "--peppers-file", "peppers")
    assert done.stdout.startswith("txk_svc_")
    assert "first" in done.stderr
    assert "once" in done.stderr
    assert done.stdout.strip() not in done.stderr


def test_bootstrap_refuses_a_name_that_is_taken_and_takes_another(prepared: Path) -> None:
    bootstrap(prepared, "first")
    done = run(prepared, "bootstrap", "first", "--database", "sqlite:auth.db", "--peppers-file", "peppers")
    assert done.returncode == 1
    assert "taken" in done.stderr
    assert done.stdout == ""
    assert bootstrap(prepared, "second").startswith("txk_svc_")


def test_bootstrap_refuses_a_database_that_was_not_migrated(tmp_path: Path) -> None:
    (tmp_path / "peppers").write_text(PEPPERS)
    (tmp_path / "auth.db").touch()
    done = run(tmp_path, "bootstrap", "--database", "sqlite:auth.db", "--peppers-file", "peppers")
    assert done.returncode == 1
    assert "texture-auth migrate" in done.stderr


def test_without_tls_it_refuses_and_says_what_to_do(prepared: Path) -> None:
    said = refusal(prepared, "--peppers-file", "peppers", "--database", "sqlite:auth.db")
    for word in (
        "TEXTURE_AUTH_TLS_CERTIFICATE",
        "TEXTURE_AUTH_TLS_PRIVATE_KEY",
        "--insecure-plaintext",
        "--development",
    ):
        assert word in said


def test_without_peppers_it_refuses_and_says_what_to_do(prepared: Path) -> None:
    said = refusal(prepared, "--insecure-plaintext", "--database", "sqlite:auth.db")
    assert "TEXTURE_AUTH_PEPPERS_FILE" in said
    assert not (prepared / "var").exists()


def test_without_a_database_it_refuses_and_names_the_command_that_makes_one(tmp_path: Path) -> None:
    (tmp_path / "peppers").write_text(PEPPERS)
    said = refusal(tmp_path, *PLAINTEXT, code=4)
    assert "texture-auth migrate" in said
    assert not (tmp_path / "auth.db").exists()


def test_on_an_old_schema_it_refuses_and_names_the_command_that_helps(prepared: Path) -> None:
    with closing(sqlite3.connect(prepared / "auth.db")) as database, database:
        database.execute("DELETE FROM schema_migration")
    said = refusal(prepared, *PLAINTEXT)
    assert "0001_initial" in said
    assert "texture-auth migrate" in said


def test_on_a_newer_schema_everything_refuses(prepared: Path) -> None:
    with closing(sqlite3.connect(prepared / "auth.db")) as database, database:
        database.execute("INSERT INTO schema_migration (name, applied) VALUES ('9999_later', '2030-01-01')")
    for arguments in (
        ("serve", *PLAINTEXT),
        ("migrate", "--database", "sqlite:auth.db"),
        ("bootstrap", "--database", "sqlite:auth.db", "--peppers-file", "peppers"),
    ):
        done = run(prepared, *arguments)
        assert done.returncode == 1, arguments
        assert "9999_later" in done.stderr
        assert "newer release" in done.stderr
        assert done.stdout == ""


def test_a_database_that_is_none_is_not_served(prepared: Path) -> None:
    (prepared / "auth.db").write_text("this is no database " * 1000)
    assert "sqlite:auth.db" in refusal(prepared, *PLAINTEXT, code=4)


def test_a_port_that_is_taken_is_a_clear_error(prepared: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = refusal(prepared, *PLAINTEXT, "--listen", address)
    assert f"cannot listen on {address}" in said


def test_a_second_server_cannot_take_half_of_the_calls(prepared: Path) -> None:
    with serving(prepared, *PLAINTEXT) as server:
        assert f"cannot listen on {server.address}" in refusal(prepared, *PLAINTEXT, "--listen", server.address)


def test_reflection_needs_an_operator(prepared: Path) -> None:
    key = bootstrap(prepared)
    asked = reflection_pb2.ServerReflectionRequest(list_services="")
    with serving(prepared, *PLAINTEXT) as server, closing(grpc.insecure_channel(server.address)) as channel:
        stub: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            next(stub.ServerReflectionInfo(iter([asked]), timeout=10))
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        metadata = (("authorization", f"Bearer {key}"),)
        answer = next(stub.ServerReflectionInfo(iter([asked]), timeout=10, metadata=metadata))
        names = {service.name for service in answer.list_services_response.service}
        assert "texture.auth.v1.AuthorizeService" in names


class TestTls:
    def test_it_serves_those_who_trust_its_certificate_and_nobody_in_plain_text(self, prepared: Path) -> None:
        certificate = make_certificate(prepared)
        key = bootstrap(prepared)
        flags = (
            *("--peppers-file", "peppers", "--database", "sqlite:auth.db"),
            *("--tls-certificate", str(certificate.chain), "--tls-private-key", str(certificate.private_key)),
        )
        with serving(prepared, *flags) as server:
            trusted = grpc.ssl_channel_credentials(certificate.chain.read_bytes())
            with closing(grpc.secure_channel(server.address, trusted)) as channel:
                answer = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
                assert answer.status == health_pb2.HealthCheckResponse.SERVING
            listing = ("--address", server.address, "callers", "list", "--json")
            own = {"TEXTURE_AUTH_CALLER_KEY": key}

            done = run(prepared, "--tls-ca", str(certificate.chain), *listing, env=own)
            assert done.returncode == 0, done.stderr
            assert '"operator"' in done.stdout
            other = make_certificate(prepared, "other")
            assert run(prepared, "--tls-ca", str(other.chain), *listing, env=own).returncode == 4
            assert run(prepared, *listing, env=own).returncode == 4
            assert key not in server.output

    @pytest.mark.parametrize("fault", ["missing", "not PEM", "not its key"])
    def test_a_certificate_that_cannot_be_served_stops_the_start_by_its_name(self, prepared: Path, fault: str) -> None:
        certificate = make_certificate(prepared)
        if fault == "missing":
            certificate.chain.unlink()
        elif fault == "not PEM":
            certificate.chain.write_text("this is no certificate")
        else:
            certificate.private_key.write_bytes(make_certificate(prepared, "other").private_key.read_bytes())
        secret = certificate.private_key.read_text().splitlines()[1]
        said = refusal(
            prepared,
            *("--peppers-file", "peppers", "--database", "sqlite:auth.db"),
            *("--tls-certificate", str(certificate.chain), "--tls-private-key", str(certificate.private_key)),
        )
        assert "TEXTURE_AUTH_TLS_" in said
        assert secret not in said


def test_settings_may_come_from_the_environment(prepared: Path) -> None:
    key = bootstrap(prepared)
    env = {
        "TEXTURE_AUTH_DATABASE": "sqlite:auth.db",
        "TEXTURE_AUTH_PEPPERS": PEPPERS,
        "TEXTURE_AUTH_INSECURE_PLAINTEXT": "true",
        "TEXTURE_AUTH_THREADS": "2",
        "TEXTURE_AUTH_LOG_LEVEL": "",
    }
    assert environment(env).items() >= env.items()
    with serving(prepared, "--log-format", "json", env=env) as server, client(server, key) as calling:
        assert calling.callers.ListCallers(caller_pb.ListCallersRequest()).callers
