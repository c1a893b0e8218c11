"""workspaces: create, find and configure them."""

from __future__ import annotations

import click
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import workspace_service_pb2 as pb
from texture.auth.v1.workspace_pb2 import Environment, ExposurePolicy, Workspace
from texture.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceStub

from server.cli.client import Client, client_command
from server.cli.keys import REASON
from server.cli.output import show, show_reply, show_rows
from server.cli.paging import LIMIT, collect
from server.cli.types import LENGTH

_POLICIES = click.Choice(["revoke", "suspend", "notify-only"])


@click.group()
def workspaces() -> None:
    """Create, find and configure workspaces; erase their end users."""


def _policy(word: str | None) -> ExposurePolicy.ValueType:
    name = "UNSPECIFIED" if word is None else word.upper().replace("-", "_")
    return ExposurePolicy.Value(f"EXPOSURE_POLICY_{name}")


@client_command(workspaces)
@click.argument("workspace_id", default="")
@click.option("--display-name", required=True)
@click.option("--environment", type=click.Choice(["production", "sandbox"]), required=True)
@click.option("--redirect-uri", "redirect_uris", multiple=True, help="For links of server keys; may be repeated.")
@click.option("--exposure-policy", type=_POLICIES, help="What happens to a leaked server key.")
@click.option("--scoped-key-lifetime", type=LENGTH, help="Such as 365d.")
@click.option("--connect-link-lifetime", type=LENGTH, help="Such as 4h.")
@click.option("--request-id", default="", help="Makes a retry safe.")
def create(
    client: Client,
    workspace_id: str,
    display_name: str,
    environment: str,
    redirect_uris: tuple[str, ...],
    exposure_policy: str | None,
    scoped_key_lifetime: Duration | None,
    connect_link_lifetime: Duration | None,
    request_id: str,
    as_json: bool,
) -> None:
    """Create a workspace; without a WORKSPACE_ID the service chooses one."""
    request = pb.CreateWorkspaceRequest(
        workspace_id=workspace_id,
        display_name=display_name,
        environment=Environment.Value(f"ENVIRONMENT_{environment.upper()}"),
        redirect_uris=redirect_uris,
        exposure_policy=_policy(exposure_policy),
        scoped_key_lifetime=scoped_key_lifetime,
        connect_link_lifetime=connect_link_lifetime,
        request_id=request_id,
    )
    reply = client.call(WorkspaceServiceStub(client.channel).CreateWorkspace, request)
    show_reply(reply, reply.workspace, as_json)


@client_command(workspaces)
@click.argument("workspace_id")
def get(client: Client, workspace_id: str, as_json: bool) -> None:
    """Show a workspace."""
    request = pb.GetWorkspaceRequest(workspace_id=workspace_id)
    reply = client.call(WorkspaceServiceStub(client.channel).GetWorkspace, request)
    show_reply(reply, reply.workspace, as_json)


@client_command(workspaces, "list")
@LIMIT
def list_(client: Client, limit: int, as_json: bool) -> None:
    """List workspaces."""
    stub = WorkspaceServiceStub(client.channel)
    rows, more = collect(client, stub.ListWorkspaces, pb.ListWorkspacesRequest(), "workspaces", limit)
    show_rows("workspaces", rows, ("workspace_id", "display_name", "environment", "create_time"), more, as_json)


@client_command(workspaces)
@click.argument("workspace_id")
@click.option("--display-name")
@click.option("--redirect-uri", "redirect_uris", multiple=True, help="Replaces all; may be repeated.")
@click.option("--no-redirect-uris", is_flag=True, help="Remove all redirect URIs.")
@click.option("--exposure-policy", type=_POLICIES)
@click.option("--scoped-key-lifetime", type=LENGTH)
@click.option("--connect-link-lifetime", type=LENGTH)
@click.option("--on-behalf-of", default="", help="The id of the customer's key that asked.")
@click.option("--request-id", default="", help="Makes a retry safe.")
def update(
    client: Client,
    workspace_id: str,
    display_name: str | None,
    redirect_uris: tuple[str, ...],
    no_redirect_uris: bool,
    exposure_policy: str | None,
    scoped_key_lifetime: Duration | None,
    connect_link_lifetime: Duration | None,
    on_behalf_of: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Change the given settings of a workspace."""
    given = {
        "display_name": display_name is not None,
        "redirect_uris": bool(redirect_uris) or no_redirect_uris,
        "exposure_policy": exposure_policy is not None,
        "scoped_key_lifetime": scoped_key_lifetime is not None,
        "connect_link_lifetime": connect_link_lifetime is not None,
    }
    request = pb.UpdateWorkspaceRequest(
        workspace=Workspace(
            workspace_id=workspace_id,
            display_name=display_name or "",
            redirect_uris=() if no_redirect_uris else redirect_uris,
            exposure_policy=_policy(exposure_policy),
            scoped_key_lifetime=scoped_key_lifetime,
            connect_link_lifetime=connect_link_lifetime,
        ),
        update_mask=FieldMask(paths=[path for path, wanted in given.items() if wanted]),
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(WorkspaceServiceStub(client.channel).UpdateWorkspace, request)
    show_reply(reply, reply.workspace, as_json)


@client_command(workspaces)
@click.argument("workspace_id")
@click.argument("reference_id")
@click.option("--yes", is_flag=True, help="Do not ask.")
@REASON
@click.option("--on-behalf-of", default="", help="The id of the customer's key that asked.")
@click.option("--request-id", default="", help="Makes a retry safe.")
def erase_end_user(
    client: Client,
    workspace_id: str,
    reference_id: str,
    yes: bool,
    reason: str,
    on_behalf_of: str,
    request_id: str,
    as_json: bool,
) -> None:
    """Forget an end user: their devices, keys and links go, and events keep a pseudonym. There is no way back."""
    if not yes:
        question = f"Erase end user {reference_id!r} of workspace {workspace_id!r}, for good?"
        click.confirm(question, abort=True, err=True)
    request = pb.EraseEndUserRequest(
        workspace_id=workspace_id,
        reference_id=reference_id,
        reason=reason,
        on_behalf_of_key_id=on_behalf_of,
        request_id=request_id,
    )
    reply = client.call(WorkspaceServiceStub(client.channel).EraseEndUser, request)
    if as_json:
        show(reply, as_json)
    else:
        click.echo(
            f"removed {reply.devices_removed} devices, {reply.keys_removed} keys, {reply.connect_links_removed} links; "
            f"rewrote {reply.events_rewritten} events"
        )
