from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.end_users import EndUser, Erasure, describe_erasure, end_users_of, new_pseudonym, without
from server.domain.events import Entity, Event, EventType, Json, Origin, describe, snapshot
from server.domain.kinds import KeyKind
from tests.builders import (
    NOW,
    REFERENCE_ID,
    WORKSPACE_ID,
    make_caller,
    make_connect_link,
    make_device,
    make_key,
    make_workspace,
)

ORIGIN = Origin(caller_id="dashboard", on_behalf_of_key_id="k", reason="as asked", request_id="r")
ALICE = EndUser(WORKSPACE_ID, REFERENCE_ID)
OTHERS = [
    pytest.param(EndUser(WORKSPACE_ID, "end-user-2"), id="another in the workspace"),
    pytest.param(EndUser("grid-two", REFERENCE_ID), id="of the same name elsewhere"),
]
PSEUDONYM = "erased:0123456789abcdef"


def scoped_key(**changes: Any) -> Entity:
    return make_key(
        KeyKind.SCOPED,
        display_name=f"End user {REFERENCE_ID}",
        description="a person",
        labels={"name": REFERENCE_ID},
        **changes,
    )


def event_of(before: Entity | None, after: Entity | None) -> Event:
    return describe(EventType.DEVICE_TRANSFERRED, ORIGIN, before, after, NOW)


def side_of(event: Event) -> dict[str, Json]:
    assert event.after is not None
    return dict(event.after)


# --- Whom an event holds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [scoped_key, make_device, make_connect_link])
def test_an_event_of_what_is_an_end_users_holds_them_on_either_side(make: Callable[..., Entity]) -> None:
    for before, after in ((None, make()), (make(), None), (make(), make())):
        assert end_users_of(event_of(before, after)) == {ALICE}


@pytest.mark.parametrize("make", [make_key, make_workspace, make_caller])
def test_an_event_of_what_is_nobodys_holds_nobody(make: Callable[..., Entity]) -> None:
    event = event_of(make(), make())
    assert end_users_of(event) == set()
    assert without(event, ALICE, PSEUDONYM) == event


def test_an_event_of_a_transfer_holds_two() -> None:
    there = EndUser("grid-two", "end-user-2")
    event = event_of(make_device(), make_device(workspace_id=there.workspace_id, reference_id=there.reference_id))
    assert end_users_of(event) == {ALICE, there}


@pytest.mark.parametrize("value", [None, 1, True, [REFERENCE_ID], {"reference_id": REFERENCE_ID}])
@pytest.mark.parametrize("name", ["workspace_id", "reference_id"])
def test_a_side_whose_name_is_no_text_holds_nobody(name: str, value: Json) -> None:
    event = replace(event_of(None, make_device()), after={**snapshot(make_device()), name: value})
    assert end_users_of(event) == set()
    assert without(event, ALICE, PSEUDONYM) == event


# --- Taking somebody out ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "replaced"),
    [
        (make_device, {"reference_id": PSEUDONYM}),
        (make_connect_link, {"reference_id": PSEUDONYM, "client_state": ""}),
        (scoped_key, {"reference_id": PSEUDONYM, "display_name": PSEUDONYM, "description": "", "labels": {}}),
    ],
)
def test_what_says_who_they_are_is_replaced_and_nothing_else(
    make: Callable[..., Entity], replaced: dict[str, Json]
) -> None:
    entity = make(client_state="Alice") if make is make_connect_link else make()
    event = event_of(None, entity)
    after = without(event, ALICE, PSEUDONYM)
    assert after == replace(event, after=snapshot(entity) | replaced)
    assert list(side_of(after)) == list(side_of(event))
    assert after != event


@pytest.mark.parametrize("other", OTHERS)
def test_of_two_sides_only_the_one_that_is_theirs_changes(other: EndUser) -> None:
    theirs = scoped_key()
    others = scoped_key(workspace_id=other.workspace_id, reference_id=other.reference_id)
    freed = side_of(without(event_of(None, theirs), ALICE, PSEUDONYM))
    from_them = without(event_of(theirs, others), ALICE, PSEUDONYM)
    to_them = without(event_of(others, theirs), ALICE, PSEUDONYM)
    assert (from_them.before, from_them.after) == (freed, snapshot(others))
    assert (to_them.before, to_them.after) == (snapshot(others), freed)


