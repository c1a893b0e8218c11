"""The gate before every RPC: who is let through, and how failures are told."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from texture.auth.v1 import authorize_service_pb2, caller_service_pb2, key_service_pb2, workspace_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_KEY_ADMIN, ROLE_OPERATOR, Role
from texture.auth.v1.request_context_pb2 import RequestContext

from server.app import App, bootstrap, migrate
from server.domain.kinds import Role as DomainRole
from server.service.keys import KeyService
from server.settings import Settings
from server.wire import policy
from server.wire.server import SERVICES
from tests.harness import Client, Service, TurnedClock, as_refused, first_answer, refused, running_service
from tests.wire.helpers import count_rows, duration, make_key, make_workspace, with_wrong_secret

HOUR = timedelta(hours=1)
MEBIBYTE = 1024 * 1024
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
METHODS = sorted(set(policy.ROLES) - policy.REFLECTION)
GET_KEY = "/texture.auth.v1.KeyService/GetKey"


def raw(channel: grpc.Channel, method: str, body: bytes = b"", **options: Any) -> bytes:
    """Call a method with bytes."""
    as_they_are = (lambda given: given, lambda given: given)
    return bytes(first_answer(channel, method, body, *as_they_are, timeout=30, **options))


def with_header(service: Service, value: str, name: str = "authorization") -> Callable[[], bytes]:
    return lambda: raw(service.channel, GET_KEY, metadata=((name, value),))


def a_caller(service: Service, caller_id: str = "device-api") -> str:
    """Create a caller that may manage keys, and return its key."""
    request = caller_service_pb2.CreateCallerRequest(caller_id=caller_id, roles=[ROLE_KEY_ADMIN])
    return service.operator.callers.CreateCaller(request).caller_key


def list_workspaces(client: Client) -> workspace_service_pb2.ListWorkspacesResponse:
    return client.workspaces.ListWorkspaces(workspace_service_pb2.ListWorkspacesRequest())


@pytest.fixture(scope="module")
def one_for_all(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server for tests that leave no trace that another could stumble over."""
    with running_service(tmp_path_factory.mktemp("gate"), envoy=True) as service:
        make_workspace(service)
        yield service


@pytest.fixture(scope="module")
def callers(one_for_all: Service) -> Callable[[frozenset[DomainRole]], Client]:
    """A function that returns a client with exactly these roles."""
    made: dict[frozenset[DomainRole], Client] = {}

    def client(roles: frozenset[DomainRole]) -> Client:
        if roles not in made:
            numbers = [Role.Value(f"ROLE_{role.name}") for role in roles]
            made[roles] = one_for_all.caller(f"caller-{len(made)}", *numbers)
        return made[roles]

    return client


# Credentials


@pytest.mark.parametrize("method", METHODS)
def test_no_rpc_answers_a_caller_without_a_credential(one_for_all: Service, method: str) -> None:
    error = refused(raw, one_for_all.channel, method)

    assert (error.code, error.reason) == (UNAUTHENTICATED, "CALLER_CREDENTIAL_MISSING")


@pytest.mark.parametrize("value", ["", "Basic eDp5", "Token x", "Bearer", "BearerX x"])
def test_an_authorization_of_another_scheme_is_no_credential(one_for_all: Service, value: str) -> None:
    error = refused(with_header(one_for_all, value))

    assert (error.code, error.reason) == (UNAUTHENTICATED, "CALLER_CREDENTIAL_MISSING")


@pytest.mark.parametrize("name", ["x-api-key", "texture-api-key", "proxy-authorization"])
def test_a_credential_in_another_header_is_none(one_for_all: Service, name: str) -> None:
    error = refused(with_header(one_for_all, f"Bearer {one_for_all.operator_key}", name))

    assert error.reason == "CALLER_CREDENTIAL_MISSING"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
@pytest.mark.parametrize("space", [" ", "   "])
def test_the_name_of_the_scheme_may_be_written_in_any_case(one_for_all: Service, scheme: str, space: str) -> None:
    error = refused(with_header(one_for_all, f"{scheme}{space}{one_for_all.operator_key}"))

    assert error.reason == "KEY_NOT_FOUND"


