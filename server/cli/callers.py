"""callers: who may call this service."""

from __future__ import annotations

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import caller_service_pb2 as pb
from texture.auth.v1.caller_pb2 import Caller, Role
from texture.auth.v1.caller_service_pb2_grpc import CallerServiceStub

from server.cli.client import Client, client_command
from server.cli.keys import FORCE, ONLY_KEY, OVERLAP, REASON
from server.cli.output import show_reply, show_rows
from server.cli.paging import LIMIT, collect

_ROLES = click.Choice(["authorizer", "watcher", "key-admin", "connect", "devices", "operator"])

_NAMES = "A DNS name or URI in its client certificate; may be repeated."


@click.group()
def callers() -> None:
    """Create, find, change and end callers of this service."""


def _roles(words: tuple[str, ...]) -> list[Role.ValueType]:
    return [Role.Value(f"ROLE_{word.upper().replace('-', '_')}") for word in words]


@client_command(callers)
@click.argument("caller_id")
@click.option("--role", "roles", type=_ROLES, multiple=True, required=True, help="May be repeated.")
@click.option("--display-name", default="", help="The id by default.")
@click.option("--certificate-name", "certificate_names", multiple=True, help=_NAMES)
@click.option("--without-key", is_flag=True, help="Make no key: its certificate is enough.")
@click.option("--request-id", default="", help="Makes a retry safe.")
@ONLY_KEY
def create(
    client: Client,
    caller_id: str,
    roles: tuple[str, ...],
    display_name: str,
    certificate_names: tuple[str, ...],
    without_key: bool,
    request_id: str,
    only_key: bool,
    as_json: bool,
) -> None:
    """Create a caller, and print its key: the only time that it is shown."""
    request = pb.CreateCallerRequest(
        caller_id=caller_id,
        display_name=display_name,
        roles=_roles(roles),
        request_id=request_id,
        certificate_names=certificate_names,
        without_key=without_key,
    )
    reply = client.call(CallerServiceStub(client.channel).CreateCaller, request)
    if only_key:
        click.echo(reply.caller_key)
    else:
        show_reply(reply, reply.caller, as_json, secret=reply.caller_key)


@client_command(callers)
@click.argument("caller_id")
def get(client: Client, caller_id: str, as_json: bool) -> None:
    """Show a caller."""
    reply = client.call(CallerServiceStub(client.channel).GetCaller, pb.GetCallerRequest(caller_id=caller_id))
    show_reply(reply, reply.caller, as_json)


@client_command(callers, "list")
@LIMIT
def list_(client: Client, limit: int, as_json: bool) -> None:
    """List callers."""
    stub = CallerServiceStub(client.channel)
    rows, more = collect(client, stub.ListCallers, pb.ListCallersRequest(), "callers", limit)
    show_rows("callers", rows, ("caller_id", "display_name", "roles", "create_time", "revoke_time"), more, as_json)


@client_command(callers)
@click.argument("caller_id")
@click.option("--display-name")
@click.option("--role", "roles", type=_ROLES, multiple=True, help="Replaces all; may be repeated.")
@click.option("--certificate-name", "certificate_names", multiple=True, help=f"Replaces all. {_NAMES}")
@click.option("--clear-certificate-names", is_flag=True, help="Leave none.")
@click.option("--request-id", default="", help="Makes a retry safe.")
def update(
    client: Client,
    caller_id: str,
    display_name: str | None,
    roles: tuple[str, ...],
    certificate_names: tuple[str, ...],
    clear_certificate_names: bool,
    request_id: str,
    as_json: bool,
) -> None:
    """Change the given fields of a caller."""
    given = {
        "display_name": display_name is not None,
        "roles": bool(roles),
        "certificate_names": bool(certificate_names) or clear_certificate_names,
    }
    paths = [name for name, is_given in given.items() if is_given]
    request = pb.UpdateCallerRequest(
        caller=Caller(
            caller_id=caller_id,
            display_name=display_name or "",
            roles=_roles(roles),
            certificate_names=() if clear_certificate_names else certificate_names,
        ),
        update_mask=FieldMask(paths=paths),
        request_id=request_id,
    )
    reply = client.call(CallerServiceStub(client.channel).UpdateCaller, request)
    show_reply(reply, reply.caller, as_json)


@client_command(callers)
@click.argument("caller_id")
@OVERLAP
@FORCE
@click.option("--request-id", default="", help="Makes a retry safe.")
@ONLY_KEY
def rotate(
    client: Client,
    caller_id: str,
    overlap: Duration | None,
    force: bool,
    request_id: str,
    only_key: bool,
    as_json: bool,
) -> None:
    """Give a caller a new key, and print it: the only time that it is shown."""
    request = pb.RotateCallerKeyRequest(caller_id=caller_id, overlap=overlap, force=force, request_id=request_id)
    reply = client.call(CallerServiceStub(client.channel).RotateCallerKey, request)
    if only_key:
        click.echo(reply.caller_key)
    else:
        show_reply(reply, reply.caller, as_json, secret=reply.caller_key)


@client_command(callers)
@click.argument("caller_id")
@REASON
@click.option("--request-id", default="", help="Makes a retry safe.")
def revoke(client: Client, caller_id: str, reason: str, request_id: str, as_json: bool) -> None:
    """End a caller for good."""
    request = pb.RevokeCallerRequest(caller_id=caller_id, reason=reason, request_id=request_id)
    reply = client.call(CallerServiceStub(client.channel).RevokeCaller, request)
    show_reply(reply, reply.caller, as_json)
