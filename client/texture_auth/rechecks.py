"""Asks again about streams that were let on, so that what is revoked ends.

All streams of a guard share one thread, or one task, which asks for up to 1,000 of them at once.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

from texture_auth.decision import Context, Decision, Question
from texture_auth.rules import Mode, Rule

_BATCH = 1_000
_SHORTEST = 0.1

_log = logging.getLogger("texture_auth.guard")


class Clock:
    """Time, in seconds from some start, and waiting for it. Tests turn one of their own."""

    def now(self) -> float:
        """Return the time."""
        return time.monotonic()

    def wait(self, condition: threading.Condition, seconds: float) -> None:
        """Wait until the condition is notified, or for so long."""
        condition.wait(seconds)

    async def wait_async(self, event: asyncio.Event, seconds: float) -> None:
        """Wait until the event is set, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await event.wait()


@dataclass(frozen=True, slots=True)
class Call:
    """A call that is being served, as far as questions about it go."""

    method: str
    rule: Rule
    mode: Mode
    key: str | Decision = field(repr=False)
    """The key that came, or the denial where none did that could be asked about."""
    context: Context

    def question(self, api_key: str, device: str) -> Question:
        """Return the question about a device."""
        return Question(api_key=api_key, permission=self.rule.permission, device_id=device, context=self.context)


class Refusable(Protocol):
    """A stream that can be ended from outside."""

    def refuse(self, decision: Decision) -> None:
        """End it, with the error that the decision is."""


class Watch:
    """What is known of a stream: its devices, and the latest decision about each.

    Where no device is asked for, the one that there is has no id.
    """

    def __init__(self, call: Call, stream: Refusable, period: float) -> None:
        self.call = call
        self.stream = stream
        self._period = period
        self._known: dict[str, tuple[float, Decision]] = {}

    def fresh(self, device: str, now: float) -> Decision | None:
        """Return the decision about a device, if it need not be asked about again yet."""
        until, decision = self._known.get(device, (now, None))
        return decision if now < until else None

    def learn(self, device: str, decision: Decision, now: float) -> None:
        """Keep a yes. A no is not kept: it ends the stream or, in shadow mode, is asked about again."""
        seconds = self._period
        if decision.valid_for is not None:
            seconds = min(seconds, max(decision.valid_for.total_seconds(), _SHORTEST))
        if decision.allowed:
            self._known[device] = (now + seconds, decision)
        else:
            self._known.pop(device, None)

    def due(self) -> float | None:
        """Return when to ask again; None when there is nothing to ask about."""
        return min((until for until, _ in list(self._known.values())), default=None)

    def devices(self) -> list[str]:
        """Return what to ask about."""
        return list(self._known)


Tell = Callable[[Call, Decision], bool]
"""Tells of a decision of a re-check, and returns whether the call goes on."""


