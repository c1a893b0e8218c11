"""What is promised of freshness, kept by real processes that are stopped, killed and cut off from their database.

`make soak` asks a hundred times as much.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import untraced
from tests.history.checker import Kind
from tests.history.recorder import Scale
from tests.history.run import ON_POSTGRES, ON_SQLITE, PROCESSES, run
from tests.postgres import Postgres, running_postgres

# On each of two databases.
DECISIONS = 50_000
SCALE = Scale(decisions=DECISIONS, batch=800, readers=1, writers=8, pause=0.06, seconds=60, faults=1, fault_pause=1.2)
SEED = 2


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[Postgres | None]:
    """None for SQLite, or a Postgres of the test's own, which keeps what it has acknowledged when it is ended."""
    if request.param == "sqlite":
        yield None
        return
    with running_postgres(durable=True) as postgres:
        yield postgres


def test_of_fifty_thousand_decisions_none_is_stale_whatever_happens_to_the_processes(
    tmp_path: Path, database: Postgres | None
) -> None:
    with untraced(with_threads=True):
        outcome = run(tmp_path, database, SCALE, SEED)
    assert outcome.violations == []
    assert outcome.unexpected == []
    numbers = outcome.numbers
    assert numbers.decisions >= DECISIONS
    assert all(numbers.answered_by[process] for process in range(PROCESSES))
    assert set(outcome.injected) == set(ON_SQLITE if database is None else ON_POSTGRES)
    assert {kind.value for kind in Kind} <= set(numbers.changes)
    assert {"PERMITTED", "KEY_REVOKED", "KEY_SUSPENDED", "KEY_RETIRED", "DEVICE_NOT_PERMITTED"} <= set(numbers.answers)
