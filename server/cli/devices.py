"""devices: who owns which."""

from __future__ import annotations

import click
from texture.auth.v1 import device_service_pb2 as pb
from texture.auth.v1.device_service_pb2_grpc import DeviceServiceStub
from texture.auth.v1.usage_service_pb2 import ListDeviceKeysRequest
from texture.auth.v1.usage_service_pb2_grpc import UsageServiceStub

from server.cli.client import Client, client_command
from server.cli.keys import REASON
from server.cli.output import show_reply, show_rows
from server.cli.paging import LIMIT, collect, collect_reply

_COLUMNS = ("device_id", "workspace_id", "reference_id", "manufacturer", "create_time")


@click.group()
def devices() -> None:
    """Record, find, move and forget devices."""


@client_command(devices)
@click.argument("workspace_id")
@click.argument("device_ids", nargs=-1, required=True)
@click.option("--reference-id", required=True, help="The end user that they belong to.")
@click.option("--manufacturer", default="", help="Unknown by default.")
@click.option("--request-id", default="", help="Makes a retry safe.")
def register(
    client: Client,
    workspace_id: str,
    device_ids: tuple[str, ...],
    reference_id: str,
    manufacturer: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Record devices of an end user."""
    request = pb.RegisterDevicesRequest(
        workspace_id=workspace_id,
        devices=[
            pb.DeviceRegistration(device_id=device_id, reference_id=reference_id, manufacturer=manufacturer)
            for device_id in device_ids
        ],
        request_id=request_id,
    )
    reply = client.call(DeviceServiceStub(client.channel).RegisterDevices, request)
    show_rows("devices", reply.devices, _COLUMNS, more=False, as_json=as_json)


@client_command(devices)
@click.argument("device_id")
def get(client: Client, device_id: str, as_json: bool) -> None:
    """Show a device."""
    reply = client.call(DeviceServiceStub(client.channel).GetDevice, pb.GetDeviceRequest(device_id=device_id))
    show_reply(reply, reply.device, as_json)


@client_command(devices, "list")
@click.argument("workspace_id")
@click.option("--reference-id", default="")
@click.option("--manufacturer", "manufacturers", multiple=True, help="May be repeated.")
@LIMIT
def list_(
    client: Client,
    workspace_id: str,
    reference_id: str,
    manufacturers: tuple[str, ...],
    limit: int,
    as_json: bool,
) -> None:
    """List the devices of a workspace."""
    request = pb.ListDevicesRequest(workspace_id=workspace_id, reference_id=reference_id, manufacturers=manufacturers)
    rows, more = collect(client, DeviceServiceStub(client.channel).ListDevices, request, "devices", limit)
    show_rows("devices", rows, _COLUMNS, more, as_json)


@client_command(devices, "keys")
@click.argument("device_id")
@LIMIT
def keys_(client: Client, device_id: str, limit: int, as_json: bool) -> None:
    """List the keys that have touched a device."""
    request = ListDeviceKeysRequest(device_id=device_id)
    found = collect_reply(client, UsageServiceStub(client.channel).ListDeviceKeys, request, "touches", limit)
    show_rows("touches", found.rows, ("key_id", "count", "first_time", "last_time"), found.more, as_json)
    if found.reply.incomplete:
        click.echo("incomplete: a key has touched more devices than are remembered, perhaps this one", err=True)


@client_command(devices)
@click.argument("workspace_id")
@click.argument("device_ids", nargs=-1, required=True)
@click.option("--from", "reference_id", required=True, help="The end user that they belong to.")
@click.option("--to", "new_reference_id", required=True, help="The end user that they go to.")
@click.option("--to-workspace", "new_workspace_id", default="", help="The same workspace by default.")
@REASON
@click.option("--request-id", default="", help="Makes a retry safe.")
def transfer(
    client: Client,
    workspace_id: str,
    device_ids: tuple[str, ...],
    reference_id: str,
    new_reference_id: str,
    new_workspace_id: str,
    reason: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Give devices to another end user."""
    request = pb.TransferDevicesRequest(
        workspace_id=workspace_id,
        reference_id=reference_id,
        device_ids=device_ids,
        new_workspace_id=new_workspace_id,
        new_reference_id=new_reference_id,
        reason=reason,
        request_id=request_id,
    )
    reply = client.call(DeviceServiceStub(client.channel).TransferDevices, request)
    show_rows("devices", reply.devices, _COLUMNS, more=False, as_json=as_json)


@client_command(devices)
@click.argument("workspace_id")
@click.argument("device_ids", nargs=-1, required=True)
@click.option("--allow-missing", is_flag=True, help="Skip ids that are not in the workspace.")
@REASON
@click.option("--request-id", default="", help="Makes a retry safe.")
def remove(
    client: Client,
    workspace_id: str,
    device_ids: tuple[str, ...],
    allow_missing: bool,
    reason: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Forget devices."""
    request = pb.RemoveDevicesRequest(
        workspace_id=workspace_id,
        device_ids=device_ids,
        allow_missing=allow_missing,
        reason=reason,
        request_id=request_id,
    )
    reply = client.call(DeviceServiceStub(client.channel).RemoveDevices, request)
    show_reply(reply, reply, as_json)
