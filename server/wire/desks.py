"""Where calls are worked on: so many at once and, of those that wait, each caller's in turn.

gRPC hands every call to the pool of its method, on the one thread that also sees messages arrive. A desk has a pool for
each lane of calls, all of which hand their work to the desk.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import structlog

from server.service.telemetry import DeskName

# How many lanes a desk has. Callers share one where their credentials have the same remainder.
LANES = 64
# A lane may fill so many times the room that it leaves to the others.
_SHARE = 7

_log = structlog.get_logger("texture_auth.desks")


class Desk:
    """Works on calls: `threads` at once, while `queue` wait. Safe for use by many threads.

    Work that waits for something else may step `aside`: it counts for nothing meanwhile, so that others go on. Of such
    there are `aside` at most; more of them hold up the rest.
    """

    def __init__(self, name: DeskName, *, threads: int, queue: int, aside: int) -> None:
        self.name = name
        self.threads = threads
        self.queue = queue
        self._executor = ThreadPoolExecutor(threads + aside, thread_name_prefix=name)
        self._lock = threading.Lock()
        self._lanes: dict[int, Lane] = {}
        self._turns: deque[Lane] = deque()
        self._waiting = 0
        self._running = 0
        self._aside = 0

    @property
    def idle(self) -> bool:
        """Tell whether there is nothing to do."""
        return self._waiting == self._running == self._aside == 0

    @property
    def busy(self) -> int:
        """Return how many calls are worked on, those aside included."""
        return self._running + self._aside

    @property
    def waiting(self) -> int:
        """Return how many calls wait."""
        return self._waiting

    def lane(self, credential: str) -> Lane:
        """Return the lane of whoever calls with a credential, which nobody has looked at yet."""
        number = hash(credential) % LANES
        return self._lanes.get(number) or self._lanes.setdefault(number, Lane(self))

    def shutdown(self) -> None:
        """Wait until all work is done. Nothing may be handed in any more."""
        self._executor.shutdown()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let others work in the place of the calling thread, which works for this desk, until the block ends."""
        self.step_aside()
        try:
            yield
        finally:
            self.step_back()

    def step_aside(self) -> None:
        """Let others work in the place of a thread that works for this desk, until it is to `step_back`."""
        with self._lock:
            self._running -= 1
            self._aside += 1
            more = self._wants_hands()
        if more:
            self._start()

    def step_back(self) -> None:
        """Count a thread that stepped aside again: perhaps one too many, until one of them finds out."""
        with self._lock:
            self._aside -= 1
            self._running += 1

    def _take(self, lane: Lane, work: Callable[[], Any]) -> None:
        with self._lock:
            if not lane.work:
                self._turns.append(lane)
            lane.work.append(work)
            self._waiting += 1
            more = self._wants_hands()
        if more:
            self._start()

    def _start(self) -> None:
        # Once it is shut down, what waits is of calls that were cut off.
        with suppress(RuntimeError):
            self._executor.submit(self._work)

    def _wants_hands(self) -> bool:
        if self._turns and self._running < self.threads:
            self._running += 1
            return True
        return False

    def _work(self) -> None:
        while (work := self._next()) is not None:
            try:
                work()
            except Exception as error:  # noqa: BLE001 - gRPC answers failures; this one would be its own
                _log.error("internal fault", exc_info=error)

    def _next(self) -> Callable[[], Any] | None:
        with self._lock:
            if not self._turns or self._running > self.threads:
                self._running -= 1
                return None
            lane = self._turns.popleft()
            work = lane.work.popleft()
            if lane.work:
                self._turns.append(lane)
            self._waiting -= 1
            return work


# gRPC counts calls under way by these, where it is to limit their number, which it is not.
HANDED_ON: Future[Any] = Future()
HANDED_ON.set_result(None)


class Lane(ThreadPoolExecutor):
    """The calls of some callers, as the pool that gRPC wants. It starts no thread."""

    def __init__(self, desk: Desk) -> None:
        super().__init__(max_workers=1)
        self.desk = desk
        self.work: deque[Callable[[], Any]] = deque()

    @property
    def full(self) -> bool:
        """Tell whether no more of these calls may wait: there is always room left for others'."""
        return len(self.work) >= _SHARE * (self.desk.queue - self.desk.waiting)

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Work on something when its turn comes. The future that is returned tells nothing of it."""
        self.desk._take(self, lambda: function(*args, **kwargs))  # noqa: SLF001 - the desk's own part
        return HANDED_ON
