"""Reading the event log, as it is and as it grows."""

from __future__ import annotations

import base64
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import structlog

from server.domain.chain import Link
from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.events import Event, EventType
from server.domain.validation import Fields
from server.service.base import Listing, Resources, require_workspace
from server.store.contract import Cursor, EventFilter, EventLogState, Reader, Store, StoreUnavailable, deadline_within

# How often the store is asked for news while somebody watches: where it can tell at once that there are none, and
# where it takes a query.
GLANCE_SECONDS = 0.05
POLL_SECONDS = 0.25
# How many events one message carries at most.
EVENTS_AT_ONCE = 200
# How much of the log one reading looks through, by ids: it may hold little that matches.
IDS_AT_ONCE = 20_000
# How long a reading may take.
READING_SECONDS = 5.0
# For how long nothing is said: where the log has grown by what does not match, and where nothing happens.
PROGRESS_SECONDS = 5.0
SILENT_SECONDS = 30.0
MOST_TYPES = 50

_TYPES = {event_type.value: event_type for event_type in EventType}
_FORM = struct.Struct(">Q8s")
_NO_TAG = bytes(8)

_log = structlog.get_logger("texture_auth.events")


@dataclass(frozen=True, slots=True)
class Place:
    """A place in the log: after the event with this id, which is told from any other by a tag; 0 is the beginning.

    The tag is of the event's link. It is zero for an event that has none.
    """

    event_id: int = 0
    tag: bytes = field(default=_NO_TAG, repr=False)

    def encode(self) -> str:
        """Return the cursor for callers. It needs no seal: it tells, and gives leave to, nothing."""
        return base64.urlsafe_b64encode(_FORM.pack(self.event_id, self.tag)).rstrip(b"=").decode()


def decode(cursor: str) -> Place:
    """Return the place that a cursor names. Raises Refusal (FIELD_INVALID) for what was never given out."""
    try:
        place = Place(*_FORM.unpack(base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)))
    except (ValueError, struct.error):
        place = None
    if place is None or place.encode() != cursor or place.event_id >= 2**63:
        raise invalid("after", "is not a cursor")
    return place


@dataclass(frozen=True, slots=True)
class Logged:
    """An event of the log, and what holds it in its chain, if anything does."""

    event: Event
    link: Link | None

    @property
    def place(self) -> Place:
        """The place after it."""
        return place_of(self.event.event_id or 0, self.link)


@dataclass(frozen=True, slots=True)
class Batch:
    """What came next, and how far the log was looked through."""

    events: tuple[Logged, ...]
    place: Place


def place_of(event_id: int, link: Link | None) -> Place:
    """Return the place after an event."""
    return Place(event_id, _NO_TAG if link is None else link.mac[: len(_NO_TAG)])


