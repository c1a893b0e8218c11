"""What keys were used for: stored as it is counted, and told to who asks."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from server.domain.errors import ErrorReason, Refusal
from server.domain.usage import LastUse, Touch, UsageBatch, UsageReport, Use
from server.domain.validation import Fields, is_device_id
from server.service.base import Clock, Listing, Resources, require_key
from server.service.counting import Counter, Pending
from server.store.contract import Store, StoreUnavailable, deadline_within, seconds_left

# How often what was counted is stored, and how often a process that has counted nothing says so.
FLUSH_SECONDS = 1.0
REPORT_SECONDS = 10.0
# Storing takes no more than such a part of a processor's time: where it would, it is done less often, but no less often
# than a process reports.
SHARE = 0.05
# How long one time may wait for the store.
TURN_SECONDS = 10.0
FIRST_SECONDS = 1.0
ROWS_AT_ONCE = 1000

_log = structlog.get_logger("texture_auth.usage")


class UsageReporter:
    """Stores what a process counts, every second and at its end, and says how far it has come, be it nothing.

    What cannot be stored is kept, so much of it as may be, until it can. `counting` says whether the process counts at
    all; that one does not is told as well, since nobody is to believe that a secret was not used.
    """

    def __init__(self, store: Store, counter: Counter, clock: Clock, *, counting: bool) -> None:
        self._store = store
        self.counter = counter
        self._clock = clock
        self._counting = counting
        self._process_id = uuid.uuid4().hex
        self._start_time = clock()
        self._sequence = 0
        self._uncounted_time: datetime | None = None
        self._pending = Pending()
        # What was handed to the store last, where nobody knows whether it has it.
        self._unsure: UsageBatch | None = None
        self._reported = float("-inf")
        self._due = float("-inf")
        self._lock = threading.Lock()
        self._failing = False
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="usage", daemon=True)

    def start(self) -> None:
        """Report for the first time, before anything can be answered, and go on in a thread."""
        with deadline_within(FIRST_SECONDS):
            self._turn()
        self._thread.start()

    def stop(self) -> None:
        """Store what is left, and say that nothing follows. To be called once nothing is answered any more."""
        if not self._thread.is_alive():
            return
        self._stopping.set()
        self._thread.join()
        try:
            with deadline_within(TURN_SECONDS):
                self.flush(end=True)
        except StoreUnavailable as error:
            _log.warning("uses not stored", cause=str(error))

    def flush(self, *, report: bool = False, end: bool = False) -> None:
        """Store what was counted until now; where that is nothing, only where told to `report` it, or the end.

        Raises StoreUnavailable.
        """
        with self._turn_taken():
            now = self._clock()
            self.counter.hand_over(self._pending)
            if self._unsure is not None:
                self._store_batch(self._unsure)
            if self._pending or report or end:
                self._store_batch(self._batch(now, end=end))

    @contextmanager
    def _turn_taken(self) -> Iterator[None]:
        """Keep other threads out, once they are done, within the deadline of the call. Raises StoreUnavailable."""
        if not self._lock.acquire(timeout=min(TURN_SECONDS, seconds_left())):
            raise StoreUnavailable("uses are being stored, and that takes long")
        try:
            yield
        finally:
            self._lock.release()

    def _batch(self, now: datetime, *, end: bool) -> UsageBatch:
        """Take what is pending, which is from then on kept as what may have been stored."""
        self._sequence += 1
        if not self._counting:
            self._uncounted_time = now
        elif self._pending.lost_time is not None:
            self._uncounted_time = self._pending.lost_time
        batch = self._pending.batch(
            UsageReport(
                process_id=self._process_id,
                sequence=self._sequence,
                start_time=self._start_time,
                report_time=now,
                end_time=now if end else None,
                uncounted_time=self._uncounted_time,
            )
        )
        self._unsure, self._pending = batch, Pending()
        return batch

    def _store_batch(self, batch: UsageBatch) -> None:
        began = time.thread_time()
        with self._store.note(durable=False) as notes:
            notes.add_usage(batch)
        self._unsure = None
        self._reported = time.monotonic()
        self._due = self._reported + pause_after(time.thread_time() - began)

    def _turn(self) -> None:
        try:
            # What is counted is taken over every time, so that there is always room for more.
            with self._turn_taken():
                self.counter.hand_over(self._pending)
            if time.monotonic() >= self._due:
                with deadline_within(TURN_SECONDS):
                    self.flush(report=time.monotonic() - self._reported >= REPORT_SECONDS)
        except StoreUnavailable as error:
            if not self._failing:
                _log.warning("uses not stored yet", cause=str(error))
            self._failing = True
        except Exception:  # noqa: BLE001 - one that dies keeps what is counted from ever being known
            _log.exception("uses not stored")
        else:
            self._failing = False

    def _keep(self) -> None:
        while not self._stopping.wait(FLUSH_SECONDS):
            self._turn()


def pause_after(seconds: float) -> float:
    """Return how long not to store again, after it took so much of a processor's time."""
    return min(REPORT_SECONDS, seconds / SHARE - seconds)


