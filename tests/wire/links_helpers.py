"""A workspace with keys, links and devices, made through the stubs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.connect_link_pb2 import ConnectLink, ConnectLinkState
from texture.auth.v1.device_pb2 import Device
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SCOPED, KEY_KIND_SERVER, Key
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX, Workspace

from server.domain.token import checksum
from tests.harness import Client

WORKSPACE = "grid-one"
SITE_URI = "https://app.example/connected"
BACKEND_URI = "https://backend.example/done?lang=en"


def create_workspace(client: Client, workspace_id: str = WORKSPACE, **fields: Any) -> None:
    """Create a sandbox workspace with one redirect URI for server keys."""
    values = {"display_name": "Grid One", "environment": ENVIRONMENT_SANDBOX, "redirect_uris": [BACKEND_URI], **fields}
    client.workspaces.CreateWorkspace(workspace_pb.CreateWorkspaceRequest(workspace_id=workspace_id, **values))


def server_key(client: Client, workspace_id: str = WORKSPACE, **fields: Any) -> key_pb.CreateKeyResponse:
    """Create a server key."""
    return client.keys.CreateKey(
        key_pb.CreateKeyRequest(workspace_id=workspace_id, kind=KEY_KIND_SERVER, display_name="Backend", **fields)
    )


def connect_key(client: Client, workspace_id: str = WORKSPACE, **fields: Any) -> key_pb.CreateKeyResponse:
    """Create a connect key, by default with one redirect URI."""
    values = {"redirect_uris": [SITE_URI], **fields}
    return client.keys.CreateKey(
        key_pb.CreateKeyRequest(workspace_id=workspace_id, kind=KEY_KIND_CONNECT, display_name="Website", **values)
    )


def create_link(
    client: Client, api_key: str, uri: str = SITE_URI, **fields: Any
) -> connect_pb.CreateConnectLinkResponse:
    """Create a Connect link."""
    return client.connect.CreateConnectLink(
        connect_pb.CreateConnectLinkRequest(api_key=api_key, redirect_uri=uri, **fields)
    )


def completion(link_token: str, *device_ids: str, **fields: Any) -> connect_pb.CompleteConnectLinkRequest:
    """Return the request that completes a link."""
    devices = [connect_pb.ConnectedDevice(device_id=device_id) for device_id in device_ids]
    return connect_pb.CompleteConnectLinkRequest(link_token=link_token, devices=devices, **fields)


def complete(
    client: Client, link_token: str, *device_ids: str, **fields: Any
) -> connect_pb.CompleteConnectLinkResponse:
    """Complete a link."""
    return client.connect.CompleteConnectLink(completion(link_token, *device_ids, **fields))


def get_link(client: Client, connect_link_id: str) -> ConnectLink:
    """Return a link by its id."""
    return client.connect.GetConnectLink(connect_pb.GetConnectLinkRequest(connect_link_id=connect_link_id)).connect_link


def link_state(client: Client, connect_link_id: str) -> str:
    """Return where a link stands, without the prefix of its enum."""
    return ConnectLinkState.Name(get_link(client, connect_link_id).state).removeprefix("CONNECT_LINK_STATE_")


def get_key(client: Client, key_id: str) -> Key:
    """Return a key."""
    return client.keys.GetKey(key_pb.GetKeyRequest(key_id=key_id)).key


def register(
    client: Client, reference_id: str, *device_ids: str, workspace_id: str = WORKSPACE, manufacturer: str = ""
) -> list[Device]:
    """Register devices of one end user."""
    request = device_pb.RegisterDevicesRequest(
        workspace_id=workspace_id,
        devices=[
            device_pb.DeviceRegistration(device_id=device_id, reference_id=reference_id, manufacturer=manufacturer)
            for device_id in device_ids
        ],
    )
    return list(client.devices.RegisterDevices(request).devices)


def get_device(client: Client, device_id: str) -> Device:
    """Return a device."""
    return client.devices.GetDevice(device_pb.GetDeviceRequest(device_id=device_id)).device


def reason(client: Client, api_key: str, device_id: str = "", permission: str = "") -> str:
    """Ask for a decision, by default `devices:read`, or `devices:list` without a device; return its reason's name."""
    chosen = permission or ("devices:read" if device_id else "devices:list")
    answer = client.authorize.Authorize(
        authorize_pb.AuthorizeRequest(api_key=api_key, permission=chosen, device_id=device_id)
    )
    allowed = answer.decision == authorize_pb.DECISION_ALLOW
    assert allowed == (answer.reason == authorize_pb.REASON_PERMITTED)
    return authorize_pb.Reason.Name(answer.reason).removeprefix("REASON_")


