"""What it costs to count what keys are used for."""

from __future__ import annotations

from contextlib import ExitStack

from bench import load, processes
from bench.report import Row
from bench.rounds import interleaved, middle, ratio
from bench.workshop import Workshop

_SHAPES = {1: "1 call in flight", 8: "8 calls in flight"}


# Two servers that do the same differ by a few hundredths, as long as they live; so it is asked of several pairs.
_PAIRS = 4


def rows(workshop: Workshop) -> list[Row]:
    """Compare servers that count with others that do not, each on a store of its own."""
    measured: dict[int, dict[str, list[load.Measured]]] = {concurrency: {} for concurrency in _SHAPES}
    for _ in range(_PAIRS):
        with ExitStack() as stack:
            _measure_a_pair(workshop, stack, measured)
    return [_row(shape, measured[concurrency]) for concurrency, shape in _SHAPES.items()]


def _measure_a_pair(workshop: Workshop, stack: ExitStack, measured: dict[int, dict[str, list[load.Measured]]]) -> None:
    scale = workshop.scale
    arms = {}
    for name, setting in (("counting", "true"), ("not counting", "false")):
        store = workshop.new_store(scale.small)
        server = stack.enter_context(processes.serving(store, TEXTURE_AUTH_COUNT_USE=setting))
        arms[name] = (server, workshop.questions(store, [(0, 1)]))
        load.call(*arms[name], scale.warm)
    for concurrency, found in measured.items():
        calls = load.arms(arms, concurrency, scale.seconds)
        for name, rounds in interleaved(max(1, scale.rounds // 2), calls).items():
            found.setdefault(name, []).extend(rounds)


def _row(shape: str, measured: dict[str, list[load.Measured]]) -> Row:
    counting, other = measured["counting"], measured["not counting"]
    costs = [middle(each, lambda one: one.cost) for each in (counting, other)]
    return Row(
        name="12",
        what=f"Authorize, counting what keys are used for : not counting, {shape}",
        unit="ratio",
        found=ratio(counting, other),
        floor=0.97,
        absolute=" : ".join(f"{middle(each, lambda one: one.rate):,.0f}" for each in (counting, other)) + " a second",
        why=f"a decision takes {costs[0]:.1f} µs of the server's core against {costs[1]:.1f}; what was counted is "
        f"stored once a second. Of {_PAIRS} pairs of servers, since two that do the same differ by as much.",
    )
