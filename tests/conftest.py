"""Fixtures for every test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Service, running_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A server of the test's own, on a SQLite file of its own."""
    with running_service(tmp_path) as running:
        yield running
