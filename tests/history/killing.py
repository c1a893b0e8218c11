"""A server that is killed again and again while it is asked for changes: what it acknowledged is there afterwards."""

from __future__ import annotations

import random
import time
import uuid
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from texture.auth.v1 import event_service_pb2 as event_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import webhook_service_pb2 as webhook_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.event_pb2 import Event
from texture.auth.v1.key_pb2 import (
    KEY_KIND_SERVER,
    KEY_STATE_ACTIVE,
    KEY_STATE_REVOKED,
    KEY_STATE_SUSPENDED,
    Key,
)
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX

from server.service.deliveries import LEASE
from tests.harness import Client, first_start, prepare
from tests.history.cluster import UNMEASURED
from tests.operate.certificates import Authority
from tests.operate.process import DEADLINE_SECONDS, client, serving
from tests.postgres import Postgres
from tests.webhooks.receiver import HOST, Received, Receiver, receiving

WORKSPACE = "killed"
# On Postgres whoever makes a change waits a while for those that were killed before, so it takes more to make as many.
WRITERS = {"sqlite": 4, "postgres": 16}
# How long a server is asked before it is killed, in seconds.
_LIFE = (0.05, 0.6)
_NEW_KEY: dict[str, Any] = {"workspace_id": WORKSPACE, "kind": KEY_KIND_SERVER, "display_name": "Killed"}
_STATES = {
    "key.created": KEY_STATE_ACTIVE,
    "key.suspended": KEY_STATE_SUSPENDED,
    "key.resumed": KEY_STATE_ACTIVE,
    "key.revoked": KEY_STATE_REVOKED,
}


@dataclass
class Outcome:
    """How often a server was killed, and what came of all it was asked; `wrong` says what should not be so."""

    kills: int = 0
    acknowledged: dict[str, str] = field(default_factory=dict)
    unanswered: int = 0
    events: int = 0
    webhooks: int = 0
    wrong: list[str] = field(default_factory=list)


class Load:
    """Writers who make changes until their server is gone, and remember which were acknowledged, by request id."""

    def __init__(self, outcome: Outcome) -> None:
        self._outcome = outcome

    def write(self, asked: Client, waits: bool) -> None:
        """Make keys, and change each of them, until there is no answer.

        Whoever `waits` for proof waits for those that were killed before, for longer than a server lives here.
        """
        narrowing: Any = {} if waits else {"return_immediately": True}
        try:
            while True:
                key_id = self._ask(asked.keys.CreateKey, "key.created", key_pb.CreateKeyRequest(**_NEW_KEY))
                for event_type, method, request in (
                    ("key.suspended", asked.keys.SuspendKey, key_pb.SuspendKeyRequest(key_id=key_id, **narrowing)),
                    ("key.resumed", asked.keys.ResumeKey, key_pb.ResumeKeyRequest(key_id=key_id)),
                    ("key.revoked", asked.keys.RevokeKey, key_pb.RevokeKeyRequest(key_id=key_id, **narrowing)),
                ):
                    self._ask(method, event_type, request)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE:
                self._outcome.wrong.append(f"answered with {error.code().name}: {error.details()}")
            self._outcome.unanswered += 1

    def _ask(self, method: Any, event_type: str, request: Any) -> str:
        request.request_id = uuid.uuid4().hex
        key_id: str = method(request, timeout=30).key.key_id
        self._outcome.acknowledged[request.request_id] = event_type
        return key_id


def run(folder: Path, postgres: Postgres | None, kills: int, seed: int) -> Outcome:
    """Kill so many servers, one after another, on a Postgres, or on SQLite without one."""
    chance, outcome = random.Random(seed), Outcome()
    writing = WRITERS["sqlite" if postgres is None else "postgres"]
    authority = Authority(folder)
    flags, environment = _prepared(folder, postgres), _environment(authority)
    with receiving(authority.issue("receiver", hosts=(HOST,))) as receiver:
        with serving(folder, *flags, env=environment) as server, client(server, _operator_key(folder)) as asked:
            secret = _begin(asked, receiver)
        for _ in range(kills):
            with (
                serving(folder, *flags, env=environment) as server,
                client(server, _operator_key(folder)) as asked,
                ThreadPoolExecutor(writing) as pool,
            ):
                writers = [pool.submit(Load(outcome).write, asked, number % 2 == 0) for number in range(writing)]
                time.sleep(chance.uniform(*_LIFE))
                server.process.kill()
                outcome.kills += 1
                for writer in writers:
                    writer.result()
        with serving(folder, *flags, env=environment) as server, client(server, _operator_key(folder)) as asked:
            _look(asked, receiver, secret, outcome)
    return outcome


