"""Postgres: the conformance suite, and what is peculiar to a server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.store.postgres import PostgresEngine
from tests.lending import Lender
from tests.store.conformance import StoreConformance
from tests.store.support import Threads


class TestPostgres(StoreConformance):
    """Every promise holds on Postgres."""

    @pytest.fixture
    def engine(self, databases: Lender[None]) -> Iterator[PostgresEngine]:
        """Give the engine of an empty database."""
        with databases.lend() as database:
            yield PostgresEngine(database.url, 20)

    @pytest.fixture
    def threads(self) -> Threads:
        """Return a way to other threads, which have nothing to let go of."""
        return Threads(at_end=lambda: None)
