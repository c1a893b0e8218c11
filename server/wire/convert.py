"""Between messages and the domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from enum import Enum
from typing import Any

from google.protobuf import duration_pb2, struct_pb2, timestamp_pb2
from google.protobuf.message import Message
from texture.auth.v1 import (
    authorize_service_pb2,
    caller_pb2,
    connect_link_pb2,
    device_pb2,
    event_pb2,
    key_pb2,
    key_service_pb2,
    propagation_pb2,
    request_context_pb2,
    webhook_pb2,
    workspace_pb2,
)

from server.domain.errors import Violation, invalid
from server.domain.events import Event
from server.domain.explanation import Step, StepResult
from server.domain.exposure import Context
from server.domain.kinds import Environment, ExposurePolicy, KeyKind, Role
from server.domain.leaks import ExposureOutcome
from server.domain.lifecycle import Rotation
from server.domain.links import ConnectLinkState
from server.domain.model import (
    Caller,
    Device,
    Generation,
    Key,
    KeyState,
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookDisableReason,
    WebhookEndpoint,
    WebhookEndpointState,
    Workspace,
)
from server.domain.reasons import OUTCOMES, Reason
from server.domain.validation import Fields
from server.service.authorization import Answer
from server.service.barrier import Propagation
from server.service.connect import LinkView


class EnumMap:
    """A domain enum and its proto enum, matched by name; the proto's zero value is None."""

    def __init__(self, domain: type[Enum], proto: Any, prefix: str) -> None:
        self._numbers = {member: proto.Value(f"{prefix}_{member.name}") for member in domain}
        self._members = {number: member for member, number in self._numbers.items()}
        self._prefix = prefix

    def to_proto(self, member: Enum) -> Any:
        """Return the number of a member."""
        return self._numbers[member]

    def to_domain(self, field: str, number: int) -> Any:
        """Return the member of a number, None for zero. Raises Refusal (FIELD_INVALID) for an unknown one."""
        if number == 0:
            return None
        if number not in self._members:
            names = ", ".join(f"{self._prefix}_{member.name}" for member in self._numbers)
            raise invalid(field, f"must be one of {names}")
        return self._members[number]


KIND = EnumMap(KeyKind, key_pb2.KeyKind, "KEY_KIND")
STATE = EnumMap(KeyState, key_pb2.KeyState, "KEY_STATE")
ENVIRONMENT = EnumMap(Environment, workspace_pb2.Environment, "ENVIRONMENT")
POLICY = EnumMap(ExposurePolicy, workspace_pb2.ExposurePolicy, "EXPOSURE_POLICY")
EXPOSURE_OUTCOME = EnumMap(ExposureOutcome, key_service_pb2.ExposureOutcome, "EXPOSURE_OUTCOME")
ROLE = EnumMap(Role, caller_pb2.Role, "ROLE")
LINK_STATE = EnumMap(ConnectLinkState, connect_link_pb2.ConnectLinkState, "CONNECT_LINK_STATE")
STEP_RESULT = EnumMap(StepResult, authorize_service_pb2.StepResult, "STEP_RESULT")
WEBHOOK_STATE = EnumMap(WebhookEndpointState, webhook_pb2.WebhookEndpointState, "WEBHOOK_ENDPOINT_STATE")
WEBHOOK_DISABLE_REASON = EnumMap(WebhookDisableReason, webhook_pb2.WebhookDisableReason, "WEBHOOK_DISABLE_REASON")
DELIVERY_STATE = EnumMap(WebhookDeliveryState, webhook_pb2.WebhookDeliveryState, "WEBHOOK_DELIVERY_STATE")
REASON = EnumMap(Reason, authorize_service_pb2.Reason, "REASON")


def timestamp(instant: datetime | None) -> timestamp_pb2.Timestamp | None:
    """Return the message of an instant."""
    if instant is None:
        return None
    message = timestamp_pb2.Timestamp()
    message.FromDatetime(instant)
    return message


def instant(request: Message, field: str, path: str) -> datetime | None:
    """Return the instant in a field, None where it is unset. Raises Refusal (FIELD_INVALID).

    What is finer than a microsecond is cut off: an expiry comes a little early rather than late.
    """
    if not request.HasField(field):
        return None
    try:
        moment: datetime = getattr(request, field).ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise invalid(path, "is not a valid time") from None
    return moment


def duration(length: timedelta | None) -> duration_pb2.Duration | None:
    """Return the message of a length of time."""
    if length is None:
        return None
    message = duration_pb2.Duration()
    message.FromTimedelta(length)
    return message


def length_of_time(request: Message, field: str, path: str) -> timedelta | None:
    """Return the length of time in a field, None where it is unset. Raises Refusal (FIELD_INVALID)."""
    if not request.HasField(field):
        return None
    try:
        message = getattr(request, field)
        message.ToJsonString()  # raises where the parts contradict each other, which the next line does not
        length: timedelta = message.ToTimedelta()
    except (ValueError, OverflowError):
        raise invalid(path, "is not a valid duration") from None
    return length


