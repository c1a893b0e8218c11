"""Several servers in processes of their own over one database, and what can be done to them while they are asked."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import grpc

from tests.forwarder import BOTH, Direction, Forwarder, forwarding
from tests.harness import Client, first_start, prepare
from tests.operate.process import Server, serving
from tests.postgres import Postgres

FaultKind = Literal["stop", "kill", "cut", "restart the database"]

# Who has been away is asked again soon, and each client has a connection of its own.
_CHANNEL = [
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 300),
]
# What is lost of a connection that is cut: where it is the answers, changes are made of which nobody hears.
_LOST: Sequence[frozenset[Direction]] = (BOTH, frozenset({"answers"}))
# Those that are killed would leave half of their measurements.
UNMEASURED = {"COVERAGE_PROCESS_CONFIG": "", "COVERAGE_PROCESS_START": ""}


@dataclass(frozen=True)
class FaultPlan:
    """Something that is done to a process, or to the database, at an instant of a run, and for how long; in seconds."""

    at: float
    kind: FaultKind
    process: int
    seconds: float


def plan(
    chance: random.Random, kinds: Sequence[FaultKind], processes: int, stop_seconds: float, pause: float
) -> list[FaultPlan]:
    """Return a plan that has each of the kinds as often as named, with pauses of about so many seconds between."""
    faults, at = [], pause
    for number, kind in enumerate(chance.sample(kinds, len(kinds))):
        seconds = stop_seconds * chance.uniform(1, 1.25) if kind in ("stop", "cut") else chance.uniform(0, 0.5)
        faults.append(FaultPlan(at, kind, number % processes, seconds))
        at += pause * chance.uniform(0.5, 1.5)
    return faults


class Process:
    """One server, which may be killed and started again at its address. `faulty` while something is done to it."""

    def __init__(self, number: int, folder: Path, files: Path, database: str, forwarder: Forwarder | None) -> None:
        self.number = number
        self.faulty = False
        self.forwarder = forwarder
        folder.mkdir()
        self._folder = folder
        self._flags = [
            *("--development", "--development-folder", str(files), "--database", database),
            *("--log-format", "json", "--log-level", "warning"),
        ]
        self._operator_key = (files / "operator.key").read_text().strip()
        self._stack = ExitStack()
        self._server: Server | None = None

    def start(self) -> None:
        """Start, where it was before if it ran already."""
        again = [] if self._server is None else ["--listen", self._server.address]
        self._server = self._stack.enter_context(serving(self._folder, *self._flags, *again, env=UNMEASURED))

    def kill(self) -> None:
        """End at once, if it runs."""
        self._stack.close()

    def signal(self, number: signal.Signals) -> None:
        """Send a signal."""
        self.server.process.send_signal(number)

    @property
    def server(self) -> Server:
        """The server as it was started last."""
        if self._server is None:
            raise RuntimeError("it has not been started")
        return self._server

    @contextmanager
    def client(self) -> Iterator[Client]:
        """Call it over a connection of the block's own."""
        with grpc.insecure_channel(self.server.address, options=_CHANNEL) as channel:
            yield Client(channel, self._operator_key)

    def errors(self) -> list[str]:
        """Return the lines of its logs that tell of a fault of its own."""
        logs = [file.read_text() for file in sorted(self._folder.glob("stderr.*"))]
        return [line for log in logs for line in log.splitlines() if '"error"' in line and '"health"' not in line]


class Cluster:
    """The processes, and the database if it can be restarted."""

    def __init__(self, processes: Sequence[Process], postgres: Postgres | None) -> None:
        self.processes = processes
        self.injected: Counter[str] = Counter()
        self._postgres = postgres
        # A server does not start without its database.
        self._database_is_up = threading.Lock()
        self._chance = random.Random(0)

    def healthy(self) -> list[Process]:
        """Return those to which nothing is being done, or all if that is none."""
        return [process for process in self.processes if not process.faulty] or list(self.processes)

    @contextmanager
    def faults(self, planned: Sequence[FaultPlan]) -> Iterator[Callable[[], bool]]:
        """Carry a plan out, from now on; the block is given what tells whether it is over. All is well after it."""
        began = time.monotonic()
        ending = threading.Event()
        lanes: dict[int, list[FaultPlan]] = {}
        for fault in planned:
            lanes.setdefault(-1 if fault.kind == "restart the database" else fault.process, []).append(fault)

        def carry_out(lane: Sequence[FaultPlan]) -> None:
            for fault in lane:
                if ending.wait(max(0.0, began + fault.at - time.monotonic())):
                    return
                self._inject(fault, ending)
                self.injected[fault.kind] += 1

        with ThreadPoolExecutor(max(1, len(lanes))) as pool:
            futures = [pool.submit(carry_out, lane) for lane in lanes.values()]
            try:
                yield lambda: all(future.done() for future in futures)
            finally:
                ending.set()
            for future in futures:
                future.result()

    def _inject(self, fault: FaultPlan, ending: threading.Event) -> None:
        if fault.kind == "restart the database":
            self._restart_database()
            return
        process = self.processes[fault.process]
        process.faulty = True
        try:
            if fault.kind == "kill":
                process.signal(signal.SIGKILL)
                with self._database_is_up:
                    ending.wait(fault.seconds)
                    process.kill()
                    process.start()
            elif fault.kind == "stop":
                process.signal(signal.SIGSTOP)
                ending.wait(fault.seconds)
                process.signal(signal.SIGCONT)
            elif process.forwarder is not None:
                process.forwarder.lose(self._chance.choice(_LOST))
                ending.wait(fault.seconds)
                process.forwarder.recover()
        finally:
            process.faulty = False

    def _restart_database(self) -> None:
        if self._postgres is not None:
            with self._database_is_up:
                self._postgres.stop(self._chance.choice(("fast", "immediate")))
                self._postgres.start()


@contextmanager
def running_cluster(folder: Path, count: int, postgres: Postgres | None) -> Iterator[Cluster]:
    """Run servers on one database, each with its own way to it, until the block ends: on SQLite without a Postgres."""
    with ExitStack() as stack:
        files = folder / "files"
        files.mkdir()
        forwarders: list[Forwarder | None] = [None] * count
        if postgres is None:
            prepare(files, first_start())
            urls = [f"sqlite:{files / 'texture-auth.db'}"] * count
        else:
            url = postgres.new_database()
            prepare(files, first_start(url))
            ways = [stack.enter_context(forwarding(postgres.socket)) for _ in range(count)]
            forwarders = [*ways]
            urls = [way.url_of(url) for way in ways]
        processes = [
            Process(number, folder / f"server-{number}", files, urls[number], forwarders[number])
            for number in range(count)
        ]
        for process in processes:
            stack.callback(process.kill)
        with ThreadPoolExecutor(count) as pool:
            list(pool.map(Process.start, processes))
        yield Cluster(processes, postgres)
