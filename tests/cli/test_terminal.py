"""The command at a terminal."""

from __future__ import annotations

import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.runner import Cli
from tests.cli.test_commands import create_key
from tests.operate.process import DEADLINE_SECONDS, environment

# Makes the terminal that is its standard input its controlling one, as a shell does, and becomes the command.
_IN_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.executable, [sys.executable, '-m', 'server', *sys.argv[1:]])"
)


def read_until(terminal: int, wanted: Callable[[str], bool]) -> str:
    """Read what a terminal shows until it is what is wanted, or ends."""
    shown = ""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not wanted(shown) and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.1)[0]:
            try:
                data = os.read(terminal, 4096)
            except OSError:  # the other end is closed
                break
            shown += data.decode()
    return shown


def test_a_key_is_prompted_for_and_not_shown(acme: Cli) -> None:
    _, api_key = create_key(acme)
    terminal, other_end = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_TERMINAL, "keys", "lookup"],
        stdin=other_end,
        stdout=subprocess.PIPE,
        stderr=other_end,
        start_new_session=True,
        text=True,
        env=environment(
            {"TEXTURE_AUTH_ADDRESS": acme.service.address, "TEXTURE_AUTH_CALLER_KEY": acme.service.operator_key}
        ),
    )
    os.close(other_end)
    try:
        shown = read_until(terminal, lambda text: "API key" in text)
        assert "API key" in shown
        os.write(terminal, api_key.encode() + b"\n")
        shown += read_until(terminal, lambda _: process.poll() is not None)
        output, _ = process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        process.kill()
        process.wait()
        os.close(terminal)
    assert process.returncode == 0, shown
    assert api_key.split("_")[2] in output
    assert api_key not in shown
    assert api_key[-10:] not in shown + output.replace(api_key[-4:], "")


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ("keys", "--help")])
def test_the_installed_command_is_the_same(arguments: tuple[str, ...], tmp_path: Path) -> None:
    command = Path(sys.executable).with_name("texture-auth")
    if not command.exists():
        pytest.skip("the command is not installed beside this Python")
    done = subprocess.run(
        [command, *arguments],
        capture_output=True,
        cwd=tmp_path,
        env=environment(),
        timeout=DEADLINE_SECONDS,
        check=False,
        text=True,
    )
    assert done.returncode == 0
    assert "texture-auth" in done.stdout
    if arguments == ("--help",):
        assert "Exit codes" in done.stdout
