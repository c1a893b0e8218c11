"""Fixtures for tests of operation."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import Service, running_service


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    """A server on SQLite: these tests do things to its file."""
    with running_service(tmp_path) as running:
        yield running
