"""Postgres: the conformance suite, and what is peculiar to a server."""

from __future__ import annotations

import pytest

from server.store.postgres import PostgresEngine
from tests.store.conformance import StoreConformance
from tests.store.support import Threads


class TestPostgres(StoreConformance):
    """Every promise holds on Postgres."""

    @pytest.fixture
    def engine(self, postgres_url: str) -> PostgresEngine:
        """Return the engine of a new database."""
        return PostgresEngine(postgres_url, 20)

    @pytest.fixture
    def threads(self) -> Threads:
        """Return a way to other threads, which have nothing to let go of."""
        return Threads(at_end=lambda: None)
