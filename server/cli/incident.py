"""incident: what there is to know about a key that has got into wrong hands, and how to contain it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import click
import grpc
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.connect_service_pb2 import GetConnectLinkRequest
from texture.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from texture.auth.v1.key_pb2 import KEY_STATE_REVOKED, KEY_STATE_SUSPENDED, Key
from texture.auth.v1.key_service_pb2_grpc import KeyServiceStub
from texture.auth.v1.usage_service_pb2 import GetKeyUsageRequest, ListKeyDevicesRequest
from texture.auth.v1.usage_service_pb2_grpc import UsageServiceStub

from server.cli.client import Client, read_secret
from server.cli.keys import HOURS
from server.cli.output import as_json_object, show, show_rows
from server.cli.paging import Collected, collect, collect_reply
from server.cli.types import TIME

# What there may be more of than anybody reads. JSON has so much of it.
_MOST = 10_000
_SHOWN = 20

_TOTALS = ("caller_id", "permission", "decision", "reason", "generation", "count", "first_time", "last_time")
_TOUCHES = ("device_id", "count", "first_time", "last_time")
_EVENTS = ("event_time", "type", "caller_id", "on_behalf_of_key_id", "reason")
_REPLACED = ("generation", "rotation_time", "retire_time", "uses", "safe_to_retire")


@dataclass(frozen=True, slots=True)
class _Found:
    """What was found out. What is None does not exist, or is not for this caller to see."""

    key: Key
    generation: int
    parent: Key | None
    link: Message | None
    created: pb.RevokeKeysResponse | None
    usage: Collected
    devices: Collected
    replaced: Sequence[Message]
    events: Sequence[Message]


@click.command()
@click.argument("key_id", required=False)
@click.option(
    "--from", "begin", type=TIME, help="Uses of hours that began then or later, such as 2030-01-31T12:00:00Z."
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def incident(client: Client, key_id: str | None, begin: Timestamp | None, as_json: bool) -> None:
    """Tell what there is to know about a key in wrong hands, and how to contain it.

    Whose it is, where it came from and what it made, what it was used for and when, which devices it has touched, and
    the commands that end it. Without KEY_ID, the key itself is read from standard input.
    """
    found = _find(client, key_id, begin)
    commands = _commands(found)
    if as_json:
        click.echo(json.dumps(_as_json(found, commands), indent=2, ensure_ascii=False))
    else:
        _show(found, commands)


def _find(client: Client, key_id: str | None, begin: Timestamp | None) -> _Found:
    keys, uses, generation = KeyServiceStub(client.channel), UsageServiceStub(client.channel), 0
    if key_id is None:
        recognised = client.call(keys.LookupKey, pb.LookupKeyRequest(api_key=read_secret("API key")))
        key, generation = recognised.key, recognised.generation
    else:
        key = client.call(keys.GetKey, pb.GetKeyRequest(key_id=key_id)).key
    parent = link = None
    if key.created_by_key_id:
        request = pb.GetKeyRequest(key_id=key.created_by_key_id)
        parent = client.attempt(keys.GetKey, request, unless={grpc.StatusCode.NOT_FOUND})
    if key.connect_link_id:
        link = client.attempt(
            ConnectServiceStub(client.channel).GetConnectLink,
            GetConnectLinkRequest(connect_link_id=key.connect_link_id),
            unless={grpc.StatusCode.NOT_FOUND, grpc.StatusCode.PERMISSION_DENIED},
        )
    created = client.attempt(
        keys.RevokeKeys,
        pb.RevokeKeysRequest(
            workspace_id=key.workspace_id,
            filter=pb.RevokeKeysFilter(created_by_key_id=key.key_id),
            dry_run=True,
        ),
        unless={grpc.StatusCode.FAILED_PRECONDITION},
    )
    usage_request = GetKeyUsageRequest(key_id=key.key_id, start_time=begin)
    rotation = client.call(keys.GetRotation, pb.GetRotationRequest(key_id=key.key_id))
    events, _ = collect(client, keys.ListKeyEvents, pb.ListKeyEventsRequest(key_id=key.key_id), "events", _MOST)
    return _Found(
        key=key,
        generation=generation,
        parent=None if parent is None else parent.key,
        link=None if link is None else link.connect_link,
        created=created,
        usage=collect_reply(client, uses.GetKeyUsage, usage_request, "hours", _MOST),
        devices=collect_reply(client, uses.ListKeyDevices, ListKeyDevicesRequest(key_id=key.key_id), "touches", _MOST),
        replaced=rotation.replaced,
        events=events,
    )


def _commands(found: _Found) -> list[str]:
    """Return the commands that contain it, what is easiest to undo first."""
    key, commands = found.key, []
    why = '--reason "incident"'
    if key.state != KEY_STATE_REVOKED:
        if key.state != KEY_STATE_SUSPENDED:
            commands.append(f"texture-auth keys suspend {key.key_id} {why}")
        commands.append(f"texture-auth keys revoke {key.key_id} {why}")
    made = f"texture-auth keys revoke-all {shlex.quote(key.workspace_id)} --created-by-key {key.key_id}"
    if found.created is None:
        commands.append(f"{made} --created-from TIME --created-before TIME")
    elif found.created.count:
        commands += [made, f"{made} --expected-count {found.created.count} {why}"]
    return commands


def _as_json(found: _Found, commands: Sequence[str]) -> dict[str, Any]:
    def each(messages: Sequence[Message]) -> list[Any]:
        return [as_json_object(message) for message in messages]

    def one(message: Message | None) -> Any:
        return None if message is None else as_json_object(message)

    usage = found.usage.reply
    return {
        "key": one(found.key),
        "presented_generation": found.generation,
        "created_by_key": one(found.parent),
        "connect_link": one(found.link),
        "created_keys": None
        if found.created is None
        else {"count": found.created.count, "key_ids": list(found.created.key_ids)},
        "usage": {
            "last_use_time": usage.last_use_time.ToJsonString() if usage.HasField("last_use_time") else None,
            "totals": each(usage.totals),
            "hours": each(found.usage.rows),
            "incomplete": usage.incomplete or found.usage.more,
        },
        "devices": {
            "touches": each(found.devices.rows),
            "incomplete": found.devices.reply.incomplete or found.devices.more,
        },
        "replaced_secrets": each(found.replaced),
        "events": each(found.events),
        "commands": list(commands),
    }


def _show(found: _Found, commands: Sequence[str]) -> None:
    _heading("The key")
    show(found.key, as_json=False, leave_out=("generations",))
    if found.generation:
        click.echo(f"what was given is generation {found.generation} of its secrets")
    _show_lineage(found)
    usage = found.usage.reply
    _heading("Used for")
    if usage.HasField("last_use_time"):
        click.echo(f"last used {usage.last_use_time.ToDatetime():%Y-%m-%d %H:%M:%S}Z")
    show_rows("uses", usage.totals, _TOTALS, more=False, as_json=False)
    _warn(usage.incomplete, "some uses may be missing, or are counted without their caller and permission")
    if found.usage.rows:
        _heading("Used when")
        _show_some("hours", found.usage.rows[-_SHOWN:], HOURS, len(found.usage.rows))
    _heading("Devices touched")
    latest = sorted(found.devices.rows, key=_last_time, reverse=True)
    _show_some("devices", latest[:_SHOWN], _TOUCHES, len(latest))
    _warn(found.devices.reply.incomplete or found.devices.more, "it has touched more devices than are known here")
    if found.replaced:
        _heading("Secrets that were replaced")
        show_rows("secrets", found.replaced, _REPLACED, more=False, as_json=False)
    _heading("What happened to it")
    _show_some("events", found.events[-_SHOWN:], _EVENTS, len(found.events))
    _heading("To contain it")
    for command in commands:
        click.echo(command)
    if not commands:
        click.echo("nothing is left to be done: the key is revoked, and so is all that it made")


def _show_lineage(found: _Found) -> None:
    _heading("Where it comes from, and what it made")
    if found.parent is not None:
        click.echo(f"asked for by key {found.parent.key_id} ({found.parent.display_name})")
    elif found.key.created_by_key_id:
        click.echo(f"asked for by key {found.key.created_by_key_id}, which is no more")
    else:
        click.echo(f"made by {found.key.created_by_caller_id}, for no key")
    if found.link is not None:
        show(found.link, as_json=False)
    if found.created is None:
        click.echo("it made more keys than can be listed at once, or ones that are not for this caller to see")
    elif found.created.count:
        click.echo(
            f"it made {found.created.count} keys that are not revoked: {', '.join(found.created.key_ids[:_SHOWN])}"
        )
    else:
        click.echo("it made no key that is not revoked")


def _show_some(name: str, rows: Sequence[Message], columns: Sequence[str], of: int) -> None:
    show_rows(name, rows, columns, more=False, as_json=False)
    if of > len(rows):
        click.echo(f"the latest {len(rows)} of {of}; --json has all")


def _heading(text: str) -> None:
    click.echo()
    click.secho(text, bold=True)


def _warn(wrong: bool, what: str) -> None:
    if wrong:
        click.echo(f"INCOMPLETE: {what}")


def _last_time(touch: Any) -> tuple[int, int]:
    return touch.last_time.seconds, touch.last_time.nanos
