"""A map of methods that is not whole stops the start, and says all that is wrong with it."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from texture_auth.aio_guard import AsyncGuard
from texture_auth.guard import Guard
from texture_auth.rules import HEALTH, PERMISSIONS, REFLECTION, MapError, Mode, Rule, Rules

from server.domain.kinds import Permission
from tests.client.shapes import (
    KEY,
    RULES,
    SERVICE,
    AsyncOracle,
    Guarded,
    Handlers,
    Oracle,
    Request,
    Response,
    guarded,
    path,
    register,
)
from tests.harness import as_refused

BROKEN: Rules = {
    path("Get"): Rule("devices:read", device="device.name"),
    path("Follow"): Rule("devices:read", device="count"),
    path("Upload"): Rule("devices:command", device="device_ids"),
    path("Talk"): Rule("devices:command", device="device"),
    path("Paint"): Rule("devices:list"),
    "/texture.tests.guard.Nowhere/Get": Rule("devices:read", device="device_id"),
}
FAULTS = (
    "/texture.tests.guard.Nowhere/Get: in the map, but not served",
    f"{path('Follow')}: the field 'count' of texture.tests.guard.Request is not a string",
    f"{path('Get')}: texture.tests.guard.Request has no field 'device.name'",
    f"{path('List')}: served, but the map does not say what it asks for",
    f"{path('Paint')}: in the map, but not served",
    f"{path('Talk')}: the field 'device' of texture.tests.guard.Request is not a string",
    f"{path('Upload')}: the field 'device_ids' of texture.tests.guard.Request is repeated",
)


def test_a_server_does_not_start_while_anything_is_wrong_with_the_map() -> None:
    with ThreadPoolExecutor(1) as threads:
        server = Guard(Oracle(), BROKEN).server(threads)
        register(server, Handlers().sync())
        with pytest.raises(MapError) as caught:
            server.start()
    assert caught.value.faults == FAULTS


def test_an_aio_server_does_not_start_either() -> None:
    async def start() -> None:
        server = AsyncGuard(AsyncOracle(Oracle()), BROKEN).server()
        register(server, Handlers().aio())
        await server.start()

    with pytest.raises(MapError) as caught:
        asyncio.run(start())
    assert caught.value.faults == FAULTS


@pytest.mark.parametrize("make", [Guard, AsyncGuard])
def test_an_interceptor_is_not_made_for_services_that_the_map_does_not_name(make: Any) -> None:
    with pytest.raises(MapError) as caught:
        make(Oracle(), BROKEN).interceptor([SERVICE])
    assert caught.value.faults == FAULTS
    with pytest.raises(MapError, match="nothing describes this service"):
        make(Oracle(), RULES).interceptor([SERVICE, "texture.tests.guard.Nowhere"])
    assert make(Oracle(), {**RULES, **HEALTH}).interceptor([SERVICE, "grpc.health.v1.Health"]) is not None


@pytest.mark.parametrize(
    ("rule", "fault"),
    [
        (Rule("devices:paint"), "there is no permission 'devices:paint'"),
        (Rule("devices:read"), "devices:read needs a device"),
        (Rule("devices:list", device="device_id"), "devices:list is not asked for one device"),
    ],
)
def test_a_rule_that_asks_for_what_there_is_not_makes_no_guard(rule: Rule, fault: str) -> None:
    rules = {**RULES, path("List"): rule, path("Get"): Rule("devices:burn")}
    with pytest.raises(MapError) as caught:
        Guard(Oracle(), rules)
    assert caught.value.faults == (f"{path('Get')}: there is no permission 'devices:burn'", f"{path('List')}: {fault}")


def test_the_permissions_are_those_of_the_service() -> None:
    assert set(PERMISSIONS) == {permission.value for permission in Permission}


def test_public_methods_need_no_key() -> None:
    with ThreadPoolExecutor(2) as threads:
        oracle = Oracle()
        server = Guard(oracle, {**RULES, **HEALTH, **REFLECTION}).server(threads)
        register(server, Handlers().sync())
        health_pb2_grpc.add_HealthServicer_to_server(health.HealthServicer(), server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=30)
        server.stop(None).wait()
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    assert oracle.asked == []


class _Anything(grpc.GenericRpcHandler):
    """Serves whatever is called, as proxies do."""

    def __init__(self, behave: Any) -> None:
        self._behave = behave

    def service(self, _call: grpc.HandlerCallDetails) -> Any:
        return grpc.unary_unary_rpc_method_handler(self._behave)


def refusal_of_another(address: str) -> Any:
    with grpc.insecure_channel(address) as channel:
        call: Any = channel.unary_unary("/texture.tests.guard.Another/Get")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"", metadata=(("texture-api-key", KEY),), timeout=30)
    return as_refused(caught.value)


@pytest.mark.parametrize("mode", Mode)
def test_what_the_map_does_not_name_is_refused_in_every_mode(mode: Mode) -> None:
    ran: list[Any] = []
    with ThreadPoolExecutor(2) as threads:
        guard = Guard(Oracle(), RULES, mode=mode)
        server = guard.server(threads)
        register(server, Handlers().sync())
        server.add_generic_rpc_handlers((_Anything(lambda request, _: ran.append(request)),))
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        error = refusal_of_another(f"127.0.0.1:{port}")
        server.stop(None).wait()
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "METHOD_NOT_MAPPED")
    assert guard.counts() == {("(not in the map)", "METHOD_NOT_MAPPED", False): 1}
    assert ran == []


def test_what_the_map_does_not_name_is_refused_by_an_aio_server_too() -> None:
    ran: list[Any] = []

    async def behave(request: Any, _context: Any) -> None:
        ran.append(request)

    async def serve() -> Any:
        server = AsyncGuard(AsyncOracle(Oracle()), RULES).server()
        register(server, Handlers().aio())
        server.add_generic_rpc_handlers((_Anything(behave),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        error = await asyncio.to_thread(refusal_of_another, f"127.0.0.1:{port}")
        await server.stop(None)
        return error

    assert asyncio.run(serve()).reason == "METHOD_NOT_MAPPED"
    assert ran == []


@pytest.mark.parametrize("form", ["sync", "aio"])
def test_a_method_that_nobody_serves_is_unimplemented_as_without_a_guard(form: str) -> None:
    with guarded(form) as service, pytest.raises(grpc.RpcError) as caught:
        _call_nothing(service)
    assert isinstance(caught.value, grpc.Call)
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


def _call_nothing(service: Guarded) -> None:
    service.channel.unary_unary(path("Paint"), Request.SerializeToString, Response.FromString)(Request(), timeout=30)
