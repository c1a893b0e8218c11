"""Revisions: points in the history of a store, as opaque tokens for callers (CONSISTENCY rule 1)."""

from __future__ import annotations

import base64
import struct
from dataclasses import dataclass
from uuid import UUID

_FORM = struct.Struct(">16sQQ")


@dataclass(frozen=True, slots=True)
class Revision:
    """A point in a history.

    `epoch` is the identity of the history, `number` counts its changes, and `nonce` (63 random bits) tells apart two
    histories that share an epoch and a number, as a restored backup and its original do.
    """

    epoch: UUID
    number: int
    nonce: int

    def encode(self) -> str:
        """Return the token for callers: 43 characters of URL-safe base64."""
        packed = _FORM.pack(self.epoch.bytes, self.number, self.nonce)
        return base64.urlsafe_b64encode(packed).rstrip(b"=").decode()


def decode(token: str) -> Revision | None:
    """Return the revision that a token names, or None for what `encode` never made."""
    try:
        packed = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        epoch, number, nonce = _FORM.unpack(packed)
    except (ValueError, struct.error):
        return None
    revision = Revision(UUID(bytes=epoch), number, nonce)
    return revision if revision.encode() == token else None
