"""A real Envoy, and what is behind it: the example's device API over gRPC, and a server of plain HTTP."""

from __future__ import annotations

import http.client
import http.server
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
from device_api import devices_pb2
from google.protobuf.message import Message

LOOPBACK = "127.0.0.1"
_START_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """An answer as a client of HTTP sees it, header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: str

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Envoy:
    """A running Envoy: its listeners by name, as HOST:PORT."""

    addresses: Mapping[str, str]

    def ask(
        self, listener: str, method: str, path: str, headers: Sequence[tuple[str, str]] = (), body: str | None = None
    ) -> Answer:
        """Send a request exactly as it is given, over HTTP/1.1."""
        connection = http.client.HTTPConnection(self.addresses[listener], timeout=30)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers:
                connection.putheader(name, value)
            if body is not None:
                connection.putheader("content-length", str(len(body)))
            connection.endheaders(None if body is None else body.encode())
            response = connection.getresponse()
            found = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, found, response.read().decode())
        finally:
            connection.close()


@contextmanager
def running_envoy(
    folder: Path, config: str, more: Mapping[str, Any] | None = None, *, name: str = "envoy", **environment: str
) -> Iterator[Envoy]:
    """Run Envoy in a folder with a configuration, and more that is added to it, until the block ends.

    Its files have its `name`, so that several may run in one folder.

    Listeners on port 0 take free ones. Raises RuntimeError, with its log, if it does not start.
    """
    (folder / f"{name}.yaml").write_text(config)
    admin = {"address": {"socket_address": {"address": LOOPBACK, "port_value": 0}}}
    where, log = folder / f"{name}.address", folder / f"{name}.log"
    command = [
        *(str(Path(sys.executable).with_name("envoy")), "--config-path", f"{name}.yaml"),
        *("--config-yaml", json.dumps({**(more or {}), "admin": admin}), "--admin-address-path", str(where)),
        *("--use-dynamic-base-id", "--concurrency", "1", "--log-level", "warning"),
    ]
    with log.open("w") as output:
        process = subprocess.Popen(command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield Envoy(_listeners(process, where, log))
    finally:
        # It holds nothing that it would have to put down first.
        process.kill()
        process.wait()


def _listeners(process: subprocess.Popen[bytes], where: Path, log: Path) -> dict[str, str]:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        time.sleep(0.02)
        address = where.read_text() if where.exists() else ""
        if address and _admin(address, "/ready") == b"LIVE\n":
            found = json.loads(_admin(address, "/listeners?format=json"))["listener_statuses"]
            return {one["name"]: _address(one["local_address"]["socket_address"]) for one in found}
    raise RuntimeError(f"Envoy did not start:\n{log.read_text()}")


def _admin(address: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        connection.request("GET", path)
        return connection.getresponse().read()
    finally:
        connection.close()


def _address(socket_address: Mapping[str, Any]) -> str:
    return f"{socket_address['address']}:{socket_address['port_value']}"


@dataclass(frozen=True)
class Came:
    """A request as it came to what is behind Envoy: headers in their order, as they were spelt."""

    line: str
    headers: Sequence[tuple[str, str]]

    def values(self, name: str) -> list[str]:
        """Return the values of a header, however it was spelt."""
        return [value for spelt, value in self.headers if spelt.lower().replace("_", "-") == name]

    @property
    def identity(self) -> dict[str, str]:
        """What it says of who asks, but for the name of the decision, which is another one each time."""
        found = {spelt.lower().replace("_", "-"): value for spelt, value in self.headers}
        named = {name.removeprefix("x-texture-"): found[name] for name in found if name.startswith("x-texture-")}
        named.pop("decision-id", None)
        return named


@dataclass
class Upstream:
    """What is behind Envoy, and what came to it."""

    port: int
    came: list[Came] = field(default_factory=list)

    @property
    def last(self) -> Came:
        return self.came[-1]


@contextmanager
def running_http_upstream() -> Iterator[Upstream]:
    """Run a server that answers everything with OK."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _answer(self) -> None:
            upstream.came.append(Came(f"{self.command} {self.path}", self.headers.items()))
            self.rfile.read(int(self.headers.get("content-length", 0)))
            self.send_response_only(200)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the base class names them

    server = http.server.ThreadingHTTPServer((LOOPBACK, 0), Handler)
    server.daemon_threads = True
    upstream = Upstream(server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield upstream
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def running_device_api() -> Iterator[Upstream]:
    """Run a device API over gRPC that asks nobody: it relies on Envoy, and serves the device that was decided about.

    It makes sure of that itself: of what a body names beside the path, Envoy's transcoder does not see to everything.
    """

    def record(method: str, device_id: str, context: grpc.ServicerContext) -> None:
        came = Came(method, [(name, str(value)) for name, value in context.invocation_metadata()])
        if came.identity.get("device-id", "") != device_id:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the message names another device than the path")
        upstream.came.append(came)

    def list_devices(_: devices_pb2.ListDevicesRequest, context: grpc.ServicerContext) -> Message:
        record("ListDevices", "", context)
        return devices_pb2.ListDevicesResponse(devices=[devices_pb2.Device(device_id="battery")])

    def get_device(request: devices_pb2.GetDeviceRequest, context: grpc.ServicerContext) -> Message:
        record("GetDevice", request.device_id, context)
        return devices_pb2.Device(device_id=request.device_id)

    def send_command(request: devices_pb2.SendCommandRequest, context: grpc.ServicerContext) -> Message:
        record("SendCommand", request.device_id, context)
        return devices_pb2.SendCommandResponse(device_id=request.device_id, command=request.command)

    def handler(behavior: Any, request: Any) -> grpc.RpcMethodHandler[Any, Any]:
        return grpc.unary_unary_rpc_method_handler(
            behavior, request.FromString, lambda answer: answer.SerializeToString()
        )

    handlers = {
        "ListDevices": handler(list_devices, devices_pb2.ListDevicesRequest),
        "GetDevice": handler(get_device, devices_pb2.GetDeviceRequest),
        "SendCommand": handler(send_command, devices_pb2.SendCommandRequest),
    }
    server = grpc.server(ThreadPoolExecutor(2))
    service = devices_pb2.DESCRIPTOR.services_by_name["DeviceApi"].full_name
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))
    upstream = Upstream(server.add_insecure_port(f"{LOOPBACK}:0"))
    server.start()
    try:
        yield upstream
    finally:
        server.stop(None).wait()
