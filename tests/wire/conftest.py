"""Fixtures for tests over the wire."""

from __future__ import annotations

import pytest

from tests.harness import Service
from tests.wire.helpers import make_workspace


@pytest.fixture
def grid(service: Service) -> Service:
    """A service with one workspace."""
    make_workspace(service)
    return service
