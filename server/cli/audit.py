"""audit: the event log, verified, exported and watched."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import click
import grpc
from google.protobuf.json_format import MessageToDict, ParseDict, ParseError
from google.protobuf.message import Message
from texture.auth.v1 import event_service_pb2 as pb
from texture.auth.v1.event_service_pb2_grpc import EventServiceStub

from server.cli.client import REFUSED, Client, explain, fail

_PAGE = 1000
# Heads that one request may name.
_HEADS = 1000
# How long after a stream was cut off the next one is tried.
_AGAIN_SECONDS = 1.0
# What is to be done again, elsewhere or later.
_PASSING = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED}

_WORKSPACE = click.option("--workspace", "workspace_id", default="", help="Only events of this workspace.")
_TYPES = click.option(
    "--type", "types", multiple=True, help="Only events of this type, such as key.revoked; may repeat."
)
_AFTER = click.option("--after", default="", help="Go on after the event with this cursor, the last of an output.")


@click.group()
def audit() -> None:
    """Verify, export and watch the event log. Output is JSON Lines: one object a line."""


@audit.command()
@click.option(
    "--heads",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of what `audit heads` has printed, once or several times, and that was kept elsewhere: it shows where "
    "the end of a chain was cut off.",
)
@click.option("--workspace", "workspace_id", help="Only the chain of this workspace; '' is that of the installation.")
@click.pass_obj
def verify(client: Client, file: Path | None, workspace_id: str | None) -> None:
    """Verify the chains, and name the first link of each that does not hold.

    Exits with 0 where all that is in a chain holds and can be verified, and 1 otherwise.
    """
    kept = _kept_heads(file)
    names = [workspace_id] if workspace_id is not None else _chains(client, kept)
    good = [_verified(client, name, kept[name]) for name in names]
    if not all(good):
        fail(f"{good.count(False)} of {len(good)} chains do not hold, or cannot be verified", REFUSED)
    click.echo(f"{len(good)} chains hold", err=True)


@audit.command()
@click.pass_obj
def heads(client: Client) -> None:
    """Print the end of each chain, with the time, to be kept where nobody who can write to the database can."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for head in _heads(client):
        if head.number:
            _print({"time": now, **_fields(head)})


@audit.command()
@_WORKSPACE
@_TYPES
@_AFTER
@click.pass_obj
def export(client: Client, workspace_id: str, types: tuple[str, ...], after: str) -> None:
    """Print all events there are, oldest first, with what holds them in their chains."""
    request = pb.ListEventsRequest(workspace_id=workspace_id, types=types, after=after, page_size=_PAGE)
    while True:
        reply = client.call(EventServiceStub(client.channel).ListEvents, request)
        for logged in reply.events:
            _print(_fields(logged))
        if not reply.next_page_token:
            return
        request.page_token = reply.next_page_token


@audit.command()
@_WORKSPACE
@_TYPES
@_AFTER
@click.option("--only-new", is_flag=True, help="Begin with what is recorded from now on.")
@click.option("--limit", type=click.IntRange(min=1), help="End after so many events.")
@click.pass_obj
def watch(
    client: Client, workspace_id: str, types: tuple[str, ...], after: str, only_new: bool, limit: int | None
) -> None:
    """Print events as they are recorded; without --after or --only-new, those that are there first.

    It goes on by itself where a server ends, and prints no event twice.
    """
    request = pb.WatchEventsRequest(workspace_id=workspace_id, types=types, after=after, only_new=only_new)
    printed = 0
    for message in _messages(client, request):
        for logged in message.events:
            _print(_fields(logged))
            printed += 1
            if printed == limit:
                return
        sys.stdout.flush()


def _messages(client: Client, request: pb.WatchEventsRequest) -> Iterator[pb.WatchEventsResponse]:
    """Return the messages of one stream after the other, each from where the one before has come."""
    while True:
        try:
            for message in client.stream(EventServiceStub(client.channel).WatchEvents, request):
                request.after, request.only_new = message.cursor, False
                yield message
        except grpc.RpcError as error:
            if not isinstance(error, grpc.Call) or error.code() not in _PASSING:
                explain(error)
            click.echo(f"{error.details()}; trying again", err=True)
        time.sleep(_AGAIN_SECONDS)


def _verified(client: Client, name: str, kept: list[pb.ChainHead]) -> bool:
    """Verify a chain, say how it is, and tell whether it holds."""
    request = pb.VerifyChainRequest(workspace_id=name, expected_heads=kept)
    verified = unsealed = expired = 0
    unverifiable: Counter[str] = Counter()
    while True:
        reply = client.call(EventServiceStub(client.channel).VerifyChain, request)
        verified += reply.verified_count
        unsealed += reply.unsealed_count
        expired += reply.expired_head_count
        unverifiable.update(reply.unverifiable_counts)
        request.portion_token = reply.next_portion_token
        if not reply.next_portion_token:
            break
    holds = not reply.HasField("broken") and not unverifiable
    found = {"workspace_id": name, "holds": holds, "verified": verified, "last": reply.last.number}
    if unverifiable:
        found["unverifiable_without_pepper"] = dict(unverifiable)
    if unsealed:
        found["from_before_the_chain"] = unsealed
    if kept:
        found["heads_compared"] = len(kept) - expired
    if reply.HasField("broken"):
        found["broken"] = _fields(reply.broken)
    _print(found)
    return holds


def _chains(client: Client, kept: dict[str, list[pb.ChainHead]]) -> list[str]:
    """Return the names of the chains that there are, and of those that there were."""
    return sorted({head.workspace_id for head in _heads(client)} | set(kept))


def _heads(client: Client) -> Iterator[pb.ChainHead]:
    request = pb.ListChainHeadsRequest(page_size=_PAGE)
    while True:
        reply = client.call(EventServiceStub(client.channel).ListChainHeads, request)
        yield from reply.heads
        if not reply.next_page_token:
            return
        request.page_token = reply.next_page_token


def _kept_heads(file: Path | None) -> dict[str, list[pb.ChainHead]]:
    """Return the heads of a file by their chains: of each, the newest that a request may name."""
    kept: dict[str, list[pb.ChainHead]] = defaultdict(list)
    for number, line in enumerate(_lines(file), start=1):
        try:
            head = ParseDict(json.loads(line), pb.ChainHead(), ignore_unknown_fields=True)
        except (ValueError, ParseError):
            head = pb.ChainHead()
        if head.number < 1:
            fail(f"--heads: line {number} is not one that 'audit heads' prints", REFUSED)
        kept[head.workspace_id].append(head)
    for name, found in kept.items():
        kept[name] = sorted(found, key=lambda head: head.number)[-_HEADS:]
    return kept


def _lines(file: Path | None) -> Iterable[str]:
    if file is None:
        return []
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"--heads: {file}: {getattr(error, 'strerror', 'it is not text')}", REFUSED)
    return [line for line in text.splitlines() if line.strip()]


def _fields(message: Message) -> dict[str, object]:
    return MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)


def _print(line: dict[str, object]) -> None:
    click.echo(json.dumps(line, separators=(",", ":"), ensure_ascii=False))
