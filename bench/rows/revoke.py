"""How soon a revoked key is denied everywhere, and how long RevokeKey takes to say so; with faults, too."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

from texture.auth.v1 import key_service_pb2

from bench import machine, processes, tools
from bench.facts import Facts
from bench.load import WrongAnswer
from bench.processes import Running
from bench.report import Row
from bench.rounds import spread
from bench.workshop import Workshop
from tests.forwarder import Forwarder, forwarding

_NAMES = {"sqlite": "SQLite", "postgres": "Postgres"}
_STORE = 2_000
_LIMIT_SECONDS = 30
# From an answer to the next question of a client. Clients that ask every millisecond take a whole core between them at
# four processes: then what is measured is how long a revocation waits for a processor.
_PAUSE_SECONDS = 0.004


@dataclass(frozen=True)
class Trial:
    """A revocation. Times are milliseconds since RevokeKey was called; `denied` is for each server."""

    returned: float
    denied: tuple[float, ...]
    answered: tuple[bool, ...]


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong with a process; to end it again does no harm."""

    begin: Callable[[], object]
    end: Callable[[], object]


def rows(workshop: Workshop) -> list[Row]:
    """Measure revocations with more and more processes over one database, of each kind."""
    return [row for kind in _NAMES for row in kind_rows(workshop, kind)]


def kind_rows(workshop: Workshop, kind: str) -> list[Row]:
    """Measure revocations with more and more processes over one database."""
    found = []
    store = workshop.new_store(_STORE, kind)
    keys = iter(range(0, _STORE, 2))
    with ExitStack() as stack:
        servers: list[Running] = []
        for count in workshop.scale.processes:
            while len(servers) < count:
                servers.append(stack.enter_context(processes.serving(store, cores=machine.ALL_CORES)))
            chosen = [next(keys) for _ in range(workshop.scale.trials)]
            found += _latencies(_NAMES[kind], count, _probed(workshop, store, servers, chosen))
    return found


def fault_rows(workshop: Workshop) -> list[Row]:
    """Measure revocations while one of two processes is stopped, or cut off from Postgres."""
    found = []
    for kind, name in _NAMES.items():
        store = workshop.new_store(_STORE, kind)
        with ExitStack() as stack:
            servers = [stack.enter_context(processes.serving(store, cores=machine.ALL_CORES)) for _ in range(2)]
            stopped = servers[1].process.pid
            found.append(
                _faulty(
                    workshop,
                    store,
                    servers,
                    f"the other process under SIGSTOP, {name}",
                    Fault(partial(os.kill, stopped, signal.SIGSTOP), partial(os.kill, stopped, signal.SIGCONT)),
                )
            )
    store = workshop.new_store(_STORE, "postgres")
    with ExitStack() as stack:
        way = stack.enter_context(forwarding(workshop.postgres.socket))
        servers = [
            stack.enter_context(processes.serving(each, cores=machine.ALL_CORES))
            for each in (store, replace(store, database=way.url_of(store.database)))
        ]
        what = "the other process cut off from Postgres"
        found.append(_faulty(workshop, store, servers, what, Fault(way.lose, partial(_reconnect, way))))
    return found


def _reconnect(way: Forwarder) -> None:
    way.recover()
    way.cut()


def _latencies(name: str, count: int, trials: list[Trial]) -> list[Row]:
    denied = [max(trial.denied) for trial in trials]
    where = f"{count} process{'es' if count > 1 else ''}, {name}"
    return [
        Row(
            name="10",
            what=f"RevokeKey to return, {where}",
            unit="ms",
            found=spread([trial.returned for trial in trials]),
            absolute=_p50_p99([trial.returned for trial in trials]),
            why="a commit that is flushed to disk, and whatever RevokeKey waits for; all servers and clients share "
            f"{len(machine.CORES)} cores. No ALLOW was given to a question that was asked after it had returned.",
        ),
        Row(
            name="10",
            what=f"RevokeKey to the last process's first denial, {where}",
            unit="ms",
            found=spread(denied),
            absolute=_p50_p99(denied),
            why="the commit, what each process needs to hear of it, and one question of its client, which asks again "
            f"{1000 * _PAUSE_SECONDS:.0f} ms after each answer.",
        ),
    ]


