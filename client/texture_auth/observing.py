"""What is told of questions when they are over: counts, and whoever wants to hear of each. Never a key."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TypeAlias

import grpc

from texture_auth.decision import Decision, Outcome

_log = logging.getLogger("texture_auth")


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A question that is over. Holds neither the key nor what tells whose it is."""

    permission: str
    outcome: Outcome
    reason: str
    """As in the Decision."""
    code: grpc.StatusCode | None
    """Of the error, when unanswered because of one."""
    seconds: float
    """How long the caller waited, retries included. gRPC makes those, and does not tell how many there were."""
    method: str
    """The full name of the RPC, `texture.auth.v1.AuthorizeService/Authorize` or its batch."""
    batch: int
    """How many questions were asked at once."""
    place: int
    """Which of them this is, from 0."""


Observer: TypeAlias = Callable[[Asked], None]
"""Told of every question, in the thread or task that asked it. What it raises is logged, and spoils nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """How many questions came out how, since the authorizer was made."""

    allowed: int
    denied: int
    unanswered: int
    by_reason: Mapping[tuple[Outcome, str], int]


class Observation:
    """Counts, and tells observers."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self._lock = threading.Lock()
        self._counts: Counter[tuple[Outcome, str]] = Counter()

    def counters(self) -> Counters:
        """Return the counts of this moment."""
        with self._lock:
            counts = dict(self._counts)
        sums = {wanted: sum(n for (outcome, _), n in counts.items() if outcome is wanted) for wanted in Outcome}
        return Counters(
            allowed=sums[Outcome.ALLOWED],
            denied=sums[Outcome.DENIED],
            unanswered=sums[Outcome.UNANSWERED],
            by_reason=MappingProxyType(counts),
        )

    def told(
        self, method: str, permission: str, decision: Decision, seconds: float, batch: int = 1, place: int = 0
    ) -> None:
        """Count a question that is over, and tell of it."""
        with self._lock:
            self._counts[decision.outcome, decision.reason] += 1
        if not self._observers:
            return
        asked = Asked(
            permission=permission,
            outcome=decision.outcome,
            reason=decision.reason,
            code=decision.code,
            seconds=seconds,
            method=method,
            batch=batch,
            place=place,
        )
        for observer in self._observers:
            try:
                observer(asked)
            except Exception:  # noqa: BLE001 - it is the adopter's own
                _log.exception("an observer of the authorizer failed")
