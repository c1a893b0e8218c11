"""What was concluded from facts, kept for as long as they stand, so that nothing is worked out twice."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from datetime import datetime
from hashlib import blake2b
from typing import Generic, TypeVar

from server.service.facts import Fact, FactCache

T = TypeVar("T")

# A digest of 128 bits under a key that nobody knows: no two questions are ever taken for one another.
_DIGEST_BYTES = 16


class Conclusion(Generic[T]):
    """A `value` that follows from facts until an instant; None means that time alone never changes it."""

    __slots__ = ("grounds", "valid_until", "value")

    def __init__(self, value: T, grounds: tuple[Fact, ...], valid_until: datetime | None) -> None:
        self.value = value
        self.grounds = grounds
        self.valid_until = valid_until


class Memo(Generic[T]):
    """The last `most` conclusions, by what was asked. Safe for use by many threads; a hit takes no lock.

    What was asked may hold a secret, so it is not kept: a keyed digest stands for it.

    A conclusion that is found follows from live facts. Whether they are current is for whoever asks to make sure, as of
    facts themselves: `applied` is looked up before, and `still` asked after (CONSISTENCY rule 5).
    """

    def __init__(self, cache: FactCache, clock: Callable[[], datetime], most: int) -> None:
        self._cache = cache
        self._clock = clock
        self._most = most
        self._secret = secrets.token_bytes(32)
        self._lock = threading.Lock()
        self._conclusions: dict[bytes, Conclusion[T]] = {}

    def find(self, asked: bytes) -> Conclusion[T] | None:
        """Return what was concluded, if it stands on live facts; its time may be over."""
        found = self._conclusions.get(self._digest(asked))
        if found is not None:
            for fact in found.grounds:
                if not fact.live:
                    return None
                fact.used = True
        return found

    def current(self, asked: bytes) -> Conclusion[T] | None:
        """Return what was concluded, if it is so now. Raises StoreUnavailable."""
        applied = self._cache.applied
        found = self.find(asked)
        if found is None or (found.valid_until is not None and self._clock() >= found.valid_until):
            return None
        return found if self._cache.still(applied) else None

    def keep(self, asked: bytes, conclusion: Conclusion[T]) -> None:
        """Remember what was concluded, in place of what was before."""
        digest = self._digest(asked)
        with self._lock:
            self._conclusions.pop(digest, None)
            self._conclusions[digest] = conclusion
            while len(self._conclusions) > self._most:
                del self._conclusions[next(iter(self._conclusions))]

    def _digest(self, asked: bytes) -> bytes:
        return blake2b(asked, digest_size=_DIGEST_BYTES, key=self._secret).digest()
