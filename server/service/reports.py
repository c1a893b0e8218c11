"""Keys that somebody has found where they must not be: secret scanners, and people."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

import structlog

from server.domain.decision import find_generation
from server.domain.errors import Refusal
from server.domain.events import Event, EventType, Origin
from server.domain.kinds import TOKEN_KIND, ExposurePolicy
from server.domain.leaks import ExposureOutcome, Sighting, describe_exposure, expose, sighting
from server.domain.model import Caller, Generation, Key, KeyState
from server.domain.token import Token, TokenKind, parse
from server.domain.validation import Fields
from server.service.barrier import AT_ONCE
from server.service.base import Call, Mutation, Resources, require_workspace
from server.service.exposures import outcome_of
from server.service.telemetry import Telemetry
from server.store.contract import Exposed, Reader, Writer

# How many one transaction deals with, so that no writer waits long for it.
MOST_REPORTS = 100

_log = structlog.get_logger("texture_auth.exposures")


@dataclass(frozen=True, slots=True)
class Report:
    """A key that was found, as it was said."""

    api_key: str = field(repr=False)
    url: str = field(default="", repr=False)
    source: str = ""


@dataclass(frozen=True, slots=True)
class Reported:
    """What was done about a report. `key` is the customer's key as it is now; `key_id` also that of a caller's key."""

    outcome: ExposureOutcome
    key_id: str = ""
    key: Key | None = None


_UNKNOWN = Reported(ExposureOutcome.UNKNOWN)


@dataclass(frozen=True, slots=True)
class _Known:
    """A secret that was reported and is right: whose it is, which of theirs, and where it was found."""

    owner: Key | Caller
    generation: Generation
    found: Sighting

    @property
    def exposed(self) -> Exposed:
        """The secret and the place, as the store remembers them."""
        return Exposed(self.owner.key_id, self.generation.number, self.found.place)


class ReportService:
    """Takes note of keys that were reported as exposed."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def report_exposed_keys(self, call: Call, reports: Sequence[Report]) -> Mutation[tuple[Reported, ...]]:
        """Deal with reports, each by itself, and answer in their order.

        Refusals: see KeyService.ReportExposedKeys in `key_service.proto`.
        """
        fields = Fields()
        call.check(fields)
        if not 1 <= len(reports) <= MOST_REPORTS:
            fields.fault("reports", f"must have 1 to {MOST_REPORTS} entries, has {len(reports)}")
        fields.refuse_if_invalid()
        # Without the write lock first, so that noise costs no writer its turn.
        with self._resources.store.read() as reader:
            recognised = self._recognise(reader, reports, self._resources.clock())
            if not any(isinstance(one, _Known) for one in recognised):
                answers = tuple(one for one in recognised if isinstance(one, Reported))
                return Mutation(answers, reader.head(), AT_ONCE)
        done: list[_Ledger] = []

        def work(writer: Writer, now: datetime) -> tuple[Reported, ...]:
            ledger = _Ledger(writer, call.origin, now)
            answers = self._answer(writer, reports, ledger, now)
            ledger.write_down(writer)
            done.append(ledger)
            return answers

        def again(writer: Writer, _nothing: str, now: datetime) -> tuple[Reported, ...]:
            return self._answer(writer, reports, _Ledger(writer, call.origin, now, act=False), now)

        mutation = self._resources.carry_out(call, work, lambda _: "", again, narrows=True)
        for ledger in done:
            ledger.tell(self._resources.telemetry)
        return mutation

    def _answer(
        self, reader: Reader, reports: Sequence[Report], ledger: _Ledger, now: datetime
    ) -> tuple[Reported, ...]:
        recognised = self._recognise(reader, reports, now)
        known = [one for one in recognised if isinstance(one, _Known)]
        ledger.read(reader, known)
        return tuple(ledger.deal_with(one) if isinstance(one, _Known) else one for one in recognised)

    def _recognise(self, reader: Reader, reports: Sequence[Report], now: datetime) -> Sequence[_Known | Reported]:
        """Return whose secret each report holds, and what there is to say of it where that is all there is to say."""
        tokens = [parse(report.api_key.strip()) for report in reports]
        keys = reader.keys({token.public_id for token in tokens if token is not None})
        return [
            self._recognised(reader, report, token, keys, now) for report, token in zip(reports, tokens, strict=True)
        ]

    def _recognised(
        self, reader: Reader, report: Report, token: Token | None, keys: Mapping[str, Key], now: datetime
    ) -> _Known | Reported:
        if token is None or token.kind is TokenKind.LINK:
            return _UNKNOWN
        owner: Key | Caller | None
        if token.kind is TokenKind.SERVICE:
            owner = reader.caller_of_key(token.public_id)
            ended = owner is not None and owner.revoke_time is not None
        else:
            owner = keys.get(token.public_id)
            if owner is not None and TOKEN_KIND[owner.kind] is not token.kind:
                return _UNKNOWN
            ended = owner is not None and owner.state is KeyState.REVOKED
        if owner is None:
            return _UNKNOWN
        try:
            generation = find_generation(token, owner.generations, self._resources.peppers, now, ended=ended)
        except Refusal:
            return Reported(ExposureOutcome.NOT_VERIFIABLE)
        if generation is None:
            return _UNKNOWN
        if generation.retired(now) or (isinstance(owner, Caller) and ended):
            return _reported(ExposureOutcome.RETIRED, owner)
        return _Known(owner, generation, sighting(report.api_key, report.url, report.source))


