"""authorize: ask for a decision."""

from __future__ import annotations

import sys
from typing import Any

import click
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub
from texture.auth.v1.request_context_pb2 import RequestContext

from server.cli.client import DENIED, Client, read_secret
from server.cli.output import show, show_reply, show_rows


@click.command()
@click.argument("permission")
@click.argument("device_id", default="")
@click.option("--client-ip", default="", help="The client's address, as a gateway saw it.")
@click.option("--user-agent", default="", help="The User-Agent header, as a gateway saw it.")
@click.option("--origin", default="", help="The Origin header.")
@click.option("--sec-fetch-site", default="", help="The Sec-Fetch-Site header.")
@click.option("--sec-fetch-mode", default="", help="The Sec-Fetch-Mode header.")
@click.option("--at-least-revision", default="", help="The revision of an earlier answer.")
@click.option("--explain", is_flag=True, help="Show every step of the evaluation; for operators.")
@click.option("--key-id", default="", help="With --explain: ask about the key with this id; no key is read.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")
@click.pass_obj
def authorize(
    client: Client,
    permission: str,
    device_id: str,
    client_ip: str,
    user_agent: str,
    origin: str,
    sec_fetch_site: str,
    sec_fetch_mode: str,
    at_least_revision: str,
    explain: bool,
    key_id: str,
    as_json: bool,
) -> None:
    """Ask whether the holder of a key, read from standard input, may do something.

    PERMISSION is devices:list, devices:read, devices:command, connect_links:create, keys:manage or
    workspace:configure; devices:read and devices:command need a DEVICE_ID. Exits with 0 when allowed, 3 when denied.
    """
    if key_id and not explain:
        raise click.UsageError("--key-id needs --explain: only who holds a key can be authorized")
    subject = {"key_id": key_id} if key_id else {"api_key": read_secret("API key")}
    question: dict[str, Any] = {
        **subject,
        "permission": permission,
        "device_id": device_id,
        "context": RequestContext(
            client_ip=client_ip,
            user_agent=user_agent,
            origin=origin,
            sec_fetch_site=sec_fetch_site,
            sec_fetch_mode=sec_fetch_mode,
        ),
        "at_least_revision": at_least_revision,
    }
    stub = AuthorizeServiceStub(client.channel)
    if explain:
        explanation = client.call(stub.ExplainAuthorization, pb.ExplainAuthorizationRequest(**question))
        answer = explanation.answer
        show_reply(explanation, answer, as_json)
        if not as_json:
            click.echo(f"\n{explanation.explanation}\n")
            show_rows("steps", explanation.steps, ("name", "result", "reason", "detail"), more=False, as_json=False)
    else:
        answer = client.call(stub.Authorize, pb.AuthorizeRequest(**question))
        show(answer, as_json, leave_out=("revision",))
    if answer.decision != pb.DECISION_ALLOW:
        sys.exit(DENIED)
