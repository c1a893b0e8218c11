"""The version of a store's tables: forward-only migrations, and the refusal to run on any other version."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from playhouse.migrations import Runner

from server.store.peewee_store import Engine

MIGRATIONS = Path(__file__).with_name("migrations")


@dataclass(frozen=True, slots=True)
class SchemaState:
    """Which migrations a store still lacks, and which it has that this release does not know."""

    pending: tuple[str, ...]
    unknown: tuple[str, ...]


def inspect(engine: Engine) -> SchemaState:
    """Compare a store's history of migrations with this release's. Raises StoreUnavailable."""
    with engine.reading() as database:
        status = Runner(database, str(MIGRATIONS)).status()
    return SchemaState(
        pending=tuple(migration.name for migration in status if migration.applied is None),
        unknown=tuple(migration.name for migration in status if migration.path is None),
    )


def migrate(engine: Engine) -> tuple[str, ...]:
    """Apply what is pending, all or nothing, one process at a time, and return its names. Raises StoreUnavailable."""
    with engine.migrating() as database:
        return tuple(Runner(database, str(MIGRATIONS)).up())
