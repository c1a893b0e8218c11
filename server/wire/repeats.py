"""Questions that were answered ALLOW before, answered again without working them out, as bytes.

A question that comes a second time has the same bytes, and where the facts of its answer still stand, the answer has
the same bytes too, but for what names the revision and the decision. So neither message is taken apart or put together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from texture.auth.v1 import authorize_service_pb2 as pb

from server.domain.decision import Question
from server.domain.reasons import Reason
from server.domain.revision import Revision, decode
from server.service.authorization import Answer
from server.service.counting import Use
from server.service.facts import FactCache
from server.service.memo import Conclusion, Memo
from server.service.telemetry import Telemetry
from server.store.contract import DEVICE, KEY
from server.wire import convert

# How many answers are kept. Each takes about 1,300 bytes, with the counter of its uses.
MOST_ANSWERS = 4_096

_PERMITTED = (Reason.PERMITTED,)
_Field = descriptor_pb2.FieldDescriptorProto


@dataclass(frozen=True, slots=True)
class Allowed:
    """An ALLOW without what differs from one time to the next, and what goes before it as a part of a batch."""

    alone: bytes = field(repr=False)
    frame: bytes = field(repr=False)
    permission: str
    key_id: str
    use: Use


@dataclass(frozen=True, slots=True)
class Repeat:
    """An answer that was given again: the whole message, and what the log is to say."""

    message: bytes = field(repr=False)
    allowed: Allowed
    decision_id: str


@dataclass(frozen=True, slots=True)
class Found:
    """What was found of the answers to a batch, None where nothing was, at the revision that was `applied` before."""

    applied: Revision | None
    conclusions: list[Conclusion[Allowed] | None]

    @property
    def count(self) -> int:
        """How many were found."""
        return len(self.conclusions) - self.conclusions.count(None)


class Repeats:
    """Answers again what was answered before. Safe for use by many threads."""

    def __init__(
        self,
        cache: FactCache,
        clock: Callable[[], datetime],
        next_id: Callable[[], str],
        telemetry: Telemetry,
        most: int = MOST_ANSWERS,
    ) -> None:
        self._cache = cache
        self._clock = clock
        self._next_id = next_id
        self._telemetry = telemetry
        self._memo: Memo[Allowed] = Memo(cache, clock, most)
        self._revision: tuple[Revision | None, bytes] = (None, b"")

    def first(self, raw: bytes, question: Question, answer: Answer, applied: Revision) -> bytes:
        """Return the bytes (AuthorizeResponse) of the first answer to a question, which is remembered if it may be.

        `raw` are the bytes of the question: an AuthorizeRequest or a Question.
        """
        allowed = self._keep(raw, question, answer)
        if allowed is None:
            return convert.answer(answer, applied.encode()).SerializeToString()
        return allowed.alone + _of_time(answer.valid_for) + self._of_revision(applied) + _of_id(answer.decision_id)

    def first_in_batch(self, raw: bytes, question: Question, answer: Answer, applied: Revision) -> bytes:
        """Return the bytes of such an answer as part of a batch: a BatchAnswer."""
        return BATCH_ANSWER(answer=self.first(raw, question, answer, applied)).SerializeToString()

    def _keep(self, raw: bytes, question: Question, answer: Answer) -> Allowed | None:
        key = answer.decision.key
        if not answer.grounds or key is None:
            return None
        alone = convert.answer(Answer(answer.decision, "", None), "").SerializeToString()
        whole = len(alone) + _REVISION_BYTES + _ID_BYTES
        framed = BATCH_ANSWER(answer=bytes(whole)).SerializeToString()
        use = Use(answer.decision, question.permission.value, question.device_id)
        allowed = Allowed(alone, framed[: len(framed) - whole], question.permission.value, key.key_id, use)
        self._memo.keep(raw, Conclusion(allowed, answer.grounds, answer.decision.valid_until))
        return allowed

    def answer(self, raw: bytes) -> Repeat | None:
        """Answer an AuthorizeRequest if that can be done from memory. Raises StoreUnavailable."""
        cache = self._cache
        applied = cache.applied
        found = self._memo.find(raw)
        if found is None or applied is None:
            return None
        # The revision that the request asks for was reached when its answer was kept; of another history no fact lives.
        decision_id = self._next_id()
        tail = self._of_revision(applied) + _of_id(decision_id)
        if found.valid_until is not None:
            now = self._clock()
            if now >= found.valid_until:
                return None
            tail += _of_time(found.valid_until - now)
        if not cache.still(applied):
            return None
        self._count(1, len(found.grounds))
        self._telemetry.decided(_PERMITTED)
        return Repeat(found.value.alone + tail, found.value, decision_id)

    def find_all(self, raws: Sequence[bytes], at_least_revision: str) -> Found:
        """Look up the answers to the questions of a batch. They are answers once `write` has said so."""
        applied = self._cache.applied
        if applied is None or not self._reached(applied, at_least_revision):
            return Found(applied, [None] * len(raws))
        find = self._memo.find
        return Found(applied, [find(raw) for raw in raws])

    def write(self, found: Found) -> list[bytes] | None:
        """Return the bytes (BatchAnswer) of what was found, empty ones where nothing was.

        None means that it is no longer so. Raises StoreUnavailable.
        """
        applied = found.applied
        if applied is None:
            return None
        next_id, now, until = self._next_id, None, None
        tail = self._of_revision(applied) + _ID_HEAD
        written, grounds = [], 0
        for one in found.conclusions:
            if one is None:
                written.append(b"")
                continue
            grounds += len(one.grounds)
            if one.valid_until is None:
                written.append(b"%b%b%b%b" % (one.value.frame, one.value.alone, tail, next_id().encode()))
                continue
            now = now or self._clock()
            until = min(until or one.valid_until, one.valid_until)
            answer = one.value.alone + _of_time(one.valid_until - now) + tail + next_id().encode()
            written.append(BATCH_ANSWER(answer=answer).SerializeToString())
        if (until is not None and self._clock() >= until) or not self._cache.still(applied):
            return None
        self._count(found.count, grounds)
        self._telemetry.decided(_PERMITTED * found.count)
        return written

    def _reached(self, applied: Revision, at_least_revision: str) -> bool:
        if not at_least_revision:
            return True
        at_least = decode(at_least_revision)
        return at_least is not None and self._cache.reaches(applied, at_least)

    def _of_revision(self, applied: Revision) -> bytes:
        of, message = self._revision
        if of is not applied:
            message = pb.AuthorizeResponse(revision=applied.encode()).SerializeToString()
            self._revision = applied, message
        return message

    def _count(self, answers: int, grounds: int) -> None:
        self._cache.count(KEY, answers)
        self._cache.count(DEVICE, grounds - answers)


def _of_time(valid_for: timedelta | None) -> bytes:
    if valid_for is None:
        return b""
    return pb.AuthorizeResponse(valid_for=convert.duration(valid_for)).SerializeToString()


def _of_id(decision_id: str) -> bytes:
    return _ID_HEAD + decision_id.encode()


def _opaque(message: type[Message], field: str) -> type[Message]:
    """Return a message as another is on the wire, but that one of its fields, a message, is left as bytes."""
    file = descriptor_pb2.FileDescriptorProto(name=f"opaque/{message.DESCRIPTOR.full_name}", syntax="proto3")
    made = file.message_type.add()
    message.DESCRIPTOR.CopyToProto(made)
    del made.oneof_decl[:]
    for each in made.field:
        each.ClearField("oneof_index")
        if each.name == field:
            each.type = _Field.TYPE_BYTES
            each.ClearField("type_name")
    kept = [each for each in made.field if each.type != _Field.TYPE_MESSAGE]
    del made.field[:]
    made.field.extend(kept)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(made.name))


BATCH_REQUEST = _opaque(pb.BatchAuthorizeRequest, "questions")
BATCH_RESPONSE = _opaque(pb.BatchAuthorizeResponse, "answers")
BATCH_ANSWER = _opaque(pb.BatchAnswer, "answer")

_ID_HEAD = pb.AuthorizeResponse(decision_id="0" * 24).SerializeToString()[:-24]
_ID_BYTES = len(_ID_HEAD) + 24
_REVISION_BYTES = len(pb.AuthorizeResponse(revision="0" * 43).SerializeToString())
