"""What is not known yet: questions that go to the store."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial

from bench import load, processes
from bench.facts import Facts
from bench.load import Measured
from bench.report import Row
from bench.rounds import interleaved, middle, ratio, spread
from bench.workshop import Workshop

_FIRST = 100  # questions that a fresh server is asked before any counts


def size_rows(workshop: Workshop) -> list[Row]:
    """Compare a big store with a small one."""
    scale = workshop.scale
    stores = {"big": workshop.store(scale.big), "small": workshop.store(scale.small)}
    arms = {name: _fresh(workshop, store) for name, store in stores.items()}
    measured = interleaved(scale.rounds, arms)
    found = []
    for number, (what, ceiling) in enumerate((("hit", 1.10), ("miss", 1.25))):
        big, small = ([pair[number] for pair in measured[name]] for name in ("big", "small"))
        costs = [middle(each, lambda one: one.cost) for each in (big, small)]
        found.append(
            Row(
                name="6",
                what=f"p50 of a {what} in a store of {scale.big:,} keys and devices : of {scale.small:,}",
                unit="ratio",
                found=ratio(big, small, lambda one: one.p50),
                ceiling=ceiling,
                absolute=" : ".join(f"{middle(each, lambda one: one.p50) / 1000:.3f}" for each in (big, small)) + " ms",
                why="a hit touches nothing whose size is the store's."
                if what == "hit"
                else "the indexes are deeper, and their pages come from the operating system, which has read the file; "
                f"{costs[0]:.0f} : {costs[1]:.0f} µs of the server's core.",
            )
        )
    return found


def latency_rows(workshop: Workshop) -> list[Row]:
    """Measure how long a miss takes on each kind of database."""
    scale = workshop.scale
    arms = {kind: _fresh(workshop, workshop.store(scale.cached, kind)) for kind in ("sqlite", "postgres")}
    measured = interleaved(max(3, scale.rounds // 2) if scale.rounds > 1 else 1, arms)
    found = []
    for kind, name in (("sqlite", "SQLite"), ("postgres", "Postgres")):
        missed = [pair[1] for pair in measured[kind]]
        for share, which in (("p50", 0), ("p99", 1)):
            found.append(
                Row(
                    name="8",
                    what=f"{share} of a miss on {name}, {scale.cached:,} keys and devices, 1 in flight",
                    unit="ms",
                    found=spread([(one.p50, one.p99)[which] / 1000 for one in missed]),
                    absolute=f"{sum(one.count for one in missed):,} misses; a hit takes "
                    f"{middle([pair[0] for pair in measured[kind]], lambda one: one.p50) / 1000:.3f} ms",
                    why=f"{middle(missed, lambda one: one.cost):.0f} µs of the server's processor time are most of it"
                    + (
                        "; Postgres runs on all cores, the load generator's included."
                        if kind == "postgres"
                        else ", since the file is in the operating system's memory."
                    ),
                )
            )
    return found


def _fresh(workshop: Workshop, store: Facts) -> Callable[[], tuple[Measured, Measured]]:
    """Return what measures a fresh server of a store: hits, and misses, one question at a time.

    It has been asked before about other keys, so that what a process does once is done.
    """
    scale = workshop.scale
    numbers = random.Random(store.count)  # noqa: S311 - a draw to be repeated
    misses = min(scale.misses, store.count - _FIRST - 1)

    def measure() -> tuple[Measured, Measured]:
        chosen = [(each, each) for each in numbers.sample(range(store.count), _FIRST + misses)]
        first, then = (workshop.questions(store, part) for part in (chosen[:_FIRST], chosen[_FIRST:]))
        with processes.serving(store) as server:
            load.call(server, first, 60, once=True)
            missed = load.call(server, then, 60, once=True)
            hit = partial(load.call, server, workshop.questions(store, chosen[:1]))
            return hit(scale.seconds / 2, warm=scale.seconds / 5), missed

    return measure
