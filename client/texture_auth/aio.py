"""The one call, for asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from texture_auth.asking import Call, Steps
from texture_auth.base import AuthorizerBase
from texture_auth.connection import Connection
from texture_auth.decision import Context, Decision, Question

__all__ = ["AsyncAuthorizer", "AuthorizesAsync"]

_T = TypeVar("_T")


class AuthorizesAsync(Protocol):
    """What answers questions in coroutines: an AsyncAuthorizer, or what stands for one in a test."""

    async def authorize(
        self,
        api_key: str,
        permission: str,
        device_id: str = "",
        context: Context | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC keeps it
        at_least_revision: str = "",
    ) -> Decision:
        """As Authorizes has it."""

    async def authorize_many(
        self,
        questions: Sequence[Question],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC keeps it
        at_least_revision: str = "",
    ) -> list[Decision]:
        """As Authorizes has it."""


class AsyncAuthorizer(AuthorizerBase[grpc.aio.Channel]):
    """Asks the service as an Authorizer does, for the coroutines of one event loop: that of the first question."""

    async def authorize(
        self,
        api_key: str,
        permission: str,
        device_id: str = "",
        context: Context | None = None,
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC keeps it
        at_least_revision: str = "",
    ) -> Decision:
        """Answer one question, as `Authorizer.authorize` does. A task that is cancelled meanwhile stays cancelled."""
        return await self._run(self._asking.one(api_key, permission, device_id, context, timeout, at_least_revision))

    async def authorize_many(
        self,
        questions: Sequence[Question],
        *,
        timeout: float | None = None,  # noqa: ASYNC109 - gRPC keeps it
        at_least_revision: str = "",
    ) -> list[Decision]:
        """Answer up to 1,000 questions, as `Authorizer.authorize_many` does."""
        return await self._run(self._asking.many(questions, timeout, at_least_revision))

    async def close(self) -> None:
        """Close the connections. What is asked from now on is unanswered, and so is what is being asked."""
        for channel in self._shut():
            await channel.close()

    async def _run(self, steps: Steps[_T]) -> _T:
        try:
            call = next(steps)
            while True:
                call = steps.send(await self._reply(call))
        except StopIteration as done:
            result: _T = done.value
            return result

    async def _reply(self, call: Call) -> Any:
        try:
            stub = self._stub()
            method = stub.BatchAuthorize if call.batch else stub.Authorize
            return await method(call.request, timeout=call.seconds, metadata=call.metadata)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if task is None or task.cancelling():
                raise
            # The channel was closed under the call, and the task has more to do.
            return error
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            return error

    def _new_channel(self, connection: Connection) -> grpc.aio.Channel:
        return connection.open_async()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()
