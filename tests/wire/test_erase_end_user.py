"""EraseEndUser, over the wire: what is gone, what stays, and that nothing leads back to the person."""

from __future__ import annotations

import json
from datetime import timedelta
from itertools import count
from typing import Any

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_CONNECT, ROLE_DEVICES, ROLE_KEY_ADMIN
from texture.auth.v1.key_pb2 import KEY_KIND_SCOPED, Key

from server.service import workspaces
from server.store.contract import StoreUnavailable
from tests.harness import Client, Service, refused
from tests.wire.helpers import count_rows, current_revision, events_of, update_key
from tests.wire.links_helpers import (
    BACKEND_URI,
    SITE_URI,
    WORKSPACE,
    ScopedKey,
    cancel,
    complete,
    completion,
    connect_key,
    create_link,
    create_workspace,
    get_device,
    get_key,
    get_link,
    listed,
    reason,
    register,
    remove,
    scoped_key,
    server_key,
    transfer,
)

# As no id, word or time of the service can be.
ALICE = "alice~1234~alice"
BOB = "bob~5678~bob"
ELSEWHERE = "grid-two"


@pytest.fixture
def operator(service: Service) -> Client:
    create_workspace(service.operator)
    create_workspace(service.operator, ELSEWHERE)
    return service.operator


def erase(client: Client, reference_id: str = ALICE, **fields: Any) -> pb.EraseEndUserResponse:
    values = {"workspace_id": WORKSPACE, **fields}
    return client.workspaces.EraseEndUser(pb.EraseEndUserRequest(reference_id=reference_id, **values))


def counts(answer: pb.EraseEndUserResponse) -> tuple[int, int, int, int]:
    return (answer.devices_removed, answer.keys_removed, answer.connect_links_removed, answer.events_rewritten)


def stored(service: Service) -> dict[str, list[dict[str, Any]]]:
    """Return every row of every table, as the database has it, but the reports of processes."""
    if service.app._settings.sqlite_path is None:
        names = "SELECT table_name AS name FROM information_schema.tables WHERE table_schema = 'public'"
    else:
        names = "SELECT name FROM sqlite_master WHERE type = 'table'"
    # What was counted would else be stored by a thread of its own, at any moment, as its reports are.
    service.app._usage.flush()
    tables = [row["name"] for row in service.query(names) if row["name"] != "usage_report"]
    assert {"event", "event_end_user", "request", "change", "key_usage"} <= set(tables)
    return {name: service.query(f'SELECT * FROM "{name}"') for name in tables}


def places_of(service: Service, text: str) -> list[tuple[str, str]]:
    """Name the columns in which a text stands somewhere."""
    return sorted(
        {
            (table, column)
            for table, rows in stored(service).items()
            for row in rows
            for column, value in row.items()
            if text in (value.decode("latin-1") if isinstance(value, bytes) else str(value))
        }
    )


def events(service: Service) -> list[dict[str, Any]]:
    """Return the whole log, oldest first."""
    found = service.query("SELECT * FROM event ORDER BY event_id")
    return [
        row | {side: None if row[side] is None else json.loads(row[side]) for side in ("before", "after")}
        for row in found
    ]


def live(service: Service, reference_id: str = ALICE) -> ScopedKey:
    """Let an end user do all that an end user does; return their key, which reaches `<name>-battery`."""
    client = service.operator
    name = reference_id.partition("~")[0]
    key = scoped_key(client, reference_id, [f"{name}-battery", f"{name}-sold"])
    update_key(
        service,
        key.key_id,
        display_name=f"{reference_id}'s",
        description=f"of {reference_id}",
        labels={"a": reference_id},
    )
    # A second key, another link that stays open, and one that was cancelled.
    scoped_key(client, reference_id, [f"{name}-battery"])
    backend = server_key(client).api_key
    create_link(client, backend, BACKEND_URI, reference_id=reference_id, client_state=f"state of {reference_id}")
    ended = create_link(client, backend, BACKEND_URI, reference_id=reference_id)
    cancel(client, ended.connect_link.connect_link_id)
    register(client, reference_id, f"{name}-charger", manufacturer="volt")
    register(client, reference_id, f"{name}-removed")
    remove(client, f"{name}-removed")
    return key


