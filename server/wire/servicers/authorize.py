"""AuthorizeService."""

from __future__ import annotations

import grpc
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import authorize_service_pb2_grpc, error_pb2

from server.domain.decision import Question, ask
from server.domain.errors import Refusal, invalid
from server.domain.reasons import OUTCOMES
from server.domain.validation import BATCH, Fields
from server.service.authorization import Answer, AuthorizationService
from server.wire import convert
from server.wire.rpc import CURRENT, log_part, note


class AuthorizeServicer(authorize_service_pb2_grpc.AuthorizeServiceServicer):
    """AuthorizeService, as `authorize_service.proto` describes it."""

    def __init__(self, service: AuthorizationService) -> None:
        self._service = service

    def Authorize(self, request: pb.AuthorizeRequest, context: grpc.ServicerContext) -> pb.AuthorizeResponse:
        """Answer one question."""
        question = _question(request)
        answers = self._service.answer([question], request.at_least_revision, CURRENT.get().caller_id)
        (answer,) = answers.answers
        if isinstance(answer, Refusal):
            raise answer
        note(**_loggable(question, answer))
        CURRENT.get().routine = answer.decision.allowed
        return convert.answer(answer, answers.revision.encode())

    def BatchAuthorize(
        self, request: pb.BatchAuthorizeRequest, context: grpc.ServicerContext
    ) -> pb.BatchAuthorizeResponse:
        """Answer many questions."""
        fields = Fields()
        if not 1 <= len(request.questions) <= BATCH:
            fields.fault("questions", f"must have 1 to {BATCH} entries, has {len(request.questions)}")
        fields.refuse_if_invalid()
        questions = [_question_or_refusal(question) for question in request.questions]
        answers = self._service.answer(questions, request.at_least_revision, CURRENT.get().caller_id)
        revision = answers.revision.encode()
        for question, answer in zip(questions, answers.answers, strict=True):
            if isinstance(question, Question) and isinstance(answer, Answer) and not answer.decision.allowed:
                log_part(**_loggable(question, answer))
            elif isinstance(answer, Refusal):
                log_part(error_reason=answer.reason.name, **answer.metadata)
        allowed = sum(isinstance(answer, Answer) and answer.decision.allowed for answer in answers.answers)
        note(questions=len(questions), allowed=allowed)
        CURRENT.get().routine = allowed == len(questions)
        return pb.BatchAuthorizeResponse(
            answers=[_batch_answer(answer, revision) for answer in answers.answers], revision=revision
        )

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


def _loggable(question: Question, answer: Answer) -> dict[str, object]:
    """Return what the log says of a decision."""
    decision = answer.decision
    return {
        "permission": question.permission.value,
        "decision": "ALLOW" if decision.allowed else "DENY",
        "reason": decision.reason.name,
        "key_id": None if decision.key is None else decision.key.key_id,
        "decision_id": answer.decision_id,
    }


def _batch_answer(answer: Answer | Refusal, revision: str) -> pb.BatchAnswer:
    if isinstance(answer, Answer):
        return pb.BatchAnswer(answer=convert.answer(answer, revision))
    return pb.BatchAnswer(
        error=pb.QuestionError(
            reason=error_pb2.ErrorReason.Value(f"ERROR_REASON_{answer.reason.name}"),
            message=answer.message,
            field_violations=[convert.violation(found) for found in answer.violations],
        )
    )
