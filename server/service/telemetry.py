"""What a server tells of itself while it works, to whoever watches over it.

What is told never names a key, a device, an end user, a workspace or a caller, and is of sets that do not grow: whoever
is told may keep a number for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

from server.domain.reasons import Reason

CacheKind = Literal["caller", "certificate_name", "device", "key"]
# Of a change that takes authority away: every process had acknowledged it; some had not, and were fenced by time; the
# caller's deadline came first; or it cannot be told, as where the history of the store was replaced.
BarrierOutcome = Literal["acknowledged", "fenced", "incomplete", "failed"]
ChoreOutcome = Literal["done", "put_off", "failed"]
# Of a call that was refused for load: too many waited for their turn, or for the store, or its deadline was past when
# its turn came.
Shed = Literal["queue_full", "loads_full", "deadline_past"]
# Of an attempt to deliver a webhook: it arrived, it is tried again, or it is not.
WebhookOutcome = Literal["delivered", "put_off", "given_up"]
# Who found a key exposed.
ExposureSource = Literal["browser", "report"]
# What that came to, the last for what was merely suspected.
ExposureOutcome = Literal["revoked", "suspended", "noted", "suspected"]
# Where calls are worked on: those that decide, and all others.
DeskName = Literal["decisions", "others"]


class Telemetry:
    """Whoever is told: this one lets it pass, and others override what they want to know.

    Safe for use by many threads. Nothing here waits or raises, and nothing takes more than a microsecond, so that it
    may be told while a call is answered. Gauges are told of in what `sample` is given, and counts that are kept
    elsewhere may be too, as what has been added to them since the last time.
    """

    def sample(self, look: Callable[[], None]) -> None:
        """Have this called now and then, from another thread, to tell what there is to see at that moment."""

    def rpc(self, method: str, code: str, seconds: float) -> None:
        """Tell of a call of an RPC that exists, once it is answered: its code, and how long a thread was at it."""

    def shed(self, why: Shed) -> None:
        """Tell of a call that was refused for load."""

    def load(self, desk: DeskName, *, busy: int, threads: int, waiting: int, queue: int) -> None:
        """Tell how many calls are worked on, of how many at once, and how many wait for that, of how many that may.

        More may be worked on than at once: those that wait for the store, or for other processes, let others go on.
        """

    def decided(self, reasons: Sequence[Reason]) -> None:
        """Tell of the decisions of a call, all at once."""

    def cache_hit(self, kind: CacheKind, count: int = 1) -> None:
        """Tell of facts that were found in the cache."""

    def cache_miss(self, kind: CacheKind, count: int = 1) -> None:
        """Tell of facts that had to be asked of the store."""

    def cache_size(self, kind: CacheKind, entries: int) -> None:
        """Tell how many facts the cache holds."""

    def applied(self, revision: int) -> None:
        """Tell the number of the revision that decisions are made from."""

    def head(self, revision: int) -> None:
        """Tell the number of the newest revision that the store is known to have."""

    def lease_left(self, seconds: float) -> None:
        """Tell how long this process may still answer from its cache; 0 or less where it may not."""

    def barrier(self, seconds: float, outcome: BarrierOutcome) -> None:
        """Tell how long a change waited to be known everywhere, and how that ended."""

    def store_read(self, seconds: float) -> None:
        """Tell of a transaction that read, however it ended."""

    def store_write(self, seconds: float) -> None:
        """Tell of a transaction that wrote, however it ended; the wait for the write lock is part of it."""

    def rehashed(self, count: int) -> None:
        """Tell of secrets that were moved to the pepper that signs."""

    def webhook(self, outcome: WebhookOutcome) -> None:
        """Tell of an attempt to deliver a webhook, once it is noted."""

    def webhook_lag(self, seconds: float) -> None:
        """Tell for how long the webhook that is due first has been; 0 where none is."""

    def exposure(self, source: ExposureSource, outcome: ExposureOutcome) -> None:
        """Tell of a key that was found exposed, once that is written down."""

    def chore(self, name: str, outcome: ChoreOutcome) -> None:
        """Tell of a portion of a chore. Names are those that the code gives."""


SILENT = Telemetry()