class _Ledger:
    """What is done about the reports of one call, in their order, and written down at the end.

    One that is not to `act` only finds out what was known before.
    """

    def __init__(self, reader: Reader, origin: Origin, now: datetime, *, act: bool = True) -> None:
        self._origin = origin
        self._now = now
        self._act = act
        self._policy_of: Callable[[str], ExposurePolicy] = lambda workspace_id: (
            require_workspace(reader, workspace_id).exposure_policy
        )
        self._known: set[Exposed] = set()
        self._new: dict[Exposed, None] = {}
        self._changed: dict[str, Key] = {}
        self._events: list[Event] = []

    def read(self, reader: Reader, known: Sequence[_Known]) -> None:
        """Find out what of this was known before."""
        key_ids = {one.owner.key_id for one in known}
        # Where a caller's key was found does not matter to whether it is known: the place of none stands for all.
        self._known = set(reader.exposures(key_ids, {"", *(one.found.place for one in known)}))

    def deal_with(self, known: _Known) -> Reported:
        """Do what is to be done about one report."""
        if isinstance(known.owner, Caller):
            return self._deal_with_caller(known, known.owner)
        before = self._changed.get(known.owner.key_id, known.owner)
        after = before if not self._act else self._exposed(known, before)
        new = self._act and self._is_new(known)
        # Without a URL there is nothing to add to what was written down about the secret before.
        if after != before or (new and known.found.url):
            self._events += describe_exposure(self._because(known.found), before, after, known.found, self._now)
        if new:
            self._new[known.exposed] = None
        if after != before:
            self._changed[after.key_id] = after
        return _reported(_outcome(before, after), after)

    def _exposed(self, known: _Known, before: Key) -> Key:
        policy = self._policy_of(before.workspace_id)
        if policy is ExposurePolicy.SUSPEND and not self._is_new(known):
            # Whoever has resumed it since knew of this.
            policy = ExposurePolicy.NOTIFY_ONLY
        return expose(before, known.generation, policy, known.found.reason, self._now)

    def _deal_with_caller(self, known: _Known, caller: Caller) -> Reported:
        if self._act and self._is_new(known):
            self._new[known.exposed] = None
            self._events += describe_exposure(self._because(known.found), caller, caller, known.found, self._now)
        return Reported(ExposureOutcome.CALLER_KEY, caller.key_id)

    def _is_new(self, known: _Known) -> bool:
        return known.exposed not in self._known and known.exposed not in self._new

    def _because(self, found: Sighting) -> Origin:
        return replace(self._origin, reason=found.reason)

    def write_down(self, writer: Writer) -> None:
        """Store all of it."""
        writer.replace_keys(list(self._changed.values()))
        writer.note_exposures(list(self._new), self._now)
        writer.record(self._events)

    def tell(self, telemetry: Telemetry) -> None:
        """Tell people what was found, now that it is stored."""
        for event in self._events:
            after = event.after or {}
            if event.type in (EventType.CALLER_EXPOSED, EventType.KEY_EXPOSED):
                telemetry.exposure("report", outcome_of(event))
            if event.type is EventType.CALLER_EXPOSED:
                _log.error(
                    "the key of a caller is exposed: rotate it at once",
                    exposed_caller_id=event.subject_id,
                    reason=event.origin.reason,
                )
            elif event.type is EventType.KEY_EXPOSED:
                _log.warning(
                    "key exposed",
                    key_id=event.subject_id,
                    workspace_id=event.workspace_id,
                    state=after.get("state"),
                    reason=event.origin.reason,
                )


def _outcome(before: Key, after: Key) -> ExposureOutcome:
    if after.state is not before.state:
        return ExposureOutcome.REVOKED if after.state is KeyState.REVOKED else ExposureOutcome.SUSPENDED
    return ExposureOutcome.ALREADY_KNOWN if after == before else ExposureOutcome.NOTED


def _reported(outcome: ExposureOutcome, owner: Key | Caller) -> Reported:
    return Reported(outcome, owner.key_id, owner if isinstance(owner, Key) else None)
