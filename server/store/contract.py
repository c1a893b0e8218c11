"""What the services may count on from a store, whatever database is behind it.

The docstrings are the promise, and `tests/store/conformance.py` holds every store to it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Flag, auto
from typing import Generic, Protocol, TypeVar

from server.domain.chain import Chain, Link, Stored
from server.domain.end_users import EndUser
from server.domain.events import Event, EventType
from server.domain.kinds import KeyKind
from server.domain.model import (
    Caller,
    ConnectLink,
    Device,
    Key,
    KeyState,
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookEndpoint,
    Workspace,
)
from server.domain.revision import Revision
from server.domain.usage import CallerUse, LastUse, Touch, UsageBatch, UsageReport, Use

T = TypeVar("T")

# The instant, on time.monotonic's clock, by which the call under way must be answered. No transaction waits beyond it.
DEADLINE: ContextVar[float] = ContextVar("DEADLINE", default=math.inf)

# Of how many devices it is remembered that a key touched them.
MOST_TOUCHES = 10_000


def seconds_left() -> float:
    """Return how long the call under way may still take; infinity where it has no deadline, never less than 0."""
    return max(0.0, DEADLINE.get() - time.monotonic())


def begin_call(seconds: float) -> None:
    """Set the deadline of a call that is begun in a context of its own, to so many seconds from now."""
    DEADLINE.set(time.monotonic() + seconds)


@contextmanager
def deadline_within(seconds: float) -> Iterator[None]:
    """Bring the deadline of the call under way forward for a block, to so many seconds from now at most."""
    token = DEADLINE.set(min(DEADLINE.get(), time.monotonic() + seconds))
    try:
        yield
    finally:
        DEADLINE.reset(token)


class StoreUnavailable(Exception):  # noqa: N818 - it names a state
    """The store could not be asked: it is away, busy, full or damaged.

    Whatever was under way is rolled back; where that is not certain it is an OutcomeUnknown.
    """


class OutcomeUnknown(StoreUnavailable):
    """The answer to a commit was lost: it may have been made. A retry under the same request id finds out."""


class Duplicate(Exception):  # noqa: N818 - it names a state
    """An entity with this id exists. The transaction goes on as if the call had not been made."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in a list: after the row with this position and, among equals, this id."""

    position: int
    row_id: str


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """A stretch of a list, and where the next one begins; None at the end."""

    rows: tuple[T, ...]
    next: Cursor | None


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFilter:
    """Which keys to list. None and empty mean any. States are taken as of `now`.

    `created_from` is within the time that is meant, `created_before` is not. From a key descend itself, the keys that
    it asked for, and the scoped keys of links that it made, and what descends from those; revoked ones have descendants
    too.
    """

    workspace_id: str
    now: datetime
    kind: KeyKind | None = None
    state: KeyState | None = None
    reference_id: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    revoked: bool | None = None
    created_by_key_id: str | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    descends_from_key_id: str | None = None
    connect_link_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFilter:
    """Which devices to list. None and empty mean any."""

    workspace_id: str
    reference_id: str | None = None
    manufacturers: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True, kw_only=True)
class CarriedOut:
    """A request that was carried out under a request id: what it was, and the id of what it was about."""

    caller_id: str
    method: str
    request_id: str
    fingerprint: str
    entity_id: str
    time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Belongings:
    """How many of each thing an end user had."""

    devices: int
    keys: int
    connect_links: int


@dataclass(frozen=True, slots=True)
class Exposed:
    """A secret of a customer's or a caller's key, by its number, and a place where it was found."""

    key_id: str
    generation: int
    place: str


@dataclass(frozen=True, slots=True)
class PepperUsage:
    """How much would be lost with a pepper: secrets and links in force under it, and the first few whose they are."""

    keys: int = 0
    callers: int = 0
    links: int = 0
    some_key_ids: tuple[str, ...] = ()
    some_caller_ids: tuple[str, ...] = ()
    webhooks: int = 0


