"""What a store promises of the chain of the event log: every event has its place, whatever is recorded, and by whom."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from server.domain.chain import INSTALLATION, Chain, Place, Sealer, Stored
from server.domain.end_users import EndUser
from server.domain.events import Event, EventType, Origin, describe
from server.store.contract import Store
from tests.builders import NOW, PEPPERS, WORKSPACE_ID, make_caller, make_device, make_key
from tests.store.support import OTHER_WORKSPACE_ID, Threads, abandoned, make_event, populate

SEALER = Sealer(PEPPERS)
MOMENT = timedelta(microseconds=1)
MANY = 1_000


def of_caller() -> Event:
    return describe(EventType.CALLER_CREATED, Origin(caller_id="operator"), None, make_caller(), NOW)


def of_workspace(workspace_id: str) -> Event:
    return make_event(make_key(workspace_id=workspace_id))


def of_end_user(reference_id: str = "end-user-1") -> Event:
    device = make_device(reference_id=reference_id)
    return describe(EventType.DEVICE_REGISTERED, Origin(caller_id="devices"), None, device, NOW)


def record(store: Store, *events: Event) -> None:
    with store.write() as writer:
        writer.record(events)


def chain_of(store: Store, name: str = WORKSPACE_ID) -> Chain:
    with store.read() as reader:
        chain = reader.chain(name)
    assert chain is not None
    return chain


def links_of(store: Store, name: str = WORKSPACE_ID) -> list[Stored]:
    with store.read() as reader:
        return list(reader.chain_links(name, 0, MANY))


def holds(store: Store, name: str = WORKSPACE_ID) -> list[int]:
    """Make sure that a chain holds, from end to end, and return the numbers of its links."""
    with store.read() as reader:
        chain = reader.chain(name)
        assert chain is not None
        place = chain.anchor.place
        assert SEALER.anchored(chain)
        numbers = []
        for stored in reader.chain_links(name, place.number, MANY):
            assert stored.link.number == place.number + 1
            assert SEALER.linked(stored.link, place)
            assert SEALER.says(stored.link, stored.content)
            assert SEALER.redacted(stored.link)
            place = stored.link.place
            numbers.append(place.number)
        assert chain.head == place
    return numbers


class ChainPromises:
    """Holds for every store that has a sealer."""

    def test_an_empty_log_has_no_chain(self, store: Store) -> None:
        with store.read() as reader:
            assert reader.chain(WORKSPACE_ID) is None
            assert reader.chains(None, MANY) == []
            assert reader.chain_links(WORKSPACE_ID, 0, MANY) == []
            log = reader.event_log()
        assert (log.sealed_from, log.pruned_event_id, log.newest_event_id) == (1, 0, 0)

    def test_the_events_of_a_workspace_are_numbered_from_one_in_their_order(self, store: Store) -> None:
        populate(store)
        record(store, *[make_event()] * 3)
        record(store, make_event())
        assert holds(store) == [1, 2, 3, 4]
        with store.read() as reader:
            recorded = [event.event_id for event in reader.list_key_events(make_key().key_id, None, MANY).rows]
        assert [stored.link.event_id for stored in links_of(store)] == recorded

    def test_each_workspace_has_a_chain_of_its_own_and_so_has_the_installation(self, store: Store) -> None:
        populate(store)
        record(store, make_event(), of_caller(), of_workspace(OTHER_WORKSPACE_ID), make_event(), of_caller())
        assert holds(store) == holds(store, INSTALLATION) == [1, 2]
        assert holds(store, OTHER_WORKSPACE_ID) == [1]
        with store.read() as reader:
            found = reader.chains(None, MANY)
            assert [name for name, _ in found] == [INSTALLATION, WORKSPACE_ID, OTHER_WORKSPACE_ID]
            assert [chain for _, chain in found] == [reader.chain(name) for name, _ in found]
            assert reader.chains(INSTALLATION, 1) == [found[1]]
            assert reader.chains(OTHER_WORKSPACE_ID, 1) == []

    def test_several_records_of_one_transaction_follow_one_another(self, store: Store) -> None:
        populate(store)
        with store.write() as writer:
            for _ in range(3):
                writer.record([make_event(), of_caller()])
        assert holds(store) == holds(store, INSTALLATION) == [1, 2, 3]

    def test_more_events_than_one_statement_carries_are_all_linked(self, store: Store) -> None:
        populate(store)
        record(store, *[make_event()] * 1_201)
        with store.read() as reader:
            assert len(reader.chain_links(WORKSPACE_ID, 0, 2_000)) == 1_201
            assert [one.link.number for one in reader.chain_links(WORKSPACE_ID, 1_199, 2_000)] == [1_200, 1_201]
            ids = [one.link.event_id for one in reader.chain_links(WORKSPACE_ID, 0, 2_000)]
            assert list(reader.event_links(ids)) == ids

    def test_what_is_rolled_back_leaves_no_link(self, store: Store) -> None:
        populate(store)
        record(store, make_event())
        with abandoned(store) as writer:
            writer.record([make_event(), of_caller()])
        record(store, make_event())
        assert holds(store) == [1, 2]
        with store.read() as reader:
            assert reader.chain(INSTALLATION) is None

    def test_many_writers_make_one_chain(self, store: Store, threads: Threads) -> None:
        populate(store)

        def work(_number: int) -> None:
            for _ in range(5):
                record(store, make_event(), of_caller())

        threads.together(4, work)
        assert holds(store) == holds(store, INSTALLATION) == list(range(1, 21))

    def test_two_links_of_the_same_event_have_nothing_in_common(self, store: Store) -> None:
        populate(store)
        record(store, make_event(), make_event())
        one, other = (stored.link for stored in links_of(store))
        assert len({one.salt, other.salt, one.content_mac, other.content_mac, one.mac, other.mac}) == 6

    def test_a_redacted_event_holds_and_nobody_can_try_out_what_it_said(self, store: Store) -> None:
        populate(store)
        record(store, make_event(), of_end_user(), of_end_user("end-user-2"))
        before = links_of(store)
        self._rename(store, "end-user-1", "erased:1")
        assert holds(store) == [1, 2, 3]
        after = links_of(store)
        assert (after[0], after[2]) == (before[0], before[2])
        redacted = after[1].link
        assert (redacted.content_mac, redacted.mac) == (before[1].link.content_mac, before[1].link.mac)
        assert redacted.salt != before[1].link.salt
        assert not SEALER.says(replace(redacted, redaction=None), before[1].content)
        record(store, make_event())
        assert holds(store) == [1, 2, 3, 4]

    def test_an_event_may_be_redacted_again(self, store: Store) -> None:
        populate(store)
        record(store, of_end_user())
        for number in range(3):
            self._rename(store, "end-user-1" if not number else f"erased:{number - 1}", f"erased:{number}")
            assert holds(store) == [1]

    def test_what_was_altered_does_not_pass_for_redacted(self, store: Store) -> None:
        populate(store)
        record(store, of_end_user())
        # As nobody but who can write rows would.
        link = links_of(store)[0]
        with store.write() as writer:
            writer._execute('UPDATE "event" SET "caller_id" = ?', "somebody")  # type: ignore[attr-defined]
            writer.record([make_event()])
        self._rename(store, "end-user-1", "erased:1")
        altered = links_of(store)[0]
        assert altered.link == link.link
        assert not SEALER.says(altered.link, altered.content)

    def test_pruning_moves_the_beginning_and_the_numbers_go_on(self, store: Store) -> None:
        populate(store)
        record(store, *[replace(make_event(), event_time=NOW + number * MOMENT) for number in range(5)], of_caller())
        with store.write() as writer:
            assert writer.prune_events(NOW + 3 * MOMENT, MANY) == 3
        assert holds(store) == [4, 5]
        assert chain_of(store).anchor.place.number == 3
        with store.read() as reader:
            assert len(reader.event_links(range(1, 10))) == 3
            assert reader.event_log().pruned_event_id == 3
        record(store, make_event())
        assert holds(store) == [4, 5, 6]

    def test_what_is_pruned_from_the_middle_holds_and_is_let_go_of_with_what_was_before_it(self, store: Store) -> None:
        populate(store)
        times = (5, 0, 5, 1, 9)
        record(store, *[replace(make_event(), event_time=NOW + number * MOMENT) for number in times], of_caller())
        with store.write() as writer:
            writer.prune_events(NOW + 2 * MOMENT, MANY)
        assert holds(store) == [1, 2, 3, 4, 5]
        assert [stored.content is None for stored in links_of(store)] == [False, True, False, True, False]
        with store.write() as writer:
            writer.prune_events(NOW + 6 * MOMENT, MANY)
        assert holds(store) == [5]

    def test_a_chain_may_be_pruned_to_nothing_and_go_on(self, store: Store) -> None:
        populate(store)
        record(store, *[make_event()] * 3, of_caller())
        with store.write() as writer:
            assert writer.prune_events(NOW + MOMENT, MANY) == 3
        assert holds(store) == []
        assert chain_of(store).head == chain_of(store).anchor.place != Place()
        record(store, make_event())
        assert holds(store) == [4]

    def test_an_altered_event_that_is_pruned_stays_missing(self, store: Store) -> None:
        populate(store)
        record(store, make_event(), make_event())
        with store.write() as writer:
            writer._execute('UPDATE "event" SET "event_time" = 0 WHERE "event_id" = 1')  # type: ignore[attr-defined]
            writer.record([of_caller()])
        with store.write() as writer:
            assert writer.prune_events(NOW - MOMENT, MANY) == 1
        first = links_of(store)[0]
        assert (first.link.number, first.content, first.link.redaction) == (1, None, None)

    def test_events_without_a_link_are_found_and_counted(self, store: Store) -> None:
        populate(store)
        record(store, *[make_event()] * 4)
        with store.write() as writer:
            writer._execute('DELETE FROM "event_link" WHERE "number" IN (2, 3)')  # type: ignore[attr-defined]
            writer.record([of_caller()])
        with store.read() as reader:
            assert reader.loose_event(WORKSPACE_ID, 0, None) == 2
            assert reader.loose_event(WORKSPACE_ID, 2, None) == 3
            assert reader.loose_event(WORKSPACE_ID, 3, None) is None
            assert reader.loose_event(WORKSPACE_ID, 0, 1) is None
            assert reader.loose_event(INSTALLATION, 0, None) is None
            assert reader.count_unsealed(WORKSPACE_ID, 4) == 2
            assert reader.count_unsealed(WORKSPACE_ID, 3) == 1
            assert reader.count_unsealed(INSTALLATION, 100) == 0

    def test_no_name_that_no_chain_can_have_finds_any(self, store: Store) -> None:
        with store.read() as reader:
            assert reader.chain("\0") is None
            assert reader.chain_links("\0", 0, MANY) == []
            assert reader.loose_event("\0", 0, None) is None
            assert reader.count_unsealed("\0", MANY) == 0

    def _rename(self, store: Store, reference_id: str, pseudonym: str) -> None:
        end_user = EndUser(WORKSPACE_ID, reference_id)
        with store.write() as writer:
            events = writer.list_end_user_events(end_user, None, MANY).rows
            assert events
            writer.replace_events(
                replace(event, after={**(event.after or {}), "reference_id": pseudonym}) for event in events
            )