@dataclass(frozen=True)
class ScopedKey:
    """A scoped key, and its end user."""

    api_key: str
    key_id: str
    reference_id: str


def scoped_key(
    client: Client, reference_id: str, device_ids: Sequence[str], workspace_id: str = WORKSPACE
) -> ScopedKey:
    """Have an end user connect devices, through a link of a server key made for it; return the key they are given."""
    backend = server_key(client, workspace_id).api_key
    link = create_link(client, backend, BACKEND_URI, reference_id=reference_id)
    done = complete(client, link.link_token, *device_ids)
    return ScopedKey(done.scoped_api_key, done.scoped_key.key_id, reference_id)


def with_wrong_secret(token: str) -> str:
    """Return a token of the same kind and id, well formed, with another secret."""
    body = token[:-6]
    changed = body[:-1] + ("A" if body[-1] != "A" else "B")
    return changed + checksum(changed)


def length(value: timedelta) -> Duration:
    """Return the message of a length of time."""
    message = Duration()
    message.FromTimedelta(value)
    return message


def scoped_keys(client: Client, state: int = 0) -> list[str]:
    """Return the ids of the workspace's scoped keys."""
    request = key_pb.ListKeysRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SCOPED)
    return [key.key_id for key in client.keys.ListKeys(request).keys if state in (0, key.state)]


def devices(client: Client) -> list[str]:
    """Return the ids of the workspace's devices."""
    listed = client.devices.ListDevices(device_pb.ListDevicesRequest(workspace_id=WORKSPACE))
    return sorted(device.device_id for device in listed.devices)


def query_of(uri: str) -> dict[str, list[str]]:
    """Return the parameters of a URI's query."""
    return parse_qs(urlsplit(uri).query, keep_blank_values=True, strict_parsing=True)


def cancel(
    client: Client, link_id: str, reason: str = "", request_id: str = ""
) -> connect_pb.CancelConnectLinkResponse:
    """Cancel a link."""
    return client.connect.CancelConnectLink(
        connect_pb.CancelConnectLinkRequest(connect_link_id=link_id, reason=reason, request_id=request_id)
    )


def forbid_links(client: Client, key_id: str) -> None:
    """Take the permission to create links from a server key."""
    client.keys.UpdateKey(
        key_pb.UpdateKeyRequest(
            key=Key(key_id=key_id, permissions=["devices:read"]), update_mask=FieldMask(paths=["permissions"])
        )
    )


def register_uris(client: Client, key_id: str, *uris: str) -> None:
    """Register these redirect URIs with a connect key, and no others."""
    client.keys.UpdateKey(
        key_pb.UpdateKeyRequest(
            key=Key(key_id=key_id, redirect_uris=uris), update_mask=FieldMask(paths=["redirect_uris"])
        )
    )


def unregister_workspace_uris(client: Client) -> None:
    """Take all redirect URIs from the workspace."""
    client.workspaces.UpdateWorkspace(
        workspace_pb.UpdateWorkspaceRequest(
            workspace=Workspace(workspace_id=WORKSPACE), update_mask=FieldMask(paths=["redirect_uris"])
        )
    )


def one(device_id: str, reference_id: str = "user-1", manufacturer: str = "") -> device_pb.DeviceRegistration:
    """Return a device to register."""
    return device_pb.DeviceRegistration(device_id=device_id, reference_id=reference_id, manufacturer=manufacturer)


def register_all(
    client: Client, *devices: device_pb.DeviceRegistration, **fields: Any
) -> device_pb.RegisterDevicesResponse:
    """Register devices of any end users."""
    values = {"workspace_id": WORKSPACE, **fields}
    return client.devices.RegisterDevices(device_pb.RegisterDevicesRequest(devices=devices, **values))


def transfer(client: Client, *device_ids: str, **fields: Any) -> device_pb.TransferDevicesResponse:
    """Give devices from `user-1` to `user-2`, unless told otherwise."""
    values = {"workspace_id": WORKSPACE, "reference_id": "user-1", "new_reference_id": "user-2", **fields}
    return client.devices.TransferDevices(device_pb.TransferDevicesRequest(device_ids=device_ids, **values))


def remove(client: Client, *device_ids: str, **fields: Any) -> device_pb.RemoveDevicesResponse:
    """Remove devices."""
    values = {"workspace_id": WORKSPACE, **fields}
    return client.devices.RemoveDevices(device_pb.RemoveDevicesRequest(device_ids=device_ids, **values))


def listed(client: Client, **fields: Any) -> list[str]:
    """Return the ids of one page of devices."""
    values = {"workspace_id": WORKSPACE, **fields}
    return [device.device_id for device in client.devices.ListDevices(device_pb.ListDevicesRequest(**values)).devices]
