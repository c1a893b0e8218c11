"""Two workers on two cores."""

from __future__ import annotations

import subprocess
from contextlib import ExitStack
from functools import partial

from bench import load, machine, processes
from bench.processes import PRODUCT, clean_environment
from bench.report import Row, skipped
from bench.rounds import interleaved, middle, ratio
from bench.workshop import Workshop

_WHAT = "Authorize with `--workers 2` : `--workers 1`, 16 in flight over 8 connections, nothing pinned"


def rows(workshop: Workshop) -> list[Row]:
    """Compare two workers with one, if this release has any."""
    told = subprocess.run(  # noqa: S603 - the product
        [*PRODUCT, "serve", "--help"], env=clean_environment(), capture_output=True, text=True, check=False
    )
    if "--workers" not in told.stdout:
        return [skipped("9", _WHAT, "NOT MEASURED: this release has no `serve --workers`.")]
    scale = workshop.scale
    store = workshop.store(scale.small)
    calls = workshop.questions(store, [(0, 1)], concurrency=16, connections=8)
    with ExitStack() as stack:
        arms = {}
        for count in ("2", "1"):
            server = stack.enter_context(processes.serving(store, "--workers", count, cores=machine.ALL_CORES))
            arms[count] = partial(load.call, server, calls, scale.seconds, warm=scale.seconds, cores=machine.ALL_CORES)
        measured = interleaved(scale.rounds, arms)
    two, one = measured["2"], measured["1"]
    rates, cores = (
        [middle(each, what) for each in (two, one)] for what in (lambda each: each.rate, lambda each: each.server)
    )
    share = middle(two, lambda each: each.load)
    return [
        Row(
            name="9",
            what=_WHAT,
            unit="ratio",
            found=ratio(two, one),
            absolute=f"{rates[0]:,.0f} : {rates[1]:,.0f} a second",
            why=f"of {len(machine.CORES)} cores the load generator takes {share:.2f}, and the two workers "
            f"{cores[0]:.2f}, where one takes {cores[1]:.2f}.",
        )
    ]
