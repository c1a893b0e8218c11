"""Envoy's external authorization, `envoy.service.auth.v3.Authorization`."""

from __future__ import annotations

from collections.abc import Callable

import grpc
import structlog
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc
from texture.auth.v1 import authorize_service_pb2 as pb

from server.wire.checks import Reader, Unasked, allowed, denied, denied_unasked, headers_of
from server.wire.rpc import CURRENT, note
from server.wire.servicers.authorize import AuthorizeServicer

SERVICE: str = external_auth_pb2.DESCRIPTOR.services_by_name["Authorization"].full_name

_log = structlog.get_logger("texture_auth.envoy")


class EnvoyServicer(external_auth_pb2_grpc.AuthorizationServicer):  # type: ignore[misc]
    """Answers as AuthorizeService does, by way of it: `authorize` takes and gives its messages as bytes.

    A denial is an answer, and so is that to a request that cannot be made a question. What Authorize answers with an
    error is an error here: Envoy then does what it was told to do about failures.
    """

    def __init__(self, reader: Reader, authorize: Callable[[bytes, grpc.ServicerContext], bytes]) -> None:
        self._reader = reader
        self._authorize = authorize

    def Check(
        self, request: external_auth_pb2.CheckRequest, context: grpc.ServicerContext
    ) -> external_auth_pb2.CheckResponse:
        """Answer one request."""
        headers = headers_of(request.attributes.request.http)
        try:
            asked = self._reader.read(request.attributes, headers)
        except Unasked as why:
            note(decision="DENY", reason=why.code)
            if why.fault:
                _log.error("route invalid", fault=why.fault)
            return denied_unasked(headers, why)
        if asked.question is None:
            CURRENT.get().routine = True
            note(decision="ALLOW", reason="PUBLIC", route=asked.path)
            return allowed(headers, asked, None)
        answer = pb.AuthorizeResponse.FromString(self._authorize(asked.question.SerializeToString(), context))
        note(route=asked.path)
        if answer.decision == pb.DECISION_ALLOW:
            return allowed(headers, asked, answer)
        return denied(headers, answer)


def add_to_server(reader: Reader, servicer: AuthorizeServicer, server: grpc.Server) -> None:
    """Have a server answer Envoy, by way of AuthorizeService."""
    external_auth_pb2_grpc.add_AuthorizationServicer_to_server(EnvoyServicer(reader, servicer.Authorize), server)
