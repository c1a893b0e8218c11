"""DeviceService."""

from __future__ import annotations

import grpc
from texture.auth.v1 import device_service_pb2 as pb
from texture.auth.v1 import device_service_pb2_grpc

from server.service.devices import DeviceService, Registration
from server.wire import convert
from server.wire.rpc import call_of, note


class DeviceServicer(device_service_pb2_grpc.DeviceServiceServicer):
    """DeviceService, as `device_service.proto` describes it."""

    def __init__(self, service: DeviceService) -> None:
        self._service = service

    def RegisterDevices(
        self, request: pb.RegisterDevicesRequest, context: grpc.ServicerContext
    ) -> pb.RegisterDevicesResponse:
        """Record devices."""
        note(devices=len(request.devices))
        mutation = self._service.register_devices(
            call_of(request),
            request.workspace_id,
            [Registration(device.device_id, device.reference_id, device.manufacturer) for device in request.devices],
        )
        return pb.RegisterDevicesResponse(
            devices=[convert.device(device) for device in mutation.value], revision=mutation.revision.encode()
        )

    def GetDevice(self, request: pb.GetDeviceRequest, context: grpc.ServicerContext) -> pb.GetDeviceResponse:
        """Return a device."""
        return pb.GetDeviceResponse(device=convert.device(self._service.get_device(request.device_id)))

    def ListDevices(self, request: pb.ListDevicesRequest, context: grpc.ServicerContext) -> pb.ListDevicesResponse:
        """List the devices of a workspace."""
        listing = self._service.list_devices(
            request.workspace_id,
            request.reference_id,
            request.manufacturers,
            request.page_size,
            request.page_token,
        )
        return pb.ListDevicesResponse(
            devices=[convert.device(device) for device in listing.rows], next_page_token=listing.next_page_token
        )

    def TransferDevices(
        self, request: pb.TransferDevicesRequest, context: grpc.ServicerContext
    ) -> pb.TransferDevicesResponse:
        """Give devices to another end user."""
        note(devices=len(request.device_ids))
        mutation = self._service.transfer_devices(
            call_of(request),
            request.workspace_id,
            request.reference_id,
            request.device_ids,
            request.new_workspace_id,
            request.new_reference_id,
        )
        return pb.TransferDevicesResponse(
            devices=[convert.device(device) for device in mutation.value],
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )

    def RemoveDevices(
        self, request: pb.RemoveDevicesRequest, context: grpc.ServicerContext
    ) -> pb.RemoveDevicesResponse:
        """Forget devices."""
        note(devices=len(request.device_ids))
        mutation = self._service.remove_devices(
            call_of(request), request.workspace_id, request.device_ids, request.allow_missing
        )
        removed, remove_time = mutation.value
        return pb.RemoveDevicesResponse(
            removed_device_ids=removed,
            remove_time=convert.timestamp(remove_time),
            revision=mutation.revision.encode(),
            propagation=convert.propagation(mutation.propagation),
        )