def rotation(request: Message) -> Rotation:
    """Return what a request asks of a rotation. Raises Refusal (FIELD_INVALID)."""
    overlap = length_of_time(request, "overlap", "overlap")
    return Rotation(overlap=timedelta() if overlap is None else overlap, force=getattr(request, "force", False))


_NOTHING_SEEN = Context()


def context(message: request_context_pb2.RequestContext, fields: Fields, path: str = "context") -> Context:
    """Return what a gateway saw, and note what is wrong with it."""
    if not message.ByteSize():
        return _NOTHING_SEEN
    return Context(
        client_ip=fields.address(f"{path}.client_ip", message.client_ip),
        user_agent=fields.header(f"{path}.user_agent", message.user_agent),
        origin=fields.header(f"{path}.origin", message.origin),
        sec_fetch_site=fields.header(f"{path}.sec_fetch_site", message.sec_fetch_site),
        sec_fetch_mode=fields.header(f"{path}.sec_fetch_mode", message.sec_fetch_mode),
        sec_fetch_dest=fields.header(f"{path}.sec_fetch_dest", message.sec_fetch_dest),
        sec_fetch_user=fields.header(f"{path}.sec_fetch_user", message.sec_fetch_user),
    )


def answer(given: Answer, revision: str) -> authorize_service_pb2.AuthorizeResponse:
    """Return the message of an answer."""
    decision = given.decision
    response = authorize_service_pb2.AuthorizeResponse(
        decision=(authorize_service_pb2.DECISION_ALLOW if decision.allowed else authorize_service_pb2.DECISION_DENY),
        reason=REASON.to_proto(decision.reason),
        http_status_code=OUTCOMES[decision.reason].http_status_code,
        missing_permission="" if decision.missing_permission is None else decision.missing_permission.value,
        revision=revision,
        valid_for=duration(given.valid_for),
        decision_id=given.decision_id,
    )
    if decision.key is not None:
        response.key.key_id = decision.key.key_id
        response.key.kind = KIND.to_proto(decision.key.kind)
        response.key.workspace_id = decision.key.workspace_id
        response.key.reference_id = decision.key.reference_id or ""
    if decision.device_scope is not None:
        response.device_scope.workspace_id = decision.device_scope.workspace_id
        response.device_scope.reference_id = decision.device_scope.reference_id or ""
        response.device_scope.manufacturers.extend(sorted(decision.device_scope.manufacturers))
    return response


def step(taken: Step) -> authorize_service_pb2.ExplanationStep:
    """Return the message of a step of an explanation."""
    return authorize_service_pb2.ExplanationStep(
        name=taken.name,
        result=STEP_RESULT.to_proto(taken.result),
        reason=REASON.to_proto(taken.reason) if taken.reason else authorize_service_pb2.REASON_UNSPECIFIED,
        detail=taken.detail,
    )


def violation(found: Violation) -> authorize_service_pb2.FieldViolation:
    """Return the message of a violation."""
    return authorize_service_pb2.FieldViolation(field=found.field, description=found.description)


def propagation(given: Propagation) -> propagation_pb2.Propagation:
    """Return the message of a proof."""
    return propagation_pb2.Propagation(
        complete=given.complete,
        processes_acknowledged=given.acknowledged,
        processes_fenced=given.fenced,
        elapsed=duration(given.elapsed),
    )


def key(given: Key, now: datetime) -> key_pb2.Key:
    """Return the message of a key, its state as of `now`."""
    return key_pb2.Key(
        key_id=given.key_id,
        workspace_id=given.workspace_id,
        kind=KIND.to_proto(given.kind),
        state=STATE.to_proto(given.state_at(now)),
        display_name=given.display_name,
        description=given.description,
        labels=given.labels,
        permissions=sorted(permission.value for permission in given.permissions),
        allowed_cidrs=[str(network) for network in given.allowed_networks],
        allowed_manufacturers=sorted(given.allowed_manufacturers),
        redirect_uris=given.redirect_uris,
        reference_id=given.reference_id or "",
        connect_link_id=given.connect_link_id or "",
        expire_time=timestamp(given.expire_time),
        generations=_generations(given.generations),
        create_time=timestamp(given.create_time),
        update_time=timestamp(given.update_time),
        suspend_time=timestamp(given.suspend_time),
        revoke_time=timestamp(given.revoke_time),
        expose_time=timestamp(given.expose_time),
        state_reason=given.state_reason,
        created_by_caller_id=given.created_by_caller_id,
        created_by_key_id=given.created_by_key_id or "",
    )


def _generations(given: Iterable[Generation]) -> Iterable[key_pb2.KeyGeneration]:
    for generation in given:
        yield key_pb2.KeyGeneration(
            generation=generation.number,
            last_four=generation.last_four,
            create_time=timestamp(generation.create_time),
            retire_time=timestamp(generation.retire_time),
        )


