"""Settings: a value that cannot be right stops the start, by its name and with a reason."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from server import app, logs
from server.cli import operate
from server.cli.root import root
from server.settings import Settings
from tests.operate.process import environment, run, serving

SECRET = "5ec2e7" * 11
GOOD = {
    "TEXTURE_AUTH_DATABASE": "sqlite:auth.db",
    "TEXTURE_AUTH_LISTEN": "127.0.0.1:0",
    "TEXTURE_AUTH_PEPPERS": f"one {SECRET}",
    "TEXTURE_AUTH_INSECURE_PLAINTEXT": "true",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a migrated database, to work in; a server that starts after all ends at once."""
    for name in environment().keys() ^ os.environ.keys():
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logs, "configure", lambda *_: None)
    monkeypatch.setattr(app.App, "run_until_signalled", _end_at_once)
    # This is not the server's own process: signals stay as they are, and it goes on.
    monkeypatch.setattr(app, "Signals", object)
    monkeypatch.setattr(operate, "leave", sys.exit)
    app.migrate(Settings(database="sqlite:auth.db"))
    return tmp_path


def _end_at_once(running: app.App, *_: object) -> int:
    running.stop()
    return 0


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("DATABASE", "postgresql:elsewhere", "must be sqlite:PATH"),
        ("DATABASE", "auth.db", "must be sqlite:PATH"),
        ("DATABASE", "sqlite:", "must be sqlite:PATH"),
        ("LISTEN", "127.0.0.1", "HOST:PORT"),
        ("LISTEN", ":50051", "HOST:PORT"),
        ("LISTEN", "127.0.0.1:65536", "HOST:PORT"),
        ("LISTEN", "127.0.0.1:http", "HOST:PORT"),
        ("LISTEN", "127.0.0.1:-1", "HOST:PORT"),
        ("LISTEN", "[::1]", "HOST:PORT"),
        ("LISTEN", "127.0.0.1:5005¹", "HOST:PORT"),
        ("WORKERS", "0", "greater than or equal to 1"),
        ("WORKERS", "65", "less than or equal to 64"),
        ("METRICS_LISTEN", "9464", "HOST:PORT"),
        ("THREADS", "0", "greater than or equal to 1"),
        ("THREADS", "257", "less than or equal to 256"),
        ("THREADS", "many", "integer"),
        ("DRAIN_SECONDS", "-1", "greater than or equal to 0"),
        ("DRAIN_SECONDS", "3601", "less than or equal to 3600"),
        ("DRAIN_SECONDS", "nan", ""),
        ("DRAIN_SECONDS", "soon", "number"),
        ("EVENT_RETENTION_DAYS", "0", "greater than or equal to 1"),
        ("EVENT_RETENTION_DAYS", "-1", "greater than or equal to 1"),
        ("EVENT_RETENTION_DAYS", "36501", "less than or equal to 36500"),
        ("EVENT_RETENTION_DAYS", "1.5", "integer"),
        ("EVENT_RETENTION_DAYS", "for ever", "integer"),
        ("LOG_FORMAT", "xml", "'json' or 'console'"),
        ("LOG_LEVEL", "loud", "'debug'"),
        ("DEVELOPMENT", "perhaps", "boolean"),
        ("INSECURE_PLAINTEXT", "perhaps", "boolean"),
        ("PEPPERS", SECRET, "line 1 is not 'id hexadecimal-secret'"),
        ("PEPPERS", f"one two {SECRET}", "line 1 is not 'id hexadecimal-secret'"),
        ("PEPPERS", f"one {SECRET}xyz", "line 1 is not 'id hexadecimal-secret'"),
        ("PEPPERS", f"one {SECRET}\ntwo {SECRET}0", "line 2 is not 'id hexadecimal-secret'"),
        ("PEPPERS", f"One {SECRET}", "id has 1 to 32 characters"),
        ("PEPPERS", f"{SECRET} {SECRET}", "id has 1 to 32 characters"),
        ("PEPPERS", f"one {SECRET[:62]}", "fewer than 32 bytes"),
        ("PEPPERS", f"one {SECRET}\none {SECRET}", "two peppers have the same id"),
        ("PEPPERS", "# nothing but a comment", "at least one pepper is needed"),
        ("PEPPERS_FILE", "peppers", "not both"),
        ("TLS_CERTIFICATE", "server.crt", "if and only if"),
        ("TLS_PRIVATE_KEY", "server.key", "if and only if"),
    ],
)
def test_a_bad_value_stops_the_start_by_its_name_and_is_not_repeated_where_it_is_secret(
    here: Path, name: str, value: str, why: str
) -> None:
    done = CliRunner().invoke(root, ["serve"], env={**GOOD, f"TEXTURE_AUTH_{name}": value})
    assert done.exit_code == 1, done.output
    assert "TEXTURE_AUTH_" + name.removesuffix("_FILE").replace("PRIVATE_KEY", "") in done.stderr
    assert why in done.stderr
    assert isinstance(done.exception, SystemExit)
    for part in (SECRET, SECRET[:62], SECRET[:20]):
        assert part not in done.output


