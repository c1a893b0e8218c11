"""Decisions."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

import structlog

from server.domain.decision import Decision, Question, decide
from server.domain.errors import ErrorReason, Refusal
from server.domain.explanation import Explanation, explain
from server.domain.model import Key
from server.domain.revision import Revision, decode
from server.domain.validation import is_device_id
from server.service.base import Resources, require_key
from server.service.exposures import ExposureService
from server.service.rehashing import Rehashing
from server.store.contract import Reader, StoreUnavailable

_log = structlog.get_logger("texture_auth.authorization")


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision as it is given out. `valid_for` is None where time alone changes nothing."""

    decision: Decision
    decision_id: str
    valid_for: timedelta | None


@dataclass(frozen=True, slots=True)
class Answers:
    """Answers in the order of the questions, all from one snapshot; a refusal where a question had no answer."""

    answers: tuple[Answer | Refusal, ...]
    revision: Revision


class AuthorizationService:
    """Answers whether the holders of keys may do things."""

    def __init__(self, resources: Resources, exposures: ExposureService, rehashing: Rehashing) -> None:
        self._resources = resources
        self._exposures = exposures
        self._rehashing = rehashing

    def answer(self, questions: Sequence[Question | Refusal], at_least_revision: str, caller_id: str) -> Answers:
        """Answer questions from one snapshot, at the revision of a token or later; an empty token asks for none.

        Keys that are found exposed are dealt with before this returns, unless writers are busy; the answer is a denial
        whatever comes of it, and the next use tries again.

        What could not be made a question passes through as its refusal. Raises Refusal (REVISION_NOT_VERIFIABLE) for
        the token, StoreUnavailable.
        """
        key_ids = set()
        device_ids = set()
        for question in questions:
            if isinstance(question, Question) and question.presented.token is not None:
                key_ids.add(question.presented.token.public_id)
                if is_device_id(question.device_id):
                    device_ids.add(question.device_id)
        with self._resources.store.read() as reader:
            revision = _verified_head(reader, at_least_revision)
            keys = reader.keys(key_ids) if key_ids else {}
            devices = reader.devices(device_ids) if device_ids else {}
        now = self._resources.clock()
        peppers = self._resources.peppers
        answers: list[Answer | Refusal] = []
        for question in questions:
            if isinstance(question, Refusal):
                answers.append(question)
                continue
            token = question.presented.token
            key = None if token is None else keys.get(token.public_id)
            try:
                decision = decide(question, key, devices.get(question.device_id), peppers, now)
            except Refusal as refusal:
                answers.append(refusal)
                continue
            answers.append(Answer(decision, secrets.token_hex(12), _valid_for(decision, now)))
            if token is not None and decision.generation is not None:
                self._rehashing.offer(token, decision.generation)
        try:
            decisions = (answer.decision for answer in answers if isinstance(answer, Answer))
            self._exposures.contain(decisions, caller_id)
        except StoreUnavailable as error:
            _log.warning("exposed keys not dealt with yet", cause=str(error))
        return Answers(tuple(answers), revision)

    def explain(
        self, question: Question, api_key: str | None, key_id: str, at_least_revision: str
    ) -> tuple[Explanation, timedelta | None, Revision]:
        """Explain the answer to a question about a key: presented as `api_key` or, where that is None, named by id.

        Returns also how long time alone leaves the answer as it is, and the revision. Nothing is recorded, and no key
        is treated as leaked. Raises Refusal: KEY_NOT_FOUND for the id, REVISION_NOT_VERIFIABLE, PEPPER_UNAVAILABLE.
        """
        token = question.presented.token
        with self._resources.store.read() as reader:
            revision = _verified_head(reader, at_least_revision)
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


def _valid_for(decision: Decision, now: datetime) -> timedelta | None:
    return None if decision.valid_until is None else decision.valid_until - now


def _verified_head(reader: Reader, at_least_revision: str) -> Revision:
    """Return the head of the snapshot, which is always the newest, if the token is of its history."""
    if at_least_revision:
        wanted = decode(at_least_revision)
        if wanted is None or not reader.holds(wanted):
            raise Refusal(
                ErrorReason.REVISION_NOT_VERIFIABLE, "at_least_revision: is not a revision of this store's history"
            )
    return reader.head()
