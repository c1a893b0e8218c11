"""Many keys and devices at once: what it costs to know them all, in time and in memory."""

from __future__ import annotations

import random
from bisect import bisect
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import accumulate

from bench import load, machine, processes
from bench.facts import Facts
from bench.processes import Running
from bench.report import Row
from bench.rounds import interleaved, middle, ratio, spread
from bench.rows.batch import QUESTIONS
from bench.workshop import Workshop

_DRAWN = 100_000
_SEED = 20260101


def spread_rows(workshop: Workshop) -> list[Row]:
    """Compare questions about many keys and devices with questions about one."""
    scale = workshop.scale
    store = workshop.store(scale.cached)
    one = workshop.questions(store, [(0, 1)], concurrency=8)
    drawn = _zipf(store.count, min(_DRAWN, 10 * store.count))
    many = workshop.questions(store, drawn, concurrency=8)
    with _knowing_all(workshop, store) as server:
        measured = interleaved(
            scale.rounds,
            {
                "many": partial(load.call, server, many, scale.seconds, warm=scale.seconds / 5),
                "one": partial(load.call, server, one, scale.seconds, warm=scale.seconds / 5),
            },
        )
    many_cost, one_cost = (middle(measured[name], lambda each: each.cost) for name in ("many", "one"))
    return [
        Row(
            name="5",
            what=f"Authorize over {store.count:,} keys x {store.count:,} devices (Zipf, s = 1) : one key, 8 in flight",
            unit="ratio",
            found=ratio(measured["many"], measured["one"]),
            floor=0.9,
            absolute=" : ".join(f"{middle(measured[name], lambda each: each.rate):,.0f}" for name in ("many", "one"))
            + " a second",
            why=f"{many_cost:.0f} µs of processor time a decision against {one_cost:.0f}: what differs is what the "
            f"processor's own caches hold, and whatever the server does not know of {len(set(drawn)):,} pairs.",
        )
    ]


def memory_rows(workshop: Workshop) -> list[Row]:
    """Measure the memory of a server that has been asked about many keys and devices."""
    store = workshop.store(workshop.scale.cached)
    with processes.serving(store) as server:
        load.call(server, workshop.questions(store, [(0, 1)]), workshop.scale.seconds)
        before = machine.megabytes(server.process.pid)
    with _knowing_all(workshop, store) as server:
        after = machine.megabytes(server.process.pid)
    return [
        Row(
            name="7",
            what=f"PSS of a server that was asked about {store.count:,} keys and {store.count:,} devices",
            unit="MB",
            found=spread([after["pss"]]),
            ceiling=200,
            absolute=f"RSS {after['rss']:.0f} MB; before, PSS {before['pss']:.0f} and RSS {before['rss']:.0f} MB",
            why=f"{(after['pss'] - before['pss']) * 1024 / store.count:.2f} KiB a key and device over what the "
            "interpreter and its libraries take.",
        )
    ]


@contextmanager
def _knowing_all(workshop: Workshop, store: Facts) -> Iterator[Running]:
    """Run a server that has been asked, in batches, about every key and device once."""
    numbers = range(store.count)
    batches = [[(each, each) for each in numbers[first : first + QUESTIONS]] for first in numbers[::QUESTIONS]]
    asking = workshop.batches(store, batches)
    with processes.serving(store) as server:
        load.call(server, asking, 120, once=True)
        yield server


def _zipf(count: int, draws: int) -> list[tuple[int, int]]:
    """Draw keys, the number n as often as 1/n, each with its own device."""
    weights = list(accumulate(1 / number for number in range(1, count + 1)))
    drawing = random.Random(_SEED)  # noqa: S311 - a draw to be repeated
    numbers = list(range(count))
    drawing.shuffle(numbers)  # so that those asked for most are not neighbours in the store
    drawn = (numbers[min(count - 1, bisect(weights, drawing.random() * weights[-1]))] for _ in range(draws))
    return [(number, number) for number in drawn]
