"""webhooks: where workspaces are told of their events."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import webhook_service_pb2 as pb
from texture.auth.v1.webhook_pb2 import WebhookDeliveryState, WebhookEndpoint, WebhookEndpointState
from texture.auth.v1.webhook_service_pb2_grpc import WebhookServiceStub

from server.cli.client import Client, client_command
from server.cli.keys import REASON
from server.cli.output import show, show_reply, show_rows
from server.cli.paging import LIMIT, collect
from server.cli.types import LENGTH, TIME

F = TypeVar("F", bound=Callable[..., Any])

_ENDPOINT_COLUMNS = ("webhook_endpoint_id", "url", "state", "disable_reason", "event_types", "description")
_DELIVERY_COLUMNS = (
    "webhook_delivery_id",
    "event_type",
    "event_id",
    "state",
    "attempts",
    "last_http_status_code",
    "last_error",
    "last_attempt_time",
    "next_attempt_time",
)
_EVENT_TYPE = click.option(
    "--event-type", "event_types", multiple=True, help="Such as key.revoked; may be repeated. All by default."
)
_ONLY_SECRET = click.option("--only-secret", is_flag=True, help="Print nothing but the signing secret.")


def _mutation(command: F) -> F:
    actor = click.option("--on-behalf-of", "on_behalf_of_key_id", default="", help="The customer's key that asked.")
    return actor(click.option("--request-id", default="", help="Makes a retry safe.")(command))


@click.group()
def webhooks() -> None:
    """Create, find, change and delete webhook endpoints, and see what was sent to them."""


@client_command(webhooks)
@click.argument("workspace_id")
@click.option("--url", required=True, help="Where to post to: https://…")
@click.option("--description", default="")
@_EVENT_TYPE
@_mutation
@_ONLY_SECRET
def create(
    client: Client,
    workspace_id: str,
    url: str,
    description: str,
    event_types: tuple[str, ...],
    on_behalf_of_key_id: str,
    request_id: str,
    only_secret: bool,
    as_json: bool,
) -> None:
    """Create an endpoint, and print its signing secret: the only time that it is shown."""
    request = pb.CreateWebhookEndpointRequest(
        workspace_id=workspace_id,
        url=url,
        description=description,
        event_types=event_types,
        on_behalf_of_key_id=on_behalf_of_key_id,
        request_id=request_id,
    )
    reply = client.call(WebhookServiceStub(client.channel).CreateWebhookEndpoint, request)
    _show_with_secret(reply, only_secret, as_json)


@client_command(webhooks)
@click.argument("webhook_endpoint_id")
def get(client: Client, webhook_endpoint_id: str, as_json: bool) -> None:
    """Show an endpoint."""
    request = pb.GetWebhookEndpointRequest(webhook_endpoint_id=webhook_endpoint_id)
    reply = client.call(WebhookServiceStub(client.channel).GetWebhookEndpoint, request)
    show_reply(reply, reply.webhook_endpoint, as_json)


@client_command(webhooks, "list")
@click.argument("workspace_id")
@LIMIT
def list_(client: Client, workspace_id: str, limit: int, as_json: bool) -> None:
    """List the endpoints of a workspace."""
    stub = WebhookServiceStub(client.channel)
    request = pb.ListWebhookEndpointsRequest(workspace_id=workspace_id)
    rows, more = collect(client, stub.ListWebhookEndpoints, request, "webhook_endpoints", limit)
    show_rows("webhook_endpoints", rows, _ENDPOINT_COLUMNS, more, as_json)


@client_command(webhooks)
@click.argument("webhook_endpoint_id")
@click.option("--url")
@click.option("--description")
@click.option("--event-type", "event_types", multiple=True, help="Replaces all; may be repeated.")
@click.option("--all-event-types", is_flag=True, help="Tell it of all.")
@click.option("--state", type=click.Choice(["active", "disabled"]))
@_mutation
def update(
    client: Client,
    webhook_endpoint_id: str,
    url: str | None,
    description: str | None,
    event_types: tuple[str, ...],
    all_event_types: bool,
    state: str | None,
    on_behalf_of_key_id: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Change the given fields of an endpoint."""
    given = {
        "url": url is not None,
        "description": description is not None,
        "event_types": bool(event_types) or all_event_types,
        "state": state is not None,
    }
    request = pb.UpdateWebhookEndpointRequest(
        webhook_endpoint=WebhookEndpoint(
            webhook_endpoint_id=webhook_endpoint_id,
            url=url or "",
            description=description or "",
            event_types=() if all_event_types else event_types,
            state=WebhookEndpointState.Value(f"WEBHOOK_ENDPOINT_STATE_{(state or 'unspecified').upper()}"),
        ),
        update_mask=FieldMask(paths=[name for name, is_given in given.items() if is_given]),
        on_behalf_of_key_id=on_behalf_of_key_id,
        request_id=request_id,
    )
    reply = client.call(WebhookServiceStub(client.channel).UpdateWebhookEndpoint, request)
    show_reply(reply, reply.webhook_endpoint, as_json)


