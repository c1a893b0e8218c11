"""CallerService."""

from __future__ import annotations

import grpc
from texture.auth.v1 import caller_service_pb2 as pb
from texture.auth.v1 import caller_service_pb2_grpc
from texture.auth.v1.caller_pb2 import Caller as CallerMessage

from server.service.callers import CallerFields, CallerService
from server.wire import convert
from server.wire.rpc import call_of, note, note_id


class CallerServicer(caller_service_pb2_grpc.CallerServiceServicer):
    """CallerService, as `caller_service.proto` describes it."""

    def __init__(self, service: CallerService) -> None:
        self._service = service

    def CreateCaller(self, request: pb.CreateCallerRequest, context: grpc.ServicerContext) -> pb.CreateCallerResponse:
        """Create a caller."""
        mutation = self._service.create_caller(
            call_of(request), request.caller_id, _fields(request, ""), without_key=request.without_key
        )
        created = mutation.value
        note(subject_caller_id=created.entity.caller_id)
        return pb.CreateCallerResponse(
            caller=convert.caller(created.entity),
            caller_key=created.secret,
            revision=mutation.revision.encode(),
        )

    def GetCaller(self, request: pb.GetCallerRequest, context: grpc.ServicerContext) -> pb.GetCallerResponse:
        """Return a caller."""
        return pb.GetCallerResponse(caller=convert.caller(self._service.get_caller(request.caller_id)))

    def ListCallers(self, request: pb.ListCallersRequest, context: grpc.ServicerContext) -> pb.ListCallersResponse:
        """List callers."""
        listing = self._service.list_callers(request.page_size, request.page_token)
        return pb.ListCallersResponse(
            callers=[convert.caller(caller) for caller in listing.rows], next_page_token=listing.next_page_token
        )

    def UpdateCaller(self, request: pb.UpdateCallerRequest, context: grpc.ServicerContext) -> pb.UpdateCallerResponse:
        """Change a caller."""
        note_id("subject_caller_id", request.caller.caller_id)
        mutation = self._service.update_caller(
            call_of(request),
            request.caller.caller_id,
            _fields(request.caller, "caller."),
            request.update_mask.paths,
        )
        return pb.UpdateCallerResponse(
            caller=convert.caller(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def RotateCallerKey(
        self, request: pb.RotateCallerKeyRequest, context: grpc.ServicerContext
    ) -> pb.RotateCallerKeyResponse:
        """Give a caller a new secret."""
        note_id("subject_caller_id", request.caller_id)
        mutation = self._service.rotate_caller_key(call_of(request), request.caller_id, convert.rotation(request))
        rotated = mutation.value
        return pb.RotateCallerKeyResponse(
            caller=convert.caller(rotated.entity),
            caller_key=rotated.secret,
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def RevokeCaller(self, request: pb.RevokeCallerRequest, context: grpc.ServicerContext) -> pb.RevokeCallerResponse:
        """End a caller for good."""
        note_id("subject_caller_id", request.caller_id)
        mutation = self._service.revoke_caller(call_of(request), request.caller_id)
        return pb.RevokeCallerResponse(
            caller=convert.caller(mutation.value),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )


def _fields(message: pb.CreateCallerRequest | CallerMessage, prefix: str) -> CallerFields:
    """Return what a message says a caller should be. Raises Refusal (FIELD_INVALID)."""
    return CallerFields(
        display_name=message.display_name,
        roles=[convert.ROLE.to_domain(f"{prefix}roles[{index}]", number) for index, number in enumerate(message.roles)],
        certificate_names=list(message.certificate_names),
    )
