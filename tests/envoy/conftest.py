"""Fixtures for tests behind Envoy: one Envoy for all, before one server that demands its certificate."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.api
import grpc
import pytest
from texture.auth.v1 import caller_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER

from server import app
from server.settings import Settings
from tests.envoy import pieces
from tests.envoy.gateway import LOOPBACK, Envoy, Upstream, running_device_api, running_envoy, running_http_upstream
from tests.harness import Client, Service, TurnedClock, running_service, untraced
from tests.operate.certificates import Authority
from tests.wire.helpers import make_workspace

EXAMPLES = Path(__file__).parents[2] / "client" / "examples"
READY = EXAMPLES / "envoy" / "envoy.yaml"
ROUTES = EXAMPLES / "envoy" / "routes.txt"
_NAME = "spiffe://prod.example/gateway"


@dataclass(frozen=True)
class House:
    """An Envoy, the service that it asks, and what is behind it.

    Its listener `customers` is that of the file to copy, `plain` one with nothing but this service before plain HTTP,
    `alone` the same, but that it finds nobody to ask, and `proxied` one behind a proxy that it trusts, asking a service
    that trusts it too. On the port `nobody`, nobody listens.
    """

    envoy: Envoy
    service: Service
    proxied: Service
    device_api: Upstream
    http: Upstream
    nobody: int

    def ready(self, authorizer: int) -> str:
        """Return the file to copy, with the ports of this machine, and that of whom it asks."""
        return ready(self.device_api.port, authorizer)


def ready(device_api: int, authorizer: int) -> str:
    """Return the file to copy, with ports as they are here, and patience: tests share a machine with others."""
    ports = {8080: 0, 9000: device_api, 50052: authorizer}
    patient = READY.read_text().replace("timeout: 1s", "timeout: 30s")
    return re.sub(r"(?<=port_value: )\d+", lambda found: str(ports[int(found[0])]), patient)


@pytest.fixture(scope="session")
def house(tmp_path_factory: pytest.TempPathFactory) -> Iterator[House]:
    """Run all of it."""
    folder = tmp_path_factory.mktemp("envoy")
    with ExitStack() as stack:
        stack.enter_context(untraced(with_threads=False))
        service = stack.enter_context(_service(folder))
        proxied = stack.enter_context(
            running_service(tmp_path_factory.mktemp("proxied"), envoy=True, envoy_xff_num_trusted_hops=1)
        )
        device_api = stack.enter_context(running_device_api())
        http = stack.enter_context(running_http_upstream())
        nobody = stack.enter_context(socket.socket())
        nobody.bind((LOOPBACK, 0))
        created = service.operator.callers.CreateCaller(
            caller_service_pb2.CreateCallerRequest(caller_id="by-key", roles=[ROLE_AUTHORIZER])
        )
        _describe_api(folder / "devices.pb")
        by_certificate, by_key = (int(address.rpartition(":")[2]) for address in reversed(service.app.addresses))
        port = nobody.getsockname()[1]
        keys = {"TEXTURE_AUTH_CALLER_KEY": created.caller_key, "PROXIED_CALLER_KEY": proxied.operator_key}
        clusters = [
            pieces.cluster("http", http.port),
            pieces.cluster("by_key", by_key, {**pieces.HTTP_2, **_TLS}),
            pieces.cluster("proxied", int(proxied.address.rpartition(":")[2]), pieces.HTTP_2),
            pieces.cluster("nobody", port, pieces.HTTP_2),
        ]
        more = {"static_resources": {"listeners": _listeners(), "clusters": clusters}}
        envoy = stack.enter_context(running_envoy(folder, ready(device_api.port, by_certificate), more, **keys))
        yield House(envoy, service, proxied, device_api, http, port)


@contextmanager
def _service(folder: Path) -> Iterator[Service]:
    """Run a server for production, whose second address demands certificates of callers."""
    tls = folder / "tls"
    tls.mkdir()
    authority = Authority(tls, "ca")
    certificate = authority.issue("server", hosts=["localhost"])
    gateway = authority.issue("gateway", uris=[_NAME])
    authority.certificate.rename(tls / "ca.pem")
    gateway.chain.rename(tls / "gateway.pem")
    peppers = folder / "peppers"
    peppers.write_text(f"p1 {'ab' * 32}\n")
    settings = Settings(
        database=f"sqlite:{folder / 'auth.db'}",
        peppers_file=peppers,
        listen=f"{LOOPBACK}:0",
        tls_certificate=certificate.chain,
        tls_private_key=certificate.private_key,
        tls_client_ca=tls / "ca.pem",
        tls_client_listen=f"{LOOPBACK}:0",
        envoy=True,
        envoy_routes=ROUTES,
    )
    app.migrate(settings)
    key = app.bootstrap(settings, "operator")
    clock = TurnedClock()
    running = app.App(settings, clock)
    address = f"localhost:{running.start()}"
    try:
        credentials = grpc.ssl_channel_credentials((tls / "ca.pem").read_bytes())
        with grpc.secure_channel(address, credentials) as channel:
            service = Service(running, clock, folder, folder / "auth.db", address, channel, key, Client(channel, key))
            request = caller_service_pb2.CreateCallerRequest(
                caller_id="gateway", roles=[ROLE_AUTHORIZER], certificate_names=[_NAME], without_key=True
            )
            service.operator.callers.CreateCaller(request)
            make_workspace(service)
            yield service
    finally:
        running.stop()


def _describe_api(into: Path) -> None:
    """Describe the example's API, as the file to copy says it is done."""
    includes = [f"-I{Path(next(iter(google.api.__path__))).parents[1]}", f"-I{EXAMPLES}"]
    command = [sys.executable, "-m", "grpc_tools.protoc", *includes, "--include_imports"]
    proto = EXAMPLES / "device_api" / "devices.proto"
    subprocess.run([*command, f"--descriptor_set_out={into}", str(proto)], check=True)


def _listeners() -> list[Mapping[str, Any]]:
    """Return listeners with as little as can be before plain HTTP, which ask by a svc key."""
    trusting = {"use_remote_address": True, "xff_num_trusted_hops": 1}
    return [
        _listener("plain", "by_key"),
        _listener("alone", "nobody"),
        _listener("proxied", "proxied", "PROXIED_CALLER_KEY", **trusting),
    ]


def _listener(
    name: str, authorizer: str, key_from: str = "TEXTURE_AUTH_CALLER_KEY", **settings: Any
) -> Mapping[str, Any]:
    needs = {"command": ("devices:command", "/command/{device_id}"), "list": ("devices:list", ""), "typo": ("x", "")}
    routes = [
        _route({"prefix": f"/{prefix}"}, {"texture-permission": permission, "texture-device-path": path})
        for prefix, (permission, path) in needs.items()
    ]
    routes.append(_route({"prefix": "/open"}, {"texture-permission": "public"}))
    metadata = {"filter_metadata": {"texture.auth": {"permission": "devices:read", "device-path": "/m/{device_id}"}}}
    routes += [{**_route({"prefix": "/m"}, {}), "metadata": metadata}, _route({"prefix": "/"}, {})]
    return pieces.listener(name, pieces.asking(authorizer, 30, key_from), routes, **settings)


def _route(match: Mapping[str, str], extensions: Mapping[str, str]) -> Mapping[str, Any]:
    said = {name: value for name, value in extensions.items() if value}
    return {"match": match, "route": {"cluster": "http"}, **(pieces.saying(said) if said else {})}


_TLS = pieces.tls({"validation_context": {"trusted_ca": {"filename": "tls/ca.pem"}}}, sni="localhost")
