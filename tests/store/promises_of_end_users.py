"""What a store promises about end users, whose events are found and rewritten, and about events that grow old."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from datetime import timedelta

import pytest

from server.domain.end_users import EndUser, without
from server.domain.events import Entity, Event, EventType, Origin, describe
from server.domain.kinds import KeyKind
from server.store import tables
from server.store.contract import Belongings, Exposed, Store
from server.store.peewee_store import Engine
from tests.builders import (
    DEVICE_ID,
    LINK_ID,
    NOW,
    REFERENCE_ID,
    WORKSPACE_ID,
    make_connect_link,
    make_device,
    make_key,
)
from tests.store.support import (
    CONNECT_KEY_ID,
    OTHER_WORKSPACE_ID,
    SCOPED_KEY_ID,
    SERVER_KEY_ID,
    Threads,
    abandoned,
    changes_of,
    dump,
    make_event,
    populate,
    read_all,
)

ALICE = EndUser(WORKSPACE_ID, REFERENCE_ID)
NAMESAKE = EndUser(OTHER_WORKSPACE_ID, REFERENCE_ID)
BOB = EndUser(WORKSPACE_ID, "end-user-2")
NOBODY = EndUser(WORKSPACE_ID, "end-user-3")
PSEUDONYM = "erased:0123456789abcdef"
MOMENT = timedelta(microseconds=1)


def transferred(before: Entity | None, after: Entity | None, reason: str = "") -> Event:
    """Return the event of a device that changes hands."""
    return describe(EventType.DEVICE_TRANSFERRED, Origin(caller_id="console", reason=reason), before, after, NOW)


def device_of(end_user: EndUser, device_id: str = DEVICE_ID) -> Entity:
    """Return a device of an end user."""
    return make_device(device_id=device_id, workspace_id=end_user.workspace_id, reference_id=end_user.reference_id)


def record(store: Store, events: Iterable[Event]) -> None:
    """Record events in a transaction of their own."""
    with store.write() as writer:
        writer.record(events)


def events_of(store: Store, end_user: EndUser, limit: int = 2) -> list[Event]:
    """Return the events that hold an end user, without their ids."""
    found = read_all(store, lambda reader, after: reader.list_end_user_events(end_user, after, limit))
    ids = [event.event_id or 0 for event in found]
    assert ids == sorted(set(ids))
    with store.read() as reader:
        assert sorted(reader.end_user_event_ids(end_user)) == ids
    return [replace(event, event_id=None) for event in found]


def aged(number: int) -> Event:
    """Return an event of a key, so many moments old."""
    return replace(make_event(make_key(KeyKind.SCOPED), reason=str(number)), event_time=NOW - number * MOMENT)


def ages(store: Store) -> list[int]:
    """Return which of those are there, by the key's list and by the end user's, which must agree."""
    of_key = read_all(store, lambda reader, after: reader.list_key_events(SCOPED_KEY_ID, after, 10))
    assert [replace(event, event_id=None) for event in of_key] == events_of(store, ALICE)
    return [int(event.origin.reason) for event in of_key]


class EndUserPromises:
    """Holds for every store."""

    def test_events_are_found_by_the_end_users_on_either_side(self, store: Store) -> None:
        populate(store)
        events = [
            transferred(None, device_of(ALICE)),
            transferred(device_of(ALICE), device_of(BOB)),
            transferred(device_of(BOB), device_of(NAMESAKE)),
            transferred(device_of(NAMESAKE), None),
            transferred(device_of(ALICE), device_of(ALICE)),
            make_event(),
            make_event(make_key(KeyKind.SCOPED)),
        ]
        for some in (events[:3], events[3:]):
            record(store, some)
        assert events_of(store, ALICE) == [events[0], events[1], events[4], events[6]]
        assert events_of(store, BOB) == events[1:3]
        assert events_of(store, NAMESAKE) == events[2:4]
        assert events_of(store, NOBODY) == []

    def test_events_recorded_in_one_go_are_each_found_by_their_own_end_user(self, store: Store) -> None:
        populate(store)
        # More than one statement carries.
        events = [
            transferred(None, device_of(EndUser(WORKSPACE_ID, f"u-{number % 7}"), f"d-{number}"), str(number))
            for number in range(1_203)
        ]
        record(store, events)
        for number in range(7):
            assert events_of(store, EndUser(WORKSPACE_ID, f"u-{number}"), 100) == events[number::7]

    def test_a_replaced_event_is_found_by_what_it_holds_now_in_its_old_place(self, store: Store) -> None:
        populate(store)
        events = [transferred(device_of(ALICE), device_of(BOB), str(number)) for number in range(3)]
        record(store, events)
        with store.write() as writer:
            second = writer.list_end_user_events(ALICE, None, 10).rows[1]
            rewritten = without(second, ALICE, PSEUDONYM)
            writer.replace_events(event for event in [rewritten])
            assert second not in writer.list_end_user_events(ALICE, None, 10).rows
        assert events_of(store, ALICE) == [events[0], events[2]]
        assert events_of(store, BOB) == [events[0], replace(rewritten, event_id=None), events[2]]
        assert events_of(store, EndUser(WORKSPACE_ID, PSEUDONYM)) == [replace(rewritten, event_id=None)]

    def test_nothing_but_the_two_sides_of_an_event_is_replaced(self, store: Store) -> None:
        populate(store)
        event = transferred(device_of(ALICE), None, "why")
        record(store, [event])
        with store.write() as writer:
            (found,) = writer.list_end_user_events(ALICE, None, 10).rows
            other = make_event(make_key(KeyKind.SCOPED), reason="another")
            writer.replace_events([replace(other, event_id=found.event_id)])
        assert events_of(store, ALICE) == [replace(event, before=other.before, after=other.after)]

    def test_replacing_an_event_that_does_not_exist_fails_and_makes_nothing(self, store: Store, engine: Engine) -> None:
        populate(store)
        before = dump(engine)
        for event_id in (None, 1, 10**9):
            with pytest.raises(LookupError), store.write() as writer:
                writer.replace_events([replace(make_event(), event_id=event_id)])
        assert dump(engine) == before

    def test_an_end_user_is_removed_with_all_that_is_theirs_and_nobody_else(self, store: Store, engine: Engine) -> None:
        populate(store)
        mine = {"key_id": "MyLostKey0000001", "labels": {"a": "1", "b": "2"}}
        with store.write() as writer:
            writer.add_key(make_key(KeyKind.SCOPED, **mine))
            # One that is completed with a key of theirs, and made by a server key.
            writer.add_connect_link(
                make_connect_link(
                    connect_link_id="done", key_id=SERVER_KEY_ID, complete_time=NOW, scoped_key_id=SCOPED_KEY_ID
                )
            )
            writer.add_connect_link(make_connect_link(connect_link_id="ended", cancel_time=NOW))
            writer.put_devices([make_device(device_id=f"mine-{number}") for number in range(3)])
            for number, end_user in enumerate((BOB, NAMESAKE)):
                owner = {"workspace_id": end_user.workspace_id, "reference_id": end_user.reference_id}
                writer.add_key(make_key(KeyKind.SCOPED, key_id=f"OthersKey000000{number}", labels={"a": "1"}, **owner))
                writer.add_connect_link(make_connect_link(connect_link_id=f"others-{number}", **owner))
                writer.put_devices([make_device(device_id=f"others-{number}", **owner)])
            writer.note_exposures([Exposed(key_id, 1, "") for key_id in (SCOPED_KEY_ID, "OthersKey0000000", "x")], NOW)
        before = dump(engine)
        with store.write() as writer:
            assert writer.remove_end_user(ALICE) == Belongings(devices=4, keys=2, connect_links=3)
            assert writer.remove_end_user(ALICE) == Belongings(devices=0, keys=0, connect_links=0)
        gone = {
            *(("device", device_id) for device_id in (DEVICE_ID, "mine-0", "mine-1", "mine-2")),
            *(("key", key_id) for key_id in (SCOPED_KEY_ID, "MyLostKey0000001")),
            *(("connect_link", link_id) for link_id in (LINK_ID, "done", "ended")),
        }
        assert {changed[1:] for changed in changes_of(engine, writer.revision.number)} == gone
        ids = {entity_id for _, entity_id in gone}
        after = dump(engine)
        for table in ("device", "connect_link", "api_key", "key_generation", "key_label", "exposure"):
            assert after[table] == [row for row in before[table] if row[0] not in ids]
            assert len(after[table]) >= 2
        with store.read() as reader:
            assert reader.keys([SCOPED_KEY_ID, SERVER_KEY_ID, CONNECT_KEY_ID]).keys() == {SERVER_KEY_ID, CONNECT_KEY_ID}
            assert reader.connect_link("done") is None

    def test_removing_somebody_unknown_leaves_no_trace(self, store: Store, engine: Engine) -> None:
        populate(store)
        before = dump(engine)
        with store.write() as writer:
            assert writer.remove_end_user(NOBODY) == Belongings(devices=0, keys=0, connect_links=0)
            assert writer.remove_end_user(NAMESAKE) == Belongings(devices=0, keys=0, connect_links=0)
            writer.replace_events([])
        assert dump(engine) == before

    def test_a_removed_end_users_events_stay(self, store: Store) -> None:
        populate(store)
        event = make_event(make_key(KeyKind.SCOPED))
        record(store, [event])
        with store.write() as writer:
            writer.remove_end_user(ALICE)
        assert events_of(store, ALICE) == [event]

    def test_events_of_before_an_instant_are_pruned_and_no_others(self, store: Store) -> None:
        populate(store)
        record(store, [aged(number) for number in (1, 3, 2, 0, 4, 2)])
        with store.write() as writer:
            assert writer.prune_events(NOW - 2 * MOMENT, 10) == 2
        assert ages(store) == [1, 2, 0, 2]

    def test_the_oldest_are_pruned_first_so_many_at_most(self, store: Store) -> None:
        populate(store)
        record(store, [aged(number) for number in (3, 5, 4, 2, 6, 0)])
        pruned = []
        for expected in ([3, 4, 2, 0], [2, 0], [0]):
            with store.write() as writer:
                pruned.append(writer.prune_events(NOW, 2))
            assert ages(store) == expected
        with store.write() as writer:
            pruned.append(writer.prune_events(NOW, 2))
        assert pruned == [2, 2, 1, 0]

    def test_a_thousand_are_pruned_at_once(self, store: Store, engine: Engine) -> None:
        populate(store)
        record(store, [aged(number) for number in range(1_200, 0, -1)])
        with store.write() as writer:
            assert writer.prune_events(NOW, 1_000) == 1_000
        assert [int(event.origin.reason) for event in events_of(store, ALICE, 50)] == list(range(200, 0, -1))
        rows = dump(engine)
        assert len(rows["event"]) == len(rows["event_end_user"]) == 200

    def test_the_newest_event_stays_so_that_no_id_is_given_twice(self, store: Store) -> None:
        populate(store)
        record(store, [aged(number) for number in (9, 8, 7)])
        (*_, newest) = read_all(store, lambda reader, after: reader.list_key_events(SCOPED_KEY_ID, after, 10))
        with store.write() as writer:
            assert writer.prune_events(NOW, 10) == 2
            assert writer.prune_events(NOW, 10) == 0
        assert ages(store) == [7]
        record(store, [aged(0)])
        (_, next_one) = read_all(store, lambda reader, after: reader.list_key_events(SCOPED_KEY_ID, after, 10))
        assert (next_one.event_id or 0) > (newest.event_id or 0)
        with store.write() as writer:
            assert writer.prune_events(NOW, 10) == 1
        assert ages(store) == [0]

    def test_pruning_commits_without_a_revision_or_a_change_row(self, store: Store, engine: Engine) -> None:
        populate(store)
        record(store, [aged(2), aged(1)])
        before = dump(engine)
        with store.read() as reader:
            head = reader.head()
        with store.write() as writer:
            assert writer.prune_events(NOW, 10) == 1
        assert writer.revision == head
        after = dump(engine)
        assert len(after["event"]) == 1
        untouched = [name for name in before if not name.startswith("event")]
        assert {name: after[name] for name in untouched} == {name: before[name] for name in untouched}

    def test_pruning_beside_a_change_is_one_revision(self, store: Store, engine: Engine) -> None:
        populate(store)
        record(store, [aged(2), aged(1)])
        with store.write() as writer:
            writer.prune_events(NOW, 10)
            writer.put_devices([make_device(device_id="new")])
        assert {changed[1:] for changed in changes_of(engine, writer.revision.number)} == {("device", "new")}
        assert ages(store) == [1]

    def test_a_pruning_that_fails_is_rolled_back(self, store: Store) -> None:
        populate(store)
        record(store, [aged(2), aged(1)])
        with abandoned(store) as writer:
            assert writer.prune_events(NOW, 10) == 1
        assert ages(store) == [2, 1]

    def test_pruning_where_there_is_nothing_old_leaves_no_trace(self, store: Store, engine: Engine) -> None:
        populate(store)
        with store.write() as writer:
            assert writer.prune_events(NOW, 10) == 0
        record(store, [aged(0)])
        before = dump(engine)
        with store.write() as writer:
            assert writer.prune_events(NOW, 10) == 0
            assert writer.prune_events(NOW + MOMENT, 0) == 0
        assert dump(engine) == before

    def test_many_that_prune_at_once_delete_each_event_once(self, store: Store, threads: Threads) -> None:
        populate(store)
        record(store, [aged(number) for number in range(40, -1, -1)])

        def prune(_number: int) -> int:
            pruned = 0
            while True:
                with store.write() as writer:
                    some = writer.prune_events(NOW, 3)
                if not some:
                    return pruned
                pruned += some

        assert sum(threads.together(4, prune)) == 40
        assert ages(store) == [0]

    def test_what_is_noted_of_end_users_is_what_the_events_hold(self, store: Store, engine: Engine) -> None:
        populate(store)
        record(store, [transferred(device_of(ALICE), device_of(BOB)), make_event(), transferred(device_of(BOB), None)])
        with engine.reading() as database:
            noted = set(tables.EventEndUser.select().tuples().execute(database))
            ids = [
                row[0]
                for row in tables.Event.select(tables.Event.event_id)
                .order_by(tables.Event.event_id)
                .tuples()
                .execute(database)
            ]
        assert noted == {
            (WORKSPACE_ID, ALICE.reference_id, ids[0]),
            (WORKSPACE_ID, BOB.reference_id, ids[0]),
            (WORKSPACE_ID, BOB.reference_id, ids[2]),
        }
