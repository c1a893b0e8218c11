"""Who may call this service."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from server.domain import lifecycle
from server.domain.decision import find_generation
from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.events import EventType, describe
from server.domain.kinds import Role
from server.domain.lifecycle import Rotation
from server.domain.model import Caller, Generation
from server.domain.token import TokenKind, new_id, parse
from server.domain.validation import Fields
from server.service.base import Call, Issued, Listing, Mutation, Resources, repeated
from server.service.facts import Fact, Known
from server.service.memo import Conclusion, Memo
from server.service.rehashing import Rehashing
from server.store.contract import CALLER, CERTIFICATE_NAME, Duplicate, Reader, Writer

# How many callers are recognised without comparing their secrets again.
MOST_RECOGNISED = 1_000

UPDATABLE = ("display_name", "roles", "certificate_names")


@dataclass(frozen=True, slots=True, kw_only=True)
class CallerFields:
    """What a caller of this service should be, as it was said. A role that is None was not known."""

    display_name: str = ""
    roles: Sequence[Role | None] = ()
    certificate_names: Sequence[str] = ()


class CallerService:
    """Creates, recognises, changes and ends callers."""

    def __init__(self, resources: Resources, rehashing: Rehashing | None = None) -> None:
        self._resources = resources
        self._rehashing = rehashing
        self._recognised: Memo[Caller] = Memo(resources.cache, resources.clock, MOST_RECOGNISED)

    def authenticate(self, credential: str) -> Caller:
        """Return the caller whose `svc` key this is. Raises Refusal (CALLER_CREDENTIAL_*, CALLER_REVOKED)."""
        raw = credential.encode("utf-8", "surrogatepass")
        known = self._recognised.current(raw)
        if known is not None:
            self._resources.cache.count(CALLER, 1)
            return known.value
        token = parse(credential)
        if token is None or token.kind is not TokenKind.SERVICE:
            raise Refusal(
                ErrorReason.CALLER_CREDENTIAL_MALFORMED, "the credential is not a svc key, or has a typing error"
            )
        peppers, now = self._resources.peppers, self._resources.clock()

        def recognise(known: Known) -> tuple[Caller | None, Generation | None, tuple[Fact, ...]]:
            caller: Caller | None = known.value(CALLER, token.public_id)
            if caller is None:
                return None, None, ()
            ended = caller.revoke_time is not None
            generation = find_generation(token, caller.generations, peppers, now, ended=ended)
            return caller, generation, (known.facts[CALLER, token.public_id],)

        caller, generation, grounds = self._resources.cache.decide([(CALLER, token.public_id)], None, recognise)
        if caller is None or generation is None:
            raise Refusal(ErrorReason.CALLER_CREDENTIAL_UNKNOWN, "there is no such credential")
        _check_live(caller)
        if generation.retired(now):
            raise Refusal(
                ErrorReason.CALLER_CREDENTIAL_RETIRED,
                "the credential was replaced by a rotation; the caller's new one works",
                metadata={"caller_id": caller.caller_id},
            )
        if generation.pepper_id == peppers.signing_id:
            self._recognised.keep(raw, Conclusion(caller, grounds, generation.retire_time))
        elif self._rehashing is not None:
            self._rehashing.offer(token, generation)
        return caller

    def authenticate_certificate(self, names: Collection[str]) -> Caller:
        """Return the caller that goes by a name of a verified certificate.

        Raises Refusal: CALLER_CERTIFICATE_UNKNOWN, also where its names are those of several callers; CALLER_REVOKED.
        """
        cache = self._resources.cache
        key_ids = cache.decide(
            [(CERTIFICATE_NAME, name) for name in dict.fromkeys(names)],
            None,
            lambda facts: {facts.value(CERTIFICATE_NAME, name) for name in names} - {None},
        )
        # Each of them is asked again whether it goes by one of the names: that may have changed in between.
        known: list[Caller] = cache.decide(
            [(CALLER, key_id) for key_id in key_ids],
            None,
            lambda facts: [
                caller
                for key_id in sorted(key_ids)
                if (caller := facts.value(CALLER, key_id)) is not None
                and not caller.certificate_names.isdisjoint(names)
            ],
        )
        # One that was revoked keeps its names, and says so where nobody else goes by any of them.
        callers = [caller for caller in known if caller.revoke_time is None] or known
        if not callers:
            raise Refusal(
                ErrorReason.CALLER_CERTIFICATE_UNKNOWN,
                "no caller goes by a name of the client certificate, and there is no 'authorization' metadata",
            )
        if len(callers) > 1:
            raise Refusal(
                ErrorReason.CALLER_CERTIFICATE_UNKNOWN, "the client certificate has the names of several callers"
            )
        _check_live(callers[0])
        return callers[0]

    def create_caller(
        self, call: Call, caller_id: str, given: CallerFields, *, without_key: bool = False
    ) -> Mutation[Issued[Caller]]:
        """Create a caller, with its key unless it is to have none.

        Raises Refusal: FIELD_INVALID, CALLER_EXISTS, CERTIFICATE_NAME_TAKEN, REQUEST_REPEATED.
        """
        fields = Fields()
        call.check(fields)
        fields.slug("caller_id", caller_id)
        values = _checked(fields, "", replace(given, display_name=given.display_name or caller_id), UPDATABLE)
        if without_key and not given.certificate_names:
            fields.fault("certificate_names", "must name at least one where the caller has no key")
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[Caller]:
            key_id = new_id()
            minted = lifecycle.mint_generation(TokenKind.SERVICE, key_id, 1, self._resources.peppers, now)
            caller = Caller(
                caller_id=caller_id,
                key_id=key_id,
                generations=() if without_key else (minted.generation,),
                create_time=now,
                update_time=now,
                **values,
            )
            _free_names(writer, call, caller, now)
            try:
                writer.add_caller(caller)
            except Duplicate:
                raise Refusal(
                    ErrorReason.CALLER_EXISTS, "caller_id: is taken", metadata={"caller_id": caller_id}
                ) from None
            writer.record([describe(EventType.CALLER_CREATED, call.origin, None, caller, now)])
            return Issued(caller, "" if without_key else minted.text)

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
        given: CallerFields,
        paths: Sequence[str],
    ) -> Mutation[Caller]:
        """Change a caller.

        Raises Refusal: FIELD_INVALID, CALLER_NOT_FOUND, CALLER_IS_REVOKED, CERTIFICATE_NAME_TAKEN.
        """
        fields = Fields()
        known = fields.mask("update_mask", paths, UPDATABLE)
        values = _checked(fields, "caller.", given, known)
        fields.refuse_if_invalid()

        def change(before: Caller, _now: datetime) -> Caller:
            lifecycle.check_caller_not_revoked(before)
            after = replace(before, **values)
            if not after.generations and not after.certificate_names:
                raise invalid("caller.certificate_names", "must keep at least one, since the caller has no key")
            return after

        return self._change(call, caller_id, change, EventType.CALLER_UPDATED, narrows=known != {"display_name"})

    def revoke_caller(self, call: Call, caller_id: str) -> Mutation[Caller]:
        """End a caller for good. Raises Refusal (CALLER_NOT_FOUND)."""
        return self._change(
            call,
            caller_id,
            lambda caller, now: lifecycle.revoke_caller(caller, call.reason, now),
            EventType.CALLER_REVOKED,
            narrows=True,
        )

    def rotate_caller_key(self, call: Call, caller_id: str, rotation: Rotation) -> Mutation[Issued[Caller]]:
        """Give a caller a new secret. Raises Refusal: as `lifecycle.rotate_caller`, CALLER_NOT_FOUND."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Issued[Caller]:
            before = _require_caller(writer, caller_id)
            number = before.generations[-1].number + 1 if before.generations else 1
            minted = lifecycle.mint_generation(TokenKind.SERVICE, before.key_id, number, self._resources.peppers, now)
            after = lifecycle.rotate_caller(before, minted.generation, rotation, now)
            writer.replace_caller(after)
            writer.record([describe(EventType.CALLER_ROTATED, call.origin, before, after, now)])
            return Issued(after, minted.text)

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again, narrows=rotation.ends_a_secret)

    def _change(
        self,
        call: Call,
        caller_id: str,
        change: Callable[[Caller, datetime], Caller],
        event_type: EventType,
        *,
        narrows: bool,
    ) -> Mutation[Caller]:
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> Caller:
            before = _require_caller(writer, caller_id)
            after = change(before, now)
            if after == before:
                return before
            after = replace(after, update_time=now)
            _free_names(writer, call, after, now)
            writer.replace_caller(after)
            writer.record([describe(event_type, call.origin, before, after, now)])
            return after

        return self._resources.carry_out(
            call,
            work,
            lambda caller: caller.caller_id,
            lambda writer, again_id, _now: _require_caller(writer, again_id),
            narrows=narrows,
        )