# The kinds of entity that the change log names and decisions depend on. Keys are named by their public ids, and callers
# by those of their keys.
KEY, DEVICE, CALLER, CERTIFICATE_NAME = "key", "device", "caller", "certificate_name"


@dataclass(frozen=True, slots=True)
class Changes:
    """What a history has gone through since a revision: where it is now, and the kinds and ids of what changed.

    `passed` are the revisions it went through, that one and the head included.
    """

    head: Revision
    touched: frozenset[tuple[str, str]]
    passed: frozenset[Revision]


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events are meant. None and empty mean any; `up_to` is the largest id that is meant."""

    workspace_id: str | None = None
    types: frozenset[EventType] = frozenset()
    up_to: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookStanding:
    """How far an active endpoint has come.

    It is `behind` where there are events that no deliveries were made of. `next_attempt_time` is that of the delivery
    that is due first, None where none is pending.
    """

    webhook_endpoint_id: str
    behind: bool
    next_attempt_time: datetime | None
    failing_since: datetime | None


@dataclass(frozen=True, slots=True)
class WebhookOutcome:
    """A delivery as it stands after an attempt. It was not `told` where its endpoint was not even asked."""

    delivery: WebhookDelivery
    told: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookReplay:
    """Which deliveries of an endpoint to try again: those of some ids, or those that failed, created since a time."""

    webhook_endpoint_id: str
    webhook_delivery_ids: Collection[str] = ()
    failed_since: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EventLogState:
    """Where the log begins and ends, by the ids of events; 0 for none.

    `sealed_from` is the first that must be in a chain, `pruned_event_id` the last of those that were pruned.
    """

    sealed_from: int
    pruned_event_id: int
    newest_event_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpiryMark:
    """How far the warnings of so many days have come: to this expiry, and among equals to this key; empty for all."""

    days: int
    expire_time: datetime
    key_id: str = ""


class News(Flag):
    """What may have happened in the store."""

    COMMITTED = auto()
    ACKNOWLEDGED = auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """A process that decides from memory (CONSISTENCY rules 2, 6 and 7).

    `lease` is how long it may do so without hearing from the store. One that is `fencing` gets no more leases.
    """

    process_id: str
    fencing: bool
    lease: timedelta
    acknowledged: int


class Reader(Protocol):
    """One consistent snapshot. Usable inside its `with` block, by the thread that opened it.

    What is missing is None, or not in the mapping. Every method raises StoreUnavailable.
    """

    def head(self) -> Revision:
        """Return the revision of the snapshot."""

    def holds(self, revision: Revision) -> bool:
        """Tell whether the snapshot's history contains this revision, nonce and epoch included."""

    def changes_since(self, revision: Revision, limit: int) -> Changes | None:
        """Return what has changed since a revision.

        None where that cannot be told: the revision is not of this history, or later than the snapshot, or what came
        after it is no longer kept, or touched more than the limit.
        """

    def members(self) -> Sequence[Member]:
        """Return the processes that are enrolled, in order of their ids."""

    def time(self) -> datetime:
        """Return the time by the store's own clock, which all its processes share."""

    def workspace(self, workspace_id: str) -> Workspace | None:
        """Return a workspace."""

    def keys(self, key_ids: Collection[str]) -> Mapping[str, Key]:
        """Return those of the keys that exist, with all their generations, oldest first."""

    def devices(self, device_ids: Collection[str]) -> Mapping[str, Device]:
        """Return those of the devices that exist, in any workspace."""

    def connect_link(self, connect_link_id: str) -> ConnectLink | None:
        """Return a Connect link."""

    def caller(self, caller_id: str) -> Caller | None:
        """Return a caller."""

    def caller_of_key(self, key_id: str) -> Caller | None:
        """Return the caller whose `svc` key has this public id."""

    def callers_of_certificate(self, names: Collection[str]) -> Sequence[Caller]:
        """Return the callers that go by any of these names of a certificate, each once, in order of their ids."""

    def carried_out(self, caller_id: str, method: str, request_id: str) -> CarriedOut | None:
        """Return the request that was carried out under this id, if it is still remembered."""

    def exposures(self, key_ids: Collection[str], places: Collection[str]) -> Mapping[Exposed, datetime]:
        """Return when secrets of these keys were noted to be in these places, of those that were."""

    def list_workspaces(self, after: Cursor | None, limit: int) -> Page[Workspace]:
        """List workspaces in order of creation.

        As for every list: a row that exists while all pages are read, each in a snapshot of its own, is on exactly one
        of them, whatever is inserted, changed or removed meanwhile. A page has at least one row, if there is one, and
        may have fewer than `limit` where rows are large.
        """

    def list_keys(self, which: KeyFilter, after: Cursor | None, limit: int) -> Page[Key]:
        """List keys in order of creation."""

    def list_devices(self, which: DeviceFilter, after: Cursor | None, limit: int) -> Page[Device]:
        """List devices in order of registration."""

    def list_callers(self, after: Cursor | None, limit: int) -> Page[Caller]:
        """List callers in order of creation."""

    def list_key_events(self, key_id: str, after: Cursor | None, limit: int) -> Page[Event]:
        """List the events whose subject is this key, oldest first."""

    def events_after(self, event_id: int, which: EventFilter, limit: int) -> Sequence[Event]:
        """Return the events whose id is larger than this one, oldest first; fewer than `limit` where they are large.

        Events become visible in the order of their ids: whoever has seen one misses none before it by going on from it.
        """

    def event_log(self) -> EventLogState:
        """Return where the log begins and ends."""

    def event_links(self, event_ids: Sequence[int]) -> Mapping[int, Link]:
        """Return the links of those of the events that are in a chain."""

    def chain(self, name: str) -> Chain | None:
        """Return the chain of a workspace, by its id, or that of the installation; None where nothing is in it."""

    def chains(self, after: str | None, limit: int) -> Sequence[tuple[str, Chain | None]]:
        """Return the names of chains after one, in some order, with each chain as `chain` would.

        Named is whatever has a chain, or a link, or an event that should be in one.
        """

    def chain_links(self, name: str, after: int, limit: int) -> Sequence[Stored]:
        """Return the links of a chain after the one with this number, in order, and what their events say now."""

    def loose_event(self, name: str, after: int, up_to: int | None) -> int | None:
        """Return the id of the first event of a chain's workspace that has no link in it; None where each has.

        Looked at are those whose ids are larger than `after`, and not larger than `up_to`; there, None sets no limit.
        """

    def count_unsealed(self, name: str, before: int) -> int:
        """Return how many events of a chain's workspace, with smaller ids than `before`, have no link in it."""

    def list_end_user_events(self, end_user: EndUser, after: Cursor | None, limit: int) -> Page[Event]:
        """List the events that hold this end user, before the change or after it, oldest first."""

    def end_user_event_ids(self, end_user: EndUser) -> Sequence[int]:
        """Return the ids of the events that hold this end user, in no order."""

    def expiry_mark(self, days: int) -> ExpiryMark | None:
        """Return how far the warnings of so many days have come; None where there were none yet."""

    def expiring_keys(self, after: ExpiryMark, until: datetime, limit: int) -> Sequence[Key]:
        """Return the keys that expire after a mark and not after an instant, in order of that, in whatever state."""

    def newest_event_time(self) -> datetime | None:
        """Return the time of the event that was recorded last; None where there is none."""

    def list_key_usage(
        self, key_id: str, begin: datetime | None, end: datetime | None, after: Cursor | None, limit: int
    ) -> Page[Use]:
        """List what a key was used for in hours that began from one instant until another, the oldest first."""

    def total_key_usage(self, key_id: str, begin: datetime | None, end: datetime | None) -> Sequence[Use]:
        """Return the same added up over all hours, in no order; `hour` is the first of them, and none is `retiring`."""

    def usage_of_replaced(self, key_id: str) -> Mapping[int, Sequence[CallerUse]]:
        """Return who has used secrets of a key since they were replaced, by their generation."""

    def last_uses(self, key_ids: Collection[str]) -> Mapping[str, LastUse]:
        """Return when keys were last used, of those that were, with whatever secret of theirs was right."""

    def list_key_devices(self, key_id: str, after: Cursor | None, limit: int) -> Page[Touch]:
        """List the devices that a key has touched, in order of their ids, those included that are no more."""

    def list_device_keys(self, device_id: str, after: Cursor | None, limit: int) -> Page[Touch]:
        """List the keys that have touched a device, in order of their ids."""

    def touches_left_out(self, workspace_id: str) -> bool:
        """Tell whether any key of a workspace has touched devices of which that is not remembered."""

    def usage_reports(self) -> Sequence[UsageReport]:
        """Return how far each process has come in telling what keys were used for, in no order."""

    def pepper_usage(self, now: datetime) -> Mapping[str, PepperUsage]:
        """Return what is in force under each pepper, by the pepper's id; one that nothing needs is not in it.

        Counted are secrets that are not retired by `now`, of keys and callers that are not revoked (a key that is
        suspended or expired may come back), and Connect links that are neither completed nor cancelled nor expired;
        and the signing secrets of webhook endpoints, whatever their state.
        """

    def webhook_endpoint(self, webhook_endpoint_id: str) -> WebhookEndpoint | None:
        """Return an endpoint with its secrets, oldest first."""

    def list_webhook_endpoints(self, workspace_id: str, after: Cursor | None, limit: int) -> Page[WebhookEndpoint]:
        """List the endpoints of a workspace in order of creation."""

    def webhook_endpoints_under(self, pepper_ids: Collection[str], limit: int) -> Sequence[WebhookEndpoint]:
        """Return endpoints that have a secret sealed under one of these peppers, so many at most, by their ids."""

    def webhook_standings(self) -> Sequence[WebhookStanding]:
        """Return how far each active endpoint has come, in order of their ids."""

    def webhook_delivery(self, webhook_delivery_id: str) -> WebhookDelivery | None:
        """Return a delivery."""

    def list_webhook_deliveries(
        self, webhook_endpoint_id: str, state: WebhookDeliveryState | None, after: Cursor | None, limit: int
    ) -> Page[WebhookDelivery]:
        """List the deliveries of an endpoint, newest first."""


