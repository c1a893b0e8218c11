"""keys: their whole life."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib.resources import files
from typing import Any

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import Key, KeyKind, KeyState
from texture.auth.v1.key_service_pb2_grpc import KeyServiceStub
from texture.auth.v1.usage_service_pb2 import GetKeyUsageRequest
from texture.auth.v1.usage_service_pb2_grpc import UsageServiceStub

from server.cli.client import REFUSED, Client, client_command, fail, read_secret
from server.cli.leaked import finds_in, is_redacted, read_text
from server.cli.output import show, show_reply, show_rows
from server.cli.paging import LIMIT, collect, collect_reply
from server.cli.types import LABEL, LENGTH, TIME
from server.domain.token import TokenKind, tokens_in

OVERLAP = click.option(
    "--overlap", type=LENGTH, help="How long the old secret goes on working, such as 24h; not at all by default."
)
FORCE = click.option("--force", is_flag=True, help="While an overlap runs: replace the newest secret.")
ONLY_KEY = click.option("--only-key", is_flag=True, help="Print nothing but the full key.")


QUIET = click.option(
    "--quiet-for", type=LENGTH, help="How long an old secret must not have been used, such as 24h; 1h by default."
)
HOURS = (
    "hour_time",
    "caller_id",
    "permission",
    "decision",
    "reason",
    "generation",
    "secret_replaced",
    "count",
    "last_time",
)
_REPLACED = ("generation", "rotation_time", "retire_time", "uses", "safe_to_retire", "safe_time")


@click.group()
def keys() -> None:
    """Create, find, change and end customers' keys."""


def _mutation(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what every change takes."""
    function = click.option("--request-id", default="", help="Makes a retry safe.")(function)
    return click.option("--on-behalf-of", default="", help="The id of the customer's key that asked.")(function)


MATCHED = (
    "key_id",
    "kind",
    "state",
    "display_name",
    "created_by_key_id",
    "connect_link_id",
    "reference_id",
    "last_use_time",
)
# How many reports one call carries.
_REPORTS = 100

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
@click.option(
    "--descends-from",
    default="",
    help="The key with this id, the keys it asked for, the scoped keys of its links, and so on.",
)
@click.option("--connect-link", default="", help="Scoped keys that the Connect link with this id minted.")
@click.option("--device", default="", help="Scoped keys that reach the device with this id.")
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
    descends_from: str,
    connect_link: str,
    device: str,
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
            descends_from_key_id=descends_from,
            connect_link_id=connect_link,
            device_id=device,
        ),
        dry_run=expected_count is None,
        expected_count=expected_count,
        reason=reason,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(KeyServiceStub(client.channel).RevokeKeys, request)
    if request.dry_run and not as_json and reply.count:
        show_rows("keys", reply.keys, MATCHED, more=False, as_json=False)
    else:
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


@client_command(keys, "report-exposed")
@click.option("--url", default="", help="Where they were found.")
@click.option("--source", default="", help="Who found them, such as the name of a scanner.")
def report_exposed(client: Client, url: str, source: str, as_json: bool) -> None:
    """Report keys that were found where they must not be; they are found in whatever standard input holds.

    That may be a key on a line of its own, a log, or a report of gitleaks. Server keys are dealt with as their
    workspaces want it: revoked, by default.
    """
    found = [token for token in tokens_in(read_text()) if token.kind is not TokenKind.LINK]
    if not found:
        fail("there is no key in standard input: nothing there has the form and the checksum of one", REFUSED)
    results: list[pb.ReportedKey] = []
    for start in range(0, len(found), _REPORTS):
        request = pb.ReportExposedKeysRequest(
            reports=[
                pb.ExposedKeyReport(api_key=token.text, url=url, source=source)
                for token in found[start : start + _REPORTS]
            ]
        )
        results += client.call(KeyServiceStub(client.channel).ReportExposedKeys, request).results
    show_rows("results", results, ("outcome", "key_id", "kind", "workspace_id", "state"), more=False, as_json=as_json)


@keys.command("verify-format")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
def verify_format(as_json: bool) -> None:
    """Say which of what a scanner found are keys: those whose checksum is right. Nobody is asked.

    Reads a JSON report of gitleaks, or any text, from standard input; says the ids of the keys and where they stand,
    never the keys. Exit code 0 for none, 1 for some.
    """
    text = read_text()
    if is_redacted(text):
        fail("the report is redacted, so nothing can be said of it: make it without --redact", REFUSED)
    finds = [find.shown() for find in finds_in(text)]
    if as_json:
        click.echo(json.dumps({"keys": finds}, indent=2))
    else:
        for find in finds:
            click.echo("{kind} key {key_id} in {place}, line {line}".format(place=find["file"] or "the input", **find))
    if finds:
        fail(f"{len(finds)} found whose checksum is right", REFUSED)


@keys.command("gitleaks-rule")
def gitleaks_rule() -> None:
    """Print the rules by which gitleaks finds keys."""
    click.echo(files("server.cli").joinpath("gitleaks.toml").read_text("utf-8"), nl=False)


@client_command(keys)
@click.argument("key_id")
@click.option("--from", "begin", type=TIME, help="Hours that began then or later, such as 2030-01-31T12:00:00Z.")
@click.option("--before", "end", type=TIME)
@LIMIT
def usage(
    client: Client, key_id: str, begin: Timestamp | None, end: Timestamp | None, limit: int, as_json: bool
) -> None:
    """Tell what a key was used for, by the hour."""
    request = GetKeyUsageRequest(key_id=key_id, start_time=begin, end_time=end)
    found = collect_reply(client, UsageServiceStub(client.channel).GetKeyUsage, request, "hours", limit)
    show_rows("hours", found.rows, HOURS, found.more, as_json)
    if found.reply.incomplete:
        click.echo("incomplete: some uses may be missing, or are counted without their caller", err=True)


@client_command(keys)
@click.argument("key_id")
@QUIET
def rotation(client: Client, key_id: str, quiet_for: Duration | None, as_json: bool) -> None:
    """Tell who still uses the old secrets of a key, and whether they may be ended."""
    request = pb.GetRotationRequest(key_id=key_id, quiet_for=quiet_for)
    reply = client.call(KeyServiceStub(client.channel).GetRotation, request)
    show_rows("replaced", reply.replaced, _REPLACED, more=False, as_json=as_json)
    for one in reply.replaced:
        if one.processes_silent:
            click.echo(
                f"generation {one.generation}: {one.processes_silent} processes have ended without a word since",
                err=True,
            )


@client_command(keys)
@click.argument("key_id")
@click.argument("generation", type=int)
@QUIET
@click.option("--force", is_flag=True, help="End it whoever uses it.")
@REASON
@_mutation
def retire(
    client: Client,
    key_id: str,
    generation: int,
    quiet_for: Duration | None,
    force: bool,
    reason: str,
    on_behalf_of: str,
    request_id: str,
    as_json: bool,
) -> None:
    """End the overlap of an old secret of a key, which nobody uses any more."""
    request = pb.RetireGenerationRequest(
        key_id=key_id,
        generation=generation,
        quiet_for=quiet_for,
        force=force,
        reason=reason,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(KeyServiceStub(client.channel).RetireGeneration, request)
    show_reply(reply, reply.key, as_json)
