"""Events that are older than the operator keeps them are deleted, and nothing else changes by that."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import structlog

from server import app
from server.service.housekeeping import EVENTS_AT_ONCE, Housekeeper, prune_events
from tests.harness import Service, running_service
from tests.wire.helpers import (
    count_rows,
    current_revision,
    events_of,
    get_key,
    make_key,
    make_workspace,
    reason_for,
    register,
    update_key,
)

RETENTION = timedelta(days=30)
MOMENT = timedelta(microseconds=1)


@pytest.fixture(params=["sqlite", "postgres"])
def keeping(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A server that keeps events for 30 days, with one workspace: once on each kind of database.

    It deletes them when a test says so, and not by itself.
    """
    monkeypatch.setattr(app, "Housekeeper", partial(Housekeeper, first_seconds=3600))
    settings: dict[str, Any] = {"event_retention_days": RETENTION.days}
    if request.param == "postgres":
        settings["database"] = request.getfixturevalue("postgres_url")
    with running_service(tmp_path, **settings) as running:
        make_workspace(running)
        yield running


def tidy(service: Service) -> None:
    """Do what the server does every hour."""
    service.app._housekeeper.run_once()


def names_of(service: Service, key_id: str) -> list[str]:
    """Return what a key was called in each of its events."""
    return [str(event.after["display_name"]) for event in events_of(service, key_id)]


def test_events_are_kept_to_the_very_end_of_their_time_and_no_longer(keeping: Service) -> None:
    key = make_key(keeping, display_name="older")
    for name in ("exactly", "younger"):
        keeping.clock.turn(MOMENT)
        update_key(keeping, key.key.key_id, display_name=name)
    keeping.clock.turn(RETENTION - MOMENT)

    tidy(keeping)

    assert names_of(keeping, key.key.key_id) == ["exactly", "younger"]
    keeping.clock.turn(MOMENT)
    tidy(keeping)
    assert names_of(keeping, key.key.key_id) == ["younger"]
    keeping.clock.turn(timedelta(days=3650))
    tidy(keeping)
    assert names_of(keeping, key.key.key_id) == ["younger"], "the last place in the log stays taken"


def test_what_the_events_were_about_stays_and_no_decision_changes(keeping: Service) -> None:
    key = make_key(keeping)
    register(keeping, "battery")
    before = get_key(keeping, key.key.key_id)
    keeping.clock.turn(timedelta(days=3650))
    revision, changes = current_revision(keeping), count_rows(keeping, "change")

    tidy(keeping)

    assert count_rows(keeping, "event") == 1
    assert (current_revision(keeping), count_rows(keeping, "change")) == (revision, changes)
    assert get_key(keeping, key.key.key_id) == before
    assert events_of(keeping, key.key.key_id) == []
    assert reason_for(keeping, key.api_key, permission="devices:read", device_id="battery") == "PERMITTED"


def test_many_are_deleted_in_portions_by_as_many_processes_as_there_are(keeping: Service) -> None:
    for start in range(3):
        register(keeping, *(f"device-{start}-{number}" for number in range(900)))
    keeping.clock.turn(RETENTION + MOMENT)
    key = make_key(keeping)
    resources = keeping.app._resources
    before = count_rows(keeping, "event")

    assert prune_events(resources, RETENTION)

    assert count_rows(keeping, "event") == before - EVENTS_AT_ONCE
    with structlog.testing.capture_logs() as lines, ThreadPoolExecutor(3) as pool:
        list(pool.map(lambda _: tidy(keeping), range(3)))
    assert [line["log_level"] for line in lines if line["event"] != "rpc"] == ["info"] * len(lines)
    assert sum(line["count"] for line in lines) == before - EVENTS_AT_ONCE - 1
    assert count_rows(keeping, "event") == 1
    assert count_rows(keeping, "event_end_user") == 0
    assert len(events_of(keeping, key.key.key_id)) == 1
    assert not prune_events(resources, RETENTION)


def test_without_a_retention_events_are_kept_for_ever(service: Service) -> None:
    make_workspace(service)
    key = make_key(service, display_name="first")
    service.clock.turn(timedelta(days=36_500))
    update_key(service, key.key.key_id, display_name="second")

    tidy(service)

    assert names_of(service, key.key.key_id) == ["first", "second"]