class Writer(Reader, Protocol):
    """A transaction that holds the store's one write lock, and sees its own changes.

    Transactions follow one another: what a writer has read stays true until it commits. Each method that changes
    something also notes it in the change log, so nothing can be changed without a trace. Only `prune_events`,
    `prune_changes` and `set_expiry_mark` do not: no decision depends on what they change.
    """

    @property
    def revision(self) -> Revision:
        """The revision this transaction commits as; once it has ended without a change to the facts, where it began."""

    def add_workspace(self, workspace: Workspace) -> None:
        """Insert. Raises Duplicate."""

    def replace_workspace(self, workspace: Workspace) -> None:
        """Store the new state of a workspace that was read in this transaction."""

    def add_key(self, key: Key) -> None:
        """Insert a key with its generations and labels. Raises Duplicate."""

    def replace_key(self, key: Key) -> None:
        """Store the new state of a key that was read in this transaction.

        Generations may change and be added; those that are left out are deleted.
        """

    def replace_keys(self, keys: Sequence[Key]) -> None:
        """Store the new states of keys that were read in this transaction, each once, as `replace_key` would."""

    def put_devices(self, devices: Sequence[Device]) -> None:
        """Insert devices, or store the new state of those that exist, their owner included."""

    def remove_devices(self, device_ids: Collection[str]) -> None:
        """Delete devices that were read in this transaction."""

    def add_connect_link(self, link: ConnectLink) -> None:
        """Insert. Raises Duplicate."""

    def replace_connect_link(self, link: ConnectLink) -> None:
        """Store the new state of a link that was read in this transaction."""

    def remove_end_user(self, end_user: EndUser) -> Belongings:
        """Delete the devices, the Connect links, however they ended, and the scoped keys of an end user.

        Keys go with their generations and labels, with the places where they were exposed and with what they were used
        for; devices with who touched them. Events are left as they are. Return how many of each there were.
        """

    def add_caller(self, caller: Caller) -> None:
        """Insert a caller with its generations and certificate names.

        Raises Duplicate, for the id of its key too, and for a certificate name that another caller has.
        """

    def replace_caller(self, caller: Caller) -> None:
        """Store the new state of a caller that was read in this transaction.

        Raises Duplicate for a certificate name that another caller has.
        """

    def note_exposures(self, found: Collection[Exposed], time: datetime) -> None:
        """Note where secrets were found at a time, also of those that were noted there before."""

    def record(self, events: Iterable[Event]) -> None:
        """Append to the event log, in order. Their ids are larger than all before, pruned ones included.

        Each event becomes the next link of the chain of its workspace, where the store has a sealer.
        """

    def replace_events(self, events: Iterable[Event]) -> None:
        """Store what events that were read in this transaction are to hold before and after the change.

        From then on they are found by the end users that they hold now. Nothing else of an event changes. Its link says
        that this was lawful, unless the event had been altered before.
        """

    def prune_events(self, before: datetime, limit: int) -> int:
        """Delete events of before an instant, oldest first, so many at most; return how many.

        The newest event of the log stays, whatever its age: ids go on from there. The beginnings of chains move up to
        the first event of each that is left.
        """

    def set_expiry_mark(self, mark: ExpiryMark) -> None:
        """Note how far the warnings of so many days have come. No decision depends on it: it moves no revision."""

    def prune_changes(self, keep: int, limit: int) -> int:
        """Forget what old revisions touched, oldest first: all but the newest so many. Return how many were forgotten.

        It ends once `limit` changes are forgotten, after a whole revision. What is forgotten is held no more: changes
        since then cannot be told (CONSISTENCY rule 3).
        """

    def add_webhook_endpoint(self, endpoint: WebhookEndpoint) -> None:
        """Insert an endpoint with its secrets. It is told of events that are recorded after this. Raises Duplicate."""

    def replace_webhook_endpoint(self, endpoint: WebhookEndpoint) -> None:
        """Store the new state of an endpoint that was read in this transaction, with its secrets.

        One that becomes active, or moves to another URL, is no longer taken for failing.
        """

    def remove_webhook_endpoint(self, webhook_endpoint_id: str) -> None:
        """Delete an endpoint that was read in this transaction, with its secrets and deliveries."""

    def add_webhook_delivery(self, delivery: WebhookDelivery) -> None:
        """Insert a delivery, of an endpoint that was read in this transaction."""

    def replay_webhook_deliveries(
        self, wanted: WebhookReplay, now: datetime, give_up_time: datetime, limit: int
    ) -> int:
        """Make deliveries that ended pending again, the oldest first, so many at most; return how many."""

    def remember(self, request: CarriedOut, forget_before: datetime) -> None:
        """Remember a request id, and forget those carried out before an instant."""


