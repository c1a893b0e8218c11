"""A store whose transactions are timed."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Generic, TypeVar

from server.service.telemetry import Telemetry
from server.store.contract import Reader, Store, Writer

T = TypeVar("T")


class MeasuredStore:
    """Another store, of whose transactions somebody is told how long they took. Pings are not told of."""

    def __init__(self, store: Store, telemetry: Telemetry) -> None:
        self._store = store
        self._telemetry = telemetry
        # What is no transaction of facts is passed on as it is.
        self.note = store.note
        self.version = store.version
        self.enrol = store.enrol
        self.acknowledge = store.acknowledge
        self.leave = store.leave
        self.fence_silent = store.fence_silent
        self.await_news = store.await_news
        self.ping = store.ping
        self.close = store.close

    def read(self) -> AbstractContextManager[Reader]:
        """Open a snapshot."""
        return _Timed(self._store.read(), self._telemetry.store_read)

    def write(self) -> AbstractContextManager[Writer]:
        """Take the write lock and open a transaction."""
        return _Timed(self._store.write(), self._telemetry.store_write)


class _Timed(Generic[T]):
    """A block that is timed, from the wait to enter it until it is left. A class, since a generator takes longer."""

    __slots__ = ("_block", "_started", "_tell")

    def __init__(self, block: AbstractContextManager[T], tell: Callable[[float], None]) -> None:
        self._block = block
        self._tell = tell
        self._started = 0.0

    def __enter__(self) -> T:
        self._started = time.perf_counter()
        try:
            return self._block.__enter__()
        except BaseException:
            self._tell(time.perf_counter() - self._started)
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        try:
            return self._block.__exit__(kind, error, trace)
        finally:
            self._tell(time.perf_counter() - self._started)
