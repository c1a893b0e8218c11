"""Runs on both databases, one after another, until so much was decided; then servers are killed: `make soak`.

python -m tests.history.soak [--decisions N] [--seconds N] [--kills N] [--seed N]
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.history import killing
from tests.history.checker import Violation
from tests.history.recorder import Numbers, Scale
from tests.history.run import Outcome, run
from tests.postgres import Postgres, running_postgres

DECISIONS = 10_000_000
SECONDS = 7200.0
KILLS = 500
_SCALE = Scale(decisions=1_000_000, batch=1000, readers=2, writers=8, pause=0.0, seconds=240, faults=3, fault_pause=4.0)


class _Totals:
    """What came of all runs on one database."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.numbers = Numbers()
        self.injected: Counter[str] = Counter()
        self.violations = 0
        self.unexpected: list[str] = []

    def add(self, outcome: Outcome) -> None:
        self.numbers.add(outcome.numbers)
        self.injected.update(outcome.injected)
        self.violations += len(outcome.violations)
        self.unexpected += outcome.unexpected


def soak(decisions: int, seconds: float, seed: int, console: Console) -> list[_Totals]:
    """Run until so many decisions were made, or so many seconds are over; or until one was wrong."""
    began = time.monotonic()
    totals = [_Totals("SQLite"), _Totals("Postgres")]
    with running_postgres(durable=True) as postgres:
        databases: list[Postgres | None] = [None, postgres]
        number = 0
        while (
            sum(each.numbers.decisions for each in totals) < decisions
            and time.monotonic() - began < seconds
            and not any(each.violations or each.unexpected for each in totals)
        ):
            total = totals[number % 2]
            with tempfile.TemporaryDirectory(prefix="soak-") as folder:
                outcome = run(Path(folder), databases[number % 2], _SCALE, seed + number)
            total.add(outcome)
            if outcome.violations:
                console.print(f"what is wrong, and why, is in {_written(outcome.violations, seed + number)}")
            console.print(
                f"{time.monotonic() - began:6.0f} s  {total.name:<8}  seed {seed + number}: "
                f"{outcome.numbers.decisions:,} decisions, {sum(outcome.injected.values())} faults, "
                f"{len(outcome.violations)} violations; "
                f"{sum(each.numbers.decisions for each in totals):,} decisions so far",
                highlight=False,
            )
            number += 1
    return totals


def kill(kills: int, seed: int, console: Console) -> list[str]:
    """Kill so many servers on each database; return what was wrong after that."""
    wrong = []
    with running_postgres(durable=True) as postgres:
        for name, database in (("SQLite", None), ("Postgres", postgres)):
            with tempfile.TemporaryDirectory(prefix="soak-") as folder:
                outcome = killing.run(Path(folder), database, kills, seed)
            console.print(
                f"{name}: {outcome.kills} kills, {len(outcome.acknowledged):,} changes acknowledged, "
                f"{outcome.unanswered:,} without an answer; {outcome.events:,} events, {outcome.webhooks:,} webhooks; "
                f"{len(outcome.wrong)} wrong",
                highlight=False,
            )
            wrong += outcome.wrong
    return wrong


def _written(violations: Sequence[Violation], seed: int) -> Path:
    """Write what is wrong down, and return the file."""
    file = Path(tempfile.gettempdir()) / f"freshness-violations-{seed}.jsonl"
    with file.open("w") as to:
        for each in violations:
            line = {
                "fault": each.fault.value,
                "words": each.words,
                "call": {name: getattr(each.asked, name) for name in ("began", "ended", "process", "revision")},
                "changes": [asdict(change) | {"kind": change.kind.value} for change in each.changes],
            }
            to.write(json.dumps(line) + "\n")
    return file


def _table(totals: Sequence[_Totals]) -> Table:
    table = Table("", *(each.name for each in totals), title="Freshness", title_justify="left")
    rows = {
        "answers": [each.numbers.answers for each in totals],
        "changes": [each.numbers.changes for each in totals],
        "errors": [each.numbers.errors for each in totals],
        "faults injected": [each.injected for each in totals],
    }
    for title, counters in rows.items():
        table.add_row(title, *(f"{_sum(counter):,}" for counter in counters), style="bold")
        for name in sorted({name for counter in counters for name in counter}):
            table.add_row(f"  {name}", *(f"{counter[name]:,}" for counter in counters))
        table.add_section()
    longest = [each.numbers.longest.get("revoke", 0.0) for each in totals]
    table.add_row("longest revoke", *(f"{seconds:.2f} s" for seconds in longest))
    table.add_row("unexpected errors", *(f"{len(each.unexpected)}" for each in totals))
    table.add_row("violations", *(f"{each.violations}" for each in totals), style="bold")
    return table


def _sum(counter: Counter[str]) -> int:
    return sum(count for name, count in counter.items() if not name.startswith("of which"))


def main(arguments: list[str]) -> int:
    """Soak, print what came of it, and return 1 if anything was wrong or too little was decided in time."""
    parser = argparse.ArgumentParser(prog="soak", description="Check what is promised of freshness, for long.")
    parser.add_argument("--decisions", type=int, default=DECISIONS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="the longest that it takes, about")
    parser.add_argument("--kills", type=int, default=KILLS, help="how often a server is killed on each database")
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args(arguments)
    console = Console(width=120, soft_wrap=True)
    totals = soak(chosen.decisions, chosen.seconds, chosen.seed, console)
    console.print(_table(totals))
    for total in totals:
        for line in total.unexpected[:10]:
            console.print(f"{total.name}: {line}", markup=False)
    decided = sum(each.numbers.decisions for each in totals)
    if decided < chosen.decisions:
        console.print(f"{decided:,} decisions are less than {chosen.decisions:,}")
    lost = kill(chosen.kills, chosen.seed, console) if chosen.kills else []
    for line in lost[:10]:
        console.print(line, markup=False)
    wrong = lost or any(each.violations or each.unexpected for each in totals)
    return int(bool(wrong) or decided < chosen.decisions)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
