"""The table: what was measured, what is wanted, and what bounds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from bench import machine
from bench.rounds import Spread

Unit = Literal["ratio", "decisions/s", "MB", "ms", "µs"]
_DIGITS: dict[str, int] = {"ratio": 2, "decisions/s": 0, "MB": 0, "ms": 2, "µs": 0}


@dataclass(frozen=True, kw_only=True)
class Row:
    """A figure. `floor` is the least that is wanted of it, `ceiling` the most; `why` explains it in a sentence."""

    name: str
    what: str
    unit: Unit
    found: Spread | None
    floor: float | None = None
    ceiling: float | None = None
    absolute: str = ""
    why: str

    @property
    def verdict(self) -> str:
        """Whether it is as wanted; nothing where nothing is."""
        if self.found is None:
            return "not measured"
        if self.floor is not None and self.found.middle < self.floor:
            return "**no**"
        if self.ceiling is not None and self.found.middle > self.ceiling:
            return "**no**"
        return "" if self.floor is None and self.ceiling is None else "yes"

    @property
    def wanted(self) -> str:
        """What is wanted."""
        bounds = [
            f"{sign} {_number(bound, self.unit)}"
            for sign, bound in (("≥", self.floor), ("≤", self.ceiling))
            if bound is not None
        ]
        return ", ".join(bounds)

    @property
    def measured(self) -> str:
        """What was found, and its spread."""
        if self.found is None:
            return ""
        low, high = _number(self.found.low, self.unit), _number(self.found.high, self.unit)
        spread = f" ({low} to {high})" if len(self.found.samples) > 1 else ""
        unit = "" if self.unit == "ratio" else f" {self.unit}"
        return f"**{_number(self.found.middle, self.unit)}**{unit}{spread}"


def skipped(name: str, what: str, why: str, unit: Unit = "ratio") -> Row:
    """Return the row of what could not be measured."""
    return Row(name=name, what=what, unit=unit, found=None, why=why)


def markdown(rows: Sequence[Row], notes: Sequence[str], method: str) -> str:
    """Return the table for people."""
    lines = [
        "# Benchmark",
        "",
        f"Made by `make bench` on {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: {machine.description()}.",
        "",
        "| row | compared | found (middle half of rounds) | wanted | met | absolute figures, of this machine alone |",
        "|---|---|---|---|---|---|",
        *(
            f"| {row.name} | {row.what} | {row.measured} | {row.wanted} | {row.verdict} | {row.absolute} |"
            for row in rows
        ),
        "",
        "## What bounds each figure",
        "",
        *(f"- {whose}: {why}" for why, whose in _explanations(rows).items()),
        "",
        "## Method",
        "",
        method.strip(),
        "",
        *(f"- {note}" for note in notes),
    ]
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path, rows: Sequence[Row], notes: Sequence[str], method: str) -> None:
    """Write the table for people, `RESULTS.md`, and for machines, `results.json`."""
    (folder / "RESULTS.md").write_text(markdown(rows, notes, method))
    found = [{**asdict(row), "verdict": row.verdict.strip("*")} for row in rows]
    whole = {"machine": machine.description(), "rows": found, "notes": list(notes)}
    (folder / "results.json").write_text(json.dumps(whole, indent=1, ensure_ascii=False) + "\n")


def _explanations(rows: Sequence[Row]) -> dict[str, str]:
    """Return each explanation once, with the rows that it is of."""
    whose: dict[str, list[str]] = {}
    for row in rows:
        whose.setdefault(row.why, []).append(f"**{row.name}, {row.what}**")
    return {why: "; ".join(names) for why, names in whose.items()}


def _number(value: float, unit: Unit) -> str:
    return f"{value:,.{_DIGITS[unit]}f}"
