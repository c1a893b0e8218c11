"""What is written down about every change: who, what, when, why, before and after."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import IPv4Network, IPv6Network
from typing import TypeAlias

from server.domain.model import (
    Caller,
    ConnectLink,
    Device,
    Generation,
    Key,
    WebhookEndpoint,
    WebhookSecret,
    Workspace,
)

Json: TypeAlias = "str | int | bool | list[Json] | dict[str, Json] | None"
Entity = Workspace | Key | Device | ConnectLink | Caller | WebhookEndpoint


class EventType(Enum):
    """What happened, by the name that readers of the log use."""

    WORKSPACE_CREATED = "workspace.created"
    WORKSPACE_UPDATED = "workspace.updated"
    KEY_CREATED = "key.created"
    KEY_UPDATED = "key.updated"
    KEY_SUSPENDED = "key.suspended"
    KEY_RESUMED = "key.resumed"
    KEY_ROTATED = "key.rotated"
    KEY_GENERATION_RETIRED = "key.generation_retired"
    KEY_REVOKED = "key.revoked"
    KEY_EXPOSED = "key.exposed"
    KEY_EXPOSURE_SUSPECTED = "key.exposure_suspected"
    KEY_EXPIRING = "key.expiring"
    CONNECT_LINK_CREATED = "connect_link.created"
    CONNECT_LINK_COMPLETED = "connect_link.completed"
    CONNECT_LINK_CANCELLED = "connect_link.cancelled"
    DEVICE_REGISTERED = "device.registered"
    DEVICE_UPDATED = "device.updated"
    DEVICE_TRANSFERRED = "device.transferred"
    DEVICE_REMOVED = "device.removed"
    CALLER_CREATED = "caller.created"
    CALLER_UPDATED = "caller.updated"
    CALLER_ROTATED = "caller.rotated"
    CALLER_REVOKED = "caller.revoked"
    CALLER_EXPOSED = "caller.exposed"
    END_USER_ERASED = "end_user.erased"
    WEBHOOK_ENDPOINT_CREATED = "webhook_endpoint.created"
    WEBHOOK_ENDPOINT_UPDATED = "webhook_endpoint.updated"
    WEBHOOK_ENDPOINT_SECRET_ROTATED = "webhook_endpoint.secret_rotated"  # noqa: S105 - a name
    WEBHOOK_ENDPOINT_DISABLED = "webhook_endpoint.disabled"
    WEBHOOK_ENDPOINT_DELETED = "webhook_endpoint.deleted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """Who asked for a change, on whose behalf, why, and under which request id."""

    caller_id: str
    on_behalf_of_key_id: str | None = None
    reason: str = ""
    request_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One entry of the log. `event_id` is its place there, None until it is stored."""

    event_id: int | None = None
    type: EventType
    event_time: datetime
    workspace_id: str | None
    subject_id: str
    origin: Origin
    before: Mapping[str, Json] | None
    after: Mapping[str, Json] | None


def describe(
    event_type: EventType, origin: Origin, before: Entity | None, after: Entity | None, now: datetime
) -> Event:
    """Return the event of a change from `before` to `after`; one of the two may be None."""
    subject = after if after is not None else before
    if subject is None:
        raise ValueError("an event is about something")
    return Event(
        type=event_type,
        event_time=now,
        workspace_id=None if isinstance(subject, Caller) else subject.workspace_id,
        subject_id=_identity(subject),
        origin=origin,
        before=None if before is None else snapshot(before),
        after=None if after is None else snapshot(after),
    )


def snapshot(entity: Entity | Generation | WebhookSecret) -> dict[str, Json]:
    """Return what an entity holds as JSON, without the fields that are marked secret."""
    return {
        part.name: _to_json(getattr(entity, part.name)) for part in fields(entity) if not part.metadata.get("secret")
    }


def _identity(entity: Entity) -> str:
    match entity:
        case Workspace():
            return entity.workspace_id
        case Key():
            return entity.key_id
        case Device():
            return entity.device_id
        case ConnectLink():
            return entity.connect_link_id
        case WebhookEndpoint():
            return entity.webhook_endpoint_id
        case _:
            return entity.caller_id


def _length(value: timedelta) -> str:
    """Return a length of time in exact seconds, as protobuf's JSON does: `60s`, `1.5s`."""
    seconds, rest = divmod(value, timedelta(seconds=1))
    return f"{seconds}.{rest.microseconds:06d}".rstrip("0").rstrip(".") + "s" if rest else f"{seconds}s"


def _to_json(value: object) -> Json:
    match value:
        case None | bool() | int() | str():
            return value
        case Enum():
            return str(value.value)
        case datetime():
            return value.isoformat()
        case timedelta():
            return _length(value)
        case IPv4Network() | IPv6Network():
            return str(value)
        case Generation() | WebhookSecret():
            return snapshot(value)
        case frozenset():
            return sorted((_to_json(item) for item in value), key=str)
        case tuple():
            return [_to_json(item) for item in value]
        case Mapping():
            return {str(name): _to_json(item) for name, item in sorted(value.items())}
    raise TypeError(f"an event cannot hold a {type(value).__name__}")
