from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import TOKEN_KIND, KeyKind
from server.domain.lifecycle import (
    MAXIMUM_OVERLAP,
    Rotation,
    check_caller_not_revoked,
    check_not_revoked,
    mint_generation,
    resume,
    retire,
    revoke,
    revoke_caller,
    rotate,
    rotate_caller,
    rotate_generations,
    suspend,
)
from server.domain.model import Generation, Key, KeyState
from server.domain.token import TokenKind, parse
from tests.builders import CALLER_KEY_ID, EARLIER, NOW, PEPPERS, make_caller, make_generation, make_key

SECOND = timedelta(seconds=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
LATER = NOW + HOUR
LIFETIME = timedelta(days=365)

SUSPENDED = make_key(state=KeyState.SUSPENDED, suspend_time=EARLIER, state_reason="odd use")
REVOKED = make_key(state=KeyState.REVOKED, revoke_time=EARLIER, state_reason="leaked")


def refused(act: Callable[[], object]) -> Refusal:
    with pytest.raises(Refusal) as caught:
        act()
    return caught.value


# --- Minting ------------------------------------------------------------------------------------------------------


def test_a_minted_secret_is_shown_in_full_and_kept_as_a_digest() -> None:
    minted = mint_generation(TokenKind.SERVER, "ServerKey0000001", 3, PEPPERS, NOW)
    token = parse(minted.text)
    assert token is not None
    assert (token.kind, token.public_id) == (TokenKind.SERVER, "ServerKey0000001")
    pepper_id, digest = PEPPERS.digest(minted.text)
    assert minted.generation == Generation(
        number=3, pepper_id=pepper_id, digest=digest, last_four=minted.text[-4:], create_time=NOW, retire_time=None
    )


def test_no_two_minted_secrets_are_alike() -> None:
    texts = {mint_generation(TokenKind.SERVER, "ServerKey0000001", 1, PEPPERS, NOW).text for _ in range(20)}
    assert len(texts) == 20


def test_the_representation_of_a_minted_secret_hides_it() -> None:
    minted = mint_generation(TokenKind.SERVER, "ServerKey0000001", 1, PEPPERS, NOW)
    assert minted.text[-38:] not in repr(minted)
    assert repr(minted.generation.digest) not in repr(minted)


# --- Suspending, resuming, revoking -------------------------------------------------------------------------------


def test_a_suspended_key_is_off_since_now_and_for_a_reason() -> None:
    assert suspend(make_key(), "odd use", NOW) == make_key(
        state=KeyState.SUSPENDED, suspend_time=NOW, state_reason="odd use", update_time=NOW
    )


def test_suspending_a_suspended_key_keeps_the_first_time_and_reason() -> None:
    assert suspend(SUSPENDED, "another reason", NOW) is SUSPENDED


def test_a_resumed_key_is_as_if_it_had_never_been_suspended() -> None:
    assert resume(SUSPENDED, NOW) == make_key(update_time=NOW)
    assert resume(suspend(make_key(), "odd use", NOW), LATER) == make_key(update_time=LATER)


def test_resuming_an_active_key_changes_nothing() -> None:
    key = make_key()
    assert resume(key, NOW) is key


def test_an_expired_key_may_be_suspended_and_resumed_and_stays_expired() -> None:
    key = make_key(expire_time=EARLIER)
    assert resume(suspend(key, "", NOW), NOW).state_at(NOW) is KeyState.EXPIRED
    assert suspend(key, "", NOW).state_at(NOW) is KeyState.SUSPENDED


def test_a_revoked_key_is_off_since_now_and_for_a_reason() -> None:
    expected = make_key(state=KeyState.REVOKED, revoke_time=NOW, state_reason="leaked", update_time=NOW)
    assert revoke(make_key(), "leaked", NOW) == expected
    assert revoke(SUSPENDED, "leaked", NOW) == expected


def test_revoking_a_revoked_key_keeps_the_first_time_and_reason() -> None:
    assert revoke(REVOKED, "another reason", NOW) is REVOKED


@pytest.mark.parametrize(
    "act",
    [
        pytest.param(lambda: suspend(REVOKED, "", NOW), id="suspend"),
        pytest.param(lambda: resume(REVOKED, NOW), id="resume"),
        pytest.param(lambda: check_not_revoked(REVOKED), id="change"),
        pytest.param(lambda: rotate(REVOKED, second(REVOKED), Rotation(), LIFETIME, NOW), id="rotate"),
        pytest.param(lambda: rotate(REVOKED, second(REVOKED), Rotation(force=True), LIFETIME, NOW), id="force"),
    ],
)
def test_nothing_leaves_the_revoked_state(act: Callable[[], object]) -> None:
    refusal = refused(act)
    assert refusal.reason is ErrorReason.KEY_IS_REVOKED
    assert refusal.metadata == {"key_id": REVOKED.key_id}


@pytest.mark.parametrize("key", [make_key(), SUSPENDED, make_key(expire_time=EARLIER)])
def test_any_other_key_may_still_change(key: Key) -> None:
    check_not_revoked(key)


# --- Rotating -----------------------------------------------------------------------------------------------------


def second(key: Key, now: datetime = NOW) -> Generation:
    """Return the next generation of a key."""
    number = key.generations[-1].number + 1
    return make_generation(TOKEN_KIND[key.kind], key.key_id, number, create_time=now)


def rotated(key: Key, *, overlap: timedelta = timedelta(), force: bool = False, now: datetime = NOW) -> Key:
    return rotate(key, second(key, now), Rotation(overlap, force), LIFETIME, now)


def retire_times(key: Key) -> list[datetime | None]:
    return [generation.retire_time for generation in key.generations]


def works(key: Key, generation: int, now: datetime) -> bool:
    """Tell whether a secret of the key would be taken at this time."""
    return key.state_at(now) is KeyState.ACTIVE and not key.generations[generation].retired(now)


@pytest.mark.parametrize("overlap", [timedelta(), SECOND, DAY, MAXIMUM_OVERLAP])
def test_a_rotation_puts_a_new_secret_in_force_and_retires_the_old_after_the_overlap(overlap: timedelta) -> None:
    key = make_key()
    after = rotated(key, overlap=overlap)
    assert after == replace(
        key,
        generations=(replace(key.generations[0], retire_time=NOW + overlap), second(key)),
        update_time=NOW,
    )
    assert works(after, 0, NOW) is bool(overlap)
    assert not works(after, 0, NOW + overlap)
    assert works(after, 1, NOW)


@pytest.mark.parametrize("overlap", [-SECOND, MAXIMUM_OVERLAP + SECOND])
def test_an_overlap_below_zero_or_above_thirty_days_is_refused(overlap: timedelta) -> None:
    refusal = refused(lambda: rotated(make_key(), overlap=overlap))
    assert refusal.reason is ErrorReason.FIELD_INVALID
    assert refusal.message == "overlap: must be from 0 to 30 days"


def test_while_an_overlap_runs_another_rotation_is_refused_and_hears_until_when() -> None:
    key = rotated(make_key(), overlap=DAY)
    refusal = refused(lambda: rotated(key, now=NOW + DAY - SECOND))
    assert refusal.reason is ErrorReason.ROTATION_IN_PROGRESS
    assert refusal.metadata == {"retire_time": (NOW + DAY).isoformat()}


def test_once_the_overlap_is_over_a_key_may_be_rotated_again() -> None:
    key = rotated(rotated(make_key(), overlap=DAY), overlap=HOUR, now=NOW + DAY)
    assert retire_times(key) == [NOW + DAY, NOW + DAY + HOUR, None]


def test_a_rotation_without_an_overlap_may_be_followed_by_another_at_once() -> None:
    key = rotated(rotated(make_key()), overlap=HOUR)
    assert retire_times(key) == [NOW, NOW + HOUR, None]


def test_a_forced_rotation_replaces_the_newest_secret_and_leaves_the_older_one_its_overlap() -> None:
    key = rotated(rotated(make_key(), overlap=DAY), force=True, now=LATER)
    assert retire_times(key) == [NOW + DAY, LATER, None]
    assert works(key, 0, NOW + DAY - SECOND)
    assert not works(key, 1, LATER)
    assert works(key, 2, LATER)


def test_a_rotation_may_be_forced_again_and_again() -> None:
    key = rotated(make_key(), overlap=DAY)
    for _ in range(3):
        key = rotated(key, force=True, now=LATER)
    assert retire_times(key) == [NOW + DAY, LATER, LATER, LATER, None]
    assert [generation.number for generation in key.generations] == [1, 2, 3, 4, 5]


def test_a_forced_rotation_takes_no_overlap_of_its_own_while_one_runs() -> None:
    key = rotated(make_key(), overlap=DAY)
    refusal = refused(lambda: rotated(key, overlap=SECOND, force=True, now=LATER))
    assert refusal.reason is ErrorReason.FIELD_INVALID
    assert [violation.field for violation in refusal.violations] == ["overlap"]


def test_where_no_overlap_runs_force_makes_no_difference() -> None:
    assert rotated(make_key(), overlap=DAY, force=True) == rotated(make_key(), overlap=DAY)


def test_a_suspended_key_may_be_rotated_and_stays_suspended() -> None:
    key = rotated(SUSPENDED)
    assert key.state is KeyState.SUSPENDED
    assert retire_times(key) == [NOW, None]


@pytest.mark.parametrize("kind", [KeyKind.SERVER, KeyKind.CONNECT])
@pytest.mark.parametrize("state", [KeyState.ACTIVE, KeyState.SUSPENDED])
@pytest.mark.parametrize("rotation", [Rotation(), Rotation(DAY), Rotation(force=True)])
def test_an_expired_server_or_connect_key_is_not_rotated(kind: KeyKind, state: KeyState, rotation: Rotation) -> None:
    key = make_key(kind, state=state, expire_time=NOW)
    refusal = refused(lambda: rotate(key, second(key), rotation, LIFETIME, NOW))
    assert refusal.reason is ErrorReason.KEY_IS_EXPIRED
    assert "set a later expire_time first" in refusal.message
    assert refusal.metadata == {"key_id": key.key_id}


@pytest.mark.parametrize("kind", [KeyKind.SERVER, KeyKind.CONNECT])
def test_the_expiry_of_a_server_or_connect_key_is_left_alone_and_bounds_the_overlap(kind: KeyKind) -> None:
    key = rotated(make_key(kind, expire_time=LATER), overlap=DAY)
    assert key.expire_time == LATER
    assert retire_times(key) == [LATER, None]


def test_a_scoped_keys_expiry_is_renewed() -> None:
    assert rotated(make_key(KeyKind.SCOPED, expire_time=LATER)).expire_time == NOW + LIFETIME
    assert rotated(make_key(KeyKind.SCOPED, expire_time=None)).expire_time == NOW + LIFETIME


def test_a_scoped_keys_old_secret_gains_no_time_by_the_renewal() -> None:
    key = rotated(make_key(KeyKind.SCOPED, expire_time=LATER), overlap=DAY)
    assert retire_times(key) == [LATER, None]
    assert not works(key, 0, LATER)
    assert works(key, 1, LATER)


def test_an_expired_scoped_key_is_renewed_and_its_old_secret_is_not() -> None:
    key = rotated(make_key(KeyKind.SCOPED, expire_time=EARLIER))
    assert key.expire_time == NOW + LIFETIME
    assert not works(key, 0, NOW)
    assert works(key, 1, NOW)


@pytest.mark.parametrize("force", [False, True])
def test_an_expired_scoped_key_is_not_rotated_with_an_overlap_in_which_it_would_work_again(force: bool) -> None:
    key = make_key(KeyKind.SCOPED, expire_time=NOW)
    refusal = refused(lambda: rotated(key, overlap=SECOND, force=force))
    assert refusal.reason is ErrorReason.KEY_IS_EXPIRED
    assert "without an overlap" in refusal.message
    assert refusal.metadata == {"key_id": key.key_id}


# An overlap may outlast its key: the lifetime of scoped keys was shortened, or the key's expiry brought forward.
OVERLAP_PAST_EXPIRY = replace(
    rotated(make_key(KeyKind.SCOPED, expire_time=NOW + LIFETIME), overlap=7 * DAY), expire_time=LATER
)


@pytest.mark.parametrize(
    "now", [pytest.param(LATER - SECOND, id="before the expiry"), pytest.param(LATER + SECOND, id="after the expiry")]
)
def test_a_forced_rotation_lends_the_older_secret_none_of_the_renewed_life(now: datetime) -> None:
    assert not works(OVERLAP_PAST_EXPIRY, 0, LATER)
    key = rotated(OVERLAP_PAST_EXPIRY, force=True, now=now)
    assert works(key, 2, LATER + SECOND)
    assert not works(key, 1, LATER + SECOND)
    assert not works(key, 0, LATER + SECOND)


steps = st.lists(
    st.tuples(
        st.integers(0, 4).map(lambda days: days * DAY),  # time that passes before the rotation
        st.sampled_from([timedelta(), DAY, 3 * DAY, MAXIMUM_OVERLAP]),  # overlap
        st.booleans(),  # force
        st.sampled_from([DAY, 3 * DAY, 10 * DAY]),  # lifetime of scoped keys
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("kind", KeyKind)
@given(
    expire=st.none() | st.integers(1, 10),
    steps=steps,
    # The expiry may be brought forward between two rotations.
    forward=st.lists(st.none() | st.integers(0, 10), min_size=5, max_size=5),
)
def test_however_a_key_is_rotated_one_secret_is_in_force_and_no_old_one_lives_longer_for_it(
    kind: KeyKind,
    expire: int | None,
    steps: list[tuple[timedelta, timedelta, bool, timedelta]],
    forward: list[int | None],
) -> None:
    now = NOW
    key = make_key(kind, expire_time=None if expire is None else NOW + expire * DAY)
    for (passed, overlap, force, lifetime), brought in zip(steps, forward, strict=False):
        if brought is not None and (key.expire_time is None or now + brought * DAY < key.expire_time):
            key = replace(key, expire_time=now + brought * DAY)
        now += passed
        before = key
        try:
            key = rotate(key, second(key, now), Rotation(overlap, force), lifetime, now)
        except Refusal:
            continue
        in_force = [generation.number for generation in key.generations if generation.retire_time is None]
        assert in_force == [len(key.generations)]
        for old in range(len(before.generations)):
            for later in (now + half * DAY / 2 for half in range(80)):
                assert works(before, old, later) or not works(key, old, later)


@given(expire=st.none() | st.integers(1, 10), steps=steps)
def test_at_any_time_at_most_one_secret_beside_the_one_in_force_still_works(
    expire: int | None, steps: list[tuple[timedelta, timedelta, bool, timedelta]]
) -> None:
    now = NOW
    generations = make_key().generations
    for passed, overlap, force, _ in steps:
        now += passed
        expire_time = None if expire is None else NOW + expire * DAY
        new = make_generation(TokenKind.SERVER, "0" * 16, len(generations) + 1, create_time=now)
        try:
            generations = rotate_generations(generations, new, Rotation(overlap, force), expire_time, now)
        except Refusal:
            continue
        assert sum(not generation.retired(now) for generation in generations) <= 2


@pytest.mark.parametrize("rotation", [Rotation(), Rotation(SECOND), Rotation(force=True)])
def test_a_clock_that_was_set_back_lends_the_old_secret_no_time(rotation: Rotation) -> None:
    key = make_key(generations=(make_generation(TokenKind.SERVER, "ServerKey0000001", create_time=NOW + 5 * SECOND),))
    retired = rotate(key, second(key), rotation, LIFETIME, NOW).generations[0]
    assert retired.retire_time == NOW + rotation.overlap


# --- Callers ------------------------------------------------------------------------------------------------------


def test_a_callers_secret_is_rotated_like_a_keys() -> None:
    caller = make_caller()
    new = make_generation(TokenKind.SERVICE, CALLER_KEY_ID, 2, create_time=NOW)
    assert rotate_caller(caller, new, Rotation(DAY), NOW) == replace(
        caller,
        generations=(replace(caller.generations[0], retire_time=NOW + DAY), new),
        update_time=NOW,
    )


def test_a_callers_rotation_is_refused_while_an_overlap_runs() -> None:
    new = make_generation(TokenKind.SERVICE, CALLER_KEY_ID, 2, create_time=NOW)
    caller = rotate_caller(make_caller(), new, Rotation(DAY), NOW)
    assert rotate_caller(make_caller(generations=()), new, Rotation(DAY), NOW).generations == (new,)
    refusal = refused(lambda: rotate_caller(caller, new, Rotation(), LATER))
    assert refusal.reason is ErrorReason.ROTATION_IN_PROGRESS


def test_a_revoked_caller_is_revoked_since_now_and_for_a_reason() -> None:
    revoked = revoke_caller(make_caller(), "retired service", NOW)
    assert revoked == make_caller(revoke_time=NOW, revoke_reason="retired service", update_time=NOW)
    assert revoke_caller(revoked, "another reason", LATER) is revoked


def test_a_revoked_caller_changes_no_more() -> None:
    check_caller_not_revoked(make_caller())
    revoked = make_caller(revoke_time=EARLIER)
    new = make_generation(TokenKind.SERVICE, CALLER_KEY_ID, 2, create_time=NOW)
    for act in (
        lambda: check_caller_not_revoked(revoked),
        lambda: rotate_caller(revoked, new, Rotation(), NOW),
    ):
        refusal = refused(act)
        assert refusal.reason is ErrorReason.CALLER_IS_REVOKED
        assert refusal.metadata == {"caller_id": "device-api"}


# --- Ending an overlap before its time ----------------------------------------------------------------------------


def test_an_old_secret_ends_now_and_nothing_else_changes() -> None:
    before = rotated(make_key(), overlap=DAY)
    first, second = before.generations
    after = retire(before, 1, LATER)
    assert after == replace(before, generations=(replace(first, retire_time=LATER), second), update_time=LATER)
    assert after.generations[0].retired(LATER)


@pytest.mark.parametrize("overlap", [timedelta(), HOUR])
def test_an_old_secret_that_has_ended_stays_as_it_is(overlap: timedelta) -> None:
    before = rotated(make_key(), overlap=overlap)
    assert retire(before, 1, LATER) is before


@pytest.mark.parametrize("number", [-1, 0, 2, 3])
def test_neither_the_secret_in_force_nor_one_that_there_is_not_is_ended(number: int) -> None:
    refusal = refused(lambda: retire(rotated(make_key(), overlap=DAY), number, LATER))
    assert (refusal.reason, refusal.violations[0].field) == (ErrorReason.FIELD_INVALID, "generation")


def test_no_secret_of_a_revoked_key_is_ended() -> None:
    revoked = revoke(rotated(make_key(), overlap=DAY), "leaked", LATER)
    assert refused(lambda: retire(revoked, 1, LATER)).reason is ErrorReason.KEY_IS_REVOKED
