"""No secret ever reaches the log, an error or a file beside the ones that are made for it."""

from __future__ import annotations

import base64
import re
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, Caller
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER, Key
from texture.auth.v1.workspace_pb2 import Workspace

from tests.harness import Client
from tests.operate.process import Server, client, serving
from tests.wire.links_helpers import (
    SITE_URI,
    WORKSPACE,
    complete,
    connect_key,
    create_link,
    create_workspace,
    reason,
    server_key,
    with_wrong_secret,
)

DEBUG = ("--development", "--log-format", "json", "--log-level", "debug")


def try_to(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """Make a call whatever comes of it, and return its error."""
    try:
        call(*args, **kwargs)
    except grpc.RpcError as error:
        return str(error)
    return ""


def secret_parts(server: Server, tokens: list[str]) -> list[str]:
    """Return everything that must not be told: whole tokens, their secrets, digests in any form, peppers."""
    parts = [*tokens, *(token.rsplit("_", 1)[-1][:32] for token in tokens)]
    data = server.folder / "var"
    parts.extend((data / "operator.key").read_text().split())
    parts.append((data / "peppers").read_text().split()[1])
    with closing(sqlite3.connect(data / "texture-auth.db")) as database:
        for table in ("key_generation", "caller_generation", "connect_link"):
            for (digest,) in database.execute(f"SELECT digest FROM {table}"):
                parts += [digest.hex(), base64.b64encode(digest).decode(), repr(digest)[2:-1]]
    return parts


def drive(calling: Client) -> tuple[list[str], list[str]]:
    """Use the service as everybody does, rightly and wrongly; return the secrets of it and the errors."""
    create_workspace(calling)
    made = server_key(calling)
    rotated = calling.keys.RotateKey(
        key_pb.RotateKeyRequest(key_id=made.key.key_id, overlap=Duration(seconds=60), request_id="r")
    )
    site = connect_key(calling).api_key
    link = create_link(calling, site, client_state="s")
    done = complete(calling, link.link_token, "battery-1", request_id="c")
    again = complete(calling, link.link_token, "battery-1", request_id="c")
    caller = calling.callers.CreateCaller(
        caller_pb.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
    )
    second = calling.callers.RotateCallerKey(caller_pb.RotateCallerKeyRequest(caller_id="device-api"))
    tokens = [made.api_key, rotated.api_key, site, link.link_token, done.scoped_api_key, again.scoped_api_key]
    tokens += [caller.caller_key, second.caller_key]
    customers = [made.api_key, rotated.api_key, site, again.scoped_api_key]
    wrong = [with_wrong_secret(token) for token in tokens]
    errors = []
    for api_key in (*customers, *wrong, f" {made.api_key}", made.api_key[:-1]):
        errors.append(try_to(reason, calling, api_key, "battery-1"))
        errors.append(try_to(calling.keys.LookupKey, key_pb.LookupKeyRequest(api_key=api_key)))
        errors.append(try_to(create_link, calling, api_key, SITE_URI + "/no"))
    errors.append(try_to(complete, calling, wrong[3], "battery-1"))
    errors.append(try_to(complete, calling, link.link_token, "battery-1"))
    errors.append(try_to(calling.connect.GetConnectLink, connect_pb.GetConnectLinkRequest(link_token=wrong[3])))
    errors.append(try_to(calling.keys.RotateKey, key_pb.RotateKeyRequest(key_id=made.key.key_id)))
    for credential in (second.caller_key, caller.caller_key, wrong[6], made.api_key, "nonsense"):
        other = Client(calling.channel, None)
        listing = caller_pb.ListCallersRequest()
        metadata = (("authorization", f"Bearer {credential}"),)
        errors.append(try_to(other.callers.ListCallers, listing, metadata=metadata))
    return [*tokens, *wrong], errors


def test_a_log_of_everything_holds_no_secret_and_neither_does_any_error(tmp_path: Path) -> None:
    with serving(tmp_path, *DEBUG) as server, client(server) as calling:
        tokens, errors = drive(calling)
        parts = secret_parts(server, tokens)
        output = server.output
        assert {line["method"].rpartition("/")[2] for line in server.log if line["event"] == "rpc"} >= {
            *("CreateKey", "RotateKey", "Authorize", "CompleteConnectLink", "RotateCallerKey", "LookupKey"),
        }
    for part in parts:
        assert part not in output
        for error in errors:
            assert part not in error
    assert not re.search(r"tx[kl](_[a-z]{3})?_[0-9A-Za-z]{16}_", output)


def misplaced(calling: Client, token: str) -> dict[str, tuple[Callable[..., Any], Any]]:
    """Calls in which somebody gives a secret where an id belongs."""
    return {
        "UpdateKey": (calling.keys.UpdateKey, key_pb.UpdateKeyRequest(key=Key(key_id=token))),
        "GetKey": (calling.keys.GetKey, key_pb.GetKeyRequest(key_id=token)),
        "SuspendKey": (calling.keys.SuspendKey, key_pb.SuspendKeyRequest(key_id=token)),
        "ResumeKey": (calling.keys.ResumeKey, key_pb.ResumeKeyRequest(key_id=token)),
        "RotateKey": (calling.keys.RotateKey, key_pb.RotateKeyRequest(key_id=token)),
        "RevokeKey": (calling.keys.RevokeKey, key_pb.RevokeKeyRequest(key_id=token)),
        "ListKeyEvents": (calling.keys.ListKeyEvents, key_pb.ListKeyEventsRequest(key_id=token)),
        "CancelConnectLink": (
            calling.connect.CancelConnectLink,
            connect_pb.CancelConnectLinkRequest(connect_link_id=token),
        ),
        "UpdateCaller": (calling.callers.UpdateCaller, caller_pb.UpdateCallerRequest(caller=Caller(caller_id=token))),
        "RotateCallerKey": (calling.callers.RotateCallerKey, caller_pb.RotateCallerKeyRequest(caller_id=token)),
        "RevokeCaller": (calling.callers.RevokeCaller, caller_pb.RevokeCallerRequest(caller_id=token)),
        "GetDevice": (calling.devices.GetDevice, device_pb.GetDeviceRequest(device_id=token)),
        "GetWorkspace": (calling.workspaces.GetWorkspace, workspace_pb.GetWorkspaceRequest(workspace_id=token)),
        "UpdateWorkspace": (
            calling.workspaces.UpdateWorkspace,
            workspace_pb.UpdateWorkspaceRequest(workspace=Workspace(workspace_id=token)),
        ),
        "CreateKey": (
            calling.keys.CreateKey,
            key_pb.CreateKeyRequest(workspace_id=token, kind=KEY_KIND_SERVER, display_name="x"),
        ),
        "Authorize": (calling.authorize.Authorize, authorize_pb.AuthorizeRequest(permission=token)),
        "RemoveDevices": (
            calling.devices.RemoveDevices,
            device_pb.RemoveDevicesRequest(workspace_id=WORKSPACE, device_ids=[token]),
        ),
    }


@pytest.mark.parametrize("kind", ["key", "link token", "caller key"])
def test_a_secret_given_where_an_id_belongs_is_not_logged(tmp_path: Path, kind: str) -> None:
    with serving(tmp_path, *DEBUG) as server, client(server) as calling:
        create_workspace(calling)
        if kind == "key":
            token = server_key(calling).api_key
        elif kind == "link token":
            token = create_link(calling, connect_key(calling).api_key).link_token
        else:
            token = (tmp_path / "var" / "operator.key").read_text().strip()
        for method, request in misplaced(calling, token).values():
            try_to(method, request)
        secret = token.rsplit("_", 1)[-1][:32]
        told = [line["method"].rpartition("/")[2] for line in server.log if secret in str(line)]
    assert told == []
