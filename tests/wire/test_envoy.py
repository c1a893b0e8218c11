"""What Envoy is answered, over the wire; `tests/envoy` has a real one ask."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from envoy.config.core.v3 import base_pb2
from envoy.service.auth.v3 import attribute_context_pb2, external_auth_pb2
from envoy.service.auth.v3.external_auth_pb2_grpc import AuthorizationStub
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import caller_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER

from server.app import App, StartRefused
from server.domain.routes import Routes
from server.settings import Settings, SettingsInvalid, load
from server.wire.checks import Asked, Reader, allowed, headers_of
from tests.harness import Service, refused, running_service
from tests.wire.helpers import make_key, make_workspace, register

SERVICE = "envoy.service.auth.v3.Authorization"
ROUTES = """
GET /v1/devices/{device_id} devices:read
GET /v1/links/{token}       public
"""


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A server that answers Envoy, with a workspace that has the device `battery`."""
    folder = tmp_path_factory.mktemp("envoy")
    routes = tmp_path_factory.mktemp("routes") / "routes.txt"
    routes.write_text(ROUTES)
    with running_service(folder, envoy=True, envoy_routes=routes) as service:
        make_workspace(service)
        register(service, "battery")
        yield service


def http(path: str, method: str = "GET", **headers: str) -> attribute_context_pb2.AttributeContext.HttpRequest:
    """Return a request as Envoy describes it, an underscore in a header's name for a hyphen."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return attribute_context_pb2.AttributeContext.HttpRequest(method=method, path=path, headers=named)


def attributes(
    request: attribute_context_pb2.AttributeContext.HttpRequest, peer: str = "", **extensions: str
) -> attribute_context_pb2.AttributeContext:
    made = attribute_context_pb2.AttributeContext(
        request=attribute_context_pb2.AttributeContext.Request(http=request),
        context_extensions={f"texture-{name.replace('_', '-')}": value for name, value in extensions.items()},
    )
    if peer:
        made.source.address.socket_address.address = peer
    return made


def check(service: Service, of: attribute_context_pb2.AttributeContext) -> external_auth_pb2.CheckResponse:
    stub = AuthorizationStub(service.operator.channel)
    answer: external_auth_pb2.CheckResponse = stub.Check(external_auth_pb2.CheckRequest(attributes=of), timeout=30)
    return answer


def client_ip(reader: Reader, peer: str, **headers: str) -> str:
    request = http("/v1/devices/battery", **headers)
    question = reader.read(attributes(request, peer), headers_of(request)).question
    assert question is not None
    return str(question.context.client_ip)


def test_what_is_answered_says_what_envoy_is_to_do(asked: Service) -> None:
    key = make_key(asked)

    answer = check(asked, attributes(http("/v1/devices/battery", texture_api_key=key.api_key, x_texture_role="admin")))

    headers = {one.header.key: one.header.value for one in answer.ok_response.headers}
    assert (answer.status.code, headers["x-texture-key-id"]) == (0, key.key.key_id)
    assert {one.append_action for one in answer.ok_response.headers} == {
        base_pb2.HeaderValueOption.OVERWRITE_IF_EXISTS_OR_ADD
    }
    assert {"texture-api-key", "x-texture-role", "x-texture-reference-id", "x_texture_key_id"} <= set(
        answer.ok_response.headers_to_remove
    )
    assert not headers.keys() & set(answer.ok_response.headers_to_remove)


NAMES = st.lists(st.sampled_from([*"-_xX", "x-texture-", "X_TEXTURE_", "key-id", "Key_Id", "texture-api-key", "a"]))
GIVEN = pb.AuthorizeResponse(decision=pb.DECISION_ALLOW, key=pb.AuthorizedKey(key_id="ours", workspace_id="ours"))


@given(st.lists(NAMES.map("".join).filter(bool), max_size=5), st.sampled_from([None, GIVEN]))
def test_whatever_a_client_sends_only_words_of_this_service_say_who_asks(
    names: list[str], answer: pb.AuthorizeResponse | None
) -> None:
    request = attribute_context_pb2.AttributeContext.HttpRequest()
    request.headers.update({name.lower(): "forged" for name in names})

    response = allowed(headers_of(request), Asked(None, ""), answer).ok_response

    # As Envoy does it: what is set replaces what is there by the same name, and what is removed is gone.
    arrived = dict(request.headers) | {one.header.key: one.header.value for one in response.headers}
    for name in response.headers_to_remove:
        arrived.pop(name, None)
    told = {value for name, value in arrived.items() if name.replace("_", "-").startswith("x-texture-")}
    assert told == (set() if answer is None else {"ours"})
    assert not any(name.replace("_", "-") == "texture-api-key" for name in arrived)


def test_headers_that_envoy_sends_raw_are_read_as_well(asked: Service) -> None:
    key = make_key(asked).api_key
    request = http("/v1/devices/battery")
    raw = [base_pb2.HeaderValue(key="Texture-Api-Key", raw_value=key.encode())]

    request.header_map.headers.extend(raw)
    once = check(asked, attributes(request))
    request.header_map.headers.extend(raw)
    twice = check(asked, attributes(request))

    assert once.HasField("ok_response")
    assert '"KEY_MALFORMED"' in twice.denied_response.body


def test_noise_of_a_client_is_a_denial_and_no_error(asked: Service) -> None:
    key = make_key(asked).api_key
    noise = {"user_agent": "é" * 9000, "origin": "x" * 60_000, "x_forwarded_for": "," * 1000}

    assert check(asked, attributes(http("/v1/devices/battery", texture_api_key=key, **noise))).HasField("ok_response")
    for api_key in ("", "x" * 10_000, key + "\n", "\ud7ff"):
        answer = check(asked, attributes(http("/v1/devices/battery", texture_api_key=api_key, **noise), "pipe"))
        assert answer.denied_response.status.code == 401
    for path in ("", "/" * 60_000, "/v1/devices/" + "x" * 60_000, "\0", "*"):
        assert check(asked, attributes(http(path, texture_api_key=key))).HasField("denied_response")


@pytest.mark.parametrize(
    ("hops", "forwarded", "expected"),
    [
        (0, "203.0.113.7, 198.51.100.1", "192.0.2.1"),
        (1, "203.0.113.7,192.0.2.1", "203.0.113.7"),
        (1, "10.0.0.1, 203.0.113.7 ,192.0.2.1", "203.0.113.7"),
        (2, "10.0.0.1,203.0.113.7,198.51.100.1,192.0.2.1", "203.0.113.7"),
        (1, "::ffff:203.0.113.7,192.0.2.1", "203.0.113.7"),
        (1, "2001:db8::1,192.0.2.1", "2001:db8::1"),
        (1, "192.0.2.1", ""),
        (1, "", ""),
        (1, "unknown,192.0.2.1", ""),
        (1, "203.0.113.7:443,192.0.2.1", ""),
        (2, "203.0.113.7,192.0.2.1", ""),
    ],
)
def test_the_client_is_whom_the_first_trusted_proxy_named(hops: int, forwarded: str, expected: str) -> None:
    reader = Reader(Routes.parse(ROUTES), hops)

    assert client_ip(reader, "192.0.2.1", x_forwarded_for=forwarded) == expected


@pytest.mark.parametrize(
    ("extensions", "fault"),
    [
        ({"permission": "devices:reed", "device_path": "/v1/devices/{device_id}"}, "the permission must be"),
        ({"permission": "devices:read"}, "must hold {device_id}"),
        ({"permission": "devices:read", "device_path": "/v1/devices/*/{device_id"}, "neither a plain segment"),
        ({"permission": "devices:list", "device_path": "/v1/devices/{device_id}"}, "must not hold {device_id}"),
        ({"permision": "devices:list"}, "a route has a permission"),
        ({"permission": "public", "methods": "GET"}, "a route has a permission"),
        ({"device_path": "/v1/devices/{device_id}"}, "a route has a permission"),
    ],
)
def test_a_route_of_envoy_that_is_wrong_denies_and_tells_operators(
    asked: Service, extensions: dict[str, str], fault: str
) -> None:
    key = make_key(asked).api_key
    with structlog.testing.capture_logs() as lines:
        answer = check(asked, attributes(http("/v1/devices/battery", texture_api_key=key), **extensions))

    assert (answer.denied_response.status.code, "ROUTE_INVALID" in answer.denied_response.body) == (500, True)
    assert [line["event"] for line in lines] == ["route invalid", "rpc"]
    assert fault in lines[0]["fault"]


def test_the_log_holds_the_decision_and_neither_key_nor_path(asked: Service) -> None:
    key = make_key(asked)
    secret = "link-token-of-somebody"
    with structlog.testing.capture_logs() as lines:
        check(asked, attributes(http("/v1/devices/battery", texture_api_key=key.api_key)))
        check(asked, attributes(http("/v1/devices/toaster", texture_api_key=key.api_key)))
        check(asked, attributes(http(f"/v1/links/{secret}", texture_api_key=key.api_key)))
        check(asked, attributes(http(f"/v1/unknown/{secret}", texture_api_key=key.api_key)))

    assert [(line.get("route"), line["decision"], line["reason"]) for line in lines] == [
        ("/v1/devices/{device_id}", "ALLOW", "PERMITTED"),
        ("/v1/devices/{device_id}", "DENY", "DEVICE_NOT_FOUND"),
        ("/v1/links/{token}", "ALLOW", "PUBLIC"),
        (None, "DENY", "ROUTE_UNKNOWN"),
    ]
    assert lines[0]["key_id"] == key.key.key_id
    assert key.api_key not in str(lines)
    assert secret not in str(lines)


def test_a_gateway_that_was_revoked_is_told_an_error(asked: Service) -> None:
    client = asked.caller("gateway", ROLE_AUTHORIZER)
    check_as = AuthorizationStub(client.channel).Check
    request = external_auth_pb2.CheckRequest(attributes=attributes(http("/v1/devices/battery")))
    assert check_as(request).HasField("denied_response")

    asked.operator.callers.RevokeCaller(caller_service_pb2.RevokeCallerRequest(caller_id="gateway"))

    assert refused(check_as, request).reason == "CALLER_REVOKED"


def test_a_store_that_is_away_is_an_error_so_that_envoy_does_what_it_was_told_about_failures(tmp_path: Path) -> None:
    with running_service(tmp_path, envoy=True) as service:
        make_workspace(service)
        key = make_key(service).api_key
        request = attributes(http("/any", texture_api_key=key), permission="devices:list")
        away = service.database.with_name("away")
        service.database.rename(away)

        error = refused(check, service, request)

        away.rename(service.database)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")


def test_it_is_listed_and_has_a_health_like_the_other_services(asked: Service) -> None:
    health: Any = health_pb2_grpc.HealthStub(asked.channel)
    reflection: Any = reflection_pb2_grpc.ServerReflectionStub(asked.channel)
    listing = reflection_pb2.ServerReflectionRequest(list_services="")
    (listed,) = reflection.ServerReflectionInfo(iter([listing]))

    assert health.Check(health_pb2.HealthCheckRequest(service=SERVICE)).status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in {one.name for one in listed.list_services_response.service}


# Settings


def _settings(folder: Path, **chosen: Any) -> Settings:
    return Settings(
        development=True, database=f"sqlite:{folder / 'auth.db'}", listen="127.0.0.1:0", envoy=True, **chosen
    )


def test_a_file_of_routes_that_is_wrong_stops_the_start_with_all_that_is_wrong(tmp_path: Path) -> None:
    routes = tmp_path / "routes"
    routes.write_text("GET /a devices:reed\nget /b public\n")

    with pytest.raises(StartRefused, match=r"^TEXTURE_AUTH_ENVOY_ROUTES: line 1: .*; line 2: a method is in capital"):
        App(_settings(tmp_path, envoy_routes=routes))

    routes.write_bytes(b"\xff")
    with pytest.raises(StartRefused, match="it is not text"):
        App(_settings(tmp_path, envoy_routes=routes))
    with pytest.raises(StartRefused, match="No such file"):
        App(_settings(tmp_path, envoy_routes=tmp_path / "absent"))
    assert not (tmp_path / "auth.db").exists()


def test_routes_without_envoy_are_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEXTURE_AUTH_ENVOY_ROUTES", "routes")

    with pytest.raises(SettingsInvalid, match="ENVOY_ROUTES: needs ENVOY"):
        load()


def test_without_the_extra_the_start_is_refused_and_told_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("server.wire.checks", "server.wire.servicers.envoy"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "envoy.service.auth.v3", None)

    with pytest.raises(StartRefused, match=r"^TEXTURE_AUTH_ENVOY: .*'texture-auth\[envoy\]'"):
        App(_settings(tmp_path))


def test_nobody_is_answered_who_was_not_asked_for(tmp_path: Path) -> None:
    with running_service(tmp_path) as service, pytest.raises(grpc.RpcError) as caught:
        check(service, attributes(http("/")))

    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
