"""What a store promises when many act at once on one row: transactions follow one another."""

from __future__ import annotations

import threading
from collections.abc import Callable

from server.domain import lifecycle, links
from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import KeyKind
from server.domain.lifecycle import Rotation
from server.domain.model import KeyState
from server.domain.token import TokenKind
from server.store.contract import DeviceFilter, Duplicate, KeyFilter, Reader, Store
from tests.builders import (
    DEVICE_ID,
    LINK_ID,
    NOW,
    PEPPERS,
    WORKSPACE_ID,
    make_device,
    make_key,
    make_workspace,
)
from tests.store.support import SERVER_KEY_ID, Threads, make_event, populate

AT_ONCE = 16
# The secrets that a key remembers: the one in force, and old ones.
KEPT = lifecycle.KEPT_GENERATIONS + 1


def rotate(store: Store) -> int | ErrorReason:
    """Rotate the server key without an overlap; return the number of the revision, or why not."""
    try:
        with store.write() as writer:
            key = writer.keys([SERVER_KEY_ID])[SERVER_KEY_ID]
            number = key.generations[-1].number + 1
            minted = lifecycle.mint_generation(TokenKind.SERVER, SERVER_KEY_ID, number, PEPPERS, NOW)
            lifetime = make_workspace().scoped_key_lifetime
            writer.replace_key(lifecycle.rotate(key, minted.generation, Rotation(), lifetime, NOW))
    except Refusal as refusal:
        return refusal.reason
    return writer.revision.number


def mark_everything(store: Store) -> int:
    """Write the number of the revision into one row of every sort, and return it."""
    with store.write() as writer:
        mark = str(writer.revision.number)
        writer.replace_workspace(make_workspace(display_name=mark))
        writer.put_devices([make_device(manufacturer=mark)])
        writer.replace_key(make_key(display_name=mark, labels={"mark": mark}))
        writer.record([make_event(reason=mark)])
    return writer.revision.number


def _workspace_mark(reader: Reader) -> str:
    workspace = reader.workspace(WORKSPACE_ID)
    assert workspace is not None
    return workspace.display_name


# Each way to read what `mark_everything` writes.
MARKS_IN: list[Callable[[Reader], str]] = [
    _workspace_mark,
    lambda reader: reader.devices([DEVICE_ID])[DEVICE_ID].manufacturer,
    lambda reader: reader.keys([SERVER_KEY_ID])[SERVER_KEY_ID].labels["mark"],
    lambda reader: (
        reader.list_keys(KeyFilter(workspace_id=WORKSPACE_ID, now=NOW, kind=KeyKind.SERVER), None, 1)
        .rows[0]
        .display_name
    ),
    lambda reader: reader.list_devices(DeviceFilter(workspace_id=WORKSPACE_ID), None, 1).rows[0].manufacturer,
    lambda reader: reader.list_key_events(SERVER_KEY_ID, None, 1_000).rows[-1].origin.reason,
    lambda reader: str(reader.head().number),
]


