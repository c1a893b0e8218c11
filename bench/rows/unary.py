"""One question a call: against a constant behind the same gate, against bare grpcio, against Cerbos."""

from __future__ import annotations

import sys
from contextlib import ExitStack

from bench import cerbos, load, processes, servers
from bench.load import Calls, Measured
from bench.report import Row, skipped
from bench.rounds import interleaved, middle, ratio
from bench.tools import Missing
from bench.workshop import Workshop

_SERVERS = (sys.executable, "-m", "bench.servers")
_SHAPES = {1: "1 call in flight", 8: "8 calls in flight"}


def rows(workshop: Workshop, *, with_cerbos: bool = True) -> list[Row]:
    """Compare a warm Authorize with what it could be."""
    scale = workshop.scale
    store = workshop.store(scale.small)
    asking = workshop.questions(store, [(0, 1)])
    constant = Calls(
        method=servers.METHOD,
        file=workshop.write([(store.question(0, 1), servers.ANSWER)]),
        bearer=store.bearer,
    )
    found: list[Row] = []
    with ExitStack() as stack:
        product = stack.enter_context(processes.serving(store, command=(*_SERVERS, "constant")))
        bare = stack.enter_context(processes.running((*_SERVERS, "bare")))
        candidates = {
            "authorize": (product, asking),
            "constant": (product, constant),
            "bare": (bare, constant),
        }
        try:
            if with_cerbos:
                theirs = Calls(
                    method=cerbos.METHOD,
                    file=workshop.write([cerbos.exchange(store, 0, [1])]),
                    vary=cerbos.VARYING,
                )
                candidates["cerbos"] = (stack.enter_context(cerbos.running()), theirs)
        except Missing as missing:
            found.append(skipped("3", "Authorize : Cerbos", f"SKIPPED: {missing}"))
        for server, calls in candidates.values():
            load.call(server, calls, scale.warm)
        for concurrency, shape in _SHAPES.items():
            measured = interleaved(scale.rounds, load.arms(candidates, concurrency, scale.seconds))
            found += _compared(shape, measured)
    return found


def _compared(shape: str, measured: dict[str, list[Measured]]) -> list[Row]:
    floors = {
        "constant": ("1", "a constant of the same shape behind the same gate", 0.95),
        "bare": ("2", "the same from bare grpcio", 0.85),
        "cerbos": ("3", "Cerbos 0.55, the same rule", 1.1),
    }
    found = []
    ours = measured["authorize"]
    for name, (number, what, floor) in floors.items():
        if name not in measured:
            continue
        theirs = measured[name]
        cost, other = (middle(each, lambda one: one.cost) for each in (ours, theirs))
        busy, share = middle(ours, lambda one: one.server), middle(ours, lambda one: one.load)
        found.append(
            Row(
                name=number,
                what=f"Authorize : {what}, {shape}",
                unit="ratio",
                found=ratio(ours, theirs),
                floor=floor,
                absolute=f"{_rate(ours)} : {_rate(theirs)} a second; p50 {_p50(ours)} : {_p50(theirs)} ms",
                why=f"the server's core is {busy:.0%} busy, the generator's {share:.0%}; a decision takes {cost:.0f} "
                f"µs of a core where the other takes {other:.0f}, which would make {other / cost:.2f}.",
            )
        )
    return found


def _rate(measured: list[Measured]) -> str:
    return f"{middle(measured, lambda one: one.rate):,.0f}"


def _p50(measured: list[Measured]) -> str:
    return f"{middle(measured, lambda one: one.p50) / 1000:.2f}"
