"""Behind a real Envoy: who gets through, with what, and what the others are told."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from device_api import devices_pb2, devices_pb2_grpc
from texture.auth.v1 import usage_service_pb2

from tests.envoy.conftest import House
from tests.envoy.gateway import Answer, running_envoy
from tests.harness import refused
from tests.wire.helpers import (
    USER,
    WORKSPACE,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    register,
    revoke,
)

JSON = ("content-type", "application/json")


@pytest.fixture(scope="module")
def server_key(house: House) -> str:
    """A server key of a workspace with the devices `battery` and `vendor:1`."""
    register(house.service, "battery", "vendor:1")
    return make_key(house.service).api_key


def with_key(api_key: str) -> list[tuple[str, str]]:
    return [("Texture-Api-Key", api_key)]


def told(answer: Answer) -> tuple[int, str]:
    """Return what a client is told: the status of HTTP, and the platform's code."""
    assert answer.headers["content-type"] == "application/json"
    assert answer.json.keys() == {"code", "message"}
    return answer.status, answer.json["code"]


# The file to copy: an API over gRPC, by HTTP


def test_a_server_key_reads_commands_and_lists_over_http(house: House, server_key: str) -> None:
    device = house.envoy.ask("customers", "GET", "/v1/devices/battery", with_key(server_key))
    command = house.envoy.ask(
        "customers", "POST", "/v1/devices/vendor%3A1/commands", [*with_key(server_key), JSON], '{"command": "charge"}'
    )
    listed = house.envoy.ask("customers", "GET", "/v1/devices?page=2", with_key(server_key))
    listed_well = house.envoy.ask("customers", "GET", "/v1/devices", with_key(server_key))

    assert (device.status, device.json["device_id"]) == (200, "battery")
    assert (command.status, command.json) == (200, {"device_id": "vendor:1", "command": "charge"})
    assert listed.status == 400
    assert (listed_well.status, len(listed_well.json["devices"])) == (200, 1)


def test_a_scoped_key_reaches_its_own_devices_alone_and_a_connect_key_none(house: House, server_key: str) -> None:
    made = make_scoped_key(house.service, "charger", reference_id="driver-7")
    connect_key = make_connect_key(house.service).api_key

    own = house.envoy.ask("customers", "GET", "/v1/devices/charger", with_key(made.scoped_api_key))
    identity = house.device_api.last.identity
    others = house.envoy.ask("customers", "GET", "/v1/devices/battery", with_key(made.scoped_api_key))
    none = house.envoy.ask("customers", "GET", "/v1/devices/battery", with_key(connect_key))

    assert own.status == 200
    assert identity == {
        "key-id": made.scoped_key.key_id,
        "key-kind": "scoped",
        "workspace-id": WORKSPACE,
        "reference-id": "driver-7",
        "permission": "devices:read",
        "device-id": "charger",
    }
    assert (told(others), told(none)) == ((403, "DEVICE_NOT_PERMITTED"), (403, "PERMISSION_NOT_GRANTED"))
    assert "devices:read" in none.json["message"]


def test_the_key_goes_no_further_than_envoy_on_public_routes_too(house: House, server_key: str) -> None:
    house.envoy.ask("customers", "GET", "/v1/devices", with_key(server_key))
    house.envoy.ask("plain", "GET", "/list", with_key(server_key))
    guarded = house.http.last
    house.envoy.ask("plain", "GET", "/open/page", with_key(server_key))

    assert house.http.last.line == "GET /open/page"
    for came in (house.device_api.last, guarded, house.http.last):
        assert server_key not in str(came)
        assert came.values("texture-api-key") == []


def test_what_a_list_may_contain_is_passed_on(house: House) -> None:
    key = make_key(house.service, allowed_manufacturers=["volt", "acme"])

    house.envoy.ask("customers", "GET", "/v1/devices", with_key(key.api_key))

    assert house.device_api.last.identity == {
        "key-id": key.key.key_id,
        "key-kind": "server",
        "workspace-id": WORKSPACE,
        "manufacturers": "acme,volt",
        "permission": "devices:list",
    }


def test_denials_carry_status_code_message_and_the_name_of_the_decision(house: House, server_key: str) -> None:
    revoked = make_key(house.service)
    revoke(house.service, revoked.key.key_id)
    suspected = len(house.device_api.came)

    nothing = house.envoy.ask("customers", "GET", "/v1/devices/battery")
    twice = house.envoy.ask("customers", "GET", "/v1/devices/battery", with_key(server_key) * 2)
    ended = house.envoy.ask("customers", "GET", "/v1/devices/battery", with_key(revoked.api_key))
    absent = house.envoy.ask("customers", "GET", "/v1/devices/toaster", with_key(server_key))

    assert told(nothing) == (401, "KEY_MISSING")
    assert told(twice) == (401, "KEY_MALFORMED")
    assert told(ended) == (401, "KEY_REVOKED")
    assert told(absent) == (404, "DEVICE_NOT_FOUND")
    assert ended.json["message"] == "The key was revoked."
    assert len(ended.headers["x-texture-decision-id"]) == 24
    assert len(house.device_api.came) == suspected


