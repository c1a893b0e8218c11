"""The second migration: a store of the first release learns which events hold which end users."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from server.domain.events import snapshot
from server.domain.kinds import KeyKind
from server.store import schema, tables
from server.store.peewee_store import Engine, PeeweeStore
from server.store.postgres import PostgresEngine
from server.store.sqlite import SqliteEngine
from tests.builders import make_connect_link, make_device, make_key, make_workspace
from tests.postgres import Postgres

HOLDS: list[tuple[dict[str, Any] | None, dict[str, Any] | None, set[tuple[str, str]]]] = [
    (None, snapshot(make_workspace()), set()),
    (None, snapshot(make_key()), set()),
    (None, snapshot(make_key(KeyKind.SCOPED)), {("grid-one", "end-user-1")}),
    (snapshot(make_device()), None, {("grid-one", "end-user-1")}),
    (snapshot(make_device()), snapshot(make_device(manufacturer="")), {("grid-one", "end-user-1")}),
    (
        snapshot(make_device()),
        snapshot(make_device(workspace_id="grid-two", reference_id="ü ⚡")),
        {("grid-one", "end-user-1"), ("grid-two", "ü ⚡")},
    ),
    (snapshot(make_connect_link(reference_id="other")), None, {("grid-one", "other")}),
]


@pytest.fixture(params=["sqlite", "postgres"])
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An engine on an empty database: once on each kind."""
    if request.param == "sqlite":
        engine: Engine = SqliteEngine(tmp_path / "auth.db")
        engine.create()
        yield engine
        engine.close()
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    url = postgres.new_database(migrated=False)
    engine = PostgresEngine(url, 2)
    yield engine
    engine.close()
    postgres.drop(url)


@pytest.fixture
def first_release(engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    """The same, with the tables of the first release."""
    folder = tmp_path / "first"
    folder.mkdir()
    shutil.copy(schema.MIGRATIONS / "0001_initial.py", folder)
    with monkeypatch.context() as only:
        only.setattr(schema, "MIGRATIONS", folder)
        assert schema.migrate(engine) == ("0001_initial",)
    return engine


def as_text(side: dict[str, Any] | None) -> str | None:
    return None if side is None else json.dumps(side)


def add_events(engine: Engine, times: int) -> None:
    """Add events as the first release did, each sort so many times."""
    rest = {"revision": 1, "type": "x.y", "event_time": 1, "subject_kind": "x", "subject_id": "x", "caller_id": "c"}
    rows = [
        {**rest, "reason": "", "request_id": "", "before": as_text(before), "after": as_text(after)}
        for _ in range(times)
        for before, after, _ in HOLDS
    ]
    with engine.writing() as database:
        for row in rows:
            # What is written here holds no single quotes.
            values = ", ".join("NULL" if value is None else f"'{value}'" for value in row.values())
            database.execute_sql(f"INSERT INTO event ({', '.join(row)}) VALUES ({values})")
        database.commit()


def noted(engine: Engine) -> list[tuple[str, str, int]]:
    with engine.reading() as database:
        return sorted(tables.EventEndUser.select().tuples().execute(database))


# The second is more than are looked at in one go.
@pytest.mark.parametrize("times", [1, 200])
def test_the_events_that_are_there_are_found_by_their_end_users_afterwards(first_release: Engine, times: int) -> None:
    add_events(first_release, times)
    assert "0002_end_users" in schema.migrate(first_release)
    expected = [
        (*end_user, number * len(HOLDS) + place)
        for number in range(times)
        for place, (_, _, held) in enumerate(HOLDS, 1)
        for end_user in held
    ]
    assert noted(first_release) == sorted(expected)


def test_a_store_without_events_has_nobody_in_them(first_release: Engine) -> None:
    assert "0002_end_users" in schema.migrate(first_release)
    assert noted(first_release) == []
    PeeweeStore(first_release).ping()
