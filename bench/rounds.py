"""Comparisons that noise cannot spoil: all that is compared is measured in turn, round after round, in one run.

What slows the machine for a while slows the neighbours of a round alike, so a ratio is taken within each round, and the
middle one of the rounds is the figure. Every other round goes backwards, so that no arm always comes first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import median
from typing import TypeVar

from bench.load import Measured

T = TypeVar("T")


@dataclass(frozen=True)
class Spread:
    """The middle of some figures, and the range of the middle half of them."""

    middle: float
    low: float
    high: float
    samples: tuple[float, ...]


def spread(samples: list[float]) -> Spread:
    """Return the spread of figures."""
    ordered = sorted(samples)
    quarter = len(ordered) // 4
    return Spread(median(ordered), ordered[quarter], ordered[-1 - quarter], tuple(samples))


def interleaved(count: int, arms: Mapping[str, Callable[[], T]]) -> dict[str, list[T]]:
    """Measure each arm in each of so many rounds."""
    found: dict[str, list[T]] = {name: [] for name in arms}
    for number in range(count):
        names = list(arms)
        for name in names if number % 2 == 0 else reversed(names):
            found[name].append(arms[name]())
    return found


def ratio(of: list[Measured], to: list[Measured], what: Callable[[Measured], float] = lambda each: each.rate) -> Spread:
    """Return the ratio of one arm to another, round by round."""
    return spread([what(one) / what(other) for one, other in zip(of, to, strict=True)])


def middle(of: list[Measured], what: Callable[[Measured], float]) -> float:
    """Return the middle of a figure of an arm."""
    return median(what(each) for each in of)
