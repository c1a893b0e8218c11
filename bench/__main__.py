"""The command: measure the rows that are asked for, and write the table.

python -m bench [--rows unary,batch] [--smoke] [--into FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from bench import load, machine, processes, report, scale, tools
from bench.report import Row
from bench.rows import ROWS
from bench.workshop import Workshop
from server.settings import Settings

METHOD = """
Ratios are what counts: absolute times are of the machine that this was made on, and of its neighbours. All that a ratio
compares is measured in one run, in turn, round after round, every other round backwards; a ratio is taken within each
round, and the figure is the middle one of the rounds, with the range of the middle half. Each round of a server is
preceded by calls that are not counted.

The server is pinned to one core and the load generator to another. Rows 9 to 11, with more processes than cores, say
what they share. The generator (`bench/load`, Go) sends requests that were made beforehand and compares
**every** answer, byte by byte, with what it must be; of what differs from one answer to the next (`revision`,
`decision_id`, Cerbos' call id) it checks that it is there. One wrong answer or one error ends the run. The servers run
as they do by default: JSON log, every hundredth ALLOW logged, peppers, caller authentication, plain text on loopback.
Stores are made by inserting rows in bulk; every other key is a scoped key, the rest are server keys.
"""


def main(arguments: list[str]) -> int:
    """Measure, and write the table; return the exit code: 2 where something that all rows need cannot be had."""
    parser = argparse.ArgumentParser(prog="bench", description="Measure the service, in ratios.")
    parser.add_argument("--rows", default="", help=f"some of {','.join(ROWS)}; all by default")
    parser.add_argument("--smoke", action="store_true", help="as little as shows that it works")
    parser.add_argument("--into", type=Path, default=Path(__file__).parent, help="where the table goes")
    chosen = parser.parse_args(arguments)
    names = [name for name in chosen.rows.split(",") if name] or list(ROWS)
    unknown = set(names) - set(ROWS)
    if unknown:
        parser.error(f"there are no rows {', '.join(sorted(unknown))}; there are {', '.join(ROWS)}")
    if len(machine.CORES) == 1:
        _say("!!! there is one core: server and load generator share it, and ratios say little")
    rows: list[Row] = []
    try:
        with Workshop(scale.SMOKE if chosen.smoke else scale.FULL) as workshop:
            notes = [_ceiling(workshop), _caches()]
            for name in names:
                began = time.monotonic()
                rows += ROWS[name](workshop)
                _say(f"{name}: {time.monotonic() - began:.0f} s")
    except tools.Missing as missing:
        _say(f"!!! {missing}")
        return 2
    rows.sort(key=lambda row: int(row.name))
    report.write(chosen.into, rows, notes, METHOD)
    for row in rows:
        loud = "!!! " if row.found is None else ""
        _say(f"{loud}{row.name:>3}  {row.what}: {row.measured.replace('*', '') or row.why} {row.verdict.strip('*')}")
    return 0


def _ceiling(workshop: Workshop) -> str:
    """Measure what the generator can do at most, against a server of its own kind that does nothing."""
    store = workshop.store(workshop.scale.small)
    calls = workshop.questions(store, [(0, 1)], concurrency=8)
    command = [str(tools.load_generator()), "serve", "-file", str(calls.file)]
    with processes.running(command, environment={"GOMAXPROCS": "1"}) as server:
        found = load.call(server, calls, workshop.scale.seconds, warm=workshop.scale.seconds / 2)
    return (
        f"The load generator's own ceiling: {found.rate:,.0f} calls a second with 8 in flight, every answer checked, "
        f"against a Go server of constant bytes on the server's core. A call takes {found.load / found.rate * 1e6:.0f} "
        f"µs of the generator's core, which would do for {found.rate / found.load:,.0f} a second."
    )


def _caches() -> str:
    """Tell what this release can be told about caches, and what it was told: nothing."""
    told = [f"`{name}` = {field.default}" for name, field in Settings.model_fields.items() if "cache" in name.lower()]
    return f"Settings of caches, all at their defaults: {', '.join(told) or 'this release has none'}."


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # noqa: T201 - for who waits


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