def test_the_values_that_the_bad_ones_replace_are_good(here: Path) -> None:
    done = CliRunner().invoke(root, ["serve"], env=GOOD)
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("flags", "env", "days"),
    [
        ((), {}, None),
        ((), {"TEXTURE_AUTH_EVENT_RETENTION_DAYS": ""}, None),
        ((), {"TEXTURE_AUTH_EVENT_RETENTION_DAYS": "400"}, 400),
        (("--event-retention-days", "1"), {"TEXTURE_AUTH_EVENT_RETENTION_DAYS": "400"}, 1),
    ],
)
def test_how_long_events_are_kept_may_be_set_and_is_for_ever_by_default(
    here: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], env: dict[str, str], days: int | None
) -> None:
    seen: list[Settings] = []

    def note_settings(running: app.App, *_: object) -> int:
        seen.append(running._settings)
        return _end_at_once(running)

    monkeypatch.setattr(app.App, "run_until_signalled", note_settings)
    CliRunner().invoke(root, ["serve", *flags], env={**GOOD, **env})
    assert [settings.event_retention_days for settings in seen] == [days]


def test_a_bad_value_stops_the_real_process_too(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", env={**GOOD, "TEXTURE_AUTH_LISTEN": "nowhere"})
    assert done.returncode == 1
    assert done.stderr == "error: TEXTURE_AUTH_LISTEN: must be HOST:PORT, with a port from 0 to 65535\n"
    assert done.stdout == ""


def test_every_bad_value_is_named_at_once(tmp_path: Path) -> None:
    env = {**GOOD, "TEXTURE_AUTH_LISTEN": "nowhere", "TEXTURE_AUTH_THREADS": "0", "TEXTURE_AUTH_DATABASE": "nothing"}
    done = run(tmp_path, "serve", env=env)
    assert done.returncode == 1
    for name in ("LISTEN", "THREADS", "DATABASE"):
        assert f"TEXTURE_AUTH_{name}: " in done.stderr


@pytest.mark.parametrize(("content", "why"), [(None, "No such file"), (b"one 00", "fewer than 32"), (b"\xff\xfe", "")])
def test_a_peppers_file_that_is_wrong_stops_the_start_by_its_name(here: Path, content: bytes | None, why: str) -> None:
    if content is not None:
        (here / "peppers").write_bytes(content)
    flags = ("--insecure-plaintext", "--database", "sqlite:auth.db", "--peppers-file", "peppers")
    done = CliRunner().invoke(root, ["serve", *flags])
    assert done.exit_code == 1
    assert "TEXTURE_AUTH_PEPPERS_FILE: " in done.stderr
    assert why in done.stderr
    assert "<class" not in done.stderr


def test_a_flag_that_is_no_number_is_wrong_usage(tmp_path: Path) -> None:
    assert run(tmp_path, "serve", "--threads", "many").returncode == 2


def test_flags_win_over_the_environment(tmp_path: Path) -> None:
    env = {
        "TEXTURE_AUTH_LISTEN": "192.0.2.1:1",
        "TEXTURE_AUTH_DATABASE": "sqlite:from-the-environment/auth.db",
        "TEXTURE_AUTH_LOG_FORMAT": "console",
    }
    flags = ("--development", "--database", "sqlite:from-the-flag/auth.db", "--log-format", "json")
    with serving(tmp_path, *flags, env=env) as server:
        assert server.address.startswith("127.0.0.1:")
        assert server.log
    assert (tmp_path / "from-the-flag" / "auth.db").exists()
    assert not (tmp_path / "from-the-environment").exists()


def test_a_flag_wins_over_a_value_of_the_environment_that_is_wrong(tmp_path: Path) -> None:
    with serving(tmp_path, "--development", "--threads", "2", env={"TEXTURE_AUTH_THREADS": "0"}) as server:
        assert server.process.poll() is None
