"""The load generator, as Python sees it: files of requests and answers, and what came of sending them."""

from __future__ import annotations

import json
import os
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from google.protobuf.message import Message

from bench import machine, tools
from bench.processes import Running

AUTHORIZE = "/texture.auth.v1.AuthorizeService/Authorize"
BATCH_AUTHORIZE = "/texture.auth.v1.AuthorizeService/BatchAuthorize"


class WrongAnswer(Exception):  # noqa: N818 - it names a state
    """A server did not answer as it must: a figure about it would mean nothing."""


@dataclass(frozen=True, kw_only=True)
class Calls:
    """What to call, and with what. `vary` are the fields of an answer that need not be as expected, but there."""

    method: str
    file: Path
    vary: str = ""
    bearer: Path | None = None
    decisions: int = 1
    connections: int = 1
    concurrency: int = 1


@dataclass(frozen=True)
class Measured:
    """How it went. Rates are a second, `p50` and `p99` microseconds; every answer was as it must be.

    `server` and `load` are the shares of a core that the server and the generator used; `cost` is the server's
    processor time for a decision, in microseconds.
    """

    rate: float
    count: int
    p50: float
    p99: float
    server: float
    load: float
    cost: float


def write(file: Path, exchanges: Iterable[tuple[Message, Message]]) -> Path:
    """Write requests and what must answer them."""
    with file.open("wb") as to:
        for exchange in exchanges:
            for message in exchange:
                raw = message.SerializeToString(deterministic=True)
                to.write(struct.pack(">I", len(raw)) + raw)
    return file


def arms(
    of: Mapping[str, tuple[Running, Calls]], concurrency: int, seconds: float
) -> dict[str, Callable[[], Measured]]:
    """Return what calls each of several servers for so many seconds, with so many calls in flight, to be compared."""
    return {
        name: partial(
            call,
            server,
            replace(calls, concurrency=concurrency, connections=min(2, concurrency)),
            seconds,
            warm=seconds / 5,
        )
        for name, (server, calls) in of.items()
    }


def call(
    server: Running,
    calls: Calls,
    seconds: float,
    *,
    warm: float = 0,
    once: bool = False,
    cores: frozenset[int] = machine.LOAD_CORES,
) -> Measured:
    """Call a server for so many seconds, or once with each request if that is sooner. Raises WrongAnswer."""
    flags = [
        *("-addresses", server.address, "-method", calls.method, "-file", str(calls.file), "-vary", calls.vary),
        *("-connections", str(calls.connections), "-concurrency", str(calls.concurrency)),
        *("-seconds", str(seconds), *(["-once"] if once else [])),
        *(["-bearer-file", str(calls.bearer)] if calls.bearer else []),
    ]
    if warm:
        _generate("call", [*flags, "-seconds", str(warm)], cores)
    before = machine.cpu_seconds(server.process.pid)
    found = _generate("call", flags, cores)
    # Few calls may take less than is told, but they take something.
    used = max(machine.cpu_seconds(server.process.pid) - before, machine.TICK_SECONDS)
    if not found["count"] or found["errors"] or found["wrong"]:
        raise WrongAnswer(f"{calls.method}: {found}\n{server.log.read_text(errors='replace')[-2000:]}")
    decisions = found["count"] * calls.decisions
    return Measured(
        rate=decisions / found["seconds"],
        count=decisions,
        p50=found["p50"],
        p99=found["p99"],
        server=used / found["seconds"],
        load=found["cpu_seconds"] / found["seconds"],
        cost=used / decisions * 1e6,
    )


def _generate(command: str, flags: list[str], cores: frozenset[int]) -> Any:
    with machine.on(cores):
        done = subprocess.run(  # noqa: S603 - built here
            [str(tools.load_generator()), command, *flags],
            env={**os.environ, "GOMAXPROCS": str(len(cores))},
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        raise RuntimeError(f"the load generator failed: {done.stderr}")
    return json.loads(done.stdout)