class Agenda:
    """Which stream is due when. Has no thread, no clock and no lock of its own."""

    def __init__(self) -> None:
        self._due: dict[Watch, float] = {}
        self._heap: list[tuple[float, int, Watch]] = []
        self._numbers = itertools.count()

    def put(self, watch: Watch) -> bool:
        """Enter a stream, or move it to when it is due by now. Return whether it is the next."""
        due = watch.due()
        if due is None:
            self.remove(watch)
        if due is None or self._due.get(watch) == due:
            return False
        self._due[watch] = due
        heapq.heappush(self._heap, (due, next(self._numbers), watch))
        return self._heap[0][2] is watch

    def remove(self, watch: Watch) -> bool:
        """Forget a stream. Return whether it was the last."""
        return self._due.pop(watch, None) is not None and not self._due

    def has(self, watch: Watch) -> bool:
        """Tell whether a stream is still there."""
        return watch in self._due

    def next_due(self) -> float | None:
        """Return when the next one is due."""
        while self._heap and self._due.get(self._heap[0][2]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def take(self, now: float) -> list[Watch]:
        """Return all that are due."""
        found: dict[Watch, None] = {}
        while (due := self.next_due()) is not None and due <= now:
            found[heapq.heappop(self._heap)[2]] = None
        return list(found)


Asked = tuple[Watch, str]


def batches(watches: Iterable[Watch]) -> Iterator[tuple[Sequence[Asked], Sequence[Question]]]:
    """Return what to ask about streams, in batches."""
    every = ((watch, device, watch.call.key) for watch in watches for device in watch.devices())
    # A stream without a key has been let on by shadow mode alone, and nothing will change for it.
    asked = ((watch, device, key) for watch, device, key in every if isinstance(key, str))
    while batch := list(itertools.islice(asked, _BATCH)):
        yield [(watch, device) for watch, device, _ in batch], [watch.call.question(key, d) for watch, d, key in batch]


def settle(asked: Sequence[Asked], decisions: Sequence[Decision], now: float, tell: Tell) -> None:
    """Take the answers of a batch: end the streams that may not go on."""
    for (watch, device), decision in zip(asked, decisions, strict=True):
        watch.learn(device, decision, now)
        if not tell(watch.call, decision):
            try:
                watch.stream.refuse(decision)
            except Exception as error:  # noqa: BLE001 - whatever it is, the other streams must be seen to
                _log.error("a stream could not be ended: %s", type(error).__name__)


class Rechecks:
    """Re-checks streams of a sync server, by one thread that lives as long as there are any."""

    def __init__(self, ask: Callable[[Sequence[Question]], Sequence[Decision]], tell: Tell, clock: Clock) -> None:
        self._ask = ask
        self._tell = tell
        self._clock = clock
        self._agenda = Agenda()
        self._changed = threading.Condition()
        self._running = False

    def put(self, watch: Watch) -> None:
        """Watch a stream, or move it to when it is due by now."""
        with self._changed:
            if self._agenda.put(watch):
                self._changed.notify_all()
            if not self._running and self._agenda.has(watch):
                self._running = True
                threading.Thread(target=self._run, name="texture-auth-rechecks", daemon=True).start()

    def remove(self, watch: Watch) -> None:
        """Let a stream alone."""
        with self._changed:
            if self._agenda.remove(watch):
                self._changed.notify_all()

    def _run(self) -> None:
        while watches := self._next():
            for asked, questions in batches(watches):
                settle(asked, self._ask(questions), self._clock.now(), self._tell)
            with self._changed:
                for watch in watches:
                    if self._agenda.has(watch):
                        self._agenda.put(watch)

    def _next(self) -> list[Watch]:
        """Wait until streams are due, and return them; none when there are no more."""
        with self._changed:
            while (due := self._agenda.next_due()) is not None:
                now = self._clock.now()
                if due <= now:
                    return self._agenda.take(now)
                self._clock.wait(self._changed, due - now)
            self._running = False
            return []


class AsyncRechecks:
    """Re-checks streams of an aio server, by one task that lives as long as there are any."""

    def __init__(
        self, ask: Callable[[Sequence[Question]], Awaitable[Sequence[Decision]]], tell: Tell, clock: Clock
    ) -> None:
        self._ask = ask
        self._tell = tell
        self._clock = clock
        self._agenda = Agenda()
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def put(self, watch: Watch) -> None:
        """Watch a stream, or move it to when it is due by now."""
        if self._agenda.put(watch):
            self._changed.set()
        if self._task is None or self._task.done():
            # One per loop that streams are served by; an event belongs to the loop that first waits for it.
            self._changed = asyncio.Event()
            self._task = asyncio.get_running_loop().create_task(self._run())

    def remove(self, watch: Watch) -> None:
        """Let a stream alone."""
        if self._agenda.remove(watch):
            self._changed.set()

    async def _run(self) -> None:
        while watches := await self._next():
            for asked, questions in batches(watches):
                settle(asked, await self._ask(questions), self._clock.now(), self._tell)
            for watch in watches:
                if self._agenda.has(watch):
                    self._agenda.put(watch)

    async def _next(self) -> list[Watch]:
        while (due := self._agenda.next_due()) is not None:
            now = self._clock.now()
            if due <= now:
                return self._agenda.take(now)
            self._changed.clear()
            await self._clock.wait_async(self._changed, due - now)
        return []
