"""Who may call this service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from server.domain import lifecycle
from server.domain.decision import find_generation
from server.domain.errors import ErrorReason, Refusal
from server.domain.events import EventType, describe
from server.domain.kinds import Role
from server.domain.lifecycle import Rotation
from server.domain.model import Caller
from server.domain.token import TokenKind, new_id, parse
from server.domain.validation import Fields
from server.service.base import Call, Issued, Listing, Mutation, Resources, repeated
from server.store.contract import Duplicate, Reader, Writer

UPDATABLE = ("display_name", "roles")


class CallerService:
    """Creates, recognises, changes and ends callers."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources

    def authenticate(self, credential: str) -> Caller:
        """Return the caller whose `svc` key this is. Raises Refusal (CALLER_CREDENTIAL_*, CALLER_REVOKED)."""
        token = parse(credential)
        if token is None or token.kind is not TokenKind.SERVICE:
            raise Refusal(
                ErrorReason.CALLER_CREDENTIAL_MALFORMED, "the credential is not a svc key, or has a typing error"
            )
        with self._resources.store.read() as reader:
            caller = reader.caller_of_key(token.public_id)
        generation = None
        if caller is not None:
            generation = find_generation(token, caller.generations, self._resources.peppers, self._resources.clock())
        if caller is None or generation is None:
            raise Refusal(ErrorReason.CALLER_CREDENTIAL_UNKNOWN, "there is no such credential")
        if caller.revoke_time is not None:
            raise Refusal(
                ErrorReason.CALLER_REVOKED,
                "the caller was revoked",
                metadata={"caller_id": caller.caller_id},
            )
        if generation.retired(self._resources.clock()):
            raise Refusal(
                ErrorReason.CALLER_CREDENTIAL_RETIRED,
                "the credential was replaced by a rotation; the caller's new one works",
                metadata={"caller_id": caller.caller_id},
            )
        return caller

    def create_caller(
        self, call: Call, caller_id: str, display_name: str, roles: Sequence[Role | None]
    ) -> Mutation[Issued[Caller]]:
        """Create a caller with its key. Raises Refusal: FIELD_INVALID, CALLER_EXISTS, REQUEST_REPEATED."""
        fields = Fields()
        call.check(fields)
        fields.slug("caller_id", caller_id)
        values = _checked(fields, "", display_name or caller_id, roles, UPDATABLE)
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[Caller]:
            key_id = new_id()
            minted = lifecycle.mint_generation(TokenKind.SERVICE, key_id, 1, self._resources.peppers, now)
            caller = Caller(
                caller_id=caller_id,
                key_id=key_id,
                generations=(minted.generation,),
                create_time=now,
                update_time=now,
                **values,
            )
            try:
                writer.add_caller(caller)
            except Duplicate:
                raise Refusal(
                    ErrorReason.CALLER_EXISTS, "caller_id: is taken", metadata={"caller_id": caller_id}
                ) from None
            writer.record([describe(EventType.CALLER_CREATED, call.origin, None, caller, now)])
            return Issued(caller, minted.text)

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again)

    def get_caller(self, caller_id: str) -> Caller:
        """Return a caller. Raises Refusal (CALLER_NOT_FOUND)."""
        with self._resources.store.read() as reader:
            return _require_caller(reader, caller_id)

    def list_callers(self, page_size: int, page_token: str) -> Listing[Caller]:
        """List callers. Raises Refusal (FIELD_INVALID)."""
        fields = Fields()
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        after = tokens.decode(page_token, "callers")
        with self._resources.store.read() as reader:
            page = reader.list_callers(after, limit)
        return Listing(page.rows, tokens.encode(page.next, "callers"))

    def update_caller(
        self,
        call: Call,
        caller_id: str,
        display_name: str,
        roles: Sequence[Role | None],
        paths: Sequence[str],
    ) -> Mutation[Caller]:
        """Change a caller. Raises Refusal: FIELD_INVALID, CALLER_NOT_FOUND, CALLER_IS_REVOKED."""
        fields = Fields()
        known = fields.mask("update_mask", paths, UPDATABLE)
        values = _checked(fields, "caller.", display_name, roles, known)
        fields.refuse_if_invalid()

        def change(before: Caller, _now: datetime) -> Caller:
            lifecycle.check_caller_not_revoked(before)
            return replace(before, **values)

        return self._change(call, caller_id, change, EventType.CALLER_UPDATED)

    def revoke_caller(self, call: Call, caller_id: str) -> Mutation[Caller]:
        """End a caller for good. Raises Refusal (CALLER_NOT_FOUND)."""
        return self._change(
            call,
            caller_id,
            lambda caller, now: lifecycle.revoke_caller(caller, call.reason, now),
            EventType.CALLER_REVOKED,
        )

    def rotate_caller_key(self, call: Call, caller_id: str, rotation: Rotation) -> Mutation[Issued[Caller]]:
        """Give a caller a new secret. Raises Refusal: as `lifecycle.rotate_caller`, CALLER_NOT_FOUND."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[Caller]:
            before = _require_caller(writer, caller_id)
            number = before.generations[-1].number + 1
            minted = lifecycle.mint_generation(TokenKind.SERVICE, before.key_id, number, self._resources.peppers, now)
            after = lifecycle.rotate_caller(before, minted.generation, rotation, now)
            writer.replace_caller(after)
            writer.record([describe(EventType.CALLER_ROTATED, call.origin, before, after, now)])
            return Issued(after, minted.text)

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again)

    def _change(
        self, call: Call, caller_id: str, change: Callable[[Caller, datetime], Caller], event_type: EventType
    ) -> Mutation[Caller]:
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Caller:
            before = _require_caller(writer, caller_id)
            after = change(before, now)
            if after == before:
                return before
            after = replace(after, update_time=now)
            writer.replace_caller(after)
            writer.record([describe(event_type, call.origin, before, after, now)])
            return after

        return self._resources.carry_out(
            call,
            work,
            lambda caller: caller.caller_id,
            lambda writer, again_id, _now: _require_caller(writer, again_id),
        )


def _require_caller(reader: Reader, caller_id: str) -> Caller:
    caller = reader.caller(caller_id)
    if caller is None:
        raise Refusal(ErrorReason.CALLER_NOT_FOUND, "there is no such caller")
    return caller


def _checked(
    fields: Fields, prefix: str, display_name: str, roles: Sequence[Role | None], paths: Collection[str]
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    if "display_name" in paths:
        values["display_name"] = fields.display_name(prefix + "display_name", display_name)
    if "roles" in paths:
        if not roles:
            fields.fault(prefix + "roles", "must name at least one")
        for index, role in enumerate(roles):
            if role is None:
                fields.fault(f"{prefix}roles[{index}]", "is not a role")
        values["roles"] = frozenset(role for role in roles if role is not None)
    return values


def _id_of_issued(issued: Issued[Caller]) -> str:
    return issued.entity.caller_id


def _no_secret_again(_writer: Writer, caller_id: str, _now: datetime) -> Issued[Caller]:
    raise repeated("caller_id", caller_id)
