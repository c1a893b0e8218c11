"""Every RPC that the server offers, and a valid request of each, from the descriptors: what is added is covered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from texture.auth.v1 import caller_service_pb2, connect_service_pb2, webhook_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER
from texture.auth.v1.webhook_pb2 import WEBHOOK_ENDPOINT_STATE_ACTIVE
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_PRODUCTION

from server.domain.token import new_id
from server.domain.webhooks import MAXIMUM_ENDPOINTS
from server.wire.server import SERVICES
from tests.harness import Client, Service, first_answer
from tests.wire.helpers import OTHER_USER, REDIRECT_URI, USER, WORKSPACE, make_key, register, rotate

METHODS: Mapping[str, MethodDescriptor] = {
    f"/{service}/{method.name}": method
    for service in SERVICES
    for method in descriptor_pool.Default().FindServiceByName(service).methods
}


def with_field(name: str) -> list[str]:
    """Return the RPCs whose request has a field of this name."""
    return [path for path, method in METHODS.items() if name in method.input_type.fields_by_name]


def short(path: str) -> str:
    """Return the name of an RPC without its service."""
    return path.rpartition("/")[2]


def call(client: Client, path: str, request: Any) -> Any:
    """Call an RPC by its path."""
    answer = type(new_message(METHODS[path].output_type))
    return first_answer(client.channel, path, request, type(request).SerializeToString, answer.FromString, timeout=30)


def new_message(descriptor: Descriptor) -> Any:
    """Return an empty message."""
    return message_factory.GetMessageClass(descriptor)()


def valid_request(service: Service, path: str) -> Any:
    """Return a request of an RPC that is answered with OK, about things that were made for it alone.

    They are in WORKSPACE, which must exist, with a redirect URI.
    """
    method = METHODS[path]
    return _valid(service, method.input_type, OWN_VALUES.get(method.name, {}))


def parts(message: Any) -> list[Any]:
    """Return a message and all messages of this service in it."""
    found = [message]
    for field, value in message.ListFields():
        if is_ours(field):
            for part in value if field.is_repeated else [value]:
                found += parts(part)
    return found


def is_ours(field: Any) -> bool:
    """Tell whether a field holds messages of this service."""
    kind = field.message_type
    return bool(kind) and kind.file.package.startswith("texture.") and not kind.GetOptions().map_entry


# A name that never leads anywhere: nothing is sent.
WEBHOOK_URL = "https://hooks.invalid/"
# What an endpoint is told of, so that it is hardly ever told anything.
_SELDOM = "end_user.erased"


@dataclass(frozen=True)
class Made:
    """A value that is made afresh for each request."""

    make: Callable[[Service], Any]


def open_link(service: Service) -> connect_service_pb2.CreateConnectLinkResponse:
    request = connect_service_pb2.CreateConnectLinkRequest(
        api_key=make_key(service).api_key, redirect_uri=REDIRECT_URI, reference_id=USER
    )
    return service.operator.connect.CreateConnectLink(request)


def new_slug(_service: Service) -> str:
    return f"n{new_id().lower()}z"


def new_caller(service: Service) -> str:
    caller_id = new_slug(service)
    request = caller_service_pb2.CreateCallerRequest(caller_id=caller_id, roles=[ROLE_AUTHORIZER])
    return service.operator.callers.CreateCaller(request).caller.caller_id


def _new_device(service: Service) -> str:
    device_id = new_id()
    register(service, device_id)
    return device_id


def new_webhook_endpoint(service: Service, workspace_id: str = WORKSPACE) -> str:
    request = webhook_service_pb2.CreateWebhookEndpointRequest(
        workspace_id=workspace_id, url=_webhook_url(service), event_types=[_SELDOM]
    )
    return service.operator.webhooks.CreateWebhookEndpoint(request).webhook_endpoint.webhook_endpoint_id


def _webhook_url(service: Service) -> str:
    """Return the URL of an endpoint, once there is room for one: where there are many, all go but the newest."""
    webhooks = service.operator.webhooks
    listed = webhooks.ListWebhookEndpoints(webhook_service_pb2.ListWebhookEndpointsRequest(workspace_id=WORKSPACE))
    if len(listed.webhook_endpoints) > MAXIMUM_ENDPOINTS // 2:
        for endpoint in listed.webhook_endpoints[:-2]:
            request = webhook_service_pb2.DeleteWebhookEndpointRequest(webhook_endpoint_id=endpoint.webhook_endpoint_id)
            webhooks.DeleteWebhookEndpoint(request)
    return WEBHOOK_URL


def _rotated(service: Service) -> str:
    key_id = make_key(service).key.key_id
    rotate(service, key_id, overlap=timedelta(days=1))
    return key_id


# What the fields of valid requests hold, by their names; the others are left out.
VALUES: Mapping[str, Any] = {
    "api_key": Made(lambda service: make_key(service).api_key),
    "caller_id": Made(new_caller),
    "connect_link_id": Made(lambda service: open_link(service).connect_link.connect_link_id),
    "device_id": Made(_new_device),
    "device_ids": Made(lambda service: [_new_device(service)]),
    "display_name": "noise",
    "dry_run": True,
    "environment": ENVIRONMENT_PRODUCTION,
    "event_types": [_SELDOM],
    "key_id": Made(lambda service: make_key(service).key.key_id),
    "kind": KEY_KIND_SERVER,
    "link_token": Made(lambda service: open_link(service).link_token),
    "mac": bytes(32),
    "manufacturer": "acme",
    "new_reference_id": OTHER_USER,
    "number": 1,
    "permission": "devices:read",
    "redirect_uri": REDIRECT_URI,
    "reference_id": USER,
    "roles": [ROLE_AUTHORIZER],
    "source": "scanner",
    "url": Made(_webhook_url),
    "webhook_delivery_ids": ["msg_0000000000000000"],
    "webhook_endpoint_id": Made(new_webhook_endpoint),
    "workspace_id": WORKSPACE,
}
# Where the name alone does not tell.
OWN_VALUES: Mapping[str, Mapping[str, Any]] = {
    "CreateCaller": {"caller_id": Made(new_slug)},
    "CreateWorkspace": {"workspace_id": Made(new_slug)},
    "UpdateWebhookEndpoint": {
        "state": WEBHOOK_ENDPOINT_STATE_ACTIVE,
        "update_mask": "description",
        "url": WEBHOOK_URL,
    },
    "RetireGeneration": {"key_id": Made(_rotated), "generation": 1, "force": True},
}


def _valid(service: Service, descriptor: Any, own: Mapping[str, Any]) -> Any:
    message = new_message(descriptor)
    for field in descriptor.fields:
        value = {**VALUES, **own}.get(field.name)
        group = field.containing_oneof
        if group is not None and message.WhichOneof(group.name):
            continue
        if field.message_type is not None and field.message_type.full_name == "google.protobuf.FieldMask":
            message.update_mask.paths.append(own.get("update_mask", "display_name"))
        elif is_ours(field):
            part = _valid(service, field.message_type, own)
            if field.is_repeated:
                getattr(message, field.name).append(part)
            else:
                getattr(message, field.name).CopyFrom(part)
        elif value is not None:
            given = value.make(service) if isinstance(value, Made) else value
            if field.is_repeated:
                getattr(message, field.name).extend(given)
            else:
                setattr(message, field.name, given)
    return message
