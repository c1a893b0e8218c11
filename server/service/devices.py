"""Who owns which device."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from server.domain.errors import ErrorReason, Refusal
from server.domain.events import Event, EventType, Origin, describe
from server.domain.model import Device
from server.domain.token import redact
from server.domain.validation import Fields
from server.service.base import Call, Listing, Mutation, Resources, require_workspace
from server.store.contract import DeviceFilter, Reader, Writer

# How many ids an error names.
_NAMED_IDS = 10


@dataclass(frozen=True, slots=True)
class Registration:
    """A device to record. An empty manufacturer means unknown."""

    device_id: str
    reference_id: str
    manufacturer: str


def check_registrations(fields: Fields, field: str, registrations: Sequence[Registration]) -> None:
    """Note what is wrong with devices to record, their owners apart."""
    fields.batch(field, [registration.device_id for registration in registrations])
    for index, registration in enumerate(registrations):
        fields.device_id(f"{field}[{index}].device_id", registration.device_id)
        fields.manufacturer(f"{field}[{index}].manufacturer", registration.manufacturer)


def record_devices(
    writer: Writer, origin: Origin, workspace_id: str, registrations: Sequence[Registration], now: datetime
) -> tuple[Device, ...]:
    """Record devices in a transaction, and return all of them as they are then, in order.

    Raises Refusal (DEVICE_OWNED_BY_ANOTHER), never moving a device that somebody else has.
    """
    existing = writer.devices([registration.device_id for registration in registrations])
    taken = []
    devices = []
    changed = []
    events: list[Event] = []
    for registration in registrations:
        before = existing.get(registration.device_id)
        if before is None:
            after = Device(
                device_id=registration.device_id,
                workspace_id=workspace_id,
                reference_id=registration.reference_id,
                manufacturer=registration.manufacturer,
                create_time=now,
                update_time=now,
            )
            events.append(describe(EventType.DEVICE_REGISTERED, origin, None, after, now))
            changed.append(after)
        elif (before.workspace_id, before.reference_id) != (workspace_id, registration.reference_id):
            taken.append(registration.device_id)
            continue
        elif registration.manufacturer not in ("", before.manufacturer):
            after = replace(before, manufacturer=registration.manufacturer, update_time=now)
            events.append(describe(EventType.DEVICE_UPDATED, origin, before, after, now))
            changed.append(after)
        else:
            after = before
        devices.append(after)
    if taken:
        raise _owned_by_another(taken)
    if changed:
        writer.put_devices(changed)
        writer.record(events)
    return tuple(devices)


class DeviceService:
    """Records, finds, moves and forgets devices."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def register_devices(
        self, call: Call, workspace_id: str, registrations: Sequence[Registration]
    ) -> Mutation[tuple[Device, ...]]:
        """Record devices. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, DEVICE_OWNED_BY_ANOTHER."""
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        check_registrations(fields, "devices", registrations)
        for index, registration in enumerate(registrations):
            fields.visible(f"devices[{index}].reference_id", registration.reference_id)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> tuple[Device, ...]:
            require_workspace(writer, workspace_id)
            return record_devices(writer, call.origin, workspace_id, registrations, now)

        device_ids = [registration.device_id for registration in registrations]
        return self._resources.carry_out(call, work, _no_id, _as_they_are(device_ids))

    def get_device(self, device_id: str) -> Device:
        """Return a device. Raises Refusal (DEVICE_NOT_FOUND)."""
        with self._resources.store.read() as reader:
            device = reader.devices([device_id]).get(device_id)
        if device is None:
            raise _not_found([device_id])
        return device

    def list_devices(
        self,
        workspace_id: str,
        reference_id: str,
        manufacturers: Sequence[str],
        page_size: int,
        page_token: str,
    ) -> Listing[Device]:
        """List the devices of a workspace. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND."""
        fields = Fields()
        fields.required("workspace_id", workspace_id)
        if reference_id:
            fields.visible("reference_id", reference_id)
        makers = fields.manufacturers("manufacturers", manufacturers)
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        scope = ("devices", workspace_id, reference_id, sorted(makers))
        after = tokens.decode(page_token, *scope)
        which = DeviceFilter(workspace_id=workspace_id, reference_id=reference_id or None, manufacturers=makers)
        with self._resources.store.read() as reader:
            require_workspace(reader, workspace_id)
            page = reader.list_devices(which, after, limit)
        return Listing(page.rows, tokens.encode(page.next, *scope))

    def transfer_devices(
        self,
        call: Call,
        workspace_id: str,
        reference_id: str,
        device_ids: Sequence[str],
        new_workspace_id: str,
        new_reference_id: str,
    ) -> Mutation[tuple[Device, ...]]:
        """Give devices to another end user. Refusals: see DeviceService.TransferDevices."""
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        fields.required("reference_id", reference_id)
        fields.visible("new_reference_id", new_reference_id)
        fields.batch("device_ids", device_ids)
        fields.refuse_if_invalid()
        target_id = new_workspace_id or workspace_id

        def work(writer: Writer, now: datetime) -> tuple[Device, ...]:
            require_workspace(writer, workspace_id)
            require_workspace(writer, target_id)
            owned = _require_devices(writer, workspace_id, device_ids)
            others = [device_id for device_id, device in owned.items() if device.reference_id != reference_id]
            if others:
                raise _owned_by_another(others)
            if (target_id, new_reference_id) == (workspace_id, reference_id):
                return tuple(owned.values())
            moved = [
                replace(device, workspace_id=target_id, reference_id=new_reference_id, update_time=now)
                for device in owned.values()
            ]
            writer.put_devices(moved)
            writer.record(
                describe(EventType.DEVICE_TRANSFERRED, call.origin, owned[after.device_id], after, now)
                for after in moved
            )
            return tuple(moved)

        return self._resources.carry_out(call, work, _no_id, _as_they_are(device_ids), narrows=True)

    def remove_devices(
        self, call: Call, workspace_id: str, device_ids: Sequence[str], allow_missing: bool
    ) -> Mutation[tuple[tuple[str, ...], datetime]]:
        """Forget devices, and return the ids that were there, and when.

        Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, DEVICE_NOT_FOUND.
        """
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        fields.batch("device_ids", device_ids)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> tuple[tuple[str, ...], datetime]:
            require_workspace(writer, workspace_id)
            wanted: Sequence[str] = device_ids
            if allow_missing:
                found = writer.devices(device_ids)
                wanted = [
                    device_id
                    for device_id in device_ids
                    if device_id in found and found[device_id].workspace_id == workspace_id
                ]
            owned = _require_devices(writer, workspace_id, wanted)
            if owned:
                writer.remove_devices(tuple(owned))
                writer.record(
                    describe(EventType.DEVICE_REMOVED, call.origin, device, None, now) for device in owned.values()
                )
            return tuple(owned), now

        return self._resources.carry_out(call, work, _no_id, lambda _writer, _id, now: ((), now), narrows=True)


