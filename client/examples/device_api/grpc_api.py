"""The API over gRPC. What each method needs stands in RULES, and nowhere else."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from texture_auth import Authorizes
from texture_auth.guard import Guard
from texture_auth.rules import Rule
from texture_auth.verdicts import current_decision

from device_api import devices_pb2 as pb
from device_api.devices_pb2_grpc import DeviceApiServicer, add_DeviceApiServicer_to_server
from device_api.store import Device, Store

RULES = {
    "/device_api.v1.DeviceApi/ListDevices": Rule("devices:list"),
    "/device_api.v1.DeviceApi/GetDevice": Rule("devices:read", device="device_id"),
    "/device_api.v1.DeviceApi/SendCommand": Rule("devices:command", device="device_id"),
    "/device_api.v1.DeviceApi/WatchDevice": Rule("devices:read", device="device_id"),
}


class DeviceApi(DeviceApiServicer):
    """Runs only for who may: it never looks at a key."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def ListDevices(self, request: pb.ListDevicesRequest, context: grpc.ServicerContext) -> pb.ListDevicesResponse:
        """Return the devices that the decision's scope admits."""
        decision = current_decision()
        scope = None if decision is None else decision.device_scope
        found = () if scope is None else self._store.within(scope)
        return pb.ListDevicesResponse(devices=map(_message, found))

    def GetDevice(self, request: pb.GetDeviceRequest, context: grpc.ServicerContext) -> pb.Device:
        """Return a device."""
        return _message(self._store.get(request.device_id))

    def SendCommand(self, request: pb.SendCommandRequest, context: grpc.ServicerContext) -> pb.SendCommandResponse:
        """Tell a device what to do."""
        self._store.command(request.device_id, request.command)
        return pb.SendCommandResponse(device_id=request.device_id, command=request.command)

    def WatchDevice(self, request: pb.WatchDeviceRequest, context: grpc.ServicerContext) -> Iterator[pb.Device]:
        """Tell how a device is doing, for as long as the caller may know."""
        for device in self._store.states(request.device_id):
            if not context.is_active():
                return
            if device is not None:
                yield _message(device)


def make_server(store: Store, authorizer: Authorizes) -> grpc.Server:
    """Return a server, which does not start while RULES leave out a method that it serves."""
    guard = Guard(authorizer, RULES, recheck_seconds=1)
    server = guard.server(ThreadPoolExecutor(max_workers=16))
    add_DeviceApiServicer_to_server(DeviceApi(store), server)
    return server


def _message(device: Device) -> pb.Device:
    return pb.Device(**device.public())
