"""The gRPC server: what it serves, on which address, and how it ends."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection
from texture.auth.v1 import (
    authorize_service_pb2,
    caller_service_pb2,
    caller_service_pb2_grpc,
    connect_service_pb2,
    connect_service_pb2_grpc,
    device_service_pb2,
    device_service_pb2_grpc,
    event_service_pb2,
    event_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    usage_service_pb2,
    usage_service_pb2_grpc,
    webhook_service_pb2,
    webhook_service_pb2_grpc,
    workspace_service_pb2,
    workspace_service_pb2_grpc,
)

from server.service.audit import AuditService
from server.service.authorization import AuthorizationService, DecisionIds
from server.service.base import Resources
from server.service.callers import CallerService
from server.service.connect import ConnectService
from server.service.devices import DeviceService
from server.service.events import EventService
from server.service.exposures import ExposureService
from server.service.keys import KeyService
from server.service.rehashing import Rehashing
from server.service.reports import ReportService
from server.service.revocations import RevocationService
from server.service.rotations import RotationService
from server.service.telemetry import Telemetry
from server.service.usage import UsageReporter, UsageService
from server.service.webhooks import WebhookService
from server.service.workspaces import WorkspaceService
from server.wire.arrivals import Arrivals
from server.wire.desks import Desk
from server.wire.gate import Gate, House
from server.wire.health import HealthMonitor
from server.wire.limits import Limits
from server.wire.repeats import Repeats
from server.wire.seats import Seats
from server.wire.servicers import authorize
from server.wire.servicers.callers import CallerServicer
from server.wire.servicers.connect import ConnectServicer
from server.wire.servicers.devices import DeviceServicer
from server.wire.servicers.events import EventServicer
from server.wire.servicers.keys import KeyServicer
from server.wire.servicers.usage import UsageServicer
from server.wire.servicers.webhooks import WebhookServicer
from server.wire.servicers.workspaces import WorkspaceServicer
from server.wire.tls import ReloadingCredentials

SERVICES = tuple(
    module.DESCRIPTOR.services_by_name[name].full_name
    for module, name in (
        (authorize_service_pb2, "AuthorizeService"),
        (key_service_pb2, "KeyService"),
        (connect_service_pb2, "ConnectService"),
        (device_service_pb2, "DeviceService"),
        (workspace_service_pb2, "WorkspaceService"),
        (caller_service_pb2, "CallerService"),
        (webhook_service_pb2, "WebhookService"),
        (usage_service_pb2, "UsageService"),
        (event_service_pb2, "EventService"),
    )
)

# How long the answers of calls that are done may take to leave.
LAST_ANSWERS_SECONDS = 0.5
# How many streams of events a process serves at once, each in a thread.
WATCHERS = 64
# Threads for what must not wait for calls: health, and refusals of calls that are too many.
SIDE_THREADS = 4


@dataclass(frozen=True, slots=True)
class Gateway:
    """A service that gateways ask in words of their own: its name, and what has a server answer by AuthorizeService."""

    service: str
    add_to_server: Callable[[authorize.AuthorizeServicer, grpc.Server], None]


class AddressTaken(Exception):  # noqa: N818 - it names a state
    """The address cannot be listened on."""


class GrpcServer:
    """The services behind the gate, with health and reflection."""

    def __init__(
        self,
        resources: Resources,
        rehashing: Rehashing,
        exposures: ExposureService,
        usage: UsageReporter,
        limits: Limits,
        *,
        open_reflection: bool,
        log_allow_sample: float,
        webhook_private_hosts: Collection[str] = (),
        gateways: Sequence[Gateway] = (),
    ) -> None:
        callers = CallerService(resources, rehashing)
        services = (*SERVICES, *(gateway.service for gateway in gateways))
        self._health = HealthMonitor(resources.store.ping, services)
        self._decisions = Desk("decisions", threads=limits.deciding_threads, queue=limits.queue, aside=limits.aside)
        self._others = Desk("others", threads=limits.threads, queue=limits.queue, aside=limits.aside)
        self._side_pool = ThreadPoolExecutor(SIDE_THREADS, thread_name_prefix="side")
        self._seats = Seats(WATCHERS)
        self._arrivals = Arrivals()
        house = House(
            authenticator=callers,
            decisions=self._decisions,
            others=self._others,
            side_pool=self._side_pool,
            seats=self._seats,
            arrivals=self._arrivals,
            open_reflection=open_reflection,
            default_seconds=limits.default_deadline_seconds,
            log_allow_sample=log_allow_sample,
            on_store_unavailable=self._health.probe_now,
            telemetry=resources.telemetry,
        )
        resources.telemetry.sample(partial(_tell_load, resources.telemetry, (self._decisions, self._others)))
        self._server = grpc.server(self._others.lane(""), interceptors=[Gate(house)], options=limits.options)
        clock = resources.clock
        next_id = DecisionIds()
        authorizer = authorize.AuthorizeServicer(
            AuthorizationService(resources, exposures, rehashing, next_id),
            Repeats(resources.cache, clock, next_id, resources.telemetry),
            usage.counter,
        )
        authorize.add_to_server(authorizer, self._server)
        for gateway in gateways:
            gateway.add_to_server(authorizer, self._server)
        key_service_pb2_grpc.add_KeyServiceServicer_to_server(
            KeyServicer(
                KeyService(resources),
                RevocationService(resources),
                ReportService(resources),
                RotationService(resources, usage),
                clock,
            ),
            self._server,
        )
        connect_service_pb2_grpc.add_ConnectServiceServicer_to_server(
            ConnectServicer(ConnectService(resources, exposures, rehashing, usage.counter), clock), self._server
        )
        device_service_pb2_grpc.add_DeviceServiceServicer_to_server(
            DeviceServicer(DeviceService(resources)), self._server
        )
        workspace_service_pb2_grpc.add_WorkspaceServiceServicer_to_server(
            WorkspaceServicer(WorkspaceService(resources)), self._server
        )
        caller_service_pb2_grpc.add_CallerServiceServicer_to_server(CallerServicer(callers), self._server)
        webhook_service_pb2_grpc.add_WebhookServiceServicer_to_server(
            WebhookServicer(WebhookService(resources, webhook_private_hosts)), self._server
        )
        usage_service_pb2_grpc.add_UsageServiceServicer_to_server(
            UsageServicer(UsageService(resources, usage)), self._server
        )
        self._events = EventService(resources)
        self._audit = AuditService(resources)
        event_service_pb2_grpc.add_EventServiceServicer_to_server(
            EventServicer(self._events, self._audit), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health.servicer, self._server)
        health_name = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
        reflection.enable_server_reflection((*services, health_name, reflection.SERVICE_NAME), self._server)

    def listen(self, address: str, credentials: ReloadingCredentials | None) -> int:
        """Listen on an address, in plain text without credentials, and return the port. Raises AddressTaken."""
        try:
            if credentials is None:
                return self._server.add_insecure_port(address)
            return self._server.add_secure_port(address, credentials.credentials())
        except RuntimeError as error:
            raise AddressTaken(f"cannot listen on {address}") from error

    def start(self) -> None:
        """Serve on the addresses that are listened on."""
        self._health.start()
        self._events.start()
        self._arrivals.start()
        self._server.start()

    def retire(self) -> None:
        """Have health say NOT_SERVING from now on, and serve as before."""
        self._health.drain()

    def drain(self, grace_seconds: float) -> Callable[[float], bool]:
        """Refuse new calls and let those in flight finish, for so long at most.

        The returned function waits for some seconds, and tells whether it is over. Who watches health never finishes by
        itself, and is cut off as soon as nobody else is left.
        """
        self._health.drain()
        # Those who watch go on elsewhere.
        self._events.close()
        stopped = self._server.stop(grace_seconds)

        def wait(seconds: float) -> bool:
            if not stopped.wait(seconds) and self._decisions.idle and self._others.idle:
                self._server.stop(min(grace_seconds, LAST_ANSWERS_SECONDS))
            return stopped.is_set()

        return wait

    def cut_off(self) -> None:
        """Cut off the calls in flight, and wait for nothing."""
        self._server.stop(None)

    def stop(self) -> None:
        """Cut off the calls in flight, and wait until nothing runs any more."""
        self._events.close()
        self._server.stop(None).wait()
        self._events.stop()
        self._seats.shutdown()
        self._health.stop()
        self._decisions.shutdown()
        self._others.shutdown()
        self._side_pool.shutdown()
        self._arrivals.stop()


def _tell_load(telemetry: Telemetry, desks: Iterable[Desk]) -> None:
    for desk in desks:
        telemetry.load(desk.name, busy=desk.busy, threads=desk.threads, waiting=desk.waiting, queue=desk.queue)