def test_both_sides_get_the_same_pseudonym() -> None:
    event = without(event_of(make_device(), make_device(manufacturer="volt")), ALICE, PSEUDONYM)
    assert end_users_of(event) == {EndUser(WORKSPACE_ID, PSEUDONYM)}


@pytest.mark.parametrize("other", OTHERS)
def test_an_event_of_somebody_else_stays_as_it_is(other: EndUser) -> None:
    event = event_of(scoped_key(), make_device())
    assert without(event, other, PSEUDONYM) == event


def test_what_people_said_of_an_event_stays() -> None:
    event = replace(event_of(None, make_device()), origin=replace(ORIGIN, reason=f"{REFERENCE_ID} asked"))
    assert without(event, ALICE, PSEUDONYM).origin == event.origin


# Names that stand nowhere else, so that what is left of one is left of the person.
NAMES = st.text("#$%&!?ÄÖ", min_size=1, max_size=20).map(lambda text: f"<{text}>")
FREED = {"reference_id", "display_name", "description", "labels", "client_state"}


@given(
    name=NAMES,
    other=NAMES,
    workspaces=st.tuples(st.sampled_from(["north", "south"]), st.sampled_from(["north", "south"])),
    kinds=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    both=st.booleans(),
)
def test_nothing_of_a_name_is_left_on_their_side_and_no_other_field_is_touched(
    name: str, other: str, workspaces: tuple[str, str], kinds: tuple[int, int], *, both: bool
) -> None:
    def make(kind: int, reference_id: str, workspace_id: str) -> Entity:
        owner = {"reference_id": reference_id, "workspace_id": workspace_id}
        words = {"display_name": f"End user {reference_id}", "labels": {"a": reference_id}, "description": reference_id}
        if kind == 0:
            return make_device(**owner)
        if kind == 1:
            return make_connect_link(**owner, client_state=f"{reference_id}!")
        return make_key(KeyKind.SCOPED, **owner, **words)

    second = name if both else other
    event = event_of(make(kinds[0], name, workspaces[0]), make(kinds[1], second, workspaces[1]))
    end_user = EndUser(workspaces[0], name)
    found = without(event, end_user, PSEUDONYM)
    sides = ((event.before, found.before), (event.after, found.after))
    for before, after in sides:
        assert before is not None
        assert after is not None
        if (before["workspace_id"], before["reference_id"]) == (workspaces[0], name):
            assert name not in json.dumps(after, ensure_ascii=False)
            assert after["reference_id"] == PSEUDONYM
        else:
            assert after == before
        assert after.keys() == before.keys()
        assert {key: value for key, value in after.items() if key not in FREED} == {
            key: value for key, value in before.items() if key not in FREED
        }
    assert end_user not in end_users_of(found)
    assert without(found, end_user, "erased:again") == found
    assert replace(found, before=event.before, after=event.after) == event


# --- What is said of it -------------------------------------------------------------------------------------------


def test_a_pseudonym_is_a_new_one_each_time_and_made_of_chance() -> None:
    found = {new_pseudonym() for _ in range(100)}
    assert len(found) == 100
    assert all(re.fullmatch(r"erased:[0-9A-Za-z]{16}", pseudonym) for pseudonym in found)


def test_the_event_of_an_erasure_is_about_the_pseudonym_and_says_how_much_there_was() -> None:
    erasure = Erasure(devices_removed=1, keys_removed=2, connect_links_removed=3, events_rewritten=4)
    event = describe_erasure(ORIGIN, WORKSPACE_ID, PSEUDONYM, erasure, NOW)
    assert event == Event(
        type=EventType.END_USER_ERASED,
        event_time=NOW,
        workspace_id=WORKSPACE_ID,
        subject_id=PSEUDONYM,
        origin=ORIGIN,
        before=None,
        after={
            "workspace_id": WORKSPACE_ID,
            "reference_id": PSEUDONYM,
            "devices_removed": 1,
            "keys_removed": 2,
            "connect_links_removed": 3,
            "events_rewritten": 4,
        },
    )
    assert end_users_of(event) == {EndUser(WORKSPACE_ID, PSEUDONYM)}