def test_a_bearer_is_found_beside_another_authorization(one_for_all: Service) -> None:
    metadata = (("authorization", "Basic eDp5"), ("authorization", f"Bearer {one_for_all.operator_key}"))

    assert refused(raw, one_for_all.channel, GET_KEY, metadata=metadata).reason == "KEY_NOT_FOUND"


MALFORMED: dict[str, Callable[[Service], str]] = {
    "garbage": lambda _: "garbage",
    "noise": lambda _: "x" * 5000,
    "a typing error": lambda s: s.operator_key[:-1] + ("0" if s.operator_key[-1] != "0" else "1"),
    "a customer's server key": lambda s: make_key(s).api_key,
    "two keys": lambda s: f"{s.operator_key} {s.operator_key}",
    "the wrong case": lambda s: s.operator_key.swapcase(),
}


@pytest.mark.parametrize("what", MALFORMED)
def test_a_credential_that_is_no_svc_key_is_malformed(one_for_all: Service, what: str) -> None:
    error = refused(list_workspaces, one_for_all.client(MALFORMED[what](one_for_all)))

    assert (error.code, error.reason) == (UNAUTHENTICATED, "CALLER_CREDENTIAL_MALFORMED")


@pytest.mark.parametrize("what", ["wrong secret", "unknown id", "another service's id"])
def test_an_unknown_id_and_a_wrong_secret_are_told_alike(service: Service, what: str) -> None:
    given = {
        "wrong secret": with_wrong_secret(a_caller(service)),
        "unknown id": with_wrong_secret("txk_svc_0000000000000000_x"),
        "another service's id": with_wrong_secret(service.operator_key),
    }[what]

    error = refused(list_workspaces, service.client(given))

    assert (error.code, error.reason) == (UNAUTHENTICATED, "CALLER_CREDENTIAL_UNKNOWN")
    assert error.metadata == {}
    assert given not in str(error)


def test_a_customers_key_dressed_up_as_a_svc_key_is_unknown(service: Service) -> None:
    make_workspace(service)
    dressed = with_wrong_secret(make_key(service).api_key.replace("txk_srv", "txk_svc"))

    assert refused(list_workspaces, service.client(dressed)).reason == "CALLER_CREDENTIAL_UNKNOWN"


def test_a_credential_that_was_rotated_works_until_its_overlap_ends(service: Service) -> None:
    old = a_caller(service)
    rotated = service.operator.callers.RotateCallerKey(
        caller_service_pb2.RotateCallerKeyRequest(caller_id="device-api", overlap=duration(HOUR))
    )
    service.clock.turn(HOUR - timedelta(microseconds=1))
    list_workspaces(service.client(old))
    service.clock.turn(timedelta(microseconds=1))

    error = refused(list_workspaces, service.client(old))

    assert (error.code, error.reason) == (UNAUTHENTICATED, "CALLER_CREDENTIAL_RETIRED")
    list_workspaces(service.client(rotated.caller_key))


def test_a_revoked_caller_is_refused_at_once_and_for_good(service: Service) -> None:
    client = service.client(a_caller(service))
    list_workspaces(client)

    service.operator.callers.RevokeCaller(caller_service_pb2.RevokeCallerRequest(caller_id="device-api"))

    for _ in range(10):
        error = refused(list_workspaces, client)
        assert (error.code, error.reason) == (UNAUTHENTICATED, "CALLER_REVOKED")


def test_whether_a_caller_was_revoked_is_told_to_nobody_else(service: Service) -> None:
    credential = a_caller(service)
    service.operator.callers.RevokeCaller(caller_service_pb2.RevokeCallerRequest(caller_id="device-api"))

    assert refused(list_workspaces, service.client(with_wrong_secret(credential))).reason == "CALLER_CREDENTIAL_UNKNOWN"


# Roles


