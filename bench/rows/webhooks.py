"""What it costs decisions that webhooks which have piled up are sent meanwhile."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import grpc
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import device_service_pb2, webhook_service_pb2
from texture.auth.v1.webhook_pb2 import (
    WEBHOOK_ENDPOINT_STATE_ACTIVE,
    WEBHOOK_ENDPOINT_STATE_DISABLED,
    WebhookEndpoint,
    WebhookEndpointState,
)

from bench import load, processes
from bench.facts import WORKSPACE, Facts
from bench.load import Measured
from bench.processes import Running
from bench.report import Row
from bench.rounds import interleaved, middle, ratio, spread
from bench.workshop import Workshop
from tests.harness import Client
from tests.operate.certificates import Authority
from tests.webhooks.receiver import HOST, Receiver, receiving

_SHAPES = {1: "1 call in flight", 8: "8 calls in flight"}
_WHAT = "Authorize, webhooks that have piled up being sent : none"
# More than are sent in a second of a round, and how long a round is at it besides what it measures.
_A_SECOND = 200
_BESIDES_SECONDS = 1.0
_DEVICES_AT_ONCE = 1000


def rows(workshop: Workshop) -> list[Row]:
    """Compare a server that sends webhooks as fast as it will with itself while their endpoint is disabled."""
    scale = workshop.scale
    store = workshop.new_store(scale.small)
    folder = workshop.folder / "webhooks"
    folder.mkdir()
    authority = Authority(folder)
    trusting: Any = {"TEXTURE_AUTH_WEBHOOK_PRIVATE_HOSTS": HOST, "TEXTURE_AUTH_WEBHOOK_CA": str(authority.certificate)}
    with (
        receiving(authority.issue("receiver", hosts=(HOST,))) as receiver,
        processes.serving(store, **trusting) as server,
        _client(server, store) as asked,
    ):
        switch = _endpoint(asked, receiver)
        a_round = scale.seconds * 1.2 + _BESIDES_SECONDS
        piled_up = _pile_up(asked, math.ceil(len(_SHAPES) * scale.rounds * a_round * _A_SECOND))
        arms = {name: (server, workshop.questions(store, [(0, 1)])) for name in ("sending", "quiet")}
        load.call(*arms["quiet"], scale.warm)
        found = []
        for concurrency, shape in _SHAPES.items():
            calls = load.arms(arms, concurrency, scale.seconds)
            rates: list[float] = []
            calls["sending"] = partial(_while_sending, calls["sending"], switch, receiver, piled_up, rates)
            measured = interleaved(scale.rounds, calls)
            found.append(_row(shape, measured["sending"], measured["quiet"], spread(rates).middle))
    return found


def _row(shape: str, sending: list[Measured], quiet: list[Measured], webhooks: float) -> Row:
    rates, middles, slowest = (
        " : ".join(f"{middle(each, what):,.{digits}f}" for each in (sending, quiet))
        for what, digits in (
            (lambda one: one.rate, 0),
            (lambda one: one.p50 / 1000, 2),
            (lambda one: one.p99 / 1000, 2),
        )
    )
    return Row(
        name="16",
        what=f"{_WHAT}, {shape}",
        unit="ratio",
        found=ratio(sending, quiet),
        absolute=f"{rates} a second, beside {webhooks:,.0f} webhooks a second; p50 {middles} ms, p99 {slowest} ms",
        why="each webhook is a connection of its own, by TLS, to an address that was just looked at. They share the "
        "server's core with decisions, and the receiver the generator's. One endpoint is sent 8 at a time at most, "
        "every 50 ms, and what came of them is stored by one transaction.",
    )


def _while_sending(
    measure: Callable[[], Measured],
    switch: Callable[[WebhookEndpointState.ValueType], None],
    receiver: Receiver,
    piled_up: int,
    rates: list[float],
) -> Measured:
    """Measure while the endpoint is active, and note how many webhooks a second came meanwhile."""
    before = len(receiver.received)
    switch(WEBHOOK_ENDPOINT_STATE_ACTIVE)
    receiver.wait_for(before + 1)
    before, began = len(receiver.received), time.monotonic()
    measured = measure()
    came = len(receiver.received)
    rates.append((came - before) / (time.monotonic() - began))
    switch(WEBHOOK_ENDPOINT_STATE_DISABLED)
    if came >= piled_up:
        raise RuntimeError("all webhooks were sent before the round was over")
    return measured


@contextmanager
def _client(server: Running, store: Facts) -> Iterator[Client]:
    with grpc.insecure_channel(server.address) as channel:
        yield Client(channel, store.bearer.read_text())


def _endpoint(asked: Client, receiver: Receiver) -> Callable[[WebhookEndpointState.ValueType], None]:
    """Make an endpoint that is disabled, and return what changes its state."""
    request = webhook_service_pb2.CreateWebhookEndpointRequest(
        workspace_id=WORKSPACE, url=receiver.url, event_types=["device.registered"]
    )
    endpoint_id = asked.webhooks.CreateWebhookEndpoint(request).webhook_endpoint.webhook_endpoint_id

    def switch(state: WebhookEndpointState.ValueType) -> None:
        changed = WebhookEndpoint(webhook_endpoint_id=endpoint_id, state=state)
        asked.webhooks.UpdateWebhookEndpoint(
            webhook_service_pb2.UpdateWebhookEndpointRequest(
                webhook_endpoint=changed, update_mask=FieldMask(paths=["state"])
            )
        )

    switch(WEBHOOK_ENDPOINT_STATE_DISABLED)
    return switch


def _pile_up(asked: Client, count: int) -> int:
    """Have at least so many events recorded that the endpoint is to be told of; return how many."""
    portions = math.ceil(count / _DEVICES_AT_ONCE)
    for portion in range(portions):
        devices = [
            device_service_pb2.DeviceRegistration(device_id=f"new-{portion}-{number}", reference_id="end-user-new")
            for number in range(_DEVICES_AT_ONCE)
        ]
        asked.devices.RegisterDevices(
            device_service_pb2.RegisterDevicesRequest(workspace_id=WORKSPACE, devices=devices)
        )
    return portions * _DEVICES_AT_ONCE
