"""Request ids: a call that is repeated changes nothing twice."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeAlias

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from texture.auth.v1 import caller_service_pb2, device_service_pb2, key_service_pb2, workspace_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_DEVICES, ROLE_KEY_ADMIN, ROLE_OPERATOR, Caller
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER, KEY_STATE_ACTIVE, Key
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX, Workspace

from tests.harness import Client, Service, as_refused, refused
from tests.wire.helpers import (
    OTHER_USER,
    USER,
    WORKSPACE,
    count_rows,
    current_revision,
    event_types,
    make_key,
    make_workspace,
    register,
    rotate,
    suspend,
)

HOUR = timedelta(hours=1)
DAY = timedelta(hours=24)
REPEATED = (grpc.StatusCode.ALREADY_EXISTS, "REQUEST_REPEATED")

Ids: TypeAlias = "dict[str, str]"


@pytest.fixture
def ids(service: Service) -> Ids:
    """The ids of what the calls are about."""
    return prepared(service)


@pytest.fixture(scope="module")
def shared_ids(module_service: Service) -> Ids:
    """The same, for those whose calls change nothing."""
    return prepared(module_service)


def prepared(service: Service) -> Ids:
    """Make what the calls are about: a live key, a suspended one, one that was rotated, a caller."""
    make_workspace(service)
    register(service, "device-1", "device-2")
    service.caller("device-api", ROLE_AUTHORIZER)
    leaving = make_key(service, labels={"team": "leaving"})
    found = {"key_id": leaving.key.key_id, "api_key": leaving.api_key, "suspended": make_key(service).key.key_id}
    found["rotated"] = make_key(service).key.key_id
    suspend(service, found["suspended"])
    rotate(service, found["rotated"], overlap=DAY)
    return found


@dataclass(frozen=True)
class Call:
    """A mutating call: the request, another one for the same method, and what a repeat names if it is refused."""

    stub: str
    method: str
    request: Callable[[Ids], Any]
    other: Callable[[Ids], Any]
    names: str = ""

    def make(self, client: Client, request: Any, request_id: str) -> Any:
        """Make the call under a request id."""
        named = type(request)()
        named.CopyFrom(request)
        named.request_id = request_id
        return getattr(getattr(client, self.stub), self.method)(named)


def _create_key(**fields: Any) -> Callable[[Ids], Message]:
    given: dict[str, Any] = {"workspace_id": WORKSPACE, "kind": KEY_KIND_SERVER, "display_name": "new"} | fields
    return lambda _: key_service_pb2.CreateKeyRequest(**given)


def _update_key(name: str) -> Callable[[Ids], Message]:
    return lambda ids: key_service_pb2.UpdateKeyRequest(
        key=Key(key_id=ids["key_id"], display_name=name), update_mask=FieldMask(paths=["display_name"])
    )


def _about_key(request: Any, which: str = "key_id", **fields: Any) -> Callable[[Ids], Message]:
    return lambda ids: request(key_id=ids[which], **fields)


def _revoke_keys(reason: str) -> Callable[[Ids], Message]:
    which = key_service_pb2.RevokeKeysFilter(labels={"team": "leaving"})
    return lambda _: key_service_pb2.RevokeKeysRequest(
        workspace_id=WORKSPACE, filter=which, expected_count=1, reason=reason
    )


def _report(url: str) -> Callable[[Ids], Message]:
    return lambda ids: key_service_pb2.ReportExposedKeysRequest(
        reports=[key_service_pb2.ExposedKeyReport(api_key=ids["api_key"], url=url)]
    )


def _create_workspace(name: str) -> Callable[[Ids], Message]:
    return lambda _: workspace_service_pb2.CreateWorkspaceRequest(display_name=name, environment=ENVIRONMENT_SANDBOX)


def _update_workspace(name: str) -> Callable[[Ids], Message]:
    return lambda _: workspace_service_pb2.UpdateWorkspaceRequest(
        workspace=Workspace(workspace_id=WORKSPACE, display_name=name), update_mask=FieldMask(paths=["display_name"])
    )


def _erase(reason: str) -> Callable[[Ids], Message]:
    return lambda _: workspace_service_pb2.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id=USER, reason=reason)


def _register(device_id: str) -> Callable[[Ids], Message]:
    device = device_service_pb2.DeviceRegistration(device_id=device_id, reference_id=USER)
    return lambda _: device_service_pb2.RegisterDevicesRequest(workspace_id=WORKSPACE, devices=[device])


def _transfer(reason: str) -> Callable[[Ids], Message]:
    return lambda _: device_service_pb2.TransferDevicesRequest(
        workspace_id=WORKSPACE,
        reference_id=USER,
        device_ids=["device-1"],
        new_reference_id=OTHER_USER,
        reason=reason,
    )


def _remove(device_id: str) -> Callable[[Ids], Message]:
    return lambda _: device_service_pb2.RemoveDevicesRequest(workspace_id=WORKSPACE, device_ids=[device_id])


def _create_caller(name: str) -> Callable[[Ids], Message]:
    return lambda _: caller_service_pb2.CreateCallerRequest(
        caller_id="command-api", display_name=name, roles=[ROLE_AUTHORIZER]
    )


def _update_caller(name: str) -> Callable[[Ids], Message]:
    return lambda _: caller_service_pb2.UpdateCallerRequest(
        caller=Caller(caller_id="device-api", display_name=name), update_mask=FieldMask(paths=["display_name"])
    )


def _rotate_caller(*, force: bool) -> Callable[[Ids], Message]:
    return lambda _: caller_service_pb2.RotateCallerKeyRequest(caller_id="device-api", force=force)


def _revoke_caller(reason: str) -> Callable[[Ids], Message]:
    return lambda _: caller_service_pb2.RevokeCallerRequest(caller_id="device-api", reason=reason)


CALLS = {
    call.method: call
    for call in (
        Call("keys", "CreateKey", _create_key(), _create_key(display_name="other"), "key_id"),
        Call("keys", "UpdateKey", _update_key("a"), _update_key("b")),
        Call(
            "keys",
            "SuspendKey",
            _about_key(key_service_pb2.SuspendKeyRequest),
            _about_key(key_service_pb2.SuspendKeyRequest, reason="other"),
        ),
        Call(
            "keys",
            "ResumeKey",
            _about_key(key_service_pb2.ResumeKeyRequest, "suspended"),
            _about_key(key_service_pb2.ResumeKeyRequest),
        ),
        Call(
            "keys",
            "RotateKey",
            _about_key(key_service_pb2.RotateKeyRequest),
            _about_key(key_service_pb2.RotateKeyRequest, force=True),
            "key_id",
        ),
        Call(
            "keys",
            "RetireGeneration",
            _about_key(key_service_pb2.RetireGenerationRequest, "rotated", generation=1, force=True),
            _about_key(key_service_pb2.RetireGenerationRequest, "rotated", generation=1),
        ),
        Call(
            "keys",
            "RevokeKey",
            _about_key(key_service_pb2.RevokeKeyRequest),
            _about_key(key_service_pb2.RevokeKeyRequest, "suspended"),
        ),
        Call("keys", "RevokeKeys", _revoke_keys(""), _revoke_keys("other")),
        Call("keys", "ReportExposedKeys", _report("https://a.example"), _report("https://b.example")),
        Call("workspaces", "CreateWorkspace", _create_workspace("a"), _create_workspace("b")),
        Call("workspaces", "UpdateWorkspace", _update_workspace("a"), _update_workspace("b")),
        Call("workspaces", "EraseEndUser", _erase("a"), _erase("b")),
        Call("devices", "RegisterDevices", _register("device-9"), _register("device-10")),
        Call("devices", "TransferDevices", _transfer(""), _transfer("other")),
        Call("devices", "RemoveDevices", _remove("device-1"), _remove("device-2")),
        Call("callers", "CreateCaller", _create_caller("a"), _create_caller("b"), "caller_id"),
        Call("callers", "UpdateCaller", _update_caller("a"), _update_caller("b")),
        Call("callers", "RotateCallerKey", _rotate_caller(force=False), _rotate_caller(force=True), "caller_id"),
        Call("callers", "RevokeCaller", _revoke_caller("a"), _revoke_caller("b")),
    )
}
SECRETS = [method for method, call in CALLS.items() if call.names]


def test_the_table_of_calls_names_every_call_that_has_a_request_id() -> None:
    modules = (key_service_pb2, workspace_service_pb2, device_service_pb2, caller_service_pb2)
    methods = [
        method
        for module in modules
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]

    assert {method.name for method in methods if "request_id" in method.input_type.fields_by_name} == set(CALLS)


def entity(response: Any) -> list[str]:
    """Return what a response is about, in words that ignore what is not part of it."""
    return [
        str(getattr(response, field.name))
        for field in response.DESCRIPTOR.fields
        if field.name in ("key", "count", "workspace", "devices", "caller")
    ]


@pytest.mark.parametrize("method", CALLS)
def test_a_repeat_changes_nothing_and_says_what_was_done_and_another_request_under_its_id_is_refused(
    service: Service, ids: Ids, method: str
) -> None:
    call = CALLS[method]
    before = count_rows(service, "event")
    first = call.make(service.operator, call.request(ids), "again-1")
    events, revision = count_rows(service, "event"), current_revision(service)
    # A key that is found is exposed, and revoked for it.
    assert events == before + (2 if method == "ReportExposedKeys" else 1)
    service.clock.turn(HOUR)

    if call.names:
        error = refused(call.make, service.operator, call.request(ids), "again-1")
        assert (error.code, error.reason) == REPEATED
        assert error.metadata == {call.names: getattr(getattr(first, call.names.removesuffix("_id")), call.names)}
    else:
        again = call.make(service.operator, call.request(ids), "again-1")
        assert again.revision == first.revision
        assert entity(again) == entity(first)
        if method == "RemoveDevices":
            assert (list(first.removed_device_ids), list(again.removed_device_ids)) == (["device-1"], [])
    error = refused(call.make, service.operator, call.other(ids), "again-1")
    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert set(error.violations) == {"request_id"}
    assert count_rows(service, "event") == events
    assert current_revision(service) == revision


REQUEST_IDS = ["a b", "a\n", "é", "\x00", "\x7f", "x" * 129, " "]


@pytest.mark.parametrize("method", CALLS)
def test_a_request_id_that_cannot_be_is_refused(shared_service: Service, shared_ids: Ids, method: str) -> None:
    call = CALLS[method]
    client, events = shared_service.operator, count_rows(shared_service, "event")

    errors = [refused(call.make, client, call.request(shared_ids), request_id) for request_id in REQUEST_IDS]

    assert {(error.code, *error.violations) for error in errors} == {(grpc.StatusCode.INVALID_ARGUMENT, "request_id")}
    assert count_rows(shared_service, "event") == events


@pytest.mark.parametrize("request_id", ["x", "~" * 128, "0192f7a4-8d5c-7a31-b1f0-9e6f3c1f8a55", "';--"])
def test_any_visible_ascii_may_be_a_request_id(service: Service, ids: Ids, request_id: str) -> None:
    call = CALLS["CreateKey"]
    call.make(service.operator, call.request(ids), request_id)

    assert refused(call.make, service.operator, call.request(ids), request_id).reason == "REQUEST_REPEATED"


@pytest.mark.parametrize("method", ["CreateKey", "UpdateKey", "CreateWorkspace", "RegisterDevices", "UpdateCaller"])
def test_a_request_id_is_remembered_for_24_hours_and_no_longer(service: Service, ids: Ids, method: str) -> None:
    call = CALLS[method]
    call.make(service.operator, call.request(ids), "again-1")
    service.clock.turn(DAY - timedelta(seconds=1))
    assert set(refused(call.make, service.operator, call.other(ids), "again-1").violations) == {"request_id"}

    service.clock.turn(timedelta(seconds=2))

    call.make(service.operator, call.other(ids), "again-1")


def test_a_forgotten_request_is_carried_out_again(service: Service, ids: Ids) -> None:
    call = CALLS["CreateKey"]
    first = call.make(service.operator, call.request(ids), "again-1")
    service.clock.turn(DAY + timedelta(seconds=1))

    second = call.make(service.operator, call.request(ids), "again-1")

    assert second.key.key_id != first.key.key_id
    assert refused(call.make, service.operator, call.request(ids), "again-1").metadata == {"key_id": second.key.key_id}


@pytest.mark.parametrize("method", ["CreateKey", "UpdateKey", "CreateWorkspace", "RegisterDevices"])
def test_the_request_ids_of_two_callers_have_nothing_to_do_with_each_other(
    service: Service, ids: Ids, method: str
) -> None:
    call = CALLS[method]
    other = service.caller("dashboard", ROLE_KEY_ADMIN, ROLE_DEVICES)
    call.make(service.operator, call.request(ids), "again-1")

    call.make(other, call.other(ids), "again-1")


def test_a_request_id_is_the_callers_own_whatever_its_secret(service: Service, ids: Ids) -> None:
    call = CALLS["CreateKey"]
    client = service.caller("dashboard", ROLE_OPERATOR)
    first = call.make(client, call.request(ids), "again-1")
    rotated = client.callers.RotateCallerKey(caller_service_pb2.RotateCallerKeyRequest(caller_id="dashboard"))

    error = refused(call.make, service.client(rotated.caller_key), call.request(ids), "again-1")

    assert error.metadata == {"key_id": first.key.key_id}


def test_the_request_ids_of_two_methods_have_nothing_to_do_with_each_other(service: Service, ids: Ids) -> None:
    for method in ("CreateKey", "UpdateKey", "SuspendKey", "RotateKey", "RevokeKey", "CreateWorkspace"):
        CALLS[method].make(service.operator, CALLS[method].request(ids), "again-1")

    assert event_types(service, ids["key_id"]) == [
        "key.created",
        "key.updated",
        "key.suspended",
        "key.rotated",
        "key.revoked",
    ]


def test_a_request_that_was_refused_may_be_made_again_under_the_same_id(service: Service, ids: Ids) -> None:
    client = service.operator
    request = key_service_pb2.CreateKeyRequest(
        workspace_id="later", kind=KEY_KIND_SERVER, display_name="x", request_id="again-1"
    )
    assert refused(client.keys.CreateKey, request).reason == "WORKSPACE_NOT_FOUND"
    make_workspace(service, "later")

    assert client.keys.CreateKey(request).key.workspace_id == "later"


def test_a_request_that_changed_nothing_is_remembered_all_the_same(service: Service, ids: Ids) -> None:
    call = CALLS["SuspendKey"]
    request = key_service_pb2.SuspendKeyRequest(key_id=ids["suspended"])
    call.make(service.operator, request, "again-1")
    service.operator.keys.ResumeKey(key_service_pb2.ResumeKeyRequest(key_id=ids["suspended"]))

    again = call.make(service.operator, request, "again-1")

    assert again.key.state == KEY_STATE_ACTIVE


def test_a_repeat_returns_the_entity_as_it_is_now(service: Service, ids: Ids) -> None:
    call = CALLS["UpdateKey"]
    call.make(service.operator, call.request(ids), "again-1")
    call.make(service.operator, call.other(ids), "again-2")

    assert call.make(service.operator, call.request(ids), "again-1").key.display_name == "b"


def test_a_repeat_of_a_creation_whose_expiry_has_passed_still_names_the_key(service: Service, ids: Ids) -> None:
    call = CALLS["CreateKey"]
    request = call.request(ids)
    request.expire_time.FromDatetime(service.clock.now + HOUR)
    first = call.make(service.operator, request, "again-1")
    service.clock.turn(2 * HOUR)

    error = refused(call.make, service.operator, request, "again-1")

    assert error.metadata == {"key_id": first.key.key_id}


def test_without_a_request_id_every_call_is_its_own(service: Service, ids: Ids) -> None:
    assert make_key(service).key.key_id != make_key(service).key.key_id


@pytest.mark.parametrize("method", SECRETS)
def test_a_repeat_never_shows_the_secret(service: Service, ids: Ids, method: str) -> None:
    call = CALLS[method]
    first = call.make(service.operator, call.request(ids), "again-1")
    secret = (first.api_key if call.stub == "keys" else first.caller_key).rsplit("_", 1)[1]

    assert secret not in str(refused(call.make, service.operator, call.request(ids), "again-1"))


def test_eight_retries_at_once_make_exactly_one_key(service: Service, ids: Ids) -> None:
    call = CALLS["CreateKey"]
    keys = count_rows(service, "api_key")

    def attempt(_number: int) -> str:
        try:
            return str(call.make(service.operator, call.request(ids), "again-1").key.key_id)
        except grpc.RpcError as error:
            told = as_refused(error)
            assert (told.code, told.reason) == REPEATED
            return told.metadata["key_id"]

    with ThreadPoolExecutor(8) as pool:
        named = list(pool.map(attempt, range(8)))

    assert len(named) == 8
    assert len(set(named)) == 1
    assert count_rows(service, "api_key") == keys + 1
    assert event_types(service, named[0]) == ["key.created"]
