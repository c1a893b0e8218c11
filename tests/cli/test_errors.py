"""What the command line does when something is wrong: exit codes, and words that help."""

from __future__ import annotations

import re
import socket
import sqlite3
import subprocess
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from tests.cli.runner import Cli
from tests.cli.test_commands import SITE, create_key
from tests.operate.process import COMMAND, DEADLINE_SECONDS, environment
from tests.wire.links_helpers import with_wrong_secret

SECRET_FORM = re.compile(r"tx[kl](_[a-z]{3})?_[0-9A-Za-z]{16}_")


class TestExitCodes:
    def test_0_done_and_allowed(self, acme: Cli) -> None:
        _, api_key = create_key(acme)
        assert acme.run("authorize", "devices:list", stdin=api_key).exit_code == 0

    def test_1_refused_with_the_reason_and_the_fields(self, acme: Cli) -> None:
        done = acme.run(
            *("keys", "create", "acme", "--kind", "server", "--display-name", "x", "--allowed-cidr", "10.1.2.3/8"),
            *("--permission", "devices:melt"),
        )
        assert done.exit_code == 1
        assert done.stdout == ""
        assert "FIELD_INVALID" in done.stderr
        assert "allowed_cidrs[0]: " in done.stderr
        assert "permissions[0]: " in done.stderr

    def test_1_refused_with_the_metadata(self, acme: Cli) -> None:
        acme.good("devices", "register", "acme", "b-1", "--reference-id", "user-1")
        done = acme.run("devices", "register", "acme", "b-1", "--reference-id", "user-2")
        assert done.exit_code == 1
        assert "DEVICE_OWNED_BY_ANOTHER" in done.stderr
        assert "device_ids: b-1" in done.stderr

    @pytest.mark.parametrize(
        "arguments",
        [
            ("nonsense",),
            ("keys", "create", "acme"),
            ("keys", "create", "acme", "--kind", "scoped", "--display-name", "x"),
            ("workspaces", "create", "acme", "--display-name", "x", "--environment", "elsewhere"),
            ("callers", "create", "abc", "--role", "king"),
            ("callers", "create", "abc"),
            ("devices", "register", "acme", "--reference-id", "user-1"),
            ("keys", "list", "acme", "--limit", "0"),
            ("keys", "list", "acme", "--limit", "many"),
            ("--timeout", "0", "callers", "list"),
            ("--tls-ca", "no-such-file", "callers", "list"),
        ],
    )
    def test_2_wrong_usage(self, cli: Cli, arguments: tuple[str, ...]) -> None:
        done = cli.run(*arguments)
        assert done.exit_code == 2
        assert done.stdout == ""

    def test_3_denied(self, acme: Cli) -> None:
        key_id, api_key = create_key(acme)
        acme.good("keys", "revoke", key_id)
        done = acme.run("authorize", "devices:list", stdin=api_key)
        assert done.exit_code == 3
        assert "KEY_REVOKED" in done.stdout

    def test_3_is_for_answers_and_a_question_that_is_wrong_is_1(self, acme: Cli) -> None:
        done = acme.run("authorize", "devices:melt", stdin="x")
        assert done.exit_code == 1
        assert "permission" in done.stderr

    def test_4_nobody_there(self, cli: Cli) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
            done = cli.run("--address", f"127.0.0.1:{port}", "--timeout", "5", "callers", "list")
        assert done.exit_code == 4
        assert "UNAVAILABLE" in done.stderr

    def test_4_no_answer_in_time(self, acme: Cli) -> None:
        with closing(sqlite3.connect(acme.service.database, isolation_level=None)) as holder:
            holder.execute("BEGIN IMMEDIATE")
            done = acme.run("--timeout", "0.2", "devices", "remove", "acme", "b-1", "--allow-missing")
        assert done.exit_code == 4
        # By this side's clock or by the server's: whoever is first.
        assert "DEADLINE_EXCEEDED" in done.stderr or "DEADLINE_TOO_SHORT" in done.stderr

    def test_4_the_store_is_away(self, cli: Cli) -> None:
        elsewhere = cli.service.database.with_name("elsewhere")
        cli.service.database.rename(elsewhere)
        done = cli.run("callers", "list")
        elsewhere.rename(cli.service.database)
        assert done.exit_code == 4
        assert "STORE_UNAVAILABLE" in done.stderr

    def test_5_no_credential(self, cli: Cli) -> None:
        done = cli.run("callers", "list", env={"TEXTURE_AUTH_CALLER_KEY": " "})
        assert done.exit_code == 5
        assert "TEXTURE_AUTH_CALLER_KEY" in done.stderr

    @pytest.mark.parametrize("key", ["nonsense", "txk_svc_ü", "unknown", "one\ntwo", "bell\x07"])
    def test_5_a_credential_that_is_not_known(self, cli: Cli, key: str) -> None:
        if key == "unknown":
            key = with_wrong_secret(cli.service.operator_key)
        done = cli.run("callers", "list", env={"TEXTURE_AUTH_CALLER_KEY": key})
        assert done.exit_code == 5
        assert key not in done.output

    def test_5_a_role_that_is_missing(self, cli: Cli) -> None:
        key = cli.json("callers", "create", "device-api", "--role", "authorizer")["caller_key"]
        done = cli.run("callers", "list", env={"TEXTURE_AUTH_CALLER_KEY": key})
        assert done.exit_code == 5
        assert "CALLER_ROLE_MISSING" in done.stderr
        assert "roles: operator" in done.stderr

    def test_5_a_credential_file_that_cannot_be_used(self, cli: Cli, tmp_path: Path) -> None:
        for name, content in (("missing", None), ("empty", b""), ("binary", b"\xff\xfe\x00")):
            path = tmp_path / name
            if content is not None:
                path.write_bytes(content)
            done = cli.run("--caller-key-file", str(path), "callers", "list")
            assert done.exit_code == 5, name


