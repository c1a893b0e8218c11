"""What a store promises about what keys were used for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from server.domain.end_users import EndUser
from server.domain.kinds import KeyKind
from server.domain.reasons import Reason
from server.domain.usage import Bucket, CallerUse, LastUse, Span, Touch, UsageBatch, UsageReport, Use
from server.store import usage_rows
from server.store.contract import Store
from server.store.peewee_store import Engine
from tests.builders import DEVICE_ID, NOW, REFERENCE_ID, WORKSPACE_ID, make_device, make_key
from tests.store.support import (
    OTHER_WORKSPACE_ID,
    SCOPED_KEY_ID,
    SERVER_KEY_ID,
    Deliberate,
    Threads,
    dump,
    populate,
    read_all,
)

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


def bucket(key_id: str = SERVER_KEY_ID, hour: datetime = NOW, **changes: Any) -> Bucket:
    """Return a bucket of a server key that was allowed to read a device."""
    whole = Bucket(key_id, hour, 1, False, "device-api", "devices:read", Reason.PERMITTED)
    return whole._replace(**changes)


def span(count: int = 1, first: datetime = NOW, last: datetime | None = None) -> Span:
    return Span(count, first, first if last is None else last)


def report(process_id: str = "one", sequence: int = 1, **changes: Any) -> UsageReport:
    return replace(UsageReport(process_id=process_id, sequence=sequence, start_time=NOW, report_time=NOW), **changes)


def add(
    store: Store,
    uses: Mapping[Bucket, Span],
    touches: Mapping[tuple[str, str], Span] | None = None,
    left_out: Mapping[str, datetime] | None = None,
    by: UsageReport | None = None,
) -> None:
    """Store what a process has counted; another process each time, unless it is named."""
    by = by or report(f"process {id(uses)} {len(uses)} {reported(store)}")
    with store.note(durable=False) as notes:
        notes.add_usage(UsageBatch(uses=uses, touches=touches or {}, left_out=left_out or {}, report=by))


def reported(store: Store) -> int:
    with store.read() as reader:
        return len(reader.usage_reports())


def usage_of(store: Store, key_id: str = SERVER_KEY_ID, limit: int = 2) -> list[Use]:
    """Return the uses of a key, read page by page."""
    return read_all(store, lambda reader, after: reader.list_key_usage(key_id, None, None, after, limit))


def devices_of(store: Store, key_id: str = SERVER_KEY_ID, limit: int = 2) -> list[Touch]:
    return read_all(store, lambda reader, after: reader.list_key_devices(key_id, after, limit))


def keys_of(store: Store, device_id: str = DEVICE_ID) -> list[Touch]:
    return read_all(store, lambda reader, after: reader.list_device_keys(device_id, after, 1))


class UsagePromises:
    """Holds for every store."""

    def test_uses_of_a_bucket_add_up_whoever_has_counted_them(self, store: Store) -> None:
        populate(store)
        add(store, {bucket(): span(2, NOW + MINUTE, NOW + 2 * MINUTE)})
        add(store, {bucket(): span(3, NOW, NOW + MINUTE), bucket(generation=2): span()})
        add(store, {bucket(): span(1, NOW + 3 * MINUTE)})
        assert usage_of(store) == [
            Use(bucket(), span(6, NOW, NOW + 3 * MINUTE)),
            Use(bucket(generation=2), span()),
        ]

    def test_buckets_are_told_apart_by_every_part_and_listed_by_the_hour(self, store: Store) -> None:
        populate(store)
        apart = [
            bucket(hour=NOW - HOUR),
            bucket(),
            bucket(caller_id="other-api"),
            bucket(permission="devices:command"),
            bucket(reason=Reason.KEY_SUSPENDED),
            bucket(retiring=True),
            bucket(generation=2),
            bucket(hour=NOW + HOUR, caller_id="", permission=""),
        ]
        add(store, {one: span(number + 1) for number, one in enumerate(apart)})
        add(store, {bucket(SCOPED_KEY_ID): span()})
        for limit in (1, 3, 100):
            found = usage_of(store, limit=limit)
            assert {use.bucket: use.span.count for use in found} == {one: n + 1 for n, one in enumerate(apart)}
            assert len(found) == len(apart)
            hours = [use.bucket.hour for use in found]
            assert hours == sorted(hours)

    def test_uses_are_listed_of_hours_from_one_instant_until_another(self, store: Store) -> None:
        populate(store)
        hours = [NOW + number * HOUR for number in range(4)]
        add(store, {bucket(hour=hour): span(first=hour) for hour in hours})
        with store.read() as reader:
            page = reader.list_key_usage(SERVER_KEY_ID, hours[1], hours[3], None, 10)
            assert [use.bucket.hour for use in page.rows] == hours[1:3]
            (total,) = reader.total_key_usage(SERVER_KEY_ID, hours[1], hours[3])
        assert total == Use(bucket(hour=hours[1]), span(2, hours[1], hours[2]))

    def test_totals_add_up_hours_and_secrets_before_and_after_their_rotation(self, store: Store) -> None:
        populate(store)
        add(store, {bucket(): span(2), bucket(hour=NOW + HOUR, retiring=True): span(3, NOW + HOUR)})
        add(store, {bucket(reason=Reason.KEY_EXPIRED): span(7)})
        with store.read() as reader:
            found = set(reader.total_key_usage(SERVER_KEY_ID, None, None))
            assert reader.total_key_usage(SCOPED_KEY_ID, None, None) == []
        assert found == {
            Use(bucket(), span(5, NOW, NOW + HOUR)),
            Use(bucket(reason=Reason.KEY_EXPIRED), span(7)),
        }

    def test_uses_of_a_secret_since_it_was_replaced_are_told_by_caller(self, store: Store) -> None:
        populate(store)
        add(
            store,
            {
                bucket(): span(100),
                bucket(retiring=True): span(1),
                bucket(retiring=True, permission="devices:command"): span(2, NOW + MINUTE),
                bucket(retiring=True, caller_id="other-api"): span(4),
                bucket(generation=2): span(200),
            },
        )
        with store.read() as reader:
            found = {number: set(uses) for number, uses in reader.usage_of_replaced(SERVER_KEY_ID).items()}
            assert reader.usage_of_replaced(SCOPED_KEY_ID) == {}
        assert found == {
            1: {CallerUse("device-api", span(3, NOW, NOW + MINUTE)), CallerUse("other-api", span(4))},
        }

    def test_the_last_use_of_a_key_is_the_last_of_all_its_uses(self, store: Store) -> None:
        populate(store)
        add(store, {bucket(): span(1, NOW, NOW + HOUR), bucket(generation=2): span(1, NOW + MINUTE)})
        add(store, {bucket(): span(1, NOW)})
        with store.read() as reader:
            assert reader.last_uses([SERVER_KEY_ID, SCOPED_KEY_ID, "none"]) == {
                SERVER_KEY_ID: LastUse(NOW + HOUR, None)
            }

    def test_touches_are_found_by_key_and_by_device(self, store: Store) -> None:
        populate(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id=f"d-{number}") for number in range(5)])
        uses = {bucket(): span(), bucket(SCOPED_KEY_ID): span()}
        add(store, uses, {(SERVER_KEY_ID, f"d-{number}"): span(number + 1) for number in range(5)})
        add(store, uses, {(SERVER_KEY_ID, "d-3"): span(1, NOW - HOUR, NOW + HOUR), (SCOPED_KEY_ID, "d-3"): span(9)})
        assert devices_of(store) == [
            *(Touch(SERVER_KEY_ID, f"d-{number}", span(number + 1)) for number in range(3)),
            Touch(SERVER_KEY_ID, "d-3", span(5, NOW - HOUR, NOW + HOUR)),
            Touch(SERVER_KEY_ID, "d-4", span(5)),
        ]
        assert keys_of(store, "d-3") == [
            Touch(SCOPED_KEY_ID, "d-3", span(9)),
            Touch(SERVER_KEY_ID, "d-3", span(5, NOW - HOUR, NOW + HOUR)),
        ]
        assert keys_of(store, "d-9") == []

    def test_a_touch_outlives_its_device_but_none_of_a_device_that_is_no_more_is_added(self, store: Store) -> None:
        populate(store)
        touch = {(SERVER_KEY_ID, DEVICE_ID): span()}
        add(store, {bucket(): span()}, touch)
        with store.write() as writer:
            writer.remove_devices([DEVICE_ID])
        add(store, {bucket(): span()}, touch)
        assert devices_of(store) == [Touch(SERVER_KEY_ID, DEVICE_ID, span())]

    def test_what_is_about_a_key_that_is_no_more_is_left_out(self, store: Store) -> None:
        populate(store)
        gone = "GoneKey000000001"
        add(
            store,
            {bucket(gone): span(), bucket(): span()},
            {(gone, DEVICE_ID): span(), (SERVER_KEY_ID, DEVICE_ID): span()},
            {gone: NOW},
        )
        assert (usage_of(store, gone), devices_of(store, gone)) == ([], [])
        assert len(usage_of(store)) == len(devices_of(store)) == 1

    def test_no_more_devices_of_a_key_are_kept_than_may_be_and_it_is_known_that_there_were_more(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(usage_rows, "MOST_TOUCHES", 3)
        populate(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id=f"d-{number}") for number in range(6)])

        def touch(*numbers: int, at: datetime = NOW) -> None:
            add(store, {bucket(): span(1, at)}, {(SERVER_KEY_ID, f"d-{number}"): span(1, at) for number in numbers})

        def left_out() -> datetime | None:
            with store.read() as reader:
                assert reader.touches_left_out(OTHER_WORKSPACE_ID) is False
                found = reader.last_uses([SERVER_KEY_ID])[SERVER_KEY_ID].devices_left_out_time
                assert reader.touches_left_out(WORKSPACE_ID) == (found is not None)
            return found

        touch(0, 1)
        touch(1, 2)
        assert left_out() is None
        touch(2, 3, at=NOW + MINUTE)
        assert left_out() == NOW + MINUTE
        touch(0, at=NOW + HOUR)
        assert [touch.device_id for touch in devices_of(store)] == ["d-0", "d-1", "d-2"]
        assert left_out() == NOW + MINUTE
        # Where there is room again, it is used.
        with store.note() as notes:
            assert notes.prune_usage(NOW + MINUTE, 100) > 0
        touch(4, 5)
        assert [touch.device_id for touch in devices_of(store)] == ["d-0", "d-2", "d-4"]

    def test_a_process_that_left_devices_out_is_believed(self, store: Store) -> None:
        populate(store)
        add(store, {bucket(): span()}, left_out={SERVER_KEY_ID: NOW})
        with store.read() as reader:
            assert reader.last_uses([SERVER_KEY_ID])[SERVER_KEY_ID] == LastUse(NOW, NOW)
            assert reader.touches_left_out(WORKSPACE_ID)

    def test_thousands_at_once_are_all_there(self, store: Store) -> None:
        populate(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id=f"d-{number:04}") for number in range(1_203)])
        uses = {bucket(caller_id=f"caller-{number}"): span(number + 1) for number in range(1_203)}
        touches = {(SERVER_KEY_ID, f"d-{number:04}"): span(number + 1) for number in range(1_203)}
        for process_id in ("one", "two"):
            add(store, uses, touches, by=report(process_id))
        assert sorted(use.span.count for use in usage_of(store, limit=500)) == [2 * (n + 1) for n in range(1_203)]
        assert [touch.span.count for touch in devices_of(store, limit=500)] == [2 * (n + 1) for n in range(1_203)]

    def test_what_is_given_again_under_the_same_sequence_counts_once(self, store: Store) -> None:
        populate(store)
        for sequence in (1, 1, 2, 1, 2, 3):
            add(store, {bucket(): span()}, {(SERVER_KEY_ID, DEVICE_ID): span()}, by=report(sequence=sequence))
        add(store, {bucket(): span()}, by=report("two"))
        assert [use.span.count for use in usage_of(store)] == [4]
        assert [touch.span.count for touch in devices_of(store)] == [3]

    def test_reports_tell_how_far_each_process_has_come(self, store: Store) -> None:
        populate(store)
        add(store, {}, by=report("one"))
        later = report("one", 2, report_time=NOW + HOUR, uncounted_time=NOW)
        other = report("two")
        add(store, {}, by=later)
        add(store, {}, by=other)
        with store.read() as reader:
            assert sorted(reader.usage_reports(), key=lambda one: one.process_id) == [later, other]

    def test_a_process_that_has_ended_is_forgotten_unless_it_did_not_count_all(self, store: Store) -> None:
        populate(store)
        uncounted = report("two", 2, end_time=NOW, uncounted_time=NOW)
        for one in (report("one"), report("two"), report("one", 2, end_time=NOW), uncounted):
            add(store, {bucket(): span()}, by=one)
        with store.read() as reader:
            assert reader.usage_reports() == [uncounted]
        assert [use.span.count for use in usage_of(store)] == [4]

    def test_what_is_old_is_forgotten_and_nothing_else(self, store: Store) -> None:
        populate(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id="d-2")])
        old = NOW - HOUR
        add(
            store,
            {bucket(hour=old): span(first=old), bucket(): span()},
            {(SERVER_KEY_ID, DEVICE_ID): span(1, old), (SERVER_KEY_ID, "d-2"): span(2, old, NOW)},
            by=report("old", report_time=old),
        )
        add(store, {}, by=report("new"))
        with store.note() as notes:
            assert notes.prune_usage(old, 10) == 0
            assert notes.prune_usage(NOW, 10) == 3
            assert notes.prune_usage(NOW, 10) == 0
        assert usage_of(store) == [Use(bucket(), span())]
        assert devices_of(store) == [Touch(SERVER_KEY_ID, "d-2", span(2, old, NOW))]
        with store.read() as reader:
            assert [one.process_id for one in reader.usage_reports()] == ["new"]

    def test_so_much_is_forgotten_at_a_time_as_is_said_the_oldest_first(self, store: Store) -> None:
        populate(store)
        hours = [NOW - number * HOUR for number in range(1, 8)]
        add(store, {bucket(hour=hour): span(first=hour) for hour in hours}, left_out={SERVER_KEY_ID: hours[0]})
        left = []
        for _ in range(3):
            with store.note() as notes:
                assert notes.prune_usage(NOW, 3) > 0
            left.append([use.bucket.hour for use in usage_of(store)])
        assert left == [sorted(hours[:4]), sorted(hours[:1]), []]
        with store.read() as reader:
            assert reader.last_uses([SERVER_KEY_ID]) == {SERVER_KEY_ID: LastUse(hours[0], None)}

    def test_noting_moves_no_revision_and_an_exception_takes_it_all_back(self, store: Store, engine: Engine) -> None:
        populate(store)
        before = dump(engine)
        batch = UsageBatch(
            uses={bucket(): span()}, touches={(SERVER_KEY_ID, DEVICE_ID): span()}, left_out={}, report=report()
        )
        with pytest.raises(Deliberate), store.note() as notes:  # noqa: PT012 - the block is what is rolled back
            notes.add_usage(batch)
            raise Deliberate
        assert dump(engine) == before
        add(store, batch.uses, batch.touches)
        after = dump(engine)
        assert after["revision"] == before["revision"]
        assert after["change"] == before["change"]
        assert {name for name in after if after[name] != before[name]} == {
            "key_usage",
            "key_last_use",
            "device_touch",
            "usage_report",
        }

    def test_with_an_end_user_goes_what_their_keys_were_used_for_and_who_touched_their_devices(
        self, store: Store
    ) -> None:
        populate(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id="of-another", reference_id="end-user-2")])
        add(
            store,
            {bucket(): span(), bucket(SCOPED_KEY_ID): span()},
            {
                (SERVER_KEY_ID, DEVICE_ID): span(),
                (SERVER_KEY_ID, "of-another"): span(),
                (SCOPED_KEY_ID, DEVICE_ID): span(),
            },
        )
        with store.write() as writer:
            writer.remove_end_user(EndUser(WORKSPACE_ID, REFERENCE_ID))
        assert usage_of(store, SCOPED_KEY_ID) == []
        assert devices_of(store, SCOPED_KEY_ID) == keys_of(store) == []
        assert devices_of(store) == [Touch(SERVER_KEY_ID, "of-another", span())]
        assert usage_of(store) == [Use(bucket(), span())]
        with store.read() as reader:
            assert set(reader.last_uses([SERVER_KEY_ID, SCOPED_KEY_ID])) == {SERVER_KEY_ID}

    def test_of_many_that_add_at_once_all_are_counted(self, store: Store, threads: Threads) -> None:
        populate(store)
        with store.write() as writer:
            writer.put_devices([make_device(device_id=f"d-{number}") for number in range(20)])
        keys = (SERVER_KEY_ID, SCOPED_KEY_ID)

        def work(number: int) -> None:
            for sequence in range(1, 6):
                order = keys if (number + sequence) % 2 else tuple(reversed(keys))
                add(
                    store,
                    {bucket(key_id, caller_id=f"caller-{one}"): span() for key_id in order for one in range(5)},
                    {(key_id, f"d-{one}"): span() for key_id in order for one in range(20)},
                    by=report(f"process {number}", sequence),
                )

        threads.together(4, work)
        for key_id in keys:
            assert {use.span.count for use in usage_of(store, key_id, 100)} == {20}
            assert {touch.span.count for touch in devices_of(store, key_id, 100)} == {20}

    def test_nothing_is_left_of_an_end_user_who_is_erased_while_others_add(
        self, store: Store, threads: Threads
    ) -> None:
        populate(store)
        for number in range(8):
            user, key_id, device_id = f"user-{number}", f"ErasedKey{number:07}", f"erased-{number}"
            with store.write() as writer:
                writer.add_key(make_key(KeyKind.SCOPED, key_id=key_id, reference_id=user))
                writer.put_devices([make_device(device_id=device_id, reference_id=user)])
            adding = UsageBatch(
                uses={bucket(key_id): span(), bucket(): span()},
                touches={(key_id, device_id): span(), (SERVER_KEY_ID, device_id): span()},
                left_out={},
                report=report(f"process {number}"),
            )

            def work(which: int, user: str = user, batch: UsageBatch = adding) -> None:
                if which == 0:
                    with store.write() as writer:
                        writer.remove_end_user(EndUser(WORKSPACE_ID, user))
                    return
                for sequence in range(1, 8):
                    add(store, batch.uses, batch.touches, by=replace(batch.report, sequence=sequence))

            threads.together(2, work)
            assert usage_of(store, key_id) == []
            assert keys_of(store, device_id) == []
        with store.read() as reader:
            assert set(reader.last_uses([f"ErasedKey{number:07}" for number in range(8)])) == set()
        assert sum(use.span.count for use in usage_of(store)) == 8 * 7
