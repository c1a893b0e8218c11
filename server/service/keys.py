"""The life of customers' keys."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from server.domain import lifecycle
from server.domain.authority import authority_of, check_within, excess
from server.domain.decision import find_generation, present
from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.events import Event, EventType, describe
from server.domain.kinds import CEILING, TOKEN_KIND, Environment, KeyKind, Permission
from server.domain.lifecycle import Rotation
from server.domain.model import Generation, Key, KeyState
from server.domain.token import new_id
from server.domain.validation import DESCRIPTION_LENGTH, LABEL_FILTERS, Fields
from server.service.base import (
    Call,
    Issued,
    Listing,
    Mutation,
    Resources,
    actor_of,
    repeated,
    require_key,
    require_workspace,
)
from server.store.contract import KeyFilter, Writer

UPDATABLE = (
    "display_name",
    "description",
    "labels",
    "permissions",
    "allowed_cidrs",
    "allowed_manufacturers",
    "redirect_uris",
    "expire_time",
)
# Those of them that no decision depends on.
DESCRIPTIVE = frozenset({"display_name", "description", "labels"})


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyFields:
    """What a caller says a key should be, as it was said."""

    display_name: str = ""
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    permissions: Sequence[str] = ()
    allowed_cidrs: Sequence[str] = ()
    allowed_manufacturers: Sequence[str] = ()
    redirect_uris: Sequence[str] = ()
    expire_time: datetime | None = None


class KeyService:
    """Creates, finds, changes and ends keys."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def create_key(
        self, call: Call, workspace_id: str, kind: KeyKind | None, given: KeyFields
    ) -> Mutation[Issued[Key]]:
        """Create a server or connect key. Refusals: see KeyService.CreateKey in `key_service.proto`."""
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        if kind is None or kind is KeyKind.SCOPED:
            fields.fault("kind", "must be SERVER or CONNECT; scoped keys are minted by CompleteConnectLink")
        fields.refuse_if_invalid()
        if kind is None:  # pragma: no cover - refused above
            raise AssertionError
        with self._resources.store.read() as reader:
            workspace = require_workspace(reader, workspace_id)
        values = _checked(fields, "", given, UPDATABLE, kind, workspace.environment)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[Key]:
            _check_future("expire_time", given.expire_time, now)
            key_id = new_id()
            minted = lifecycle.mint_generation(TOKEN_KIND[kind], key_id, 1, self._resources.peppers, now)
            key = Key(
                key_id=key_id,
                workspace_id=workspace_id,
                kind=kind,
                generations=(minted.generation,),
                create_time=now,
                update_time=now,
                created_by_caller_id=call.caller_id,
                created_by_key_id=call.on_behalf_of_key_id or None,
                **values,
            )
            actor = actor_of(writer, call, workspace_id, Permission.KEYS_MANAGE, now)
            if actor is not None:
                check_within(key, actor)
            writer.add_key(key)
            writer.record([describe(EventType.KEY_CREATED, call.origin, None, key, now)])
            return Issued(key, minted.text)

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again)

    def get_key(self, key_id: str) -> Key:
        """Return a key. Raises Refusal (KEY_NOT_FOUND)."""
        with self._resources.store.read() as reader:
            return require_key(reader, key_id)

    def list_keys(
        self,
        workspace_id: str,
        kind: KeyKind | None,
        state: KeyState | None,
        reference_id: str,
        labels: Mapping[str, str],
        page_size: int,
        page_token: str,
    ) -> Listing[Key]:
        """List the keys of a workspace. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND."""
        fields = Fields()
        fields.required("workspace_id", workspace_id)
        if reference_id:
            fields.visible("reference_id", reference_id)
        wanted = fields.labels("labels", labels, LABEL_FILTERS)
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        scope = (
            "keys",
            workspace_id,
            kind and kind.value,
            state and state.value,
            reference_id,
            sorted(wanted.items()),
        )
        after = tokens.decode(page_token, *scope)
        which = KeyFilter(
            workspace_id=workspace_id,
            now=self._resources.clock(),
            kind=kind,
            state=state,
            reference_id=reference_id or None,
            labels=wanted,
        )
        with self._resources.store.read() as reader:
            require_workspace(reader, workspace_id)
            page = reader.list_keys(which, after, limit)
        return Listing(page.rows, tokens.encode(page.next, *scope))

    def list_key_events(self, key_id: str, page_size: int, page_token: str) -> Listing[Event]:
        """List what has happened to a key. Raises Refusal: FIELD_INVALID, KEY_NOT_FOUND."""
        fields = Fields()
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        after = tokens.decode(page_token, "key_events", key_id)
        with self._resources.store.read() as reader:
            require_key(reader, key_id)
            page = reader.list_key_events(key_id, after, limit)
        return Listing(page.rows, tokens.encode(page.next, "key_events", key_id))

    def lookup_key(self, api_key: str) -> tuple[Key, Generation]:
        """Return the key that this is, and which of its secrets. Raises Refusal: FIELD_INVALID, KEY_NOT_FOUND."""
        token = present(api_key).token
        if token is None:
            raise invalid("api_key", "is not a customer's key: its form or its checksum is wrong")
        with self._resources.store.read() as reader:
            key = reader.keys([token.public_id]).get(token.public_id)
        if key is not None and TOKEN_KIND[key.kind] is token.kind:
            generation = find_generation(
                token,
                key.generations,
                self._resources.peppers,
                self._resources.clock(),
                ended=key.state is KeyState.REVOKED,
            )
            if generation is not None:
                return key, generation
        raise Refusal(ErrorReason.KEY_NOT_FOUND, "there is no such key")

    def update_key(self, call: Call, key_id: str, given: KeyFields, paths: Sequence[str]) -> Mutation[Key]:
        """Change fields of a key. Refusals: see KeyService.UpdateKey in `key_service.proto`."""
        fields = Fields()
        call.check(fields)
        known = fields.mask("update_mask", paths, UPDATABLE)
        fields.refuse_if_invalid()
        with self._resources.store.read() as reader:
            key = require_key(reader, key_id)
            environment = require_workspace(reader, key.workspace_id).environment
        values = _checked(fields, "key.", given, known, key.kind, environment)
        fields.refuse_if_invalid()

        def change(before: Key, now: datetime) -> Key:
            lifecycle.check_not_revoked(before)
            if "expire_time" in values and given.expire_time != before.expire_time:
                _check_future("key.expire_time", given.expire_time, now)
                _check_not_renewed(before, given.expire_time)
            return replace(before, **values)

        narrows = not DESCRIPTIVE.issuperset(known)
        return self._change(call, key_id, change, EventType.KEY_UPDATED, _check_widening, narrows=narrows)

    def suspend_key(self, call: Call, key_id: str) -> Mutation[Key]:
        """Switch a key off. Raises Refusal: KEY_NOT_FOUND, KEY_IS_REVOKED, ACTOR_*."""
        return self._change(
            call,
            key_id,
            lambda key, now: lifecycle.suspend(key, call.reason, now),
            EventType.KEY_SUSPENDED,
            narrows=True,
        )

    def resume_key(self, call: Call, key_id: str) -> Mutation[Key]:
        """Switch a key on. Raises Refusal: KEY_NOT_FOUND, KEY_IS_REVOKED, ACTOR_*."""
        return self._change(call, key_id, lifecycle.resume, EventType.KEY_RESUMED, _check_result)

    def revoke_key(self, call: Call, key_id: str) -> Mutation[Key]:
        """End a key for good. Raises Refusal: KEY_NOT_FOUND, ACTOR_*."""
        return self._change(
            call, key_id, lambda key, now: lifecycle.revoke(key, call.reason, now), EventType.KEY_REVOKED, narrows=True
        )

    def rotate_key(self, call: Call, key_id: str, rotation: Rotation) -> Mutation[Issued[Key]]:
        """Give a key a new secret. Refusals: see KeyService.RotateKey in `key_service.proto`."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[Key]:
            before = require_key(writer, key_id)
            lifetime = require_workspace(writer, before.workspace_id).scoped_key_lifetime
            number = before.generations[-1].number + 1
            minted = lifecycle.mint_generation(TOKEN_KIND[before.kind], key_id, number, self._resources.peppers, now)
            actor = actor_of(writer, call, before.workspace_id, Permission.KEYS_MANAGE, now)
            after = lifecycle.rotate(before, minted.generation, rotation, lifetime, now)
            if actor is not None:
                check_within(after, actor)
            writer.replace_key(after)
            writer.record([describe(EventType.KEY_ROTATED, call.origin, before, after, now)])
            return Issued(after, minted.text)

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again, narrows=rotation.ends_a_secret)

    def _change(
        self,
        call: Call,
        key_id: str,
        change: Callable[[Key, datetime], Key],
        event_type: EventType,
        check: Callable[[Key, Key, Key], None] | None = None,
        *,
        narrows: bool = False,
    ) -> Mutation[Key]:
        """Change a key that is already there; `check` compares before and after with the actor, if there is one."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Key:
            before = require_key(writer, key_id)
            actor = actor_of(writer, call, before.workspace_id, Permission.KEYS_MANAGE, now)
            after = change(before, now)
            if after == before:
                return before
            if actor is not None and check is not None:
                check(before, after, actor)
            after = replace(after, update_time=now)
            writer.replace_key(after)
            writer.record([describe(event_type, call.origin, before, after, now)])
            return after

        return self._resources.carry_out(
            call,
            work,
            lambda key: key.key_id,
            lambda writer, again_id, _now: require_key(writer, again_id),
            narrows=narrows,
        )


