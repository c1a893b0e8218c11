"""EventService: the log in pages, the chains, and what an operator is told when somebody has been at the rows."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest
from texture.auth.v1 import event_service_pb2 as pb
from texture.auth.v1 import workspace_service_pb2

from server.service import audit
from server.service import events as reading
from server.service.housekeeping import prune_events
from tests.harness import Service, refused
from tests.wire.helpers import OTHER_WORKSPACE, USER, WORKSPACE, make_key, make_workspace, register, revoke

HOUR = timedelta(hours=1)
BEGINNING = "AAAAAAAAAAAAAAAAAAAAAA"
OUT_OF_RANGE = (grpc.StatusCode.OUT_OF_RANGE, "CURSOR_EXPIRED")
NOT_OF_THIS_LOG = (grpc.StatusCode.FAILED_PRECONDITION, "CURSOR_NOT_VERIFIABLE")


def list_events(service: Service, **given: Any) -> pb.ListEventsResponse:
    return service.operator.events.ListEvents(pb.ListEventsRequest(**given))


def every_event(service: Service, **given: Any) -> list[pb.LoggedEvent]:
    """Return all events of a list, page by page."""
    found: list[pb.LoggedEvent] = []
    while True:
        page = list_events(service, **given)
        found += page.events
        if not page.next_page_token:
            return found
        given["page_token"] = page.next_page_token


def types_of(events: list[pb.LoggedEvent]) -> list[str]:
    return [logged.event.type for logged in events]


def verify(service: Service, workspace_id: str = WORKSPACE, **given: Any) -> pb.VerifyChainResponse:
    return service.operator.events.VerifyChain(pb.VerifyChainRequest(workspace_id=workspace_id, **given))


def heads_of(service: Service) -> dict[str, pb.ChainHead]:
    heads = service.operator.events.ListChainHeads(pb.ListChainHeadsRequest()).heads
    return {head.workspace_id: head for head in heads}


def tamper(service: Service, statement: str) -> None:
    engine = service.app._database.engine
    with engine.writing() as database:
        database.execute_sql(statement)
        engine.commit()


def prune(service: Service) -> None:
    assert not prune_events(service.app._resources, HOUR)


# Lists


def test_all_events_are_listed_in_their_order_each_with_its_link(grid: Service) -> None:
    key_id = make_key(grid).key.key_id
    revoke(grid, key_id)

    events = every_event(grid)

    assert types_of(events) == ["caller.created", "workspace.created", "key.created", "key.revoked"]
    assert [int(logged.event.event_id) for logged in events] == [1, 2, 3, 4]
    assert [logged.link.number for logged in events] == [1, 1, 2, 3]
    assert {len(logged.link.mac) for logged in events} == {len(logged.link.content_mac) for logged in events} == {32}
    assert not any(logged.link.redacted for logged in events)
    assert len({logged.cursor for logged in events}) == 4


@pytest.mark.parametrize("page_size", [1, 2, 3, 50])
def test_pages_of_any_size_hold_every_event_once(grid: Service, page_size: int) -> None:
    for _ in range(4):
        make_key(grid)

    assert every_event(grid, page_size=page_size) == every_event(grid)


def test_events_are_filtered_by_workspace_and_type(grid: Service) -> None:
    make_workspace(grid, OTHER_WORKSPACE)
    make_key(grid)
    revoke(grid, make_key(grid, workspace_id=OTHER_WORKSPACE).key.key_id)

    assert types_of(every_event(grid, workspace_id=WORKSPACE)) == ["workspace.created", "key.created"]
    assert types_of(every_event(grid, types=["key.revoked", "caller.created"])) == ["caller.created", "key.revoked"]
    assert types_of(every_event(grid, workspace_id=OTHER_WORKSPACE, types=["key.created"], page_size=1)) == [
        "key.created"
    ]
    assert every_event(grid, types=["end_user.erased"]) == []


@pytest.mark.parametrize("page_size", [1, 3])
def test_a_long_log_is_looked_through_in_several_pages(
    grid: Service, monkeypatch: pytest.MonkeyPatch, page_size: int
) -> None:
    for _ in range(3):
        for _ in range(4):
            key_id = make_key(grid).key.key_id
        revoke(grid, key_id)
    expected = every_event(grid, types=["key.revoked"])
    everything = every_event(grid)
    monkeypatch.setattr(reading, "IDS_AT_ONCE", 2)

    assert len(expected) == 3
    assert every_event(grid, types=["key.revoked"], page_size=page_size) == expected
    assert every_event(grid, page_size=page_size) == everything


def test_every_cursor_leads_to_what_comes_after_its_event_whatever_the_filter(grid: Service) -> None:
    for _ in range(3):
        make_key(grid)
    events = every_event(grid)

    for place, logged in enumerate(events):
        assert every_event(grid, after=logged.cursor) == events[place + 1 :]
        assert every_event(grid, after=logged.cursor, types=["key.created"]) == [
            one for one in events[place + 1 :] if one.event.type == "key.created"
        ]
    assert every_event(grid, after=BEGINNING) == events


@pytest.mark.parametrize("after", ["garbage", "=", "é", BEGINNING + "=", BEGINNING[:-1] + "B", "A" * 100, "_" * 22])
def test_a_cursor_that_was_never_given_out_is_refused(grid: Service, after: str) -> None:
    error = refused(list_events, grid, after=after)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert set(error.violations) == {"after"}


def test_a_filter_that_cannot_be_is_refused(grid: Service) -> None:
    assert set(refused(list_events, grid, types=["key.created", "nonsense"]).violations) == {"types[1]"}
    assert set(refused(list_events, grid, types=["key.created"] * 51).violations) == {"types"}
    assert set(refused(list_events, grid, page_size=-1).violations) == {"page_size"}
    assert refused(list_events, grid, workspace_id="nowhere").reason == "WORKSPACE_NOT_FOUND"


def test_events_that_were_pruned_are_never_passed_over_in_silence(grid: Service) -> None:
    for _ in range(2):
        make_key(grid)
    old = every_event(grid)
    page = list_events(grid, page_size=1)
    grid.clock.turn(2 * HOUR)
    make_key(grid)
    prune(grid)

    for logged in old[:-1]:
        error = refused(list_events, grid, after=logged.cursor)
        assert (error.code, error.reason) == OUT_OF_RANGE
    error = refused(list_events, grid, page_size=1, page_token=page.next_page_token)
    assert (error.code, error.reason) == OUT_OF_RANGE
    assert refused(list_events, grid, after=BEGINNING).reason == "CURSOR_EXPIRED"
    # After the last of those that are gone, nothing is missing; nor for who begins anew.
    kept = every_event(grid)
    assert types_of(kept) == ["key.created"]
    assert every_event(grid, after=old[-1].cursor) == kept


def test_a_cursor_of_a_history_that_was_lost_is_refused(grid: Service) -> None:
    make_key(grid)
    cursor = every_event(grid)[-1].cursor
    # As after a restore from a backup, where other events have taken the place of those that were lost.
    tamper(grid, "DELETE FROM event_link WHERE event_id = 3")
    tamper(grid, "DELETE FROM event WHERE event_id = 3")

    error = refused(list_events, grid, after=cursor)
    assert (error.code, error.reason) == NOT_OF_THIS_LOG
    mac = f"(SELECT mac FROM event_link WHERE chain = '{WORKSPACE}')"
    tamper(grid, f"UPDATE event_chain SET number = 1, mac = {mac} WHERE chain = '{WORKSPACE}'")
    make_key(grid)
    error = refused(list_events, grid, after=cursor)
    assert (error.code, error.reason) == NOT_OF_THIS_LOG


def test_a_cursor_of_an_event_that_was_redacted_since_still_holds(grid: Service) -> None:
    register(grid, "device-1")
    before = every_event(grid)
    grid.operator.workspaces.EraseEndUser(
        workspace_service_pb2.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id=USER)
    )

    after = every_event(grid)
    assert [logged.cursor for logged in after[:-1]] == [logged.cursor for logged in before]
    assert [logged.link.redacted for logged in after] == [False, False, True, False]
    assert types_of(every_event(grid, after=before[-1].cursor)) == ["end_user.erased"]
    assert not verify(grid).HasField("broken")


# Chains


def test_the_heads_of_all_chains_are_listed(grid: Service) -> None:
    make_workspace(grid, OTHER_WORKSPACE)
    make_key(grid)

    heads = heads_of(grid)

    assert {name: head.number for name, head in heads.items()} == {"": 1, WORKSPACE: 2, OTHER_WORKSPACE: 1}
    last = {logged.event.workspace_id: logged.link.mac for logged in every_event(grid)}
    assert {name: head.mac for name, head in heads.items()} == last


def test_a_chain_that_nobody_touched_is_verified(grid: Service) -> None:
    make_key(grid)

    for name, count in (("", 1), (WORKSPACE, 2)):
        found = verify(grid, name, expected_heads=[heads_of(grid)[name]])
        assert (found.verified_count, found.HasField("broken"), found.next_portion_token) == (count, False, "")
        assert found.last == heads_of(grid)[name]


def test_it_is_verified_portion_by_portion(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(6):
        make_key(grid)
    portion = grid.app._server._audit
    monkeypatch.setattr(portion, "_links_at_once", 3)
    counts: list[int] = []
    token = ""
    while not counts or token:
        found = verify(grid, portion_token=token)
        counts.append(found.verified_count)
        token = found.next_portion_token
    assert counts == [3, 3, 1]
    error = refused(verify, grid, "", portion_token=verify(grid).next_portion_token)
    assert set(error.violations) == {"portion_token"}


def test_what_somebody_did_to_the_rows_is_named(grid: Service) -> None:
    for _ in range(3):
        make_key(grid)
    heads = heads_of(grid)
    tamper(grid, "UPDATE event SET reason = 'innocent' WHERE event_id = 4")

    found = verify(grid)
    assert (found.broken.problem, found.broken.number, found.broken.event_id) == (
        pb.CHAIN_PROBLEM_EVENT_ALTERED,
        3,
        "4",
    )
    assert (found.verified_count, found.next_portion_token) == (2, "")
    assert not verify(grid, "").HasField("broken")
    tamper(grid, "UPDATE event SET reason = '' WHERE event_id = 4")
    assert not verify(grid, expected_heads=[heads[WORKSPACE]]).HasField("broken")


@pytest.mark.parametrize(
    ("head", "field"),
    [
        ({"number": 0, "mac": bytes(32)}, "expected_heads[0].number"),
        ({"number": -1, "mac": bytes(32)}, "expected_heads[0].number"),
        ({"number": 1, "mac": bytes(31)}, "expected_heads[0].mac"),
        ({"number": 1, "mac": bytes(32), "workspace_id": OTHER_WORKSPACE}, "expected_heads[0].workspace_id"),
    ],
)
def test_heads_that_cannot_be_are_refused(grid: Service, head: dict[str, Any], field: str) -> None:
    assert set(refused(verify, grid, expected_heads=[head]).violations) == {field}


def test_too_many_heads_are_refused(grid: Service) -> None:
    heads = [{"number": 1, "mac": bytes(32)}] * (audit.MOST_HEADS + 1)
    assert set(refused(verify, grid, expected_heads=heads).violations) == {"expected_heads"}


def test_a_workspace_that_does_not_exist_has_no_chain(grid: Service) -> None:
    assert refused(verify, grid, "nowhere").reason == "WORKSPACE_NOT_FOUND"