def _require_devices(reader: Reader, workspace_id: str, device_ids: Sequence[str]) -> Mapping[str, Device]:
    """Return devices of a workspace, in the order of their ids. Raises Refusal (DEVICE_NOT_FOUND) for any other."""
    found = reader.devices(device_ids)
    missing = [
        device_id for device_id in device_ids if device_id not in found or found[device_id].workspace_id != workspace_id
    ]
    if missing:
        raise _not_found(missing)
    return {device_id: found[device_id] for device_id in device_ids}


def _as_they_are(device_ids: Sequence[str]) -> Callable[[Writer, str, datetime], tuple[Device, ...]]:
    def again(writer: Writer, _entity_id: str, _now: datetime) -> tuple[Device, ...]:
        found = writer.devices(device_ids)
        return tuple(found[device_id] for device_id in device_ids if device_id in found)

    return again


def _no_id(_value: object) -> str:
    """Return nothing: a repeat knows its devices from the request, which is the same."""
    return ""


def _not_found(device_ids: Collection[str]) -> Refusal:
    return Refusal(
        ErrorReason.DEVICE_NOT_FOUND,
        f"there is no such device in the workspace: {_some(device_ids)}",
        metadata={"device_ids": _some(device_ids)},
    )


def _owned_by_another(device_ids: Collection[str]) -> Refusal:
    return Refusal(
        ErrorReason.DEVICE_OWNED_BY_ANOTHER,
        f"belongs to another end user or workspace: {_some(device_ids)}",
        metadata={"device_ids": _some(device_ids)},
    )


def _some(device_ids: Collection[str]) -> str:
    """Name the first few ids, shortened, since a caller may have sent anything."""
    named = [redact(ascii(device_id)[1:-1][:128]) for device_id in list(device_ids)[:_NAMED_IDS]]
    more = len(device_ids) - len(named)
    return ", ".join(named) + (f" and {more} more" if more else "")