def prune_usage(resources: Resources, retention: timedelta) -> bool:
    """Forget a portion of what keys were used for longer ago than the retention; tell whether there may be more."""
    with resources.store.note() as notes:
        return notes.prune_usage(resources.clock() - retention, ROWS_AT_ONCE) > 0


@dataclass(frozen=True, slots=True)
class KeyUsage:
    """A page of what a key was used for, by the hour; and with the first page, what that adds up to.

    `complete` says that callers and permissions are all told apart, and that no process has failed to count.
    """

    hours: Listing[Use]
    totals: tuple[Use, ...]
    last_use: LastUse | None
    complete: bool


@dataclass(frozen=True, slots=True)
class Touches:
    """A page of which devices keys have touched. It is `complete` where none was left out."""

    listing: Listing[Touch]
    complete: bool


class UsageService:
    """Tells what keys were used for. What this process has counted is stored before it answers."""

    def __init__(self, resources: Resources, reporter: UsageReporter) -> None:
        self._resources = resources
        self._reporter = reporter

    def get_key_usage(
        self, key_id: str, begin: datetime | None, end: datetime | None, page_size: int, page_token: str
    ) -> KeyUsage:
        """Tell what a key was used for in hours that began from one instant until another.

        Raises Refusal: FIELD_INVALID, KEY_NOT_FOUND.
        """
        fields = Fields()
        limit = fields.page_size("page_size", page_size)
        if begin is not None and end is not None and end <= begin:
            fields.fault("end_time", "must be later than start_time")
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        scope = ("key_usage", key_id, *(None if time is None else time.isoformat() for time in (begin, end)))
        after = tokens.decode(page_token, *scope)
        self._reporter.flush()
        with self._resources.store.read() as reader:
            key = require_key(reader, key_id)
            page = reader.list_key_usage(key_id, begin, end, after, limit)
            totals = () if page_token else tuple(reader.total_key_usage(key_id, begin, end))
            last_use = reader.last_uses([key_id]).get(key_id)
            uncounted = [report.uncounted_time for report in reader.usage_reports() if report.uncounted_time]
        known = all(use.bucket.caller_id for use in (*page.rows, *totals))
        since = max(begin or key.create_time, key.create_time)
        missed = any(since <= moment for moment in uncounted)
        ordered = sorted(totals, key=lambda use: (-use.span.count, use.bucket.caller_id, use.bucket.permission))
        return KeyUsage(
            Listing(page.rows, tokens.encode(page.next, *scope)), tuple(ordered), last_use, known and not missed
        )

    def list_key_devices(self, key_id: str, page_size: int, page_token: str) -> Touches:
        """List the devices that a key has touched. Raises Refusal: FIELD_INVALID, KEY_NOT_FOUND."""
        limit, tokens = _page_size(page_size), self._resources.page_tokens
        after = tokens.decode(page_token, "key_devices", key_id)
        self._reporter.flush()
        with self._resources.store.read() as reader:
            require_key(reader, key_id)
            page = reader.list_key_devices(key_id, after, limit)
            last_use = reader.last_uses([key_id]).get(key_id)
        complete = last_use is None or last_use.devices_left_out_time is None
        return Touches(Listing(page.rows, tokens.encode(page.next, "key_devices", key_id)), complete)

    def list_device_keys(self, device_id: str, page_size: int, page_token: str) -> Touches:
        """List the keys that have touched a device. Raises Refusal: FIELD_INVALID, DEVICE_NOT_FOUND."""
        limit, tokens = _page_size(page_size), self._resources.page_tokens
        after = tokens.decode(page_token, "device_keys", device_id)
        if not is_device_id(device_id):
            raise _no_device()
        self._reporter.flush()
        with self._resources.store.read() as reader:
            device = reader.devices([device_id]).get(device_id)
            page = reader.list_device_keys(device_id, after, limit)
            if device is None and not page.rows and after is None:
                raise _no_device()
            workspace_ids = set() if device is None else {device.workspace_id}
            workspace_ids |= {key.workspace_id for key in reader.keys([one.key_id for one in page.rows]).values()}
            complete = not any(reader.touches_left_out(workspace_id) for workspace_id in workspace_ids)
        return Touches(Listing(page.rows, tokens.encode(page.next, "device_keys", device_id)), complete)


def _page_size(page_size: int) -> int:
    fields = Fields()
    limit = fields.page_size("page_size", page_size)
    fields.refuse_if_invalid()
    return limit


def _no_device() -> Refusal:
    return Refusal(ErrorReason.DEVICE_NOT_FOUND, "there is no such device, and none was touched")
