"""Moving secrets to the pepper that signs, as they are used, so that an old pepper can be taken away.

A digest can only be made anew while the whole secret is at hand, and that is while somebody presents it. The digest is
made then; it is stored a moment later by housekeeping, so that no answer waits for a writer.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

import structlog

from server.domain.model import Caller, Generation, Key, KeyState
from server.domain.token import Token, TokenKind
from server.service.base import Resources
from server.store.contract import Writer

REHASH_SECONDS = 1.0
# How many digests wait to be stored at most; what finds no room is offered again at its next use.
MOST_WAITING = 10_000
# How many one transaction stores, so that no writer waits long for it.
AT_ONCE = 200

_log = structlog.get_logger("texture_auth.rehashing")

Owner = TypeVar("Owner", Key, Caller)


@dataclass(frozen=True, slots=True)
class _Place:
    """One secret of one key, of a customer or of a caller."""

    of_caller: bool
    public_id: str
    number: int


@dataclass(frozen=True, slots=True)
class _Move:
    """A generation as it was when its secret was presented, and as it is to be."""

    before: Generation
    after: Generation


class Rehashing:
    """Collects digests under the signing pepper, and stores them. Safe for use by many threads."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._lock = threading.Lock()
        self._waiting: dict[_Place, _Move] = {}
        self._leaving: Collection[str] | None = None

    def offer(self, token: Token, generation: Generation) -> None:
        """Take note of a secret that was right, if it is kept under another pepper than the one that signs."""
        peppers = self._resources.peppers
        if generation.pepper_id == peppers.signing_id or generation.retired(self._resources.clock()):
            return
        place = _Place(token.kind is TokenKind.SERVICE, token.public_id, generation.number)
        with self._lock:
            if place in self._waiting or len(self._waiting) >= MOST_WAITING:
                return
            pepper_id, digest = peppers.digest(token.text)
            self._waiting[place] = _Move(generation, replace(generation, pepper_id=pepper_id, digest=digest))

    def store(self) -> bool:
        """Store a portion of the digests; tell whether there are more. Raises StoreUnavailable; then all still wait."""
        if self._leaving is None:
            self._leaving = left_behind(self._resources)
        with self._lock:
            moves = dict(islice(self._waiting.items(), AT_ONCE))
        wanted = {place: move for place, move in moves.items() if move.before.pepper_id in self._leaving}
        if wanted:
            with self._resources.store.write() as writer:
                _store(writer, wanted)
            self._resources.telemetry.rehashed(len(wanted))
            _log.info("secrets rehashed", count=len(wanted), pepper_id=self._resources.peppers.signing_id)
        with self._lock:
            for place in moves:
                del self._waiting[place]
            return bool(self._waiting)


def left_behind(resources: Resources) -> Collection[str]:
    """Return the peppers that secrets are moved away from: those that are in use when the process starts.

    While a new pepper is being promoted, processes that do not know of that yet have another one that signs. They are
    not to move back what others have moved to the new one: when they started, nothing was under that. One that is
    started with the old order meanwhile does, which costs writes and loses nothing. Raises StoreUnavailable.
    """
    if len(resources.peppers.pepper_ids) == 1:
        return ()
    with resources.store.read() as reader:
        return reader.pepper_usage(resources.clock()).keys() - {resources.peppers.signing_id}


def _store(writer: Writer, moves: dict[_Place, _Move]) -> None:
    """Store those digests whose secrets are still as they were, of keys and callers that are not revoked."""
    stored = writer.keys({place.public_id for place in moves if not place.of_caller})
    keys = [(key, _moved(key, moves)) for key in stored.values() if key.state is not KeyState.REVOKED]
    writer.replace_keys([after for before, after in keys if after != before])
    for public_id in {place.public_id for place in moves if place.of_caller}:
        caller = writer.caller_of_key(public_id)
        if caller is not None and caller.revoke_time is None:
            after = _moved(caller, moves)
            if after != caller:
                writer.replace_caller(after)


def _moved(owner: Owner, moves: dict[_Place, _Move]) -> Owner:
    """Return a key with the digests of its secrets that are as they were; any other has changed meanwhile."""
    generations = []
    for generation in owner.generations:
        move = moves.get(_Place(isinstance(owner, Caller), owner.key_id, generation.number))
        if move is not None and move.before.digest == generation.digest:
            # Only the digest: its overlap may have begun meanwhile.
            generations.append(replace(generation, pepper_id=move.after.pepper_id, digest=move.after.digest))
        else:
            generations.append(generation)
    return replace(owner, generations=tuple(generations))
