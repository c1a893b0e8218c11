"""What a store promises about each entity: missing, added, duplicate, replaced."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from server.domain.kinds import KeyKind
from server.domain.model import Key, KeyState
from server.domain.token import TokenKind
from server.store.contract import Duplicate, KeyFilter, Store
from server.store.peewee_store import Engine
from tests.builders import CALLER_KEY_ID, NOW, WORKSPACE_ID, make_caller, make_device, make_generation, make_key
from tests.store.samples import CASES, HANDLINGS, INSERTED, Handling
from tests.store.support import (
    OTHER_WORKSPACE_ID,
    SERVER_KEY_ID,
    abandoned,
    changes_of,
    dump,
    make_request,
    populate,
)

every_entity = pytest.mark.parametrize("handling", HANDLINGS, ids=str)
every_inserted_entity = pytest.mark.parametrize("handling", INSERTED, ids=str)


def _states_of_many_keys(count: int) -> list[tuple[Key, Key]]:
    """Return keys and what becomes of them, no two alike: generations and labels are added, changed and dropped."""
    states = []
    for number in range(count):
        key_id = f"Many{number:012}"
        first, second, third = (make_generation(TokenKind.SERVER, key_id, place) for place in (1, 2, 3))
        retired = replace(first, retire_time=NOW)
        before = make_key(
            key_id=key_id,
            generations=((first,), (retired, second))[number % 2],
            labels=({}, {"team": f"t{number}"}, {"team": "a", "site": "1"})[number % 3],
        )
        after = replace(
            before,
            state=KeyState.REVOKED if number % 2 else KeyState.ACTIVE,
            revoke_time=NOW if number % 2 else None,
            workspace_id=(WORKSPACE_ID, OTHER_WORKSPACE_ID)[number % 5 == 0],
            display_name=f"key {number}",
            generations=((retired, second), (replace(second, retire_time=NOW), third))[number % 2],
            labels=({"new": ""}, {}, {"site": "2"}, {"team": f"t{number}"})[number % 4],
            update_time=NOW + timedelta(seconds=number),
        )
        states.append((before, after))
    return states


class EntityPromises:
    """Holds for every store."""

    @every_entity
    def test_what_is_missing_is_none_or_not_in_the_mapping(self, store: Store, handling: Handling) -> None:
        with store.read() as reader:
            assert handling.get(reader, handling.samples[0]) is None
            assert reader.keys([]) == {}
            assert reader.keys(["NoKey"]) == {}
            assert reader.devices([]) == {}
            assert reader.devices(["no-device"]) == {}
            assert reader.caller_of_key("NoKey") is None
            assert reader.carried_out("dashboard", "CreateKey", "request-1") is None

    @every_entity
    def test_what_was_added_comes_back_equal_in_every_field(self, store: Store, handling: Handling) -> None:
        populate(store)
        with store.write() as writer:
            for sample in handling.samples:
                handling.add(writer, sample)
        with store.read() as reader:
            for sample in handling.samples:
                assert handling.get(reader, sample) == sample

    @every_entity
    def test_a_replacement_comes_back_whole_and_touches_no_other_row(self, store: Store, handling: Handling) -> None:
        populate(store)
        first, *others = handling.samples
        with store.write() as writer:
            for sample in handling.samples:
                handling.add(writer, sample)
        for state in handling.replacements:
            with store.write() as writer:
                assert handling.get(writer, first) is not None
                handling.replace(writer, state)
            with store.read() as reader:
                found = handling.get(reader, first)
                assert found == state
                for other in others:
                    assert handling.get(reader, other) == other

    @every_inserted_entity
    def test_a_duplicate_is_refused_and_the_transaction_goes_on_without_it(
        self, store: Store, engine: Engine, handling: Handling
    ) -> None:
        populate(store)
        first, second, *_ = handling.samples
        with store.write() as writer:
            handling.add(writer, first)
        with store.write() as writer:
            with pytest.raises(Duplicate):
                handling.add(writer, handling.replacements[0])
            assert handling.get(writer, first) == first
            handling.add(writer, second)
        with store.read() as reader:
            assert handling.get(reader, first) == first
            assert handling.get(reader, second) == second
        changed = {(kind, entity_id) for _, kind, entity_id in changes_of(engine, writer.revision.number)}
        assert changed == {(handling.kind, handling.change_id(second))} | handling.also_noted(second)

    @every_inserted_entity
    def test_a_duplicate_within_one_transaction_is_refused_too(self, store: Store, handling: Handling) -> None:
        populate(store)
        with store.write() as writer:
            handling.add(writer, handling.samples[0])
            with pytest.raises(Duplicate):
                handling.add(writer, handling.samples[0])
        with store.read() as reader:
            assert handling.get(reader, handling.samples[0]) == handling.samples[0]

    @every_inserted_entity
    def test_a_transaction_of_nothing_but_a_duplicate_leaves_no_trace(
        self, store: Store, engine: Engine, handling: Handling
    ) -> None:
        populate(store)
        with store.write() as writer:
            handling.add(writer, handling.samples[0])
        before = dump(engine)
        with store.write() as writer, pytest.raises(Duplicate):
            handling.add(writer, handling.samples[0])
        assert dump(engine) == before

    @every_inserted_entity
    def test_replacing_what_does_not_exist_fails_and_makes_nothing(
        self, store: Store, engine: Engine, handling: Handling
    ) -> None:
        populate(store)
        before = dump(engine)
        with pytest.raises(LookupError), store.write() as writer:
            handling.replace(writer, handling.samples[0])
        assert dump(engine) == before

    @every_entity
    def test_ids_that_differ_only_in_case_are_different(self, store: Store, handling: Handling) -> None:
        populate(store)
        lower, upper = CASES[handling.kind]
        with store.write() as writer:
            handling.add(writer, lower)
        with store.read() as reader:
            assert handling.get(reader, upper) is None
        with store.write() as writer:
            handling.add(writer, upper)
        with store.read() as reader:
            assert handling.get(reader, lower) == lower
            assert handling.get(reader, upper) == upper

    def test_a_callers_key_id_that_is_taken_is_a_duplicate(self, store: Store, engine: Engine) -> None:
        populate(store)
        before = dump(engine)
        with store.write() as writer, pytest.raises(Duplicate):
            writer.add_caller(make_caller(caller_id="another", key_id=CALLER_KEY_ID))
        assert dump(engine) == before

    def test_a_caller_is_found_by_its_key(self, store: Store) -> None:
        populate(store)
        with store.read() as reader:
            assert reader.caller_of_key(CALLER_KEY_ID) == make_caller()
            assert reader.caller_of_key(SERVER_KEY_ID) is None
            assert reader.caller_of_key("device-api") is None
            assert reader.caller(CALLER_KEY_ID) is None

    def test_only_those_of_the_keys_that_exist_are_returned(self, store: Store) -> None:
        populate(store)
        connect = make_key(KeyKind.CONNECT)
        with store.read() as reader:
            found = reader.keys({SERVER_KEY_ID, "NoKey", connect.key_id})
        assert found == {SERVER_KEY_ID: make_key(), connect.key_id: connect}

    def test_generations_come_back_oldest_first(self, store: Store) -> None:
        populate(store)
        # Twelve, so that an order by text would show.
        generations = tuple(
            make_generation(TokenKind.SERVER, "ManyGenerations1", number, retire_time=None if number == 12 else NOW)
            for number in range(1, 13)
        )
        with store.write() as writer:
            writer.add_key(make_key(key_id="ManyGenerations1", generations=generations))
        with store.read() as reader:
            assert reader.keys(["ManyGenerations1"])["ManyGenerations1"].generations == generations

    def test_generations_that_are_left_out_are_deleted(self, store: Store) -> None:
        populate(store)
        key = make_key()
        rotated = (
            replace(key.generations[0], retire_time=NOW),
            make_generation(TokenKind.SERVER, SERVER_KEY_ID, 2),
        )
        with store.write() as writer:
            writer.replace_key(replace(key, generations=rotated))
        with store.write() as writer:
            writer.replace_key(replace(key, display_name="renamed", generations=rotated[1:]))
        with store.read() as reader:
            found = reader.keys([SERVER_KEY_ID])[SERVER_KEY_ID]
        assert found == replace(key, display_name="renamed", generations=rotated[1:])

    def test_replacing_a_key_replaces_its_labels_and_nobody_elses(self, store: Store) -> None:
        populate(store)
        other = make_key(key_id="Labelled00000001", labels={"team": "fleet"})
        with store.write() as writer:
            writer.add_key(other)
        for labels in ({"team": "grid", "site": "1"}, {"site": "2", "new": ""}, {}):
            with store.write() as writer:
                writer.replace_key(replace(make_key(), labels=labels))
            with store.read() as reader:
                found = reader.keys([SERVER_KEY_ID, other.key_id])
            assert found[SERVER_KEY_ID].labels == labels
            assert found[other.key_id] == other

    def test_many_keys_are_replaced_at_once_each_by_its_own_new_state(self, store: Store, engine: Engine) -> None:
        populate(store)
        states = _states_of_many_keys(510)
        with store.write() as writer:
            for before, _ in states:
                writer.add_key(before)
        with store.write() as writer:
            assert len(writer.keys([before.key_id for before, _ in states])) == len(states)
            writer.replace_keys([after for _, after in states])
            assert writer.keys([states[-1][1].key_id]) == {states[-1][1].key_id: states[-1][1]}
        with store.read() as reader:
            found = reader.keys([*(after.key_id for _, after in states), SERVER_KEY_ID])
            listed = reader.list_keys(KeyFilter(workspace_id=OTHER_WORKSPACE_ID, now=NOW), None, 1_000).rows
        assert found == {after.key_id: after for _, after in states} | {SERVER_KEY_ID: make_key()}
        # In their place of before, too: those that have moved to another workspace excepted.
        assert [key.key_id for key in listed] == sorted(
            after.key_id for _, after in states if after.workspace_id == OTHER_WORKSPACE_ID
        )
        changed = {(kind, entity_id) for _, kind, entity_id in changes_of(engine, writer.revision.number)}
        assert changed == {("key", after.key_id) for _, after in states}

    def test_of_many_keys_each_retires_its_secret_before_the_next_one_takes_its_place(self, store: Store) -> None:
        populate(store)
        keys = [make_key(key_id=f"Rotated{number:09}") for number in range(3)]
        with store.write() as writer:
            for key in keys:
                writer.add_key(key)
        for number in range(2, 5):
            # As a rotation does: one retires and one is added; from the second one on the oldest is dropped.
            keys = [
                replace(
                    key,
                    generations=(
                        replace(key.generations[-1], retire_time=NOW + timedelta(seconds=number)),
                        make_generation(TokenKind.SERVER, key.key_id, number),
                    ),
                )
                for key in keys
            ]
            with store.write() as writer:
                writer.replace_keys(keys)
            with store.read() as reader:
                assert reader.keys([key.key_id for key in keys]) == {key.key_id: key for key in keys}

    @pytest.mark.parametrize("place", [0, 1, 2], ids=["first", "in the middle", "last"])
    def test_of_keys_one_of_which_does_not_exist_none_is_replaced(
        self, store: Store, engine: Engine, place: int
    ) -> None:
        populate(store)
        known = [
            replace(make_key(), display_name="renamed", labels={"a": "b"}),
            replace(make_key(KeyKind.CONNECT), state=KeyState.REVOKED, revoke_time=NOW),
        ]
        given = [*known[:place], make_key(key_id="NoKey00000000001"), *known[place:]]
        before = dump(engine)
        with pytest.raises(LookupError), store.write() as writer:
            writer.replace_keys(given)
        assert dump(engine) == before
        with store.write() as writer, pytest.raises(LookupError):
            writer.replace_keys(given)
        assert dump(engine) == before

    def test_no_keys_are_replaced_without_a_trace(self, store: Store, engine: Engine) -> None:
        populate(store)
        before = dump(engine)
        with store.write() as writer:
            writer.replace_keys([])
        assert dump(engine) == before

    def test_devices_of_any_workspace_are_returned_by_id(self, store: Store) -> None:
        populate(store)
        elsewhere = make_device(device_id="elsewhere", workspace_id=OTHER_WORKSPACE_ID)
        with store.write() as writer:
            writer.put_devices([elsewhere])
        with store.read() as reader:
            found = reader.devices(["elsewhere", "no-device", make_device().device_id])
        assert found == {"elsewhere": elsewhere, make_device().device_id: make_device()}

    def test_a_thousand_devices_are_put_found_and_removed_at_once(self, store: Store, engine: Engine) -> None:
        populate(store)
        devices = {f"d{number}": make_device(device_id=f"d{number}") for number in range(1_001)}
        with store.write() as writer:
            writer.put_devices(list(devices.values()))
        assert len(changes_of(engine, writer.revision.number)) == len(devices)
        with store.read() as reader:
            assert reader.devices(devices.keys()) == devices
        moved = {device_id: replace(device, reference_id="end-user-2") for device_id, device in devices.items()}
        with store.write() as writer:
            writer.put_devices(list(moved.values()))
            assert writer.devices(devices.keys()) == moved
            writer.remove_devices(list(devices))
            assert writer.devices(devices.keys()) == {}
        with store.read() as reader:
            assert reader.devices([*devices, make_device().device_id]) == {make_device().device_id: make_device()}

    def test_known_and_new_devices_are_put_in_one_call(self, store: Store) -> None:
        populate(store)
        known = make_device(reference_id="end-user-2", update_time=NOW)
        new = make_device(device_id="new")
        with store.write() as writer:
            writer.put_devices([new, known])
        with store.read() as reader:
            assert reader.devices(["new", known.device_id]) == {"new": new, known.device_id: known}

    def test_a_device_may_come_back_after_it_was_removed(self, store: Store) -> None:
        populate(store)
        again = make_device(reference_id="end-user-2", create_time=NOW, update_time=NOW)
        with store.write() as writer:
            writer.remove_devices([again.device_id])
        with store.write() as writer:
            writer.put_devices([again])
        with store.read() as reader:
            assert reader.devices([again.device_id]) == {again.device_id: again}

    def test_a_request_is_remembered_with_all_that_was_said(self, store: Store) -> None:
        request = make_request(time=NOW + timedelta(microseconds=1))
        with store.write() as writer:
            writer.remember(request, NOW)
            assert writer.carried_out("dashboard", "CreateKey", "request-1") == request
        with store.read() as reader:
            assert reader.carried_out("dashboard", "CreateKey", "request-1") == request

    @pytest.mark.parametrize("part", ["caller_id", "method", "request_id"])
    def test_a_request_is_told_apart_by_caller_method_and_id(self, store: Store, part: str) -> None:
        change: dict[str, Any] = {part: "another"}
        one, another = make_request(), replace(make_request(entity_id="another"), **change)
        with store.write() as writer:
            writer.remember(one, NOW)
        with store.read() as reader:
            assert reader.carried_out(another.caller_id, another.method, another.request_id) is None
        with store.write() as writer:
            writer.remember(another, NOW)
        with store.read() as reader:
            for request in (one, another):
                assert reader.carried_out(request.caller_id, request.method, request.request_id) == request

    def test_requests_from_before_an_instant_are_forgotten_and_no_others(self, store: Store) -> None:
        moment = timedelta(microseconds=1)
        ages: dict[str, Any] = {"before": NOW - moment, "then": NOW, "after": NOW + moment}
        with store.write() as writer:
            for name, time in ages.items():
                writer.remember(make_request(name, time=time, caller_id=f"caller-{name}"), NOW - timedelta(days=1))
        with store.write() as writer:
            writer.remember(make_request("last", time=NOW + timedelta(days=1)), NOW)
        with store.read() as reader:
            kept = {name for name in ages if reader.carried_out(f"caller-{name}", "CreateKey", name) is not None}
            assert reader.carried_out("dashboard", "CreateKey", "last") is not None
        assert kept == {"then", "after"}

    def test_a_request_id_may_be_used_again_once_it_is_forgotten(self, store: Store) -> None:
        again = make_request(time=NOW + timedelta(days=2), fingerprint="f2")
        with store.write() as writer:
            writer.remember(make_request(), NOW)
        with store.write() as writer:
            writer.remember(again, NOW + timedelta(days=1))
        with store.read() as reader:
            assert reader.carried_out("dashboard", "CreateKey", "request-1") == again

    def test_what_was_forgotten_in_a_transaction_that_failed_is_still_remembered(self, store: Store) -> None:
        with store.write() as writer:
            writer.remember(make_request(), NOW)
        with abandoned(store) as writer:
            writer.remember(make_request("another", time=NOW + timedelta(days=2)), NOW + timedelta(days=1))
        with store.read() as reader:
            assert reader.carried_out("dashboard", "CreateKey", "request-1") == make_request()

    def test_callers_are_found_by_the_names_of_a_certificate_each_once(self, store: Store) -> None:
        first = make_caller(certificate_names=frozenset({"a.internal", "spiffe://prod/a"}))
        second = make_caller(
            caller_id="another", key_id="AnotherCaller001", generations=(), certificate_names=frozenset({"b.internal"})
        )
        with store.write() as writer:
            writer.add_caller(first)
            writer.add_caller(second)
            assert list(writer.callers_of_certificate(["b.internal"])) == [second]
        with store.read() as reader:
            assert list(reader.callers_of_certificate(["spiffe://prod/a", "a.internal", "c.internal"])) == [first]
            assert list(reader.callers_of_certificate(["b.internal", "a.internal"])) == [second, first]
            assert list(reader.callers_of_certificate(["A.internal", "\0", ""])) == []
            assert list(reader.callers_of_certificate([])) == []

    def test_a_certificate_name_is_one_callers_until_that_one_lets_it_go(self, store: Store, engine: Engine) -> None:
        first = make_caller(certificate_names=frozenset({"a.internal", "b.internal"}))
        second = make_caller(caller_id="another", key_id="AnotherCaller001", generations=())
        taking = replace(second, certificate_names=frozenset({"b.internal"}))
        with store.write() as writer:
            writer.add_caller(first)
            with pytest.raises(Duplicate):
                writer.add_caller(taking)
            writer.add_caller(second)
            with pytest.raises(Duplicate):
                writer.replace_caller(taking)
        with store.write() as writer:
            writer.replace_caller(replace(first, certificate_names=frozenset({"a.internal", "c.internal"})))
            writer.replace_caller(taking)
            assert list(writer.callers_of_certificate(["b.internal"])) == [taking]
        changed = {entity_id for _, kind, entity_id in changes_of(engine, writer.revision.number) if kind != "caller"}
        assert changed == {"b.internal", "c.internal"}
