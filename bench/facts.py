"""A store of known keys and devices, of any size, in seconds.

Row by row through the services a million keys would take an hour, so rows are made here and inserted in bulk. Key
`number` and device `number` follow from the number: the key is a scoped one, of the end user who owns the device of the
same number, where `number` is odd, and a server key otherwise.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psycopg
from google.protobuf.message import Message
from psycopg import sql
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import key_pb2

from server import app
from server.domain.kinds import CEILING, TOKEN_KIND, Environment, ExposurePolicy, KeyKind, Role
from server.domain.model import Caller, Device, Generation, Key, Workspace
from server.domain.peppers import Peppers
from server.domain.token import TokenKind, checksum
from server.settings import Settings
from server.store import rows, tables

WORKSPACE = "bench"
CALLER = "bench-caller"
PERMISSIONS = ("devices:read", "devices:command")
_MADE = datetime(2026, 1, 1, tzinfo=UTC)
_PEPPER = "bench " + "5a" * 32
_PEPPERS = Peppers.parse(_PEPPER)
_YEAR = timedelta(days=365)
_AT_ONCE = 20_000


@dataclass(frozen=True)
class Facts:
    """A database with so many keys and devices, and what a server of it is to be told.

    `secret` goes into every key, so that the keys of one store are of no use in another.
    """

    database: str
    count: int
    secret: str
    folder: Path

    @property
    def bearer(self) -> Path:
        """The file with the key of the caller."""
        return self.folder / "caller.key"

    @property
    def environment(self) -> dict[str, str]:
        """What a server of these facts is to find in its environment."""
        return {
            "TEXTURE_AUTH_DATABASE": self.database,
            "TEXTURE_AUTH_PEPPERS": _PEPPER,
            "TEXTURE_AUTH_INSECURE_PLAINTEXT": "true",
            "TEXTURE_AUTH_LOG_FORMAT": "json",
        }

    def kind(self, number: int) -> KeyKind:
        """Return the kind of a key."""
        return KeyKind.SCOPED if number % 2 else KeyKind.SERVER

    def key_id(self, number: int) -> str:
        """Return the id of a key."""
        return f"Bench{number:011d}"

    def api_key(self, number: int) -> str:
        """Return a key in full."""
        return _token(TOKEN_KIND[self.kind(number)], self.key_id(number), self.secret)

    def device_id(self, number: int) -> str:
        """Return the id of a device."""
        return f"device-{number:09d}"

    def end_user(self, number: int) -> str:
        """Return the end user who owns a device, and a scoped key."""
        return f"end-user-{number}"

    def allows(self, key: int, device: int) -> bool:
        """Tell whether a key may read a device."""
        return device < self.count and (self.kind(key) is KeyKind.SERVER or key == device)

    def question(self, key: int, device: int, permission: str = PERMISSIONS[0]) -> pb.AuthorizeRequest:
        """Return a question."""
        return pb.AuthorizeRequest(api_key=self.api_key(key), permission=permission, device_id=self.device_id(device))

    def answer(self, key: int, device: int) -> pb.AuthorizeResponse:
        """Return what the question must be answered with; `revision` and `decision_id` vary, and are placeholders."""
        kind = self.kind(key)
        named = pb.AuthorizedKey(
            key_id=self.key_id(key),
            kind=key_pb2.KEY_KIND_SCOPED if kind is KeyKind.SCOPED else key_pb2.KEY_KIND_SERVER,
            workspace_id=WORKSPACE,
            reference_id=self.end_user(key) if kind is KeyKind.SCOPED else "",
        )
        answer = pb.AuthorizeResponse(key=named, revision="r", decision_id="d", decision=pb.DECISION_DENY)
        if self.allows(key, device):
            answer.decision, answer.reason, answer.http_status_code = pb.DECISION_ALLOW, pb.REASON_PERMITTED, 200
        elif kind is KeyKind.SCOPED:
            answer.reason, answer.http_status_code = pb.REASON_DEVICE_NOT_PERMITTED, 403
        else:
            answer.reason, answer.http_status_code = pb.REASON_DEVICE_NOT_FOUND, 404
        return answer

    def exchange(self, key: int, device: int) -> tuple[Message, Message]:
        """Return a question and what must answer it."""
        return self.question(key, device), self.answer(key, device)

    def batch(self, pairs: Iterable[tuple[int, int]]) -> tuple[Message, Message]:
        """Return one request with many questions, each about a key and a device, and what must answer it."""
        request, answer = pb.BatchAuthorizeRequest(), pb.BatchAuthorizeResponse(revision="r")
        for key, device in pairs:
            question = self.question(key, device)
            request.questions.add(
                api_key=question.api_key, permission=question.permission, device_id=question.device_id
            )
            answer.answers.add(answer=self.answer(key, device))
        return request, answer


# The fields of Authorize's and BatchAuthorize's answers that differ from one to the next: revision and decision_id.
VARYING = "7,9"
VARYING_IN_BATCH = "2,1.1.7,1.1.9"


def make(folder: Path, count: int, database: str | None = None) -> Facts:
    """Make a store with so many keys and devices: in a SQLite file in the folder, or in a Postgres database."""
    facts = Facts(database or f"sqlite:{folder}/bench.db", count, secrets.token_hex(16), folder)
    settings = Settings(database=facts.database)
    app.migrate(settings)
    store = app.open_database(settings).store
    caller_key = _token(TokenKind.SERVICE, "BenchCaller00000", facts.secret)
    facts.bearer.touch(mode=0o600)
    facts.bearer.write_text(caller_key)
    with closing(store), store.write() as writer:
        writer.add_workspace(_workspace())
        writer.add_caller(_caller(caller_key))
        revision = writer.revision.number
    if settings.sqlite_path is not None:
        _fill_sqlite(settings.sqlite_path, facts, revision)
    else:
        _fill_postgres(facts, revision)
    return facts


def _token(kind: TokenKind, public_id: str, secret: str) -> str:
    body = f"{kind.value}_{public_id}_{secret}"
    return body + checksum(body)


def _generation(text: str) -> Generation:
    pepper_id, digest = _PEPPERS.digest(text)
    return Generation(number=1, pepper_id=pepper_id, digest=digest, last_four=text[-4:], create_time=_MADE)


def _workspace() -> Workspace:
    return Workspace(
        workspace_id=WORKSPACE,
        display_name="Bench",
        environment=Environment.PRODUCTION,
        redirect_uris=(),
        exposure_policy=ExposurePolicy.REVOKE,
        scoped_key_lifetime=_YEAR,
        connect_link_lifetime=_YEAR,
        create_time=_MADE,
        update_time=_MADE,
    )


def _caller(caller_key: str) -> Caller:
    return Caller(
        caller_id=CALLER,
        display_name="Bench",
        roles=frozenset({Role.OPERATOR}),
        key_id=caller_key.split("_")[2],
        generations=(_generation(caller_key),),
        create_time=_MADE,
        update_time=_MADE,
    )


def _key(facts: Facts, number: int) -> Key:
    kind = facts.kind(number)
    scoped = kind is KeyKind.SCOPED
    return Key(
        key_id=facts.key_id(number),
        workspace_id=WORKSPACE,
        kind=kind,
        display_name=f"Key {number}",
        permissions=CEILING[kind],
        reference_id=facts.end_user(number) if scoped else None,
        generations=(_generation(facts.api_key(number)),),
        create_time=_MADE,
        update_time=_MADE,
        created_by_caller_id=CALLER,
    )


def _device(facts: Facts, number: int) -> Device:
    return Device(
        device_id=facts.device_id(number),
        workspace_id=WORKSPACE,
        reference_id=facts.end_user(number),
        manufacturer="acme",
        create_time=_MADE,
        update_time=_MADE,
    )


_Table = type[Any]


def _rows(facts: Facts, numbers: range, revision: int) -> Iterator[tuple[_Table, list[dict[str, Any]]]]:
    """Yield the rows of some keys and devices, as the store has them, each table's before those that refer to it."""
    keys = [_key(facts, number) for number in numbers]
    listed = {"create_revision": revision}
    yield tables.Key, [rows.key_row(key) | listed for key in keys]
    yield tables.KeyGeneration, [rows.generation_row(key.key_id, key.generations[0]) for key in keys]
    yield tables.Device, [rows.device_row(_device(facts, number)) | listed for number in numbers]


