"""The one call that adopters make."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Protocol, Self

import grpc
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub

from texture_auth.answers import decision_of, decision_of_error, request_of
from texture_auth.decision import Context, Decision, Question

DEFAULT_TIMEOUT = 1.0


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
        """Answer up to 1,000 questions from one snapshot, in order."""


class Authorizer:
    """Asks the service, and fails closed."""

    def __init__(self, target: str, *, caller_key: str = "", timeout: float = DEFAULT_TIMEOUT) -> None:
        self._channel = grpc.insecure_channel(target)
        self._stub = AuthorizeServiceStub(self._channel)
        self._metadata = (("authorization", f"Bearer {caller_key}"),)
        self._timeout = timeout

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
        """Answer one question: may the holder of `api_key` exercise `permission` on `device_id`?"""
        request = request_of(api_key, permission, device_id, context, at_least_revision)
        try:
            answer = self._stub.Authorize(request, timeout=timeout or self._timeout, metadata=self._metadata)
        except grpc.RpcError as error:
            return decision_of_error(error)
        return decision_of(answer)

    def authorize_many(
        self, questions: Sequence[Question], *, timeout: float | None = None, at_least_revision: str = ""
    ) -> list[Decision]:
        """Answer many questions."""
        return [
            self.authorize(
                question.api_key,
                question.permission,
                question.device_id,
                question.context,
                timeout=timeout,
                at_least_revision=at_least_revision,
            )
            for question in questions
        ]

    def close(self) -> None:
        """Close the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
