"""Decisions."""

from __future__ import annotations

import itertools
import secrets
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from server.domain.decision import Decision, Question, decide
from server.domain.errors import Refusal
from server.domain.explanation import Explanation, explain
from server.domain.model import Key
from server.domain.revision import Revision, decode
from server.domain.validation import is_device_id
from server.service.base import Resources, require_key
from server.service.exposures import ExposureService
from server.service.facts import Fact, Known, Place, not_verifiable, verify
from server.service.rehashing import Rehashing
from server.store.contract import DEVICE, KEY


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision as it is given out. `valid_for` is None where time alone changes nothing.

    Where the same question may be answered alike for as long as facts stand, and nothing else is to be done about it,
    `grounds` are those facts; otherwise they are empty.
    """

    decision: Decision
    decision_id: str
    valid_for: timedelta | None
    grounds: tuple[Fact, ...] = ()


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers in the order of the questions, all from one snapshot; a refusal where a question had no answer."""

    answers: tuple[Answer | Refusal, ...]
    revision: Revision


class DecisionIds:
    """Names decisions: a process at random, and its decisions by number. Safe for use by many threads."""

    def __init__(self) -> None:
        self._process = secrets.token_hex(6)
        self._numbers = itertools.count(secrets.randbits(32))

    def __call__(self) -> str:
        """Return the next name: 24 hexadecimal digits."""
        return f"{self._process}{next(self._numbers):012x}"


class AuthorizationService:
    """Answers whether the holders of keys may do things. `next_id` names its decisions."""

    def __init__(
        self, resources: Resources, exposures: ExposureService, rehashing: Rehashing, next_id: Callable[[], str]
    ) -> None:
        self._resources = resources
        self._exposures = exposures
        self._rehashing = rehashing
        self._next_id = next_id

    def answer(self, questions: Sequence[Question | Refusal], at_least_revision: str, caller_id: str) -> Answers:
        """Answer questions from one snapshot, at the revision of a token or later; an empty token asks for none.

        Keys that are found exposed are dealt with before this returns, or soon after; the answer is a denial whatever
        comes of it.

        What could not be made a question passes through as its refusal. Raises Refusal (REVISION_NOT_VERIFIABLE) for
        the token, StoreUnavailable.
        """
        wanted = _wanted(questions)
        at_least = _decoded(at_least_revision)
        clock = self._resources.clock

        def work(known: Known) -> Answers:
            now = clock()
            return Answers(tuple(self._answer(question, known, now) for question in questions), known.revision)

        while True:
            done = self._resources.cache.decide(wanted, at_least, work)
            if not _overtaken(done, clock()):
                break
        answers = done.answers
        for question, answer in zip(questions, answers, strict=True):
            if isinstance(question, Question) and isinstance(answer, Answer):
                token, generation = question.presented.token, answer.decision.generation
                if token is not None and generation is not None:
                    self._rehashing.offer(token, generation)
        self._resources.telemetry.decided([answer.decision.reason for answer in answers if isinstance(answer, Answer)])
        self._exposures.contain((answer.decision for answer in answers if isinstance(answer, Answer)), caller_id)
        return done

    def explain(
        self, question: Question, api_key: str | None, key_id: str, at_least_revision: str
    ) -> tuple[Explanation, timedelta | None, Revision]:
        """Explain the answer to a question about a key: presented as `api_key` or, where that is None, named by id.

        Returns also how long time alone leaves the answer as it is, and the revision. Nothing is recorded, and no key
        is treated as leaked. Raises Refusal: KEY_NOT_FOUND for the id, REVISION_NOT_VERIFIABLE, PEPPER_UNAVAILABLE.
        """
        token, at_least = question.presented.token, _decoded(at_least_revision)
        with self._resources.store.read() as reader:
            if at_least is not None:
                verify(reader, at_least)
            revision = reader.head()
            key: Key | None = None
            if api_key is None:
                key = require_key(reader, key_id)
            elif token is not None:
                key = reader.keys([token.public_id]).get(token.public_id)
            device = None
            if is_device_id(question.device_id):
                device = reader.devices([question.device_id]).get(question.device_id)
        now = self._resources.clock()
        explanation = explain(question, api_key, key, device, self._resources.peppers, now)
        return explanation, _valid_for(explanation.decision, now), revision

    def _answer(self, question: Question | Refusal, known: Known, now: datetime) -> Answer | Refusal:
        """Answer one question from facts."""
        if isinstance(question, Refusal):
            return question
        token, peppers = question.presented.token, self._resources.peppers
        key = None if token is None else known.value(KEY, token.public_id)
        try:
            decision = decide(question, key, known.value(DEVICE, question.device_id), peppers, now)
        except Refusal as refusal:
            return refusal
        grounds: tuple[Fact, ...] = ()
        generation = decision.generation
        if token is not None and decision.allowed and generation and generation.pepper_id == peppers.signing_id:
            grounds = (known.facts[KEY, token.public_id],)
            if question.device_id:
                grounds += (known.facts[DEVICE, question.device_id],)
        return Answer(decision, self._next_id(), _valid_for(decision, now), grounds)


def _valid_for(decision: Decision, now: datetime) -> timedelta | None:
    return None if decision.valid_until is None else decision.valid_until - now


def _wanted(questions: Sequence[Question | Refusal]) -> Collection[Place]:
    """Return the entities that the questions are about, each once."""
    wanted: dict[Place, None] = {}
    for question in questions:
        if isinstance(question, Question) and question.presented.token is not None:
            wanted[KEY, question.presented.token.public_id] = None
            if is_device_id(question.device_id):
                wanted[DEVICE, question.device_id] = None
    return wanted


def _overtaken(done: Answers, now: datetime) -> bool:
    """Tell whether time has overtaken any of the answers since they were made (CONSISTENCY rule 5)."""
    decisions = (answer.decision for answer in done.answers if isinstance(answer, Answer))
    return any(decision.valid_until is not None and now >= decision.valid_until for decision in decisions)


def _decoded(at_least_revision: str) -> Revision | None:
    """Return the revision of a token, None of an empty one. Raises Refusal (REVISION_NOT_VERIFIABLE)."""
    if not at_least_revision:
        return None
    revision = decode(at_least_revision)
    if revision is None:
        raise not_verifiable()
    return revision
