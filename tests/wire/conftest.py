"""Fixtures for tests over the wire."""

from __future__ import annotations

import pytest

from tests.harness import Service
from tests.wire.helpers import OTHER_WORKSPACE, make_workspace


@pytest.fixture
def grid(service: Service) -> Service:
    """A service with one workspace."""
    make_workspace(service)
    return service


@pytest.fixture(scope="module")
def module_grid(module_service: Service) -> Service:
    make_workspace(module_service)
    make_workspace(module_service, OTHER_WORKSPACE)
    return module_service


@pytest.fixture
def shared_grid(module_grid: Service, shared_service: Service) -> Service:
    """A service with two workspaces that the tests of a module share: for those that mind nothing left by others."""
    return shared_service
