"""What it costs to count what keys are used for."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from bench import load, processes
from bench.report import Row
from bench.rounds import interleaved, middle, ratio
from bench.workshop import Workshop

_SHAPES = {1: "1 call in flight", 8: "8 calls in flight"}


def rows(workshop: Workshop) -> list[Row]:
    """Compare a server that counts with one that does not, each on a store of its own."""
    scale = workshop.scale
    found = []
    with ExitStack() as stack:
        arms = {}
        for name, setting in (("counting", "true"), ("not counting", "false")):
            store = workshop.new_store(scale.small)
            server = stack.enter_context(processes.serving(store, TEXTURE_AUTH_COUNT_USE=setting))
            arms[name] = (server, workshop.questions(store, [(0, 1)]))
            load.call(*arms[name], scale.warm)
        for concurrency, shape in _SHAPES.items():
            measured = interleaved(
                scale.rounds,
                {
                    name: partial(
                        load.call,
                        server,
                        replace(calls, concurrency=concurrency, connections=min(2, concurrency)),
                        scale.seconds,
                        warm=scale.seconds / 5,
                    )
                    for name, (server, calls) in arms.items()
                },
            )
            counting, other = measured["counting"], measured["not counting"]
            costs = [middle(each, lambda one: one.cost) for each in (counting, other)]
            found.append(
                Row(
                    name="12",
                    what=f"Authorize, counting what keys are used for : not counting, {shape}",
                    unit="ratio",
                    found=ratio(counting, other),
                    floor=0.97,
                    absolute=" : ".join(f"{middle(each, lambda one: one.rate):,.0f}" for each in (counting, other))
                    + " a second",
                    why=f"a decision takes {costs[0]:.1f} µs of the server's core against {costs[1]:.1f}; what was "
                    "counted is stored once a second.",
                )
            )
    return found
