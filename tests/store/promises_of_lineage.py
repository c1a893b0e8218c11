"""What a store promises about where keys come from, and where they were found exposed."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any

import pytest

from server.domain.kinds import KeyKind
from server.domain.model import Key, KeyState
from server.store.contract import Exposed, KeyFilter, Store
from server.store.peewee_store import Engine
from tests.builders import LINK_ID, NOW, WORKSPACE_ID, make_key
from tests.store.support import OTHER_WORKSPACE_ID, SCOPED_KEY_ID, dump, populate, read_all

MOMENT = timedelta(microseconds=1)


def add(store: Store, *keys: Key) -> None:
    """Put keys into a store, one after another."""
    for key in keys:
        with store.write() as writer:
            writer.add_key(key)


def descended(key_id: str, made_by: str | None, kind: KeyKind = KeyKind.SERVER, **changes: object) -> Key:
    """Return a key that another one asked for."""
    return make_key(kind, key_id=key_id, created_by_key_id=made_by, **changes)


def list_ids(store: Store, **which: object) -> list[str]:
    """Return the ids of what a filter finds."""
    chosen = KeyFilter(**{"workspace_id": WORKSPACE_ID, "now": NOW} | which)  # type: ignore[arg-type]
    return [key.key_id for key in read_all(store, lambda reader, after: reader.list_keys(chosen, after, 3))]


def lineage_of(keys: list[Key], ancestor: str) -> set[str]:
    """Work out what descends from a key by going over all of them until nothing is added."""
    found: set[str] = {key.key_id for key in keys if key.key_id == ancestor}
    while True:
        more = {key.key_id for key in keys if key.created_by_key_id in found} - found
        if not more:
            return found
        found |= more


class LineagePromises:
    """Holds for every store."""

    def test_from_a_key_descend_itself_what_it_asked_for_and_what_descends_from_that(self, store: Store) -> None:
        populate(store)
        add(
            store,
            descended("root", None),
            descended("child", "root"),
            descended("site", "child", KeyKind.CONNECT),
            descended("theirs", "site", KeyKind.SCOPED),
            descended("other", None),
            descended("others", "other", KeyKind.SCOPED),
        )
        assert list_ids(store, descends_from_key_id="root") == ["root", "child", "site", "theirs"]
        assert list_ids(store, descends_from_key_id="site") == ["site", "theirs"]
        assert list_ids(store, descends_from_key_id="theirs") == ["theirs"]
        assert list_ids(store, descends_from_key_id="nobody") == []
        assert list_ids(store, descends_from_key_id="ROOT") == []
        assert list_ids(store, descends_from_key_id="\0") == []

    def test_what_descends_from_a_revoked_key_is_found(self, store: Store) -> None:
        populate(store)
        ended: dict[str, Any] = {"state": KeyState.REVOKED, "revoke_time": NOW}
        add(store, descended("root", None, **ended), descended("child", "root", **ended), descended("last", "child"))
        assert list_ids(store, descends_from_key_id="root", revoked=False) == ["last"]

    def test_lineage_narrows_what_every_other_filter_finds(self, store: Store) -> None:
        populate(store)
        add(
            store,
            descended("root", None, labels={"a": "1"}),
            descended("one", "root", KeyKind.SCOPED, create_time=NOW, labels={"a": "1"}),
            descended("two", "root", KeyKind.SCOPED, reference_id="end-user-2", connect_link_id="another"),
            descended("free", None, KeyKind.SCOPED, labels={"a": "1"}),
        )
        of_root = {"descends_from_key_id": "root"}
        assert list_ids(store, **of_root, kind=KeyKind.SCOPED) == ["one", "two"]
        assert list_ids(store, **of_root, labels={"a": "1"}) == ["root", "one"]
        assert list_ids(store, **of_root, created_from=NOW) == ["one"]
        assert list_ids(store, **of_root, reference_id="end-user-2") == ["two"]
        assert list_ids(store, **of_root, connect_link_id="another") == ["two"]
        assert list_ids(store, **of_root, workspace_id=OTHER_WORKSPACE_ID) == []

    @pytest.mark.parametrize("seed", range(6))
    def test_whatever_the_family_all_that_descends_is_found_once_and_nothing_else(
        self, store: Store, seed: int
    ) -> None:
        populate(store)
        random = Random(seed)
        keys: list[Key] = []
        for number in range(40):
            makers = [key.key_id for key in keys if key.kind is not KeyKind.SCOPED]
            kind = random.choice(list(KeyKind))
            maker = random.choice([None, *makers[-6:]]) if makers else None
            keys.append(descended(f"key-{number}", maker, kind))
        with store.write() as writer:
            for key in random.sample(keys, len(keys)):
                writer.add_key(key)
        for key in keys:
            found = list_ids(store, descends_from_key_id=key.key_id)
            assert len(found) == len(set(found))
            assert set(found) == lineage_of(keys, key.key_id)

    def test_keys_are_found_by_the_link_that_minted_them(self, store: Store) -> None:
        populate(store)
        add(store, descended("another", None, KeyKind.SCOPED, connect_link_id="another"))
        assert list_ids(store, connect_link_id=LINK_ID) == [SCOPED_KEY_ID]
        assert list_ids(store, connect_link_id="another") == ["another"]
        assert list_ids(store, connect_link_id="\0") == []
        assert list_ids(store, connect_link_id=LINK_ID, workspace_id=OTHER_WORKSPACE_ID) == []

    def test_where_a_secret_was_found_is_remembered_with_the_time_that_was_noted_last(
        self, store: Store, engine: Engine
    ) -> None:
        populate(store)
        one, two, other = Exposed("a", 1, ""), Exposed("a", 2, ""), Exposed("b", 1, "place")
        with store.write() as writer:
            writer.note_exposures([one, two, one], NOW)
            writer.note_exposures([], NOW)
            assert writer.exposures(["a"], [""]) == {one: NOW, two: NOW}
        with store.write() as writer:
            writer.note_exposures([two, other], NOW + MOMENT)
        with store.read() as reader:
            assert reader.exposures(["a", "b", "c", "\0"], ["", "place", "\0"]) == {
                one: NOW,
                two: NOW + MOMENT,
                other: NOW + MOMENT,
            }
            assert reader.exposures(["a", "b"], ["place"]) == {other: NOW + MOMENT}
            assert reader.exposures([], [""]) == reader.exposures(["a"], []) == {}
        assert len(dump(engine)["exposure"]) == 3

    def test_many_places_are_noted_in_one_go(self, store: Store) -> None:
        populate(store)
        # More than one statement carries.
        found = [Exposed("a", 1, str(number)) for number in range(1_203)]
        with store.write() as writer:
            writer.note_exposures(found, NOW)
        with store.read() as reader:
            assert reader.exposures(["a"], [one.place for one in found]) == dict.fromkeys(found, NOW)
