"""One run: a cluster is put under load and under faults, and its history is checked."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from server.service.following import LEASE, fenced_after
from tests.history.checker import History, Violation, check
from tests.history.cluster import FaultKind, plan, running_cluster
from tests.history.recorder import Numbers, Recorder, Scale
from tests.postgres import Postgres

PROCESSES = 3
WAIT_SECONDS = fenced_after(LEASE).total_seconds()
# A change is waited for until the lease of whoever is away has ended; as long again is left to ask him after that.
_STOP_SECONDS = LEASE.total_seconds() * 2
ON_POSTGRES: Sequence[FaultKind] = ("stop", "kill", "cut", "restart the database")
# There are no leases, and no server and no way to it that could be away.
ON_SQLITE: Sequence[FaultKind] = ("stop", "kill")
_STOP_ON_SQLITE_SECONDS = 1.0


@dataclass(frozen=True)
class Outcome:
    """What came of a run: numbers, what of its history is wrong, and what else should not have happened."""

    numbers: Numbers
    injected: Counter[str]
    violations: Sequence[Violation]
    unexpected: Sequence[str]


def run(folder: Path, postgres: Postgres | None, scale: Scale, seed: int) -> Outcome:
    """Run on a Postgres, or on SQLite without one.

    It ends once so much is decided, everything has been changed and all faults have been, or after the scale's seconds.
    """
    kinds, seconds = (ON_SQLITE, _STOP_ON_SQLITE_SECONDS) if postgres is None else (ON_POSTGRES, _STOP_SECONDS)
    faults = plan(random.Random(seed), [*kinds] * scale.faults, PROCESSES, seconds, scale.fault_pause)
    history = History(linearizable=postgres is None)
    with running_cluster(folder, PROCESSES, postgres) as cluster:
        recorder = Recorder(cluster, history, scale, seed)
        with recorder.running(), cluster.faults(faults) as over:
            until = time.monotonic() + scale.seconds
            while time.monotonic() < until and not (over() and recorder.numbers.reaches(scale.decisions)):
                time.sleep(0.05)
        # In the end all are there, and know everything or will soon.
        recorder.ask_all()
        errors = [line for process in cluster.processes for line in process.errors()]
    return Outcome(recorder.numbers, cluster.injected, check(history, WAIT_SECONDS), [*recorder.unexpected, *errors])