class TestCredentials:
    def test_a_file_wins_over_the_environment(self, cli: Cli, tmp_path: Path) -> None:
        path = tmp_path / "key"
        path.write_text(cli.service.operator_key + "\n")
        good = cli.run("--caller-key-file", str(path), "callers", "list", env={"TEXTURE_AUTH_CALLER_KEY": "nonsense"})
        assert good.exit_code == 0
        same = cli.run(
            "callers", "list", env={"TEXTURE_AUTH_CALLER_KEY": "x", "TEXTURE_AUTH_CALLER_KEY_FILE": str(path)}
        )
        assert same.exit_code == 0

    @pytest.mark.parametrize(
        "arguments", [("keys", "lookup"), ("authorize", "devices:read", "b-1"), ("links", "create")]
    )
    def test_a_key_as_an_argument_is_wrong_usage(self, acme: Cli, arguments: tuple[str, ...]) -> None:
        _, api_key = create_key(acme)
        for given in ((api_key,), ("--api-key", api_key)):
            assert acme.run(*arguments, *given).exit_code == 2

    def test_a_full_key_is_shown_at_its_creation_and_rotation_and_nowhere_else(self, acme: Cli) -> None:
        made = acme.run("keys", "create", "acme", "--kind", "server", "--display-name", "x")
        key_id = made.stdout.split()[-1].split("_")[2]
        rotated = acme.run("keys", "rotate", key_id, "--json")
        assert SECRET_FORM.search(made.stdout)
        assert SECRET_FORM.search(rotated.stdout)
        caller = acme.run("callers", "create", "abc", "--role", "devices")
        assert SECRET_FORM.search(caller.stdout)
        for done in (made, rotated, caller):
            assert not SECRET_FORM.search(done.stderr)
        site = create_key(acme, "connect")[1]
        token = acme.good("links", "create", "--redirect-uri", SITE, "--only-token", stdin=site)
        for arguments in (
            ("keys", "get", key_id),
            ("keys", "list", "acme"),
            ("keys", "events", key_id),
            ("keys", "suspend", key_id),
            ("callers", "get", "abc"),
            ("callers", "list"),
            ("links", "get", token.split("_")[1]),
        ):
            for form in ((), ("--json",)):
                assert not SECRET_FORM.search(acme.run(*arguments, *form).output), arguments
        looked_up = acme.run("keys", "lookup", stdin=site)
        assert not SECRET_FORM.search(looked_up.output)

    def test_no_error_repeats_a_key(self, acme: Cli) -> None:
        _, api_key = create_key(acme)
        for given in (with_wrong_secret(api_key), api_key[:-1], api_key + " x"):
            for arguments in (("keys", "lookup"), ("links", "create", "--redirect-uri", SITE), ("links", "get")):
                done = acme.run(*arguments, stdin=given)
                assert done.exit_code == 1
                assert given[30:50] not in done.output

    def test_noise_from_standard_input_is_answered_like_any_other(self, acme: Cli) -> None:
        done = subprocess.run(
            [*COMMAND, "authorize", "devices:list"],
            env=environment(
                {"TEXTURE_AUTH_ADDRESS": acme.service.address, "TEXTURE_AUTH_CALLER_KEY": acme.service.operator_key}
            ),
            input=b"\xff\xfe\x00noise",
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        assert b"Traceback" not in done.stderr
        assert done.returncode in (1, 2, 3)


class TestPlainText:
    @contextmanager
    def listener(self) -> Iterator[tuple[int, list[bytes]]]:
        """Listen, keep what is sent, and answer nothing."""
        received: list[bytes] = []
        with socket.create_server(("127.0.0.1", 0)) as server:

            def accept() -> None:
                while True:
                    try:
                        connection, _ = server.accept()
                    except OSError:
                        return
                    with connection:
                        connection.settimeout(2)
                        with suppress(OSError):
                            received.append(connection.recv(4096))

            thread = threading.Thread(target=accept, daemon=True)
            thread.start()
            yield server.getsockname()[1], received
            server.shutdown(socket.SHUT_RDWR)
            thread.join(DEADLINE_SECONDS)

    @pytest.mark.parametrize("host", ["0.0.0.0", "ipv4:127.0.0.1"])  # loopback in truth, but not by its name
    def test_a_credential_goes_to_another_host_in_tls_only(self, cli: Cli, host: str) -> None:
        with self.listener() as (port, received):
            done = cli.run("--address", f"{host}:{port}", "--timeout", "3", "callers", "list")
        assert done.exit_code == 4
        assert received
        assert all(data[:1] == b"\x16" for data in received if data), "nothing but the beginning of a TLS handshake"

    def test_unless_it_is_told_to_by_name(self, cli: Cli) -> None:
        port = cli.service.address.rpartition(":")[2]
        address = ("--address", f"ipv4:127.0.0.1:{port}")
        assert cli.run(*address, "--timeout", "3", "callers", "list").exit_code == 4
        assert cli.run(*address, "--insecure-plaintext", "callers", "list").exit_code == 0
        told = {"TEXTURE_AUTH_CLIENT_PLAINTEXT": "true"}
        assert cli.run(*address, "callers", "list", env=told).exit_code == 0

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1"])
    def test_loopback_needs_no_words(self, cli: Cli, host: str) -> None:
        port = cli.service.address.rpartition(":")[2]
        assert cli.run("--address", f"{host}:{port}", "callers", "list").exit_code == 0

    @pytest.mark.parametrize("variable", ["http_proxy", "grpc_proxy"])
    def test_what_is_meant_for_loopback_does_not_go_through_a_proxy(self, cli: Cli, variable: str) -> None:
        with self.listener() as (port, received):
            done = subprocess.run(
                [*COMMAND, "--timeout", "5", "callers", "list"],
                env=environment(
                    {
                        "TEXTURE_AUTH_ADDRESS": cli.service.address,
                        "TEXTURE_AUTH_CALLER_KEY": cli.service.operator_key,
                        variable: f"http://127.0.0.1:{port}",
                    }
                ),
                capture_output=True,
                timeout=DEADLINE_SECONDS,
                check=False,
            )
        assert received == []
        assert done.returncode == 0


class TestTyping:
    @pytest.mark.parametrize("length", ["", "1", "h", "1w", "1.5h", "-1h", "1h30m", " 1h", "1h ", "1 h", "1000000d"])
    def test_a_length_that_is_none_is_wrong_usage(self, cli: Cli, length: str) -> None:
        done = cli.run("keys", "rotate", "0" * 16, "--overlap", length)
        assert done.exit_code == 2
        assert "90s, 15m, 24h or 30d" in done.stderr

    @pytest.mark.parametrize(
        "time", ["", "tomorrow", "2031-01-01", "2031-01-01T00:00:00", "2031-13-01T00:00:00Z", "1735689600"]
    )
    def test_a_time_that_is_none_is_wrong_usage(self, cli: Cli, time: str) -> None:
        done = cli.run("keys", "update", "0" * 16, "--expires", time)
        assert done.exit_code == 2
        assert "2030-01-31T12:00:00Z" in done.stderr

    @pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00"])
    def test_a_time_at_the_end_of_time_is_no_fault_of_the_command(self, acme: Cli, time: str) -> None:
        key_id, _ = create_key(acme)
        assert acme.run("keys", "update", key_id, "--expires", time).exit_code in (1, 2)

    @pytest.mark.parametrize(
        ("time", "expected"),
        [
            ("2031-01-31T12:00:00Z", "2031-01-31T12:00:00Z"),
            ("2031-01-31T12:00:00+02:00", "2031-01-31T10:00:00Z"),
            ("2031-01-31 12:00:00.250Z", "2031-01-31T12:00:00.250Z"),
        ],
    )
    def test_a_time_may_be_written(self, acme: Cli, time: str, expected: str) -> None:
        key_id, _ = create_key(acme)
        assert acme.json("keys", "update", key_id, "--expires", time)["key"]["expire_time"] == expected

    def test_a_time_may_be_a_length_from_now(self, acme: Cli) -> None:
        # The service's clock stands in 2030, the command's is the real one.
        key_id, _ = create_key(acme)
        assert acme.run("keys", "update", key_id, "--expires", "36000d").exit_code == 0
        past = acme.run("keys", "update", key_id, "--expires", "1s")
        assert past.exit_code == 1
        assert "key.expire_time" in past.stderr

    @pytest.mark.parametrize("label", ["nonsense", ""])
    def test_a_label_without_a_value_is_wrong_usage(self, cli: Cli, label: str) -> None:
        done = cli.run("keys", "list", "acme", "--label", label)
        assert done.exit_code == 2
        assert "NAME=VALUE" in done.stderr

    def test_nothing_to_update_is_refused(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        for arguments in (("keys", "update", key_id), ("workspaces", "update", "acme"), ("callers", "update", "abc")):
            done = acme.run(*arguments)
            assert done.exit_code == 1
            assert "update_mask" in done.stderr


class TestPaging:
    def test_a_list_ends_at_its_limit_and_says_that_there_is_more(self, acme: Cli) -> None:
        acme.good("devices", "register", "acme", *(f"b-{number}" for number in range(5)), "--reference-id", "user-1")
        few = acme.run("devices", "list", "acme", "--limit", "3", "--json")
        assert few.stdout.count('"device_id"') == 3
        assert "--limit" in few.stderr
        exact = acme.run("devices", "list", "acme", "--limit", "5", "--json")
        assert exact.stdout.count('"device_id"') == 5
        assert exact.stderr == ""

    def test_a_list_goes_beyond_the_largest_page(self, acme: Cli) -> None:
        for start in (0, 1000):
            names = (f"b-{number}" for number in range(start, start + 1000))
            acme.good("devices", "register", "acme", *names, "--reference-id", "user-1")
        acme.good("devices", "register", "acme", "the-last", "--reference-id", "user-1")
        done = acme.run("devices", "list", "acme", "--limit", "5000")
        assert len(done.stdout.splitlines()) == 2002
        assert done.stderr == ""

    def test_in_a_pipe_nothing_is_wrapped(self, acme: Cli) -> None:
        name = "x" * 128
        acme.good("devices", "register", "acme", name, "--reference-id", "y" * 128, "--manufacturer", "z" * 64)
        (line,) = acme.good("devices", "list", "acme").splitlines()[1:]
        assert line.split()[:4] == [name, "acme", "y" * 128, "z" * 64]

    def test_words_in_brackets_are_printed_as_they_are(self, acme: Cli) -> None:
        key_id, _ = create_key(acme)
        acme.good("keys", "update", key_id, "--display-name", "[red]Backend[/red] :boom:")
        assert "[red]Backend[/red] :boom:" in acme.good("keys", "get", key_id)
        assert "[red]Backend[/red] :boom:" in acme.good("keys", "list", "acme")