class Notes(Reader, Protocol):
    """A transaction for what no decision depends on, such as what keys were used for. It sees its own changes.

    It moves no revision and, where that can be, waits for no writer of facts: what it has read of them may be changed
    by one before it commits.
    """

    def make_webhook_deliveries(self, webhook_endpoint_id: str, now: datetime, limit: int) -> bool:
        """Make deliveries, due at once, of an active endpoint's next so many events; tell whether there may be more.

        Each event has at most one, whoever else is at it. Where another transaction is, or the endpoint is gone or not
        active, nothing is made; in the first case there may be more.
        """

    def claim_webhook_deliveries(
        self, webhook_endpoint_id: str, now: datetime, until: datetime, limit: int
    ) -> Sequence[WebhookDelivery]:
        """Take deliveries that are due, those that are so the longest first, and count an attempt of each.

        Nobody else is given them `until` a time, when they are due again. Return them as they are then.
        """

    def note_webhook_outcomes(self, webhook_endpoint_id: str, outcomes: Sequence[WebhookOutcome]) -> int:
        """Store what became of attempts at an endpoint, in the order in which they ended; return of how many it was.

        It is not where the delivery is no longer pending after just that many attempts: somebody else has it, or had.
        An endpoint counts as failing since the first of its failures that no delivery came after, of those in which it
        was `told`.
        """

    def prune_webhook_deliveries(self, before: datetime, limit: int) -> int:
        """Delete deliveries that ended and were created before an instant, so many at most; return how many."""

    def add_usage(self, batch: UsageBatch) -> None:
        """Add what a process has counted, and note its report; once, however often it is given the same sequence.

        What is about keys that are no more is left out, and so are touches of devices that are no more. Of a key no
        more than MOST_TOUCHES devices are kept; that more were touched is noted. The report of a process that has
        ended, and has counted all, is forgotten.
        """

    def prune_usage(self, before: datetime, limit: int) -> int:
        """Forget uses in hours that began before an instant, and touches and reports of which the last was before it.

        So many of each at most, the oldest first; return how many were forgotten.
        """


