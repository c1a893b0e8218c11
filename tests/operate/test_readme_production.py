"""The README's walk-through with a real database, TLS and two callers, word by word."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.operate.process import DEADLINE_SECONDS, environment, wait_until
from tests.operate.readme import blocks

DATABASE = "postgresql://texture_auth@db.example/texture_auth"
ADDRESS, CLIENT_ADDRESS = "127.0.0.1:50051", "127.0.0.1:50052"
pytestmark = pytest.mark.usefixtures("unmeasured_processes")


def script(text: str, replacements: dict[str, str]) -> str:
    """Return a block of the README with what a reader has to change, or could, each of which must stand in it."""
    for written, meant in replacements.items():
        assert written in text
        text = text.replace(written, meant)
    return f"set -e\n{text}"


def bash() -> str:
    command = shutil.which("bash")
    assert command is not None
    return command


def with_tools(place: Path) -> dict[str, str]:
    """Make the folder that a clone is after `make setup`, and return an environment for it."""
    (place / ".venv").mkdir()
    (place / ".venv" / "bin").symlink_to(Path(sys.executable).parent)
    return environment()


@contextmanager
def serving(place: Path, text: str, env: dict[str, str]) -> Iterator[Path]:
    """Run the first block until the block ends, and return what it prints."""
    printed = place / "printed"
    with printed.open("wb") as out:
        process = subprocess.Popen([bash(), "-c", f"{text}"], cwd=place, env=env, stdout=out, stderr=out)
    try:
        yield printed
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(
    shutil.which("openssl") is None and not os.environ.get("CI"),
    reason="THE README'S WALK-THROUGH WAS NOT TRIED: the openssl command, which it makes certificates with, is missing",
)
@pytest.mark.parametrize("kind", ["sqlite", "postgres"])
def test_the_walk_through_is_true(tmp_path: Path, request: pytest.FixtureRequest, kind: str) -> None:
    database = "sqlite:auth.db"
    if kind == "postgres":
        database = request.getfixturevalue("postgres").new_database(migrated=False)
    first, second, *_ = blocks("Running it for real", "sh")
    env = with_tools(tmp_path)
    taken = {DATABASE: database, ADDRESS: "127.0.0.1:0", CLIENT_ADDRESS: "127.0.0.1:0"}
    # `exec`, so that it is the server that is ended and not the shell before it.
    text = script(first, taken).replace("\ntexture-auth serve\n", "\nexec texture-auth serve\n")

    with serving(tmp_path, text, env) as printed:
        line = wait_until(lambda: [one for one in printed.read_text().splitlines() if "is serving on" in one], "start")
        named = line[0].replace("127.0.0.1", "localhost").split(" on ")[1:]
        address, client_address = (part.split()[0] for part in named)
        assert "failure" not in printed.read_text().split("applied", 1)[1]

        ports = {"localhost:50051": address, "localhost:50052": client_address}
        # The last question is denied, which is an exit code of its own.
        done = subprocess.run(
            [bash(), "-c", script(second, ports)],
            cwd=tmp_path / "real",
            env=env,
            capture_output=True,
            text=True,
            timeout=3 * DEADLINE_SECONDS,
            check=False,
        )

    assert done.returncode == 3, done.stdout + done.stderr
    assert done.stderr == ""
    before, after = done.stdout.split("left on a laptop")
    assert "ALLOW" in before
    assert "liveness" in before
    assert "KEY_REVOKED" in after
    for secret in ("peppers", "operator.key", "dashboard.key", "server.key", "device-api.key"):
        assert (tmp_path / "real" / secret).stat().st_mode & 0o077 == 0, secret