def outcome(client: Client, method: str) -> str:
    """Call a method with an empty request and return how it ended: OK, or the reason of the error."""
    try:
        raw(client.channel, method)
    except grpc.RpcError as error:
        return as_refused(error).reason
    return "OK"


@pytest.mark.parametrize("method", METHODS)
def test_a_caller_with_every_role_but_those_that_an_rpc_needs_is_refused_and_told_which(
    one_for_all: Service, callers: Callable[[frozenset[DomainRole]], Client], method: str
) -> None:
    needed = policy.ROLES[method]
    client = callers(frozenset(DomainRole) - needed)

    error = refused(raw, client.channel, method)

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_ROLE_MISSING")
    assert error.metadata["roles"] == ", ".join(sorted(role.value for role in needed))
    assert error.metadata["caller_id"].startswith("caller-")


@pytest.mark.parametrize("role", DomainRole)
def test_a_caller_with_one_role_may_call_exactly_the_rpcs_of_that_role(
    one_for_all: Service, callers: Callable[[frozenset[DomainRole]], Client], role: DomainRole
) -> None:
    client = callers(frozenset({role}))

    let_through = {method for method in METHODS if outcome(client, method) != "CALLER_ROLE_MISSING"}

    assert let_through == {method for method in METHODS if role in policy.ROLES[method]}


# What each service's comment in the protos says of its roles, written out once more.
PROMISED = {
    "AuthorizeService": {"authorizer", "operator"},
    "envoy.service.auth.v3.Authorization": {"authorizer", "operator"},
    "KeyService": {"key-admin", "operator"},
    "ConnectService": {"connect", "operator"},
    "DeviceService": {"devices", "operator"},
    "WorkspaceService": {"key-admin", "operator"},
    "CallerService": {"operator"},
    "EventService": {"operator"},
    "UsageService": {"key-admin", "operator"},
    "WebhookService": {"key-admin", "operator"},
}


@pytest.mark.parametrize("method", METHODS)
def test_the_roles_of_an_rpc_are_those_that_the_contract_promises(method: str) -> None:
    _, service, name = method.replace("texture.auth.v1.", "").split("/")
    expected = set(PROMISED[service])
    if service == "WorkspaceService" and name.startswith(("Get", "List")):
        expected |= {"connect", "devices"}

    if name == "ListDeviceKeys":
        expected |= {"devices"}
    if name == "ExplainAuthorization":
        expected = {"operator"}

    assert {role.value for role in policy.ROLES[method]} == expected


def test_a_role_that_was_taken_away_counts_at_once(service: Service) -> None:
    client = service.client(a_caller(service))
    list_workspaces(client)
    request = caller_service_pb2.UpdateCallerRequest()
    request.caller.caller_id = "device-api"
    request.caller.roles.append(ROLE_AUTHORIZER)
    request.update_mask.paths.append("roles")

    service.operator.callers.UpdateCaller(request)

    assert refused(list_workspaces, client).reason == "CALLER_ROLE_MISSING"