class Store(Protocol):
    """The facts of this service. Safe for use by many threads and many processes at once."""

    def read(self) -> AbstractContextManager[Reader]:
        """Open a snapshot. Raises StoreUnavailable."""

    def write(self) -> AbstractContextManager[Writer]:
        """Take the write lock and open a transaction.

        It commits when the block ends, durably before `with` returns; an exception in the block rolls it back and
        passes on. A transaction that changed nothing leaves no trace, not even a revision; one that did nothing but
        prune moves no revision either. Raises StoreUnavailable, after some seconds where another writer keeps the lock,
        and instead of a commit after the call's deadline.
        """

    def note(self, *, durable: bool = True) -> AbstractContextManager[Notes]:
        """Open a transaction for what no decision depends on.

        It commits when the block ends; an exception in the block rolls it back and passes on. One that is not durable
        may be lost with the database's machine. Raises StoreUnavailable.
        """

    def version(self) -> object | None:
        """Return a value that differs from an earlier one if anything was committed between, by whatever process.

        It costs next to nothing. None where this kind of store cannot tell: there, processes decide from memory by
        leases. Raises StoreUnavailable.
        """

    def enrol(self, process_id: str, lease: timedelta) -> None:
        """Make a process a member, which has applied what is committed. Raises StoreUnavailable."""

    def acknowledge(self, process_id: str, revision: Revision) -> bool:
        """Note that a process has applied all up to a revision, and is alive.

        Return False, and note nothing, where it is no live member, or the revision is not of this history. Raises
        StoreUnavailable.
        """

    def leave(self, process_ids: Collection[str]) -> None:
        """End memberships. Raises StoreUnavailable."""

    def fence_silent(self, longest: timedelta) -> None:
        """Make every member fencing that was not heard of for so long. Raises StoreUnavailable."""

    def await_news(self, seconds: float) -> News:
        """Wait until something was committed or acknowledged, for so long at most, and return which of the two it was.

        News may be lost, and news may come of nothing. For one thread of a process. Raises StoreUnavailable.
        """

    def ping(self) -> None:
        """Make sure that the store can be asked. Raises StoreUnavailable."""

    def close(self) -> None:
        """Let go of all connections."""
