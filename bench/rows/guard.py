"""What the interceptor of the client library costs a call, beside the question itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from types import SimpleNamespace
from typing import Any

import grpc
from device_api import devices_pb2 as pb
from device_api.devices_pb2_grpc import DeviceApiStub, add_DeviceApiServicer_to_server
from texture_auth import Decision, Outcome, Question
from texture_auth.guard import Guard
from texture_auth.rules import Rule

from bench.load import WrongAnswer
from bench.report import Row
from bench.rounds import interleaved, spread
from bench.workshop import Workshop

_DEVICE = "home-battery-1"
_SERVICE = pb.DESCRIPTOR.services_by_name["DeviceApi"]
_RULES = {
    f"/{_SERVICE.full_name}/{name}": Rule("devices:list")
    if name == "ListDevices"
    else Rule("devices:read", device="device_id")
    for name in _SERVICE.methods_by_name
}
_METADATA = (("texture-api-key", "of a customer"),)
_YES = Decision(outcome=Outcome.ALLOWED, reason="PERMITTED", http_status_code=200)


class _Yes:
    """Answers at once, so that nothing is measured but the guard."""

    def authorize(self, *_asked: Any, **_more: Any) -> Decision:
        """Say yes."""
        return _YES

    def authorize_many(self, questions: Sequence[Question], **_more: Any) -> list[Decision]:
        """Say yes to each."""
        return [_YES] * len(questions)


def _get_device(request: pb.GetDeviceRequest, _: grpc.ServicerContext) -> pb.Device:
    return pb.Device(device_id=request.device_id)


# A servicer of which one method is called, and the others are there.
_DEVICE_API: Any = SimpleNamespace(**dict.fromkeys(_SERVICE.methods_by_name, _get_device))


def rows(workshop: Workshop) -> list[Row]:
    """Compare a server with the interceptor to the same one without."""
    scale = workshop.scale
    with ThreadPoolExecutor(8) as threads:
        guarded = Guard(_Yes(), _RULES).server(threads)
        with _calling(guarded) as with_guard, _calling(grpc.server(threads)) as without:
            arms = {"with": with_guard, "without": without}
            for arm in arms.values():
                arm(scale.seconds / 5)
            times = interleaved(scale.rounds, {name: partial(arm, scale.seconds) for name, arm in arms.items()})
    added = [one - other for one, other in zip(times["with"], times["without"], strict=True)]
    whole = sorted(times["without"])[len(times["without"]) // 2]
    return [
        Row(
            name="14",
            what="what the interceptor adds to a call, but for the question",
            unit="µs",
            found=spread(added),
            absolute=f"to {whole:.0f} µs of a call of a stub to a server in one process",
            why="it finds the rule, the device and the key, makes the context, counts the verdict, has the decision "
            "at hand for the handler.",
        )
    ]


@contextmanager
def _calling(server: grpc.Server) -> Iterator[Callable[[float], float]]:
    """Serve, and yield what makes calls for so many seconds and returns the microseconds of one."""
    add_DeviceApiServicer_to_server(_DEVICE_API, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
            yield partial(_time_of_a_call, DeviceApiStub(channel))
    finally:
        server.stop(None).wait()


def _time_of_a_call(stub: Any, seconds: float) -> float:
    request = pb.GetDeviceRequest(device_id=_DEVICE)
    count, began = 0, time.perf_counter()
    until = began + seconds
    while time.perf_counter() < until:
        if stub.GetDevice(request, metadata=_METADATA).device_id != _DEVICE:
            raise WrongAnswer("a call that must be let through was not")
        count += 1
    return 1e6 * (time.perf_counter() - began) / count