def test_an_rpc_that_the_table_omits_is_denied_to_operators_too(
    one_for_all: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(policy.ROLES, GET_KEY)

    error = refused(raw, one_for_all.operator.channel, GET_KEY)

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_ROLE_MISSING")


# Messages


@pytest.mark.parametrize("method", METHODS)
def test_bytes_that_are_no_message_are_malformed(one_for_all: Service, method: str) -> None:
    error = refused(raw, one_for_all.operator.channel, method, b"\xff\xff\xff")

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_MALFORMED")
    assert error.violations


def test_text_that_is_not_utf_8_is_malformed(one_for_all: Service) -> None:
    error = refused(raw, one_for_all.operator.channel, GET_KEY, b"\x0a\x02\xff\xfe")

    assert error.reason == "MESSAGE_MALFORMED"


def test_the_credential_is_looked_at_before_the_message(one_for_all: Service) -> None:
    assert refused(raw, one_for_all.channel, GET_KEY, b"\xff").reason == "CALLER_CREDENTIAL_MISSING"
    assert refused(raw, one_for_all.channel, GET_KEY, b"\x00" * 2 * MEBIBYTE).reason == "CALLER_CREDENTIAL_MISSING"


def _authorize_of(size: int) -> bytes:
    """Return a question of exactly this many bytes, most of them a key."""
    request = authorize_service_pb2.AuthorizeRequest(permission="devices:list", api_key="x" * (size - 100))
    request.api_key = "x" * (size - 100 + size - request.ByteSize())
    assert request.ByteSize() == size
    return request.SerializeToString()


def test_a_message_may_have_a_mebibyte(one_for_all: Service) -> None:
    method = "/texture.auth.v1.AuthorizeService/Authorize"

    answer = raw(one_for_all.operator.channel, method, _authorize_of(MEBIBYTE))

    assert authorize_service_pb2.AuthorizeResponse.FromString(answer).decision == authorize_service_pb2.DECISION_DENY


@pytest.mark.parametrize("size", [MEBIBYTE + 1, 4 * MEBIBYTE])
def test_a_message_of_more_than_a_mebibyte_is_too_large(one_for_all: Service, size: int) -> None:
    method = "/texture.auth.v1.AuthorizeService/Authorize"

    error = refused(raw, one_for_all.operator.channel, method, _authorize_of(size))

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
    assert str(MEBIBYTE) in "".join(error.violations.values())


def test_grpc_itself_refuses_what_is_larger_still(one_for_all: Service) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        raw(
            one_for_all.operator.channel,
            "/texture.auth.v1.AuthorizeService/Authorize",
            _authorize_of(4 * MEBIBYTE + 1),
        )

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_the_largest_batch_fits(one_for_all: Service) -> None:
    question = authorize_service_pb2.Question(
        api_key="x" * 63,
        permission="devices:command",
        device_id="x" * 128,
        context=RequestContext(client_ip="2001:db8::1", user_agent="x" * 200, origin="x" * 100),
    )
    request = authorize_service_pb2.BatchAuthorizeRequest(questions=[question] * 1000)

    assert len(one_for_all.operator.authorize.BatchAuthorize(request).answers) == 1000


# Failures


def test_an_unforeseen_failure_tells_nothing_but_an_id(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("the secret is txk_srv_hunter2")

    monkeypatch.setattr(KeyService, "get_key", fail)
    call = service.operator.keys.GetKey

    errors = [refused(call, key_service_pb2.GetKeyRequest(key_id="x")) for _ in range(2)]

    for error in errors:
        assert (error.code, error.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL_FAULT")
        assert set(error.metadata) == {"error_id"}
        assert error.metadata["error_id"] in error.message
        assert "hunter2" not in str(error)
        assert "RuntimeError" not in str(error)
    assert errors[0].metadata != errors[1].metadata


def test_a_failure_in_the_middle_of_a_change_leaves_no_half_of_it(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(service)
    before = count_rows(service, "api_key"), count_rows(service, "event"), count_rows(service, "change")
    with monkeypatch.context() as patched:
        patched.setattr("server.store.peewee_store.PeeweeWriter.record", lambda *_: 1 / 0)
        assert refused(make_key, service).reason == "INTERNAL_FAULT"

    assert (count_rows(service, "api_key"), count_rows(service, "event"), count_rows(service, "change")) == before
    assert make_key(service).api_key


@pytest.mark.parametrize(
    "method", ["/texture.auth.v1.KeyService/DeleteEverything", "/texture.auth.v1.NoService/GetKey", "/nothing"]
)
@pytest.mark.parametrize("who", ["operator", "nobody"])
def test_an_unknown_method_is_unimplemented(one_for_all: Service, method: str, who: str) -> None:
    channel = one_for_all.operator.channel if who == "operator" else one_for_all.channel
    with pytest.raises(grpc.RpcError) as caught:
        raw(channel, method)

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


# Health and reflection


def health(channel: grpc.Channel) -> Any:
    return health_pb2_grpc.HealthStub(channel)


def reflection(channel: grpc.Channel) -> Any:
    return reflection_pb2_grpc.ServerReflectionStub(channel)


@pytest.mark.parametrize("name", ["", *SERVICES])
def test_health_is_open_to_everybody(one_for_all: Service, name: str) -> None:
    answer = health(one_for_all.channel).Check(health_pb2.HealthCheckRequest(service=name))

    assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_health_can_be_watched_by_everybody(one_for_all: Service) -> None:
    watch = health(one_for_all.channel).Watch(health_pb2.HealthCheckRequest(), timeout=30)

    assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
    watch.cancel()


def test_the_health_of_an_unknown_service_is_not_found(one_for_all: Service) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        health(one_for_all.channel).Check(health_pb2.HealthCheckRequest(service="nothing"))

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def reflected_services(channel: grpc.Channel) -> set[str]:
    stub = reflection(channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = list(stub.ServerReflectionInfo(iter([request]), timeout=30))
    return {service.name for service in answer.list_services_response.service}


def test_reflection_is_open_in_development(one_for_all: Service) -> None:
    assert set(SERVICES) <= reflected_services(one_for_all.channel)


def test_reflection_describes_every_service(one_for_all: Service) -> None:
    stub = reflection(one_for_all.channel)
    requests = [reflection_pb2.ServerReflectionRequest(file_containing_symbol=name) for name in SERVICES]

    answers = list(stub.ServerReflectionInfo(iter(requests), timeout=30))

    assert len(answers) == len(SERVICES)
    for name, answer in zip(SERVICES, answers, strict=True):
        described = descriptor_pb2.FileDescriptorProto.FromString(
            answer.file_descriptor_response.file_descriptor_proto[0]
        )
        assert name in {f"{described.package}.{service.name}" for service in described.service}


@contextmanager
def production(folder: Path) -> Iterator[tuple[grpc.Channel, str]]:
    """Run a server as in production but for TLS, and yield a channel to it and the first operator's key."""
    settings = Settings(
        database=f"sqlite:{folder / 'texture-auth.db'}",
        listen="127.0.0.1:0",
        insecure_plaintext=True,
        peppers=f"one {'11' * 32}",  # type: ignore[arg-type]
    )
    migrate(settings)
    operator_key = bootstrap(settings, "first-operator")
    app = App(settings, TurnedClock())
    try:
        with grpc.insecure_channel(f"127.0.0.1:{app.start()}") as channel:
            yield channel, operator_key
    finally:
        app.stop()


def refused_stream(channel: grpc.Channel) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        reflected_services(channel)
    return as_refused(caught.value).reason


class _Bearer(grpc.StreamStreamClientInterceptor):
    """Adds a credential to streams."""

    def __init__(self, caller_key: str) -> None:
        self._metadata = (("authorization", f"Bearer {caller_key}"),)

    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        details = client_call_details._replace(metadata=self._metadata)
        return continuation(details, request_iterator)


def test_outside_of_development_reflection_is_for_operators(tmp_path: Path) -> None:
    with production(tmp_path) as (channel, operator_key):
        operator = Client(channel, operator_key)
        request = caller_service_pb2.CreateCallerRequest(
            caller_id="everything-else",
            roles=[role for role in Role.values() if role not in (0, ROLE_OPERATOR)],
        )
        other_key = operator.callers.CreateCaller(request).caller_key

        assert refused_stream(channel) == "CALLER_CREDENTIAL_MISSING"
        assert refused_stream(grpc.intercept_channel(channel, _Bearer(other_key))) == "CALLER_ROLE_MISSING"
        assert set(SERVICES) <= reflected_services(grpc.intercept_channel(channel, _Bearer(operator_key)))


def test_outside_of_development_health_is_open_and_everything_else_is_not(tmp_path: Path) -> None:
    with production(tmp_path) as (channel, operator_key):
        answer = health(channel).Check(health_pb2.HealthCheckRequest())
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        assert refused(list_workspaces, Client(channel, None)).reason == "CALLER_CREDENTIAL_MISSING"
        list_workspaces(Client(channel, operator_key))
        assert not (tmp_path / "operator.key").exists()
