"""From questions to messages of the service, and from its answers to decisions. No connection, no clock."""

from __future__ import annotations

import grpc
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import key_pb2, request_context_pb2

from texture_auth.decision import AuthorizedKey, Context, Decision, DeviceScope, Outcome

_OUTCOMES = {pb.DECISION_ALLOW: Outcome.ALLOWED, pb.DECISION_DENY: Outcome.DENIED}
_HTTP_UNAVAILABLE = 503


def request_of(
    api_key: str, permission: str, device_id: str, context: Context | None, at_least_revision: str
) -> pb.AuthorizeRequest:
    """Return the message that asks."""
    request = pb.AuthorizeRequest(
        api_key=api_key, permission=permission, device_id=device_id, at_least_revision=at_least_revision
    )
    if context is not None:
        request.context.CopyFrom(context_message(context))
    return request


def context_message(context: Context) -> request_context_pb2.RequestContext:
    """Return a context as the service takes it."""
    return request_context_pb2.RequestContext(
        client_ip=context.client_ip,
        user_agent=context.user_agent,
        origin=context.origin,
        sec_fetch_site=context.sec_fetch_site,
        sec_fetch_mode=context.sec_fetch_mode,
        sec_fetch_dest=context.sec_fetch_dest,
        sec_fetch_user=context.sec_fetch_user,
    )


def decision_of(answer: pb.AuthorizeResponse) -> Decision:
    """Return what an answer says. One of a kind that this client does not know is no answer."""
    outcome = _OUTCOMES.get(answer.decision, Outcome.UNANSWERED)
    if outcome is Outcome.UNANSWERED:
        return unanswered("ANSWER_UNKNOWN", "the service answered with a decision that this client does not know")
    return Decision(
        outcome=outcome,
        reason=_name(pb.Reason, answer.reason, "REASON_"),
        http_status_code=answer.http_status_code,
        missing_permission=answer.missing_permission,
        key=_key(answer.key) if answer.HasField("key") else None,
        device_scope=_scope(answer.device_scope) if answer.HasField("device_scope") else None,
        revision=answer.revision,
        valid_for=answer.valid_for.ToTimedelta() if answer.HasField("valid_for") else None,
        decision_id=answer.decision_id,
    )


def unanswered(reason: str, message: str, code: grpc.StatusCode | None = None) -> Decision:
    """Return the no of a question that has no answer."""
    return Decision(
        outcome=Outcome.UNANSWERED, reason=reason, http_status_code=_HTTP_UNAVAILABLE, message=message, code=code
    )


def decision_of_error(error: grpc.RpcError) -> Decision:
    """Return the no that an error is."""
    if not isinstance(error, grpc.Call):
        return unanswered("UNKNOWN", "the call failed", grpc.StatusCode.UNKNOWN)
    reason = error.code().name
    status = rpc_status.from_call(error)
    for packed in () if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        if packed.Unpack(info):
            reason = info.reason
    return unanswered(reason, error.details() or "", error.code())


def _key(key: pb.AuthorizedKey) -> AuthorizedKey:
    return AuthorizedKey(
        key_id=key.key_id,
        kind=_name(key_pb2.KeyKind, key.kind, "KEY_KIND_"),
        workspace_id=key.workspace_id,
        reference_id=key.reference_id,
    )


def _scope(scope: pb.DeviceScope) -> DeviceScope:
    return DeviceScope(
        workspace_id=scope.workspace_id,
        reference_id=scope.reference_id,
        manufacturers=tuple(scope.manufacturers),
    )


def _name(enum: object, value: int, prefix: str) -> str:
    known = enum.DESCRIPTOR.values_by_number.get(value)  # type: ignore[attr-defined]
    return known.name.removeprefix(prefix) if known is not None else f"UNKNOWN_{value}"
