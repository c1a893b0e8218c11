"""Fixtures for every test."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
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


KINDS = ("sqlite", "postgres")


@pytest.fixture(params=KINDS)
def service(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server of the test's own, on a database of its own: once on each kind."""
    with _untraced(request.param), _service_on(request.param, tmp_path, request) as running:
        yield running


@pytest.fixture(scope="module", params=KINDS)
def module_service(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Service]:
    """What `shared_service` shares."""
    with ExitStack() as stack:
        with _untraced(request.param):
            running = stack.enter_context(_service_on(request.param, tmp_path_factory.mktemp("shared"), request))
        yield running


@pytest.fixture
def shared_service(module_service: Service, request: pytest.FixtureRequest) -> Iterator[Service]:
    """A server that the tests of a module share: for those that mind nothing that others leave behind."""
    with _untraced(request.node.callspec.params["module_service"]):
        yield module_service


def _untraced(kind: str) -> AbstractContextManager[None]:
    # What runs in the test's own thread is the test, and a start as so many others. What the same test covers on SQLite
    # is covered; the conformance suite covers what is peculiar to Postgres.
    return untraced(with_threads=kind == "postgres")


@contextmanager
def _service_on(kind: str, folder: Path, request: pytest.FixtureRequest) -> Iterator[Service]:
    if kind == "sqlite":
        with running_service(folder) as running:
            yield running
        return
    lender: Lender[Mapping[str, bytes]] = request.getfixturevalue("started_databases")
    with lender.lend() as database:
        prepare(folder, database.prepared)
        with running_service(folder, database=database.url) as running:
            yield running
