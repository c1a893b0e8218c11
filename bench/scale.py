"""How much to measure: all of it, or so little that it only shows that everything works."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Counts, and seconds.

    `cached` is how many keys and devices a warm server knows; `small` and `big` are stores to compare; `misses` is how
    many questions a round of them asks. Keys are revoked in so many `trials`, with so many `processes`.
    """

    rounds: int
    seconds: float
    warm: float
    cached: int
    small: int
    big: int
    misses: int
    trials: int
    fault_trials: int
    processes: tuple[int, ...]


FULL = Scale(
    rounds=9,
    seconds=1.0,
    warm=2.0,
    cached=100_000,
    small=1_000,
    big=1_000_000,
    misses=500,
    trials=50,
    fault_trials=3,
    processes=(1, 2, 4, 8),
)
SMOKE = Scale(
    rounds=1,
    seconds=0.1,
    warm=0.1,
    cached=1_000,
    small=300,
    big=2_000,
    misses=100,
    trials=2,
    fault_trials=1,
    processes=(2,),
)