def _faulty(
    workshop: Workshop,
    store: Facts,
    servers: list[Running],
    what: str,
    fault: Fault,
) -> Row:
    trials: list[Trial] = []
    for key in range(0, 2 * workshop.scale.fault_trials, 2):
        trials += _probed(workshop, store, servers, [key], fault)
    living = [trial.denied[0] for trial in trials]
    other = [trial.denied[1] for trial in trials]
    answered = sum(trial.answered[1] for trial in trials)
    return Row(
        name="11",
        what=f"RevokeKey to return, 2 processes, {what}",
        unit="ms",
        found=spread([trial.returned for trial in trials]),
        absolute=f"first denial by the sound one {max(living):.0f} ms at most; the other one's client had a denial, "
        f"or no answer within a second, after {max(other):.0f} ms at most ({answered} of {len(trials)} were denials)",
        why="RevokeKey waits for a proof from each process, or until one that is not heard of must have stopped "
        "answering from what it knows; a release without a cache in its servers has nothing to wait for. After it "
        "had returned no ALLOW was given to a later question, by either process, while the fault lasted or after it.",
    )


def _probed(
    workshop: Workshop,
    store: Facts,
    servers: list[Running],
    keys: list[int],
    fault: Fault | None = None,
) -> list[Trial]:
    """Have keys revoked by the first server while a client at each one asks on. Raises WrongAnswer.

    What is to be broken is broken once every client has been allowed, and mended once every one has not been; they go
    on asking for a while after that, and must not be allowed again.
    """
    file = workshop.write(
        [(store.question(key, 1), key_service_pb2.RevokeKeyRequest(key_id=store.key_id(key))) for key in keys]
    )
    command = [
        *(str(tools.load_generator()), "probe", "-addresses", ",".join(server.address for server in servers)),
        *("-file", str(file), "-bearer-file", str(store.bearer), "-limit", str(_LIMIT_SECONDS)),
        *("-pause", str(_PAUSE_SECONDS)),
        *([] if fault is None else ["-wait", "-after", "1.5"]),
    ]
    with machine.on(machine.LOAD_CORES):
        probe = subprocess.Popen(  # noqa: S603 - built here
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
    try:
        if fault is not None:
            with _told(probe, "ready"):
                fault.begin()
            with _told(probe, "denied"):
                fault.end()
        printed, error = probe.communicate(timeout=600)
    finally:
        if fault is not None:
            fault.end()
        if probe.poll() is None:
            probe.kill()
            probe.wait()
    if probe.returncode:
        raise WrongAnswer(error)
    return [_trial(found) for found in json.loads(printed)]


@contextmanager
def _told(probe: subprocess.Popen[str], word: str) -> Iterator[None]:
    """Wait until a probe says a word, and let it go on when the block ends."""
    if probe.stdin is None or probe.stdout is None:
        raise AssertionError
    if probe.stdout.readline() != f"{word}\n":
        raise WrongAnswer(probe.communicate()[1])
    yield
    probe.stdin.write("\n")
    probe.stdin.flush()


def _trial(found: dict[str, object]) -> Trial:
    denied = found["denied"]
    answered = found["answered"]
    returned = found["returned"]
    if not isinstance(denied, list) or not isinstance(answered, list) or not isinstance(returned, float):
        raise TypeError(found)
    if found["error"] or found["late"] or found["wrong"] or min(denied) < 0:
        raise WrongAnswer(f"{found}")
    return Trial(returned * 1000, tuple(each * 1000 for each in denied), tuple(answered))


def _p50_p99(samples: list[float]) -> str:
    ordered = sorted(samples)
    last = ordered[min(len(ordered) - 1, int(0.99 * len(ordered)))]
    largest = ", the largest" if last == ordered[-1] else ""
    return f"p50 {ordered[len(ordered) // 2]:.2f} ms, p99 {last:.2f} ms{largest} of {len(ordered)}"
