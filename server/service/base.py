"""What every use case is given and gives back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Generic, TypeVar

from server.domain.authority import check_actor
from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.events import Origin
from server.domain.kinds import Permission
from server.domain.model import Key, Workspace
from server.domain.peppers import Peppers
from server.domain.revision import Revision
from server.domain.validation import Fields
from server.service.barrier import AT_ONCE, Barrier, Propagation
from server.service.facts import FactCache, SharedClock
from server.service.paging import PageTokens
from server.service.telemetry import SILENT, Telemetry
from server.store.contract import CarriedOut, Reader, Store, Writer

T = TypeVar("T")
Clock = Callable[[], datetime]

# How long a request id is remembered.
REQUEST_MEMORY = timedelta(hours=24)
# What is remembered of a request is a tag, so that nobody who reads the table can try out what the request held.
_FINGERPRINT = "request"


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """Who asked for a change and how: what goes into the event, and what makes a retry safe.

    A change that takes authority away is waited for until no process decides from before it, unless the call is to
    `return_immediately`. `fingerprint` tells the request apart from any other; it matters only beside a `request_id`.
    """

    caller_id: str
    method: str
    request_id: str = ""
    fingerprint: str = ""
    on_behalf_of_key_id: str = ""
    reason: str = ""
    return_immediately: bool = False

    @property
    def origin(self) -> Origin:
        """The part of the call that events keep."""
        return Origin(
            caller_id=self.caller_id,
            on_behalf_of_key_id=self.on_behalf_of_key_id or None,
            reason=self.reason,
            request_id=self.request_id,
        )

    def check(self, fields: Fields) -> None:
        """Note what is wrong with the parts that the caller chose."""
        fields.reason("reason", self.reason)
        if self.request_id:
            fields.visible("request_id", self.request_id)

    def refuse_if_invalid(self) -> None:
        """Raise Refusal (FIELD_INVALID) for them, where a request has nothing else to check."""
        fields = Fields()
        self.check(fields)
        fields.refuse_if_invalid()


@dataclass(frozen=True, slots=True)
class Mutation(Generic[T]):
    """What became of a change, and the revision that holds it."""

    value: T
    revision: Revision
    propagation: Propagation


@dataclass(frozen=True, slots=True)
class Listing(Generic[T]):
    """A page of a list, and the token for the next one; empty at the end."""

    rows: tuple[T, ...]
    next_page_token: str


@dataclass(frozen=True, slots=True)
class Issued(Generic[T]):
    """Something that was made together with a secret, which is shown this once."""

    entity: T
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Resources:
    """What the services work with. `clock` returns the time in UTC."""

    store: Store
    peppers: Peppers
    clock: Clock
    cache: FactCache
    barrier: Barrier
    telemetry: Telemetry = SILENT

    @property
    def page_tokens(self) -> PageTokens:
        """The maker and reader of page tokens."""
        return PageTokens(self.peppers)

    def time(self, reader: Reader) -> datetime:
        """Return the time for a change made now.

        Where each process estimates the store's clock, it is that clock itself: no estimate is behind it, but some may
        be ahead, and what one of those says has ended would not have by another.
        """
        return reader.time() if isinstance(self.clock, SharedClock) else self.clock()

    def carry_out(
        self,
        call: Call,
        work: Callable[[Writer, datetime], T],
        entity_id: Callable[[T], str],
        again: Callable[[Writer, str, datetime], T],
        *,
        over: Callable[[], bool] = lambda: True,
        narrows: bool = False,
    ) -> Mutation[T]:
        """Do a piece of work under the write lock, once for each request id.

        `again` answers a repeat: it is given the id of what the first time was about. Work that says that it is not
        `over` is not remembered, and so is done again by a repeat. Work that `narrows` what anybody may do is waited
        for, by a repeat as by the first time, and also where nothing was left to do; other work for a moment, so that
        what was made is of use at once.

        Raises Refusal (FIELD_INVALID) for a request id that was used for another request, and whatever the work raises;
        then nothing has changed.
        """
        with self.store.write() as writer:
            now = self.time(writer)
            earlier = self._carried_out(writer, call, now)
            if earlier is not None:
                value = again(writer, earlier.entity_id, now)
            else:
                value = work(writer, now)
                if call.request_id and over():
                    writer.remember(
                        CarriedOut(
                            caller_id=call.caller_id,
                            method=call.method,
                            request_id=call.request_id,
                            fingerprint=self.peppers.sign(_FINGERPRINT, call.fingerprint.encode()).hex(),
                            entity_id=entity_id(value),
                            time=now,
                        ),
                        forget_before=now - REQUEST_MEMORY,
                    )
        propagation = AT_ONCE
        if not over():
            return Mutation(value, writer.revision, propagation)
        if narrows:
            propagation = self.barrier.wait(writer.revision, immediately=call.return_immediately)
        else:
            self.barrier.settle(writer.revision)
        return Mutation(value, writer.revision, propagation)

    def _carried_out(self, writer: Writer, call: Call, now: datetime) -> CarriedOut | None:
        """Return what was carried out under the call's request id, if it is still remembered."""
        if not call.request_id:
            return None
        earlier = writer.carried_out(call.caller_id, call.method, call.request_id)
        if earlier is None or earlier.time < now - REQUEST_MEMORY:
            return None
        if not self.peppers.signed(_FINGERPRINT, call.fingerprint.encode(), bytes.fromhex(earlier.fingerprint)):
            raise invalid("request_id", "was used for a different request")
        return earlier


def require_workspace(reader: Reader, workspace_id: str) -> Workspace:
    """Return a workspace. Raises Refusal (WORKSPACE_NOT_FOUND)."""
    workspace = reader.workspace(workspace_id)
    if workspace is None:
        raise Refusal(ErrorReason.WORKSPACE_NOT_FOUND, "there is no such workspace")
    return workspace


def require_key(reader: Reader, key_id: str) -> Key:
    """Return a key. Raises Refusal (KEY_NOT_FOUND)."""
    key = reader.keys([key_id]).get(key_id)
    if key is None:
        raise Refusal(ErrorReason.KEY_NOT_FOUND, "there is no such key")
    return key


def actor_of(reader: Reader, call: Call, workspace_id: str, permission: Permission, now: datetime) -> Key | None:
    """Return the customer's key on whose behalf a call was made, if any, once it is clear that it may ask for this.

    Raises Refusal (ACTOR_*) as `check_actor` does.
    """
    actor_id = call.on_behalf_of_key_id
    if not actor_id:
        return None
    return check_actor(reader.keys([actor_id]).get(actor_id), workspace_id, permission, now)


def repeated(what: str, entity_id: str) -> Refusal:
    """Return the refusal of a repeat whose first answer held a secret, naming what was made."""
    return Refusal(
        ErrorReason.REQUEST_REPEATED,
        "this request_id has been carried out, and the secret it handed out cannot be shown again",
        metadata={what: entity_id},
    )