def test_a_revocation_counts_at_once(house: House, server_key: str) -> None:
    key = make_key(house.service)
    before = [house.envoy.ask("plain", "GET", "/list", with_key(key.api_key)).status for _ in range(2)]

    revoke(house.service, key.key.key_id)

    assert before == [200, 200]
    assert told(house.envoy.ask("plain", "GET", "/list", with_key(key.api_key))) == (401, "KEY_REVOKED")


def test_a_server_key_from_a_browser_is_denied_and_ended(house: House) -> None:
    key = make_key(house.service)
    browser = [("Origin", "https://app.example"), ("Sec-Fetch-Site", "cross-site")]

    exposed = house.envoy.ask("customers", "GET", "/v1/devices", [*with_key(key.api_key), *browser])
    after = house.envoy.ask("customers", "GET", "/v1/devices", with_key(key.api_key))

    assert (told(exposed), told(after)) == ((403, "KEY_EXPOSED"), (401, "KEY_REVOKED"))


def test_the_client_is_who_is_connected_whatever_it_says(house: House) -> None:
    here = make_key(house.service, allowed_cidrs=["127.0.0.0/8"]).api_key
    elsewhere = make_key(house.service, allowed_cidrs=["203.0.113.0/24"]).api_key
    forged = ("X-Forwarded-For", "203.0.113.7")

    for listener, path in (("customers", "/v1/devices"), ("plain", "/list")):
        assert house.envoy.ask(listener, "GET", path, [*with_key(here), forged]).status == 200
        denied = house.envoy.ask(listener, "GET", path, [*with_key(elsewhere), forged])
        assert told(denied) == (403, "ADDRESS_NOT_PERMITTED")


def test_behind_a_trusted_proxy_the_client_is_whom_that_proxy_names(house: House) -> None:
    make_workspace(house.proxied)
    key = with_key(make_key(house.proxied, allowed_cidrs=["203.0.113.0/24"]).api_key)
    named = {
        "203.0.113.7": 200,
        "198.51.100.1, 203.0.113.7": 200,
        "203.0.113.7, 198.51.100.1": 403,
        "203.0.113.7, unknown": 403,
    }

    found = {who: house.envoy.ask("proxied", "GET", "/list", [*key, ("X-Forwarded-For", who)]).status for who in named}

    assert found == named
    assert told(house.envoy.ask("proxied", "GET", "/list", key)) == (403, "ADDRESS_NOT_PERMITTED")


def test_a_route_may_say_itself_what_it_needs(house: House, server_key: str) -> None:
    narrow = make_key(house.service, permissions=["devices:read"]).api_key
    asked = {path: house.envoy.ask("plain", "GET", path, with_key(narrow)) for path in ("/command/battery", "/list")}
    by_metadata = house.envoy.ask("plain", "GET", "/m/battery", with_key(narrow))

    assert {told(answer) for answer in asked.values()} == {(403, "PERMISSION_NOT_GRANTED")}
    assert (by_metadata.status, house.http.last.identity["device-id"]) == (200, "battery")
    assert house.envoy.ask("plain", "GET", "/command/battery", with_key(server_key)).status == 200
    assert told(house.envoy.ask("plain", "GET", "/command/battery/x", with_key(server_key))) == (404, "ROUTE_UNKNOWN")
    assert told(house.envoy.ask("plain", "GET", "/typo", with_key(server_key))) == (500, "ROUTE_INVALID")
    assert house.envoy.ask("customers", "GET", "/v1/status").body == "It works.\n"


# What a client might forge

FORGED = [
    ("x-texture-key-id", "forged"),
    ("X-Texture-Key-Id", "forged"),
    ("X-TEXTURE-KEY-ID", "forged"),
    ("x_texture_key_id", "forged"),
    ("X-Texture_Key-Id", "forged"),
    ("x-texture-reference-id", "forged"),
    ("X-Texture-Reference-Id", "forged"),
    ("x_texture_reference_id", "forged"),
    ("x-texture-manufacturers", "forged"),
    ("x-texture-decision-id", "forged"),
    ("x-texture-device-id", "forged"),
    ("x-texture-role", "forged"),
    ("texture_api_key", "forged"),
]


