"""A Postgres that goes away under load: calls end soon, what was acknowledged holds, and all goes on by itself."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import grpc
import psycopg
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER

from server.wire.server import SERVICES
from tests.forwarder import forwarding
from tests.harness import Client, refused, running_service
from tests.operate.load import CLIENT_SECONDS, Load
from tests.operate.process import Server, client, health_stub, serving, wait_until
from tests.postgres import Postgres, running_postgres
from tests.wire.links_helpers import WORKSPACE, create_workspace, reason, server_key

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

OUTAGE_SECONDS = 30
# How many calls it takes to say that all is well, or that nothing is.
ENOUGH = 100
SERVING = {"SERVING"}
NOT_SERVING = {"NOT_SERVING"}

_WAIT_IN_COMMIT = """
    CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN PERFORM pg_advisory_xact_lock_shared(1); RETURN NULL; END $$;
    CREATE CONSTRAINT TRIGGER wait AFTER INSERT ON api_key DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION wait()
"""
_WAITING = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"


@pytest.fixture(scope="module")
def database() -> Iterator[Postgres]:
    """A Postgres of these tests' own, which keeps what it has acknowledged."""
    with running_postgres(durable=True) as postgres:
        yield postgres


def healths(channel: grpc.Channel) -> set[str]:
    """Return what health says, overall and of each service."""
    stub = health_stub(channel)
    asked = [health_pb2.HealthCheckRequest(service=name) for name in ("", *SERVICES)]
    return {
        health_pb2.HealthCheckResponse.ServingStatus.Name(stub.Check(one, timeout=CLIENT_SECONDS).status)
        for one in asked
    }


@contextmanager
def under_load(folder: Path, database: Postgres) -> Iterator[tuple[Server, Load]]:
    """Run a server in a process of its own and put it under load; when the block ends, hold it to what it said."""
    flags = ("--development", "--log-format", "json", "--database", database.new_database())
    with serving(folder, *flags) as server, client(server) as calling:
        create_workspace(calling)
        load = Load(calling)
        with load.running():
            goes_on(load)
            yield server, load
            goes_on(load)
        assert load.faults == []
        assert server.process.poll() is None
        assert [line for line in server.log if line.get("code") == "INTERNAL"] == []
        nothing_is_lost(load)
        everything_is_done_once(load)


def goes_on(load: Load) -> None:
    """Wait until calls are answered, decisions and changes alike."""
    answered, created = load.answered, len(load.created)
    wait_until(lambda: load.answered > answered + ENOUGH and len(load.created) > created + 10, "calls are answered")


def is_away(server: Server, load: Load) -> None:
    """Wait until calls fail and health says so."""
    unavailable = load.unavailable
    with grpc.insecure_channel(server.address) as channel:
        wait_until(lambda: healths(channel) == NOT_SERVING, "health says that the database is away")
    wait_until(lambda: load.unavailable > unavailable + 10, "calls fail")


def is_back(server: Server) -> None:
    """Wait until health says that the database is back."""
    with grpc.insecure_channel(server.address) as channel:
        wait_until(lambda: healths(channel) == SERVING, "health says that the database is back")


def nothing_is_lost(load: Load) -> None:
    """Make sure that each creation and each revocation that was acknowledged holds."""
    assert any(key.revoked.is_set() for key in load.known)
    for key in load.known:
        expected = "KEY_REVOKED" if key.revoked.is_set() else "PERMITTED"
        assert reason(load.calling, key.api_key) == expected


def everything_is_done_once(load: Load) -> None:
    """Make sure that no request was carried out twice, or not at all, however often it was sent."""
    names = Counter(key.display_name for key in listed_keys(load.calling))
    assert names == Counter(load.created)
    for key in load.known:
        answer = load.calling.keys.ListKeyEvents(key_pb.ListKeyEventsRequest(key_id=key.key_id))
        events = Counter(event.type for event in answer.events)
        expected = ["key.created", "key.revoked"] if key.revoked.is_set() else ["key.created"]
        assert events == Counter(expected)


def listed_keys(calling: Client) -> Iterator[Any]:
    token = ""
    while True:
        page = calling.keys.ListKeys(key_pb.ListKeysRequest(workspace_id=WORKSPACE, page_size=1000, page_token=token))
        yield from page.keys
        token = page.next_page_token
        if not token:
            return


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_database_that_starts_anew_loses_nothing(
    tmp_path: Path, database: Postgres, mode: Literal["fast", "immediate"]
) -> None:
    with under_load(tmp_path, database) as (server, load):
        database.stop(mode)
        is_away(server, load)
        database.start()
        is_back(server)