def _prepared(folder: Path, postgres: Postgres | None) -> tuple[str, ...]:
    """Have a development server start for the first time, and return the flags that it is started with again."""
    files = folder / "files"
    files.mkdir()
    if postgres is None:
        prepare(files, first_start())
        url = f"sqlite:{files / 'texture-auth.db'}"
    else:
        url = postgres.new_database()
        prepare(files, first_start(url))
    return ("--development", "--development-folder", str(files), "--database", url, "--log-level", "warning")


def _operator_key(folder: Path) -> str:
    return (folder / "files" / "operator.key").read_text().strip()


def _environment(authority: Authority) -> dict[str, str]:
    return {
        **UNMEASURED,
        "TEXTURE_AUTH_WEBHOOK_PRIVATE_HOSTS": HOST,
        "TEXTURE_AUTH_WEBHOOK_CA": str(authority.certificate),
    }


def _begin(asked: Client, receiver: Receiver) -> str:
    """Make the workspace and an endpoint that is to be told of all that happens to keys; return its signing secret."""
    asked.workspaces.CreateWorkspace(
        workspace_pb.CreateWorkspaceRequest(
            workspace_id=WORKSPACE, display_name="Killed", environment=ENVIRONMENT_SANDBOX
        )
    )
    endpoint = webhook_pb.CreateWebhookEndpointRequest(
        workspace_id=WORKSPACE, url=receiver.url, event_types=list(_STATES)
    )
    return asked.webhooks.CreateWebhookEndpoint(endpoint).signing_secret


def _look(asked: Client, receiver: Receiver, secret: str, outcome: Outcome) -> None:
    """Compare what there is with what was acknowledged."""
    events = [event for event in _events(asked) if event.type in _STATES]
    outcome.events = len(events)
    told = {event.request_id: event.type for event in events}
    for request_id, event_type in outcome.acknowledged.items():
        if told.get(request_id) != event_type:
            outcome.wrong.append(f"{event_type} was acknowledged, and there is no such event")
    # What was not acknowledged is there as a whole or not at all.
    last = {event.subject_id: _STATES[event.type] for event in events}
    states = {key.key_id: key.state for key in _keys(asked)}
    if states != last:
        outcome.wrong.append(f"keys are not as their events say: {dict(states.items() ^ last.items())}")
    _check_chain(asked, outcome)
    _check_webhooks(receiver, secret, [event.event_id for event in events], outcome)


def _events(asked: Client) -> list[Event]:
    found: list[Event] = []
    token = ""
    while True:
        page = asked.events.ListEvents(
            event_pb.ListEventsRequest(workspace_id=WORKSPACE, page_size=1000, page_token=token)
        )
        found += [logged.event for logged in page.events]
        token = page.next_page_token
        if not token:
            return found


def _keys(asked: Client) -> list[Key]:
    found: list[Key] = []
    token = ""
    while True:
        page = asked.keys.ListKeys(key_pb.ListKeysRequest(workspace_id=WORKSPACE, page_size=1000, page_token=token))
        found += page.keys
        token = page.next_page_token
        if not token:
            return found


def _check_chain(asked: Client, outcome: Outcome) -> None:
    """Verify the chain of the workspace, and that all of its events are in it."""
    verified, token = 0, ""
    while True:
        portion = asked.events.VerifyChain(
            event_pb.VerifyChainRequest(workspace_id=WORKSPACE, portion_token=token), timeout=60
        )
        verified += portion.verified_count
        token = portion.next_portion_token
        if portion.HasField("broken") or portion.unverifiable_counts or portion.unsealed_count:
            outcome.wrong.append(f"the chain does not verify: {portion}")
        if not token:
            break
    if verified != len(_events(asked)):
        outcome.wrong.append(f"{verified} links hold {len(_events(asked))} events")


def _check_webhooks(receiver: Receiver, secret: str, event_ids: Sequence[str], outcome: Outcome) -> None:
    """Wait until every event was told of, and see that it was by messages that are signed."""

    def told(came: Sequence[Received]) -> dict[str, str]:
        return {one.payload["data"]["event_id"]: one.message_id for one in came}

    came: list[Received] = []
    # What a server was sending as it was killed is sent again once nobody can be at it: that long, nothing may come.
    # What has piled up takes as long as it takes.
    until = time.monotonic() + LEASE.total_seconds() + DEADLINE_SECONDS
    while not set(event_ids) <= told(came).keys() and time.monotonic() < until:
        time.sleep(0.1)
        if len(receiver.received) > len(came):
            came = list(receiver.received)
            until = time.monotonic() + LEASE.total_seconds() + DEADLINE_SECONDS
    if untold := set(event_ids) - told(came).keys():
        outcome.wrong.append(f"{len(untold)} events were not told of")
    outcome.webhooks = len(came)
    if not all(one.signed_by(secret) for one in came):
        outcome.wrong.append("a webhook is not signed by the endpoint's secret")
    if {one.message_id for one in came} != {*told(came).values()}:
        outcome.wrong.append("an event was told of under two ids")
