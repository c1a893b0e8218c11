"""Fixtures for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path

import pytest

from tests.harness import Service, first_start, prepare, running_service, untraced
from tests.lending import Lender
from tests.postgres import Postgres, running_postgres


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """Run one process more than there are processors: some tests do little but wait."""
    return (os.cpu_count() or 1) + 1


def pytest_collection_finish() -> None:
    """Have the garbage collector pass over what is loaded by now, all of which stays."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def unmeasured_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measure no coverage in the processes that the test starts: cheaper tests cover what they run."""
    monkeypatch.delenv("COVERAGE_PROCESS_CONFIG", raising=False)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres for as long as the tests of this process run."""
    with running_postgres() as running:
        yield running


@pytest.fixture
def postgres_url(postgres: Postgres) -> Iterator[str]:
    """A migrated database of the test's own, for those that alter it, or do not leave it in order."""
    url = postgres.new_database()
    yield url
    postgres.drop(url)


@pytest.fixture(scope="session")
def databases(postgres: Postgres) -> Iterator[Lender[None]]:
    """Migrated databases on Postgres, which are empty."""
    with closing(Lender(postgres, lambda _: None)) as lender:
        yield lender


@pytest.fixture(scope="session")
def started_databases(postgres: Postgres) -> Iterator[Lender[Mapping[str, bytes]]]:
    """Databases on Postgres as the first start of a development server leaves them, with the files that it makes."""
    with closing(Lender(postgres, first_start)) as lender:
        yield lender


@pytest.fixture(params=["sqlite", "postgres"])
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server of the test's own, on a database of its own: once on each kind."""
    if request.param == "sqlite":
        # What runs in this thread is the test, and a start as so many others.
        with untraced(with_threads=False), running_service(tmp_path) as running:
            yield running
        return
    lender: Lender[Mapping[str, bytes]] = request.getfixturevalue("started_databases")
    # What the same test covers on SQLite is covered; the conformance suite covers what is peculiar to Postgres.
    with untraced(with_threads=True), lender.lend() as database:
        prepare(tmp_path, database.prepared)
        with running_service(tmp_path, database=database.url) as running:
            yield running
