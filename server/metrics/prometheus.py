"""Telemetry as Prometheus wants it.

A call is answered in some tens of microseconds, and one value that workers share takes some of them. So what is told is
put aside, which takes a fraction of one, and written down by a thread of its own every second: a scrape shows what was
so a second ago at most, and a process that is killed takes the counts of its last second along.
"""

from __future__ import annotations

import os
import platform
import threading
import time
from bisect import bisect_left
from collections import Counter as Counted
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from itertools import chain, product
from pathlib import Path
from typing import TypeVar, get_args

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from server.domain.reasons import Reason
from server.service.telemetry import (
    BarrierOutcome,
    CacheKind,
    ChoreOutcome,
    DeskName,
    ExposureOutcome,
    ExposureSource,
    Shed,
    Telemetry,
    WebhookOutcome,
)

T = TypeVar("T")
Labels = tuple[str, ...]

WRITE_DOWN_SECONDS = 1.0

_CALL_SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05),
    *(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0),
)
_BARRIER_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 2.5, 5.0, 10.0)
_REASONS = {id(reason): reason for reason in Reason}
_STATM = Path("/proc/self/statm")

_log = structlog.get_logger("texture_auth.metrics")


class PrometheusTelemetry(Telemetry):
    """Counts what it is told, in metrics of its own `registry`."""

    def __init__(self, *, store: str, worker: str) -> None:
        self.registry = CollectorRegistry()
        self._worker = worker
        self._looks: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="metrics", daemon=True)

        self._rpcs = self._durations(
            "rpc", "From when a thread took a call up to its answer.", ("method", "code"), _CALL_SECONDS
        )
        self._transactions = self._durations(
            "store_transaction",
            "Transactions of the store, the wait for a connection and for the write lock included.",
            ("kind",),
            _CALL_SECONDS,
        )
        self._barriers = self._durations(
            "barrier",
            "How long changes that take authority away waited to be known everywhere.",
            ("outcome",),
            _BARRIER_SECONDS,
        )
        self._decisions = _Decisions(self._counter("decisions", "Decisions of Authorize and BatchAuthorize.", "reason"))
        self._sheds = self._counts("sheds", "Calls that were refused for load.", "why")
        self._hits = self._counts("cache_hits", "Facts that were found in the cache.", "kind")
        self._misses = self._counts("cache_misses", "Facts that had to be asked of the store.", "kind")
        self._rehashes = self._counts("rehashed_secrets", "Secrets that were moved to the pepper that signs.")
        self._chores = self._counts("chores", "Portions of what the server does by itself.", "chore", "outcome")
        self._webhooks = self._counts("webhook_attempts", "Attempts to deliver a webhook.", "outcome")
        self._exposures = self._counts("exposures", "Keys that were found exposed.", "source", "outcome")
        self._parts = (
            *(self._rpcs, self._transactions, self._barriers),
            *(self._decisions, self._sheds, self._hits, self._misses, self._rehashes, self._chores),
            *(self._webhooks, self._exposures),
        )
        # What may happen is there from the start, at 0: a rate has something to begin from.
        self._transactions.expect("read", "write")
        self._barriers.expect(*get_args(BarrierOutcome))
        self._decisions.expect(*(reason.name for reason in Reason))
        self._sheds.expect(*get_args(Shed))
        for counts in (self._hits, self._misses):
            counts.expect(*get_args(CacheKind))
        self._webhooks.expect(*get_args(WebhookOutcome))
        self._exposures.expect(*product(get_args(ExposureSource), get_args(ExposureOutcome)))

        self._entries = self._gauge("cache_entries", "Facts in the cache.", "kind")
        self._applied = self._gauge("revision_applied", "The revision that decisions are made from.")
        self._head = self._gauge("revision_head", "The newest revision that the store is known to have.")
        self._lease = self._gauge("lease_left_seconds", "How long decisions may still be made from the cache.")
        self._webhook_lag = self._gauge("webhook_lag_seconds", "How long the webhook that is due first has been.")
        self._threads_busy = self._gauge("threads_busy", "Calls that are worked on, those that wait included.", "desk")
        self._threads = self._gauge("threads", "Calls that are worked on at once.", "desk")
        self._queue_calls = self._gauge("queue_calls", "Calls that wait for a thread.", "desk")
        self._queue_limit = self._gauge("queue_limit_calls", "Calls that may wait for a thread.", "desk")
        self._memory = self._gauge("worker_resident_memory_bytes", "Memory that the process has.")
        self._cpu = self._counter("worker_cpu_seconds", "Time of processors that the process took.", "worker")
        self._cpu_seconds = 0.0
        self._gauge("worker_start_time_seconds", "When the process started, since 1970.")(time.time())
        self._gauge("worker_up", "1 for each process that serves.")(1)
        self._build_info(store)

    def start(self) -> None:
        """Write down now, and every second from now on."""
        self._write_down_if_possible()
        self._thread.start()

    def stop(self) -> None:
        """Write down the last of it, and end."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()
        self._write_down_if_possible()

    def write_down(self) -> None:
        """Bring the metrics up to what has been told."""
        with self._lock:
            for look in self._looks:
                try:
                    look()
                except Exception as error:  # noqa: BLE001 - what cannot be seen must not hide the rest
                    _log.error("sample failed", exc_info=error)
            for part in self._parts:
                part.write_down()
            self._write_down_process()

    def sample(self, look: Callable[[], None]) -> None:
        """Have this called before each time of writing down."""
        self._looks.append(look)

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """Count a call."""
        self._rpcs.note(((method, code), seconds))

    def shed(self, why: Shed) -> None:
        """Count a call that was refused for load."""
        self._sheds.note(((why,), 1))

    def load(self, desk: DeskName, *, busy: int, threads: int, waiting: int, queue: int) -> None:
        """Show how much is under way."""
        self._threads_busy(busy, desk)
        self._threads(threads, desk)
        self._queue_calls(waiting, desk)
        self._queue_limit(queue, desk)

    def decided(self, reasons: Sequence[Reason]) -> None:
        """Count decisions."""
        self._decisions.note(reasons)

    def cache_hit(self, kind: CacheKind, count: int = 1) -> None:
        """Count facts that were found."""
        self._hits.note(((kind,), count))

    def cache_miss(self, kind: CacheKind, count: int = 1) -> None:
        """Count facts that were not."""
        self._misses.note(((kind,), count))

    def cache_size(self, kind: CacheKind, entries: int) -> None:
        """Show how many facts there are."""
        self._entries(entries, kind)

    def applied(self, revision: int) -> None:
        """Show the revision that decisions are made from."""
        self._applied(revision)

    def head(self, revision: int) -> None:
        """Show the newest revision."""
        self._head(revision)

    def lease_left(self, seconds: float) -> None:
        """Show what is left of the lease."""
        self._lease(seconds)

    def barrier(self, seconds: float, outcome: BarrierOutcome) -> None:
        """Count a barrier."""
        self._barriers.note(((outcome,), seconds))

    def store_read(self, seconds: float) -> None:
        """Count a transaction that read."""
        self._transactions.note((("read",), seconds))

    def store_write(self, seconds: float) -> None:
        """Count a transaction that wrote."""
        self._transactions.note((("write",), seconds))

    def rehashed(self, count: int) -> None:
        """Count secrets that were moved."""
        self._rehashes.note(((), count))

    def webhook(self, outcome: WebhookOutcome) -> None:
        """Count an attempt."""
        self._webhooks.note(((outcome,), 1))

    def webhook_lag(self, seconds: float) -> None:
        """Show how long the first has been due."""
        self._webhook_lag(seconds)

    def exposure(self, source: ExposureSource, outcome: ExposureOutcome) -> None:
        """Count an exposure."""
        self._exposures.note(((source, outcome), 1))

    def chore(self, name: str, outcome: ChoreOutcome) -> None:
        """Count a portion of a chore."""
        self._chores.note(((name, outcome), 1))

    def _keep(self) -> None:
        while not self._stopping.wait(WRITE_DOWN_SECONDS):
            self._write_down_if_possible()

    def _write_down_if_possible(self) -> None:
        try:
            self.write_down()
        except Exception as error:  # noqa: BLE001 - such as a full disk: the next second may be better
            _log.error("metrics not written down", exc_info=error)

    def _write_down_process(self) -> None:
        now = time.process_time()
        self._cpu.labels(self._worker).inc(now - self._cpu_seconds)
        self._cpu_seconds = now
        if _STATM.exists():
            self._memory(int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    def _build_info(self, store: str) -> None:
        what = {
            "version": _version("texture-auth"),
            "python": platform.python_version(),
            "grpcio": _version("grpcio"),
            "store": store,
        }
        Gauge(
            "texture_auth_build_info",
            "1, with what this is made of.",
            tuple(what),
            multiprocess_mode="livemax",
            registry=self.registry,
        ).labels(**what).set(1)

    def _counter(self, name: str, help_text: str, *labels: str) -> Counter:
        return Counter(f"texture_auth_{name}", help_text, labels, registry=self.registry)

    def _counts(self, name: str, help_text: str, *labels: str) -> _Counts:
        return _Counts(self._counter(name, help_text, *labels))

    def _durations(self, name: str, help_text: str, labels: Labels, bounds: Sequence[float]) -> _Durations:
        name = f"texture_auth_{name}_duration_seconds"
        return _Durations(_Histogram(name, help_text, labels, buckets=bounds, registry=self.registry), bounds)

    def _gauge(self, name: str, help_text: str, *labels: str) -> Callable[..., None]:
        """Return a setter of a gauge that each worker has for itself, and that is gone when the worker is.

        There is none before it is set.
        """
        gauge = Gauge(
            f"texture_auth_{name}",
            help_text,
            (*labels, "worker"),
            multiprocess_mode="livemostrecent",
            registry=self.registry,
        )

        def show(value: float, *values: str) -> None:
            gauge.labels(*values, self._worker).set(value)

        return show


class _Histogram(Histogram):
    """A histogram that takes observations which were sorted into its buckets elsewhere."""

    def add(self, counts: Sequence[int], total: float) -> None:
        """Add so many observations in each bucket, which together are so much."""
        self._sum.inc(total)
        for bucket, count in zip(self._buckets, counts, strict=True):
            if count:
                bucket.inc(count)


class _Durations:
    """Durations that any thread notes, in one step that takes no lock, and that one thread writes down."""

    def __init__(self, histogram: _Histogram, bounds: Sequence[float]) -> None:
        self._histogram = histogram
        self._bounds = bounds
        self._noted: deque[tuple[Labels, float]] = deque()
        self.note = self._noted.append

    def expect(self, *values: str) -> None:
        """Show these values of the one label, at 0."""
        for value in values:
            self._histogram.labels(value)

    def write_down(self) -> None:
        """Bring the histogram up to what was noted."""
        counts: dict[Labels, list[int]] = {}
        totals: dict[Labels, float] = {}
        for labels, seconds in _taken(self._noted):
            if labels not in counts:
                counts[labels], totals[labels] = [0] * (len(self._bounds) + 1), 0.0
            counts[labels][bisect_left(self._bounds, seconds)] += 1
            totals[labels] += seconds
        for labels, row in counts.items():
            self._histogram.labels(*labels).add(row, totals[labels])


class _Counts:
    """Counts that any thread notes, in one step that takes no lock, and that one thread writes down."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._noted: deque[tuple[Labels, int]] = deque()
        self.note = self._noted.append

    def expect(self, *values: str | Labels) -> None:
        """Show these values of the one label, or of all of them, at 0."""
        for value in values:
            self._counter.labels(*((value,) if isinstance(value, str) else value))

    def write_down(self) -> None:
        """Bring the counter up to what was noted."""
        sums: Counted[Labels] = Counted()
        for labels, count in _taken(self._noted):
            sums[labels] += count
        for labels, count in sums.items():
            (self._counter.labels(*labels) if labels else self._counter).inc(count)


class _Decisions:
    """The decisions of whole calls, as `_Counts` has counts."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._noted: deque[Iterable[Reason]] = deque()
        self.note = self._noted.append

    def expect(self, *values: str) -> None:
        """Show these reasons, at 0."""
        for value in values:
            self._counter.labels(value)

    def write_down(self) -> None:
        """Bring the counter up to what was noted."""
        # By identity: the hash of a member of an Enum takes twice as long as all the rest.
        counted = Counted(map(id, chain.from_iterable(_taken(self._noted))))
        for identity, count in counted.items():
            self._counter.labels(_REASONS[identity].name).inc(count)


def _taken(noted: deque[T]) -> Iterator[T]:
    """Take what is there now. What is noted meanwhile stays for the next time."""
    for _ in range(len(noted)):
        yield noted.popleft()


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:  # run from its sources
        return "unknown"
