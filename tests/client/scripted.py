"""A real gRPC server that answers as it is told, and remembers what it was asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
from envoy.service.auth.v3.external_auth_pb2_grpc import add_AuthorizationServicer_to_server
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import HealthServicer
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import key_pb2
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceServicer, add_AuthorizeServiceServicer_to_server

SERVICE = "texture.auth.v1.AuthorizeService"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING

ALLOW = pb.AuthorizeResponse(
    decision=pb.DECISION_ALLOW,
    reason=pb.REASON_PERMITTED,
    http_status_code=200,
    key=pb.AuthorizedKey(key_id="Key0000000000000", kind=key_pb2.KEY_KIND_SERVER, workspace_id="acme"),
    revision="r1",
    decision_id="d1",
)
DENY = pb.AuthorizeResponse(
    decision=pb.DECISION_DENY, reason=pb.REASON_KEY_REVOKED, http_status_code=401, revision="r1", decision_id="d2"
)


@dataclass
class Scripted(AuthorizeServiceServicer):
    """The service, with an answer to everything."""

    answer: Callable[[Any, grpc.ServicerContext], Any] = lambda _request, _context: ALLOW
    asked: list[Any] = field(default_factory=list)
    metadata: list[dict[str, Any]] = field(default_factory=list)
    remaining: list[float] = field(default_factory=list)
    peers: set[str] = field(default_factory=set)
    health: HealthServicer = field(default_factory=HealthServicer)
    address: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def Authorize(self, request: Any, context: Any) -> Any:  # noqa: N802
        with self._lock:
            self.asked.append(request)
            self.metadata.append(dict(context.invocation_metadata()))
            self.remaining.append(context.time_remaining())
            self.peers.add(context.peer())
        return self.answer(request, context)

    BatchAuthorize = Authorize
    ExplainAuthorization = Authorize
    # Envoy's question.
    Check = Authorize

    def is_serving(self, status: Any) -> None:
        """Say how it is."""
        self.health.set(SERVICE, status)


@contextmanager
def scripted_server(
    answer: Callable[[Any, grpc.ServicerContext], Any] | None = None,
    *,
    port: int = 0,
    credentials: grpc.ServerCredentials | None = None,
) -> Iterator[Scripted]:
    """Serve on loopback until the block ends."""
    servicer = Scripted() if answer is None else Scripted(answer)
    servicer.is_serving(SERVING)
    with ThreadPoolExecutor(8) as pool:
        server = grpc.server(pool)
        add_AuthorizeServiceServicer_to_server(servicer, server)
        add_AuthorizationServicer_to_server(servicer, server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer.health, server)
        where = f"127.0.0.1:{port}"
        bound = server.add_insecure_port(where) if credentials is None else server.add_secure_port(where, credentials)
        servicer.address = f"127.0.0.1:{bound}"
        server.start()
        try:
            yield servicer
        finally:
            server.stop(None).wait()


def failing(code: grpc.StatusCode, details: str = "") -> Callable[[Any, grpc.ServicerContext], Any]:
    """Answer everything with an error."""

    def answer(_request: Any, context: grpc.ServicerContext) -> Any:
        context.abort(code, details)

    return answer