@pytest.mark.timeout(240)
def test_after_half_a_minute_without_a_database_all_goes_on(tmp_path: Path, database: Postgres) -> None:
    with under_load(tmp_path, database) as (server, load):
        database.stop("fast")
        is_away(server, load)
        until = time.monotonic() + OUTAGE_SECONDS
        with grpc.insecure_channel(server.address) as channel:
            while time.monotonic() < until:
                assert healths(channel) == NOT_SERVING
                time.sleep(0.5)
        is_away(server, load)
        database.start()
        is_back(server)


def test_a_database_that_falls_silent_is_away_until_it_answers_again(tmp_path: Path, database: Postgres) -> None:
    with (
        forwarding(database.socket) as forwarder,
        running_service(tmp_path, database=forwarder.url_of(database.new_database())) as service,
    ):
        create_workspace(service.operator)
        made = server_key(service.operator)
        watched = health_stub(service.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        forwarder.lose()
        calls: list[tuple[Any, Message]] = [
            (
                service.operator.authorize.Authorize,
                authorize_pb.AuthorizeRequest(api_key=made.api_key, permission="devices:list"),
            ),
            (service.operator.keys.RevokeKey, key_pb.RevokeKeyRequest(key_id=made.key.key_id)),
        ]
        for method, request in calls:
            found = refused(method, request, timeout=CLIENT_SECONDS)
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
            assert found.retry_seconds
        assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
        forwarder.recover()
        assert next(watched).status == health_pb2.HealthCheckResponse.SERVING
        watched.cancel()
        assert reason(service.operator, made.api_key) == "PERMITTED"


def test_a_standby_is_not_asked_since_it_may_not_know_of_a_revocation(tmp_path: Path, database: Postgres) -> None:
    url = database.new_database()
    with running_service(tmp_path, database=url) as service:
        create_workspace(service.operator)
        made = server_key(service.operator)
        database.demote()
        try:
            with psycopg.connect(url) as beside:
                assert beside.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
            found = refused(reason, service.operator, made.api_key)
            assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
        finally:
            database.promote()
        wait_until(lambda: healths(service.channel) == SERVING, "the database is the primary again")
        assert reason(service.operator, made.api_key) == "PERMITTED"


def test_a_change_whose_answer_was_lost_on_the_way_is_found_by_a_retry(tmp_path: Path, database: Postgres) -> None:
    url = database.new_database()
    with (
        forwarding(database.socket) as forwarder,
        running_service(tmp_path, database=forwarder.url_of(url)) as service,
        psycopg.connect(url, autocommit=True) as beside,
    ):
        create_workspace(service.operator)
        # From now on, whoever creates a key waits in the middle of the commit for as long as this connection likes.
        beside.execute(_WAIT_IN_COMMIT)
        beside.execute("SELECT pg_advisory_lock(1)")
        request = key_pb.CreateKeyRequest(
            workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="Backend", request_id="once"
        )
        first = service.operator.keys.CreateKey.future(request, timeout=CLIENT_SECONDS)
        wait_until(lambda: beside.execute(_WAITING).fetchone(), "the commit is under way")
        forwarder.cut()
        found = refused(first.result)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN")
        assert found.retry_seconds
        beside.execute("SELECT pg_advisory_unlock(1)")
        again = refused(service.operator.keys.CreateKey, request)
        assert (again.code, again.reason) == (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_REPEATED")
        assert [key.key_id for key in listed_keys(service.operator)] == [again.metadata["key_id"]]


def test_a_commit_that_takes_longer_than_its_deadline_is_not_said_to_have_changed_nothing(
    tmp_path: Path, database: Postgres
) -> None:
    url = database.new_database()
    with (
        running_service(tmp_path, database=url) as service,
        psycopg.connect(url, autocommit=True) as beside,
    ):
        create_workspace(service.operator)
        beside.execute(_WAIT_IN_COMMIT)
        beside.execute("SELECT pg_advisory_lock(1)")
        request = key_pb.CreateKeyRequest(
            workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="Backend", request_id="once"
        )
        found = refused(service.operator.keys.CreateKey, request, timeout=3)
        assert (found.code, found.reason) == (grpc.StatusCode.UNAVAILABLE, "OUTCOME_UNKNOWN")
        assert "may have been made" in found.message
        beside.execute("SELECT pg_advisory_unlock(1)")
