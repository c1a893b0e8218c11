"""How a Postgres store is: the settings of its server that this service depends on, and its clock."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from urllib.parse import urlsplit

import psycopg

from server.store.postgres import PostgresEngine

# The tests run on this release; older ones may well do.
OLDEST_TESTED = 18
_CONNECT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class PostgresCondition:
    """What was found.

    `unsafe` names settings that let an acknowledged commit be lost; `room` is for connections of those who are no
    superusers; `ahead` is the server's clock minus this machine's.
    """

    version: str
    major: int
    standby: bool
    unsafe: tuple[str, ...]
    room: int
    ahead: timedelta


def examine(engine: PostgresEngine, clock: Callable[[], datetime]) -> PostgresCondition:
    """Ask a server about itself. Raises StoreUnavailable."""
    with engine.reading() as database:
        before = clock()
        (there,) = database.execute_sql("SELECT clock_timestamp()").fetchone()
        here = before + (clock() - before) / 2
        version, number, standby, room = database.execute_sql(
            "SELECT current_setting('server_version'), current_setting('server_version_num')::int, "
            "pg_is_in_recovery(), current_setting('max_connections')::int "
            "- current_setting('superuser_reserved_connections')::int "
            "- coalesce(current_setting('reserved_connections', true)::int, 0)"
        ).fetchone()
        unsafe = database.execute_sql(
            "SELECT name FROM pg_settings WHERE setting = 'off' "
            "AND name IN ('fsync', 'full_page_writes', 'synchronous_commit') ORDER BY name"
        ).fetchall()
    return PostgresCondition(
        version=version.split()[0],
        major=number // 10_000,
        standby=standby,
        unsafe=tuple(name for (name,) in unsafe),
        room=room,
        ahead=there - here,
    )


def why_unreachable(url: str) -> str:
    """Try to connect, and return what the driver says, empty where it says nothing.

    Nothing is returned of a URL that holds a password, or might: the driver quotes the parts of what it cannot read.
    """
    if _may_hold_secret(url):
        return ""
    try:
        psycopg.connect(url, connect_timeout=_CONNECT_SECONDS).close()
    except psycopg.Error as error:
        return (str(error).splitlines() or [type(error).__name__])[0]
    return ""


def _may_hold_secret(url: str) -> bool:
    try:
        user = urlsplit(url).netloc.rpartition("@")[0]
    except ValueError:
        return True
    return ":" in user or "@" in user or "?" in url or "#" in url
