"""A thousand questions a call."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial

from bench import cerbos, load, processes
from bench.facts import PERMISSIONS
from bench.load import Calls, Measured
from bench.report import Row, skipped
from bench.rounds import interleaved, middle, ratio, spread
from bench.tools import Missing
from bench.workshop import Workshop

QUESTIONS = 1_000


def rows(workshop: Workshop, *, with_cerbos: bool = True) -> list[Row]:
    """Measure BatchAuthorize by itself, and against Cerbos' largest batch."""
    scale = workshop.scale
    store = workshop.store(max(scale.small, QUESTIONS))
    found: list[Row] = []
    with ExitStack() as stack:
        product = stack.enter_context(processes.serving(store))
        arms = {
            "one key": (product, workshop.batches(store, [[(0, number) for number in range(QUESTIONS)]])),
            "1,000 keys": (product, workshop.batches(store, [[(number, number) for number in range(QUESTIONS)]])),
        }
        try:
            if with_cerbos:
                other = stack.enter_context(cerbos.running())
                for actions in (PERMISSIONS[:1], ("devices:list", *PERMISSIONS)):
                    file = workshop.write([cerbos.exchange(store, 0, range(cerbos.MOST_RESOURCES), actions)])
                    calls = Calls(
                        method=cerbos.METHOD,
                        file=file,
                        vary=cerbos.VARYING,
                        decisions=cerbos.MOST_RESOURCES * len(actions),
                        concurrency=2,
                        connections=2,
                    )
                    arms[f"cerbos {len(actions)}"] = (other, calls)
        except Missing as missing:
            found.append(skipped("3", "BatchAuthorize : Cerbos", f"SKIPPED: {missing}"))
        for server, calls in arms.values():
            load.call(server, calls, scale.warm)
        measured = interleaved(
            scale.rounds,
            {name: partial(load.call, server, calls, scale.seconds) for name, (server, calls) in arms.items()},
        )
    found += [_alone("one key", measured["one key"], 150_000), _alone("1,000 keys", measured["1,000 keys"], 60_000)]
    compared: tuple[tuple[int, float | None], ...] = ((1, 8.0), (3, None))
    found += [_compared(count, least, measured) for count, least in compared if f"cerbos {count}" in measured]
    return found


def _alone(name: str, ours: list[Measured], floor: float) -> Row:
    cost, busy = middle(ours, lambda one: one.cost), middle(ours, lambda one: one.server)
    return Row(
        name="4",
        what=f"BatchAuthorize({QUESTIONS:,}), {name}",
        unit="decisions/s",
        found=spread([one.rate for one in ours]),
        floor=floor,
        absolute=f"p50 {middle(ours, lambda one: one.p50) / 1000:.1f} ms a batch, two in flight",
        why=f"a decision takes {cost:.2f} µs of a core that is {busy:.0%} busy; a whole core would make "
        f"{1e6 / cost:,.0f} of them.",
    )


def _compared(actions: int, floor: float | None, measured: dict[str, list[Measured]]) -> Row:
    ours, theirs = measured["one key"], measured[f"cerbos {actions}"]
    cost, other = (middle(each, lambda one: one.cost) for each in (ours, theirs))
    asked = "one permission of each" if actions == 1 else "three permissions of each, which it shares work between"
    return Row(
        name="3",
        what=f"BatchAuthorize({QUESTIONS:,}), one key : Cerbos' largest, {cerbos.MOST_RESOURCES} devices, {asked}",
        unit="ratio",
        found=ratio(ours, theirs),
        floor=floor,
        absolute=f"{middle(ours, lambda one: one.rate):,.0f} : {middle(theirs, lambda one: one.rate):,.0f} decisions/s",
        why=f"a decision takes {cost:.1f} µs of the server's core where Cerbos takes {other:.1f}, by which the ratio "
        f"would be {other / cost:.2f}; Cerbos is sent the attributes of each device, and looks nothing up.",
    )
