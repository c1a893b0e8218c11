"""Load on a server whose database goes away: what was acknowledged is remembered, and what must not be is noted."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import grpc
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER

from tests.harness import Client, Refused, as_refused
from tests.operate.process import DEADLINE_SECONDS
from tests.wire.links_helpers import WORKSPACE

AUTHORIZERS = 3
ADMINISTRATORS = 3
# What a client waits for an answer, on a busy machine. The answer must be the server's own, so it must come before.
CLIENT_SECONDS = 10.0
_PAUSE = 0.03


@dataclass
class Known:
    """A key whose creation was acknowledged. `revoking` is set before anybody asks for its revocation, `revoked`
    when that was acknowledged.
    """

    key_id: str
    api_key: str
    revoking: threading.Event = field(default_factory=threading.Event)
    revoked: threading.Event = field(default_factory=threading.Event)


@dataclass
class Load:
    """Threads that call a server again and again."""

    calling: Client
    known: list[Known] = field(default_factory=list)
    # The request ids of creations, each of which is also the name of the key, and of those whose answer was lost.
    created: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    # What should not have happened.
    faults: list[str] = field(default_factory=list)
    answered: int = 0
    unavailable: int = 0
    _stopping: threading.Event = field(default_factory=threading.Event)
    _counting: threading.Lock = field(default_factory=threading.Lock)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Put the server under load until the block ends, and what was begun is done."""
        with ThreadPoolExecutor(AUTHORIZERS + ADMINISTRATORS) as pool:
            work = [self._authorize] * AUTHORIZERS + [self._administer] * ADMINISTRATORS
            futures = [pool.submit(each) for each in work]
            try:
                yield
            finally:
                self._stopping.set()
            for future in futures:
                future.result(DEADLINE_SECONDS)

    def _attempt(self, method: Callable[..., Any], request: Any) -> Any:
        """Make a call, and return its answer or its error."""
        try:
            answer = method(request, timeout=CLIENT_SECONDS)
        except grpc.RpcError as error:
            refusal = as_refused(error)
            if refusal.reason in ("STORE_UNAVAILABLE", "OUTCOME_UNKNOWN") and refusal.retry_seconds:
                with self._counting:
                    self.unavailable += 1
            elif refusal.reason != "REQUEST_REPEATED":
                self.faults.append(f"{refusal}")
            return refusal
        with self._counting:
            self.answered += 1
        return answer

    def _insist(self, method: Callable[..., Any], request: Any) -> Any:
        """Repeat a call until its answer, or its refusal, is another than that the store is away."""
        while True:
            answer = self._attempt(method, request)
            if not isinstance(answer, Refused) or answer.code is not grpc.StatusCode.UNAVAILABLE:
                return answer
            time.sleep(_PAUSE)

    def _administer(self) -> None:
        while not self._stopping.wait(_PAUSE):
            key = self._create()
            if key is not None and len(self.known) % 2:
                self._revoke(key)

    def _create(self) -> Known | None:
        name = str(uuid4())
        request = key_pb.CreateKeyRequest(
            workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name=name, request_id=name
        )
        answer = self._insist(self.calling.keys.CreateKey, request)
        self.created.append(name)
        if not isinstance(answer, Refused):
            key = Known(answer.key.key_id, answer.api_key)
            self.known.append(key)
            return key
        self.repeated.append(name)
        return None

    def _revoke(self, key: Known) -> None:
        key.revoking.set()
        request = key_pb.RevokeKeyRequest(key_id=key.key_id, request_id=str(uuid4()))
        self._insist(self.calling.keys.RevokeKey, request)
        key.revoked.set()

    def _authorize(self) -> None:
        """Ask about the keys of late. Whoever was revoked when the question was put is denied."""
        while not self._stopping.wait(_PAUSE):
            if not self.known:
                continue
            key = random.choice(self.known[-20:])
            revoked = key.revoked.is_set()
            request = authorize_pb.AuthorizeRequest(api_key=key.api_key, permission="devices:list")
            answer = self._attempt(self.calling.authorize.Authorize, request)
            if isinstance(answer, Refused):
                continue
            allowed = answer.decision == authorize_pb.DECISION_ALLOW
            name = authorize_pb.Reason.Name(answer.reason)
            if allowed and revoked:
                self.faults.append(f"{key.key_id} was allowed after its revocation was acknowledged")
            if not allowed and (name != "REASON_KEY_REVOKED" or not key.revoking.is_set()):
                self.faults.append(f"{key.key_id} was denied as {name}")
