"""Lists, page by page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import click
from google.protobuf.message import Message

from server.cli.client import Client, Method

LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many to list at most."
)

_LARGEST_PAGE = 1000


@dataclass(frozen=True, slots=True)
class Collected:
    """Rows of a list, whether there are more, and the first reply, for what else it said."""

    rows: list[Message]
    more: bool
    reply: Any


def collect(client: Client, method: Method[Any], request: Any, field: str, limit: int) -> tuple[list[Message], bool]:
    """Return up to `limit` rows of a list, and whether there are more."""
    collected = collect_reply(client, method, request, field, limit)
    return collected.rows, collected.more


def collect_reply(client: Client, method: Method[Any], request: Any, field: str, limit: int) -> Collected:
    """Return up to `limit` rows of a list, with the first reply."""
    rows: list[Message] = []
    first = None
    while True:
        request.page_size = min(limit - len(rows), _LARGEST_PAGE)
        reply = client.call(method, request)
        first = reply if first is None else first
        rows.extend(getattr(reply, field))
        if not reply.next_page_token or len(rows) >= limit:
            return Collected(rows, bool(reply.next_page_token), first)
        request.page_token = reply.next_page_token
