"""Servers in processes of their own, on loopback, each ended by its id when its block ends."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import machine
from bench.facts import Facts
from bench.tools import ROOT

PRODUCT = (sys.executable, "-m", "server")
_SERVING = re.compile(r"serving on (\S+?)[,\s]")
_START_SECONDS = 60
_STOP_SECONDS = 20


@dataclass(frozen=True)
class Running:
    """A server that runs."""

    process: subprocess.Popen[bytes]
    address: str
    log: Path


@contextmanager
def running(
    command: Sequence[str],
    cores: frozenset[int] = machine.SERVER_CORES,
    environment: Mapping[str, str] | None = None,
    address: str | None = None,
) -> Iterator[Running]:
    """Run a server until the block ends. Where no address is given, it says itself on what it is `serving`."""
    with tempfile.TemporaryDirectory(prefix="bench-server-") as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output, machine.on(cores):
            process = subprocess.Popen(  # noqa: S603 - the bench's own servers
                command,
                cwd=folder,
                env=clean_environment() | dict(environment or {}),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            yield Running(process, address or _address(process, log), log)
        finally:
            process.terminate()
            try:
                process.wait(_STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextmanager
def serving(
    facts: Facts,
    *flags: str,
    command: Sequence[str] = PRODUCT,
    cores: frozenset[int] = machine.SERVER_CORES,
    **environment: str,
) -> Iterator[Running]:
    """Run `texture-auth serve` on some facts until the block ends."""
    whole = (*command, "serve", "--listen", "127.0.0.1:0", *flags)
    with running(whole, cores, facts.environment | environment) as server:
        yield server


def clean_environment() -> dict[str, str]:
    """Return this process's environment without any setting of the service or of a proxy, and with its own code."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TEXTURE_AUTH_") and not name.lower().endswith("_proxy")
    }
    return {**clean, "PYTHONPATH": f"{ROOT}:{ROOT / 'generated' / 'python'}", "PYTHONUNBUFFERED": "1"}


def _address(process: subprocess.Popen[bytes], log: Path) -> str:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        found = _SERVING.search(log.read_text(errors="replace"))
        if found:
            return found[1]
        time.sleep(0.01)
    raise RuntimeError(
        f"{' '.join(process.args if isinstance(process.args, list) else [])} did not start:\n{log.read_text()}"
    )