def _require_caller(reader: Reader, caller_id: str) -> Caller:
    caller = reader.caller(caller_id)
    if caller is None:
        raise Refusal(ErrorReason.CALLER_NOT_FOUND, "there is no such caller")
    return caller


def _check_live(caller: Caller) -> None:
    if caller.revoke_time is not None:
        raise Refusal(ErrorReason.CALLER_REVOKED, "the caller was revoked", metadata={"caller_id": caller.caller_id})


def _free_names(writer: Writer, call: Call, caller: Caller, now: datetime) -> None:
    """Take the certificate names of a caller from revoked ones that have them.

    Raises Refusal (CERTIFICATE_NAME_TAKEN) where one that is not revoked has any.
    """
    for other in writer.callers_of_certificate(caller.certificate_names):
        if other.caller_id == caller.caller_id:
            continue
        if other.revoke_time is None:
            taken = min(other.certificate_names & caller.certificate_names)
            raise Refusal(
                ErrorReason.CERTIFICATE_NAME_TAKEN,
                "certificate_names: another caller goes by one of them",
                metadata={"certificate_name": taken, "caller_id": other.caller_id},
            )
        after = replace(other, certificate_names=other.certificate_names - caller.certificate_names, update_time=now)
        writer.replace_caller(after)
        writer.record([describe(EventType.CALLER_UPDATED, call.origin, other, after, now)])


def _checked(fields: Fields, prefix: str, given: CallerFields, paths: Collection[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    roles = given.roles
    if "display_name" in paths:
        values["display_name"] = fields.display_name(prefix + "display_name", given.display_name)
    if "certificate_names" in paths:
        values["certificate_names"] = fields.certificate_names(prefix + "certificate_names", given.certificate_names)
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
