"""Sending: every event once to each endpoint that is to be told of it, and again until it arrives or is given up.

What is to be sent follows from the event log and from how far each endpoint has come, in one transaction, so that
nothing is lost between a commit and its sending, whatever ends a process. A process takes what is due for a time, and
sends it while no transaction is open; if it is not heard of again, another one sends it after that time. So everything
is sent at least once, and now and then more often.
"""

from __future__ import annotations

import json
import queue
import secrets as randomness
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Protocol

import structlog
from standardwebhooks.webhooks import Webhook

from server.domain.errors import Refusal
from server.domain.events import Event, EventType, Json, Origin, describe
from server.domain.model import (
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookDisableReason,
    WebhookEndpoint,
    WebhookEndpointState,
)
from server.domain.webhooks import DISABLE_AFTER, failed, payload_of, succeeded, trial_payload
from server.outbound import Answered, NotPosted
from server.service.base import Resources
from server.service.sealing import CannotUnseal
from server.service.telemetry import WebhookOutcome as WebhookTold
from server.service.webhooks import open_secrets
from server.store.contract import (
    EventFilter,
    Notes,
    Reader,
    StoreUnavailable,
    WebhookOutcome,
    WebhookStanding,
    deadline_within,
)

# For how long a process has a delivery to itself: more than an attempt takes, the resolution of a name included.
LEASE = timedelta(seconds=30)
# How many attempts are under way at once; of endpoints that are failing, so many at most, so that those that work have
# the rest to themselves.
MOST_AT_ONCE = 64
MOST_FAILING_AT_ONCE = 32
# And for one endpoint: more of those that took the last one at once, so that what has piled up goes quickly.
FOR_ONE = 2
FOR_ONE_QUICK = 8
FOR_ONE_FAILING = 1
QUICK_SECONDS = 1.0
# How many events of an endpoint one transaction makes deliveries of.
EVENTS_AT_ONCE = 200
# How often it is looked whether there is anything to do, which costs next to nothing; less often where there is no
# endpoint. All that was done since the last look is noted together: on SQLite each commit costs the next decision a
# look at what changed.
LOOK_SECONDS = 0.05
LOOK_IDLE_SECONDS = 0.5
# How long is waited after the store could not be asked.
PAUSE_SECONDS = 1.0
# How long a stop waits for attempts under way, and then for the store to note what came of them. What comes of those
# that take longer is not noted: they are made again.
STOP_SECONDS = 5.0
PRUNED_AT_ONCE = 1000
# Who is named in events for what is done here.
CALLER = "webhooks"

# Not the module's own, whose state is shared by all that runs in the process.
_CHANCE = randomness.SystemRandom().random

_NEVER = datetime.max.replace(tzinfo=UTC)
_GONE = 410
_SUCCESS = range(200, 300)

_TOLD: Mapping[WebhookDeliveryState, WebhookTold] = {
    WebhookDeliveryState.DELIVERED: "delivered",
    WebhookDeliveryState.PENDING: "put_off",
    WebhookDeliveryState.FAILED: "given_up",
}

_log = structlog.get_logger("texture_auth.webhooks")


class Poster(Protocol):
    """Whoever posts to the outside."""

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Post a JSON body once, and return the answer. Raises NotPosted."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A delivery that this process has for a time, and since when its endpoint has been failing."""

    delivery: WebhookDelivery
    failing_since: datetime | None


@dataclass(frozen=True, slots=True)
class _Attempt:
    """An attempt that ended, and at which endpoint; None where nothing was sent, or it is left to the lease.

    `gone` says that the receiver wants no more, and `seconds` for how long it was asked.
    """

    claimed: Claimed
    endpoint: WebhookEndpoint | None = None
    outcome: WebhookOutcome | None = None
    gone: bool = False
    seconds: float = 0.0

    @property
    def arrived(self) -> bool:
        """Whether the receiver took it."""
        return self.outcome is not None and self.outcome.delivery.state is WebhookDeliveryState.DELIVERED

    @property
    def failed(self) -> bool:
        """Whether the receiver was asked, and did not take it."""
        return self.outcome is not None and self.outcome.told and not self.arrived


