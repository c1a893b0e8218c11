"""How long an answer may take: what is left of the call that is being served bounds every question that it asks."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_UNTIL: ContextVar[float] = ContextVar("texture_auth_deadline", default=math.inf)


@contextmanager
def deadline(seconds: float | None) -> Iterator[None]:
    """Bound every question that is asked within the block, by whatever authorizer, in this thread or task.

    Takes what gRPC's `context.time_remaining()` returns, None included, which bounds nothing. Of deadlines within one
    another the earliest counts.
    """
    now = time.monotonic()
    token = _UNTIL.set(_UNTIL.get() if seconds is None else min(_UNTIL.get(), now + seconds))
    try:
        yield
    finally:
        _UNTIL.reset(token)


def remaining() -> float:
    """Return the seconds that are left: infinity where there is no deadline, 0 or less when it is past."""
    until = _UNTIL.get()
    return until if until == math.inf else until - time.monotonic()
