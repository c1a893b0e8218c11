"""Page tokens: a place in a list, bound to the list and its filter."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from server.domain.errors import invalid
from server.domain.peppers import Peppers
from server.store.contract import Cursor

Part: TypeAlias = "str | Sequence[str] | Sequence[Sequence[str]] | None"

_TAG_LENGTH = 16


@dataclass(frozen=True, slots=True)
class PageTokens:
    """Makes and reads page tokens, signed so that nobody else can make one."""

    peppers: Peppers

    def encode(self, cursor: Cursor | None, *scope: Part) -> str:
        """Return the token for a place in the list that `scope` describes; empty for None, the end."""
        if cursor is None:
            return ""
        place = json.dumps([cursor.position, cursor.row_id], separators=(",", ":")).encode()
        tag = self.peppers.sign("page-token", _message(place, scope))
        return base64.urlsafe_b64encode(tag + place).rstrip(b"=").decode()

    def decode(self, token: str, *scope: Part, field: str = "page_token") -> Cursor | None:
        """Return the place that a token names; None for an empty one, the beginning.

        Raises Refusal (FIELD_INVALID) for one that was not made here for the same scope.
        """
        if not token:
            return None
        try:
            raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        except ValueError:
            raw = b""
        tag, place = raw[:_TAG_LENGTH], raw[_TAG_LENGTH:]
        if not self.peppers.signed("page-token", _message(place, scope), tag):
            raise invalid(field, "was not given out for this list and filter")
        position, row_id = json.loads(place)
        return Cursor(position, row_id)


def _message(place: bytes, scope: Sequence[Part]) -> bytes:
    return json.dumps(scope).encode() + b"\0" + place
