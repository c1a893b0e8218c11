"""links: Connect links, from the customer's request to the scoped key."""

from __future__ import annotations

import click
from texture.auth.v1 import connect_service_pb2 as pb
from texture.auth.v1.connect_service_pb2_grpc import ConnectServiceStub

from server.cli.client import Client, client_command, read_secret
from server.cli.keys import REASON
from server.cli.output import show_reply


@click.group()
def links() -> None:
    """Create, find, complete and cancel Connect links."""


@client_command(links)
@click.option("--redirect-uri", required=True)
@click.option("--reference-id", default="", help="The end user; only a server key may name one.")
@click.option("--client-state", default="")
@click.option("--request-id", default="", help="Makes a retry safe.")
@click.option("--only-token", is_flag=True, help="Print nothing but the link's token.")
def create(
    client: Client,
    redirect_uri: str,
    reference_id: str,
    client_state: str,
    request_id: str,
    only_token: bool,
    as_json: bool,
) -> None:
    """Create a link with a customer's key, read from standard input."""
    request = pb.CreateConnectLinkRequest(
        api_key=read_secret("API key"),
        redirect_uri=redirect_uri,
        reference_id=reference_id,
        client_state=client_state,
        request_id=request_id,
    )
    reply = client.call(ConnectServiceStub(client.channel).CreateConnectLink, request)
    if only_token:
        click.echo(reply.link_token)
    else:
        show_reply(reply, reply.connect_link, as_json, secret=reply.link_token)


@client_command(links)
@click.argument("connect_link_id", default="")
def get(client: Client, connect_link_id: str, as_json: bool) -> None:
    """Show a link: by its id or, without one, by its token, read from standard input."""
    if connect_link_id:
        request = pb.GetConnectLinkRequest(connect_link_id=connect_link_id)
    else:
        request = pb.GetConnectLinkRequest(link_token=read_secret("Link token"))
    reply = client.call(ConnectServiceStub(client.channel).GetConnectLink, request)
    show_reply(reply, reply.connect_link, as_json)


@client_command(links)
@click.argument("device_ids", nargs=-1, required=True)
@click.option("--manufacturer", default="", help="Of the devices; unknown by default.")
@click.option("--request-id", default="", help="Makes a retry safe.")
@click.option("--only-key", is_flag=True, help="Print nothing but the full scoped key.")
def complete(
    client: Client,
    device_ids: tuple[str, ...],
    manufacturer: str,
    request_id: str,
    only_key: bool,
    as_json: bool,
) -> None:
    """Complete the link whose token is read from standard input, with the devices that the end user connected."""
    request = pb.CompleteConnectLinkRequest(
        link_token=read_secret("Link token"),
        devices=[pb.ConnectedDevice(device_id=device_id, manufacturer=manufacturer) for device_id in device_ids],
        request_id=request_id,
    )
    reply = client.call(ConnectServiceStub(client.channel).CompleteConnectLink, request)
    if only_key:
        click.echo(reply.scoped_api_key)
    else:
        show_reply(reply, reply.connect_link, as_json, secret=reply.redirect_uri)


@client_command(links)
@click.argument("connect_link_id")
@REASON
@click.option("--request-id", default="", help="Makes a retry safe.")
def cancel(client: Client, connect_link_id: str, reason: str, request_id: str, as_json: bool) -> None:
    """Cancel an open link."""
    request = pb.CancelConnectLinkRequest(connect_link_id=connect_link_id, reason=reason, request_id=request_id)
    reply = client.call(ConnectServiceStub(client.channel).CancelConnectLink, request)
    show_reply(reply, reply.connect_link, as_json)
