"""One suite for every store. It joins by a class with one fixture, as in `test_sqlite.py`."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from server.domain.chain import Sealer
from server.store.contract import Store
from server.store.peewee_store import Engine, PeeweeStore
from tests.builders import PEPPERS
from tests.store.promises_of_chains import ChainPromises
from tests.store.promises_of_end_users import EndUserPromises
from tests.store.promises_of_entities import EntityPromises
from tests.store.promises_of_followers import FollowerPromises
from tests.store.promises_of_lineage import LineagePromises
from tests.store.promises_of_lists import ListPromises
from tests.store.promises_of_races import RacePromises
from tests.store.promises_of_transactions import TransactionPromises
from tests.store.promises_of_upkeep import UpkeepPromises
from tests.store.promises_of_usage import UsagePromises
from tests.store.promises_of_webhooks import WebhookPromises
from tests.store.support import Threads


class StoreConformance(
    EntityPromises,
    EndUserPromises,
    TransactionPromises,
    ListPromises,
    RacePromises,
    UpkeepPromises,
    FollowerPromises,
    LineagePromises,
    WebhookPromises,
    UsagePromises,
    ChainPromises,
):
    """Every promise of `server.store.contract`. A subclass gives an engine on a new, migrated, empty database."""

    @pytest.fixture
    def engine(self) -> Engine:
        """Return the engine of a new, migrated, empty database."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, engine: Engine) -> Iterator[Store]:
        """Give the store on it."""
        store = PeeweeStore(engine, Sealer(PEPPERS))
        yield store
        store.close()

    @pytest.fixture
    def threads(self, store: Store) -> Threads:
        """Return a way to other threads; override it where a thread has nothing to let go of, or more."""
        return Threads(at_end=store.close)
