"""The authorizer of asyncio, against a server that answers as it is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as pb
from texture_auth import AsyncAuthorizer, Outcome, Question, deadline

from tests.client.scripted import ALLOW, DENY, Scripted, failing, scripted_server


@pytest.fixture(scope="module")
def shared() -> Iterator[Scripted]:
    with scripted_server() as server:
        yield server


@pytest.fixture
def server(shared: Scripted) -> Scripted:
    shared.asked.clear()
    shared.answer = lambda _request, _context: ALLOW
    return shared


def waiting(asked: threading.Event, over: threading.Event) -> Callable[[Any, grpc.ServicerContext], Any]:
    """Say that the question has come, and answer when it is over."""

    def answer(_request: Any, _context: grpc.ServicerContext) -> Any:
        asked.set()
        over.wait(30)
        return ALLOW

    return answer


def test_one_and_many_are_answered_as_by_the_blocking_one(server: Scripted) -> None:
    def answer(request: object, _context: grpc.ServicerContext) -> object:
        if isinstance(request, pb.AuthorizeRequest):
            return ALLOW if request.api_key == "good" else DENY
        return pb.BatchAuthorizeResponse(answers=[pb.BatchAnswer(answer=DENY), pb.BatchAnswer(answer=ALLOW)])

    server.answer = answer

    async def ask() -> None:
        async with AsyncAuthorizer(server.address, caller_key="svc") as authorizer:
            assert await authorizer.authorize("good", "devices:read", "d")
            assert (await authorizer.authorize("bad", "devices:read", "d")).reason == "KEY_REVOKED"
            two = [Question(api_key="k", permission="devices:read", device_id="d")] * 2
            assert [bool(each) for each in await authorizer.authorize_many(two)] == [False, True]
            with pytest.raises(ValueError, match="questions"):
                await authorizer.authorize_many(two * 501)
            with deadline(-1):
                assert not await authorizer.authorize("good", "devices:read", "d")
            counters = authorizer.counters
            assert (counters.allowed, counters.denied, counters.unanswered) == (2, 2, 1)
        assert (await authorizer.authorize("good", "devices:read", "d")).reason == "CLIENT_FAULT"

    asyncio.run(ask())
    assert server.metadata[-1]["authorization"] == "Bearer svc"


def test_errors_are_answers_with_their_code(server: Scripted) -> None:
    server.answer = failing(grpc.StatusCode.CANCELLED, "by the server")

    async def ask() -> None:
        async with AsyncAuthorizer(server.address) as authorizer:
            decision = await authorizer.authorize("k", "devices:read", "d")
            assert (decision.outcome, decision.code) == (Outcome.UNANSWERED, grpc.StatusCode.CANCELLED)
            assert decision.message == "by the server"

    asyncio.run(ask())


def test_an_answer_that_does_not_come_in_time_is_a_no(server: Scripted) -> None:
    over = threading.Event()
    server.answer = waiting(threading.Event(), over)

    async def ask() -> None:
        async with AsyncAuthorizer(server.address, timeout=0.2) as authorizer:
            decision = await authorizer.authorize("k", "devices:read", "d")
            assert decision.code is grpc.StatusCode.DEADLINE_EXCEEDED

    asyncio.run(ask())
    over.set()


def test_a_task_that_is_cancelled_stays_cancelled(server: Scripted) -> None:
    asked, over = threading.Event(), threading.Event()
    server.answer = waiting(asked, over)

    async def ask() -> None:
        async with AsyncAuthorizer(server.address, timeout=30) as authorizer:
            task = asyncio.create_task(authorizer.authorize("k", "devices:read", "d"))
            await asyncio.to_thread(asked.wait)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert task.cancelled()
            assert authorizer.counters.unanswered == 0

    asyncio.run(ask())
    over.set()


def test_a_question_whose_connection_is_closed_under_it_is_answered_no_and_its_task_goes_on(server: Scripted) -> None:
    asked, over = threading.Event(), threading.Event()
    server.answer = waiting(asked, over)

    async def ask() -> None:
        authorizer = AsyncAuthorizer(server.address, timeout=30)
        task = asyncio.create_task(authorizer.authorize("k", "devices:read", "d"))
        await asyncio.to_thread(asked.wait)
        await authorizer.close()
        assert (await task).outcome is Outcome.UNANSWERED

    asyncio.run(ask())
    over.set()