@client_command(webhooks)
@click.argument("webhook_endpoint_id")
@REASON
@_mutation
def delete(
    client: Client,
    webhook_endpoint_id: str,
    reason: str,
    on_behalf_of_key_id: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Delete an endpoint with its deliveries."""
    request = pb.DeleteWebhookEndpointRequest(
        webhook_endpoint_id=webhook_endpoint_id,
        reason=reason,
        on_behalf_of_key_id=on_behalf_of_key_id,
        request_id=request_id,
    )
    show(client.call(WebhookServiceStub(client.channel).DeleteWebhookEndpoint, request), as_json)


@client_command(webhooks, "rotate-secret")
@click.argument("webhook_endpoint_id")
@click.option("--overlap", type=LENGTH, help="How long the old secret signs too, such as 24h; not at all by default.")
@_mutation
@_ONLY_SECRET
def rotate_secret(
    client: Client,
    webhook_endpoint_id: str,
    overlap: Duration | None,
    on_behalf_of_key_id: str,
    request_id: str,
    only_secret: bool,
    as_json: bool,
) -> None:
    """Give an endpoint a new signing secret, and print it: the only time that it is shown."""
    request = pb.RotateWebhookSecretRequest(
        webhook_endpoint_id=webhook_endpoint_id,
        overlap=overlap,
        on_behalf_of_key_id=on_behalf_of_key_id,
        request_id=request_id,
    )
    reply = client.call(WebhookServiceStub(client.channel).RotateWebhookSecret, request)
    _show_with_secret(reply, only_secret, as_json)


@client_command(webhooks)
@click.argument("webhook_endpoint_id")
@click.option("--state", type=click.Choice(["pending", "delivered", "failed"]), help="Any by default.")
@LIMIT
def deliveries(client: Client, webhook_endpoint_id: str, state: str | None, limit: int, as_json: bool) -> None:
    """List what was sent to an endpoint, or is to be, newest first."""
    stub = WebhookServiceStub(client.channel)
    request = pb.ListWebhookDeliveriesRequest(
        webhook_endpoint_id=webhook_endpoint_id,
        state=WebhookDeliveryState.Value(f"WEBHOOK_DELIVERY_STATE_{(state or 'unspecified').upper()}"),
    )
    rows, more = collect(client, stub.ListWebhookDeliveries, request, "webhook_deliveries", limit)
    show_rows("webhook_deliveries", rows, _DELIVERY_COLUMNS, more, as_json)


@client_command(webhooks)
@click.argument("webhook_endpoint_id")
@click.argument("webhook_delivery_ids", nargs=-1)
@click.option("--failed-since", type=TIME, help="Instead of ids: those that failed, created at this time or later.")
@_mutation
def replay(
    client: Client,
    webhook_endpoint_id: str,
    webhook_delivery_ids: tuple[str, ...],
    failed_since: Timestamp | None,
    on_behalf_of_key_id: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Have deliveries tried again that ended."""
    request = pb.ReplayWebhookDeliveriesRequest(
        webhook_endpoint_id=webhook_endpoint_id,
        webhook_delivery_ids=webhook_delivery_ids,
        failed_since=failed_since,
        on_behalf_of_key_id=on_behalf_of_key_id,
        request_id=request_id,
    )
    show(client.call(WebhookServiceStub(client.channel).ReplayWebhookDeliveries, request), as_json)


@client_command(webhooks)
@click.argument("webhook_endpoint_id")
@_mutation
def test(client: Client, webhook_endpoint_id: str, on_behalf_of_key_id: str, request_id: str, as_json: bool) -> None:
    """Send a test to an endpoint; `deliveries` tells what became of it."""
    request = pb.TestWebhookEndpointRequest(
        webhook_endpoint_id=webhook_endpoint_id, on_behalf_of_key_id=on_behalf_of_key_id, request_id=request_id
    )
    reply = client.call(WebhookServiceStub(client.channel).TestWebhookEndpoint, request)
    show_reply(reply, reply.webhook_delivery, as_json)


def _show_with_secret(reply: Any, only_secret: bool, as_json: bool) -> None:
    if only_secret:
        click.echo(reply.signing_secret)
    else:
        show_reply(reply, reply.webhook_endpoint, as_json, secret=reply.signing_secret)
