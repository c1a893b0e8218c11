"""What happens to a server key that arrives from a browser or an app.

It is dealt with by a thread of its own, so that no decision waits for a writer: each key once, however many requests it
arrives with meanwhile.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice

import structlog

from server.domain.decision import Decision
from server.domain.events import Event, EventType, Origin, describe
from server.domain.exposure import Exposure
from server.domain.leaks import BROWSER, SEEN, Sighting, describe_exposure, expose, state_put_into
from server.domain.model import Key, KeyState
from server.domain.reasons import Reason
from server.service.base import Resources, require_workspace
from server.service.telemetry import ExposureOutcome, Telemetry
from server.service.waiting import aside
from server.store.contract import Exposed, Reader, StoreUnavailable, Writer, seconds_left

# How long the answer to a key that was found exposed waits until it has been dealt with, so that mostly the next call
# is denied wherever it arrives; and how many such answers wait at once.
WAIT_SECONDS = 1.0
MOST_WAITERS = 8
# How many keys wait to be dealt with at most; what finds no room is found again at its next use.
MOST_PENDING = 10_000
# How many keys one transaction deals with, so that no writer waits long for it.
AT_ONCE = 100
# For how long nothing is looked up after nothing was found to do: a key that is left as it is may be in constant use.
REST_SECONDS = 0.05
# When the store is tried again that could not be asked.
RETRY_SECONDS = 1.0
# How long a stop waits for what is left to do.
STOP_SECONDS = 5.0
# How many secrets that nothing is left to do about are remembered.
MOST_SETTLED = 10_000
# A mere suspicion is told so often at most.
SUSPICION_PERIOD = timedelta(days=1)
# Where a secret is "found" of which there is a mere suspicion, and in which words that is told. No place of a report
# is written so.
_PLACES = {Exposure.SUSPECTED: "suspected", Exposure.UNCLEAR: "unclear"}
_WORDS = {
    Exposure.SUSPECTED: "a user agent of a browser or an app, and no other sign",
    Exposure.UNCLEAR: "came with what a browser sends to a page's own site, or where it cannot send a key: denied; a "
    "proxy that adds the key must leave out Sec-Fetch-*, Origin and the browser's User-Agent",
}

_log = structlog.get_logger("texture_auth.exposures")

_IN_BROWSER = Sighting(source=BROWSER)

# A secret: the id of its key, and its number.
_Secret = tuple[str, int]
# A secret of a key by its number, and how sure it is: less than certain.
_Suspicion = tuple[int, Exposure]


@dataclass(eq=False, slots=True)
class _Pending:
    """A key that is to be dealt with: which secrets of it were seen, how surely, and who asked about it first."""

    key_id: str
    caller_id: str
    certain: set[int] = field(default_factory=set)
    suspected: set[_Suspicion] = field(default_factory=set)
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True, slots=True)
class _Deed:
    """What is to be written down about a key; the first of the events is about the exposure itself."""

    after: Key
    events: Sequence[Event]
    changed: bool
    suspected: Exposed | None = None


class ExposureService:
    """Records exposed keys and applies the policies of their workspaces to them. Safe for use by many threads."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._lock = threading.Lock()
        self._news = threading.Condition(self._lock)
        self._pending: dict[str, _Pending] = {}
        self._busy = False
        self._waiters = 0
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # Secrets of revoked keys, all about which is written down; and until when a suspicion need not be told again.
        self._settled: dict[_Secret, None] = {}
        self._told: dict[tuple[str, _Suspicion], datetime] = {}

    def contain(self, decisions: Iterable[Decision], caller_id: str) -> None:
        """See that the keys which decisions found exposed are dealt with, each once.

        Returns when that is done, or soon after: the answer is a denial either way, and what could not be done yet is
        tried again. A mere suspicion is not waited for. A secret that was replaced is of no more use to anybody, and
        ends nothing: otherwise whoever finds an old one could revoke the key that took its place.
        """
        waited_for = []
        for decision in decisions:
            if decision.exposure is Exposure.NONE or decision.key is None or decision.generation is None:
                continue
            if decision.reason is not Reason.KEY_EXPOSED and not decision.allowed:
                continue
            pending = self._take_note(decision.key, decision.generation.number, decision.exposure, caller_id)
            if pending is not None and decision.key.state is KeyState.ACTIVE and pending.certain:
                waited_for.append(pending)
        if waited_for:
            self._await(waited_for)

    def settle(self, seconds: float) -> bool:
        """Wait until nothing is left to do, for so long at most; tell whether that is so."""
        with self._news:
            return self._news.wait_for(lambda: not self._pending and not self._busy, seconds)

    def stop(self) -> None:
        """Do what is left to do, once, and nothing after that. Waits for it, but not for long."""
        self._stopping.set()
        with self._news:
            self._news.notify_all()
            thread = self._thread
        if thread is not None:
            thread.join(STOP_SECONDS)

    def _take_note(self, key: Key, number: int, exposure: Exposure, caller_id: str) -> _Pending | None:
        """Have a key dealt with, and return what is pending of it; None where nothing is to be done."""
        if not self._is_news(key, number, exposure):
            return None
        with self._news:
            pending = self._pending.get(key.key_id)
            if pending is None:
                if len(self._pending) >= MOST_PENDING or self._stopping.is_set():
                    return None
                pending = self._pending[key.key_id] = _Pending(key.key_id, caller_id)
                self._news.notify_all()
            if exposure is Exposure.CERTAIN:
                pending.certain.add(number)
            else:
                pending.suspected.add((number, exposure))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="exposures", daemon=True)
                self._thread.start()
        return pending

    def _is_news(self, key: Key, number: int, exposure: Exposure) -> bool:
        """Tell whether there may be anything to do about a secret, so that the store is to be asked."""
        if exposure is Exposure.CERTAIN:
            # Nothing leaves that state but by the loss of history, and then the key is not in it.
            return key.state is not KeyState.REVOKED or (key.key_id, number) not in self._settled
        until = self._told.get((key.key_id, (number, exposure)))
        return key.state is KeyState.ACTIVE and (until is None or self._resources.clock() >= until)

    def _await(self, waited_for: Sequence[_Pending]) -> None:
        """Wait until all of them have been tried, unless too many calls do that already."""
        with self._lock:
            if self._waiters >= MOST_WAITERS:
                return
            self._waiters += 1
        try:
            with aside():
                until = time.monotonic() + min(WAIT_SECONDS, seconds_left() / 2)
                for pending in waited_for:
                    pending.done.wait(max(0.0, until - time.monotonic()))
        finally:
            with self._lock:
                self._waiters -= 1

    def _work(self) -> None:
        while (portion := self._next()) is not None:
            pause = REST_SECONDS
            try:
                if self._deal_with(portion):
                    pause = 0.0
            except StoreUnavailable as error:
                _log.warning("exposed keys not dealt with yet", cause=str(error), count=len(portion))
                self._put_back(portion)
                pause = RETRY_SECONDS
            except Exception as error:  # noqa: BLE001 - the others are not to blame, and the next use tries again
                _log.error("internal fault", exc_info=error)
            finally:
                with self._news:
                    self._busy = False
                    self._news.notify_all()
                for pending in portion:
                    pending.done.set()
            self._stopping.wait(pause)

    def _next(self) -> Sequence[_Pending] | None:
        """Wait for a portion of what is to be done; None once nothing is, and it is time to stop."""
        with self._news:
            self._news.wait_for(lambda: self._pending or self._stopping.is_set())
            portion = list(islice(self._pending.values(), AT_ONCE))
            for pending in portion:
                del self._pending[pending.key_id]
            self._busy = bool(portion)
            return portion or None

    def _put_back(self, portion: Sequence[_Pending]) -> None:
        """Have what could not be done tried again, unless it is time to stop."""
        if self._stopping.is_set():
            return
        with self._lock:
            for old in portion:
                new = self._pending.setdefault(old.key_id, _Pending(old.key_id, old.caller_id))
                new.certain |= old.certain
                new.suspected |= old.suspected

    def _deal_with(self, portion: Sequence[_Pending]) -> bool:
        """Do what is to be done about some keys, and tell whether there was anything. Raises StoreUnavailable."""
        resources = self._resources
        # Without the write lock first, so that an exposed key in use costs no writer its turn.
        with resources.store.read() as reader:
            keys = reader.keys([pending.key_id for pending in portion])
            found = _deeds(reader, keys, portion, resources.clock())
        if found:
            with resources.store.write() as writer:
                now = resources.time(writer)
                keys = writer.keys([pending.key_id for pending in portion])
                found = _deeds(writer, keys, portion, now)
                _write_down(writer, found, now)
            if any(deed.changed for deed in found):
                # After the transaction, which has taken effect: mostly all processes deny from here on.
                resources.barrier.settle(writer.revision)
            for deed in found:
                _tell(deed, resources.telemetry)
        self._remember(portion, {key_id: key.state for key_id, key in keys.items()}, found)
        return bool(found)

    def _remember(self, portion: Sequence[_Pending], states: Mapping[str, KeyState], found: Collection[_Deed]) -> None:
        states = {**states, **{deed.after.key_id: deed.after.state for deed in found}}
        for memory in (self._settled, self._told):
            if len(memory) > MOST_SETTLED:
                memory.clear()
        until = self._resources.clock() + SUSPICION_PERIOD
        for pending in portion:
            if states.get(pending.key_id) is KeyState.REVOKED:
                self._settled.update(dict.fromkeys((pending.key_id, number) for number in pending.certain))
            self._told.update(dict.fromkeys(((pending.key_id, one) for one in pending.suspected), until))