class RacePromises:
    """Holds for every store."""

    def test_of_many_that_complete_one_link_exactly_one_wins(self, store: Store, threads: Threads) -> None:
        populate(store)

        def complete(number: int) -> int | ErrorReason:
            scoped = make_key(KeyKind.SCOPED, key_id=f"ScopedOf{number:08}")
            try:
                with store.write() as writer:
                    link = writer.connect_link(LINK_ID)
                    assert link is not None
                    links.check_not_ended(link)
                    writer.add_key(scoped)
                    writer.put_devices([make_device(device_id=f"of-{number}")])
                    writer.replace_connect_link(links.complete(link, scoped.key_id, NOW))
            except Refusal as refusal:
                return refusal.reason
            return number

        outcomes = threads.together(AT_ONCE, complete)
        winners = [outcome for outcome in outcomes if isinstance(outcome, int)]
        assert len(winners) == 1
        assert outcomes.count(ErrorReason.CONNECT_LINK_COMPLETED) == AT_ONCE - 1
        with store.read() as reader:
            link = reader.connect_link(LINK_ID)
            assert link is not None
            assert link.scoped_key_id == f"ScopedOf{winners[0]:08}"
            minted = reader.keys([f"ScopedOf{number:08}" for number in range(AT_ONCE)])
            assert list(minted) == [link.scoped_key_id]
            connected = reader.devices([f"of-{number}" for number in range(AT_ONCE)])
            assert list(connected) == [f"of-{winners[0]}"]

    def test_of_many_rotations_of_one_key_each_follows_the_one_before(self, store: Store, threads: Threads) -> None:
        populate(store)
        with store.read() as reader:
            before = reader.head().number
        revisions = threads.together(AT_ONCE, lambda _: rotate(store))
        assert sorted(number for number in revisions if isinstance(number, int)) == list(
            range(before + 1, before + AT_ONCE + 1)
        )
        with store.read() as reader:
            generations = reader.keys([SERVER_KEY_ID])[SERVER_KEY_ID].generations
        assert [generation.number for generation in generations] == list(range(1, AT_ONCE + 2))[-KEPT:]
        assert [generation.number for generation in generations if generation.retire_time is None] == [AT_ONCE + 1]
        assert len({generation.digest for generation in generations}) == KEPT

    def test_no_rotation_succeeds_after_a_revoke(self, store: Store, threads: Threads) -> None:
        populate(store)

        def work(number: int) -> list[int | ErrorReason]:
            if number:
                return [rotate(store) for _ in range(3)]
            with store.write() as writer:
                key = writer.keys([SERVER_KEY_ID])[SERVER_KEY_ID]
                writer.replace_key(lifecycle.revoke(key, "leaked", NOW))
            return [writer.revision.number]

        (revoked,), *attempts = threads.together(AT_ONCE, work)
        assert isinstance(revoked, int)
        rotations = [outcome for outcomes in attempts for outcome in outcomes]
        succeeded = [outcome for outcome in rotations if isinstance(outcome, int)]
        assert all(number < revoked for number in succeeded)
        assert len(succeeded) + rotations.count(ErrorReason.KEY_IS_REVOKED) == len(rotations)
        assert rotate(store) is ErrorReason.KEY_IS_REVOKED
        with store.read() as reader:
            key = reader.keys([SERVER_KEY_ID])[SERVER_KEY_ID]
        assert key.state is KeyState.REVOKED
        assert [generation.number for generation in key.generations] == list(range(1, len(succeeded) + 2))[-KEPT:]
        assert [generation.number for generation in key.generations if generation.retire_time is None] == [
            len(succeeded) + 1
        ]

    def test_of_many_that_register_one_device_only_the_first_becomes_its_owner(
        self, store: Store, threads: Threads
    ) -> None:
        populate(store)

        def register(number: int) -> int | None:
            wanted = make_device(device_id="contested", reference_id=f"end-user-{number}")
            with store.write() as writer:
                if writer.devices(["contested"]).get("contested", wanted).reference_id != wanted.reference_id:
                    return None
                writer.put_devices([wanted])
            return number

        owners = [owner for owner in threads.together(AT_ONCE, register) if owner is not None]
        assert len(owners) == 1
        with store.read() as reader:
            assert reader.devices(["contested"])["contested"].reference_id == f"end-user-{owners[0]}"

    def test_of_many_that_add_one_id_exactly_one_does(self, store: Store, threads: Threads) -> None:
        populate(store)

        def add(number: int) -> bool:
            with store.write() as writer:
                try:
                    writer.add_key(make_key(key_id="Contested0000001", display_name=str(number)))
                except Duplicate:
                    return False
            return True

        outcomes = threads.together(AT_ONCE, add)
        assert outcomes.count(True) == 1
        with store.read() as reader:
            key = reader.keys(["Contested0000001"])["Contested0000001"]
        assert key.display_name == str(outcomes.index(True))

    def test_readers_never_see_half_of_a_transaction(self, store: Store, threads: Threads) -> None:
        populate(store)
        writes, writers, readers = 20, 2, 4
        first = mark_everything(store)
        done = [threading.Event() for _ in range(writers)]

        def write(number: int) -> int:
            for _ in range(writes):
                mark_everything(store)
            done[number].set()
            return writes

        def read(number: int) -> int:
            numbers: list[int] = []
            while not numbers or not all(event.is_set() for event in done):
                with store.read() as reader:
                    # Each reader begins with something else.
                    marks = {mark_in(reader) for mark_in in MARKS_IN[number:] + MARKS_IN[:number]}
                assert len(marks) == 1
                numbers.append(int(marks.pop()))
            assert numbers == sorted(numbers)
            return len(numbers)

        counts = threads.together(writers + readers, lambda n: write(n) if n < writers else read(n - writers))
        assert all(count >= 1 for count in counts[writers:])
        with store.read() as reader:
            assert reader.head().number == first + writes * writers
