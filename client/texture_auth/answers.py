"""From questions to messages of the service, and from its answers to decisions. No connection, no clock."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import error_pb2, key_pb2, request_context_pb2

from texture_auth.decision import AuthorizedKey, Context, Decision, DeviceScope, Outcome, Question

# The longest header value that the service takes. What a customer sends beyond it must not make the question invalid.
_LONGEST_HEADER = 8192
_HTTP_OK = 200
_HTTP_REFUSALS = range(400, 500)
_HTTP_UNAVAILABLE = 503
_DOMAIN = "auth.texture"
# To look up a member of an enum takes longer than to read a field of an answer.
_ALLOWED, _DENIED = Outcome.ALLOWED, Outcome.DENIED


def _names(enum: Any, prefix: str) -> Mapping[int, str]:
    # Looked up in the descriptor, a name takes as long as all the rest of an answer.
    return {value.number: value.name.removeprefix(prefix) for value in enum.DESCRIPTOR.values}


_REASONS = _names(pb.Reason, "REASON_")
_KINDS = _names(key_pb2.KeyKind, "KEY_KIND_")
_ERROR_REASONS = _names(error_pb2.ErrorReason, "ERROR_REASON_")


def request_of(
    api_key: str, permission: str, device_id: str, context: Context | None, at_least_revision: str
) -> pb.AuthorizeRequest:
    """Return the message that asks."""
    try:
        request = pb.AuthorizeRequest(
            api_key=api_key, permission=permission, device_id=device_id, at_least_revision=at_least_revision
        )
    except UnicodeEncodeError:
        request = pb.AuthorizeRequest(
            api_key=_encodable(api_key),
            permission=_encodable(permission),
            device_id=_encodable(device_id),
            at_least_revision=_encodable(at_least_revision),
        )
    if context is not None:
        request.context.CopyFrom(context_message(context))
    return request


def batch_request_of(questions: Sequence[Question], at_least_revision: str) -> pb.BatchAuthorizeRequest:
    """Return the message that asks many questions."""
    batch = pb.BatchAuthorizeRequest(at_least_revision=_encodable(at_least_revision))
    for question in questions:
        message = batch.questions.add()
        # Of the same fields, with the same numbers.
        one = request_of(question.api_key, question.permission, question.device_id, question.context, "")
        message.api_key, message.permission, message.device_id = one.api_key, one.permission, one.device_id
        if one.HasField("context"):
            message.context.CopyFrom(one.context)
    return batch


def context_message(context: Context) -> request_context_pb2.RequestContext:
    """Return a context as the service takes it."""
    return request_context_pb2.RequestContext(
        client_ip=_encodable(context.client_ip),
        user_agent=_header(context.user_agent),
        origin=_header(context.origin),
        sec_fetch_site=_header(context.sec_fetch_site),
        sec_fetch_mode=_header(context.sec_fetch_mode),
        sec_fetch_dest=_header(context.sec_fetch_dest),
        sec_fetch_user=_header(context.sec_fetch_user),
    )


def decision_of(answer: pb.AuthorizeResponse, permission: str = "") -> Decision:
    """Return what an answer says.

    One of a kind that this client does not know is no answer, nor is one that contradicts itself.
    """
    said, reason, status = answer.decision, answer.reason, answer.http_status_code
    key = _key(answer.key) if answer.HasField("key") else None
    scope = _scope(answer.device_scope) if answer.HasField("device_scope") else None
    if said == pb.DECISION_ALLOW:
        outcome = _ALLOWED
        if reason != pb.REASON_PERMITTED or status != _HTTP_OK or key is None:
            return _contradiction("an ALLOW that is not that of a permitted key")
        if permission == "devices:list" and scope is None:
            return _contradiction("an ALLOW of a list that does not say of which devices")
    elif said == pb.DECISION_DENY:
        outcome = _DENIED
        if reason == pb.REASON_PERMITTED or status not in _HTTP_REFUSALS:
            return _contradiction("a DENY with the reason or the status of an ALLOW")
    else:
        return unanswered("ANSWER_UNKNOWN", "the service answered with a decision that this client does not know")
    return Decision.of(
        {
            "outcome": outcome,
            "reason": _REASONS.get(reason) or f"UNKNOWN_{reason}",
            "http_status_code": status,
            "missing_permission": answer.missing_permission,
            "key": key,
            "device_scope": scope,
            "revision": answer.revision,
            "valid_for": answer.valid_for.ToTimedelta() if answer.HasField("valid_for") else None,
            "decision_id": answer.decision_id,
        }
    )


def decisions_of(response: pb.BatchAuthorizeResponse, questions: Sequence[Question]) -> list[Decision]:
    """Return what the answers of a batch say, in order. Where there are more or fewer than questions, none counts."""
    if len(response.answers) != len(questions):
        wrong = _contradiction(f"{len(response.answers)} answers to {len(questions)} questions")
        return [wrong] * len(questions)
    return [_decision_in_batch(answer, question) for answer, question in zip(response.answers, questions, strict=True)]


def unanswered(reason: str, message: str, code: grpc.StatusCode | None = None) -> Decision:
    """Return the no of a question that has no answer."""
    return Decision(
        outcome=Outcome.UNANSWERED, reason=reason, http_status_code=_HTTP_UNAVAILABLE, message=message, code=code
    )


def decision_of_error(error: grpc.RpcError) -> Decision:
    """Return the no that an error is, of a call by either API of gRPC."""
    if not isinstance(error, grpc.Call | grpc.aio.AioRpcError):
        return unanswered("UNKNOWN", "the call failed", grpc.StatusCode.UNKNOWN)
    code = error.code() or grpc.StatusCode.UNKNOWN
    reason, message = code.name, error.details() or ""
    for packed in _details(error.trailing_metadata()):
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        if packed.Unpack(info) and info.domain == _DOMAIN:
            reason = info.reason
        elif packed.Unpack(bad_request):
            message = _violations(bad_request.field_violations) or message
    return unanswered(reason, message, code)


def _details(trailing_metadata: Any) -> Iterable[Any]:
    """Return the details of an error. Those that cannot be read are none: the code stands without them."""
    for name, value in trailing_metadata or ():
        if name == "grpc-status-details-bin":
            try:
                return tuple(status_pb2.Status.FromString(value).details)
            except DecodeError:
                return ()
    return ()


def _decision_in_batch(answer: pb.BatchAnswer, question: Question) -> Decision:
    which = answer.WhichOneof("result")
    if which == "answer":
        return decision_of(answer.answer, question.permission)
    if which == "error":
        error = answer.error
        return unanswered(
            _ERROR_REASONS.get(error.reason) or f"UNKNOWN_{error.reason}",
            _violations(error.field_violations) or error.message,
        )
    return unanswered("ANSWER_UNKNOWN", "the service answered with a result that this client does not know")


def _contradiction(what: str) -> Decision:
    return unanswered("ANSWER_CONTRADICTORY", f"the service answered with {what}")


def _violations(violations: Any) -> str:
    return "; ".join(f"{each.field or 'message'}: {each.description}" for each in violations)


def _encodable(text: str) -> str:
    """Return what can be sent of a text. A key or an id with something else in it stays one that does not exist."""
    return text if not text or text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def _header(value: str) -> str:
    return _encodable(value and value[:_LONGEST_HEADER])


def _key(key: pb.AuthorizedKey) -> AuthorizedKey:
    return _key_of(key.key_id, key.kind, key.workspace_id, key.reference_id)


@lru_cache(1024)
def _key_of(key_id: str, kind: int, workspace_id: str, reference_id: str) -> AuthorizedKey:
    """Return a key. The same ones come again and again."""
    return AuthorizedKey(
        key_id=key_id,
        kind=_KINDS.get(kind) or f"UNKNOWN_{kind}",
        workspace_id=workspace_id,
        reference_id=reference_id,
    )


def _scope(scope: pb.DeviceScope) -> DeviceScope:
    return DeviceScope(
        workspace_id=scope.workspace_id,
        reference_id=scope.reference_id,
        manufacturers=tuple(scope.manufacturers),
    )
