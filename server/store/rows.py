"""Between rows and the domain."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_network
from typing import Any

from server.domain.events import Event, EventType, Origin
from server.domain.kinds import Environment, ExposurePolicy, KeyKind, Permission, Role
from server.domain.model import Caller, ConnectLink, Device, Generation, Key, KeyState, Workspace

Row = Mapping[str, Any]


def workspace_row(workspace: Workspace) -> dict[str, Any]:
    """Return the columns of a workspace."""
    return {
        "workspace_id": workspace.workspace_id,
        "display_name": workspace.display_name,
        "environment": workspace.environment.value,
        "redirect_uris": workspace.redirect_uris,
        "exposure_policy": workspace.exposure_policy.value,
        "scoped_key_lifetime": workspace.scoped_key_lifetime,
        "connect_link_lifetime": workspace.connect_link_lifetime,
        "create_time": workspace.create_time,
        "update_time": workspace.update_time,
    }


def to_workspace(row: Row) -> Workspace:
    """Return the workspace of a row."""
    return Workspace(
        workspace_id=row["workspace_id"],
        display_name=row["display_name"],
        environment=Environment(row["environment"]),
        redirect_uris=tuple(row["redirect_uris"]),
        exposure_policy=ExposurePolicy(row["exposure_policy"]),
        scoped_key_lifetime=row["scoped_key_lifetime"],
        connect_link_lifetime=row["connect_link_lifetime"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def key_row(key: Key) -> dict[str, Any]:
    """Return the columns of a key; its generations and labels are rows of their own."""
    return {
        "key_id": key.key_id,
        "workspace_id": key.workspace_id,
        "kind": key.kind.value,
        "state": key.state.value,
        "display_name": key.display_name,
        "description": key.description,
        "permissions": sorted(permission.value for permission in key.permissions),
        "allowed_networks": [str(network) for network in key.allowed_networks],
        "allowed_manufacturers": sorted(key.allowed_manufacturers),
        "redirect_uris": key.redirect_uris,
        "reference_id": key.reference_id,
        "connect_link_id": key.connect_link_id,
        "expire_time": key.expire_time,
        "create_time": key.create_time,
        "update_time": key.update_time,
        "suspend_time": key.suspend_time,
        "revoke_time": key.revoke_time,
        "expose_time": key.expose_time,
        "state_reason": key.state_reason,
        "created_by_caller_id": key.created_by_caller_id,
        "created_by_key_id": key.created_by_key_id,
    }


def to_key(row: Row, generations: Iterable[Row], labels: Mapping[str, str]) -> Key:
    """Return the key of a row."""
    return Key(
        key_id=row["key_id"],
        workspace_id=row["workspace_id"],
        kind=KeyKind(row["kind"]),
        state=KeyState(row["state"]),
        display_name=row["display_name"],
        description=row["description"],
        labels=labels,
        permissions=frozenset(Permission(name) for name in row["permissions"]),
        allowed_networks=tuple(ip_network(text) for text in row["allowed_networks"]),
        allowed_manufacturers=frozenset(row["allowed_manufacturers"]),
        redirect_uris=tuple(row["redirect_uris"]),
        reference_id=row["reference_id"],
        connect_link_id=row["connect_link_id"],
        expire_time=row["expire_time"],
        generations=tuple(to_generation(generation) for generation in generations),
        create_time=row["create_time"],
        update_time=row["update_time"],
        suspend_time=row["suspend_time"],
        revoke_time=row["revoke_time"],
        expose_time=row["expose_time"],
        state_reason=row["state_reason"],
        created_by_caller_id=row["created_by_caller_id"],
        created_by_key_id=row["created_by_key_id"],
    )


def generation_row(key_id: str, generation: Generation) -> dict[str, Any]:
    """Return the columns of a generation of a key."""
    return {
        "key_id": key_id,
        "number": generation.number,
        "pepper_id": generation.pepper_id,
        "digest": generation.digest,
        "last_four": generation.last_four,
        "create_time": generation.create_time,
        "retire_time": generation.retire_time,
    }


def to_generation(row: Row) -> Generation:
    """Return the generation of a row."""
    return Generation(
        number=row["number"],
        pepper_id=row["pepper_id"],
        digest=bytes(row["digest"]),
        last_four=row["last_four"],
        create_time=row["create_time"],
        retire_time=row["retire_time"],
    )


def device_row(device: Device) -> dict[str, Any]:
    """Return the columns of a device."""
    return {
        "device_id": device.device_id,
        "workspace_id": device.workspace_id,
        "reference_id": device.reference_id,
        "manufacturer": device.manufacturer,
        "create_time": device.create_time,
        "update_time": device.update_time,
    }


def to_device(row: Row) -> Device:
    """Return the device of a row."""
    return Device(
        device_id=row["device_id"],
        workspace_id=row["workspace_id"],
        reference_id=row["reference_id"],
        manufacturer=row["manufacturer"],
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def connect_link_row(link: ConnectLink) -> dict[str, Any]:
    """Return the columns of a Connect link."""
    return {
        "connect_link_id": link.connect_link_id,
        "workspace_id": link.workspace_id,
        "key_id": link.key_id,
        "reference_id": link.reference_id,
        "redirect_uri": link.redirect_uri,
        "client_state": link.client_state,
        "pepper_id": link.pepper_id,
        "digest": link.digest,
        "create_time": link.create_time,
        "expire_time": link.expire_time,
        "complete_time": link.complete_time,
        "cancel_time": link.cancel_time,
        "scoped_key_id": link.scoped_key_id,
    }


def to_connect_link(row: Row) -> ConnectLink:
    """Return the Connect link of a row."""
    return ConnectLink(
        connect_link_id=row["connect_link_id"],
        workspace_id=row["workspace_id"],
        key_id=row["key_id"],
        reference_id=row["reference_id"],
        redirect_uri=row["redirect_uri"],
        client_state=row["client_state"],
        pepper_id=row["pepper_id"],
        digest=bytes(row["digest"]),
        create_time=row["create_time"],
        expire_time=row["expire_time"],
        complete_time=row["complete_time"],
        cancel_time=row["cancel_time"],
        scoped_key_id=row["scoped_key_id"],
    )


def caller_row(caller: Caller) -> dict[str, Any]:
    """Return the columns of a caller; its generations and certificate names are rows of their own."""
    return {
        "caller_id": caller.caller_id,
        "display_name": caller.display_name,
        "roles": sorted(role.value for role in caller.roles),
        "key_id": caller.key_id,
        "create_time": caller.create_time,
        "update_time": caller.update_time,
        "revoke_time": caller.revoke_time,
        "revoke_reason": caller.revoke_reason,
    }


def to_caller(row: Row, generations: Iterable[Row], certificate_names: Iterable[str]) -> Caller:
    """Return the caller of a row."""
    return Caller(
        caller_id=row["caller_id"],
        display_name=row["display_name"],
        roles=frozenset(Role(name) for name in row["roles"]),
        certificate_names=frozenset(certificate_names),
        key_id=row["key_id"],
        generations=tuple(to_generation(generation) for generation in generations),
        create_time=row["create_time"],
        update_time=row["update_time"],
        revoke_time=row["revoke_time"],
        revoke_reason=row["revoke_reason"],
    )


def event_row(event: Event) -> dict[str, Any]:
    """Return the columns of an event, its place in the log left to the database."""
    return {
        "type": event.type.value,
        "event_time": event.event_time,
        "workspace_id": event.workspace_id,
        "subject_kind": event.type.value.partition(".")[0],
        "subject_id": event.subject_id,
        "caller_id": event.origin.caller_id,
        "on_behalf_of_key_id": event.origin.on_behalf_of_key_id,
        "reason": event.origin.reason,
        "request_id": event.origin.request_id,
        "before": event.before,
        "after": event.after,
    }


def event_sides_row(event: Event) -> dict[str, Any]:
    """Return the columns of a stored event that may still change, and its id."""
    return {"event_id": event.event_id, "before": event.before, "after": event.after}


def to_event(row: Row) -> Event:
    """Return the event of a row."""
    return Event(
        event_id=row["event_id"],
        type=EventType(row["type"]),
        event_time=row["event_time"],
        workspace_id=row["workspace_id"],
        subject_id=row["subject_id"],
        origin=Origin(
            caller_id=row["caller_id"],
            on_behalf_of_key_id=row["on_behalf_of_key_id"],
            reason=row["reason"],
            request_id=row["request_id"],
        ),
        before=row["before"],
        after=row["after"],
    )