def _check_result(_before: Key, after: Key, actor: Key) -> None:
    check_within(after, actor)


def _check_widening(before: Key, after: Key, actor: Key) -> None:
    """Let anyone who may manage keys narrow one; what is widened must stay within the actor.

    A redirect URI more is a widening: it says where scoped keys are sent.
    """
    if excess(authority_of(after), authority_of(before)) or not set(after.redirect_uris) <= set(before.redirect_uris):
        check_within(after, actor)


def _check_future(field_name: str, expire_time: datetime | None, now: datetime) -> None:
    fields = Fields()
    fields.future(field_name, expire_time, now)
    fields.refuse_if_invalid()


def _check_not_renewed(key: Key, expire_time: datetime | None) -> None:
    """Keep a scoped key's life from being prolonged without a new secret."""
    if key.kind is not KeyKind.SCOPED or key.expire_time is None:
        return
    if expire_time is None or expire_time > key.expire_time:
        raise invalid("key.expire_time", "of a scoped key may only be brought forward; RotateKey renews it")


def _id_of_issued(issued: Issued[Key]) -> str:
    return issued.entity.key_id


def _no_secret_again(_writer: Writer, key_id: str, _now: datetime) -> Issued[Key]:
    raise repeated("key_id", key_id)


def _checked(  # noqa: C901 - one branch for each field
    fields: Fields,
    prefix: str,
    given: KeyFields,
    paths: Collection[str],
    kind: KeyKind,
    environment: Environment,
) -> dict[str, Any]:
    """Return the domain's values of the given fields, by attribute of Key, and note what is wrong with them."""
    values: dict[str, Any] = {}
    if "display_name" in paths:
        values["display_name"] = fields.display_name(prefix + "display_name", given.display_name)
    if "description" in paths:
        values["description"] = fields.text(prefix + "description", given.description, maximum=DESCRIPTION_LENGTH)
    if "labels" in paths:
        values["labels"] = fields.labels(prefix + "labels", given.labels)
    if "permissions" in paths:
        values["permissions"] = _permissions(fields, prefix + "permissions", given.permissions, kind)
    if "allowed_cidrs" in paths:
        values["allowed_networks"] = fields.networks(prefix + "allowed_cidrs", given.allowed_cidrs)
    if "allowed_manufacturers" in paths:
        values["allowed_manufacturers"] = fields.manufacturers(
            prefix + "allowed_manufacturers", given.allowed_manufacturers
        )
    if "redirect_uris" in paths:
        name = prefix + "redirect_uris"
        if kind is KeyKind.CONNECT:
            if not given.redirect_uris:
                fields.fault(name, "a connect key needs at least one")
            values["redirect_uris"] = fields.redirect_uris(name, given.redirect_uris, environment)
        elif given.redirect_uris:
            fields.fault(name, "only connect keys have their own; a server key's links use the workspace's")
    if "expire_time" in paths:
        values["expire_time"] = given.expire_time
    return values


def _permissions(fields: Fields, name: str, given: Sequence[str], kind: KeyKind) -> frozenset[Permission]:
    ceiling = CEILING[kind]
    if not given:
        if name != "permissions":
            fields.fault(name, "must not be empty; suspend the key instead")
        return ceiling
    by_name = {permission.value: permission for permission in ceiling}
    for index, text in enumerate(given):
        if text not in by_name:
            fields.fault(f"{name}[{index}]", f"a {kind.value} key may hold {', '.join(sorted(by_name))}")
    return frozenset(by_name[text] for text in given if text in by_name)
