"""A server in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_SERVING = re.compile(r"serving on (\S+?)[,\s]")
_STOP_SECONDS = 30


@dataclass(frozen=True)
class ServerProcess:
    """A running `texture-auth serve`."""

    process: subprocess.Popen[str]
    address: str
    log: Path


@contextmanager
def running_server(folder: Path, *flags: str, **environment: str) -> Iterator[ServerProcess]:
    """Run `texture-auth serve` in a folder, on a free port, until the block ends.

    No setting of the surrounding environment reaches it. Raises RuntimeError, with its log, if it does not start.
    """
    clean = {name: value for name, value in os.environ.items() if not name.startswith("TEXTURE_AUTH_")}
    log = folder / "server.log"
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "server", "serve", "--listen", "127.0.0.1:0", *flags],
            cwd=folder,
            env={**clean, **environment},
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
        )
    try:
        yield ServerProcess(process, _address(process, log), log)
    finally:
        process.terminate()
        try:
            process.communicate(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    """Read on until the server says where it listens."""
    if process.stdout is None:
        raise AssertionError
    for line in process.stdout:
        found = _SERVING.search(line)
        if found:
            return found[1]
    raise RuntimeError(f"the server did not start:\n{log.read_text()}")
