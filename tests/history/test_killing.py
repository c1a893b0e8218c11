"""What was acknowledged is there after any kill: the change, its event, its link in the chain, its webhook.

`make soak` kills fifty times as often.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.history.killing import run
from tests.postgres import Postgres, running_postgres

KILLS = 10
SEED = 1


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> Iterator[Postgres | None]:
    """None for SQLite, or a Postgres of the test's own, which keeps what it has acknowledged."""
    if request.param == "sqlite":
        yield None
        return
    with running_postgres(durable=True) as postgres:
        yield postgres


@pytest.mark.timeout(300)
@pytest.mark.usefixtures("unmeasured_processes")
def test_a_server_that_is_killed_ten_times_has_lost_nothing(tmp_path: Path, database: Postgres | None) -> None:
    outcome = run(tmp_path, database, KILLS, SEED)
    assert outcome.wrong == []
    assert outcome.kills == KILLS
    assert outcome.unanswered > 0
    assert 0 < len(outcome.acknowledged) <= outcome.events <= outcome.webhooks
