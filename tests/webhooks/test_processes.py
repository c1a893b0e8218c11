"""Servers in processes of their own: one that is killed loses nothing, and several do not send the same as a rule."""

from __future__ import annotations

import os
import signal
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from standardwebhooks.webhooks import Webhook
from texture.auth.v1 import key_service_pb2
from texture.auth.v1 import webhook_service_pb2 as pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER
from texture.auth.v1.webhook_pb2 import WEBHOOK_DELIVERY_STATE_DELIVERED
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_PRODUCTION
from texture.auth.v1.workspace_service_pb2 import CreateWorkspaceRequest

from tests.harness import Client
from tests.operate.certificates import Certificate
from tests.operate.process import Server, client, serving, wait_until
from tests.webhooks.receiver import HOST, Receiver, receiving

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

WORKSPACE = "grid-one"
MANY = 30


@pytest.fixture(params=["sqlite", "postgres"])
def environment(ca: Path, request: pytest.FixtureRequest) -> dict[str, str]:
    """The settings of servers that may send to receivers here: once on each kind of database."""
    settings = {"TEXTURE_AUTH_WEBHOOK_PRIVATE_HOSTS": HOST, "TEXTURE_AUTH_WEBHOOK_CA": str(ca)}
    if request.param == "postgres":
        settings["TEXTURE_AUTH_DATABASE"] = request.getfixturevalue("postgres_url")
    return settings


@contextmanager
def calling(folder: Path, environment: dict[str, str], *flags: str) -> Iterator[tuple[Server, Client]]:
    """Run a development server, and call it."""
    with serving(folder, "--development", *flags, env=environment) as server, client(server) as caller:
        yield server, caller


def arrange(caller: Client, url: str) -> pb.CreateWebhookEndpointResponse:
    caller.workspaces.CreateWorkspace(
        CreateWorkspaceRequest(workspace_id=WORKSPACE, display_name="Grid", environment=ENVIRONMENT_PRODUCTION)
    )
    return caller.webhooks.CreateWebhookEndpoint(
        pb.CreateWebhookEndpointRequest(workspace_id=WORKSPACE, url=url, event_types=["key.created"])
    )


def make_keys(caller: Client, count: int = MANY) -> set[str]:
    request = key_service_pb2.CreateKeyRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="a key")
    return {caller.keys.CreateKey(request).key.key_id for _ in range(count)}


def told_of(receiver: Receiver) -> list[str]:
    return [str(one.payload["data"]["subject_id"]) for one in receiver.received]


def all_delivered(caller: Client, created: pb.CreateWebhookEndpointResponse, count: int) -> bool:
    request = pb.ListWebhookDeliveriesRequest(
        webhook_endpoint_id=created.webhook_endpoint.webhook_endpoint_id,
        state=WEBHOOK_DELIVERY_STATE_DELIVERED,
        page_size=1000,
    )
    return len(caller.webhooks.ListWebhookDeliveries(request).webhook_deliveries) == count


def test_a_receiver_of_the_library_accepts_what_it_is_sent(
    tmp_path: Path, environment: dict[str, str], receiver: Receiver
) -> None:
    with calling(tmp_path, environment) as (_, caller):
        created = arrange(caller, receiver.url)
        (key_id,) = make_keys(caller, 1)
        (request,) = receiver.wait_for(1)
        payload = Webhook(created.signing_secret).verify(request.body, dict(request.headers))
        assert payload["data"]["subject_id"] == key_id


def test_a_server_that_is_killed_between_commit_and_send_loses_nothing(
    tmp_path: Path, environment: dict[str, str], certificate: Certificate
) -> None:
    with receiving(certificate) as receiver:
        receiver.reply = receiver.silent
        with calling(tmp_path, environment) as (server, caller):
            created = arrange(caller, receiver.url)
            keys = make_keys(caller)
            server.process.send_signal(signal.SIGKILL)
            server.exit_code()
        # What it had begun to send was never answered.
        begun = len(receiver.received)
        assert begun < MANY
        receiver.reply = lambda connection, _: connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        _end_leases(tmp_path, environment)
        with calling(tmp_path, environment) as (_, caller):
            wait_until(lambda: all_delivered(caller, created, MANY), "all of them")
        assert set(told_of(receiver)) == keys
        assert len({one.message_id for one in receiver.received}) == MANY


def _end_leases(folder: Path, environment: dict[str, str]) -> None:
    """Let the time pass for which the dead server has deliveries to itself."""
    statement = "UPDATE webhook_delivery SET next_attempt_time = 0 WHERE state = 'pending'"
    url = environment.get("TEXTURE_AUTH_DATABASE")
    if url is None:
        with closing(sqlite3.connect(folder / "var" / "texture-auth.db")) as database, database:
            database.execute(statement)
    else:
        with psycopg.connect(url) as connection:
            connection.execute(statement)


def test_several_processes_share_the_work_and_none_sends_what_another_has(
    tmp_path: Path, environment: dict[str, str], receiver: Receiver
) -> None:
    with calling(tmp_path, environment, "--workers", "2") as (_, caller):
        created = arrange(caller, receiver.url)
        keys = make_keys(caller)
        wait_until(lambda: all_delivered(caller, created, MANY), "all of them")
        assert sorted(told_of(receiver)) == sorted(keys)


def test_a_server_that_is_told_to_stop_notes_what_it_has_sent(
    tmp_path: Path, environment: dict[str, str], receiver: Receiver
) -> None:
    with calling(tmp_path, environment) as (server, caller):
        created = arrange(caller, receiver.url)
        make_keys(caller)
        receiver.wait_for(1)
        os.kill(server.process.pid, signal.SIGTERM)
        assert server.exit_code() == 0
    with calling(tmp_path, environment) as (_, caller):
        wait_until(lambda: all_delivered(caller, created, MANY), "all of them")
    assert len({one.message_id for one in receiver.received}) == len(receiver.received) == MANY