class TestWhatIsGone:
    def test_their_keys_are_unknown_and_their_devices_and_links_are_not_there(
        self, service: Service, operator: Client
    ) -> None:
        key = live(service)
        opened = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id=ALICE)
        assert reason(operator, key.api_key, "alice-battery") == "PERMITTED"

        answer = erase(operator)

        assert counts(answer)[:3] == (3, 2, 5)
        assert answer.events_rewritten > 10
        assert answer.propagation.complete
        assert answer.revision == current_revision(service)
        assert reason(operator, key.api_key, "alice-battery") == "KEY_UNKNOWN"
        assert reason(operator, key.api_key) == "KEY_UNKNOWN"
        assert refused(get_key, operator, key.key_id).reason == "KEY_NOT_FOUND"
        assert refused(events_of, service, key.key_id).reason == "KEY_NOT_FOUND"
        assert refused(operator.keys.LookupKey, key_pb.LookupKeyRequest(api_key=key.api_key)).reason == "KEY_NOT_FOUND"
        assert listed(operator) == []
        assert refused(get_device, operator, "alice-battery").reason == "DEVICE_NOT_FOUND"
        assert refused(complete, operator, opened.link_token, "alice-new").reason == "CONNECT_LINK_NOT_FOUND"
        assert refused(get_link, operator, opened.connect_link.connect_link_id).reason == "CONNECT_LINK_NOT_FOUND"
        assert listed(operator) == []

    def test_their_name_stands_nowhere_in_the_database(self, service: Service, operator: Client) -> None:
        live(service)
        transfer(operator, "alice-sold", reference_id=ALICE, new_reference_id=BOB, request_id="sold")
        register(operator, ALICE, "alice-known")
        assert {table for table, _ in places_of(service, ALICE)} == {
            *("api_key", "connect_link", "device", "event", "event_end_user", "key_label"),
        }

        erase(operator, reason="asked for it", request_id="erase-1")

        assert places_of(service, ALICE) == []
        assert places_of(service, "alice~") == []

    def test_keys_that_had_ended_go_too(self, operator: Client) -> None:
        keys = [scoped_key(operator, ALICE, ["battery"]) for _ in range(3)]
        operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=keys[0].key_id))
        operator.keys.SuspendKey(key_pb.SuspendKeyRequest(key_id=keys[1].key_id))
        assert counts(erase(operator))[:3] == (1, 3, 3)
        assert [reason(operator, key.api_key) for key in keys] == ["KEY_UNKNOWN"] * 3

    def test_an_end_user_that_the_service_named_is_erased_as_any_other(self, operator: Client) -> None:
        link = create_link(operator, connect_key(operator).api_key, SITE_URI)
        done = complete(operator, link.link_token, "battery")
        name = done.scoped_key.reference_id
        assert name.startswith("texture-generated:")
        assert counts(erase(operator, name)) == (1, 1, 1, 4)
        assert reason(operator, done.scoped_api_key, "battery") == "KEY_UNKNOWN"

    def test_one_who_is_left_in_events_alone_is_taken_out_of_them(self, service: Service, operator: Client) -> None:
        register(operator, ALICE, "battery")
        remove(operator, "battery")
        assert counts(erase(operator)) == (0, 0, 0, 2)
        assert places_of(service, ALICE) == []
        assert events(service)[-1]["type"] == "end_user.erased"

    def test_more_events_than_are_looked_at_in_one_go_are_all_rewritten(
        self, service: Service, operator: Client
    ) -> None:
        register(operator, ALICE, *(f"d-{number}" for number in range(1_000)))
        remove(operator, *(f"d-{number}" for number in range(1_000)))
        register(operator, ALICE, "left")
        assert counts(erase(operator)) == (1, 0, 0, 2_001)
        assert places_of(service, ALICE) == []

    def test_a_completion_whose_answer_was_lost_brings_nothing_back(self, service: Service, operator: Client) -> None:
        link = create_link(operator, server_key(operator).api_key, BACKEND_URI, reference_id=ALICE)
        request = completion(link.link_token, "battery", request_id="lost")
        operator.connect.CompleteConnectLink(request)
        erase(operator)
        before = stored(service)
        assert refused(operator.connect.CompleteConnectLink, request).reason == "CONNECT_LINK_NOT_FOUND"
        assert stored(service) == before