@pytest.mark.parametrize("path", ["/list", "/command/battery", "/m/battery", "/open/page", "/v1/devices"])
def test_no_word_of_a_client_about_who_it_is_arrives(house: House, server_key: str, path: str) -> None:
    answer = house.envoy.ask("plain", "GET", path, [*FORGED[:7], *with_key(server_key), *FORGED[7:]])

    came = house.http.last
    assert (answer.status, came.line) == (200, f"GET {path}")
    assert "forged" not in str(came)
    assert len({name.lower().replace("_", "-") for name, _ in came.headers}) == len(came.headers)
    assert bool(came.identity) is not path.startswith("/open")


def test_the_file_to_copy_lets_no_underscore_and_nothing_forged_through(house: House, server_key: str) -> None:
    before = len(house.device_api.came)

    underscore = house.envoy.ask("customers", "GET", "/v1/devices", [*with_key(server_key), FORGED[3]])
    hyphens = [one for one in FORGED if "_" not in one[0]]
    forged = house.envoy.ask("customers", "GET", "/v1/devices", [*with_key(server_key), *hyphens])

    assert (underscore.status, forged.status, len(house.device_api.came)) == (400, 200, before + 1)
    assert "forged" not in str(house.device_api.last)


@pytest.mark.parametrize(
    "path",
    [
        "/open/../list",
        "/open/%2e%2e/list",
        "/open/..%2flist",
        "/open\\..\\list",
        "/open//list",
        "/open/a;b/list",
        "/open/%6cist",
        "/open/%252e%252e/list",
        "/command/battery?device_id=vendor:1",
        "/command/battery?a=b;deviceId=vendor:1",
        "/command/battery?%64evice%5Fid=vendor:1",
        "/V1/devices",
    ],
)
def test_a_path_that_servers_might_read_differently_does_not_get_through(
    house: House, server_key: str, path: str
) -> None:
    before = len(house.http.came)

    assert told(house.envoy.ask("plain", "GET", path, with_key(server_key))) == (400, "REQUEST_AMBIGUOUS")
    assert len(house.http.came) == before


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "x-original-url", "X-Rewrite-URL"])
def test_no_header_makes_another_request_of_one(house: House, server_key: str, name: str) -> None:
    answer = house.envoy.ask("plain", "GET", "/open/page", [*with_key(server_key), (name, "/command/battery")])

    assert told(answer) == (400, "REQUEST_AMBIGUOUS")


@pytest.mark.parametrize(
    ("query", "body", "refused_by"),
    [
        ("?device_id=vendor:1", '{"command": "charge"}', "REQUEST_AMBIGUOUS"),
        ("?deviceId=vendor:1", '{"command": "charge"}', "REQUEST_AMBIGUOUS"),
        ("", '{"command": "charge", "device_id": "vendor:1"}', "is conflicting"),
        ("", '{"command": "charge", "device_id": "battery", "device_id": "vendor:1"}', "names another device"),
        ("", '{"command": "charge", "device_id": "battery", "deviceId": "vendor:1"}', "names another device"),
    ],
)
def test_a_request_commands_no_other_device_than_the_one_that_was_decided_about(
    house: House, query: str, body: str, refused_by: str
) -> None:
    key = make_scoped_key(house.service, "battery", reference_id=USER).scoped_api_key
    before = len(house.device_api.came)
    headers = [*with_key(key), JSON]

    answer = house.envoy.ask("customers", "POST", f"/v1/devices/battery/commands{query}", headers, body)

    assert (answer.status, len(house.device_api.came)) == (400, before)
    assert refused_by in answer.body


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v1/devices/"),
        ("GET", "/v1/devices/battery/"),
        ("GET", "/v1/devices/battery/commands"),
        ("DELETE", "/v1/devices/battery"),
        ("GET", "/v2/devices"),
        ("POST", "/device_api.v1.DeviceApi/GetDevice"),
    ],
)
def test_what_no_route_names_is_denied(house: House, server_key: str, method: str, path: str) -> None:
    assert told(house.envoy.ask("customers", method, path, with_key(server_key))) == (404, "ROUTE_UNKNOWN")


# gRPC


@pytest.fixture(scope="module")
def devices(house: House) -> Iterator[devices_pb2_grpc.DeviceApiStub]:
    with grpc.insecure_channel(house.envoy.addresses["customers"]) as channel:
        yield devices_pb2_grpc.DeviceApiStub(channel)


def test_a_client_of_grpc_is_let_through_where_the_path_says_enough(
    house: House, devices: devices_pb2_grpc.DeviceApiStub, server_key: str
) -> None:
    metadata = (("texture-api-key", server_key), ("x-texture-key-id", "forged"))

    listed = devices.ListDevices(devices_pb2.ListDevicesRequest(), metadata=metadata)

    assert len(listed.devices) == 1
    assert house.device_api.last.identity["permission"] == "devices:list"
    assert "forged" not in str(house.device_api.last)
    assert server_key not in str(house.device_api.last)


