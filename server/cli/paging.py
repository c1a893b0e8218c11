"""Lists, page by page."""

from __future__ import annotations

from typing import Any

import click
from google.protobuf.message import Message

from server.cli.client import Client, Method

LIMIT = click.option(
    "--limit", type=click.IntRange(min=1), default=100, show_default=True, help="How many to list at most."
)

_LARGEST_PAGE = 1000


def collect(client: Client, method: Method[Any], request: Any, field: str, limit: int) -> tuple[list[Message], bool]:
    """Return up to `limit` rows of a list, and whether there are more."""
    rows: list[Message] = []
    while True:
        request.page_size = min(limit - len(rows), _LARGEST_PAGE)
        reply = client.call(method, request)
        rows.extend(getattr(reply, field))
        if not reply.next_page_token or len(rows) >= limit:
            return rows, bool(reply.next_page_token)
        request.page_token = reply.next_page_token