class TestInPortions:
    """Whoever has many events is erased in several transactions: these tests make every two events a portion."""

    @pytest.fixture(autouse=True)
    def _small_portions(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(workspaces, "EVENTS_AT_ONCE", 2)

    def test_others_write_in_between_and_find_nothing_that_was_theirs(
        self, service: Service, operator: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        key = live(service)
        turns: list[tuple[str, list[str]]] = []

        def give_way() -> None:
            create_workspace(operator, f"between-{len(turns)}")
            turns.append((reason(operator, key.api_key), listed(operator)))

        monkeypatch.setattr(workspaces, "give_way", give_way)

        answer = erase(operator)

        assert len(turns) == (answer.events_rewritten - 1) // 2
        assert turns == [("KEY_UNKNOWN", [])] * len(turns)
        assert places_of(service, ALICE) == []
        assert len({event["subject_id"] for event in events(service) if event["type"] == "end_user.erased"}) == 1

    def test_one_who_comes_back_in_between_is_somebody_new(
        self, service: Service, operator: Client, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        register(operator, ALICE, *(f"old-{number}" for number in range(5)))
        numbers = count()
        monkeypatch.setattr(workspaces, "give_way", lambda: register(operator, ALICE, f"new-{next(numbers)}"))

        assert counts(erase(operator)) == (5, 0, 0, 5)

        assert sorted(listed(operator)) == ["new-0", "new-1"]
        assert [event["subject_id"] for event in events(service) if ALICE in str(event)] == ["new-0", "new-1"]

    @pytest.mark.parametrize("request_id", ["first", "second", ""])
    def test_one_that_was_interrupted_is_finished_by_a_repeat(
        self, service: Service, operator: Client, monkeypatch: pytest.MonkeyPatch, request_id: str
    ) -> None:
        key = live(service)

        def fail() -> None:
            raise StoreUnavailable("away")

        with monkeypatch.context() as interrupted:
            interrupted.setattr(workspaces, "give_way", fail)
            assert refused(erase, operator, request_id="first").code is grpc.StatusCode.UNAVAILABLE
        assert reason(operator, key.api_key) == "KEY_UNKNOWN"
        assert listed(operator) == []
        left = len([event for event in events(service) if ALICE in str(event)])
        assert left > 0

        assert counts(erase(operator, request_id=request_id)) == (0, 0, 0, left)

        assert places_of(service, ALICE) == []
        before = stored(service)
        assert counts(erase(operator, request_id=request_id)) == (0, 0, 0, 0)
        assert stored(service) == before


class TestWhatIsLeftInTheLog:
    def test_their_events_hang_together_by_one_pseudonym_that_the_caller_is_not_told(
        self, service: Service, operator: Client
    ) -> None:
        key = live(service)
        before = events(service)

        answer = erase(operator, reason="asked for it")

        *after, last = events(service)
        pseudonym = last["subject_id"]
        assert pseudonym.startswith("erased:")
        assert pseudonym not in str(answer)
        assert len(after) == len(before)
        rewritten = 0
        for old, new in zip(before, after, strict=True):
            assert {name: new[name] for name in new if name not in ("before", "after")} == {
                name: old[name] for name in old if name not in ("before", "after")
            }
            held = ALICE in str(old)
            rewritten += held
            assert (new == old) is not held
            for side in ("before", "after"):
                if held and new[side] is not None:
                    assert new[side]["reference_id"] == pseudonym
        assert rewritten == answer.events_rewritten
        created = next(row for row in after if (row["type"], row["subject_id"]) == ("key.created", key.key_id))
        assert created["after"]["display_name"] == pseudonym
        found = service.query(
            f"SELECT event_id FROM event_end_user WHERE reference_id = '{pseudonym}' ORDER BY event_id"
        )
        assert [row["event_id"] for row in found] == [
            *(new["event_id"] for old, new in zip(before, after, strict=True) if ALICE in str(old)),
            last["event_id"],
        ]

    def test_the_erasure_is_an_event_about_the_pseudonym(self, service: Service, operator: Client) -> None:
        scoped_key(operator, ALICE, ["battery"])
        actor = server_key(operator).key.key_id
        dashboard = service.caller("dashboard", ROLE_KEY_ADMIN)

        erase(dashboard, reason="asked for it", on_behalf_of_key_id=actor, request_id="erase-1")

        last = events(service)[-1]
        pseudonym = last.pop("subject_id")
        assert last.pop("event_id") > 0
        assert last.pop("revision") > 0
        assert last.pop("event_time") > 0
        assert last == {
            "type": "end_user.erased",
            "workspace_id": WORKSPACE,
            "subject_kind": "end_user",
            "caller_id": "dashboard",
            "on_behalf_of_key_id": actor,
            "reason": "asked for it",
            "request_id": "erase-1",
            "before": None,
            "after": {
                "workspace_id": WORKSPACE,
                "reference_id": pseudonym,
                "devices_removed": 1,
                "keys_removed": 1,
                "connect_links_removed": 1,
                "events_rewritten": 4,
            },
        }

    def test_a_reason_in_somebodys_words_stays(self, service: Service, operator: Client) -> None:
        register(operator, ALICE, "battery")
        remove(operator, "battery", reason=f"{ALICE} moved out")
        erase(operator)
        assert places_of(service, ALICE) == [("event", "reason")]

    def test_somebody_who_is_erased_twice_is_two_people(self, service: Service, operator: Client) -> None:
        for _ in range(2):
            register(operator, ALICE, "battery")
            assert counts(erase(operator)) == (1, 0, 0, 1)
        names = [row["subject_id"] for row in events(service) if row["type"] == "end_user.erased"]
        assert len(set(names)) == 2

    def test_an_erased_end_user_may_come_back_as_somebody_new(self, operator: Client) -> None:
        old = scoped_key(operator, ALICE, ["battery"])
        erase(operator)
        register(operator, BOB, "battery")
        new = scoped_key(operator, ALICE, ["charger"])
        assert reason(operator, old.api_key, "charger") == "KEY_UNKNOWN"
        assert reason(operator, new.api_key, "charger") == "PERMITTED"
        assert reason(operator, new.api_key, "battery") == "DEVICE_NOT_PERMITTED"


class TestWhatStays:
    def test_another_end_user_and_one_of_the_same_name_elsewhere_are_untouched(
        self, service: Service, operator: Client
    ) -> None:
        live(service)
        bob = live(service, BOB)
        namesake = scoped_key(operator, ALICE, ["far-battery"], workspace_id=ELSEWHERE)
        for name in ("alice", "bob"):
            owner = ALICE if name == "alice" else BOB
            transfer(operator, f"{name}-sold", reference_id=owner, new_workspace_id=ELSEWHERE, new_reference_id=ALICE)
        before = stored(service)

        erase(operator)

        after = stored(service)
        for table in ("api_key", "connect_link", "device"):
            ours = (WORKSPACE, ALICE)
            expected = [row for row in before[table] if (row["workspace_id"], row["reference_id"]) != ours]
            assert after[table] == expected
            assert len(expected) < len(before[table])
        assert reason(operator, bob.api_key, "bob-battery") == "PERMITTED"
        assert reason(operator, namesake.api_key, "far-battery") == "PERMITTED"
        assert reason(operator, namesake.api_key, "alice-sold") == "PERMITTED"
        assert get_key(operator, bob.key_id).labels == {"a": BOB}
        assert [event.type for event in events_of(service, namesake.key_id)] == ["key.created"]
        *log, erased = events(service)
        sold = {row["subject_id"]: row for row in log if row["type"] == "device.transferred"}
        assert sold["alice-sold"]["before"]["reference_id"] == erased["subject_id"]
        assert sold["alice-sold"]["after"]["reference_id"] == ALICE
        assert sold["bob-sold"]["before"]["reference_id"] == BOB
        assert sold["bob-sold"]["after"]["reference_id"] == ALICE
        kept = [row for row in service.query("SELECT * FROM event_end_user") if row["reference_id"] == ALICE]
        assert {row["workspace_id"] for row in kept} == {ELSEWHERE}

    def test_the_server_key_that_named_them_stays(self, operator: Client) -> None:
        backend = server_key(operator)
        create_link(operator, backend.api_key, BACKEND_URI, reference_id=ALICE)
        erase(operator)
        assert get_key(operator, backend.key.key_id) == backend.key
        assert reason(operator, backend.api_key) == "PERMITTED"

    def test_an_erased_device_may_be_registered_by_anybody(self, operator: Client) -> None:
        register(operator, ALICE, "battery")
        erase(operator)
        assert register(operator, BOB, "battery", workspace_id=ELSEWHERE)[0].reference_id == BOB

    @pytest.mark.parametrize("reference_id", [ALICE, "nobody", "~" * 128])
    def test_erasing_somebody_unknown_is_fine_and_leaves_no_trace(
        self, service: Service, operator: Client, reference_id: str
    ) -> None:
        register(operator, BOB, "battery")
        register(operator, ALICE, "far", workspace_id=ELSEWHERE)
        before = stored(service)
        answer = erase(operator, reference_id)
        assert counts(answer) == (0, 0, 0, 0)
        assert answer.revision == current_revision(service)
        assert answer.propagation.complete
        assert stored(service) == before

    def test_a_repeat_under_the_same_request_id_spares_one_who_has_come_back(
        self, service: Service, operator: Client
    ) -> None:
        register(operator, ALICE, "battery")
        assert counts(erase(operator, request_id="once")) == (1, 0, 0, 1)
        register(operator, ALICE, "battery")
        service.clock.turn(timedelta(hours=1))
        before = stored(service)
        assert counts(erase(operator, request_id="once")) == (0, 0, 0, 0)
        assert stored(service) == before
        assert get_device(operator, "battery").reference_id == ALICE


class TestWhoMay:
    @pytest.mark.parametrize("role", [ROLE_AUTHORIZER, ROLE_CONNECT, ROLE_DEVICES])
    def test_a_caller_of_another_role_may_not(self, service: Service, operator: Client, role: int) -> None:
        register(operator, ALICE, "battery")
        error = refused(erase, service.caller("another", role))  # type: ignore[arg-type] # an int is one
        assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_ROLE_MISSING")
        assert listed(operator) == ["battery"]

    def test_a_key_admin_may(self, service: Service, operator: Client) -> None:
        register(operator, ALICE, "battery")
        assert counts(erase(service.caller("dashboard", ROLE_KEY_ADMIN))) == (1, 0, 0, 1)

    @pytest.mark.parametrize(
        ("fields", "at_fault"),
        [
            ({"workspace_id": ""}, ["workspace_id"]),
            ({"reference_id": ""}, ["reference_id"]),
            ({"workspace_id": "", "reference_id": ""}, ["workspace_id", "reference_id"]),
            ({"reference_id": "a b"}, ["reference_id"]),
            ({"reference_id": "x" * 129}, ["reference_id"]),
            ({"reference_id": "\0"}, ["reference_id"]),
            ({"reason": "x" * 501}, ["reason"]),
            ({"request_id": "a b"}, ["request_id"]),
        ],
        ids=repr,
    )
    def test_a_faulty_field_is_named(
        self, service: Service, operator: Client, fields: dict[str, str], at_fault: list[str]
    ) -> None:
        register(operator, ALICE, "battery")
        before = stored(service)
        error = refused(erase, operator, **fields)
        assert (error.code, list(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, at_fault)
        assert stored(service) == before

    def test_the_workspace_must_exist(self, operator: Client) -> None:
        error = refused(erase, operator, workspace_id="nowhere")
        assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "WORKSPACE_NOT_FOUND")

    def test_the_key_on_whose_behalf_it_is_asked_must_hold_keys_manage(
        self, service: Service, operator: Client
    ) -> None:
        register(operator, ALICE, "battery")
        weak = server_key(operator, permissions=["devices:read", "workspace:configure"]).key.key_id
        before = stored(service)
        error = refused(erase, operator, on_behalf_of_key_id=weak)
        assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "ACTOR_PERMISSION_MISSING")
        far = server_key(operator, ELSEWHERE).key.key_id
        assert refused(erase, operator, on_behalf_of_key_id=far).reason == "ACTOR_NOT_FOUND"
        assert listed(operator) == ["battery"]
        assert before["event"] == [row for row in stored(service)["event"] if row["subject_id"] != far]
        strong = server_key(operator, permissions=["keys:manage"]).key.key_id
        assert counts(erase(operator, on_behalf_of_key_id=strong)) == (1, 0, 0, 1)


def test_no_list_names_them_any_more(service: Service, operator: Client) -> None:
    live(service)
    live(service, BOB)
    erase(operator)
    request = key_pb.ListKeysRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SCOPED)
    keys: list[Key] = list(operator.keys.ListKeys(request).keys)
    assert {key.reference_id for key in keys} == {BOB}
    assert listed(operator, reference_id=ALICE) == []
    request.reference_id = ALICE
    assert list(operator.keys.ListKeys(request).keys) == []
    assert count_rows(service, "key_generation") == count_rows(service, "api_key")
