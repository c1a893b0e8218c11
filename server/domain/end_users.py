"""End users in the event log: which of them an event holds, and how one is taken out of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from server.domain.events import Event, EventType, Json, Origin
from server.domain.token import new_id

PSEUDONYM_PREFIX = "erased:"

Side = Mapping[str, Json]


@dataclass(frozen=True, slots=True, order=True)
class EndUser:
    """A person, as a customer calls them in one workspace. The same name in another workspace is somebody else."""

    workspace_id: str
    reference_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Erasure:
    """What the erasure of an end user took away, and in how many events they were replaced by a pseudonym."""

    devices_removed: int = 0
    keys_removed: int = 0
    connect_links_removed: int = 0
    events_rewritten: int = 0


def new_pseudonym() -> str:
    """Return a name that leads to nobody, since it is made of nothing but chance."""
    return PSEUDONYM_PREFIX + new_id()


def end_users_of(event: Event) -> frozenset[EndUser]:
    """Return the end users that an event holds: a transfer of a device may hold two, and of two workspaces."""
    return frozenset(found for found in (_end_user_of(event.before), _end_user_of(event.after)) if found is not None)


def without(event: Event, end_user: EndUser, pseudonym: str) -> Event:
    """Return an event with a pseudonym in place of an end user; a side that is not theirs stays as it is.

    With the name goes what was written down about them: the names, description and labels of a scoped key, where it was
    found exposed, and the customer's own value in a Connect link. The reason of the event is in somebody's words, and
    stays.
    """
    return replace(
        event,
        before=_side_without(event.before, end_user, pseudonym),
        after=_side_without(event.after, end_user, pseudonym),
    )


def describe_erasure(origin: Origin, workspace_id: str, pseudonym: str, erasure: Erasure, now: datetime) -> Event:
    """Return the event of an erasure. It knows the end user by the pseudonym alone."""
    return Event(
        type=EventType.END_USER_ERASED,
        event_time=now,
        workspace_id=workspace_id,
        subject_id=pseudonym,
        origin=origin,
        before=None,
        after={
            "workspace_id": workspace_id,
            "reference_id": pseudonym,
            "devices_removed": erasure.devices_removed,
            "keys_removed": erasure.keys_removed,
            "connect_links_removed": erasure.connect_links_removed,
            "events_rewritten": erasure.events_rewritten,
        },
    )


def _end_user_of(side: Side | None) -> EndUser | None:
    """Return the end user that one side of an event holds; what belongs to nobody, such as a server key, has none."""
    if side is None:
        return None
    workspace_id, reference_id = side.get("workspace_id"), side.get("reference_id")
    if not isinstance(workspace_id, str) or not isinstance(reference_id, str):
        return None
    return EndUser(workspace_id, reference_id)


def _side_without(side: Side | None, end_user: EndUser, pseudonym: str) -> Side | None:
    if side is None or _end_user_of(side) != end_user:
        return side
    in_place: dict[str, Json] = {
        "reference_id": pseudonym,
        "display_name": pseudonym,
        "description": "",
        "labels": {},
        "client_state": "",
        "exposure_url": "",
    }
    return {name: in_place.get(name, value) for name, value in side.items()}
