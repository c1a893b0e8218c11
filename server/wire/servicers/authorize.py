"""AuthorizeService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import error_pb2

from server.domain.decision import Question, ask
from server.domain.errors import Refusal, invalid
from server.domain.reasons import OUTCOMES, Reason
from server.domain.revision import Revision
from server.domain.validation import BATCH, Fields
from server.service.authorization import Answer, AuthorizationService
from server.service.counting import UNCOUNTED, Counter, Use
from server.service.memo import Conclusion
from server.wire import convert
from server.wire.messages import parsed
from server.wire.repeats import BATCH_REQUEST, BATCH_RESPONSE, Allowed, Found, Repeats
from server.wire.rpc import CURRENT, log_part, note

SERVICE = pb.DESCRIPTOR.services_by_name["AuthorizeService"]


@dataclass(frozen=True, slots=True)
class _Batch:
    """The answers to a batch as bytes (BatchAnswer), those that had to be worked out, and what was found of others."""

    messages: list[bytes]
    revision: Revision
    worked_out: list[tuple[Question | Refusal, Answer | Refusal]]
    repeated: Sequence[Conclusion[Allowed] | None] = ()


def add_to_server(servicer: AuthorizeServicer, server: grpc.Server) -> None:
    """Have a server serve AuthorizeService."""
    explain = grpc.unary_unary_rpc_method_handler(
        servicer.ExplainAuthorization,
        pb.ExplainAuthorizationRequest.FromString,
        pb.ExplainAuthorizationResponse.SerializeToString,
    )
    handlers = {
        "Authorize": grpc.unary_unary_rpc_method_handler(servicer.Authorize),
        "BatchAuthorize": grpc.unary_unary_rpc_method_handler(servicer.BatchAuthorize),
        "ExplainAuthorization": explain,
    }
    server.add_registered_method_handlers(SERVICE.full_name, handlers)


class AuthorizeServicer:
    """AuthorizeService, as `authorize_service.proto` describes it.

    Authorize and BatchAuthorize take and give messages as they are on the wire.
    """

    def __init__(self, service: AuthorizationService, repeats: Repeats, counter: Counter = UNCOUNTED) -> None:
        self._service = service
        self._repeats = repeats
        self._counter = counter

    def Authorize(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer one question."""
        rpc = CURRENT.get()
        again = self._repeats.answer(raw)
        if again is not None:
            rpc.routine = True
            rpc.notes = _notes(again.allowed.permission, Reason.PERMITTED, again.allowed.key_id, again.decision_id)
            self._counter.count(again.allowed.use, rpc.caller_id)
            return again.message
        request = parsed(raw, pb.AuthorizeRequest.FromString)
        question = _question(request)
        answers = self._service.answer([question], request.at_least_revision, rpc.caller_id)
        (answer,) = answers.answers
        if isinstance(answer, Refusal):
            raise answer
        note(**_loggable(question, answer))
        self._counter.count_all(_uses([(question, answer)]), rpc.caller_id)
        rpc.routine = answer.decision.allowed
        return self._repeats.first(raw, question, answer, answers.revision)

    def BatchAuthorize(self, raw: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer many questions."""
        request: Any = parsed(raw, BATCH_REQUEST.FromString)
        raws = list(request.questions)
        fields = Fields()
        if not 1 <= len(raws) <= BATCH:
            fields.fault("questions", f"must have 1 to {BATCH} entries, has {len(raws)}")
        fields.refuse_if_invalid()
        found = self._repeats.find_all(raws, request.at_least_revision)
        batch = self._answer_rest(raws, request.at_least_revision, found) if found.count else None
        if batch is None:
            # Nothing was found, or something was committed meanwhile, and what was found may be of before.
            batch = self._work_out(raws, request.at_least_revision)
        caller_id = CURRENT.get().caller_id
        self._counter.count_all((one.value.use for one in batch.repeated if one is not None), caller_id)
        self._counter.count_all(_uses(batch.worked_out), caller_id)
        for question, answer in batch.worked_out:
            if isinstance(question, Question) and isinstance(answer, Answer) and not answer.decision.allowed:
                log_part(**_loggable(question, answer))
            elif isinstance(answer, Refusal):
                log_part(error_reason=answer.reason.name, **answer.metadata)
        refused = sum(isinstance(answer, Refusal) or not answer.decision.allowed for _, answer in batch.worked_out)
        note(questions=len(raws), allowed=len(raws) - refused)
        CURRENT.get().routine = refused == 0
        return BATCH_RESPONSE(answers=batch.messages, revision=batch.revision.encode()).SerializeToString()

    def _answer_rest(self, raws: Sequence[bytes], at_least_revision: str, found: Found) -> _Batch | None:
        """Answer what was not found; return None where that came out at another revision, or time has gone on."""
        missing = [number for number, one in enumerate(found.conclusions) if one is None]
        rest = None
        if missing:
            rest = self._work_out([raws[number] for number in missing], at_least_revision)
            if rest.revision != found.applied:
                return None
        messages = self._repeats.write(found)
        if messages is None or found.applied is None:
            return None
        if rest is None:
            return _Batch(messages, found.applied, [], found.conclusions)
        for number, message in zip(missing, rest.messages, strict=True):
            messages[number] = message
        return _Batch(messages, found.applied, rest.worked_out, found.conclusions)

    def _work_out(self, raws: Sequence[bytes], at_least_revision: str) -> _Batch:
        questions = [_question_or_refusal(parsed(raw, pb.Question.FromString)) for raw in raws]
        answers = self._service.answer(questions, at_least_revision, CURRENT.get().caller_id)
        worked_out = list(zip(questions, answers.answers, strict=True))
        messages = [
            self._in_batch(raw, question, answer, answers.revision)
            for raw, (question, answer) in zip(raws, worked_out, strict=True)
        ]
        return _Batch(messages, answers.revision, worked_out)

    def _in_batch(
        self, raw: bytes, question: Question | Refusal, answer: Answer | Refusal, revision: Revision
    ) -> bytes:
        if isinstance(question, Refusal):
            return _error(question).SerializeToString()
        if isinstance(answer, Refusal):
            return _error(answer).SerializeToString()
        return self._repeats.first_in_batch(raw, question, answer, revision)

    def ExplainAuthorization(
        self, request: pb.ExplainAuthorizationRequest, context: grpc.ServicerContext
    ) -> pb.ExplainAuthorizationResponse:
        """Explain one answer."""
        named = request.WhichOneof("subject")
        if named is None:
            raise invalid("subject", "needs a key_id or an api_key")
        fields = Fields()
        seen = convert.context(request.context, fields)
        fields.refuse_if_invalid()
        question = ask(request.api_key, request.permission, request.device_id, seen)
        explanation, valid_for, revision = self._service.explain(
            question, request.api_key if named == "api_key" else None, request.key_id, request.at_least_revision
        )
        decision = explanation.decision
        note(explained=decision.reason.name, key_id=None if decision.key is None else decision.key.key_id)
        return pb.ExplainAuthorizationResponse(
            answer=convert.answer(Answer(decision, "", valid_for), revision.encode()),
            explanation=OUTCOMES[decision.reason].explanation,
            steps=[convert.step(step) for step in explanation.steps],
            generation=0 if decision.generation is None else decision.generation.number,
        )


def _question(message: pb.AuthorizeRequest | pb.Question) -> Question:
    """Return the question of a message. Raises Refusal (FIELD_INVALID)."""
    fields = Fields()
    context = convert.context(message.context, fields)
    fields.refuse_if_invalid()
    return ask(message.api_key, message.permission, message.device_id, context)


def _question_or_refusal(message: pb.Question) -> Question | Refusal:
    try:
        return _question(message)
    except Refusal as refusal:
        return refusal


def _uses(worked_out: Iterable[tuple[Question | Refusal, Answer | Refusal]]) -> Iterator[Use]:
    """Return the uses of keys that decisions were; of a key that is unknown, or its secret wrong, there is none."""
    for question, answer in worked_out:
        if isinstance(question, Question) and isinstance(answer, Answer) and answer.decision.key is not None:
            yield Use(answer.decision, question.permission.value, question.device_id)


def _loggable(question: Question, answer: Answer) -> dict[str, object]:
    """Return what the log says of a decision."""
    key = answer.decision.key
    return _notes(
        question.permission.value, answer.decision.reason, None if key is None else key.key_id, answer.decision_id
    )


def _notes(permission: str, reason: Reason, key_id: str | None, decision_id: str) -> dict[str, object]:
    return {
        "permission": permission,
        "decision": "ALLOW" if reason is Reason.PERMITTED else "DENY",
        "reason": reason.name,
        "key_id": key_id,
        "decision_id": decision_id,
    }


def _error(refusal: Refusal) -> pb.BatchAnswer:
    return pb.BatchAnswer(
        error=pb.QuestionError(
            reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{refusal.reason.name}"),
            message=refusal.message,
            field_violations=[convert.violation(found) for found in refusal.violations],
        )
    )
