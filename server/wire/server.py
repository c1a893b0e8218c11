"""The gRPC server: what it serves, on which address, and how it ends."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from texture.auth.v1 import (
    authorize_service_pb2,
    authorize_service_pb2_grpc,
    caller_service_pb2,
    caller_service_pb2_grpc,
    connect_service_pb2,
    connect_service_pb2_grpc,
    device_service_pb2,
    device_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)

from server.service.authorization import AuthorizationService
from server.service.base import Resources
from server.service.callers import CallerService
from server.service.connect import ConnectService
from server.service.devices import DeviceService
from server.service.exposures import ExposureService
from server.service.keys import KeyService
from server.service.workspaces import WorkspaceService
from server.wire.gate import MAXIMUM_MESSAGE_BYTES, Gate
from server.wire.health import HealthMonitor
from server.wire.servicers.authorize import AuthorizeServicer
from server.wire.servicers.callers import CallerServicer
from server.wire.servicers.connect import ConnectServicer
from server.wire.servicers.devices import DeviceServicer
from server.wire.servicers.keys import KeyServicer
from server.wire.servicers.workspaces import WorkspaceServicer

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (authorize_service_pb2, "AuthorizeService"),
        (key_service_pb2, "KeyService"),
        (connect_service_pb2, "ConnectService"),
        (device_service_pb2, "DeviceService"),
        (workspace_service_pb2, "WorkspaceService"),
        (caller_service_pb2, "CallerService"),
    )
)

# How long the answers of calls that are done may take to leave.
LAST_ANSWERS_SECONDS = 0.5

_OPTIONS = (
    # Beyond what a request may weigh, so that the gate can say which limit was passed and by how much.
    ("grpc.max_receive_message_length", 4 * MAXIMUM_MESSAGE_BYTES),
    # A second server on the same address must fail to start, not take half of the calls.
    ("grpc.so_reuseport", 0),
)


@dataclass(frozen=True, slots=True)
class Tls:
    """A certificate chain and its private key, PEM."""

    certificate_chain: bytes
    private_key: bytes


class CountingPool(ThreadPoolExecutor):
    """A pool that knows whether any call is being worked on or waits for a thread."""

    def __init__(self, threads: int) -> None:
        super().__init__(max_workers=threads, thread_name_prefix="rpc")
        self._lock = threading.Lock()
        self._under_way = 0

    @property
    def idle(self) -> bool:
        """Tell whether there is nothing to do."""
        return self._under_way == 0

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Work on something."""
        with self._lock:
            self._under_way += 1
        try:
            future = super().submit(function, *args, **kwargs)
        except BaseException:
            self._done(None)
            raise
        future.add_done_callback(self._done)
        return future

    def _done(self, _future: Future[Any] | None) -> None:
        with self._lock:
            self._under_way -= 1


class AddressTaken(Exception):  # noqa: N818 - it names a state
    """The address cannot be listened on."""


class GrpcServer:
    """The services behind the gate, with health and reflection."""

    def __init__(self, resources: Resources, threads: int, open_reflection: bool) -> None:
        callers = CallerService(resources)
        self._health = HealthMonitor(resources.store.ping, SERVICES)
        self._pool = CountingPool(threads)
        self._server = grpc.server(
            self._pool,
            interceptors=[Gate(callers, open_reflection, self._health.probe_now)],
            options=_OPTIONS,
        )
        clock = resources.clock
        exposures = ExposureService(resources)
        authorize_service_pb2_grpc.add_AuthorizeServiceServicer_to_server(
            AuthorizeServicer(AuthorizationService(resources, exposures)), self._server
        )
        key_service_pb2_grpc.add_KeyServiceServicer_to_server(KeyServicer(KeyService(resources), clock), self._server)
        connect_service_pb2_grpc.add_ConnectServiceServicer_to_server(
            ConnectServicer(ConnectService(resources, exposures), clock), self._server
        )
        device_service_pb2_grpc.add_DeviceServiceServicer_to_server(
            DeviceServicer(DeviceService(resources)), self._server
        )
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(
            WorkspaceServicer(WorkspaceService(resources)), self._server
        )
        caller_service_pb2_grpc.add_CallerServiceServicer_to_server(CallerServicer(callers), self._server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*SERVICES, health_name, reflection.SERVICE_NAME), self._server)

    def start(self, address: str, tls: Tls | None) -> int:
        """Listen, in plain text where `tls` is None, and return the port. Raises AddressTaken."""
        try:
            if tls is None:
                port = self._server.add_insecure_port(address)
            else:
                credentials = grpc.ssl_server_credentials([(tls.private_key, tls.certificate_chain)])
                port = self._server.add_secure_port(address, credentials)
        except RuntimeError as error:
            raise AddressTaken(f"cannot listen on {address}") from error
        self._health.start()
        self._server.start()
        return port

    def drain(self, grace_seconds: float) -> Callable[[float], bool]:
        """Refuse new calls and let those in flight finish, for so long at most.

        The returned function waits for some seconds, and tells whether it is over. Who watches health never finishes by
        itself, and is cut off as soon as nobody else is left.
        """
        self._health.drain()
        stopped = self._server.stop(grace_seconds)

        def wait(seconds: float) -> bool:
            if not stopped.wait(seconds) and self._pool.idle:
                self._server.stop(min(grace_seconds, LAST_ANSWERS_SECONDS))
            return stopped.is_set()

        return wait

    def cut_off(self) -> None:
        """Cut off the calls in flight, and wait for nothing."""
        self._server.stop(None)

    def stop(self) -> None:
        """Cut off the calls in flight, and wait until nothing runs any more."""
        self._server.stop(None).wait()
        self._health.stop()
        self._pool.shutdown()
