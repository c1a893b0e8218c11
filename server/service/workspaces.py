"""Workspaces and their settings."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from server.domain.end_users import EndUser, Erasure, describe_erasure, new_pseudonym, without
from server.domain.errors import ErrorReason, Refusal
from server.domain.events import EventType, describe
from server.domain.kinds import Environment, ExposurePolicy, Permission
from server.domain.model import Workspace
from server.domain.token import new_id
from server.domain.validation import LONGEST_LINK_LIFETIME, LONGEST_SCOPED_KEY_LIFETIME, Fields
from server.service.base import Call, Listing, Mutation, Resources, actor_of, require_workspace
from server.store.contract import Duplicate, Writer

DEFAULT_SCOPED_KEY_LIFETIME = timedelta(days=365)
DEFAULT_LINK_LIFETIME = timedelta(hours=4)

# How many events of an end user one transaction rewrites, so that no writer waits long for it, and for how long others
# have their turn before the next one.
EVENTS_AT_ONCE = 200
TURN_SECONDS = 0.02

UPDATABLE = ("display_name", "redirect_uris", "exposure_policy", "scoped_key_lifetime", "connect_link_lifetime")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkspaceFields:
    """What a caller says a workspace should be, as it was said; None where nothing was."""

    display_name: str = ""
    redirect_uris: Sequence[str] = ()
    exposure_policy: ExposurePolicy | None = None
    scoped_key_lifetime: timedelta | None = None
    connect_link_lifetime: timedelta | None = None


class WorkspaceService:
    """Creates, finds and configures workspaces, and erases the end users in them."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def create_workspace(
        self, call: Call, workspace_id: str, environment: Environment | None, given: WorkspaceFields
    ) -> Mutation[Workspace]:
        """Create a workspace. Raises Refusal: FIELD_INVALID, WORKSPACE_EXISTS."""
        fields = Fields()
        call.check(fields)
        chosen = fields.slug("workspace_id", workspace_id or f"ws-{new_id().lower()}")
        if environment is None:
            fields.fault("environment", "must be PRODUCTION or SANDBOX")
        values = _checked(fields, "", given, UPDATABLE, environment or Environment.PRODUCTION)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Workspace:
            workspace = Workspace(
                workspace_id=chosen,
                environment=environment or Environment.PRODUCTION,
                create_time=now,
                update_time=now,
                **values,
            )
            try:
                writer.add_workspace(workspace)
            except Duplicate:
                raise Refusal(
                    ErrorReason.WORKSPACE_EXISTS,
                    "workspace_id: is taken",
                    metadata={"workspace_id": chosen},
                ) from None
            writer.record([describe(EventType.WORKSPACE_CREATED, call.origin, None, workspace, now)])
            return workspace

        return self._resources.carry_out(call, work, _id, _as_it_is)

    def get_workspace(self, workspace_id: str) -> Workspace:
        """Return a workspace. Raises Refusal (WORKSPACE_NOT_FOUND)."""
        with self._resources.store.read() as reader:
            return require_workspace(reader, workspace_id)

    def list_workspaces(self, page_size: int, page_token: str) -> Listing[Workspace]:
        """List workspaces. Raises Refusal (FIELD_INVALID)."""
        fields = Fields()
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        after = tokens.decode(page_token, "workspaces")
        with self._resources.store.read() as reader:
            page = reader.list_workspaces(after, limit)
        return Listing(page.rows, tokens.encode(page.next, "workspaces"))

    def update_workspace(
        self, call: Call, workspace_id: str, given: WorkspaceFields, paths: Sequence[str]
    ) -> Mutation[Workspace]:
        """Change settings. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, ACTOR_*."""
        fields = Fields()
        call.check(fields)
        known = fields.mask("update_mask", paths, UPDATABLE)
        fields.refuse_if_invalid()
        environment = self.get_workspace(workspace_id).environment
        values = _checked(fields, "workspace.", given, known, environment)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Workspace:
            before = require_workspace(writer, workspace_id)
            actor_of(writer, call, workspace_id, Permission.WORKSPACE_CONFIGURE, now)
            if not set(values.get("redirect_uris", ())) <= set(before.redirect_uris):
                # They say where scoped keys are sent.
                actor_of(writer, call, workspace_id, Permission.CONNECT_LINKS_CREATE, now)
            if replace(before, **values) == before:
                return before
            after = replace(before, update_time=now, **values)
            writer.replace_workspace(after)
            writer.record([describe(EventType.WORKSPACE_UPDATED, call.origin, before, after, now)])
            return after

        return self._resources.carry_out(call, work, _id, _as_it_is)

    def erase_end_user(self, call: Call, workspace_id: str, reference_id: str) -> Mutation[Erasure]:
        """Delete what an end user has, and leave a pseudonym of them in the events.

        Nobody is told the pseudonym beside the person's name. What they have goes first and at once, the name from the
        events in portions: whatever ends the call in between, another one does the rest. Raises Refusal: FIELD_INVALID,
        WORKSPACE_NOT_FOUND, ACTOR_*.
        """
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        fields.visible("reference_id", reference_id)
        fields.refuse_if_invalid()
        erasing = _Erasing(call, EndUser(workspace_id, reference_id))
        while True:
            done = self._resources.carry_out(
                call, erasing.go_on, lambda _: "", erasing.repeat, over=lambda: erasing.over, narrows=True
            )
            if erasing.over:
                return done
            give_way()


