"""Where streams that have no end are served: each in a thread of its own, so that who reads slowly holds up nobody."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from server.domain.errors import ErrorReason, Refusal

# Threads more than seats, by which streams that find none are told so.
_SPARE = 4


class Seats(ThreadPoolExecutor):
    """A pool of threads for so many streams."""

    def __init__(self, count: int) -> None:
        super().__init__(count + _SPARE, thread_name_prefix="seats")
        self._count = count
        self._free = threading.Semaphore(count)

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Take a seat until the block ends. Raises Refusal (OVERLOADED) where there is none."""
        if not self._free.acquire(blocking=False):
            raise Refusal(ErrorReason.OVERLOADED, f"{self._count} streams are served already, as many as may; retry")
        try:
            yield
        finally:
            self._free.release()
