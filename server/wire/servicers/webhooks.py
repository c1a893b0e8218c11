"""WebhookService."""

from __future__ import annotations

from datetime import timedelta

import grpc
from texture.auth.v1 import webhook_service_pb2 as pb
from texture.auth.v1 import webhook_service_pb2_grpc
from texture.auth.v1.webhook_pb2 import WebhookEndpoint as WebhookEndpointMessage

from server.service.webhooks import WebhookFields, WebhookService
from server.store.contract import WebhookReplay
from server.wire import convert
from server.wire.rpc import call_of, note, note_id


class WebhookServicer(webhook_service_pb2_grpc.WebhookServiceServicer):
    """WebhookService, as `webhook_service.proto` describes it."""

    def __init__(self, service: WebhookService) -> None:
        self._service = service

    def CreateWebhookEndpoint(
        self, request: pb.CreateWebhookEndpointRequest, context: grpc.ServicerContext
    ) -> pb.CreateWebhookEndpointResponse:
        """Create an endpoint."""
        given = WebhookFields(url=request.url, description=request.description, event_types=list(request.event_types))
        mutation = self._service.create_endpoint(call_of(request), request.workspace_id, given)
        created = mutation.value
        note(webhook_endpoint_id=created.entity.webhook_endpoint_id)
        return pb.CreateWebhookEndpointResponse(
            webhook_endpoint=convert.webhook_endpoint(created.entity),
            signing_secret=created.secret,
            revision=mutation.revision.encode(),
        )

    def GetWebhookEndpoint(
        self, request: pb.GetWebhookEndpointRequest, context: grpc.ServicerContext
    ) -> pb.GetWebhookEndpointResponse:
        """Return an endpoint."""
        endpoint = self._service.get_endpoint(request.webhook_endpoint_id)
        return pb.GetWebhookEndpointResponse(webhook_endpoint=convert.webhook_endpoint(endpoint))

    def ListWebhookEndpoints(
        self, request: pb.ListWebhookEndpointsRequest, context: grpc.ServicerContext
    ) -> pb.ListWebhookEndpointsResponse:
        """List the endpoints of a workspace."""
        listing = self._service.list_endpoints(request.workspace_id, request.page_size, request.page_token)
        return pb.ListWebhookEndpointsResponse(
            webhook_endpoints=[convert.webhook_endpoint(endpoint) for endpoint in listing.rows],
            next_page_token=listing.next_page_token,
        )

    def UpdateWebhookEndpoint(
        self, request: pb.UpdateWebhookEndpointRequest, context: grpc.ServicerContext
    ) -> pb.UpdateWebhookEndpointResponse:
        """Change an endpoint."""
        given = request.webhook_endpoint
        note_id("webhook_endpoint_id", given.webhook_endpoint_id)
        mutation = self._service.update_endpoint(
            call_of(request), given.webhook_endpoint_id, _fields(given), request.update_mask.paths
        )
        return pb.UpdateWebhookEndpointResponse(
            webhook_endpoint=convert.webhook_endpoint(mutation.value), revision=mutation.revision.encode()
        )

    def DeleteWebhookEndpoint(
        self, request: pb.DeleteWebhookEndpointRequest, context: grpc.ServicerContext
    ) -> pb.DeleteWebhookEndpointResponse:
        """Delete an endpoint."""
        note_id("webhook_endpoint_id", request.webhook_endpoint_id)
        mutation = self._service.delete_endpoint(call_of(request), request.webhook_endpoint_id)
        return pb.DeleteWebhookEndpointResponse(revision=mutation.revision.encode())

    def RotateWebhookSecret(
        self, request: pb.RotateWebhookSecretRequest, context: grpc.ServicerContext
    ) -> pb.RotateWebhookSecretResponse:
        """Give an endpoint a new secret."""
        note_id("webhook_endpoint_id", request.webhook_endpoint_id)
        overlap = convert.length_of_time(request, "overlap", "overlap") or timedelta()
        mutation = self._service.rotate_secret(call_of(request), request.webhook_endpoint_id, overlap)
        rotated = mutation.value
        return pb.RotateWebhookSecretResponse(
            webhook_endpoint=convert.webhook_endpoint(rotated.entity),
            signing_secret=rotated.secret,
            revision=mutation.revision.encode(),
        )

    def ListWebhookDeliveries(
        self, request: pb.ListWebhookDeliveriesRequest, context: grpc.ServicerContext
    ) -> pb.ListWebhookDeliveriesResponse:
        """List the deliveries of an endpoint."""
        listing = self._service.list_deliveries(
            request.webhook_endpoint_id,
            convert.DELIVERY_STATE.to_domain("state", request.state),
            request.page_size,
            request.page_token,
        )
        return pb.ListWebhookDeliveriesResponse(
            webhook_deliveries=[convert.webhook_delivery(delivery) for delivery in listing.rows],
            next_page_token=listing.next_page_token,
        )

    def ReplayWebhookDeliveries(
        self, request: pb.ReplayWebhookDeliveriesRequest, context: grpc.ServicerContext
    ) -> pb.ReplayWebhookDeliveriesResponse:
        """Have deliveries tried again."""
        note_id("webhook_endpoint_id", request.webhook_endpoint_id)
        wanted = WebhookReplay(
            webhook_endpoint_id=request.webhook_endpoint_id,
            webhook_delivery_ids=list(request.webhook_delivery_ids),
            failed_since=convert.instant(request, "failed_since", "failed_since"),
        )
        mutation = self._service.replay_deliveries(call_of(request), wanted)
        note(count=mutation.value)
        return pb.ReplayWebhookDeliveriesResponse(count=mutation.value, revision=mutation.revision.encode())

    def TestWebhookEndpoint(
        self, request: pb.TestWebhookEndpointRequest, context: grpc.ServicerContext
    ) -> pb.TestWebhookEndpointResponse:
        """Have a test sent."""
        note_id("webhook_endpoint_id", request.webhook_endpoint_id)
        mutation = self._service.test_endpoint(call_of(request), request.webhook_endpoint_id)
        return pb.TestWebhookEndpointResponse(
            webhook_delivery=convert.webhook_delivery(mutation.value), revision=mutation.revision.encode()
        )


def _fields(message: WebhookEndpointMessage) -> WebhookFields:
    """Return what a message says an endpoint should be. Raises Refusal (FIELD_INVALID)."""
    return WebhookFields(
        url=message.url,
        description=message.description,
        event_types=list(message.event_types),
        state=convert.WEBHOOK_STATE.to_domain("webhook_endpoint.state", message.state),
    )