def test_a_client_of_grpc_is_told_no_in_its_own_way(
    house: House, devices: devices_pb2_grpc.DeviceApiStub, server_key: str
) -> None:
    narrow = make_key(house.service, permissions=["devices:read"]).api_key
    every = devices_pb2.ListDevicesRequest()
    found = {
        "none": grpc_told(devices.ListDevices, every),
        "narrow": grpc_told(devices.ListDevices, every, metadata=(("texture-api-key", narrow),)),
        "device": grpc_told(
            devices.GetDevice,
            devices_pb2.GetDeviceRequest(device_id="battery"),
            metadata=(("texture-api-key", server_key),),
        ),
    }

    assert found == {
        "none": (grpc.StatusCode.UNAUTHENTICATED, "No key was presented.", "KEY_MISSING"),
        "narrow": (
            grpc.StatusCode.PERMISSION_DENIED,
            "The key does not hold the permission: devices:list.",
            "PERMISSION_NOT_GRANTED",
        ),
        "device": (grpc.StatusCode.UNIMPLEMENTED, "There is nothing under this path.", "ROUTE_UNKNOWN"),
    }


def test_a_device_that_is_not_there_is_not_found_over_grpc(house: House, server_key: str) -> None:
    with grpc.insecure_channel(house.envoy.addresses["plain"]) as channel:
        call = channel.unary_unary("/command/toaster", bytes, bytes)
        code, _, reason = grpc_told(call, b"", metadata=(("texture-api-key", server_key),))

    assert (code, reason) == (grpc.StatusCode.NOT_FOUND, "DEVICE_NOT_FOUND")


def grpc_told(call: Callable[..., Any], request: Any, **options: Any) -> tuple[grpc.StatusCode, str, str]:
    """Return what a client of gRPC is told: the code, the message, and the platform's code."""
    error = refused(call, request, **options)
    return error.code, error.message, error.reason


# Failures


def test_without_an_answer_nobody_gets_through(house: House, server_key: str) -> None:
    before = len(house.http.came)

    answers = [house.envoy.ask("alone", "GET", path, with_key(server_key)) for path in ("/list", "/open/page")]

    assert [answer.status for answer in answers] == [503, 503]
    assert len(house.http.came) == before


def test_the_file_to_copy_lets_nobody_through_without_an_answer(house: House, server_key: str) -> None:
    before = len(house.device_api.came)

    with running_envoy(house.service.folder, house.ready(house.nobody), name="closed") as envoy:
        answers = [envoy.ask("customers", "GET", path, with_key(server_key)) for path in ("/v1/devices", "/v1/status")]
        with grpc.insecure_channel(envoy.addresses["customers"]) as channel, pytest.raises(grpc.RpcError) as caught:
            devices_pb2_grpc.DeviceApiStub(channel).ListDevices(devices_pb2.ListDevicesRequest())

    assert [told(answer) for answer in answers] == [(503, "UNAVAILABLE")] * 2
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert len(house.device_api.came) == before


def test_of_several_servers_another_one_is_asked_where_one_is_gone(house: House, server_key: str) -> None:
    config = house.ready(int(house.service.app.addresses[1].rpartition(":")[2]))
    (there,) = [line for line in config.splitlines() if "endpoint:" in line and str(house.device_api.port) not in line]
    gone = re.sub(r"(?<=port_value: )\d+", str(house.nobody), there)
    # By its health, the one that is gone would not be asked at all, once that is known.
    config = re.sub(r" +health_checks:\n(.*\n)+?(?= +transport_socket:)", "", config.replace(there, f"{there}\n{gone}"))

    with running_envoy(house.service.folder, config, name="several") as envoy:
        statuses = [envoy.ask("customers", "GET", "/v1/devices", with_key(server_key)).status for _ in range(4)]

    assert statuses == [200] * 4


def test_where_envoy_was_told_to_let_all_through_neither_key_nor_forged_words_go_with_it(
    house: House, server_key: str
) -> None:
    config = house.ready(house.nobody).replace("failure_mode_allow: false", "failure_mode_allow: true")
    forged = [one for one in FORGED if "_" not in one[0]]

    with running_envoy(house.service.folder, config, name="open") as envoy:
        status = envoy.ask("customers", "GET", "/v1/devices", [*with_key(server_key), *forged]).status

    came = str(house.device_api.last)
    assert status == 200
    assert server_key not in came
    assert "forged" not in came


def test_uses_by_way_of_envoy_are_counted(house: House) -> None:
    key = make_key(house.service)
    for _ in range(2):
        house.envoy.ask("customers", "GET", "/v1/devices", with_key(key.api_key))

    counted = house.service.operator.usage.GetKeyUsage(usage_service_pb2.GetKeyUsageRequest(key_id=key.key.key_id))

    assert [(use.caller_id, use.permission, use.count) for use in counted.totals] == [("gateway", "devices:list", 2)]
