"""What the Python client costs: its call against that of a bare stub, in this process."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from functools import partial

import grpc
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub
from texture_auth import AsyncAuthorizer, Authorizer

from bench import facts, machine, processes
from bench.facts import Facts
from bench.load import WrongAnswer
from bench.report import Row
from bench.rounds import interleaved, spread
from bench.workshop import Workshop

_IN_FLIGHT = 8
_SECONDS = 5.0


def rows(workshop: Workshop) -> list[Row]:
    """Compare one call in flight from a thread, and eight from coroutines."""
    scale = workshop.scale
    store = workshop.store(scale.small)
    with ExitStack() as stack:
        server = stack.enter_context(processes.serving(store))
        stack.enter_context(machine.on(machine.LOAD_CORES))
        return [
            _row("1 call in flight", workshop, _blocking(server.address, store, stack)),
            _row(f"asyncio, {_IN_FLIGHT} calls in flight", workshop, _coroutines(server.address, store)),
        ]


def _row(shape: str, workshop: Workshop, arms: dict[str, Callable[[float], float]]) -> Row:
    scale = workshop.scale
    for arm in arms.values():
        arm(scale.seconds / 5)
    rates = interleaved(scale.rounds, {name: partial(arm, scale.seconds) for name, arm in arms.items()})
    ours, bare = (sorted(rates[name])[len(rates[name]) // 2] for name in ("client", "bare"))
    return Row(
        name="13",
        what=f"Authorizer.authorize : a bare stub's call, {shape}",
        unit="ratio",
        found=spread([one / other for one, other in zip(rates["client"], rates["bare"], strict=True)]),
        floor=0.9,
        absolute=f"{ours:,.0f} : {bare:,.0f} a second",
        why=f"a call takes {1e6 / ours:.0f} µs against {1e6 / bare:.0f}; most of both is Python's own gRPC.",
    )


def _blocking(address: str, store: Facts, stack: ExitStack) -> dict[str, Callable[[float], float]]:
    stub = AuthorizeServiceStub(stack.enter_context(grpc.insecure_channel(address)))
    key = store.bearer.read_text().strip()
    metadata = (("authorization", f"Bearer {key}"),)
    authorizer = stack.enter_context(Authorizer(address, caller_key=key, timeout=_SECONDS))
    api_key, permission, device_id = store.api_key(0), facts.PERMISSIONS[0], store.device_id(1)

    def bare() -> bool:
        request = pb.AuthorizeRequest(api_key=api_key, permission=permission, device_id=device_id)
        answer = stub.Authorize(request, timeout=_SECONDS, metadata=metadata)
        return answer.decision == pb.DECISION_ALLOW

    def client() -> bool:
        return authorizer.authorize(api_key, permission, device_id).allowed

    return {"client": partial(_rate, client), "bare": partial(_rate, bare)}


def _rate(ask: Callable[[], bool], seconds: float) -> float:
    count, began = 0, time.perf_counter()
    until = began + seconds
    while time.perf_counter() < until:
        if not ask():
            raise WrongAnswer("a question that must be answered ALLOW was not")
        count += 1
    return count / (time.perf_counter() - began)


def _coroutines(address: str, store: Facts) -> dict[str, Callable[[float], float]]:
    key = store.bearer.read_text().strip()
    metadata = (("authorization", f"Bearer {key}"),)
    api_key, permission, device_id = store.api_key(0), facts.PERMISSIONS[0], store.device_id(1)

    async def bare(seconds: float) -> float:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = AuthorizeServiceStub(channel)

            async def ask() -> bool:
                request = pb.AuthorizeRequest(api_key=api_key, permission=permission, device_id=device_id)
                answer = await stub.Authorize(request, timeout=_SECONDS, metadata=metadata)
                return answer.decision == pb.DECISION_ALLOW

            return await _rate_of_many(ask, seconds)

    async def client(seconds: float) -> float:
        async with AsyncAuthorizer(address, caller_key=key, timeout=_SECONDS) as authorizer:

            async def ask() -> bool:
                return (await authorizer.authorize(api_key, permission, device_id)).allowed

            return await _rate_of_many(ask, seconds)

    return {
        "client": lambda seconds: asyncio.run(client(seconds)),
        "bare": lambda seconds: asyncio.run(bare(seconds)),
    }


async def _rate_of_many(ask: Callable[[], Awaitable[bool]], seconds: float) -> float:
    if not await ask():  # which also connects
        raise WrongAnswer("a question that must be answered ALLOW was not")
    began = time.perf_counter()
    until = began + seconds

    async def one() -> int:
        count = 0
        while time.perf_counter() < until:
            if not await ask():
                raise WrongAnswer("a question that must be answered ALLOW was not")
            count += 1
        return count

    counts = await asyncio.gather(*(one() for _ in range(_IN_FLIGHT)))
    return sum(counts) / (time.perf_counter() - began)
