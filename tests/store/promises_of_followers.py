"""What a store promises to processes that decide from memory: what changed, who is a member, when to look again."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from server.domain.revision import Revision
from server.store import tables
from server.store.contract import DEVICE, KEY, Changes, Member, News, Store
from server.store.peewee_store import Engine
from tests.builders import DEVICE_ID, make_device, make_key, make_workspace
from tests.store.support import PATIENCE, SERVER_KEY_ID, Threads, abandoned, populate

LEASE = timedelta(seconds=2)
PLENTY = 1000


def head_of(store: Store) -> Revision:
    """Return the newest revision."""
    with store.read() as reader:
        return reader.head()


def changes(store: Store, revision: Revision, limit: int = PLENTY) -> Changes | None:
    """Return what has changed since a revision."""
    with store.read() as reader:
        return reader.changes_since(revision, limit)


def members(store: Store) -> list[Member]:
    """Return the members."""
    with store.read() as reader:
        return list(reader.members())


def rename(store: Store) -> Revision:
    """Write something that is of no interest."""
    with store.write() as writer:
        writer.replace_workspace(make_workspace(display_name=f"since {writer.head().number}"))
    return writer.revision


class FollowerPromises:
    """Changes, members and news."""

    def test_the_changes_since_a_revision_are_the_entities_that_later_ones_touched(self, store: Store) -> None:
        populate(store)
        since = head_of(store)
        with store.write() as first:
            first.replace_key(make_key(display_name="renamed"))
        with store.write() as second:
            second.put_devices([make_device(device_id="other"), make_device()])
        assert changes(store, since) == Changes(
            second.revision,
            frozenset({(KEY, SERVER_KEY_ID), (DEVICE, DEVICE_ID), (DEVICE, "other")}),
            frozenset({since, first.revision, second.revision}),
        )

    def test_nothing_has_changed_since_the_head(self, store: Store) -> None:
        populate(store)
        head = head_of(store)
        assert changes(store, head) == Changes(head, frozenset(), frozenset({head}))

    def test_the_changes_since_the_beginning_are_known(self, store: Store) -> None:
        beginning = head_of(store)
        after = None
        with store.write() as writer:
            writer.add_workspace(make_workspace())
        after = changes(store, beginning)
        assert after is not None
        assert after.head == writer.revision

    @pytest.mark.parametrize(
        "other",
        [
            lambda revision: replace(revision, epoch=UUID(int=1)),
            lambda revision: replace(revision, nonce=revision.nonce ^ 1),
            lambda revision: replace(revision, number=revision.number + 1),
            lambda revision: replace(revision, number=revision.number - 1),
        ],
    )
    def test_the_changes_since_what_is_not_of_this_history_are_unknown(self, store: Store, other: object) -> None:
        populate(store)
        assert callable(other)
        assert changes(store, other(rename(store))) is None

    def test_changes_beyond_the_limit_are_unknown(self, store: Store) -> None:
        populate(store)
        since = head_of(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id=f"d{number}") for number in range(3)])
        assert changes(store, since, limit=3) is not None
        assert changes(store, since, limit=2) is None

    @pytest.mark.parametrize("gone", [0, 1])
    def test_changes_that_are_not_kept_any_more_are_unknown(self, store: Store, engine: Engine, gone: int) -> None:
        populate(store)
        since = head_of(store)
        rename(store)
        rename(store)
        with engine.writing() as database:
            tables.Change.delete().where(tables.Change.revision == since.number + gone).execute(database)
            engine.commit()
        assert changes(store, since) is None

    def test_what_old_revisions_touched_is_forgotten_and_what_new_ones_did_is_not(self, store: Store) -> None:
        populate(store)
        revisions = [rename(store) for _ in range(5)]
        with store.write() as writer:
            assert writer.prune_changes(keep=2, limit=PLENTY) > 3
        assert head_of(store) == revisions[-1], "forgetting is no change"
        with store.read() as reader:
            assert [reader.holds(revision) for revision in revisions] == [False, False, False, True, True]
        assert [changes(store, revision) is None for revision in revisions] == [True, True, True, False, False]
        with store.write() as writer:
            assert writer.prune_changes(keep=2, limit=PLENTY) == 0
        rename(store)
        assert changes(store, revisions[-1]) is not None

    def test_a_portion_of_what_is_forgotten_ends_after_a_whole_revision(self, store: Store) -> None:
        populate(store)
        before = rename(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id=f"d{number}") for number in range(5)])
        large, after = writer.revision, rename(store)
        with store.write() as writer:
            writer.prune_changes(keep=after.number - before.number + 1, limit=PLENTY)
        with store.write() as writer:
            assert writer.prune_changes(keep=1, limit=3) == 2
        with store.read() as reader:
            assert [reader.holds(revision) for revision in (before, large, after)] == [False, False, True]
        assert changes(store, large) is None
        assert changes(store, after) is not None

    def test_the_stores_time_is_the_time(self, store: Store) -> None:
        with store.read() as reader:
            assert abs(reader.time() - datetime.now(UTC)) < timedelta(minutes=1)

    def test_a_member_has_applied_what_was_committed_when_it_enrolled(self, store: Store) -> None:
        populate(store)
        store.enrol("a", LEASE)
        assert members(store) == [
            Member(process_id="a", fencing=False, lease=LEASE, acknowledged=head_of(store).number)
        ]

    def test_memberships_are_no_facts_and_move_no_revision(self, store: Store) -> None:
        head = head_of(store)
        store.enrol("a", LEASE)
        store.acknowledge("a", head)
        store.fence_silent(timedelta())
        store.leave(["a"])
        assert head_of(store) == head

    def test_an_acknowledgement_is_noted(self, store: Store) -> None:
        populate(store)
        store.enrol("a", LEASE)
        store.enrol("b", LEASE)
        revision = rename(store)
        assert store.acknowledge("a", revision)
        noted = {member.process_id: member.acknowledged for member in members(store)}
        assert noted == {"a": revision.number, "b": revision.number - 1}

    def test_an_acknowledgement_by_nobody_or_of_another_history_is_not_noted(self, store: Store) -> None:
        populate(store)
        store.enrol("a", LEASE)
        before = members(store)
        revision = rename(store)
        assert not store.acknowledge("b", revision)
        assert not store.acknowledge("a", replace(revision, nonce=revision.nonce ^ 1))
        assert not store.acknowledge("a", replace(revision, number=revision.number + 1))
        assert members(store) == before

    def test_a_silent_member_is_fenced_and_acknowledges_no_more(self, store: Store) -> None:
        populate(store)
        store.enrol("a", LEASE)
        store.fence_silent(timedelta(minutes=1))
        assert not members(store)[0].fencing
        store.fence_silent(timedelta(microseconds=-1_000_000))
        assert members(store)[0].fencing
        assert not store.acknowledge("a", rename(store))

    def test_who_leaves_is_no_member(self, store: Store) -> None:
        store.enrol("a", LEASE)
        store.enrol("b", LEASE)
        store.leave(["a", "never"])
        assert [member.process_id for member in members(store)] == ["b"]

    def test_the_version_differs_after_every_commit_if_there_is_one(self, store: Store, threads: Threads) -> None:
        populate(store)
        seen = [store.version()]
        if seen[0] is None:
            return
        for _ in range(5):
            rename(store)
            seen.append(store.version())
            threads.elsewhere(lambda: rename(store))
            seen.append(store.version())
        assert len(set(seen)) == len(seen)
        with abandoned(store) as writer:
            writer.replace_workspace(make_workspace(display_name="never"))
        head_of(store)
        assert store.version() == seen[-1]

    def test_news_come_of_commits_and_of_acknowledgements_where_there_is_no_version(
        self, store: Store, threads: Threads
    ) -> None:
        populate(store)
        if store.version() is not None:
            assert store.await_news(0) == News(0)
            return
        assert store.await_news(0) == News(0)
        with threads.another() as other:
            waiting = other.submit(lambda: store.await_news(PATIENCE))
            revision = rename(store)
            assert waiting.result(PATIENCE) == News.COMMITTED
            store.enrol("a", LEASE)
            while other.submit(lambda: store.await_news(0)).result(PATIENCE):
                pass
            waiting = other.submit(lambda: store.await_news(PATIENCE))
            store.acknowledge("a", revision)
            assert waiting.result(PATIENCE) == News.ACKNOWLEDGED
