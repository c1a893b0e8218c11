"""What a store promises to those who look after it: what each pepper is still needed for, and the newest event."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from server.domain.kinds import KeyKind
from server.domain.model import Generation, KeyState
from server.domain.peppers import Pepper, Peppers
from server.domain.token import TokenKind
from server.store.contract import ExpiryMark, PepperUsage, Store, Writer
from tests.builders import (
    CALLER_KEY_ID,
    EARLIER,
    NOW,
    PEPPER,
    make_caller,
    make_connect_link,
    make_generation,
    make_key,
    make_workspace,
)
from tests.store.support import CONNECT_KEY_ID, SCOPED_KEY_ID, SERVER_KEY_ID, make_event, populate

MOMENT = timedelta(microseconds=1)
OTHER = "other"
OTHER_PEPPERS = Peppers([Pepper(OTHER, bytes(range(1, 33)))])

POPULATED = PepperUsage(3, 1, 1, tuple(sorted((SERVER_KEY_ID, CONNECT_KEY_ID, SCOPED_KEY_ID))), ("device-api",))


def secret(number: int = 1, *, retires_in: timedelta | None = None, other: bool = False) -> Generation:
    """Return a secret of the server key: under the one pepper or the other."""
    retire_time = None if retires_in is None else NOW + retires_in
    changes = {"peppers": OTHER_PEPPERS} if other else {}
    return make_generation(TokenKind.SERVER, SERVER_KEY_ID, number, retire_time=retire_time, **changes)


def usage(store: Store) -> Mapping[str, PepperUsage]:
    with store.read() as reader:
        return reader.pepper_usage(NOW)


def server_key_with(store: Store, *generations: Generation, **changes: object) -> Mapping[str, PepperUsage]:
    """Give the server key these secrets, and return what each pepper is needed for."""
    with store.write() as writer:
        writer.replace_key(make_key(KeyKind.SERVER, generations=generations, **changes))
    return usage(store)


class UpkeepPromises:
    """Holds for every store."""

    def test_an_empty_store_needs_no_pepper_and_has_no_event(self, store: Store) -> None:
        assert usage(store) == {}
        with store.read() as reader:
            assert reader.newest_event_time() is None

    def test_secrets_and_links_are_counted_under_their_pepper(self, store: Store) -> None:
        populate(store)
        assert usage(store) == {PEPPER.pepper_id: POPULATED}

    def test_a_rotation_counts_under_both_peppers_until_the_overlap_is_over(self, store: Store) -> None:
        populate(store)
        during = server_key_with(store, secret(retires_in=MOMENT), secret(2, other=True))
        assert during == {PEPPER.pepper_id: POPULATED, OTHER: PepperUsage(keys=1, some_key_ids=(SERVER_KEY_ID,))}
        after = server_key_with(store, secret(retires_in=timedelta()), secret(2, other=True))
        assert (after[PEPPER.pepper_id].keys, after[OTHER].keys) == (2, 1)
        assert SERVER_KEY_ID not in after[PEPPER.pepper_id].some_key_ids

    def test_two_secrets_of_a_key_under_one_pepper_count_twice_and_name_it_once(self, store: Store) -> None:
        populate(store)
        found = server_key_with(store, secret(retires_in=MOMENT), secret(2))
        assert found == {PEPPER.pepper_id: replace(POPULATED, keys=4)}

    @pytest.mark.parametrize(
        ("changes", "counts"),
        [
            ({"state": KeyState.REVOKED, "revoke_time": NOW}, False),
            ({"state": KeyState.SUSPENDED, "suspend_time": NOW}, True),
            ({"expire_time": EARLIER}, True),
        ],
        ids=["revoked", "suspended", "expired"],
    )
    def test_a_key_counts_unless_it_can_never_come_back(
        self, store: Store, changes: dict[str, object], counts: bool
    ) -> None:
        populate(store)
        found = server_key_with(store, secret(other=True), **changes)
        assert (OTHER in found) == counts
        assert found[PEPPER.pepper_id].keys == 2

    def test_a_caller_counts_until_it_is_revoked(self, store: Store) -> None:
        generations = (make_generation(TokenKind.SERVICE, CALLER_KEY_ID, peppers=OTHER_PEPPERS),)
        with store.write() as writer:
            writer.add_caller(make_caller(generations=generations))
        assert usage(store) == {OTHER: PepperUsage(callers=1, some_caller_ids=("device-api",))}
        with store.write() as writer:
            writer.replace_caller(make_caller(generations=generations, revoke_time=NOW))
        assert usage(store) == {}

    @pytest.mark.parametrize(
        ("changes", "counts"),
        [
            ({"expire_time": NOW + MOMENT}, True),
            ({"expire_time": NOW}, False),
            ({"cancel_time": NOW}, False),
            ({"complete_time": NOW, "scoped_key_id": SCOPED_KEY_ID}, False),
        ],
        ids=["open", "expired", "cancelled", "completed"],
    )
    def test_a_link_counts_while_it_is_open(self, store: Store, changes: dict[str, object], counts: bool) -> None:
        populate(store)
        with store.write() as writer:
            writer.replace_connect_link(make_connect_link(pepper_id=OTHER, **changes))
        assert usage(store).get(OTHER) == (PepperUsage(links=1) if counts else None)

    def test_of_many_the_first_few_are_named(self, store: Store) -> None:
        ids = [f"ManyServerKeys{number:02d}" for number in range(25)]

        def add(writer: Writer) -> None:
            writer.add_workspace(make_workspace())
            for key_id in reversed(ids):
                writer.add_key(make_key(key_id=key_id))

        with store.write() as writer:
            add(writer)
        found = usage(store)[PEPPER.pepper_id]
        assert (found.keys, found.some_key_ids) == (25, tuple(ids[:10]))

    def test_the_newest_event_is_the_one_recorded_last_whatever_its_time(self, store: Store) -> None:
        populate(store)
        with store.write() as writer:
            writer.record([replace(make_event(), event_time=NOW + timedelta(days=1)), make_event()])
        with store.read() as reader:
            assert reader.newest_event_time() == NOW

    def test_a_mark_of_warnings_is_kept_for_each_number_of_days(self, store: Store) -> None:
        populate(store)
        with store.read() as reader:
            head = reader.head()
            assert reader.expiry_mark(7) is None
        one, other = mark(0, "a"), replace(mark(5), days=30)
        with store.write() as writer:
            writer.set_expiry_mark(mark(9))
            writer.set_expiry_mark(one)
            writer.set_expiry_mark(other)
        with store.read() as reader:
            assert (reader.expiry_mark(7), reader.expiry_mark(30), reader.expiry_mark(1)) == (one, other, None)
            assert reader.head() == head

    def test_keys_that_expire_after_a_mark_come_in_order_each_once(self, store: Store) -> None:
        times = {"Key0000000000003": 2, "Key0000000000001": 2, "Key0000000000002": 2, "Key0000000000004": 1, "Later": 3}
        with store.write() as writer:
            writer.add_workspace(make_workspace())
            writer.add_key(make_key())
            for key_id, moments in times.items():
                writer.add_key(make_key(key_id=key_id, expire_time=NOW + moments * MOMENT))

        def found(after: ExpiryMark, until: int = 2, limit: int = 10) -> list[str]:
            with store.read() as reader:
                return [key.key_id for key in reader.expiring_keys(after, NOW + until * MOMENT, limit)]

        in_order = ["Key0000000000004", "Key0000000000001", "Key0000000000002", "Key0000000000003"]
        assert found(mark(0)) == in_order
        assert found(mark(0), limit=2) == in_order[:2]
        assert found(mark(2, "Key0000000000001")) == in_order[2:]
        assert found(mark(1)) == in_order[1:]
        assert found(mark(2)) == []
        assert found(mark(2), until=9) == ["Later"]


def mark(moments: int, key_id: str = "") -> ExpiryMark:
    return ExpiryMark(days=7, expire_time=NOW + moments * MOMENT, key_id=key_id)
