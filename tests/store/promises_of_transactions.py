"""What a store promises about transactions: all or nothing, one revision each, a trace of everything, isolation."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import pytest

from server.domain.end_users import EndUser
from server.domain.events import Event, EventType, Origin, describe
from server.domain.kinds import KeyKind
from server.domain.model import Workspace
from server.domain.revision import Revision
from server.domain.webhooks import new_delivery
from server.store.contract import Exposed, Reader, Store, WebhookReplay, Writer
from server.store.peewee_store import Engine
from tests.builders import (
    CALLER_KEY_ID,
    DEVICE_ID,
    LINK_ID,
    NOW,
    REFERENCE_ID,
    WORKSPACE_ID,
    make_caller,
    make_connect_link,
    make_device,
    make_key,
    make_workspace,
)
from tests.store.promises_of_webhooks import endpoint
from tests.store.support import (
    PATIENCE,
    SCOPED_KEY_ID,
    SERVER_KEY_ID,
    Threads,
    abandoned,
    changes_of,
    dump,
    make_event,
    make_request,
    populate,
    read_all,
)

Changes = set[tuple[str, str]]


def replace_an_event(writer: Writer) -> None:
    """Record an event, and put another in its place."""
    writer.record([make_event()])
    *_, last = writer.list_key_events(SERVER_KEY_ID, None, 10).rows
    writer.replace_events([replace(last, after={"key_id": SERVER_KEY_ID})])


def with_endpoint(writer: Writer, webhook_endpoint_id: str, change: Callable[..., object], *arguments: object) -> None:
    """Change something of a webhook endpoint, which is made first."""
    writer.add_webhook_endpoint(endpoint(webhook_endpoint_id))
    change(*arguments)


# Each method that changes something, a call of it on what `populate` made, and what it must note in the change log;
# None where the contract leaves open what.
MUTATIONS: dict[str, tuple[Callable[[Writer], object], Changes | None]] = {
    "add_workspace": (
        lambda writer: writer.add_workspace(make_workspace(workspace_id="new")),
        {("workspace", "new")},
    ),
    "replace_workspace": (
        lambda writer: writer.replace_workspace(make_workspace(display_name="renamed")),
        {("workspace", WORKSPACE_ID)},
    ),
    "add_key": (
        lambda writer: writer.add_key(make_key(key_id="NewKey0000000001")),
        {("key", "NewKey0000000001")},
    ),
    "replace_key": (
        lambda writer: writer.replace_key(make_key(display_name="renamed")),
        {("key", SERVER_KEY_ID)},
    ),
    "replace_keys": (
        lambda writer: writer.replace_keys([make_key(display_name="renamed")]),
        {("key", SERVER_KEY_ID)},
    ),
    "put_devices": (
        lambda writer: writer.put_devices([make_device(device_id="new"), make_device(reference_id="end-user-2")]),
        {("device", "new"), ("device", DEVICE_ID)},
    ),
    "remove_devices": (
        lambda writer: writer.remove_devices([DEVICE_ID]),
        {("device", DEVICE_ID)},
    ),
    "add_connect_link": (
        lambda writer: writer.add_connect_link(make_connect_link(connect_link_id="new")),
        {("connect_link", "new")},
    ),
    "replace_connect_link": (
        lambda writer: writer.replace_connect_link(make_connect_link(cancel_time=NOW)),
        {("connect_link", LINK_ID)},
    ),
    "add_caller": (
        lambda writer: writer.add_caller(make_caller(caller_id="new", key_id="NewCallerKey0001")),
        {("caller", "NewCallerKey0001")},
    ),
    "replace_caller": (
        lambda writer: writer.replace_caller(make_caller(display_name="renamed")),
        {("caller", CALLER_KEY_ID)},
    ),
    "record": (
        lambda writer: writer.record([make_event()]),
        None,
    ),
    "remember": (
        lambda writer: writer.remember(make_request(), NOW),
        {("request", "request-1")},
    ),
    "replace_events": (
        replace_an_event,
        None,
    ),
    "remove_end_user": (
        lambda writer: writer.remove_end_user(EndUser(WORKSPACE_ID, REFERENCE_ID)),
        {("device", DEVICE_ID), ("connect_link", LINK_ID), ("key", SCOPED_KEY_ID)},
    ),
    "note_exposures": (
        lambda writer: writer.note_exposures([Exposed(SERVER_KEY_ID, 1, "browser")], NOW),
        {("exposure", SERVER_KEY_ID)},
    ),
    "add_webhook_endpoint": (
        lambda writer: writer.add_webhook_endpoint(endpoint("added")),
        {("webhook_endpoint", "added")},
    ),
    "replace_webhook_endpoint": (
        lambda writer: with_endpoint(writer, "replaced", writer.replace_webhook_endpoint, endpoint("replaced")),
        {("webhook_endpoint", "replaced")},
    ),
    "remove_webhook_endpoint": (
        lambda writer: with_endpoint(writer, "removed", writer.remove_webhook_endpoint, "removed"),
        {("webhook_endpoint", "removed")},
    ),
    "add_webhook_delivery": (
        lambda writer: with_endpoint(
            writer, "told", writer.add_webhook_delivery, new_delivery("told", None, "webhook.test", NOW)
        ),
        {("webhook_endpoint", "told")},
    ),
    "replay_webhook_deliveries": (
        lambda writer: with_endpoint(
            writer,
            "replayed",
            writer.replay_webhook_deliveries,
            *(WebhookReplay(webhook_endpoint_id="replayed", failed_since=NOW), NOW, NOW, 1),
        ),
        None,
    ),
}

# What changes things that no decision depends on, and notes nothing.
TRACELESS = ("prune_events", "prune_changes", "set_expiry_mark")

every_mutation = pytest.mark.parametrize("name", MUTATIONS)


def head_of(store: Store) -> Revision:
    """Return the revision that a store is at."""
    with store.read() as reader:
        return reader.head()


def rename(store: Store, name: str) -> Revision:
    """Change something, and return the revision of it."""
    with store.write() as writer:
        writer.replace_workspace(make_workspace(display_name=name))
    return writer.revision


def name_in(reader: Reader) -> str:
    """Return what `rename` changes."""
    workspace = reader.workspace(WORKSPACE_ID)
    assert isinstance(workspace, Workspace)
    return workspace.display_name


class TransactionPromises:
    """Holds for every store."""

    @every_mutation
    def test_a_change_moves_the_revision_by_one_and_is_noted_under_it(
        self, store: Store, engine: Engine, name: str
    ) -> None:
        change, expected = MUTATIONS[name]
        populate(store)
        before = head_of(store)
        with store.write() as writer:
            change(writer)
            announced = writer.revision
        assert head_of(store) == announced == writer.revision
        assert (announced.epoch, announced.number) == (before.epoch, before.number + 1)
        noted = changes_of(engine, announced.number)
        assert noted
        assert {nonce for nonce, _, _ in noted} == {announced.nonce}
        if expected is not None:
            assert {(kind, entity_id) for _, kind, entity_id in noted} == expected

    @every_mutation
    def test_an_exception_rolls_everything_back_and_passes_on(self, store: Store, engine: Engine, name: str) -> None:
        change, _ = MUTATIONS[name]
        populate(store)
        before = dump(engine)
        with abandoned(store) as writer:
            change(writer)
        assert dump(engine) == before

    def test_a_transaction_of_many_changes_is_rolled_back_whole_and_the_next_is_not_touched_by_it(
        self, store: Store, engine: Engine
    ) -> None:
        populate(store)
        before = dump(engine)
        with abandoned(store) as writer:
            for change, _ in MUTATIONS.values():
                change(writer)
        assert dump(engine) == before
        committed = rename(store, "after it")
        assert changes_of(engine, committed.number) == {(committed.nonce, "workspace", WORKSPACE_ID)}

    def test_a_transaction_of_many_changes_is_one_revision(self, store: Store, engine: Engine) -> None:
        populate(store)
        before = head_of(store)
        expected: Changes = set()
        with store.write() as writer:
            for change, noted in MUTATIONS.values():
                change(writer)
                expected |= noted or set()
        assert head_of(store).number == before.number + 1
        found = {(kind, entity_id) for _, kind, entity_id in changes_of(engine, writer.revision.number)}
        assert found >= expected

    def test_an_entity_that_changes_twice_in_a_transaction_is_noted_once(self, store: Store, engine: Engine) -> None:
        populate(store)
        with store.write() as writer:
            writer.replace_key(make_key(display_name="one"))
            writer.replace_key(make_key(display_name="two"))
        revision = writer.revision
        assert changes_of(engine, revision.number) == {(revision.nonce, "key", SERVER_KEY_ID)}
        with store.read() as reader:
            assert reader.keys([SERVER_KEY_ID])[SERVER_KEY_ID].display_name == "two"

    def test_an_event_recorded_with_no_other_change_is_kept(self, store: Store) -> None:
        populate(store)
        with store.write() as writer:
            writer.record([make_event()])
        events = read_all(store, lambda reader, after: reader.list_key_events(SERVER_KEY_ID, after, 10))
        assert [replace(event, event_id=None) for event in events] == [make_event()]

    def test_a_transaction_that_only_reads_leaves_no_trace(self, store: Store, engine: Engine) -> None:
        populate(store)
        before, head = dump(engine), head_of(store)
        with store.write() as writer:
            assert writer.keys([SERVER_KEY_ID])
            assert writer.head() == head
        assert writer.revision == head
        assert dump(engine) == before

    def test_calls_that_change_nothing_leave_no_trace(self, store: Store, engine: Engine) -> None:
        populate(store)
        before, head = dump(engine), head_of(store)
        with store.write() as writer:
            writer.put_devices([])
            writer.remove_devices([])
            writer.record([])
        assert writer.revision == head
        assert dump(engine) == before

    def test_every_revision_has_a_nonce_of_its_own(self, store: Store) -> None:
        populate(store)
        revisions = [rename(store, str(number)) for number in range(5)]
        assert len({revision.nonce for revision in revisions}) == len(revisions)
        assert all(0 <= revision.nonce < 2**63 for revision in revisions)

    def test_the_snapshot_holds_its_own_revision_and_every_one_before(self, store: Store) -> None:
        populate(store)
        revisions = [rename(store, str(number)) for number in range(5)]
        with store.read() as reader:
            assert reader.head() == revisions[-1]
            assert all(reader.holds(revision) for revision in revisions)

    def test_the_revision_of_a_new_store_is_held_from_then_on(self, store: Store) -> None:
        first = head_of(store)
        with store.read() as reader:
            assert reader.holds(first)
        populate(store)
        with store.read() as reader:
            assert reader.holds(first)

    def test_a_forged_revision_is_not_held(self, store: Store) -> None:
        populate(store)
        old, head = rename(store, "one"), rename(store, "two")
        forged = [
            replace(revision, **change)
            for revision in (old, head)
            for change in (
                {"nonce": revision.nonce ^ 1},
                {"epoch": UUID(int=revision.epoch.int ^ 1)},
                {"number": head.number + 1},
                {"number": 2**64 - 1},
                {"number": 0},
            )
        ]
        # One that is right in all its parts, but of different revisions.
        forged += [replace(old, nonce=head.nonce), replace(head, nonce=old.nonce)]
        with store.read() as reader:
            assert [revision for revision in forged if reader.holds(revision)] == []

    def test_a_forged_nonce_larger_than_any_real_one_is_not_held(self, store: Store) -> None:
        populate(store)
        old, head = rename(store, "one"), rename(store, "two")
        with store.read() as reader:
            # The largest that a token has room for.
            assert not reader.holds(replace(head, nonce=2**64 - 1))
            assert not reader.holds(replace(old, nonce=2**64 - 1))

    def test_a_revision_that_was_rolled_back_is_not_held_when_another_takes_its_number(self, store: Store) -> None:
        populate(store)
        with abandoned(store) as writer:
            writer.replace_workspace(make_workspace(display_name="never"))
            never = writer.revision
        with store.read() as reader:
            assert not reader.holds(never)
        committed = rename(store, "in its place")
        assert committed.number == never.number
        with store.read() as reader:
            assert reader.holds(committed)
            assert not reader.holds(never)

    def test_events_come_back_whole_in_order_with_increasing_ids(self, store: Store) -> None:
        populate(store)
        origin = Origin(caller_id="console", on_behalf_of_key_id="K", reason="ü", request_id="r-1")
        revoked = make_key(labels={"team": "fleet"}, expire_time=NOW)
        batches: list[list[Event]] = [
            [
                make_event(),
                describe(EventType.KEY_UPDATED, origin, make_key(), revoked, NOW + timedelta(microseconds=1)),
            ],
            [describe(EventType.KEY_REVOKED, origin, revoked, None, NOW - timedelta(days=1))],
            [make_event(reason=str(number)) for number in range(3)],
        ]
        for batch in batches:
            with store.write() as writer:
                writer.replace_key(make_key())
                # Anything that can be gone through once will do.
                writer.record(event for event in batch)
        found = read_all(store, lambda reader, after: reader.list_key_events(SERVER_KEY_ID, after, 2))
        assert [replace(event, event_id=None) for event in found] == [event for batch in batches for event in batch]
        ids = [event.event_id or 0 for event in found]
        assert ids == sorted(set(ids))
        assert ids[0] > 0

    def test_events_of_other_subjects_are_not_among_a_keys(self, store: Store) -> None:
        populate(store)
        # A device and a caller that are called like the key.
        device, caller = make_device(device_id=SERVER_KEY_ID), make_caller(caller_id=SERVER_KEY_ID)
        origin = Origin(caller_id="console")
        with store.write() as writer:
            writer.replace_key(make_key())
            writer.record(
                [
                    describe(EventType.DEVICE_REGISTERED, origin, None, device, NOW),
                    describe(EventType.CALLER_CREATED, origin, None, caller, NOW),
                    make_event(make_key(KeyKind.CONNECT)),
                    make_event(),
                ]
            )
        events = read_all(store, lambda reader, after: reader.list_key_events(SERVER_KEY_ID, after, 10))
        assert [replace(event, event_id=None) for event in events] == [make_event()]

    def test_a_reader_does_not_see_a_commit_made_after_its_first_read(self, store: Store, threads: Threads) -> None:
        populate(store)
        new = make_key(key_id="NewKey0000000001")
        with store.read() as reader:
            head, name = reader.head(), name_in(reader)

            def change() -> Revision:
                with store.write() as writer:
                    writer.replace_workspace(make_workspace(display_name="changed"))
                    writer.add_key(new)
                    writer.remove_devices([DEVICE_ID])
                    writer.replace_caller(make_caller(revoke_time=NOW))
                return writer.revision

            committed = threads.elsewhere(change)
            assert reader.head() == head
            assert not reader.holds(committed)
            assert name_in(reader) == name
            assert reader.keys([new.key_id]) == {}
            assert reader.devices([DEVICE_ID]) == {DEVICE_ID: make_device()}
            assert reader.caller(make_caller().caller_id) == make_caller()
            assert name in [row.display_name for row in reader.list_workspaces(None, 10).rows]
        with store.read() as reader:
            assert reader.head() == committed
            assert reader.holds(committed)
            assert name_in(reader) == "changed"
            assert reader.keys([new.key_id]) == {new.key_id: new}
            assert reader.devices([DEVICE_ID]) == {}

    def test_nobody_else_sees_a_change_before_it_is_committed(self, store: Store, threads: Threads) -> None:
        populate(store)
        before = head_of(store)

        def look() -> tuple[Revision, str]:
            with store.read() as reader:
                return reader.head(), name_in(reader)

        with store.write() as writer:
            writer.replace_workspace(make_workspace(display_name="changed"))
            assert threads.elsewhere(look) == (before, make_workspace().display_name)
        assert threads.elsewhere(look) == (writer.revision, "changed")

    def test_a_writer_sees_its_own_changes(self, store: Store) -> None:
        populate(store)
        workspace = make_workspace(workspace_id="new")
        key = make_key(key_id="NewKey0000000001", workspace_id="new", labels={"team": "fleet"})
        link = make_connect_link(connect_link_id="NewLink000000001")
        device = make_device(device_id="new", workspace_id="new")
        caller = make_caller(caller_id="new", key_id="NewCallerKey0001")
        with store.write() as writer:
            writer.add_workspace(workspace)
            writer.add_key(key)
            writer.add_connect_link(link)
            writer.put_devices([device])
            writer.add_caller(caller)
            writer.record([make_event(key)])
            assert writer.workspace("new") == workspace
            assert writer.keys([key.key_id]) == {key.key_id: key}
            assert writer.connect_link(link.connect_link_id) == link
            assert writer.devices(["new"]) == {"new": device}
            assert writer.caller_of_key(caller.key_id) == caller
            assert workspace in writer.list_workspaces(None, 10).rows
            assert caller in writer.list_callers(None, 10).rows
            assert len(writer.list_key_events(key.key_id, None, 10).rows) == 1
            writer.replace_key(replace(key, labels={}))
            assert writer.keys([key.key_id]) == {key.key_id: replace(key, labels={})}
            writer.remove_devices(["new"])
            assert writer.devices(["new"]) == {}

    def test_writers_follow_one_another_and_see_what_the_one_before_did(self, store: Store, threads: Threads) -> None:
        populate(store)
        about_to = threading.Event()

        def second() -> str:
            about_to.set()
            with store.write() as writer:
                seen = name_in(writer)
                writer.replace_workspace(make_workspace(display_name=f"{seen}, second"))
            return seen

        with threads.another() as other:
            with store.write() as writer:
                assert name_in(writer) == make_workspace().display_name
                waiting = other.submit(second)
                assert about_to.wait(PATIENCE)
                writer.replace_workspace(make_workspace(display_name="first"))
                # What a writer has read stays true until it commits, whoever is waiting.
                assert name_in(writer) == "first"
                assert not waiting.done()
            assert waiting.result(PATIENCE) == "first"
        with store.read() as reader:
            assert name_in(reader) == "first, second"

    def test_a_store_can_be_asked(self, store: Store) -> None:
        store.ping()
