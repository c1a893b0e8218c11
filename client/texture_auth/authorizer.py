"""The one call that adopters make."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import grpc

from texture_auth.asking import Call, Steps
from texture_auth.base import DEFAULT_TIMEOUT, AuthorizerBase
from texture_auth.connection import Connection
from texture_auth.decision import Context, Decision, Question

__all__ = ["DEFAULT_TIMEOUT", "Authorizer", "Authorizes"]

_T = TypeVar("_T")


class Authorizes(Protocol):
    """What answers questions: an Authorizer, or what stands for one in a test."""

    def authorize(
        self,
        api_key: str,
        permission: str,
        device_id: str = "",
        context: Context | None = None,
        *,
        timeout: float | None = None,
        at_least_revision: str = "",
    ) -> Decision:
        """Answer one question. Never raises for what the service or the network does: that is a Decision, and a no."""

    def authorize_many(
        self, questions: Sequence[Question], *, timeout: float | None = None, at_least_revision: str = ""
    ) -> list[Decision]:
        """Answer up to 1,000 questions from one snapshot, in order. Raises ValueError for more."""


class Authorizer(AuthorizerBase[grpc.Channel]):
    """Asks the service, and fails closed. One serves a whole process: any number of threads may ask it."""

    def authorize(
        self,
        api_key: str,
        permission: str,
        device_id: str = "",
        context: Context | None = None,
        *,
        timeout: float | None = None,
        at_least_revision: str = "",
    ) -> Decision:
        """Answer one question: may the holder of `api_key` exercise `permission` on `device_id`?

        Whatever the service or the network does is a Decision, and any but ALLOWED is a no. `timeout` is in seconds:
        the answer takes no longer than that, than what is left of the surrounding `deadline`, or than the authorizer's
        own. `at_least_revision` is a revision that this answer alone must reflect.
        """
        return self._run(self._asking.one(api_key, permission, device_id, context, timeout, at_least_revision))

    def authorize_many(
        self, questions: Sequence[Question], *, timeout: float | None = None, at_least_revision: str = ""
    ) -> list[Decision]:
        """Answer up to 1,000 questions from one snapshot, in order. Raises ValueError for more.

        One that is wrong is UNANSWERED and spoils no other. An error of the call is all of theirs.
        """
        return self._run(self._asking.many(questions, timeout, at_least_revision))

    def close(self) -> None:
        """Close the connections. What is asked from now on is unanswered."""
        for channel in self._shut():
            channel.close()

    def _run(self, steps: Steps[_T]) -> _T:
        try:
            call = next(steps)
            while True:
                call = steps.send(self._reply(call))
        except StopIteration as done:
            result: _T = done.value
            return result

    def _reply(self, call: Call) -> Any:
        try:
            stub = self._stub()
            method = stub.BatchAuthorize if call.batch else stub.Authorize
            return method(call.request, timeout=call.seconds, metadata=call.metadata)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            return error

    def _new_channel(self, connection: Connection) -> grpc.Channel:
        return connection.open()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
