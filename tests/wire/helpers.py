"""The few calls that most tests begin with, and what they look at afterwards."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import (
    authorize_service_pb2,
    connect_service_pb2,
    device_service_pb2,
    key_service_pb2,
    workspace_service_pb2,
)
from texture.auth.v1.event_pb2 import Event
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SERVER, Key, KeyKind
from texture.auth.v1.request_context_pb2 import RequestContext
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_PRODUCTION

from server.domain.token import checksum, new_id
from server.store import rows, tables
from server.store.peewee_store import PeeweeWriter
from tests import builders
from tests.harness import Service

WORKSPACE = "grid-one"
OTHER_WORKSPACE = "grid-two"
REDIRECT_URI = "https://app.example/connected"
USER = "end-user-1"
OTHER_USER = "end-user-2"


def timestamp(moment: datetime) -> Timestamp:
    message = Timestamp()
    message.FromDatetime(moment)
    return message


def duration(length: timedelta) -> Duration:
    message = Duration()
    message.FromTimedelta(length)
    return message


def make_workspace(service: Service, workspace_id: str = WORKSPACE, **fields: Any) -> str:
    """Create a production workspace with one redirect URI, unless told otherwise, and return its id."""
    given: dict[str, Any] = {
        "display_name": "Grid",
        "environment": ENVIRONMENT_PRODUCTION,
        "redirect_uris": [REDIRECT_URI],
    } | fields
    request = workspace_service_pb2.CreateWorkspaceRequest(workspace_id=workspace_id, **given)
    return service.operator.workspaces.CreateWorkspace(request).workspace.workspace_id


def make_key(service: Service, **fields: Any) -> key_service_pb2.CreateKeyResponse:
    """Create a server key, unless told otherwise."""
    given: dict[str, Any] = {"workspace_id": WORKSPACE, "kind": KEY_KIND_SERVER, "display_name": "a key"} | fields
    return service.operator.keys.CreateKey(key_service_pb2.CreateKeyRequest(**given))


def make_many_keys(service: Service, count: int) -> list[str]:
    """Make many keys in a few statements, where each over the wire would be a transaction, and return their ids."""
    template = builders.make_key(labels={"batch": "large"}, create_time=service.clock.now)
    keys = [replace(template, key_id=new_id()) for _ in range(count)]
    with service.app._resources.store.write() as writer:
        assert isinstance(writer, PeeweeWriter)
        writer._insert(tables.Key, [writer._created(rows.key_row(key)) for key in keys])
        writer.replace_keys(keys)
    return [key.key_id for key in keys]


def make_connect_key(service: Service, **fields: Any) -> key_service_pb2.CreateKeyResponse:
    return make_key(service, **{"kind": KEY_KIND_CONNECT, "redirect_uris": [REDIRECT_URI]} | fields)


def make_scoped_key(
    service: Service, *device_ids: str, reference_id: str = USER, workspace_id: str = WORKSPACE, manufacturer: str = ""
) -> connect_service_pb2.CompleteConnectLinkResponse:
    """Let an end user connect devices, and return what that made."""
    server_key = make_key(service, workspace_id=workspace_id)
    link = service.operator.connect.CreateConnectLink(
        connect_service_pb2.CreateConnectLinkRequest(
            api_key=server_key.api_key, redirect_uri=REDIRECT_URI, reference_id=reference_id
        )
    )
    return service.operator.connect.CompleteConnectLink(
        connect_service_pb2.CompleteConnectLinkRequest(
            link_token=link.link_token,
            devices=[
                connect_service_pb2.ConnectedDevice(device_id=device_id, manufacturer=manufacturer)
                for device_id in device_ids
            ],
        )
    )


def api_key_of_kind(service: Service, kind: KeyKind.ValueType) -> str:
    """Create a key of a kind; a scoped one comes with the device `mine`."""
    if kind == KEY_KIND_SERVER:
        return make_key(service).api_key
    if kind == KEY_KIND_CONNECT:
        return make_connect_key(service).api_key
    return make_scoped_key(service, "mine").scoped_api_key


def register(
    service: Service, *device_ids: str, workspace_id: str = WORKSPACE, reference_id: str = USER, manufacturer: str = ""
) -> None:
    service.operator.devices.RegisterDevices(
        device_service_pb2.RegisterDevicesRequest(
            workspace_id=workspace_id,
            devices=[
                device_service_pb2.DeviceRegistration(
                    device_id=device_id, reference_id=reference_id, manufacturer=manufacturer
                )
                for device_id in device_ids
            ],
        )
    )


def question(
    api_key: str, permission: str = "devices:list", device_id: str = "", at_least_revision: str = "", **context: str
) -> authorize_service_pb2.AuthorizeRequest:
    return authorize_service_pb2.AuthorizeRequest(
        api_key=api_key,
        permission=permission,
        device_id=device_id,
        context=RequestContext(**context),
        at_least_revision=at_least_revision,
    )


def authorize(
    service: Service,
    api_key: str,
    permission: str = "devices:list",
    device_id: str = "",
    at_least_revision: str = "",
    **context: str,
) -> authorize_service_pb2.AuthorizeResponse:
    """Ask whether the holder of a key may do something; to list devices, unless told otherwise."""
    request = question(api_key, permission, device_id, at_least_revision, **context)
    return service.operator.authorize.Authorize(request)


def reason_of(answer: authorize_service_pb2.AuthorizeResponse) -> str:
    return authorize_service_pb2.Reason.Name(answer.reason).removeprefix("REASON_")


def reason_for(service: Service, api_key: str, **asked: Any) -> str:
    """Ask, and return the name of the reason."""
    return reason_of(authorize(service, api_key, **asked))


def with_wrong_secret(api_key: str) -> str:
    """Return a well-formed key of the same kind and id with another secret."""
    prefix, kind, key_id, _ = api_key.split("_")
    body = f"{prefix}_{kind}_{key_id}_{'x' * 32}"
    return body + checksum(body)


def dealt_with(service: Service) -> None:
    """Wait until keys that were found exposed have been dealt with; mostly they have when the call returns."""
    assert service.app._exposures.settle(60)


def get_key(service: Service, key_id: str) -> Key:
    return service.operator.keys.GetKey(key_service_pb2.GetKeyRequest(key_id=key_id)).key


def revoke(service: Service, key_id: str) -> None:
    service.operator.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=key_id))


def suspend(service: Service, key_id: str) -> None:
    service.operator.keys.SuspendKey(key_service_pb2.SuspendKeyRequest(key_id=key_id))


def rotate(
    service: Service, key_id: str, overlap: timedelta | None = None, **fields: Any
) -> key_service_pb2.RotateKeyResponse:
    given = fields if overlap is None else {"overlap": duration(overlap)} | fields
    return service.operator.keys.RotateKey(key_service_pb2.RotateKeyRequest(key_id=key_id, **given))


def update_key(service: Service, key_id: str, *paths: str, **values: Any) -> key_service_pb2.UpdateKeyResponse:
    """Set the named fields of a key, or those that have values here."""
    return service.operator.keys.UpdateKey(update_request(key_id, *paths, **values))


def update_request(key_id: str, *paths: str, **values: Any) -> key_service_pb2.UpdateKeyRequest:
    request = key_service_pb2.UpdateKeyRequest(key=Key(key_id=key_id, **values))
    request.update_mask.paths.extend(paths or values)
    return request


def events_of(service: Service, key_id: str) -> list[Event]:
    request = key_service_pb2.ListKeyEventsRequest(key_id=key_id, page_size=1000)
    return list(service.operator.keys.ListKeyEvents(request).events)


def event_types(service: Service, key_id: str) -> list[str]:
    return [event.type for event in events_of(service, key_id)]


def count_rows(service: Service, table: str) -> int:
    """Count what the store holds, for what no RPC lists: `event`, `change`, `api_key`."""
    (row,) = service.query(f"SELECT count(*) AS number FROM {table}")
    return int(row["number"])


def current_revision(service: Service) -> str:
    return authorize(service, "no key").revision
