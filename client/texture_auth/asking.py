"""How a question is asked, but for sending it: both authorizers run these steps, the blocking one and asyncio's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias, TypeVar

import grpc

from texture_auth import deadlines
from texture_auth.answers import (
    batch_request_of,
    decision_of,
    decision_of_error,
    decisions_of,
    request_of,
    unanswered,
)
from texture_auth.credentials import CallerKey, Metadata
from texture_auth.decision import Context, Decision, Outcome, Question
from texture_auth.observing import Observation, Observer
from texture_auth.revisions import Revisions

MAXIMUM_QUESTIONS = 1_000

_AUTHORIZE = "texture.auth.v1.AuthorizeService/Authorize"
_BATCH_AUTHORIZE = "texture.auth.v1.AuthorizeService/BatchAuthorize"
_NOT_VERIFIABLE = "REVISION_NOT_VERIFIABLE"
_WRONG_QUESTION = "FIELD_INVALID"
_UNANSWERED = Outcome.UNANSWERED
# Errors that somebody has to do something about: the question or the caller's credential is wrong.
_FAULTS = frozenset(
    {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}
)

_log = logging.getLogger("texture_auth")

_T = TypeVar("_T")


@dataclass(slots=True)
class Call:
    """An RPC to be made."""

    request: Any = field(repr=False)
    batch: bool
    seconds: float
    metadata: Metadata = field(repr=False)


Steps: TypeAlias = Generator[Call, Any, _T]
"""Yields calls, is sent the response to each, or the exception that it failed with, and returns what came of it."""

Read: TypeAlias = Callable[[Any], list[Decision]]
Write: TypeAlias = Callable[[str], Any]


class Asking:
    """What an authorizer knows, but for its connection. May be used by many threads."""

    def __init__(self, *, caller_key: CallerKey, timeout: float, observers: Iterable[Observer]) -> None:
        if not timeout > 0:
            raise ValueError("timeout must be more than 0 seconds")
        self._caller_key = caller_key
        self._timeout = timeout
        self.observation = Observation(observers)
        self.revisions = Revisions()

    def one(
        self,
        api_key: str,
        permission: str,
        device_id: str,
        context: Context | None,
        timeout: float | None,
        at_least_revision: str,
    ) -> Steps[Decision]:
        """Ask one question."""
        started = time.monotonic()
        (decision,) = yield from self._decide(
            lambda revision: request_of(api_key, permission, device_id, context, revision),
            lambda answer: [decision_of(answer, permission)],
            started + self._seconds(timeout),
            at_least_revision,
            count=1,
            batch=False,
        )
        self.observation.told(_AUTHORIZE, permission, decision, time.monotonic() - started)
        return decision

    def many(
        self, questions: Sequence[Question], timeout: float | None, at_least_revision: str
    ) -> Steps[list[Decision]]:
        """Ask many questions at once. Raises ValueError for more than the service answers from one snapshot."""
        if len(questions) > MAXIMUM_QUESTIONS:
            raise ValueError(f"{len(questions)} questions are more than {MAXIMUM_QUESTIONS:,}")
        if not questions:
            return []
        started = time.monotonic()
        decisions = yield from self._decide(
            lambda revision: batch_request_of(questions, revision),
            lambda response: decisions_of(response, questions),
            started + self._seconds(timeout),
            at_least_revision,
            count=len(questions),
            batch=True,
        )
        seconds = time.monotonic() - started
        for place, (question, decision) in enumerate(zip(questions, decisions, strict=True)):
            self.observation.told(
                _BATCH_AUTHORIZE, question.permission, decision, seconds, batch=len(questions), place=place
            )
        return decisions

    def _decide(
        self, write: Write, read: Read, until: float, at_least_revision: str, *, count: int, batch: bool
    ) -> Steps[list[Decision]]:
        """Ask, and return as many decisions as there are questions, whatever happens.

        Every question of this library passes here, and every answer comes back here before anybody sees it: a cache of
        decisions (CONSISTENCY.md, client rules) belongs around the loop. It would look before the first call (rule 16:
        by secret, permission, device and context), keep what came back (15), and have its last look, whether the lease
        is fresh and an ALLOW may still be returned, where this returns (17). What is carried in `revisions` would be
        one more thing that an entry must reflect.
        """
        carried = self.revisions.carried
        first, *others = dict.fromkeys((at_least_revision, *carried) if at_least_revision else carried or ("",))
        decisions = yield from self._ask(write, read, until, first, count=count, batch=batch)
        for revision in others:
            if not any(decisions):
                break
            found = yield from self._ask(write, read, until, revision, count=count, batch=batch)
            # Each answer reflects one of the revisions, so a yes must be one for all of them.
            decisions = [later if earlier else earlier for earlier, later in zip(decisions, found, strict=True)]
        return decisions

    def _ask(
        self, write: Write, read: Read, until: float, revision: str, *, count: int, batch: bool
    ) -> Steps[list[Decision]]:
        """Make one call, and return what its answer says."""
        seconds = until - time.monotonic()
        if not seconds > 0:
            late = unanswered(
                "DEADLINE_EXCEEDED", "the deadline was past before it was asked", grpc.StatusCode.DEADLINE_EXCEEDED
            )
            return [late] * count
        try:
            metadata = self._caller_key.metadata()
        except Exception as error:  # noqa: BLE001 - it is the adopter's own
            # Its message may hold the key.
            _log.error("the caller's key could not be had: %s", type(error).__name__)
            return [unanswered("CALLER_KEY_UNAVAILABLE", "the caller's own key could not be had")] * count
        reply = yield Call(write(revision), batch, seconds, metadata)
        if isinstance(reply, BaseException):
            decision = self._failed(reply, revision)
            return [decision] * count
        if revision:
            self.revisions.advance(revision, reply.revision)
        decisions = read(reply)
        for each in decisions:
            if each.outcome is _UNANSWERED:
                _tell_fault(each)
        return decisions

    def _failed(self, error: BaseException, revision: str) -> Decision:
        if not isinstance(error, grpc.RpcError):
            # Such as a channel that was closed. Its message may show what was sent.
            _log.error("the service could not be asked: %s", type(error).__name__)
            return unanswered("CLIENT_FAULT", f"the service could not be asked: {type(error).__name__}")
        decision = decision_of_error(error)
        if decision.reason == _NOT_VERIFIABLE:
            self.revisions.drop(revision)
        _tell_fault(decision)
        return decision

    def _seconds(self, timeout: float | None) -> float:
        """Return how long an answer may take: the least of what the call was given, what is left, and the limit."""
        seconds = min(self._timeout, deadlines.remaining())
        # What is no number is no time.
        return seconds if timeout is None else min(timeout, seconds)


def _tell_fault(decision: Decision) -> None:
    if decision.code in _FAULTS or decision.reason == _WRONG_QUESTION:
        _log.error("a question to Texture Auth had no answer: %s: %s", decision.reason, decision.message)
