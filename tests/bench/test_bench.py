"""The bench itself, with the least of everything: what it would measure works, and a wrong answer does not pass."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import __main__ as command
from bench import load, machine, processes
from bench.report import Row, markdown
from bench.rounds import interleaved, spread
from bench.rows import ROWS, batch, client, counting, envoy, guard, revoke, unary, webhooks
from bench.scale import SMOKE
from bench.workshop import Workshop

needs_go = pytest.mark.skipif(
    shutil.which("go") is None and not os.environ.get("CI"), reason="Go, which builds the load generator, is not here"
)
# The load generator is built once.
pytestmark = [pytest.mark.timeout(300), pytest.mark.usefixtures("unmeasured_processes")]


@pytest.fixture
def workshop() -> Iterator[Workshop]:
    with Workshop(replace(SMOKE, cached=200, small=200)) as made:
        yield made


@needs_go
def test_one_question_a_call_is_compared_with_a_constant_and_with_bare_grpcio(workshop: Workshop) -> None:
    rows = unary.rows(workshop, with_cerbos=False)
    assert [row.name for row in rows] == ["1", "2", "1", "2"]
    assert all(row.found is not None and row.found.middle > 0 for row in rows)


@needs_go
def test_a_thousand_questions_a_call_are_all_answered_as_they_must_be(workshop: Workshop) -> None:
    one_key, many_keys = batch.rows(workshop, with_cerbos=False)
    assert one_key.found is not None
    assert many_keys.found is not None
    assert one_key.found.middle > 1_000


@needs_go
def test_a_server_that_counts_uses_is_compared_with_one_that_does_not(workshop: Workshop) -> None:
    rows = counting.rows(workshop)
    assert [row.name for row in rows] == ["12", "12"]
    assert all(row.found is not None and row.found.middle > 0 for row in rows)


def test_the_python_client_is_compared_with_a_bare_stub_in_threads_and_in_coroutines(workshop: Workshop) -> None:
    rows = client.rows(workshop)
    assert [(row.name, row.floor) for row in rows] == [("13", 0.9), ("13", 0.9)]
    assert all(row.found is not None and row.found.middle > 0 for row in rows)


def test_an_authorizer_whose_questions_are_not_allowed_ends_the_run() -> None:
    with pytest.raises(load.WrongAnswer):
        client._rate(lambda: False, 1)


@needs_go
def test_a_server_that_sends_webhooks_is_compared_with_itself_when_it_does_not(workshop: Workshop) -> None:
    rows = webhooks.rows(workshop)
    assert [row.name for row in rows] == ["16", "16"]
    assert all(row.found is not None and row.found.middle > 0 for row in rows)


def test_the_interceptor_costs_something(workshop: Workshop) -> None:
    (row,) = guard.rows(workshop)
    assert (row.name, row.unit) == ("14", "µs")
    assert row.found is not None


@needs_go
def test_requests_through_envoy_are_compared_with_those_that_nobody_asks_about(workshop: Workshop) -> None:
    rows = envoy.rows(workshop)
    assert [row.name for row in rows] == ["15", "15"]
    assert all(row.found is not None and row.found.middle > 0 for row in rows)


@needs_go
def test_a_revocation_is_watched_at_each_process(workshop: Workshop) -> None:
    returned, denied = revoke.kind_rows(workshop, "sqlite")
    assert returned.found is not None
    assert denied.found is not None
    assert len(returned.found.samples) == SMOKE.trials


@needs_go
def test_a_wrong_answer_ends_the_run(workshop: Workshop) -> None:
    store = workshop.store(200)
    question, answer = store.exchange(1, 2)  # another end user's device, so a denial
    _, allowed = store.exchange(1, 1)
    with processes.serving(store) as server:
        for expected in (answer, allowed):
            calls = replace(workshop.questions(store, [(1, 2)]), file=workshop.write([(question, expected)]))
            if expected is answer:
                assert load.call(server, calls, 0.1).count > 0
            else:
                with pytest.raises(load.WrongAnswer):
                    load.call(server, calls, 0.1)


@needs_go
def test_the_command_writes_a_table_for_people_and_one_for_machines(tmp_path: Path) -> None:
    assert command.main(["--smoke", "--rows", "memory", "--into", str(tmp_path)]) == 0
    assert "PSS of a server" in (tmp_path / "RESULTS.md").read_text()
    (row,) = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert (row["name"], row["ceiling"], row["verdict"]) == ("7", 200, "yes")


def test_so_few_calls_that_no_processor_time_is_told_of_them_cost_something(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = {"count": 1, "errors": 0, "wrong": 0, "seconds": 0.1, "p50": 1.0, "p99": 1.0, "cpu_seconds": 0.0}
    monkeypatch.setattr(load, "_generate", lambda *_: found)
    monkeypatch.setattr(machine, "cpu_seconds", lambda _: 7.0)
    server = processes.Running(subprocess.Popen(["true"]), "127.0.0.1:1", tmp_path)
    server.process.wait()
    assert load.call(server, load.Calls(method=load.AUTHORIZE, file=tmp_path), 0.1).cost > 0


def test_rows_that_there_are_not_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["--rows", "unary,speed"])
    assert f"there are {', '.join(ROWS)}" in capsys.readouterr().err


def test_every_other_round_goes_backwards() -> None:
    order: list[str] = []
    interleaved(2, {"a": lambda: order.append("a"), "b": lambda: order.append("b")})
    assert order == ["a", "b", "b", "a"]


def test_a_row_says_whether_it_is_as_wanted_and_what_bounds_it() -> None:
    row = Row(name="1", what="this : that", unit="ratio", found=spread([0.9, 0.7, 0.8]), floor=0.85, why="the weather.")
    table = markdown([row, replace(row, floor=0.75)], [], "")
    assert "| 1 | this : that | **0.80** (0.70 to 0.90) | ≥ 0.85 | **no** |" in table
    assert "| ≥ 0.75 | yes |" in table
    assert "- **1, this : that**; **1, this : that**: the weather." in table
