"""Workspaces and their settings."""

from __future__ import annotations

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
from server.store.contract import Cursor, Duplicate, Writer

DEFAULT_SCOPED_KEY_LIFETIME = timedelta(days=365)
DEFAULT_LINK_LIFETIME = timedelta(hours=4)

# How many events of an end user are held in memory at once.
_EVENTS_AT_ONCE = 500

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

        Nobody is told the pseudonym beside the person's name. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND,
        ACTOR_*.
        """
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        fields.visible("reference_id", reference_id)
        fields.refuse_if_invalid()
        end_user = EndUser(workspace_id, reference_id)

        def work(writer: Writer, now: datetime) -> Erasure:
            require_workspace(writer, workspace_id)
            actor_of(writer, call, workspace_id, Permission.KEYS_MANAGE, now)
            pseudonym = new_pseudonym()
            removed = writer.remove_end_user(end_user)
            erasure = Erasure(
                devices_removed=removed.devices,
                keys_removed=removed.keys,
                connect_links_removed=removed.connect_links,
                events_rewritten=_rewrite_events(writer, end_user, pseudonym),
            )
            if erasure != Erasure():
                writer.record([describe_erasure(call.origin, workspace_id, pseudonym, erasure, now)])
            return erasure

        # A repeat has nothing to take away, and nothing is kept of what the first time did.
        return self._resources.carry_out(call, work, lambda _: "", lambda _writer, _id, _now: Erasure(), narrows=True)


def _rewrite_events(writer: Writer, end_user: EndUser, pseudonym: str) -> int:
    """Put a pseudonym in place of an end user in every event, and return how many there were."""
    rewritten = 0
    after: Cursor | None = None
    while True:
        page = writer.list_end_user_events(end_user, after, _EVENTS_AT_ONCE)
        writer.replace_events(without(event, end_user, pseudonym) for event in page.rows)
        rewritten += len(page.rows)
        after = page.next
        if after is None:
            return rewritten


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
