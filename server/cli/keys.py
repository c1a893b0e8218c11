"""keys: their whole life."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import Key, KeyKind, KeyState
from texture.auth.v1.key_service_pb2_grpc import KeyServiceStub

from server.cli.client import Client, client_command, read_secret
from server.cli.output import show, show_reply, show_rows
from server.cli.paging import LIMIT, collect
from server.cli.types import LABEL, LENGTH, TIME

OVERLAP = click.option(
    "--overlap", type=LENGTH, help="How long the old secret goes on working, such as 24h; not at all by default."
)
FORCE = click.option("--force", is_flag=True, help="While an overlap runs: replace the newest secret.")
ONLY_KEY = click.option("--only-key", is_flag=True, help="Print nothing but the full key.")


@click.group()
def keys() -> None:
    """Create, find, change and end customers' keys."""


def _mutation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every change takes."""
    function = click.option("--request-id", default="", help="Makes a retry safe.")(function)
    return click.option("--on-behalf-of", default="", help="The id of the customer's key that asked.")(function)


REASON = click.option("--reason", default="", help="Why, for the event log.")


@client_command(keys)
@click.argument("workspace_id")
@click.option("--kind", type=click.Choice(["server", "connect"]), required=True)
@click.option("--display-name", required=True)
@click.option("--description", default="")
@click.option("--label", "labels", type=LABEL, multiple=True)
@click.option("--permission", "permissions", multiple=True, help="May be repeated; by default all.")
@click.option("--allowed-cidr", "allowed_cidrs", multiple=True, help="May be repeated.")
@click.option("--allowed-manufacturer", "allowed_manufacturers", multiple=True, help="May be repeated.")
@click.option("--redirect-uri", "redirect_uris", multiple=True, help="Of connect keys; may be repeated.")
@click.option("--expires", type=TIME, help="When it ends, such as 90d or 2030-01-31T12:00:00Z; never by default.")
@_mutation
@ONLY_KEY
def create(
    client: Client,
    workspace_id: str,
    kind: str,
    display_name: str,
    description: str,
    labels: tuple[tuple[str, str], ...],
    permissions: tuple[str, ...],
    allowed_cidrs: tuple[str, ...],
    allowed_manufacturers: tuple[str, ...],
    redirect_uris: tuple[str, ...],
    expires: Timestamp | None,
    on_behalf_of: str,
    request_id: str,
    only_key: bool,
    as_json: bool,
) -> None:
    """Create a server or connect key, and print it: the only time that it is shown."""
    request = pb.CreateKeyRequest(
        workspace_id=workspace_id,
        kind=KeyKind.Value(f"KEY_KIND_{kind.upper()}"),
        display_name=display_name,
        description=description,
        labels=dict(labels),
        permissions=permissions,
        allowed_cidrs=allowed_cidrs,
        allowed_manufacturers=allowed_manufacturers,
        redirect_uris=redirect_uris,
        expire_time=expires,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(KeyServiceStub(client.channel).CreateKey, request)
    if only_key:
        click.echo(reply.api_key)
    else:
        show_reply(reply, reply.key, as_json, secret=reply.api_key)


@client_command(keys)
@click.argument("key_id")
def get(client: Client, key_id: str, as_json: bool) -> None:
    """Show a key."""
    reply = client.call(KeyServiceStub(client.channel).GetKey, pb.GetKeyRequest(key_id=key_id))
    show_reply(reply, reply.key, as_json)


@client_command(keys, "list")
@click.argument("workspace_id")
@click.option("--kind", type=click.Choice(["server", "connect", "scoped"]))
@click.option("--state", type=click.Choice(["active", "suspended", "revoked", "expired"]))
@click.option("--reference-id", default="", help="Scoped keys of this end user.")
@click.option("--label", "labels", type=LABEL, multiple=True)
@LIMIT
def list_(
    client: Client,
    workspace_id: str,
    kind: str | None,
    state: str | None,
    reference_id: str,
    labels: tuple[tuple[str, str], ...],
    limit: int,
    as_json: bool,
) -> None:
    """List the keys of a workspace."""
    request = pb.ListKeysRequest(
        workspace_id=workspace_id,
        kind=KeyKind.Value(f"KEY_KIND_{(kind or 'unspecified').upper()}"),
        state=KeyState.Value(f"KEY_STATE_{(state or 'unspecified').upper()}"),
        reference_id=reference_id,
        labels=dict(labels),
    )
    rows, more = collect(client, KeyServiceStub(client.channel).ListKeys, request, "keys", limit)
    columns = ("key_id", "kind", "state", "display_name", "reference_id", "expire_time", "create_time")
    show_rows("keys", rows, columns, more, as_json)


@client_command(keys)
@click.argument("key_id")
@click.option("--display-name")
@click.option("--description")
@click.option("--label", "labels", type=LABEL, multiple=True, help="Replaces all; may be repeated.")
@click.option("--permission", "permissions", multiple=True, help="Replaces all; may be repeated.")
@click.option("--allowed-cidr", "allowed_cidrs", multiple=True, help="Replaces all; may be repeated.")
@click.option("--allowed-manufacturer", "allowed_manufacturers", multiple=True, help="Replaces all; may be repeated.")
@click.option("--redirect-uri", "redirect_uris", multiple=True, help="Replaces all; may be repeated.")
@click.option("--expires", type=TIME)
@click.option(
    "--clear",
    "cleared",
    multiple=True,
    type=click.Choice(["description", "labels", "allowed_cidrs", "allowed_manufacturers", "expire_time"]),
    help="Make a field empty; may be repeated.",
)
@REASON
@_mutation
def update(
    client: Client,
    key_id: str,
    cleared: tuple[str, ...],
    reason: str,
    on_behalf_of: str,
    request_id: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Change the given fields of a key."""
    given["expire_time"] = given.pop("expires")
    values = {name: value for name, value in given.items() if value not in (None, ())}
    paths = sorted({*values, *cleared})
    for name in cleared:
        values.pop(name, None)
    if "labels" in values:
        values["labels"] = dict(values["labels"])
    request = pb.UpdateKeyRequest(
        key=Key(key_id=key_id, **values),
        update_mask=FieldMask(paths=paths),
        reason=reason,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(KeyServiceStub(client.channel).UpdateKey, request)
    show_reply(reply, reply.key, as_json)


@client_command(keys)
@click.argument("key_id")
@REASON
@_mutation
def suspend(client: Client, key_id: str, reason: str, on_behalf_of: str, request_id: str, as_json: bool) -> None:
    """Switch a key off until it is resumed."""
    request = pb.SuspendKeyRequest(
        key_id=key_id, reason=reason, on_behalf_of_key_id=on_behalf_of, request_id=request_id
    )
    reply = client.call(KeyServiceStub(client.channel).SuspendKey, request)
    show_reply(reply, reply.key, as_json)


@client_command(keys)
@click.argument("key_id")
@REASON
@_mutation
def resume(client: Client, key_id: str, reason: str, on_behalf_of: str, request_id: str, as_json: bool) -> None:
    """Switch a suspended key on again."""
    request = pb.ResumeKeyRequest(key_id=key_id, reason=reason, on_behalf_of_key_id=on_behalf_of, request_id=request_id)
    reply = client.call(KeyServiceStub(client.channel).ResumeKey, request)
    show_reply(reply, reply.key, as_json)


@client_command(keys)
@click.argument("key_id")
@REASON
@_mutation
def revoke(client: Client, key_id: str, reason: str, on_behalf_of: str, request_id: str, as_json: bool) -> None:
    """End a key for good."""
    request = pb.RevokeKeyRequest(key_id=key_id, reason=reason, on_behalf_of_key_id=on_behalf_of, request_id=request_id)
    reply = client.call(KeyServiceStub(client.channel).RevokeKey, request)
    show_reply(reply, reply.key, as_json)


@client_command(keys, "revoke-all")
@click.argument("workspace_id")
@click.option("--kind", type=click.Choice(["server", "connect", "scoped"]))
@click.option("--reference-id", default="", help="Scoped keys of this end user.")
@click.option("--label", "labels", type=LABEL, multiple=True, help="May be repeated: keys that have all of them.")
@click.option("--created-by-key", default="", help="Keys that the key with this id asked for, or its links made.")
@click.option("--created-from", type=TIME, help="Keys created then or later, such as 2030-01-31T12:00:00Z.")
@click.option("--created-before", type=TIME)
@click.option("--expected-count", type=int, help="The count of a run without this, which changes nothing.")
@REASON
@_mutation
def revoke_all(
    client: Client,
    workspace_id: str,
    kind: str | None,
    reference_id: str,
    labels: tuple[tuple[str, str], ...],
    created_by_key: str,
    created_from: Timestamp | None,
    created_before: Timestamp | None,
    expected_count: int | None,
    reason: str,
    on_behalf_of: str,
    request_id: str,
    as_json: bool,
) -> None:
    """End all keys that match every option given: first shown, then, with --expected-count, done."""
    request = pb.RevokeKeysRequest(
        workspace_id=workspace_id,
        filter=pb.RevokeKeysFilter(
            kind=KeyKind.Value(f"KEY_KIND_{(kind or 'unspecified').upper()}"),
            reference_id=reference_id,
            labels=dict(labels),
            created_by_key_id=created_by_key,
            created_from=created_from,
            created_before=created_before,
        ),
        dry_run=expected_count is None,
        expected_count=expected_count,
        reason=reason,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(KeyServiceStub(client.channel).RevokeKeys, request)
    show(reply, as_json, leave_out=("revision",))
    if not reply.count:
        click.echo("no key matches", err=True)
    elif request.dry_run:
        click.echo(f"nothing was revoked yet: repeat this with --expected-count {reply.count}", err=True)


@client_command(keys)
@click.argument("key_id")
@OVERLAP
@FORCE
@REASON
@_mutation
@ONLY_KEY
def rotate(
    client: Client,
    key_id: str,
    overlap: Duration | None,
    force: bool,
    reason: str,
    on_behalf_of: str,
    request_id: str,
    only_key: bool,
    as_json: bool,
) -> None:
    """Give a key a new secret, and print it: the only time that it is shown."""
    request = pb.RotateKeyRequest(
        key_id=key_id,
        overlap=overlap,
        force=force,
        reason=reason,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(KeyServiceStub(client.channel).RotateKey, request)
    if only_key:
        click.echo(reply.api_key)
    else:
        show_reply(reply, reply.key, as_json, secret=reply.api_key)


@client_command(keys)
def lookup(client: Client, as_json: bool) -> None:
    """Say which key this is; the key is read from standard input."""
    request = pb.LookupKeyRequest(api_key=read_secret("API key"))
    reply = client.call(KeyServiceStub(client.channel).LookupKey, request)
    show_reply(reply, reply.key, as_json)


@client_command(keys)
@click.argument("key_id")
@LIMIT
def events(client: Client, key_id: str, limit: int, as_json: bool) -> None:
    """List what has happened to a key, oldest first."""
    request = pb.ListKeyEventsRequest(key_id=key_id)
    rows, more = collect(client, KeyServiceStub(client.channel).ListKeyEvents, request, "events", limit)
    columns = ("event_id", "event_time", "type", "caller_id", "on_behalf_of_key_id", "reason")
    show_rows("events", rows, columns, more, as_json)