def workspace(given: Workspace) -> workspace_pb2.Workspace:
    """Return the message of a workspace."""
    return workspace_pb2.Workspace(
        workspace_id=given.workspace_id,
        display_name=given.display_name,
        environment=ENVIRONMENT.to_proto(given.environment),
        redirect_uris=given.redirect_uris,
        exposure_policy=POLICY.to_proto(given.exposure_policy),
        scoped_key_lifetime=duration(given.scoped_key_lifetime),
        connect_link_lifetime=duration(given.connect_link_lifetime),
        create_time=timestamp(given.create_time),
        update_time=timestamp(given.update_time),
    )


def device(given: Device) -> device_pb2.Device:
    """Return the message of a device."""
    return device_pb2.Device(
        device_id=given.device_id,
        workspace_id=given.workspace_id,
        reference_id=given.reference_id,
        manufacturer=given.manufacturer,
        create_time=timestamp(given.create_time),
        update_time=timestamp(given.update_time),
    )


def connect_link(view: LinkView) -> connect_link_pb2.ConnectLink:
    """Return the message of a link."""
    link = view.link
    return connect_link_pb2.ConnectLink(
        connect_link_id=link.connect_link_id,
        workspace_id=link.workspace_id,
        key_id=link.key_id,
        reference_id=link.reference_id,
        redirect_uri=link.redirect_uri,
        client_state=link.client_state,
        state=LINK_STATE.to_proto(view.state),
        create_time=timestamp(link.create_time),
        expire_time=timestamp(link.expire_time),
        end_time=timestamp(link.complete_time or link.cancel_time),
        scoped_key_id=link.scoped_key_id or "",
    )


def caller(given: Caller) -> caller_pb2.Caller:
    """Return the message of a caller."""
    return caller_pb2.Caller(
        caller_id=given.caller_id,
        display_name=given.display_name,
        roles=sorted(ROLE.to_proto(role) for role in given.roles),
        certificate_names=sorted(given.certificate_names),
        key_id=given.key_id,
        generations=_generations(given.generations),
        create_time=timestamp(given.create_time),
        update_time=timestamp(given.update_time),
        revoke_time=timestamp(given.revoke_time),
        revoke_reason=given.revoke_reason,
    )


_NO_REASON = webhook_pb2.WEBHOOK_DISABLE_REASON_UNSPECIFIED


def webhook_endpoint(given: WebhookEndpoint) -> webhook_pb2.WebhookEndpoint:
    """Return the message of a webhook endpoint."""
    reason = given.disable_reason
    return webhook_pb2.WebhookEndpoint(
        webhook_endpoint_id=given.webhook_endpoint_id,
        workspace_id=given.workspace_id,
        url=given.url,
        description=given.description,
        event_types=sorted(given.event_types),
        state=WEBHOOK_STATE.to_proto(given.state),
        disable_reason=WEBHOOK_DISABLE_REASON.to_proto(reason) if reason else _NO_REASON,
        secrets=(
            webhook_pb2.WebhookSecret(
                number=secret.number,
                create_time=timestamp(secret.create_time),
                retire_time=timestamp(secret.retire_time),
            )
            for secret in given.secrets
        ),
        create_time=timestamp(given.create_time),
        update_time=timestamp(given.update_time),
    )


def webhook_delivery(given: WebhookDelivery) -> webhook_pb2.WebhookDelivery:
    """Return the message of a webhook delivery."""
    return webhook_pb2.WebhookDelivery(
        webhook_delivery_id=given.webhook_delivery_id,
        webhook_endpoint_id=given.webhook_endpoint_id,
        event_id="" if given.event_id is None else str(given.event_id),
        event_type=given.event_type,
        state=DELIVERY_STATE.to_proto(given.state),
        attempts=given.attempts,
        next_attempt_time=timestamp(given.next_attempt_time),
        last_attempt_time=timestamp(given.last_attempt_time),
        last_http_status_code=given.last_http_status_code or 0,
        last_error=given.last_error,
        create_time=timestamp(given.create_time),
    )


def event(given: Event) -> event_pb2.Event:
    """Return the message of an event."""
    return event_pb2.Event(
        event_id=str(given.event_id),
        type=given.type.value,
        event_time=timestamp(given.event_time),
        workspace_id=given.workspace_id or "",
        subject_id=given.subject_id,
        caller_id=given.origin.caller_id,
        on_behalf_of_key_id=given.origin.on_behalf_of_key_id or "",
        reason=given.origin.reason,
        request_id=given.origin.request_id,
        before=_struct(given.before),
        after=_struct(given.after),
    )


def _struct(snapshot: Mapping[str, Any] | None) -> struct_pb2.Struct | None:
    if snapshot is None:
        return None
    message = struct_pb2.Struct()
    message.update(snapshot)
    return message
