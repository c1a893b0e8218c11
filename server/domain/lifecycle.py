"""The life of a key: minting, suspending, resuming, revoking, rotating. Each returns the key as it becomes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.kinds import KeyKind
from server.domain.model import Caller, Generation, Key, KeyState
from server.domain.peppers import Peppers
from server.domain.token import TokenKind, mint

MAXIMUM_OVERLAP = timedelta(days=30)
# How many old secrets a key remembers, to say KEY_RETIRED of them; older ones become KEY_UNKNOWN.
KEPT_GENERATIONS = 10


@dataclass(frozen=True, slots=True)
class Minted:
    """A fresh secret: the full key, to be shown once, and the generation that is kept of it."""

    text: str = field(repr=False)
    generation: Generation


@dataclass(frozen=True, slots=True)
class Rotation:
    """What is asked of a rotation. `overlap` of zero ends the old secret at once."""

    overlap: timedelta = timedelta()
    force: bool = False

    @property
    def ends_a_secret(self) -> bool:
        """Tell whether a secret that was in force is not from then on."""
        return not self.overlap or self.force


def mint_generation(kind: TokenKind, key_id: str, number: int, peppers: Peppers, now: datetime) -> Minted:
    """Make a fresh secret for a key."""
    token = mint(kind, key_id)
    pepper_id, digest = peppers.digest(token.text)
    return Minted(
        token.text,
        Generation(number=number, pepper_id=pepper_id, digest=digest, last_four=token.text[-4:], create_time=now),
    )


def check_not_revoked(key: Key) -> None:
    """Make sure that the key may still change. Raises Refusal (KEY_IS_REVOKED)."""
    if key.state is KeyState.REVOKED:
        raise Refusal(
            ErrorReason.KEY_IS_REVOKED,
            "the key is revoked, and nothing leaves that state",
            metadata={"key_id": key.key_id},
        )


def suspend(key: Key, reason: str, now: datetime) -> Key:
    """Switch a key off; a suspended one stays as it is. Raises Refusal (KEY_IS_REVOKED)."""
    check_not_revoked(key)
    if key.state is KeyState.SUSPENDED:
        return key
    return replace(key, state=KeyState.SUSPENDED, suspend_time=now, state_reason=reason, update_time=now)


def resume(key: Key, now: datetime) -> Key:
    """Switch a key on; an active one stays as it is. Raises Refusal (KEY_IS_REVOKED)."""
    check_not_revoked(key)
    if key.state is KeyState.ACTIVE:
        return key
    return replace(key, state=KeyState.ACTIVE, suspend_time=None, state_reason="", update_time=now)


def revoke(key: Key, reason: str, now: datetime) -> Key:
    """End a key for good; a revoked one stays as it is."""
    if key.state is KeyState.REVOKED:
        return key
    return replace(
        key,
        state=KeyState.REVOKED,
        suspend_time=None,
        revoke_time=now,
        state_reason=reason,
        update_time=now,
    )


def rotate(key: Key, new: Generation, rotation: Rotation, scoped_lifetime: timedelta, now: datetime) -> Key:
    """Put a new secret in force. A scoped key's expiry is renewed; the old secret gains no time by that.

    Raises Refusal: KEY_IS_REVOKED; KEY_IS_EXPIRED for a server or connect key, and for a scoped key with an overlap,
    during which its expired secret would work again; ROTATION_IN_PROGRESS; FIELD_INVALID for the overlap.
    """
    check_not_revoked(key)
    expired = key.state_at(now) is KeyState.EXPIRED or (key.expire_time is not None and now >= key.expire_time)
    if expired and key.kind is not KeyKind.SCOPED:
        raise Refusal(
            ErrorReason.KEY_IS_EXPIRED,
            "the key has expired: set a later expire_time first",
            metadata={"key_id": key.key_id},
        )
    if expired and rotation.overlap:
        raise Refusal(
            ErrorReason.KEY_IS_EXPIRED,
            "the key has expired: rotate it without an overlap, in which its old secret would work again",
            metadata={"key_id": key.key_id},
        )
    generations = rotate_generations(key.generations, new, rotation, key.expire_time, now)
    expire_time = now + scoped_lifetime if key.kind is KeyKind.SCOPED else key.expire_time
    return replace(key, generations=generations, expire_time=expire_time, update_time=now)


def rotate_generations(
    generations: tuple[Generation, ...],
    new: Generation,
    rotation: Rotation,
    expire_time: datetime | None,
    now: datetime,
) -> tuple[Generation, ...]:
    """Return the generations with `new` in force and the one before it retiring.

    While an overlap runs, `force` ends the newest secret at once and leaves the older one its overlap. No old secret
    works longer than it would have without the rotation, so `expire_time` bounds every overlap. Raises Refusal:
    ROTATION_IN_PROGRESS, FIELD_INVALID. At most ten old generations are kept; one whose overlap runs is among the last
    two, so it is never lost.
    """
    if not timedelta() <= rotation.overlap <= MAXIMUM_OVERLAP:
        raise invalid("overlap", f"must be from 0 to {MAXIMUM_OVERLAP.days} days")
    *older, newest = (_ending_by(generation, expire_time) for generation in generations)
    overlapping = next((old for old in reversed(older) if not old.retired(now)), None)
    if overlapping is not None and overlapping.retire_time is not None:
        if not rotation.force:
            until = overlapping.retire_time.isoformat()
            raise Refusal(
                ErrorReason.ROTATION_IN_PROGRESS,
                f"the overlap of an earlier rotation runs until {until}; force replaces the newest secret",
                metadata={"retire_time": until},
            )
        if rotation.overlap:
            raise invalid("overlap", "must be unset where force replaces the newest secret")
    retire_time = now + rotation.overlap
    if expire_time is not None:
        retire_time = max(now, min(retire_time, expire_time))
    kept = (*older, replace(newest, retire_time=retire_time))[-KEPT_GENERATIONS:]
    return (*kept, new)


def retire(key: Key, number: int, now: datetime) -> Key:
    """End the overlap of an old secret now; one that has ended stays as it is.

    Raises Refusal: KEY_IS_REVOKED; FIELD_INVALID for a generation that the key does not have, or that is in force.
    """
    check_not_revoked(key)
    old = next((generation for generation in key.generations if generation.number == number), None)
    if old is None:
        raise invalid("generation", "is none of the key's, or is not kept any more")
    if old.retire_time is None:
        raise invalid("generation", "is the one in force: rotate the key first, or revoke it")
    if old.retired(now):
        return key
    ended = replace(old, retire_time=now)
    generations = tuple(ended if generation is old else generation for generation in key.generations)
    return replace(key, generations=generations, update_time=now)


def _ending_by(generation: Generation, expire_time: datetime | None) -> Generation:
    """Return an old generation as ending no later than its key does: the key's own end may be renewed."""
    if generation.retire_time is None or expire_time is None:
        return generation
    return replace(generation, retire_time=min(generation.retire_time, expire_time))


def rotate_caller(caller: Caller, new: Generation, rotation: Rotation, now: datetime) -> Caller:
    """Put a new secret of a caller in force; one that had none gets its first.

    Raises Refusal as `rotate_generations`, and CALLER_IS_REVOKED.
    """
    check_caller_not_revoked(caller)
    generations: tuple[Generation, ...] = (new,)
    if caller.generations:
        generations = rotate_generations(caller.generations, new, rotation, None, now)
    return replace(caller, generations=generations, update_time=now)


def check_caller_not_revoked(caller: Caller) -> None:
    """Make sure that the caller may still change. Raises Refusal (CALLER_IS_REVOKED)."""
    if caller.revoke_time is not None:
        raise Refusal(
            ErrorReason.CALLER_IS_REVOKED,
            "the caller is revoked, and nothing leaves that state",
            metadata={"caller_id": caller.caller_id},
        )


def revoke_caller(caller: Caller, reason: str, now: datetime) -> Caller:
    """End a caller for good; a revoked one stays as it is."""
    if caller.revoke_time is not None:
        return caller
    return replace(caller, revoke_time=now, revoke_reason=reason, update_time=now)
