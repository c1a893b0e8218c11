"""ListKeys, over the wire: filters, pages and page tokens."""

from __future__ import annotations

import base64
from datetime import timedelta
from typing import Any

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import (
    KEY_KIND_CONNECT,
    KEY_KIND_SCOPED,
    KEY_KIND_SERVER,
    KEY_STATE_ACTIVE,
    KEY_STATE_EXPIRED,
    KEY_STATE_REVOKED,
    KEY_STATE_SUSPENDED,
)

from tests.harness import Service, refused
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    USER,
    WORKSPACE,
    make_connect_key,
    make_key,
    make_many_keys,
    make_scoped_key,
    make_workspace,
    register,
    revoke,
    suspend,
    timestamp,
    update_key,
)

HOUR = timedelta(hours=1)
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def list_keys(service: Service, workspace_id: str = WORKSPACE, **fields: Any) -> pb.ListKeysResponse:
    return service.operator.keys.ListKeys(pb.ListKeysRequest(workspace_id=workspace_id, **fields))


def names(response: pb.ListKeysResponse) -> list[str]:
    return [key.display_name for key in response.keys]


@pytest.fixture(scope="module")
def module_crowd(module_service: Service) -> None:
    make_crowd(module_service)


@pytest.fixture
def crowd(module_crowd: None, shared_service: Service) -> Service:
    """A service with keys of every kind and state, in the order that their names say, to which no test adds any."""
    return shared_service


def make_crowd(grid: Service) -> None:
    make_workspace(grid)
    make_workspace(grid, OTHER_WORKSPACE)
    make_key(grid, display_name="1 plain")
    make_key(grid, display_name="elsewhere", workspace_id=OTHER_WORKSPACE)
    make_key(grid, display_name="2 labelled", labels={"team": "billing", "env": "prod"})
    make_connect_key(grid, display_name="3 connect", labels={"team": "billing"})
    revoke(grid, make_key(grid, display_name="4 revoked").key.key_id)
    suspend(grid, make_key(grid, display_name="5 suspended", labels={"env": "prod"}).key.key_id)
    make_key(grid, display_name="6 expired", expire_time=timestamp(grid.clock.now + HOUR))
    suspended = make_key(grid, display_name="7 suspended and expired", expire_time=timestamp(grid.clock.now + HOUR))
    suspend(grid, suspended.key.key_id)
    grid.clock.turn(HOUR)
    register(grid, "mine")
    register(grid, "other", reference_id=OTHER_USER)
    make_scoped_key(grid, "mine")
    make_scoped_key(grid, "other", reference_id=OTHER_USER)


LINK_MAKERS = ["a key", "a key"]
FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "server keys": (
        {"kind": KEY_KIND_SERVER, "state": KEY_STATE_ACTIVE},
        ["1 plain", "2 labelled", *LINK_MAKERS],
    ),
    "connect keys": ({"kind": KEY_KIND_CONNECT}, ["3 connect"]),
    "scoped keys": ({"kind": KEY_KIND_SCOPED}, [f"End user {USER}", f"End user {OTHER_USER}"]),
    "revoked keys": ({"state": KEY_STATE_REVOKED}, ["4 revoked"]),
    "suspended keys": ({"state": KEY_STATE_SUSPENDED}, ["5 suspended", "7 suspended and expired"]),
    "expired keys": ({"state": KEY_STATE_EXPIRED}, ["6 expired"]),
    "keys of an end user": ({"reference_id": USER}, [f"End user {USER}"]),
    "keys of nobody": ({"reference_id": "nobody"}, []),
    "keys with a label": ({"labels": {"team": "billing"}}, ["2 labelled", "3 connect"]),
    "keys with both labels": ({"labels": {"team": "billing", "env": "prod"}}, ["2 labelled"]),
    "keys with a label of another value": ({"labels": {"team": "Billing"}}, []),
    "keys with a label, of a kind": ({"labels": {"team": "billing"}, "kind": KEY_KIND_CONNECT}, ["3 connect"]),
    "keys with a label, in a state": ({"labels": {"env": "prod"}, "state": KEY_STATE_SUSPENDED}, ["5 suspended"]),
}


@pytest.mark.parametrize("which", FILTERS)
def test_a_filter_lists_the_keys_that_match_all_of_it(crowd: Service, which: str) -> None:
    fields, expected = FILTERS[which]

    assert names(list_keys(crowd, **fields)) == expected


def test_without_a_filter_every_key_of_the_workspace_is_listed_in_order_of_creation(crowd: Service) -> None:
    listed = names(list_keys(crowd))

    assert listed[:7] == [
        "1 plain",
        "2 labelled",
        "3 connect",
        "4 revoked",
        "5 suspended",
        "6 expired",
        "7 suspended and expired",
    ]
    assert sorted(listed[7:]) == sorted([*LINK_MAKERS, f"End user {USER}", f"End user {OTHER_USER}"])
    assert names(list_keys(crowd, OTHER_WORKSPACE)) == ["elsewhere"]


