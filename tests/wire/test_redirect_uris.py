"""Redirect URIs that must not be registered, at every RPC that registers any."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import workspace_service_pb2
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX, Workspace

from tests.harness import Service, refused
from tests.wire.helpers import (
    REDIRECT_URI,
    WORKSPACE,
    count_rows,
    current_revision,
    make_connect_key,
    make_workspace,
    update_key,
)
from tests.wire.rpcs import METHODS, short

BAD_URIS = {
    "nothing": "",
    "no scheme": "/connected",
    "no scheme but a host": "//app.example/connected",
    "no host": "https:///connected",
    "http": "http://app.example/connected",
    "http to another host than loopback": "http://192.0.2.1/connected",
    "a scheme in upper case": "HTTPS://app.example/connected",
    "a host in upper case": "https://APP.example/connected",
    "a host beyond ASCII": "https://äpp.example/connected",
    "a host with two dots": "https://app..example/connected",
    "a host that is a number": "https://3232235777/connected",
    "a host with a star": "https://*.app.example/connected",
    "port 0": "https://app.example:0/connected",
    "a port that is too large": "https://app.example:65536/connected",
    "a port that is none": "https://app.example:http/connected",
    "user info": "https://user@app.example/connected",
    "user info like a host": "https://app.example:443@evil.example/connected",
    "a fragment": "https://app.example/connected#part",
    "an empty fragment": "https://app.example/connected#",
    "dots": "https://app.example/a/../connected",
    "encoded dots": "https://app.example/a/%2e%2E/connected",
    "an encoded slash": "https://app.example/a%2Fconnected",
    "an encoded backslash": "https://app.example/a%5cconnected",
    "a backslash": "https://app.example\\connected",
    "half an escape": "https://app.example/%2",
    "a space": "https://app.example/con nected",
    "a line break": "https://app.example/connected\n",
    "a NUL": "https://app.example/connected\0",
    "our key": "https://app.example/connected?texture_scoped_key=x",
    "our key, encoded": "https://app.example/connected?texture%5Fscoped%5fkey=x",
    "our state": "https://app.example/connected?a=b&client_state=",
    "our state, in other words": "https://app.example/connected?client.state[]=x",
    "a script": "javascript:alert(1)",
    "a script with a slash": "javascript:/alert(1)",
    "a script with a comment": "javascript://app.example/%0aalert(1)",
    "a script in upper case": "JavaScript:alert(1)",
    "data": "data:text/html,x",
    "a file": "file:///etc/passwd",
    "an intent": "intent://app.example/#Intent;end",
    "a scheme that is no domain name": "myapp://connected",
    "2049 characters": "https://app.example/" + "x" * 2029,
}


def create_workspace(service: Service, uri: str) -> Any:
    return make_workspace(service, "another", environment=ENVIRONMENT_SANDBOX, redirect_uris=[REDIRECT_URI, uri])


def update_workspace(service: Service, uri: str) -> Any:
    return service.operator.workspaces.UpdateWorkspace(
        workspace_service_pb2.UpdateWorkspaceRequest(
            workspace=Workspace(workspace_id=WORKSPACE, redirect_uris=[REDIRECT_URI, uri]),
            update_mask=FieldMask(paths=["redirect_uris"]),
        )
    )


def create_key(service: Service, uri: str) -> Any:
    return make_connect_key(service, redirect_uris=[REDIRECT_URI, uri])


def update_connect_key(service: Service, uri: str) -> Any:
    (key,) = service.query("SELECT key_id FROM api_key")
    return update_key(service, key["key_id"], redirect_uris=[REDIRECT_URI, uri])


# By RPC: the call that registers a URI beside a good one, and the field that is to blame for it.
REGISTERING: dict[str, tuple[Callable[[Service, str], Any], str]] = {
    "CreateWorkspace": (create_workspace, "redirect_uris[1]"),
    "UpdateWorkspace": (update_workspace, "workspace.redirect_uris[1]"),
    "CreateKey": (create_key, "redirect_uris[1]"),
    "UpdateKey": (update_connect_key, "key.redirect_uris[1]"),
}


@pytest.fixture
def sandbox(service: Service) -> Service:
    """A service with a workspace where most is allowed, and a connect key in it."""
    make_workspace(service, environment=ENVIRONMENT_SANDBOX)
    make_connect_key(service)
    return service


def test_the_table_names_every_rpc_that_registers_redirect_uris() -> None:
    def registers(message: Any) -> bool:
        fields = message.fields_by_name
        inner = [field.message_type for field in message.fields if field.name in ("key", "workspace")]
        return "redirect_uris" in fields or any("redirect_uris" in one.fields_by_name for one in inner)

    assert {short(path) for path, method in METHODS.items() if registers(method.input_type)} == set(REGISTERING)


@pytest.mark.parametrize("rpc", REGISTERING)
def test_a_redirect_uri_that_some_program_might_take_for_another_is_registered_nowhere(
    sandbox: Service, rpc: str
) -> None:
    register, field = REGISTERING[rpc]
    before = current_revision(sandbox), count_rows(sandbox, "event")

    for why, uri in BAD_URIS.items():
        error = refused(register, sandbox, uri)
        assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID"), why
        assert set(error.violations) == {field}, why

    assert (current_revision(sandbox), count_rows(sandbox, "event")) == before
    register(sandbox, "com.example.app:/connected")
