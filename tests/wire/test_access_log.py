"""The access log: a line for every call, and never a secret in it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import (
    caller_service_pb2,
    connect_service_pb2,
    device_service_pb2,
    key_service_pb2,
    workspace_service_pb2,
)
from texture.auth.v1.caller_pb2 import Caller
from texture.auth.v1.key_pb2 import Key
from texture.auth.v1.workspace_pb2 import Workspace

from server.settings import Settings
from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    REDIRECT_URI,
    authorize,
    get_key,
    make_key,
    make_scoped_key,
    make_workspace,
    register,
    revoke,
    rotate,
)

MASK = FieldMask(paths=["display_name"])


def lines_of(call: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
    """Make a call and return what it returned and its line of the log."""
    with structlog.testing.capture_logs() as lines:
        returned = call(*args)
    (line,) = lines
    return returned, dict(line)


def misplaced(secret: str) -> dict[str, tuple[str, Message]]:
    """Return calls that are given a secret where an id belongs, as people paste them."""
    return {
        "GetKey": ("keys", key_service_pb2.GetKeyRequest(key_id=secret)),
        "UpdateKey": (
            "keys",
            key_service_pb2.UpdateKeyRequest(key=Key(key_id=secret, display_name="x"), update_mask=MASK),
        ),
        "SuspendKey": ("keys", key_service_pb2.SuspendKeyRequest(key_id=secret)),
        "ResumeKey": ("keys", key_service_pb2.ResumeKeyRequest(key_id=secret)),
        "RotateKey": ("keys", key_service_pb2.RotateKeyRequest(key_id=secret)),
        "RevokeKey": ("keys", key_service_pb2.RevokeKeyRequest(key_id=secret)),
        "ListKeyEvents": ("keys", key_service_pb2.ListKeyEventsRequest(key_id=secret)),
        "ListKeys": ("keys", key_service_pb2.ListKeysRequest(workspace_id=secret)),
        "GetWorkspace": ("workspaces", workspace_service_pb2.GetWorkspaceRequest(workspace_id=secret)),
        "UpdateWorkspace": (
            "workspaces",
            workspace_service_pb2.UpdateWorkspaceRequest(
                workspace=Workspace(workspace_id=secret, display_name="x"), update_mask=MASK
            ),
        ),
        "EraseEndUser": (
            "workspaces",
            workspace_service_pb2.EraseEndUserRequest(workspace_id=secret, reference_id=secret),
        ),
        "GetDevice": ("devices", device_service_pb2.GetDeviceRequest(device_id=secret)),
        "GetConnectLink": ("connect", connect_service_pb2.GetConnectLinkRequest(connect_link_id=secret)),
        "CancelConnectLink": ("connect", connect_service_pb2.CancelConnectLinkRequest(connect_link_id=secret)),
        "GetCaller": ("callers", caller_service_pb2.GetCallerRequest(caller_id=secret)),
        "UpdateCaller": (
            "callers",
            caller_service_pb2.UpdateCallerRequest(caller=Caller(caller_id=secret, display_name="x"), update_mask=MASK),
        ),
        "RotateCallerKey": ("callers", caller_service_pb2.RotateCallerKeyRequest(caller_id=secret)),
        "RevokeCaller": ("callers", caller_service_pb2.RevokeCallerRequest(caller_id=secret)),
    }


@pytest.mark.parametrize("method", misplaced(""))
def test_a_secret_given_where_an_id_belongs_reaches_no_log(grid: Service, method: str) -> None:
    api_key = make_key(grid).api_key
    link = grid.operator.connect.CreateConnectLink(
        connect_service_pb2.CreateConnectLinkRequest(api_key=api_key, redirect_uri=REDIRECT_URI)
    )
    for secret in (api_key, grid.operator_key, link.link_token):
        stub, request = misplaced(secret)[method]

        error, line = lines_of(refused, getattr(getattr(grid.operator, stub), method), request)

        assert error.code in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT)
        assert line["event"] == "rpc"
        assert secret.rsplit("_", 1)[1][:24] not in str(line)


def test_a_decision_is_logged_with_what_finds_it_again(grid: Service) -> None:
    made = make_key(grid, permissions=["devices:read"])

    answer, line = lines_of(authorize, grid, made.api_key)

    assert line.pop("milliseconds") >= 0
    assert line == {
        "event": "rpc",
        "log_level": "info",
        "method": "/texture.auth.v1.AuthorizeService/Authorize",
        "caller": "dev-operator",
        "code": "OK",
        "permission": "devices:list",
        "decision": "DENY",
        "reason": "PERMISSION_NOT_GRANTED",
        "key_id": made.key.key_id,
        "decision_id": answer.decision_id,
    }


def test_a_refusal_is_logged_with_its_reason(grid: Service) -> None:
    error, line = lines_of(refused, get_key, grid, "0" * 16)

    assert (line["code"], line["error_reason"]) == ("NOT_FOUND", error.reason)


def test_no_line_of_a_keys_life_holds_a_secret(grid: Service) -> None:
    with structlog.testing.capture_logs() as lines:
        made = make_key(grid)
        secrets = [made.api_key, rotate(grid, made.key.key_id).api_key, make_scoped_key(grid, "mine").scoped_api_key]
        for secret in secrets:
            authorize(grid, secret)
            grid.operator.keys.LookupKey(key_service_pb2.LookupKeyRequest(api_key=secret))
        revoke(grid, made.key.key_id)

    assert len(lines) >= 10
    for secret in (*secrets, grid.operator_key):
        assert secret.rsplit("_", 1)[1][:8] not in str(lines)


@pytest.mark.parametrize("sample", [0, 1])
def test_an_allow_is_logged_by_sample_and_all_else_always(tmp_path: Path, sample: int) -> None:
    with running_service(tmp_path, log_allow_sample=sample) as service:
        make_workspace(service)
        register(service, "mine")
        api_key = make_key(service, permissions=["devices:list"]).api_key
        allowed = pb.Question(api_key=api_key, permission="devices:list")
        denied = pb.Question(permission="devices:list")

        with structlog.testing.capture_logs() as lines:
            authorize(service, api_key)
            service.operator.authorize.BatchAuthorize(pb.BatchAuthorizeRequest(questions=[allowed, allowed]))
        assert len(lines) == 2 * sample

        with structlog.testing.capture_logs() as lines:
            authorize(service, api_key, "devices:read", "mine")
            service.operator.authorize.BatchAuthorize(pb.BatchAuthorizeRequest(questions=[allowed, denied]))
            refused(authorize, service, api_key, "devices:fly")
            get_key(service, make_key(service).key.key_id)
        assert [line["event"] for line in lines] == ["rpc", "part", "rpc", "rpc", "rpc", "rpc"]


@pytest.mark.parametrize(("development", "sample"), [(True, 1.0), (False, 0.01)])
def test_the_share_of_logged_allows_is_small_except_in_development(development: bool, sample: float) -> None:
    assert Settings(development=development).log_allow_sample_or_default == sample
    assert Settings(development=development, log_allow_sample=0.5).log_allow_sample_or_default == 0.5
