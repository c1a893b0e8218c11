"""Tells whether a recorded history keeps what is promised of freshness. Pure: it knows times and answers, no server.

What a question depends on are registers, such as whether a key is suspended. Each change writes some of them, at one
instant between its begin and its end. A call may answer from any value that a register may have had:

- by the clock: once a value must be known everywhere, those before it are gone for calls that begin later. It must
  once its change has returned, where decisions are linearizable or it was waited for (G1), and else `wait` later (G2);
- by the revision that the answer names: what was written up to that revision, and nothing later.

An answer that neither of the two leaves possible is a violation, and so is one that is older than was asked for (G3).
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from math import inf
from typing import Any, NamedTuple

from texture.auth.v1 import authorize_service_pb2 as pb

from server.domain.revision import Revision, decode

# By how much an overlap may seem to outlast itself: two clocks are compared, of the store and of the test.
CLOCKS_APART = 0.1

Register = tuple[str, ...]


class Kind(Enum):
    """What may be changed."""

    CREATE = "create"
    ROTATE = "rotate"
    SUSPEND = "suspend"
    RESUME = "resume"
    REVOKE = "revoke"
    TRANSFER = "transfer"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """A change that was asked for and not refused. Instants are seconds of one clock.

    `ended` is when it was answered; None where it never was, so that it may be made at any time, or never. `revision`
    is the token in the answer; with `exact` it is that of the change, else that of it or a later one, since the change
    may have been made by an earlier attempt. `complete` is whether every process was waited for.
    """

    kind: Kind
    subject: str  # the key, or the device that is transferred
    began: float
    ended: float | None
    revision: str = ""
    exact: bool = False
    complete: bool = False
    generation: int = 1  # of the secret that was made
    overlap: float = 0.0  # seconds
    owner: str = ""  # whose the device is after it


class Question(NamedTuple):
    """What is asked: by one secret of a key, about a device that must be one of those in `reach`, or about none."""

    key: str
    generation: int
    device: str = ""
    reach: frozenset[str] = frozenset()
    foreign: int = pb.REASON_DEVICE_NOT_FOUND


class Asked(NamedTuple):
    """A call that was answered: indices of questions, and for each its reason; 1 is ALLOW, whatever else is a DENY."""

    began: float
    ended: float
    process: int
    at_least: str
    revision: str
    questions: Sequence[int]
    reasons: bytes


@dataclass(slots=True)
class History:
    """What was recorded. `owners` are those of the devices at first. No key is there before it was created."""

    linearizable: bool
    owners: dict[str, str] = field(default_factory=dict)
    questions: list[Question] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)


class Fault(Enum):
    """What may be wrong with an answer."""

    WRONG_ALLOW = "allowed what had been taken away, or not yet given"
    WRONG_DENY = "denied what was allowed all the time, or for a reason that was none"
    UNTRUE = "not true at the revision that it names"
    TOO_OLD = "older than what was asked for"
    ANOTHER_HISTORY = "of a revision that is not of this history"
    TWO_SNAPSHOTS = "the same question was answered in two ways in one batch"


@dataclass(frozen=True, slots=True)
class Violation:
    """An answer that should not have been, in words, and what of the history it is about."""

    fault: Fault
    words: str
    asked: Asked
    changes: Sequence[Change] = ()


def check(history: History, wait: float) -> list[Violation]:
    """Return what is wrong with a history; `wait` is W, the seconds after which whoever has not heard is silent."""
    return list(_Checker(history, wait).violations())


class _Write:
    """A value that a change gave to a register: at the revision `exact` or, where that is None, at `latest` or before.

    From a call that begins after `known` on, it counts everywhere.
    """

    __slots__ = ("began", "change", "ended", "exact", "known", "latest", "only", "value")

    def __init__(self, change: Change | None, value: Any, known: float, exact: int | None, latest: float) -> None:
        self.change = change
        self.value = value
        self.only = frozenset({value})
        self.began = -inf if change is None else change.began
        self.ended = -inf if change is None else inf if change.ended is None else change.ended
        self.known = known
        self.exact = exact
        self.latest = latest

    def follows(self, other: _Write) -> bool:
        """Tell whether it is certain that this was written after another one."""
        if self.began > other.ended:
            return True
        return self.exact is not None and other.exact is not None and self.exact > other.exact


class _Written:
    """All that was written to one register. It is to be asked about calls in the order in which they began."""

    def __init__(self, writes: Sequence[_Write]) -> None:
        self._left = sorted(writes, key=lambda each: each.began)
        exact = {each.exact: each.only for each in writes if each.exact is not None}
        self._numbers = sorted(exact)
        self._exact = [exact[number] for number in self._numbers]
        self._inexact = [each for each in writes if each.exact is None]

    def writes(self, began: float, ended: float) -> list[_Write]:
        """Return those that a call may answer from, by the clock."""
        seen = []
        for write in self._left:
            if write.began >= ended:
                break
            seen.append(write)
        if len(seen) > 1:
            for newer in [each for each in seen if each.known < began]:
                for older in [each for each in seen if newer.follows(each)]:
                    seen.remove(older)
                    self._left.remove(older)
        return seen

    def by_clock(self, began: float, ended: float) -> frozenset[Any]:
        seen = self.writes(began, ended)
        return seen[0].only if len(seen) == 1 else frozenset(each.value for each in seen)

    def by_revision(self, number: int, ended: float) -> frozenset[Any]:
        last = bisect_right(self._numbers, number) - 1
        if not self._inexact:
            return self._exact[last]
        return self._exact[last] | {
            each.value for each in self._inexact if each.began < ended and each.latest > self._numbers[last]
        }


class _Checker:
    def __init__(self, history: History, wait: float) -> None:
        self._history = history
        self._wait = wait
        self._tokens: dict[str, Revision] = {}
        self._of_number: dict[int, Revision] = {}
        writes: dict[Register, list[_Write]] = defaultdict(list)
        for change in history.changes:
            for register, value in _written(change):
                writes[register].append(self._write(change, register, value))
        self._steps = [tuple(_steps(question)) for question in history.questions]
        initial: Mapping[Register, Any] = {("owner", device): owner for device, owner in history.owners.items()}
        registers = {register for steps in self._steps for _, register, _ in steps}
        self._registers = {
            register: _Written([_Write(None, initial.get(register, False), -inf, 0, 0), *writes[register]])
            for register in registers
        }

    def violations(self) -> Iterator[Violation]:
        for asked in sorted(self._history.asked, key=lambda each: each.began):
            revision = self._revision(asked.revision)
            if revision is None:
                yield Violation(Fault.ANOTHER_HISTORY, f"revision {asked.revision!r}", asked)
                continue
            at_least = self._revision(asked.at_least) if asked.at_least else None
            if at_least is not None and revision.number < at_least.number:
                words = f"{at_least.number} or later was asked for, and the answer is of {revision.number}"
                yield Violation(Fault.TOO_OLD, words, asked)
            yield from self._wrong(asked, revision.number)

    def _wrong(self, asked: Asked, number: int) -> Iterator[Violation]:
        began, ended = asked.began, asked.ended
        known: dict[Register, frozenset[Any]] = {}

        def values(register: Register) -> frozenset[Any]:
            found = known.get(register)
            if found is None:
                written = self._registers[register]
                found = written.by_clock(began, ended) & written.by_revision(number, ended)
                known[register] = found
            return found

        answers: dict[int, int] = {}
        for question, reason in zip(asked.questions, asked.reasons, strict=True):
            before = answers.get(question)
            if before is None:
                answers[question] = reason
                if not self._possible(question, values) >> reason & 1:
                    yield self._violation(asked, question, reason, number)
            elif before != reason:
                words = f"{self._history.questions[question]}: {_name(before)} and {_name(reason)}"
                yield Violation(Fault.TWO_SNAPSHOTS, words, asked)

    def _possible(self, question: int, values: Callable[[Register], frozenset[Any]]) -> int:
        """Return a bit for each reason that may be the answer, given the values that registers may have."""
        possible = 0
        for reason, register, passing in self._steps[question]:
            found = values(register)
            if not found <= passing:
                possible |= 1 << reason
            if found.isdisjoint(passing):
                return possible
        return possible | 1 << pb.REASON_PERMITTED

    def _violation(self, asked: Asked, question: int, reason: int, number: int) -> Violation:
        by_clock = self._possible(question, lambda name: self._registers[name].by_clock(asked.began, asked.ended))
        if by_clock >> reason & 1:
            fault = Fault.UNTRUE
        else:
            fault = Fault.WRONG_ALLOW if reason == pb.REASON_PERMITTED else Fault.WRONG_DENY
        states, changes = [], []
        for _, register, _ in self._steps[question]:
            written = self._registers[register]
            seen = written.writes(asked.began, asked.ended)
            at_revision = _listed(written.by_revision(number, asked.ended))
            states.append(
                f"{' '.join(register)}: {_listed(each.value for each in seen)}, at its revision {at_revision}"
            )
            changes += [each.change for each in seen if each.change is not None]
        words = f"{self._history.questions[question]}: {_name(reason)} of revision {number}; " + "; ".join(states)
        return Violation(fault, words, asked, changes)

    def _write(self, change: Change, register: Register, value: Any) -> _Write:
        if change.ended is None:
            return _Write(change, value, inf, None, inf)
        known = change.ended if self._history.linearizable or change.complete else change.ended + self._wait
        revision = self._revision(change.revision) if change.revision else None
        if register[0] == "retired" and change.overlap:
            # The revision does not say when it ends.
            return _Write(change, value, max(known, change.ended + change.overlap + CLOCKS_APART), None, inf)
        if revision is None:
            return _Write(change, value, known, None, inf)
        return _Write(change, value, known, revision.number if change.exact else None, revision.number)

    def _revision(self, token: str) -> Revision | None:
        """Return the revision of a token, None where it is of another history than those before it."""
        found = self._tokens.get(token)
        if found is None:
            found = decode(token)
            if found is None:
                return None
            first = next(iter(self._tokens.values()), found)
            if found.epoch != first.epoch or self._of_number.setdefault(found.number, found) != found:
                return None
            self._tokens[token] = found
        return found


def _written(change: Change) -> Iterator[tuple[Register, Any]]:
    """Return what a change writes."""
    subject = change.subject
    if change.kind is Kind.TRANSFER:
        yield ("owner", subject), change.owner
    elif change.kind is Kind.REVOKE:
        yield ("revoked", subject), True
    elif change.kind in (Kind.SUSPEND, Kind.RESUME):
        yield ("suspended", subject), change.kind is Kind.SUSPEND
    else:
        yield ("exists", subject, str(change.generation)), True
        if change.kind is Kind.ROTATE:
            yield ("retired", subject, str(change.generation - 1)), True


def _steps(question: Question) -> Iterator[tuple[int, Register, frozenset[Any]]]:
    """Return what is looked at, in order: the reason where it is not as it should, the register, how it should be."""
    secret = question.key, str(question.generation)
    yield pb.REASON_KEY_UNKNOWN, ("exists", *secret), frozenset({True})
    yield pb.REASON_KEY_REVOKED, ("revoked", question.key), frozenset({False})
    yield pb.REASON_KEY_SUSPENDED, ("suspended", question.key), frozenset({False})
    yield pb.REASON_KEY_RETIRED, ("retired", *secret), frozenset({False})
    if question.device:
        yield question.foreign, ("owner", question.device), question.reach


def _name(reason: int) -> str:
    return pb.Reason.Name(pb.Reason.ValueType(reason)).removeprefix("REASON_")


def _listed(values: Any) -> str:
    return " or ".join(sorted({str(value) for value in values})) or "nothing"
