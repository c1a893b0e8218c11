"""ConnectService."""

from __future__ import annotations

import grpc
from texture.auth.v1 import connect_service_pb2 as pb
from texture.auth.v1 import connect_service_pb2_grpc

from server.domain.decision import ask
from server.domain.errors import invalid
from server.domain.kinds import Permission
from server.domain.validation import Fields
from server.service.base import Clock
from server.service.connect import ConnectService
from server.service.devices import Registration
from server.wire import convert
from server.wire.rpc import call_of, note, note_id


class ConnectServicer(connect_service_pb2_grpc.ConnectServiceServicer):
    """ConnectService, as `connect_service.proto` describes it."""

    def __init__(self, service: ConnectService, clock: Clock) -> None:
        self._service = service
        self._clock = clock

    def CreateConnectLink(
        self, request: pb.CreateConnectLinkRequest, context: grpc.ServicerContext
    ) -> pb.CreateConnectLinkResponse:
        """Create a link."""
        fields = Fields()
        seen = convert.context(request.context, fields)
        fields.refuse_if_invalid()
        mutation = self._service.create_connect_link(
            call_of(request),
            ask(request.api_key, Permission.CONNECT_LINKS_CREATE.value, "", seen),
            request.redirect_uri,
            request.reference_id,
            request.client_state,
        )
        created = mutation.value
        note(connect_link_id=created.entity.link.connect_link_id, key_id=created.entity.link.key_id)
        return pb.CreateConnectLinkResponse(
            connect_link=convert.connect_link(created.entity),
            link_token=created.secret,
            revision=mutation.revision.encode(),
        )

    def GetConnectLink(
        self, request: pb.GetConnectLinkRequest, context: grpc.ServicerContext
    ) -> pb.GetConnectLinkResponse:
        """Return a link."""
        match request.WhichOneof("link"):
            case "connect_link_id":
                view = self._service.get_connect_link(request.connect_link_id)
            case "link_token":
                view = self._service.find_connect_link(request.link_token)
            case _:
                raise invalid("link", "connect_link_id or link_token is required")
        return pb.GetConnectLinkResponse(connect_link=convert.connect_link(view))

    def CompleteConnectLink(
        self, request: pb.CompleteConnectLinkRequest, context: grpc.ServicerContext
    ) -> pb.CompleteConnectLinkResponse:
        """Close a link, record its devices, mint the scoped key."""
        mutation = self._service.complete_connect_link(
            call_of(request),
            request.link_token,
            [Registration(device.device_id, "", device.manufacturer) for device in request.devices],
        )
        completion = mutation.value
        scoped_key = completion.scoped_key
        note(connect_link_id=completion.view.link.connect_link_id, key_id=scoped_key.entity.key_id)
        return pb.CompleteConnectLinkResponse(
            connect_link=convert.connect_link(completion.view),
            devices=[convert.device(device) for device in completion.devices],
            scoped_key=convert.key(scoped_key.entity, self._clock()),
            scoped_api_key=scoped_key.secret,
            redirect_uri=completion.redirect_uri,
            revision=mutation.revision.encode(),
        )

    def CancelConnectLink(
        self, request: pb.CancelConnectLinkRequest, context: grpc.ServicerContext
    ) -> pb.CancelConnectLinkResponse:
        """Cancel an open link."""
        note_id("connect_link_id", request.connect_link_id)
        mutation = self._service.cancel_connect_link(call_of(request), request.connect_link_id)
        return pb.CancelConnectLinkResponse(
            connect_link=convert.connect_link(mutation.value),
            cancel_time=convert.timestamp(mutation.value.link.cancel_time),
            revision=mutation.revision.encode(),
        )