@dataclass(slots=True)
class _Room:
    """How many more attempts may begin: in all, and of endpoints that are failing, with those `in_flight` of each."""

    in_flight: Counter[str]
    quick: Collection[str]
    total: int
    failing: int

    def of(self, standing: WebhookStanding) -> int:
        """Return how many more may begin of an endpoint; 0 or less where none."""
        under_way = self.in_flight[standing.webhook_endpoint_id]
        if standing.failing_since is not None:
            return min(FOR_ONE_FAILING - under_way, self.total, self.failing)
        most = FOR_ONE_QUICK if standing.webhook_endpoint_id in self.quick else FOR_ONE
        return min(most - under_way, self.total)

    def take(self, standing: WebhookStanding, count: int) -> None:
        """Count attempts that begin."""
        self.in_flight[standing.webhook_endpoint_id] += count
        self.total -= count
        if standing.failing_since is not None:
            self.failing -= count


def prune_deliveries(resources: Resources, retention: timedelta) -> bool:
    """Delete a portion of the old deliveries that ended; tell whether there may be more."""
    with resources.store.note() as notes:
        return notes.prune_webhook_deliveries(resources.clock() - retention, PRUNED_AT_ONCE) == PRUNED_AT_ONCE


class Dispatcher:
    """Sends what is due, in threads of its own. Where no workspace has an endpoint it does next to nothing.

    `chance` returns a number from 0 to 1, of which the pause before the next attempt is made.
    """

    def __init__(self, resources: Resources, poster: Poster, chance: Callable[[], float] = _CHANCE) -> None:
        self._resources = resources
        self._poster = poster
        self._chance = chance
        # One transaction at a time: a connection to the database is enough.
        self._store_lock = threading.Lock()
        self._lock = threading.Lock()
        self._in_flight: Counter[str] = Counter()
        self._failing: set[str] = set()
        self._quick: set[str] = set()
        self._ended: list[_Attempt] = []
        self._idle = threading.Condition(self._lock)
        self._seen: object = None
        self._next_due: datetime | None = None
        # Since when the first of those that are not with anybody has been due, or from when on it will be.
        self._waiting_since: datetime | None = None
        self._endpoints = False
        self._complaining = False
        self._stopping = threading.Event()
        self._hands = _Hands(self._deliver)
        self._thread = threading.Thread(target=self._keep, name="webhooks", daemon=True)
        resources.telemetry.sample(self._tell_lag)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def drain(self) -> None:
        """Take nothing more."""
        self._stopping.set()

    def stop(self) -> None:
        """Drain, and wait for what is under way, but not for long."""
        self.drain()
        until = time.monotonic() + STOP_SECONDS
        if self._thread.is_alive():
            self._thread.join(STOP_SECONDS)
        with self._idle:
            self._idle.wait_for(lambda: len(self._ended) == self._in_flight.total(), max(0.0, until - time.monotonic()))
        with deadline_within(STOP_SECONDS):
            self._note()
        self._hands.stop()

    def turn(self) -> None:
        """Note what was done, make deliveries of new events, take what is due, and have it sent.

        Raises StoreUnavailable.
        """
        self._note()
        with self._store_lock, self._resources.store.read() as reader:
            standings = reader.webhook_standings()
        self._endpoints = bool(standings)
        self._quick &= {standing.webhook_endpoint_id for standing in standings}
        room = self._room()
        free = [standing for standing in standings if room.of(standing) > 0]
        now = self._resources.clock()
        self._next_due = min(filter(None, (standing.next_attempt_time for standing in free)), default=None)
        self._waiting_since = min(filter(None, (standing.next_attempt_time for standing in standings)), default=None)
        behind = [standing for standing in standings if standing.behind]
        due = [standing for standing in free if standing.behind or (standing.next_attempt_time or _NEVER) <= now]
        if not behind and not due:
            return
        # Those that have waited the longest have their turn first.
        due.sort(key=lambda standing: standing.next_attempt_time or now)
        # What was claimed, or noted, and is lost with the machine is sent again under its id. What was made must stay.
        with self._store_lock, self._resources.store.note(durable=bool(behind)) as notes:
            claimed = self._take(notes, behind, due, room)
        for one in claimed:
            self._begin(one)

    def _take(
        self, notes: Notes, behind: Sequence[WebhookStanding], due: Sequence[WebhookStanding], room: _Room
    ) -> list[Claimed]:
        """Make the deliveries of endpoints that are behind, and claim as many as there is room for."""
        now = self._resources.time(notes)
        for standing in behind:
            if notes.make_webhook_deliveries(standing.webhook_endpoint_id, now, EVENTS_AT_ONCE):
                # The rest at the next look and not at once: others want to write too.
                self._seen = None
        claimed: list[Claimed] = []
        for standing in due:
            most = room.of(standing)
            if most > 0:
                taken = notes.claim_webhook_deliveries(standing.webhook_endpoint_id, now, now + LEASE, most)
                room.take(standing, len(taken))
                claimed += (Claimed(delivery, standing.failing_since) for delivery in taken)
        return claimed

    def _room(self) -> _Room:
        """Return how many more attempts may begin."""
        with self._lock:
            of_failing = sum(self._in_flight[one] for one in self._failing)
            return _Room(
                Counter(self._in_flight),
                self._quick,
                MOST_AT_ONCE - self._in_flight.total(),
                MOST_FAILING_AT_ONCE - of_failing,
            )

    def _begin(self, claimed: Claimed) -> None:
        webhook_endpoint_id = claimed.delivery.webhook_endpoint_id
        with self._lock:
            self._in_flight[webhook_endpoint_id] += 1
            if claimed.failing_since is not None:
                self._failing.add(webhook_endpoint_id)
        try:
            self._hands.do(claimed)
        except BaseException:
            self._end(webhook_endpoint_id, 1)
            raise

    def _deliver(self, claimed: Claimed) -> None:
        """Attempt a delivery. Where that fails, it comes again when the lease is over."""
        names = {
            "webhook_endpoint_id": claimed.delivery.webhook_endpoint_id,
            "webhook_delivery_id": claimed.delivery.webhook_delivery_id,
        }
        ended = _Attempt(claimed)
        try:
            ended = self._attempt(claimed)
        except StoreUnavailable as error:
            _log.warning("webhook left to the end of its lease", cause=str(error), **names)
        except Exception as error:  # noqa: BLE001 - whatever it was, other deliveries are not to blame
            _log.error("webhook failed", exc_info=error, **names)
        finally:
            with self._idle:
                self._ended.append(ended)
                self._idle.notify_all()

    def _attempt(self, claimed: Claimed) -> _Attempt:
        delivery = claimed.delivery
        with self._store_lock, self._resources.store.read() as reader:
            endpoint = reader.webhook_endpoint(delivery.webhook_endpoint_id)
            event = _event(reader, delivery.event_id)
        if endpoint is None or endpoint.state is not WebhookEndpointState.ACTIVE:
            return _Attempt(claimed)
        begun = time.monotonic()
        outcome, gone = self._send(endpoint, delivery, event)
        return _Attempt(claimed, endpoint, outcome, gone, time.monotonic() - begun)

    def _note(self) -> None:
        """Note what became of the attempts that ended, those at one endpoint together."""
        with self._lock:
            ended, self._ended = self._ended, []
        by_endpoint: dict[str, list[_Attempt]] = defaultdict(list)
        for attempt in ended:
            by_endpoint[attempt.claimed.delivery.webhook_endpoint_id].append(attempt)
        for webhook_endpoint_id, attempts in by_endpoint.items():
            try:
                self._note_those_of(webhook_endpoint_id, attempts)
            except StoreUnavailable as error:
                _log.warning(
                    "webhooks left to the end of their leases",
                    cause=str(error),
                    webhook_endpoint_id=webhook_endpoint_id,
                    count=len(attempts),
                )
            except Exception as error:  # noqa: BLE001 - whatever it was, other endpoints are not to blame
                _log.error("webhooks not noted", exc_info=error, webhook_endpoint_id=webhook_endpoint_id)
            finally:
                self._end(webhook_endpoint_id, len(attempts))

    def _note_those_of(self, webhook_endpoint_id: str, attempts: Sequence[_Attempt]) -> None:
        outcomes = [attempt.outcome for attempt in attempts if attempt.outcome is not None]
        if outcomes:
            with self._store_lock, self._resources.store.note(durable=False) as notes:
                notes.note_webhook_outcomes(webhook_endpoint_id, outcomes)
        for outcome in outcomes:
            done = outcome.delivery
            self._resources.telemetry.webhook(_TOLD[done.state])
            _log.info(
                "webhook",
                webhook_endpoint_id=webhook_endpoint_id,
                webhook_delivery_id=done.webhook_delivery_id,
                type=done.event_type,
                state=done.state.value,
                attempt=done.attempts,
                http_status_code=done.last_http_status_code,
                error=done.last_error,
            )
        if all(attempt.arrived and attempt.seconds < QUICK_SECONDS for attempt in attempts):
            self._quick.add(webhook_endpoint_id)
        else:
            self._quick.discard(webhook_endpoint_id)
        for attempt in attempts:
            if attempt.endpoint is not None and attempt.gone:
                self._disable(attempt.endpoint, WebhookDisableReason.GONE)
            elif (
                attempt.endpoint is not None
                and attempt.failed
                and _is_dead(attempt.claimed.failing_since, self._resources.clock())
            ):
                self._disable(attempt.endpoint, WebhookDisableReason.FAILING)

    def _end(self, webhook_endpoint_id: str, count: int) -> None:
        """Make room for other attempts."""
        with self._lock:
            self._in_flight[webhook_endpoint_id] -= count
            if not self._in_flight[webhook_endpoint_id]:
                del self._in_flight[webhook_endpoint_id]
                self._failing.discard(webhook_endpoint_id)

    def _send(
        self, endpoint: WebhookEndpoint, delivery: WebhookDelivery, event: Event | None
    ) -> tuple[WebhookOutcome, bool]:
        """Make one attempt; return what became of it, and whether the receiver is gone."""
        clock = self._resources.clock
        now = clock()

        def without_asking(error: str, *, final: bool = False) -> tuple[WebhookOutcome, bool]:
            outcome = failed(delivery, None, error, now, part=self._chance(), final=final)
            return WebhookOutcome(outcome, told=False), False

        if event is None and delivery.event_id is not None:
            return without_asking("event_not_kept", final=True)
        try:
            secrets = open_secrets(endpoint, self._resources.peppers, now)
        except (CannotUnseal, Refusal):
            return without_asking("secret_unreadable")
        payload = trial_payload(endpoint, now) if event is None else payload_of(event)
        headers, body = signed_message(delivery.webhook_delivery_id, payload, secrets, now)
        try:
            answered = self._poster.post(endpoint.url, headers, body)
        except NotPosted as error:
            return WebhookOutcome(failed(delivery, None, error.why.value, clock(), part=self._chance())), False
        now = clock()
        if answered.status in _SUCCESS:
            return WebhookOutcome(succeeded(delivery, answered.status, now)), False
        gone = answered.status == _GONE
        after = retry_after(answered.retry_after, now)
        outcome = failed(delivery, answered.status, "", now, part=self._chance(), retry_after=after, final=gone)
        return WebhookOutcome(outcome), gone

    def _disable(self, endpoint: WebhookEndpoint, reason: WebhookDisableReason) -> None:
        """Send nothing more to an endpoint, unless it was changed meanwhile."""
        with self._store_lock, self._resources.store.write() as writer:
            before = writer.webhook_endpoint(endpoint.webhook_endpoint_id)
            now = self._resources.time(writer)
            if before != endpoint:
                return
            # Another process may have delivered something since this one last heard how long it has been failing.
            if reason is WebhookDisableReason.FAILING and not _is_dead(_failing_since(writer, endpoint), now):
                return
            after = replace(before, state=WebhookEndpointState.DISABLED, disable_reason=reason, update_time=now)
            writer.replace_webhook_endpoint(after)
            origin = Origin(caller_id=CALLER)
            writer.record([describe(EventType.WEBHOOK_ENDPOINT_DISABLED, origin, before, after, now)])
        _log.warning("webhook endpoint disabled", webhook_endpoint_id=endpoint.webhook_endpoint_id, reason=reason.value)

    def _keep(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS if self._endpoints else LOOK_IDLE_SECONDS):
            try:
                if self._is_news():
                    self.turn()
                self._complaining = False
            except StoreUnavailable as error:
                if not self._complaining:
                    _log.warning("webhooks put off", cause=str(error))
                self._complaining = True
                self._seen = None
                self._stopping.wait(PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - the next turn is not to blame
                _log.error("webhooks put off", exc_info=error)
                self._seen = None
                self._stopping.wait(PAUSE_SECONDS)

    def _tell_lag(self) -> None:
        since = self._waiting_since
        waiting = timedelta() if since is None else self._resources.clock() - since
        self._resources.telemetry.webhook_lag(max(0.0, waiting.total_seconds()))

    def _is_news(self) -> bool:
        """Tell whether anything was committed since the last time, has become due, or was done."""
        store, cache = self._resources.store, self._resources.cache
        version = store.version() or cache.applied
        news = version is None or version != self._seen
        self._seen = version
        due = self._next_due is not None and self._resources.clock() >= self._next_due
        return news or due or bool(self._ended)


class _Hands:
    """Threads that work on what they are given, made as they are needed, and kept for the next time."""

    def __init__(self, work: Callable[[Claimed], None]) -> None:
        self._work = work
        self._waiting: queue.SimpleQueue[Claimed | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._under_way = 0

    def do(self, claimed: Claimed) -> None:
        """Have it worked on at once."""
        with self._lock:
            if self._under_way >= self._threads:
                # It may be that none can be started, and then there is none.
                threading.Thread(target=self._run, name="webhook", daemon=True).start()
                self._threads += 1
            self._under_way += 1
        self._waiting.put(claimed)

    def stop(self) -> None:
        """End the threads, each as soon as it has nothing to do."""
        with self._lock:
            for _ in range(self._threads):
                self._waiting.put(None)
            self._threads = 0

    def _run(self) -> None:
        while (claimed := self._waiting.get()) is not None:
            self._work(claimed)
            with self._lock:
                self._under_way -= 1


def signed_message(
    message_id: str, payload: Mapping[str, Json], secrets: Sequence[bytes], now: datetime
) -> tuple[dict[str, str], bytes]:
    """Return the headers and the body of a message, signed by each secret, as Standard Webhooks says."""
    text = json.dumps(payload, ensure_ascii=False, separators=(",", ":"))
    signatures = [Webhook(secret).sign(msg_id=message_id, timestamp=now, data=text) for secret in secrets]
    headers = {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(signatures),
    }
    return headers, text.encode()


def retry_after(text: str, now: datetime) -> timedelta:
    """Return how long a receiver asks to be left alone: a number of seconds, or a date; zero for anything else."""
    if text.isascii() and text.isdigit():
        return timedelta(seconds=min(int(text[:9]), 10**8))
    try:
        until = parsedate_to_datetime(text)
    except (ValueError, OverflowError):
        return timedelta()
    return max(timedelta(), until.replace(tzinfo=until.tzinfo or UTC) - now)


def _is_dead(failing_since: datetime | None, now: datetime) -> bool:
    """Tell whether an endpoint has been failing for so long that it is given up."""
    return failing_since is not None and now - failing_since >= DISABLE_AFTER


def _failing_since(reader: Reader, endpoint: WebhookEndpoint) -> datetime | None:
    """Return since when an active endpoint has been failing; None where it is not."""
    standings = {one.webhook_endpoint_id: one.failing_since for one in reader.webhook_standings()}
    return standings.get(endpoint.webhook_endpoint_id)


def _event(reader: Reader, event_id: int | None) -> Event | None:
    """Return an event as it stands now; None where it is not kept any more."""
    if event_id is None:
        return None
    found = reader.events_after(event_id - 1, EventFilter(), 1)
    return found[0] if found and found[0].event_id == event_id else None
