"""Messages as they arrive."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from google.protobuf.message import DecodeError

from server.domain.errors import ErrorReason, Refusal, Violation

T = TypeVar("T")


def parsed(raw: bytes, deserialize: Callable[[bytes], T]) -> T:
    """Return the message that bytes are. Raises Refusal (MESSAGE_MALFORMED)."""
    try:
        return deserialize(raw)
    except DecodeError:
        description = "is not a message of the type that this RPC takes"
        raise Refusal(
            ErrorReason.MESSAGE_MALFORMED,
            f"the request {description}",
            violations=(Violation("", description),),
        ) from None