class EventService:
    """Lists events, and lets callers watch them."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._bulletin = Bulletin(resources.store)
        # Those who watch take turns, so that they leave connections to those who ask.
        self._turn = threading.Lock()

    def start(self) -> None:
        """Look for news from now on."""
        self._bulletin.start()

    def close(self) -> None:
        """End what is watched."""
        self._bulletin.close()

    def stop(self) -> None:
        """End what is watched, and look for news no more."""
        self._bulletin.stop()

    def list_events(
        self, workspace_id: str, types: Sequence[str], after: str, page_size: int, page_token: str
    ) -> Listing[Logged]:
        """List events. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, CURSOR_*."""
        fields = Fields()
        which = _filter(fields, workspace_id, types)
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        scope = ("events", workspace_id, sorted(types), after)
        tokens = self._resources.page_tokens
        given = tokens.decode(page_token, *scope)
        with self._resources.store.read() as reader:
            if given is not None:
                event_id, pruned = given.position, int(given.row_id)
                refuse_if_expired(reader.event_log(), event_id, pruned)
            else:
                event_id, pruned = _begin(reader, which, after)
            rows, event_id = _read(reader, event_id, which, limit)
            # Fewer than that come also where they are large.
            following, seen = _read(reader, event_id, which, 1)
            more = following or seen < reader.event_log().newest_event_id
        return Listing(rows, tokens.encode(Cursor(event_id, str(pruned)) if more else None, *scope))

    def watch(self, workspace_id: str, types: Sequence[str], after: str, *, only_new: bool) -> Watch:
        """Begin to watch events. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, CURSOR_*."""
        fields = Fields()
        which = _filter(fields, workspace_id, types)
        if only_new and after:
            fields.fault("only_new", "must not be set together with after")
        fields.refuse_if_invalid()
        with deadline_within(READING_SECONDS), self._turn, self._resources.store.read() as reader:
            event_id, pruned = _begin(reader, which, after)
            log = reader.event_log()
            if only_new:
                event_id, pruned = log.newest_event_id, log.pruned_event_id
            place = place_of(event_id, reader.event_links([event_id]).get(event_id))
        return Watch(self._resources.store, self._bulletin, self._turn, which, place, pruned)


class Watch:
    """What one caller watches. For one thread."""

    def __init__(
        self, store: Store, bulletin: Bulletin, turn: threading.Lock, which: EventFilter, place: Place, pruned: int
    ) -> None:
        self._store = store
        self._bulletin = bulletin
        self._turn = turn
        self._which = which
        self._place = place
        self._pruned = pruned
        self._told = float("-inf")

    def next(self, seconds: float) -> Batch | None:
        """Wait for what comes next, for so long at most; None where there is nothing to tell yet.

        The first time, and after a while, it is told that there is nothing. Raises Refusal: CURSOR_EXPIRED,
        SHUTTING_DOWN; StoreUnavailable.
        """
        events: tuple[Logged, ...] = ()
        behind = self._bulletin.wait(self._place.event_id, seconds if self._told > 0 else 0)
        if behind or self._told < 0:
            events = self._read()
        now = time.monotonic()
        patience = PROGRESS_SECONDS if behind else SILENT_SECONDS
        if not events and now < self._told + patience:
            return None
        self._told = now
        return Batch(events, self._place)

    def _read(self) -> tuple[Logged, ...]:
        with deadline_within(READING_SECONDS), self._turn, self._store.read() as reader:
            log = reader.event_log()
            refuse_if_expired(log, self._place.event_id, self._pruned)
            events, seen = _read(reader, self._place.event_id, self._which, EVENTS_AT_ONCE)
            if seen > self._place.event_id:
                self._place = place_of(seen, reader.event_links([seen]).get(seen))
        return events


class Bulletin:
    """Knows the newest event. One thread looks for it, while anybody waits, and wakes those who do."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._changed = threading.Condition()
        self._newest = 0
        self._failure: StoreUnavailable | None = None
        self._waiting = 0
        self._closed = False
        self._thread = threading.Thread(target=self._look, name="bulletin", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def close(self) -> None:
        """Let nobody wait any more."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def stop(self) -> None:
        """Close, and wait until the store is asked no more."""
        self.close()
        if self._thread.is_alive():
            self._thread.join()

    def wait(self, event_id: int, seconds: float) -> bool:
        """Wait, for so long at most, until there is an event after this one, and tell whether there is.

        Raises StoreUnavailable where nobody can tell; Refusal (SHUTTING_DOWN).
        """
        with self._changed:
            self._waiting += 1
            self._changed.notify_all()
            try:
                self._changed.wait_for(lambda: self._closed or self._failure or self._newest > event_id, seconds)
            finally:
                self._waiting -= 1
                failure = self._failure
                if not self._waiting:
                    # Whoever waits next finds out anew.
                    self._failure = None
            if self._closed:
                raise Refusal(ErrorReason.SHUTTING_DOWN, "this server ends; go on with another one")
            if failure is not None:
                raise StoreUnavailable(str(failure)) from failure
            return self._newest > event_id

    def _look(self) -> None:
        version: object | None = None
        while self._wanted():
            try:
                # Taken before it is read: what comes in between is looked for again.
                found = self._store.version()
                if found is None or found != version:
                    self._tell(self._read(), None)
                version = found
            except StoreUnavailable as error:
                version = None
                self._tell(None, error)
            except Exception:  # noqa: BLE001 - one that dies keeps everybody waiting for ever
                version = None
                _log.exception("cannot look for events")
            time.sleep(POLL_SECONDS if version is None else GLANCE_SECONDS)

    def _wanted(self) -> bool:
        """Wait until somebody waits, and tell whether to go on."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._waiting)
            return not self._closed

    def _read(self) -> int:
        with deadline_within(READING_SECONDS), self._store.read() as reader:
            return reader.event_log().newest_event_id

    def _tell(self, newest: int | None, failure: StoreUnavailable | None) -> None:
        with self._changed:
            self._newest = self._newest if newest is None else newest
            self._failure = failure
            self._changed.notify_all()


def refuse_if_expired(log: EventLogState, event_id: int, pruned: int) -> None:
    """Refuse to go on after an event, where some that come next were pruned since `pruned` was the last of those.

    Raises Refusal (CURSOR_EXPIRED).
    """
    if log.pruned_event_id > max(event_id, pruned):
        raise Refusal(
            ErrorReason.CURSOR_EXPIRED,
            "events after the cursor were deleted, since they are kept for no longer; begin again without a cursor",
        )


def _begin(reader: Reader, which: EventFilter, after: str) -> tuple[int, int]:
    """Return the id of the event to begin after, and that of the last one that was pruned before.

    Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, CURSOR_*.
    """
    if which.workspace_id is not None:
        require_workspace(reader, which.workspace_id)
    log = reader.event_log()
    if not after:
        return 0, log.pruned_event_id
    place = decode(after)
    refuse_if_expired(log, place.event_id, 0)
    if not _of_this_log(reader, log, place):
        raise Refusal(
            ErrorReason.CURSOR_NOT_VERIFIABLE,
            "after: is not a cursor of this event log, as after a restore from a backup; begin again without a cursor",
        )
    return place.event_id, 0


def _of_this_log(reader: Reader, log: EventLogState, place: Place) -> bool:
    """Tell whether the event that a cursor is after is the one that it was. Of one that was pruned nobody can tell."""
    if place.event_id > log.newest_event_id:
        return False
    link = reader.event_links([place.event_id]).get(place.event_id)
    return place_of(place.event_id, link) == place or (link is None and place.event_id <= log.pruned_event_id)


def _filter(fields: Fields, workspace_id: str, types: Sequence[str]) -> EventFilter:
    """Return the filter that a caller describes, and note what is wrong with it."""
    if len(types) > MOST_TYPES:
        fields.fault("types", f"must have at most {MOST_TYPES} entries")
        types = ()
    for index, name in enumerate(types):
        if name not in _TYPES:
            fields.fault(f"types[{index}]", "is no type of event")
    known = frozenset(_TYPES[name] for name in types if name in _TYPES)
    return EventFilter(workspace_id=workspace_id or None, types=known)


def _read(reader: Reader, event_id: int, which: EventFilter, limit: int) -> tuple[tuple[Logged, ...], int]:
    """Return what comes after an event, and the id up to which the log was looked through, which may not be its end."""
    up_to = min(event_id + IDS_AT_ONCE, reader.event_log().newest_event_id)
    events = reader.events_after(event_id, replace(which, up_to=up_to), limit)
    links = reader.event_links([event.event_id or 0 for event in events])
    logged = tuple(Logged(event, links.get(event.event_id or 0)) for event in events)
    return logged, logged[-1].place.event_id if logged else max(event_id, up_to)
