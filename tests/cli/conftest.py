"""Fixtures for tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog

from tests.cli.runner import Cli
from tests.harness import Service, running_service


@pytest.fixture(autouse=True)
def _quiet_server() -> Iterator[None]:
    """Keep the log of the server, which runs in this process, out of what the command prints."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A server on SQLite: to the command line all stores are the same."""
    with running_service(tmp_path) as running:
        yield running


@pytest.fixture
def cli(service: Service) -> Cli:
    """The command line, against a service of the test's own."""
    return Cli(service)


@pytest.fixture
def acme(cli: Cli) -> Cli:
    """The same, with a sandbox workspace `acme`."""
    cli.good(
        *("workspaces", "create", "acme", "--display-name", "Acme Energy", "--environment", "sandbox"),
        *("--redirect-uri", "https://backend.example/done"),
    )
    return cli
