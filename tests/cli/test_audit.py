"""audit: the event log for operators and scripts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runner import Cli


@pytest.fixture
def busy(acme: Cli) -> Cli:
    """A service in which something has happened."""
    acme.good("devices", "register", "acme", "battery-1", "--reference-id", "user-1")
    acme.good("keys", "create", "acme", "--kind", "server", "--display-name", "Backend", "--only-key")
    return acme


def lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.splitlines()]


def tamper(cli: Cli, *statements: str) -> None:
    engine = cli.service.app._database.engine
    with engine.writing() as database:
        for statement in statements:
            database.execute_sql(statement)
        engine.commit()


def test_a_log_that_nobody_touched_is_verified(busy: Cli) -> None:
    done = busy.run("audit", "verify")
    assert done.exit_code == 0
    assert lines(done.stdout) == [
        {"workspace_id": "", "holds": True, "verified": 1, "last": 1},
        {"workspace_id": "acme", "holds": True, "verified": 3, "last": 3},
    ]
    assert "2 chains hold" in done.stderr


def test_the_first_link_that_does_not_hold_is_named(busy: Cli) -> None:
    tamper(busy, "UPDATE event SET caller_id = 'somebody' WHERE event_id = 3")
    done = busy.run("audit", "verify")
    assert done.exit_code == 1
    assert lines(done.stdout)[1]["broken"] == {
        "problem": "CHAIN_PROBLEM_EVENT_ALTERED",
        "number": "2",
        "event_id": "3",
    }
    assert "1 of 2 chains do not hold" in done.stderr
    assert busy.run("audit", "verify", "--workspace", "").exit_code == 0
    assert busy.run("audit", "verify", "--workspace", "acme").exit_code == 1


def test_heads_that_were_kept_show_a_tail_that_was_cut(busy: Cli, tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text(busy.good("audit", "heads"))
    busy.good("keys", "create", "acme", "--kind", "server", "--display-name", "Another", "--only-key")
    with file.open("a") as kept:
        kept.write("\n" + busy.good("audit", "heads"))
    found = lines(busy.good("audit", "verify", "--heads", str(file)))
    assert [one["heads_compared"] for one in found] == [2, 2]
    assert found[1]["holds"]
    tamper(
        busy,
        "DELETE FROM event WHERE event_id = 5",
        "DELETE FROM event_link WHERE event_id = 5",
        "UPDATE event_chain SET number = 3, mac = (SELECT mac FROM event_link WHERE event_id = 4) WHERE chain = 'acme'",
    )
    assert busy.run("audit", "verify").exit_code == 0
    done = busy.run("audit", "verify", "--heads", str(file))
    assert done.exit_code == 1
    assert lines(done.stdout)[1]["broken"]["problem"] == "CHAIN_PROBLEM_TAIL_MISSING"


def test_a_chain_that_is_gone_is_missed_by_whoever_kept_its_head(busy: Cli, tmp_path: Path) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text(busy.good("audit", "heads"))
    tamper(busy, "DELETE FROM event_chain WHERE chain = 'acme'", "DELETE FROM event_link WHERE chain = 'acme'")
    tamper(busy, "DELETE FROM event_end_user", "DELETE FROM event WHERE workspace_id = 'acme'")
    assert busy.run("audit", "verify").exit_code == 0
    assert busy.run("audit", "verify", "--heads", str(file)).exit_code == 1


@pytest.mark.parametrize("text", ["nonsense", '{"number": "x"}', "[]", '{"mac": 1}'])
def test_a_file_of_heads_that_is_none_is_refused_by_its_line(busy: Cli, tmp_path: Path, text: str) -> None:
    file = tmp_path / "kept.jsonl"
    file.write_text(busy.good("audit", "heads") + text)
    done = busy.run("audit", "verify", "--heads", str(file))
    assert done.exit_code == 1
    assert "line 3" in done.stderr


def test_every_event_is_exported_with_its_link_and_an_export_goes_on_where_another_ended(busy: Cli) -> None:
    everything = lines(busy.good("audit", "export"))
    assert [one["event"]["type"] for one in everything] == [
        "caller.created",
        "workspace.created",
        "device.registered",
        "key.created",
    ]
    assert [one["link"]["number"] for one in everything] == ["1", "1", "2", "3"]
    for place, one in enumerate(everything):
        assert lines(busy.good("audit", "export", "--after", one["cursor"])) == everything[place + 1 :]
    assert lines(busy.good("audit", "export", "--workspace", "acme", "--type", "key.created")) == everything[3:]


def test_an_export_that_cannot_be_is_explained(busy: Cli) -> None:
    done = busy.run("audit", "export", "--after", "garbage")
    assert done.exit_code == 1
    assert "after: is not a cursor" in done.stderr


def test_events_are_watched(busy: Cli) -> None:
    everything = lines(busy.good("audit", "export"))
    assert lines(busy.good("audit", "watch", "--limit", "4")) == everything
    assert lines(busy.good("audit", "watch", "--limit", "1", "--after", everything[1]["cursor"])) == everything[2:3]


def test_a_watch_that_cannot_be_is_explained(busy: Cli) -> None:
    done = busy.run("audit", "watch", "--type", "nonsense")
    assert done.exit_code == 1
    assert "types[0]: is no type of event" in done.stderr


def test_a_watch_goes_on_by_itself_where_a_server_ends(busy: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    from server.domain.errors import ErrorReason, Refusal
    from server.service import events

    original = events.Watch.next
    cuts: Iterator[bool] = iter([True, False, True])

    def cut_off(watch: events.Watch, seconds: float) -> events.Batch | None:
        if next(cuts, False):
            raise Refusal(ErrorReason.SHUTTING_DOWN, "this server ends")
        return original(watch, seconds)

    monkeypatch.setattr(events.Watch, "next", cut_off)
    monkeypatch.setattr("server.cli.audit._AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(events, "EVENTS_AT_ONCE", 1)
    done = busy.run("audit", "watch", "--limit", "4")
    assert lines(done.stdout) == lines(busy.good("audit", "export"))
    assert "this server ends; trying again" in done.stderr
