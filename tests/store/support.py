"""What the tests of stores share: threads, samples of every entity, and a look at the tables themselves."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from server.domain.events import Event, EventType, Origin, describe
from server.domain.kinds import KeyKind
from server.domain.model import Key
from server.store import tables
from server.store.contract import CarriedOut, Cursor, Page, Reader, Store, Writer
from server.store.peewee_store import Engine
from tests.builders import KEY_IDS, NOW, make_caller, make_connect_link, make_device, make_key, make_workspace

T = TypeVar("T")

# No test waits this long unless something is wrong.
PATIENCE = 60

OTHER_WORKSPACE_ID = "grid-two"
SERVER_KEY_ID = KEY_IDS[KeyKind.SERVER]
CONNECT_KEY_ID = KEY_IDS[KeyKind.CONNECT]
SCOPED_KEY_ID = KEY_IDS[KeyKind.SCOPED]


class Deliberate(Exception):  # noqa: N818 - it names what it is
    """Raised by tests to end a transaction."""


@contextmanager
def abandoned(store: Store) -> Iterator[Writer]:
    """Open a transaction that ends with an exception, and make sure that this passes on as it was raised."""
    error = Deliberate()
    passed_on: list[Deliberate] = []
    try:
        with store.write() as writer:
            yield writer
            raise error
    except Deliberate as raised:
        passed_on.append(raised)
    assert passed_on == [error]


@dataclass(frozen=True)
class Threads:
    """Runs work in other threads, each of which ends with `at_end`, where it lets go of what is its own."""

    at_end: Callable[[], None]

    def together(self, count: int, work: Callable[[int], T]) -> list[T]:
        """Run `work(0)` to `work(count - 1)`, each in a thread, all let loose at once; return what they returned."""
        barrier = threading.Barrier(count)

        def run(number: int) -> T:
            barrier.wait(PATIENCE)
            try:
                return work(number)
            finally:
                self.at_end()

        with ThreadPoolExecutor(count) as pool:
            futures = [pool.submit(run, number) for number in range(count)]
            return [future.result(PATIENCE) for future in futures]

    @contextmanager
    def another(self) -> Iterator[Executor]:
        """Give one other thread, which does one thing after another."""
        with ThreadPoolExecutor(1) as pool:
            try:
                yield pool
            finally:
                pool.submit(self.at_end).result(PATIENCE)

    def elsewhere(self, work: Callable[[], T]) -> T:
        """Run `work` in another thread and return what it returned."""
        with self.another() as pool:
            return pool.submit(work).result(PATIENCE)


def populate(store: Store) -> None:
    """Put one of each entity into a store, and a second workspace."""
    with store.write() as writer:
        writer.add_workspace(make_workspace())
        writer.add_workspace(make_workspace(workspace_id=OTHER_WORKSPACE_ID, display_name="Grid Two"))
        for kind in KeyKind:
            writer.add_key(make_key(kind))
        writer.add_connect_link(make_connect_link())
        writer.put_devices([make_device()])
        writer.add_caller(make_caller())


def make_event(subject: Key | None = None, **origin: Any) -> Event:
    """Return the event of a key's creation."""
    key = make_key() if subject is None else subject
    return describe(EventType.KEY_CREATED, Origin(caller_id="dashboard", **origin), None, key, NOW)


def make_request(request_id: str = "request-1", *, time: datetime = NOW, **changes: str) -> CarriedOut:
    """Return a request that was carried out."""
    values = {"caller_id": "dashboard", "method": "CreateKey", "fingerprint": "f1", "entity_id": SERVER_KEY_ID}
    return CarriedOut(**(values | changes), request_id=request_id, time=time)


def dump(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Return every row of every table."""
    with engine.reading() as database:
        return {
            table._meta.table_name: sorted(table.select().tuples().execute(database), key=repr)
            for table in tables.TABLES
        }


def changes_of(engine: Engine, number: int) -> set[tuple[int, str, str]]:
    """Return the change rows of a revision: nonce, kind and id of the entity."""
    table = tables.Change
    with engine.reading() as database:
        query = table.select(table.nonce, table.entity_kind, table.entity_id).where(table.revision == number)
        return set(query.tuples().execute(database))


def walk(store: Store, page: Callable[[Reader, Cursor | None], Page[T]]) -> Iterator[Page[T]]:
    """Read a list page by page, each in a snapshot of its own. What is done between two pages is the caller's."""
    after = None
    while True:
        with store.read() as reader:
            found = page(reader, after)
        yield found
        if found.next is None:
            return
        after = found.next


def read_all(store: Store, page: Callable[[Reader, Cursor | None], Page[T]]) -> list[T]:
    """Return all rows of a list."""
    return [row for found in walk(store, page) for row in found.rows]
