"""Ending many keys at once: what an incident asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime

from server.domain import lifecycle
from server.domain.errors import ErrorReason, Refusal
from server.domain.events import EventType, describe
from server.domain.kinds import KeyKind, Permission
from server.domain.model import Key
from server.domain.revision import Revision
from server.domain.validation import LABEL_FILTERS, Fields
from server.service.base import Call, Mutation, Resources, actor_of, require_workspace
from server.store.contract import KeyFilter, Reader, Writer

# What one transaction ends at most: every other writer waits for it.
MAXIMUM = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which keys of a workspace to end, as it was said. None and empty mean any; all of them so is nothing at all."""

    kind: KeyKind | None = None
    reference_id: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    created_by_key_id: str = ""
    created_from: datetime | None = None
    created_before: datetime | None = None
    descends_from_key_id: str = ""
    connect_link_id: str = ""
    device_id: str = ""


@dataclass(frozen=True, slots=True)
class Match:
    """A key that is, or would be, ended. `last_use_time` is None where none is known."""

    key: Key
    last_use_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class Revocation:
    """How many keys were ended, and which; a repeat does not know which any more."""

    count: int
    matches: tuple[Match, ...]

    @property
    def key_ids(self) -> tuple[str, ...]:
        """Their ids."""
        return tuple(match.key.key_id for match in self.matches)


class RevocationService:
    """Ends all the keys that match a selection, or none."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def preview(self, call: Call, workspace_id: str, selection: Selection) -> tuple[Revocation, Revision]:
        """Say which keys `revoke` would end, and change nothing. Raises Refusal as `revoke` does."""
        which = self._checked(call, workspace_id, selection)
        with self._resources.store.read() as reader:
            found = _matches(reader, call, which, selection, self._resources.clock())
            last_uses = reader.last_uses([key.key_id for key in found])
            used = {key_id: last_use.time for key_id, last_use in last_uses.items()}
            return _revocation(found, used), reader.head()

    def revoke(self, call: Call, workspace_id: str, selection: Selection, expected_count: int) -> Mutation[Revocation]:
        """End the keys, if they are as many as expected. Refusals: see KeyService.RevokeKeys in `key_service.proto`."""
        which = self._checked(call, workspace_id, selection, expected_count)

        def work(writer: Writer, now: datetime) -> Revocation:
            found = _matches(writer, call, which, selection, now)
            if len(found) != expected_count:
                raise Refusal(
                    ErrorReason.MATCHES_CHANGED,
                    f"expected_count: {len(found)} keys match, not {expected_count}; nothing was revoked",
                    metadata={"expected_count": str(expected_count), "found_count": str(len(found))},
                )
            ended = [lifecycle.revoke(key, call.reason, now) for key in found]
            writer.replace_keys(ended)
            writer.record(
                describe(EventType.KEY_REVOKED, call.origin, before, after, now)
                for before, after in zip(found, ended, strict=True)
            )
            return _revocation(found, {})

        return self._resources.carry_out(
            call,
            work,
            lambda done: str(done.count),
            lambda _writer, count, _now: Revocation(int(count), ()),
            narrows=True,
        )

    def _checked(self, call: Call, workspace_id: str, selection: Selection, expected_count: int = 0) -> KeyFilter:
        """Return the filter of a selection. Raises Refusal (FIELD_INVALID), for an empty one too."""
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        if selection == Selection():
            fields.fault("filter", "must say which keys; the workspace alone is not enough")
        if selection.reference_id:
            fields.visible("filter.reference_id", selection.reference_id)
        if expected_count < 0:
            fields.fault("expected_count", "must not be negative")
        labels = fields.labels("filter.labels", selection.labels, LABEL_FILTERS)
        fields.refuse_if_invalid()
        return KeyFilter(
            workspace_id=workspace_id,
            now=self._resources.clock(),
            revoked=False,
            kind=selection.kind,
            reference_id=selection.reference_id or None,
            labels=labels,
            created_by_key_id=selection.created_by_key_id or None,
            created_from=selection.created_from,
            created_before=selection.created_before,
            descends_from_key_id=selection.descends_from_key_id or None,
            connect_link_id=selection.connect_link_id or None,
        )


def _matches(reader: Reader, call: Call, which: KeyFilter, selection: Selection, now: datetime) -> tuple[Key, ...]:
    """Return the keys that match. Raises Refusal: WORKSPACE_NOT_FOUND, ACTOR_*, MATCHES_TOO_MANY."""
    require_workspace(reader, which.workspace_id)
    actor_of(reader, call, which.workspace_id, Permission.KEYS_MANAGE, now)
    if selection.device_id:
        device = reader.devices([selection.device_id]).get(selection.device_id)
        if device is None or device.workspace_id != which.workspace_id:
            return ()
        if which.reference_id not in (None, device.reference_id) or which.kind not in (None, KeyKind.SCOPED):
            return ()
        which = replace(which, reference_id=device.reference_id)
    found: list[Key] = []
    after = None
    while True:
        page = reader.list_keys(which, after, MAXIMUM + 1 - len(found))
        found += page.rows
        after = page.next
        if len(found) > MAXIMUM:
            raise Refusal(
                ErrorReason.MATCHES_TOO_MANY,
                f"filter: more than {MAXIMUM} keys match; narrow it, by the time of creation for one",
                metadata={"maximum": str(MAXIMUM)},
            )
        if after is None:
            return tuple(found)


def _revocation(found: tuple[Key, ...], used: Mapping[str, datetime]) -> Revocation:
    return Revocation(len(found), tuple(Match(key, used.get(key.key_id)) for key in found))
