"""Every RPC of the contract, called rightly and wrongly, with what was handed out and what was told of it.

Fields that hold a secret are known by the contract's own mark, `debug_redact`, and RPCs by its descriptors, so that a
new one is missed by no test that goes through here.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from itertools import count
from typing import Any, TypeAlias

import grpc
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import event_service_pb2 as event_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import usage_service_pb2 as usage_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, Caller
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SERVER, Key
from texture.auth.v1.request_context_pb2 import RequestContext
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX, Workspace

from tests.harness import first_answer

MODULES = (authorize_pb, caller_pb, connect_pb, device_pb, event_pb, key_pb, usage_pb, workspace_pb)
METHODS: dict[str, MethodDescriptor] = {
    f"/{service.full_name}/{method.name}": method
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}
# No two RPCs take the same message, as the contract's lint demands.
METHOD_OF = {method.input_type.full_name: path for path, method in METHODS.items()}

SITE_URI = "https://app.example/connected"
BACKEND_URI = "https://backend.example/done"
CONTEXT = RequestContext(client_ip="192.0.2.1", user_agent="curl/8")

Scenario: TypeAlias = Generator[Message, Any, None]


def is_secret(descriptor: FieldDescriptor) -> bool:
    """Tell whether the contract marks a field as one that must not be shown."""
    return bool(descriptor.GetOptions().debug_redact)


def secrets_in(message: Message) -> Iterator[str]:
    """Return what stands in the marked fields of a message and of those in it."""
    for descriptor, value in message.ListFields():
        if is_secret(descriptor):
            yield value
        elif descriptor.message_type is not None and not descriptor.message_type.GetOptions().map_entry:
            for inner in value if descriptor.is_repeated else (value,):
                yield from secrets_in(inner)


def without_secrets(message: Message) -> Message:
    """Return a message without what stands in its marked fields."""
    shown = type(message)()
    shown.CopyFrom(message)
    for descriptor, _ in message.ListFields():
        if is_secret(descriptor):
            shown.ClearField(descriptor.name)
    return shown


def is_text(descriptor: FieldDescriptor) -> bool:
    """Tell whether a field holds text."""
    return bool(descriptor.type == FieldDescriptor.TYPE_STRING)


def with_text(message: Message, text: str, wanted: Callable[[Any], bool] = is_text) -> Iterator[tuple[str, Message]]:
    """Return a message as often as it has fields that are wanted, each time with this text in another one of them."""
    for descriptor in message.DESCRIPTOR.fields:
        name = descriptor.name
        kind: Any = descriptor.message_type
        if kind is not None and kind.GetOptions().map_entry:
            if not wanted(kind.fields_by_name["value"]):
                continue
            for where, put in ((f"{name} (name)", (text, "x")), (f"{name} (value)", ("misplaced", text))):
                changed = _copy(message)
                getattr(changed, name)[put[0]] = put[1]
                yield where, changed
        elif kind is not None:
            old = getattr(message, name)
            inner = (old[0] if old else GetMessageClass(kind)()) if descriptor.is_repeated else old
            for where, new in with_text(inner, text, wanted):
                changed = _copy(message)
                if descriptor.is_repeated:
                    changed.ClearField(name)
                    getattr(changed, name).append(new)
                else:
                    getattr(changed, name).CopyFrom(new)
                yield f"{name}.{where}", changed
        elif wanted(descriptor):
            changed = _copy(message)
            if descriptor.is_repeated:
                getattr(changed, name).append(text)
            else:
                setattr(changed, name, text)
            yield name, changed


def _copy(message: Message) -> Any:
    copied = type(message)()
    copied.CopyFrom(message)
    return copied


@dataclass
class World:
    """A server that is called, and all that came of it.

    `outcomes` are the codes that each RPC has answered with, `secrets` what was handed out, `told` what was said
    beside that: every response without its marked fields, and every error in full, each with the call that it answers.
    `templates` are the requests that have succeeded.
    """

    channel: grpc.Channel
    operator_key: str
    outcomes: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    secrets: set[str] = field(default_factory=set)
    told: list[tuple[str, str]] = field(default_factory=list)
    templates: dict[str, list[Message]] = field(default_factory=lambda: defaultdict(list))
    _numbers: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        self.secrets.add(self.operator_key)

    def call(self, request: Message, how: str, credential: str | None = "") -> Message | grpc.RpcError:
        """Make a call whatever comes of it; as the operator, unless another credential or None is given."""
        return self.call_raw(METHOD_OF[request.DESCRIPTOR.full_name], request.SerializeToString(), how, credential)

    def call_raw(self, path: str, request: bytes, how: str, credential: str | None = "") -> Message | grpc.RpcError:
        """Make a call with the bytes of a request."""
        deserialize = GetMessageClass(METHODS[path].output_type).FromString
        key = self.operator_key if credential == "" else credential
        metadata = () if key is None else (("authorization", f"Bearer {key}"),)
        about = f"{path.rpartition('/')[2]}, {how}"
        try:
            response: Message = first_answer(
                self.channel, path, request, None, deserialize, metadata=metadata, timeout=30
            )
        except grpc.RpcError as error:
            return self._failed(path, about, error)
        self.outcomes[path].add("OK")
        self.secrets.update(secret for text in secrets_in(response) for secret in _tokens_of(text))
        self.told.append((about, str(without_secrets(response))))
        return response

    def _failed(self, path: str, about: str, error: Any) -> grpc.RpcError:
        """Note all that an error says, what travels with it in binary too."""
        self.outcomes[path].add(error.code().name)
        trailing = error.trailing_metadata() or ()
        binary = (value.decode("latin-1") for name, value in trailing if name.endswith("-bin"))
        self.told.append((about, "\n".join([error.details() or "", str(error), repr(trailing), *binary])))
        failed: grpc.RpcError = error
        return failed

    def play(self, scenario: Scenario) -> None:
        """Make the calls of a scenario, all of which must succeed, and give it each response."""
        response = None
        while True:
            try:
                request = scenario.send(response)
            except StopIteration:
                return
            response = self.call(request, "rightly")
            assert isinstance(response, Message), str(response)
            self.templates[METHOD_OF[request.DESCRIPTOR.full_name]].append(request)

    def anew(self, template: Message) -> Any:
        """Return a request that has succeeded as one that was not made yet, as far as its own names go."""
        request = _copy(template)
        if "request_id" in request.DESCRIPTOR.fields_by_name:
            request.ClearField("request_id")
        if isinstance(request, caller_pb.CreateCallerRequest):
            request.caller_id = f"caller-{next(self._numbers)}"
        return request

    def every_request_of(self, name: str) -> Iterator[Any]:
        """Return the requests of one RPC that have succeeded, as new ones."""
        for path in METHODS:
            if path.endswith(f"/{name}"):
                yield from map(self.anew, self.templates[path])

    def every_request(self) -> Iterator[Any]:
        """Return the requests that have succeeded as new ones, one of each sort: those that set the same fields."""
        seen = set()
        for template in (template for path in METHODS for template in self.templates[path]):
            names = (descriptor.name for descriptor, _ in template.ListFields())
            sort = (template.DESCRIPTOR.full_name, *names, str(getattr(template, "update_mask", "")))
            if sort not in seen:
                seen.add(sort)
                yield self.anew(template)


def _tokens_of(text: str) -> Iterator[str]:
    """Return the token that a marked field holds: whole, or in the query of a redirect URI."""
    yield text.rpartition("texture_scoped_key=")[2].partition("&")[0]


def life() -> Scenario:
    """Call every RPC as it is meant to be. What is made here is live at the end, but for what was made to be ended."""
    made = yield workspace_pb.CreateWorkspaceRequest(
        display_name="Grid One", environment=ENVIRONMENT_SANDBOX, redirect_uris=[BACKEND_URI]
    )
    workspace_id = made.workspace.workspace_id
    settings = Workspace(workspace_id=workspace_id, display_name="Grid", redirect_uris=[BACKEND_URI])
    mask = FieldMask(paths=["display_name", "redirect_uris"])
    yield workspace_pb.UpdateWorkspaceRequest(workspace=settings, update_mask=mask)
    yield workspace_pb.GetWorkspaceRequest(workspace_id=workspace_id)
    yield workspace_pb.ListWorkspacesRequest(page_size=1)
    yield from _keys(workspace_id)
    yield from _devices(workspace_id)
    yield from _decisions(workspace_id)
    yield from _callers()
    yield event_pb.ListEventsRequest(workspace_id=workspace_id, types=["key.created", "key.revoked"])
    yield event_pb.WatchEventsRequest(workspace_id=workspace_id)
    yield event_pb.ListChainHeadsRequest(page_size=1)
    yield event_pb.VerifyChainRequest(workspace_id=workspace_id)


def _keys(workspace_id: str) -> Scenario:
    request = key_pb.CreateKeyRequest(
        workspace_id=workspace_id,
        kind=KEY_KIND_SERVER,
        display_name="Backend",
        labels={"team": "grid"},
        request_id="create-1",
    )
    made = yield request
    key_id = made.key.key_id
    key = Key(
        key_id=key_id,
        display_name="Backend",
        description="of the nightly report",
        labels={"team": "grid"},
        permissions=made.key.permissions,
        allowed_cidrs=["192.0.2.0/24"],
        allowed_manufacturers=["acme"],
    )
    mask = FieldMask(
        paths=["display_name", "description", "labels", "permissions", "allowed_cidrs", "allowed_manufacturers"]
    )
    yield key_pb.UpdateKeyRequest(key=key, update_mask=mask, reason="narrowed")
    yield key_pb.SuspendKeyRequest(key_id=key_id, reason="audit")
    yield key_pb.ResumeKeyRequest(key_id=key_id, reason="audited")
    rotated = yield key_pb.RotateKeyRequest(key_id=key_id, overlap=Duration(seconds=3600))
    yield key_pb.RotateKeyRequest(key_id=key_id, force=True, reason="lost")
    yield key_pb.GetRotationRequest(key_id=key_id, quiet_for=Duration(seconds=60))
    yield key_pb.RetireGenerationRequest(key_id=key_id, generation=1, force=True, reason="nobody has it")
    yield key_pb.LookupKeyRequest(api_key=rotated.api_key)
    yield key_pb.GetKeyRequest(key_id=key_id)
    yield key_pb.ListKeysRequest(workspace_id=workspace_id, labels={"team": "grid"})
    yield key_pb.ListKeyEventsRequest(key_id=key_id)
    for label in ("one", "many"):
        leaving = yield key_pb.CreateKeyRequest(
            workspace_id=workspace_id, kind=KEY_KIND_SERVER, display_name="Old", labels={"leaving": label}
        )
    yield key_pb.RevokeKeyRequest(key_id=leaving.key.key_id, reason="gone")
    which = key_pb.RevokeKeysFilter(labels={"leaving": "one"})
    yield key_pb.RevokeKeysRequest(workspace_id=workspace_id, filter=which, dry_run=True)
    yield key_pb.RevokeKeysRequest(workspace_id=workspace_id, filter=which, expected_count=1, reason="gone")
    found = yield key_pb.CreateKeyRequest(workspace_id=workspace_id, kind=KEY_KIND_SERVER, display_name="Found")
    report = key_pb.ExposedKeyReport(api_key=found.api_key, url="https://code.example/main.py", source="scanner")
    yield key_pb.ReportExposedKeysRequest(reports=[report])


def _devices(workspace_id: str) -> Scenario:
    devices = [
        device_pb.DeviceRegistration(device_id=f"battery-{number}", reference_id="user-1", manufacturer="acme")
        for number in range(3)
    ]
    yield device_pb.RegisterDevicesRequest(workspace_id=workspace_id, devices=devices)
    yield device_pb.GetDeviceRequest(device_id="battery-0")
    yield device_pb.ListDevicesRequest(workspace_id=workspace_id, reference_id="user-1", manufacturers=["acme"])
    yield device_pb.TransferDevicesRequest(
        workspace_id=workspace_id,
        reference_id="user-1",
        device_ids=["battery-1"],
        new_reference_id="user-2",
        reason="sold",
    )
    yield device_pb.RemoveDevicesRequest(workspace_id=workspace_id, device_ids=["battery-2"], reason="scrapped")
    yield workspace_pb.EraseEndUserRequest(workspace_id=workspace_id, reference_id="user-2", reason="asked for")


def _decisions(workspace_id: str) -> Scenario:
    made = yield key_pb.CreateKeyRequest(workspace_id=workspace_id, kind=KEY_KIND_SERVER, display_name="Asks")
    asked = {"api_key": made.api_key, "permission": "devices:read", "device_id": "battery-0", "context": CONTEXT}
    yield authorize_pb.AuthorizeRequest(**asked)
    yield authorize_pb.BatchAuthorizeRequest(questions=[authorize_pb.Question(**asked)])
    yield usage_pb.GetKeyUsageRequest(key_id=made.key.key_id)
    yield usage_pb.ListKeyDevicesRequest(key_id=made.key.key_id)
    yield usage_pb.ListDeviceKeysRequest(device_id="battery-0")
    yield authorize_pb.ExplainAuthorizationRequest(**asked)
    yield authorize_pb.ExplainAuthorizationRequest(key_id=made.key.key_id, permission="devices:list")
    site = yield key_pb.CreateKeyRequest(
        workspace_id=workspace_id, kind=KEY_KIND_CONNECT, display_name="Site", redirect_uris=[SITE_URI]
    )
    yield key_pb.UpdateKeyRequest(
        key=Key(key_id=site.key.key_id, redirect_uris=[SITE_URI]), update_mask=FieldMask(paths=["redirect_uris"])
    )
    leaked = yield key_pb.CreateKeyRequest(workspace_id=workspace_id, kind=KEY_KIND_SERVER, display_name="Leaks")
    browser = RequestContext(sec_fetch_site="cross-site", origin="https://shop.example")
    yield authorize_pb.AuthorizeRequest(api_key=leaked.api_key, permission="devices:list", context=browser)
    yield key_pb.ListKeyEventsRequest(key_id=leaked.key.key_id)
    for end in ("complete", "cancel", "leave open"):
        link = yield connect_pb.CreateConnectLinkRequest(
            api_key=site.api_key, redirect_uri=SITE_URI, client_state="s", context=CONTEXT
        )
        yield connect_pb.GetConnectLinkRequest(link_token=link.link_token)
        if end == "complete":
            devices = [connect_pb.ConnectedDevice(device_id="charger-1", manufacturer="acme")]
            for _ in ("at first", "again, its answer lost"):
                yield connect_pb.CompleteConnectLinkRequest(
                    link_token=link.link_token, devices=devices, request_id="complete-1"
                )
        elif end == "cancel":
            yield connect_pb.CancelConnectLinkRequest(connect_link_id=link.connect_link.connect_link_id, reason="left")
    yield connect_pb.GetConnectLinkRequest(connect_link_id=link.connect_link.connect_link_id)


def _callers() -> Scenario:
    yield caller_pb.CreateCallerRequest(caller_id="device-api", display_name="Devices", roles=[ROLE_AUTHORIZER])
    caller = Caller(caller_id="device-api", display_name="Device API", roles=[ROLE_AUTHORIZER])
    yield caller_pb.UpdateCallerRequest(caller=caller, update_mask=FieldMask(paths=["display_name", "roles"]))
    yield caller_pb.RotateCallerKeyRequest(caller_id="device-api", overlap=Duration(seconds=3600))
    yield caller_pb.GetCallerRequest(caller_id="device-api")
    yield caller_pb.ListCallersRequest(page_size=1)
    yield caller_pb.CreateCallerRequest(caller_id="gone-api", roles=[ROLE_AUTHORIZER])
    yield caller_pb.RevokeCallerRequest(caller_id="gone-api", reason="gone")
