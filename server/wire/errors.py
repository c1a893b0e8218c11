"""From refusals and failures to gRPC statuses."""

from __future__ import annotations

import secrets
from collections.abc import Iterable

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from server.domain.errors import ErrorReason, Refusal, Violation
from server.store.contract import OutcomeUnknown, StoreUnavailable, seconds_left

DOMAIN = "auth.texture"
RETRY_SECONDS = 1
MAXIMUM_DETAIL_BYTES = 3072

_RETRYABLE = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED})

CODES = {
    ErrorReason.FIELD_INVALID: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.MESSAGE_MALFORMED: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.MESSAGE_TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    ErrorReason.CALLER_CREDENTIAL_MISSING: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.CALLER_CREDENTIAL_MALFORMED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.CALLER_CREDENTIAL_UNKNOWN: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.CALLER_CREDENTIAL_RETIRED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.CALLER_REVOKED: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.CALLER_ROLE_MISSING: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.ACTOR_NOT_FOUND: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.ACTOR_NOT_LIVE: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.ACTOR_PERMISSION_MISSING: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.ACTOR_AUTHORITY_EXCEEDED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.API_KEY_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.REFERENCE_ID_NOT_PERMITTED: grpc.StatusCode.PERMISSION_DENIED,
    ErrorReason.WORKSPACE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.KEY_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.DEVICE_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.CONNECT_LINK_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.CALLER_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.REQUEST_REPEATED: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.WORKSPACE_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.CALLER_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.KEY_IS_REVOKED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.KEY_IS_EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.ROTATION_IN_PROGRESS: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CONNECT_LINK_COMPLETED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CONNECT_LINK_CANCELLED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CONNECT_LINK_EXPIRED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CONNECT_LINK_KEY_NOT_LIVE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.REDIRECT_URI_NOT_REGISTERED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.DEVICE_OWNED_BY_ANOTHER: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.REVISION_NOT_VERIFIABLE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CALLER_IS_REVOKED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.STORE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.PEPPER_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.INTERNAL_FAULT: grpc.StatusCode.INTERNAL,
    ErrorReason.DEADLINE_TOO_SHORT: grpc.StatusCode.DEADLINE_EXCEEDED,
    ErrorReason.OVERLOADED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    ErrorReason.MATCHES_CHANGED: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.MATCHES_TOO_MANY: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CALLER_CERTIFICATE_UNKNOWN: grpc.StatusCode.UNAUTHENTICATED,
    ErrorReason.CERTIFICATE_NAME_TAKEN: grpc.StatusCode.ALREADY_EXISTS,
    ErrorReason.OUTCOME_UNKNOWN: grpc.StatusCode.UNAVAILABLE,
    ErrorReason.WEBHOOK_ENDPOINT_NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    ErrorReason.WEBHOOK_ENDPOINTS_TOO_MANY: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.ROTATION_IN_USE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.ROTATION_NOT_PROVEN: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.CURSOR_EXPIRED: grpc.StatusCode.OUT_OF_RANGE,
    ErrorReason.CURSOR_NOT_VERIFIABLE: grpc.StatusCode.FAILED_PRECONDITION,
    ErrorReason.SHUTTING_DOWN: grpc.StatusCode.UNAVAILABLE,
}


def as_refusal(error: Exception) -> Refusal:
    """Return what a caller is told of any failure. An unforeseen one tells nothing but an id to find it in the log."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, OutcomeUnknown):
        return Refusal(
            ErrorReason.OUTCOME_UNKNOWN,
            "the change may have been made: the database's answer was lost; retry with the same request_id",
        )
    if isinstance(error, StoreUnavailable) and not seconds_left():
        return Refusal(ErrorReason.DEADLINE_TOO_SHORT, "the deadline passed while the call waited for the database")
    if isinstance(error, StoreUnavailable):
        return Refusal(ErrorReason.STORE_UNAVAILABLE, "the database cannot be asked; nothing was decided, retry")
    error_id = secrets.token_hex(8)
    return Refusal(
        ErrorReason.INTERNAL_FAULT,
        f"a fault of this service; its log has the details under {error_id}",
        metadata={"error_id": error_id},
    )


def status_of(refusal: Refusal) -> grpc.Status:
    """Return the rich status of a refusal: ErrorInfo always, BadRequest and RetryInfo where they apply."""
    code = CODES[refusal.reason]
    details: list[Message] = [
        error_details_pb2.ErrorInfo(reason=refusal.reason.name, domain=DOMAIN, metadata=refusal.metadata)
    ]
    if refusal.violations:
        details.append(_bad_request(refusal.violations))
    if code in _RETRYABLE:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=RETRY_SECONDS)))
    return rpc_status.to_status(
        status_pb2.Status(code=code.value[0], message=refusal.message, details=_packed(details))
    )


def _bad_request(violations: tuple[Violation, ...]) -> error_details_pb2.BadRequest:
    """Return the first violations, as many as fit: errors travel in metadata, of which clients accept 8 KiB."""
    message = error_details_pb2.BadRequest()
    for violation in violations:
        message.field_violations.add(field=violation.field, description=violation.description)
        if message.ByteSize() > MAXIMUM_DETAIL_BYTES:
            message.field_violations.pop()
            break
    return message


def _packed(messages: Iterable[Message]) -> Iterable[any_pb2.Any]:
    for message in messages:
        packed = any_pb2.Any()
        packed.Pack(message)
        yield packed
