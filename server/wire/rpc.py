"""The call under way, as servicers see it: who asks, and what the access log should say."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

import structlog
from google.protobuf.message import Message

from server.domain.token import is_id
from server.domain.validation import is_slug
from server.service.base import Call

_log = structlog.get_logger("texture_auth.access")


@dataclass(slots=True)
class Rpc:
    """One call. `notes` end up in its line of the access log and must hold no secret.

    `caller_id` is empty until the caller is known; `admit_again` finds out whether it may still call, where that takes
    long, and raises Refusal (CALLER_*). A `routine` call, which allowed and changed nothing worth a line of
    its own, is logged by sample.
    """

    method: str
    caller_id: str = ""
    routine: bool = False
    notes: dict[str, object] = field(default_factory=dict)
    admit_again: Callable[[], None] = field(default=lambda: None, repr=False)


CURRENT: ContextVar[Rpc] = ContextVar("CURRENT")


def note(**notes: object) -> None:
    """Add to the access log's line of the call under way."""
    CURRENT.get().notes.update(notes)


def log_part(**notes: object) -> None:
    """Write a line of its own for a part of the call under way: an answer of a batch."""
    rpc = CURRENT.get()
    _log.info("part", method=rpc.method, caller=rpc.caller_id, **notes)


def note_id(name: str, text: str) -> None:
    """Add an id that a caller gave to the access log's line, if it is one: callers mistake keys for their ids."""
    note(**{name: text if is_id(text) or is_slug(text) else "malformed"})


def call_of(request: Message) -> Call:
    """Return the part of a mutating request that all of them share; parts that a request does not have are empty."""
    rpc = CURRENT.get()
    request_id = getattr(request, "request_id", "")
    fingerprint = ""
    if request_id:
        fingerprint = hashlib.sha256(request.SerializeToString(deterministic=True)).hexdigest()
    return Call(
        caller_id=rpc.caller_id,
        method=rpc.method,
        request_id=request_id,
        fingerprint=fingerprint,
        on_behalf_of_key_id=getattr(request, "on_behalf_of_key_id", ""),
        reason=getattr(request, "reason", ""),
        return_immediately=getattr(request, "return_immediately", False),
    )