def _stretches(count: int) -> Iterator[range]:
    for first in range(0, count, _AT_ONCE):
        yield range(first, min(count, first + _AT_ONCE))


def _values(table: _Table, found: list[dict[str, Any]]) -> tuple[list[str], Iterator[list[Any]]]:
    """Return the names of a table's columns and, for each row, what the database is to hold in them."""
    fields = [field for field in table._meta.sorted_fields if field.name in found[0]]  # noqa: SLF001 - Peewee's own way
    # Most columns hold the same in every row, and to write them out is what takes the time.
    columns = [
        (field.name, found[0][field.name], field.db_value(found[0][field.name]), field.db_value) for field in fields
    ]

    def values(row: dict[str, Any]) -> list[Any]:
        return [same if row[name] == first else written(row[name]) for name, first, same, written in columns]

    return [field.column_name for field in fields], map(values, found)


def _fill_sqlite(path: Path, facts: Facts, revision: int) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # The file is the bench's own, and made again where the machine fails.
        connection.execute("PRAGMA synchronous = off")
        connection.execute("PRAGMA cache_size = -400000")
        for numbers in _stretches(facts.count):
            connection.execute("BEGIN")
            for table, found in _rows(facts, numbers, revision):
                names, values = _values(table, found)
                columns, marks = ", ".join(names), ", ".join("?" * len(names))
                connection.executemany(
                    f"INSERT INTO {table._meta.table_name} ({columns}) VALUES ({marks})",  # noqa: S608, SLF001 - names
                    values,
                )
            connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _fill_postgres(facts: Facts, revision: int) -> None:
    with psycopg.connect(facts.database) as connection, connection.cursor() as cursor:
        for numbers in _stretches(facts.count):
            for table, found in _rows(facts, numbers, revision):
                names, values = _values(table, found)
                statement = sql.SQL("COPY {} ({}) FROM STDIN").format(
                    sql.Identifier(table._meta.table_name),  # noqa: SLF001 - Peewee's own way
                    sql.SQL(", ").join(map(sql.Identifier, names)),
                )
                with cursor.copy(statement) as copy:
                    for row in values:
                        copy.write_row(row)
        connection.commit()
        connection.autocommit = True
        connection.execute("ANALYZE")
