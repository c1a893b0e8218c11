"""UsageService."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import grpc
from texture.auth.v1 import authorize_service_pb2, usage_service_pb2_grpc
from texture.auth.v1 import usage_service_pb2 as pb

from server.domain.reasons import Reason
from server.domain.usage import Touch, Use
from server.service.usage import UsageService
from server.wire import convert
from server.wire.rpc import note_id


class UsageServicer(usage_service_pb2_grpc.UsageServiceServicer):
    """UsageService, as `usage_service.proto` describes it."""

    def __init__(self, service: UsageService) -> None:
        self._service = service

    def GetKeyUsage(self, request: pb.GetKeyUsageRequest, context: grpc.ServicerContext) -> pb.GetKeyUsageResponse:
        """Tell what a key was used for."""
        note_id("key_id", request.key_id)
        found = self._service.get_key_usage(
            request.key_id,
            convert.instant(request, "start_time", "start_time"),
            convert.instant(request, "end_time", "end_time"),
            request.page_size,
            request.page_token,
        )
        return pb.GetKeyUsageResponse(
            hours=map(_use, found.hours.rows),
            next_page_token=found.hours.next_page_token,
            totals=map(_use, found.totals),
            last_use_time=None if found.last_use is None else convert.timestamp(found.last_use.time),
            incomplete=not found.complete,
        )

    def ListKeyDevices(
        self, request: pb.ListKeyDevicesRequest, context: grpc.ServicerContext
    ) -> pb.ListKeyDevicesResponse:
        """List the devices that a key has touched."""
        note_id("key_id", request.key_id)
        found = self._service.list_key_devices(request.key_id, request.page_size, request.page_token)
        return pb.ListKeyDevicesResponse(
            touches=_touches(found.listing.rows),
            next_page_token=found.listing.next_page_token,
            incomplete=not found.complete,
        )

    def ListDeviceKeys(
        self, request: pb.ListDeviceKeysRequest, context: grpc.ServicerContext
    ) -> pb.ListDeviceKeysResponse:
        """List the keys that have touched a device."""
        found = self._service.list_device_keys(request.device_id, request.page_size, request.page_token)
        return pb.ListDeviceKeysResponse(
            touches=_touches(found.listing.rows),
            next_page_token=found.listing.next_page_token,
            incomplete=not found.complete,
        )


def _use(use: Use) -> pb.KeyUse:
    bucket, span = use.bucket, use.span
    allowed = bucket.reason is Reason.PERMITTED
    return pb.KeyUse(
        hour_time=convert.timestamp(bucket.hour),
        generation=bucket.generation,
        caller_id=bucket.caller_id,
        permission=bucket.permission,
        decision=authorize_service_pb2.DECISION_ALLOW if allowed else authorize_service_pb2.DECISION_DENY,
        reason=convert.REASON.to_proto(bucket.reason),
        count=span.count,
        first_time=convert.timestamp(span.first_time),
        last_time=convert.timestamp(span.last_time),
        secret_replaced=bucket.retiring,
    )


def _touches(touches: Iterable[Touch]) -> Iterator[pb.DeviceTouch]:
    for touch in touches:
        yield pb.DeviceTouch(
            key_id=touch.key_id,
            device_id=touch.device_id,
            count=touch.span.count,
            first_time=convert.timestamp(touch.span.first_time),
            last_time=convert.timestamp(touch.span.last_time),
        )