def _deeds(reader: Reader, keys: Mapping[str, Key], portion: Sequence[_Pending], now: datetime) -> list[_Deed]:
    """Return what is to be done about keys as they are in a snapshot."""
    told = reader.exposures([pending.key_id for pending in portion if pending.suspected], list(_PLACES.values()))
    deeds = []
    for pending in portion:
        before = keys.get(pending.key_id)
        deed = None if before is None else _deed(reader, before, pending, told, now)
        if deed is not None:
            deeds.append(deed)
    return deeds


def _deed(
    reader: Reader, before: Key, pending: _Pending, told: Mapping[Exposed, datetime], now: datetime
) -> _Deed | None:
    """Return what is to be done about a key: certainty says all that a suspicion would."""
    live = [one for one in before.generations if not one.retired(now)]
    certain = [one for one in live if one.number in pending.certain]
    if certain:
        policy = require_workspace(reader, before.workspace_id).exposure_policy
        after = expose(before, certain[-1], policy, SEEN, now)
        if after == before:
            return None
        origin = Origin(caller_id=pending.caller_id, reason=SEEN)
        return _Deed(after, describe_exposure(origin, before, after, _IN_BROWSER, now), changed=True)
    if before.state_at(now) is not KeyState.ACTIVE:
        return None
    numbers = {one.number for one in live}
    # The surest first, of the newest secret.
    for number, exposure in sorted(pending.suspected, key=lambda one: (one[1], one[0]), reverse=True):
        place = Exposed(before.key_id, number, _PLACES[exposure])
        if number in numbers and not (place in told and now < told[place] + SUSPICION_PERIOD):
            origin = Origin(caller_id=pending.caller_id, reason=_WORDS[exposure])
            event = describe(EventType.KEY_EXPOSURE_SUSPECTED, origin, before, before, now)
            return _Deed(before, [event], changed=False, suspected=place)
    return None


def _write_down(writer: Writer, deeds: Sequence[_Deed], now: datetime) -> None:
    writer.replace_keys([deed.after for deed in deeds if deed.changed])
    writer.note_exposures([deed.suspected for deed in deeds if deed.suspected is not None], now)
    writer.record(event for deed in deeds for event in deed.events)


def outcome_of(exposure: Event) -> ExposureOutcome:
    """Return what an exposure came to, by its own event."""
    state = state_put_into(exposure)
    if state is None:
        return "noted"
    return "revoked" if state is KeyState.REVOKED else "suspended"


def _tell(deed: _Deed, telemetry: Telemetry) -> None:
    telemetry.exposure("browser", outcome_of(deed.events[0]) if deed.changed else "suspected")
    say = _log.warning if deed.changed else _log.info
    key = deed.after
    say(
        "key exposed" if deed.changed else "key perhaps exposed",
        key_id=key.key_id,
        workspace_id=key.workspace_id,
        state=key.state.value,
        reason=deed.events[0].origin.reason,
    )