@pytest.mark.parametrize("page_size", [1, 2, 3, 10, 11, 12])
def test_pages_of_any_size_make_up_the_whole_list(crowd: Service, page_size: int) -> None:
    listed: list[str] = []
    token = ""
    while True:
        page = list_keys(crowd, page_size=page_size, page_token=token)
        assert 1 <= len(page.keys) <= page_size
        listed += [key.key_id for key in page.keys]
        token = page.next_page_token
        if not token:
            break

    assert listed == [key.key_id for key in list_keys(crowd).keys]


def test_a_key_that_stays_is_listed_exactly_once_whatever_else_happens_between_pages(service: Service) -> None:
    make_crowd(service)
    first = list_keys(service, page_size=3)
    make_key(service, display_name="new")
    revoke(service, first.keys[2].key_id)
    update_key(service, first.keys[0].key_id, display_name="renamed")

    second = list_keys(service, page_size=1000, page_token=first.next_page_token)

    ids = [key.key_id for key in (*first.keys, *second.keys)]
    assert len(ids) == len(set(ids)) == 12
    assert names(second)[-1] == "new"


def test_a_page_has_fifty_keys_unless_told_otherwise_and_at_most_a_thousand(grid: Service) -> None:
    make_many_keys(grid, 1001)

    for page_size, expected in ((0, 50), (1000, 1000), (1001, 1000), (2**31 - 1, 1000)):
        page = list_keys(grid, page_size=page_size)
        assert len(page.keys) == expected
        assert page.next_page_token
    assert len(list_keys(grid, page_size=1000, page_token=page.next_page_token).keys) == 1


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"page_size": -1}, "page_size"),
        ({"workspace_id": ""}, "workspace_id"),
        ({"kind": 99}, "kind"),
        ({"state": 99}, "state"),
        ({"labels": {"UPPER": "x"}}, "labels"),
        ({"labels": {f"l{number}": "" for number in range(9)}}, "labels"),
        ({"page_token": "garbage"}, "page_token"),
        ({"page_token": "é"}, "page_token"),
        ({"page_token": "A" * 10_000}, "page_token"),
    ],
    ids=str,
)
def test_a_list_that_cannot_be_is_refused(crowd: Service, fields: dict[str, Any], field: str) -> None:
    error = refused(list_keys, crowd, **fields)

    assert (error.code, error.reason) == INVALID
    assert set(error.violations) == {field}


def test_the_keys_of_no_workspace_cannot_be_listed(service: Service) -> None:
    error = refused(list_keys, service)

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "WORKSPACE_NOT_FOUND")


@pytest.mark.parametrize(
    "fields",
    [
        {"workspace_id": OTHER_WORKSPACE},
        {"kind": KEY_KIND_SERVER},
        {"state": KEY_STATE_ACTIVE},
        {"reference_id": USER},
        {"labels": {"team": "billing"}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_a_page_token_is_good_for_its_own_filter_only(crowd: Service, fields: dict[str, Any]) -> None:
    token = list_keys(crowd, page_size=1).next_page_token
    assert list_keys(crowd, page_size=2, page_token=token).keys

    error = refused(list_keys, crowd, page_token=token, **fields)

    assert (error.code, set(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {"page_token"})


def test_a_page_token_is_good_for_its_own_call_only(crowd: Service) -> None:
    key_id = list_keys(crowd).keys[4].key_id
    events = pb.ListKeyEventsRequest(key_id=key_id, page_size=1)
    token_of_events = crowd.operator.keys.ListKeyEvents(events).next_page_token
    token_of_keys = list_keys(crowd, page_size=1).next_page_token
    assert token_of_events

    of_keys = refused(list_keys, crowd, page_token=token_of_events)
    of_events = refused(
        crowd.operator.keys.ListKeyEvents, pb.ListKeyEventsRequest(key_id=key_id, page_token=token_of_keys)
    )
    of_another_key = refused(
        crowd.operator.keys.ListKeyEvents,
        pb.ListKeyEventsRequest(key_id=list_keys(crowd).keys[0].key_id, page_token=token_of_events),
    )

    assert [set(error.violations) for error in (of_keys, of_events, of_another_key)] == [{"page_token"}] * 3


def test_a_page_token_cannot_be_forged(crowd: Service) -> None:
    token = list_keys(crowd, page_size=1).next_page_token
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))
    forged = [
        base64.urlsafe_b64encode(raw[:position] + bytes([raw[position] ^ 1]) + raw[position + 1 :]).rstrip(b"=")
        for position in range(len(raw))
    ]

    errors = [refused(list_keys, crowd, page_token=one.decode()) for one in forged]

    assert {(error.code, *error.violations) for error in errors} == {(grpc.StatusCode.INVALID_ARGUMENT, "page_token")}
