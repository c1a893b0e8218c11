"""A Postgres that goes away, falls silent or takes no writes: nobody waits for long, and all goes on afterwards."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import LiteralString
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from server.store import postgres as postgres_store
from server.store.contract import OutcomeUnknown, Store, StoreUnavailable, deadline_within
from server.store.peewee_store import PeeweeStore, PeeweeWriter
from server.store.postgres import PostgresEngine
from tests.builders import WORKSPACE_ID, make_workspace
from tests.forwarder import BOTH, Direction, Forwarder, forwarding
from tests.postgres import Postgres
from tests.store.support import PATIENCE, Threads, populate

CONNECTIONS = 6
# A call's deadline, and how much later even a busy machine ends it. Without a guard nothing would.
DEADLINE = 1.0
MARGIN = 10.0


@dataclass(frozen=True)
class Away:
    """A store behind a forwarder, and the way to the database that does not go through it."""

    store: Store
    engine: PostgresEngine
    forwarder: Forwarder
    url: str

    @property
    def name(self) -> str:
        """The name of the database."""
        return urlsplit(self.url).path.strip("/")

    def administer(self, statement: LiteralString) -> int:
        """Run a statement, with {} for the database's name, beside the store; return the number of its rows."""
        with psycopg.connect(self.url, autocommit=True, options="-c default_transaction_read_only=off") as connection:
            return connection.execute(sql.SQL(statement).format(sql.Identifier(self.name))).rowcount

    def kill_backends(self) -> int:
        """End the server's side of every other connection to the database, and return how many there were."""
        return self.administer(
            "SELECT pg_terminate_backend(pid, 30000) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


@pytest.fixture
def away(postgres: Postgres, postgres_url: str) -> Iterator[Away]:
    with forwarding(postgres.socket) as forwarder:
        engine = PostgresEngine(forwarder.url_of(postgres_url), CONNECTIONS)
        store = PeeweeStore(engine)
        populate(store)
        yield Away(store, engine, forwarder, postgres_url)
        store.close()


@pytest.fixture
def threads() -> Threads:
    return Threads(at_end=lambda: None)


@contextmanager
def unavailable_in_time(
    deadline: float = DEADLINE, within: float = DEADLINE, expected: type[StoreUnavailable] = StoreUnavailable
) -> Iterator[None]:
    """Make sure that the block, which has so long, finds the store unavailable in so many seconds, about."""
    started = time.monotonic()
    with deadline_within(deadline), pytest.raises(expected):
        yield
    assert time.monotonic() - started < within + MARGIN


def name_of(store: Store) -> str:
    with store.read() as reader:
        workspace = reader.workspace(WORKSPACE_ID)
    assert workspace is not None
    return workspace.display_name


def rename(store: Store, name: str) -> None:
    with store.write() as writer:
        writer.replace_workspace(make_workspace(display_name=name))


def recovered(store: Store) -> None:
    """Wait until the store can be asked again, and make sure that it then works, for as many as ever at once."""
    until = time.monotonic() + PATIENCE
    while True:
        try:
            store.ping()
        except StoreUnavailable:
            assert time.monotonic() < until
        else:
            break
    works_for_many(store)


def works_for_many(store: Store) -> None:
    """Make sure that every thread of a full house gets a connection that works, at the first attempt."""

    def hold(number: int) -> None:
        with store.read() as reader:
            reader.head()
            together.wait(PATIENCE)

    together = threading.Barrier(CONNECTIONS)
    Threads(at_end=lambda: None).together(CONNECTIONS, hold)
    rename(store, "afterwards")
    assert name_of(store) == "afterwards"


WORK: dict[str, Callable[[Store], object]] = {
    "a ping": lambda store: store.ping(),
    "a read": name_of,
    "a write": lambda store: rename(store, "never"),
}
every_work = pytest.mark.parametrize("work", WORK.values(), ids=WORK)


class TestSilence:
    """Packets vanish: established connections hang, and new ones get no answer."""

    @every_work
    def test_whoever_comes_is_told_before_long(self, away: Away, work: Callable[[Store], object]) -> None:
        works_for_many(away.store)
        away.forwarder.lose()
        for _ in range(2):
            with unavailable_in_time():
                work(away.store)
        away.forwarder.recover()
        recovered(away.store)

    def test_whoever_is_in_the_middle_is_told_too(self, away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_store, "IDLE_SECONDS", 0.5)
        for begin in (away.store.read, away.store.write):
            with unavailable_in_time(), begin() as transaction:
                transaction.head()
                away.forwarder.lose()
                transaction.head()
            away.forwarder.recover()
            recovered(away.store)

    def test_a_call_without_a_deadline_is_not_held_for_ever(self, away: Away, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(postgres_store, "STATEMENT_SECONDS", 0.5)
        monkeypatch.setattr(postgres_store, "GRACE_SECONDS", 0.1)
        with unavailable_in_time(math.inf), away.store.read() as reader:
            reader.head()
            away.forwarder.lose()
            reader.head()

    def test_of_a_full_house_nobody_is_forgotten(self, away: Away, threads: Threads) -> None:
        works_for_many(away.store)
        in_the_middle = threading.Barrier(CONNECTIONS, away.forwarder.lose)

        def call(number: int) -> None:
            with unavailable_in_time(3), away.store.read() as reader:
                reader.head()
                in_the_middle.wait(PATIENCE)
                reader.head()
            with unavailable_in_time():
                away.store.ping()

        threads.together(CONNECTIONS, call)
        away.forwarder.recover()
        recovered(away.store)

    def test_a_connection_that_fell_silent_is_given_to_nobody(self, away: Away) -> None:
        works_for_many(away.store)
        away.forwarder.lose()
        away.forwarder.recover()
        works_for_many(away.store)

    @pytest.mark.parametrize(("lost", "committed"), [(BOTH, False), (frozenset({"answers"}), True)])
    def test_a_commit_without_an_answer_is_unavailable_whatever_became_of_it(
        self, away: Away, lost: frozenset[Direction], committed: bool
    ) -> None:
        before = name_of(away.store)
        with unavailable_in_time(expected=OutcomeUnknown), away.engine.writing() as database:
            writer = PeeweeWriter(database, away.engine.now)
            writer.replace_workspace(make_workspace(display_name="perhaps"))
            assert writer.finish()
            away.forwarder.lose(lost)
            away.engine.commit()
        away.forwarder.recover()
        assert name_of(away.store) == ("perhaps" if committed else before)

    def test_whoever_waits_for_the_lock_of_a_writer_that_vanished_gets_it(self, away: Away) -> None:
        with unavailable_in_time(), away.store.write() as writer:
            away.forwarder.lose()
            writer.head()
        other = PeeweeStore(PostgresEngine(away.url, 1))
        rename(other, "by another")
        other.close()


class TestKilledBackends:
    """The server ends connections, as it does when it stops."""

    def test_between_transactions_nobody_notices(self, away: Away) -> None:
        works_for_many(away.store)
        assert away.kill_backends() == CONNECTIONS
        works_for_many(away.store)
        assert away.kill_backends() == CONNECTIONS
        rename(away.store, "at the first attempt")

    def test_in_the_middle_of_a_transaction_it_is_unavailable_and_rolled_back(self, away: Away) -> None:
        before = name_of(away.store)
        for begin in (away.store.read, away.store.write):
            with unavailable_in_time(), begin() as transaction:
                transaction.head()
                away.kill_backends()
                transaction.head()
            works_for_many(away.store)
        with unavailable_in_time(), away.store.write() as writer:
            writer.replace_workspace(make_workspace(display_name="never"))
            away.kill_backends()
        assert name_of(away.store) == "afterwards" != before


class TestReadOnly:
    """A server that takes no writes: one that was demoted, or is being looked after."""

    @pytest.fixture(params=["", "?target_session_attrs=read-write"])
    def read_only(self, away: Away, request: pytest.FixtureRequest) -> Iterator[Away]:
        engine = PostgresEngine(away.forwarder.url_of(away.url) + request.param, CONNECTIONS)
        yield Away(PeeweeStore(engine), engine, away.forwarder, away.url)
        engine.close()

    def test_it_is_unavailable_to_writers_until_it_takes_writes_again(self, read_only: Away) -> None:
        works_for_many(read_only.store)
        read_only.administer("ALTER DATABASE {} SET default_transaction_read_only = on")
        read_only.kill_backends()
        for _ in range(2):
            with unavailable_in_time():
                rename(read_only.store, "never")
        read_only.administer("ALTER DATABASE {} RESET default_transaction_read_only")
        recovered_for_writing(read_only.store)
        works_for_many(read_only.store)


def recovered_for_writing(store: Store) -> None:
    until = time.monotonic() + PATIENCE
    while True:
        try:
            rename(store, "again")
        except StoreUnavailable:
            assert time.monotonic() < until
        else:
            return


class TestSeveralHosts:
    """A URL may name more than one server."""

    def test_when_one_goes_the_next_takes_its_place(self, postgres: Postgres, away: Away) -> None:
        with forwarding(postgres.socket) as first:
            parts = urlsplit(first.url_of(away.url))
            _, _, other = urlsplit(away.forwarder.url_of(away.url)).netloc.rpartition("@")
            url = urlunsplit(parts._replace(netloc=f"{parts.netloc},{other}", query="target_session_attrs=read-write"))
            store = PeeweeStore(PostgresEngine(url, CONNECTIONS))
            works_for_many(store)
        works_for_many(store)
        store.close()


class TestTooManyClients:
    """The server takes no more connections."""

    def test_it_is_unavailable_until_there_is_room(self, away: Away) -> None:
        # The limit does not hold for superusers. The role is called like the database.
        away.administer("CREATE ROLE {} LOGIN CONNECTION LIMIT 1")
        away.administer("GRANT pg_read_all_data, pg_write_all_data TO {}")
        parts = urlsplit(away.url)
        url = urlunsplit(parts._replace(netloc=f"{away.name}@"))
        store = PeeweeStore(PostgresEngine(url, CONNECTIONS))
        try:
            with psycopg.connect(url), unavailable_in_time():
                store.ping()
            recovered_for_writing(store)
        finally:
            store.close()
            away.administer("DROP ROLE {}")


@pytest.mark.parametrize("url", ["postgresql://name:pa55word@[host/x", "postgresql://host/x?pass=pa55word"])
def test_a_url_that_cannot_be_right_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(StoreUnavailable) as caught:
        PostgresEngine(url, 1)
    assert "pa55word" not in str(caught.value)


def test_the_url_has_the_last_word_about_a_connection(postgres_url: str) -> None:
    engine = PostgresEngine(f"{postgres_url}&application_name=mine&keepalives_idle=77", 1)
    with engine.reading() as database:
        (found,) = database.execute_sql("SELECT application_name FROM pg_stat_activity WHERE pid = pg_backend_pid()")
        assert found == ("mine",)
        parameters = engine.database.checked_out.connection.info.get_parameters()
        assert (parameters["keepalives_idle"], parameters["keepalives_count"]) == ("77", "3")
    engine.close()