def give_way() -> None:
    """Let other writers have their turn."""
    time.sleep(TURN_SECONDS)


class _Erasing:
    """The erasure of an end user: what they have goes first, then their name, from one portion of events at a time."""

    def __init__(self, call: Call, end_user: EndUser) -> None:
        self._call = call
        self._end_user = end_user
        self._pseudonym = new_pseudonym()
        self._erased: Erasure | None = None
        self._last_event_id = 0
        self.over = False

    def go_on(self, writer: Writer, now: datetime) -> Erasure:
        """Do the next portion, and return what all of them erase."""
        erased = self._erased = self._erased or self._begin(writer, now)
        page = writer.list_end_user_events(self._end_user, None, EVENTS_AT_ONCE)
        # Those that are later are of somebody who has come back.
        theirs = [event for event in page.rows if (event.event_id or 0) <= self._last_event_id]
        writer.replace_events(without(event, self._end_user, self._pseudonym) for event in theirs)
        self.over = page.next is None or len(theirs) < len(page.rows)
        return erased

    def repeat(self, _writer: Writer, _id: str, _now: datetime) -> Erasure:
        """Take nothing away; and nothing is kept of what the first time did."""
        self.over = True
        return Erasure()

    def _begin(self, writer: Writer, now: datetime) -> Erasure:
        """Take away what they have, so that nothing of it is used any more, and record how much it was."""
        workspace_id = self._end_user.workspace_id
        require_workspace(writer, workspace_id)
        actor_of(writer, self._call, workspace_id, Permission.KEYS_MANAGE, now)
        event_ids = writer.end_user_event_ids(self._end_user)
        self._last_event_id = max(event_ids, default=0)
        removed = writer.remove_end_user(self._end_user)
        erased = Erasure(
            devices_removed=removed.devices,
            keys_removed=removed.keys,
            connect_links_removed=removed.connect_links,
            events_rewritten=len(event_ids),
        )
        if erased != Erasure():
            writer.record([describe_erasure(self._call.origin, workspace_id, self._pseudonym, erased, now)])
        return erased


def _id(workspace: Workspace) -> str:
    return workspace.workspace_id


def _as_it_is(writer: Writer, workspace_id: str, _now: datetime) -> Workspace:
    return require_workspace(writer, workspace_id)


def _checked(
    fields: Fields, prefix: str, given: WorkspaceFields, paths: Collection[str], environment: Environment
) -> dict[str, Any]:
    """Return the domain's values of the given fields, by attribute of Workspace, and note what is wrong with them."""
    values: dict[str, Any] = {}
    if "display_name" in paths:
        values["display_name"] = fields.display_name(prefix + "display_name", given.display_name)
    if "redirect_uris" in paths:
        values["redirect_uris"] = fields.redirect_uris(prefix + "redirect_uris", given.redirect_uris, environment)
    if "exposure_policy" in paths:
        values["exposure_policy"] = given.exposure_policy or ExposurePolicy.REVOKE
    if "scoped_key_lifetime" in paths:
        values["scoped_key_lifetime"] = fields.lifetime(
            prefix + "scoped_key_lifetime",
            DEFAULT_SCOPED_KEY_LIFETIME if given.scoped_key_lifetime is None else given.scoped_key_lifetime,
            LONGEST_SCOPED_KEY_LIFETIME,
        )
    if "connect_link_lifetime" in paths:
        values["connect_link_lifetime"] = fields.lifetime(
            prefix + "connect_link_lifetime",
            DEFAULT_LINK_LIFETIME if given.connect_link_lifetime is None else given.connect_link_lifetime,
            LONGEST_LINK_LIFETIME,
        )
    return values
