"""What a store promises about lists: order, pages, filters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from itertools import product
from random import Random
from typing import Any

import pytest

from server.domain.end_users import EndUser
from server.domain.events import EventType, Origin, describe
from server.domain.kinds import KeyKind
from server.domain.model import Device, Key, KeyState
from server.store.contract import Cursor, DeviceFilter, EventFilter, KeyFilter, Page, Reader, Store, Writer
from tests.builders import NOW, REFERENCE_ID, WORKSPACE_ID, make_caller, make_device, make_key, make_workspace
from tests.store.support import OTHER_WORKSPACE_ID, SERVER_KEY_ID, make_event, populate, read_all, walk

MOMENT = timedelta(microseconds=1)


def _scrambled(number: int) -> str:
    """Return an id whose order has nothing to do with the order in which rows are made."""
    return f"{number * 7_919 % 1_009:04}-{number}"


def _nothing(_writer: Writer, _row_id: str) -> None:
    pass


@dataclass(frozen=True, kw_only=True)
class Listing:
    """A list, and how rows get into it, change in it and leave it."""

    name: str
    insert: Callable[[Writer, str], None]
    update: Callable[[Writer, str], None] = _nothing
    remove: Callable[[Writer, str], None] | None = None
    page: Callable[[Reader, Cursor | None, int], Page[Any]]
    id_of: Callable[[Any], str]

    def __str__(self) -> str:
        return self.name


def _record(writer: Writer, row_id: str) -> None:
    writer.replace_key(make_key())
    writer.record([make_event(reason=row_id)])


def _update_key(writer: Writer, row_id: str) -> None:
    key = writer.keys([row_id])[row_id]
    writer.replace_key(replace(key, display_name=f"{key.display_name}!", labels={"updated": "yes"}))


def _update_device(writer: Writer, row_id: str) -> None:
    writer.put_devices([make_device(device_id=row_id, reference_id="end-user-2", manufacturer="b", update_time=NOW)])


LISTINGS = (
    Listing(
        name="workspaces",
        insert=lambda writer, row_id: writer.add_workspace(make_workspace(workspace_id=row_id)),
        update=lambda writer, row_id: writer.replace_workspace(make_workspace(workspace_id=row_id, display_name="x")),
        page=lambda reader, after, limit: reader.list_workspaces(after, limit),
        id_of=lambda row: str(row.workspace_id),
    ),
    Listing(
        name="keys",
        insert=lambda writer, row_id: writer.add_key(make_key(key_id=row_id)),
        update=_update_key,
        page=lambda reader, after, limit: reader.list_keys(KeyFilter(workspace_id=WORKSPACE_ID, now=NOW), after, limit),
        id_of=lambda row: str(row.key_id),
    ),
    Listing(
        name="devices",
        insert=lambda writer, row_id: writer.put_devices([make_device(device_id=row_id)]),
        update=_update_device,
        remove=lambda writer, row_id: writer.remove_devices([row_id]),
        page=lambda reader, after, limit: reader.list_devices(DeviceFilter(workspace_id=WORKSPACE_ID), after, limit),
        id_of=lambda row: str(row.device_id),
    ),
    Listing(
        name="callers",
        insert=lambda writer, row_id: writer.add_caller(make_caller(caller_id=row_id, key_id=f"key-{row_id}")),
        update=lambda writer, row_id: writer.replace_caller(
            make_caller(caller_id=row_id, key_id=f"key-{row_id}", revoke_time=NOW)
        ),
        page=lambda reader, after, limit: reader.list_callers(after, limit),
        id_of=lambda row: str(row.caller_id),
    ),
    Listing(
        name="events",
        insert=_record,
        page=lambda reader, after, limit: reader.list_key_events(SERVER_KEY_ID, after, limit),
        id_of=lambda row: str(row.origin.reason),
    ),
    Listing(
        name="events of an end user",
        insert=lambda writer, row_id: writer.record([make_event(make_key(KeyKind.SCOPED), reason=row_id)]),
        page=lambda reader, after, limit: reader.list_end_user_events(
            EndUser(WORKSPACE_ID, REFERENCE_ID), after, limit
        ),
        id_of=lambda row: str(row.origin.reason),
    ),
)

every_list = pytest.mark.parametrize("listing", LISTINGS, ids=str)


class Meddler:
    """Changes the rows of a list at random, and remembers which were there all along."""

    def __init__(self, store: Store, listing: Listing, random: Random) -> None:
        self._store = store
        self._listing = listing
        self._random = random
        # The transaction in which each row was made. Rows made in one are all made at once.
        self.made: dict[str, int] = {}
        self.present: list[str] = []
        self.throughout: set[str] = set()
        self._transactions = 0

    def insert(self, count: int) -> None:
        """Make rows in one transaction."""
        self._transactions += 1
        with self._store.write() as writer:
            for _ in range(count):
                row_id = _scrambled(len(self.made))
                self._listing.insert(writer, row_id)
                self.made[row_id] = self._transactions
                self.present.append(row_id)

    def begin(self) -> None:
        """Remember what is there."""
        self.throughout = set(self.present)

    def meddle(self) -> None:
        """Insert, change and remove some rows."""
        self.insert(self._random.randint(0, 2))
        with self._store.write() as writer:
            for row_id in self._random.sample(self.present, 2):
                self._listing.update(writer, row_id)
            if self._listing.remove is not None and len(self.present) > 4:
                row_id = self._random.choice(self.present)
                self._listing.remove(writer, row_id)
                self.present.remove(row_id)
                self.throughout.discard(row_id)


def _keys_of_all_sorts() -> list[Key]:
    """Return keys that differ in all that a filter looks at."""
    states: list[dict[str, Any]] = [
        {},
        {"expire_time": NOW + MOMENT},
        {"expire_time": NOW},
        {"expire_time": NOW - MOMENT},
        {"state": KeyState.SUSPENDED, "suspend_time": NOW},
        {"state": KeyState.SUSPENDED, "suspend_time": NOW, "expire_time": NOW - MOMENT},
        {"state": KeyState.REVOKED, "revoke_time": NOW},
        {"state": KeyState.REVOKED, "revoke_time": NOW, "expire_time": NOW - MOMENT},
    ]
    labels: list[dict[str, str]] = [{}, {"team": "fleet"}, {"team": "fleet", "site": "1"}, {"site": "1", "team": "1"}]
    keys = []
    for number, (kind, changes) in enumerate(product(KeyKind, states)):
        if kind is KeyKind.SCOPED:
            changes = changes | {"reference_id": f"end-user-{1 + number % 2}"}  # noqa: PLW2901 - the sort of it
        keys.append(make_key(kind, key_id=_scrambled(number), labels=labels[number % len(labels)], **changes))
    return keys


def _key_matches(key: Key, which: KeyFilter) -> bool:
    return (
        key.workspace_id == which.workspace_id
        and which.kind in (None, key.kind)
        and which.state in (None, key.state_at(which.now))
        and which.reference_id in (None, key.reference_id)
        and which.labels.items() <= key.labels.items()
        and which.revoked in (None, key.state is KeyState.REVOKED)
        and which.created_by_key_id in (None, key.created_by_key_id)
        and (which.created_from is None or key.create_time >= which.created_from)
        and (which.created_before is None or key.create_time < which.created_before)
    )


def _device_matches(device: Device, which: DeviceFilter) -> bool:
    return (
        device.workspace_id == which.workspace_id
        and which.reference_id in (None, device.reference_id)
        and (not which.manufacturers or device.manufacturer in which.manufacturers)
    )


def list_keys(store: Store, which: KeyFilter, limit: int = 100) -> list[Key]:
    """Return all keys that a filter finds."""
    return read_all(store, lambda reader, after: reader.list_keys(which, after, limit))


def list_devices(store: Store, which: DeviceFilter, limit: int = 100) -> list[Device]:
    """Return all devices that a filter finds."""
    return read_all(store, lambda reader, after: reader.list_devices(which, after, limit))


class ListPromises:
    """Holds for every store."""

    @every_list
    def test_a_list_of_nothing_is_one_empty_page(self, store: Store, listing: Listing) -> None:
        with store.read() as reader:
            assert listing.page(reader, None, 10) == Page((), None)

    @every_list
    def test_rows_come_in_the_order_in_which_they_were_made(self, store: Store, listing: Listing) -> None:
        with store.write() as writer:
            writer.add_workspace(make_workspace())
            writer.add_key(make_key())
        known = read_all(store, lambda reader, after: listing.page(reader, after, 10))
        made = [_scrambled(number) for number in range(12)]
        for row_id in made:
            with store.write() as writer:
                listing.insert(writer, row_id)
        # Changing a row does not move it.
        with store.write() as writer:
            listing.update(writer, made[3])
        rows = read_all(store, lambda reader, after: listing.page(reader, after, 5))
        assert [listing.id_of(row) for row in rows[len(known) :]] == made

    @every_list
    @pytest.mark.parametrize("limit", [1, 2, 3, 4, 6, 7])
    def test_pages_are_full_until_the_last_and_none_follows_it(
        self, store: Store, listing: Listing, limit: int
    ) -> None:
        with store.write() as writer:
            writer.add_workspace(make_workspace())
            writer.add_key(make_key())
        with store.write() as writer:
            for number in range(6):
                listing.insert(writer, _scrambled(number))
        whole = read_all(store, lambda reader, after: listing.page(reader, after, 100))
        pages = list(walk(store, lambda reader, after: listing.page(reader, after, limit)))
        assert [row for page in pages for row in page.rows] == whole
        assert all(len(page.rows) == limit for page in pages[:-1])
        assert 0 < len(pages[-1].rows) <= limit

    @every_list
    @pytest.mark.parametrize("seed", range(4))
    def test_a_row_that_is_there_while_all_pages_are_read_is_on_exactly_one(
        self, store: Store, listing: Listing, seed: int
    ) -> None:
        random = Random(seed)
        with store.write() as writer:
            writer.add_workspace(make_workspace())
            writer.add_key(make_key())
        meddler = Meddler(store, listing, random)
        for count in (1, 4, 1, 3, 1, 2):
            meddler.insert(count)
        meddler.begin()
        read: list[str] = []
        for number, page in enumerate(walk(store, lambda r, after: listing.page(r, after, random.randint(1, 3)))):
            read += [listing.id_of(row) for row in page.rows]
            # After a while the list is left alone, so that it has an end.
            if number < 8:
                meddler.meddle()
        ours = [row_id for row_id in read if row_id in meddler.made]
        assert {row_id: ours.count(row_id) for row_id in meddler.throughout} == dict.fromkeys(meddler.throughout, 1)
        assert len(ours) == len(set(ours))
        assert [meddler.made[row_id] for row_id in ours] == sorted(meddler.made[row_id] for row_id in ours)

    def test_every_filter_of_keys_finds_what_matches_and_nothing_else(self, store: Store) -> None:
        populate(store)
        keys = _keys_of_all_sorts()
        elsewhere = [replace(key, key_id=f"e{key.key_id}", workspace_id=OTHER_WORKSPACE_ID) for key in keys]
        with store.write() as writer:
            for key in keys + elsewhere:
                writer.add_key(key)
        everything = list_keys(store, KeyFilter(workspace_id=WORKSPACE_ID, now=NOW)) + elsewhere
        labels: list[dict[str, str]] = [{}, {"team": "fleet"}, {"site": "1", "team": "fleet"}, {"team": "1"}, {"x": ""}]
        found_something = 0
        for kind, state, reference_id, wanted in product(
            (None, *KeyKind), (None, *KeyState), (None, REFERENCE_ID, "end-user-2", "end-user-3"), labels
        ):
            which = KeyFilter(
                workspace_id=WORKSPACE_ID,
                now=NOW,
                kind=kind,
                state=state,
                reference_id=reference_id,
                labels=wanted,
            )
            found = list_keys(store, which, limit=7)
            assert {key.key_id for key in found} == {key.key_id for key in everything if _key_matches(key, which)}
            assert len(found) == len({key.key_id for key in found})
            found_something += bool(found)
        assert found_something > 50

    def test_every_filter_by_how_keys_came_about_and_whether_they_are_revoked_finds_what_matches(
        self, store: Store
    ) -> None:
        populate(store)
        keys = [
            replace(
                key, create_time=NOW + number % 4 * MOMENT, created_by_key_id=(None, "by-one", "by-two")[number % 3]
            )
            for number, key in enumerate(_keys_of_all_sorts())
        ]
        elsewhere = [replace(key, key_id=f"e{key.key_id}", workspace_id=OTHER_WORKSPACE_ID) for key in keys]
        with store.write() as writer:
            for key in keys + elsewhere:
                writer.add_key(key)
        everything = list_keys(store, KeyFilter(workspace_id=WORKSPACE_ID, now=NOW)) + elsewhere
        times = (None, NOW - timedelta(days=60), NOW, NOW + MOMENT, NOW + 3 * MOMENT, NOW + 4 * MOMENT)
        found_something = 0
        for revoked, maker, begin, end, kind in product(
            (None, True, False), (None, "by-one", "BY-ONE", "\0"), times, times, (None, KeyKind.SCOPED)
        ):
            which = KeyFilter(
                workspace_id=WORKSPACE_ID,
                now=NOW,
                kind=kind,
                revoked=revoked,
                created_by_key_id=maker,
                created_from=begin,
                created_before=end,
            )
            found = list_keys(store, which)
            assert {key.key_id for key in found} == {key.key_id for key in everything if _key_matches(key, which)}
            found_something += bool(found)
        assert found_something > 50

    def test_a_key_that_only_time_has_ended_is_not_a_revoked_one(self, store: Store) -> None:
        populate(store)
        expired = make_key(key_id="Expired000000001", expire_time=NOW)
        revoked = replace(expired, key_id="Revoked000000001", state=KeyState.REVOKED, revoke_time=NOW)
        with store.write() as writer:
            writer.add_key(expired)
            writer.add_key(revoked)
        which = KeyFilter(workspace_id=WORKSPACE_ID, now=NOW, kind=KeyKind.SERVER, revoked=False)
        assert {key.key_id for key in list_keys(store, which)} == {SERVER_KEY_ID, expired.key_id}
        assert list_keys(store, replace(which, revoked=True)) == [revoked]

    def test_pages_of_a_filtered_list_miss_nothing_that_a_filter_by_time_finds(self, store: Store) -> None:
        populate(store)
        keys = [make_key(key_id=_scrambled(number), create_time=NOW + number % 2 * MOMENT) for number in range(12)]
        for key in keys:
            with store.write() as writer:
                writer.add_key(key)
        which = KeyFilter(workspace_id=WORKSPACE_ID, now=NOW, created_from=NOW, created_before=NOW + MOMENT)
        assert list_keys(store, which, limit=2) == keys[::2]

    @pytest.mark.parametrize("state", KeyState)
    def test_a_state_is_taken_as_of_the_instant_asked_about(self, store: Store, state: KeyState) -> None:
        populate(store)
        keys = [key for key in _keys_of_all_sorts() if key.kind is KeyKind.SERVER]
        with store.write() as writer:
            for key in keys:
                writer.add_key(key)
        for now in (NOW - MOMENT, NOW, NOW + MOMENT, NOW + 2 * MOMENT):
            found = list_keys(store, KeyFilter(workspace_id=WORKSPACE_ID, now=now, state=state, kind=KeyKind.SERVER))
            assert found
            assert [key for key in found if key.state_at(now) is not state] == []
            assert {key.key_id for key in found} >= {key.key_id for key in keys if key.state_at(now) is state}

    def test_several_labels_must_all_be_there(self, store: Store) -> None:
        populate(store)
        for key_id, labels in (
            ("both", {"team": "fleet", "site": "1"}),
            ("swapped", {"team": "1", "site": "fleet"}),
            ("one", {"team": "fleet"}),
            ("other", {"site": "1"}),
        ):
            with store.write() as writer:
                writer.add_key(make_key(key_id=key_id, labels=labels))
        both = {"team": "fleet", "site": "1"}
        found = list_keys(store, KeyFilter(workspace_id=WORKSPACE_ID, now=NOW, labels=both))
        assert [key.key_id for key in found] == ["both"]

    def test_every_filter_of_devices_finds_what_matches_and_nothing_else(self, store: Store) -> None:
        populate(store)
        devices = [
            make_device(
                device_id=_scrambled(number), workspace_id=workspace_id, reference_id=owner, manufacturer=manufacturer
            )
            for number, (workspace_id, owner, manufacturer) in enumerate(
                product((WORKSPACE_ID, OTHER_WORKSPACE_ID), ("u1", "u2"), ("", "acme", "ACME", "solaredge"))
            )
        ]
        with store.write() as writer:
            writer.put_devices(devices)
        devices.append(make_device())
        for workspace_id, reference_id, manufacturers in product(
            (WORKSPACE_ID, OTHER_WORKSPACE_ID, "no-workspace"),
            (None, "u1", "u2", "u3"),
            (set(), {"acme"}, {"acme", "solaredge"}, {""}, {"nobody"}),
        ):
            which = DeviceFilter(
                workspace_id=workspace_id, reference_id=reference_id, manufacturers=frozenset(manufacturers)
            )
            found = list_devices(store, which, limit=2)
            assert {device.device_id for device in found} == {
                device.device_id for device in devices if _device_matches(device, which)
            }
            assert all(device in devices for device in found)
            assert len(found) == len({device.device_id for device in found})

    def test_listed_keys_are_whole(self, store: Store) -> None:
        populate(store)
        key = make_key(key_id="Whole00000000001", labels={"a": "1", "b": "2"})
        with store.write() as writer:
            writer.add_key(key)
        listed = {row.key_id: row for row in list_keys(store, KeyFilter(workspace_id=WORKSPACE_ID, now=NOW))}
        with store.read() as reader:
            assert listed == reader.keys(listed.keys())
        assert listed[key.key_id] == key

    def test_events_go_on_after_any_of_them_and_can_be_of_a_workspace_and_of_types(self, store: Store) -> None:
        populate(store)
        keys = [make_key(), make_key(workspace_id=OTHER_WORKSPACE_ID, key_id="Other00000000001")]
        origin = Origin(caller_id="dashboard")
        types = (EventType.KEY_CREATED, EventType.KEY_UPDATED, EventType.KEY_SUSPENDED)
        with store.write() as writer:
            writer.record(describe(kind, origin, None, key, NOW) for kind, key in product(types, keys))

        with store.read() as reader:
            everything = reader.events_after(0, EventFilter(), 100)
            assert [event.event_id for event in everything] == sorted({event.event_id or 0 for event in everything})
            assert len(everything) == len(types) * len(keys)
            for after, workspace_id, some, limit, up_to in product(
                [0, *(event.event_id or 0 for event in everything)],
                (None, WORKSPACE_ID, OTHER_WORKSPACE_ID, "no\0workspace"),
                (frozenset[EventType](), frozenset(types[:2]), frozenset({EventType.CALLER_CREATED})),
                (2, 100),
                (None, everything[3].event_id or 0),
            ):
                which = EventFilter(workspace_id=workspace_id, types=some, up_to=up_to)
                assert (
                    reader.events_after(after, which, limit)
                    == [
                        event
                        for event in everything
                        if (event.event_id or 0) > after
                        and workspace_id in (None, event.workspace_id)
                        and (not some or event.type in some)
                        and (up_to is None or (event.event_id or 0) <= up_to)
                    ][:limit]
                )
