"""RevokeKeys, over the wire: first shown, then done, all of it or nothing."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import connect_service_pb2
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.connect_link_pb2 import CONNECT_LINK_STATE_BLOCKED, CONNECT_LINK_STATE_OPEN
from texture.auth.v1.key_pb2 import (
    KEY_KIND_CONNECT,
    KEY_KIND_SCOPED,
    KEY_KIND_SERVER,
    KEY_STATE_REVOKED,
    KEY_STATE_SUSPENDED,
)
from texture.auth.v1.usage_service_pb2 import GetKeyUsageRequest

from tests.harness import Refused, Service, refused
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    REDIRECT_URI,
    USER,
    WORKSPACE,
    authorize,
    count_rows,
    current_revision,
    event_types,
    events_of,
    get_key,
    make_connect_key,
    make_key,
    make_many_keys,
    make_scoped_key,
    make_workspace,
    reason_for,
    revoke,
    rotate,
    suspend,
    timestamp,
)
from tests.wire.test_every_rpc import UNFIT_ACTORS

HOUR = timedelta(hours=1)
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
FAILED = grpc.StatusCode.FAILED_PRECONDITION
MOMENT = timedelta(microseconds=1)


@pytest.fixture
def grid(service: Service) -> Service:
    make_workspace(service)
    make_workspace(service, OTHER_WORKSPACE)
    return service


def request(workspace_id: str = WORKSPACE, **fields: Any) -> pb.RevokeKeysRequest:
    """Return a request; what is not a field of it is a field of the filter."""
    own = {name: fields.pop(name) for name in list(fields) if name in pb.RevokeKeysRequest.DESCRIPTOR.fields_by_name}
    return pb.RevokeKeysRequest(workspace_id=workspace_id, filter=pb.RevokeKeysFilter(**fields), **own)


def show(service: Service, **fields: Any) -> pb.RevokeKeysResponse:
    return service.operator.keys.RevokeKeys(request(dry_run=True, **fields))


def revoke_keys(service: Service, expected_count: int, **fields: Any) -> pb.RevokeKeysResponse:
    return service.operator.keys.RevokeKeys(request(expected_count=expected_count, **fields))


def faults(service: Service, asked: pb.RevokeKeysRequest) -> Refused:
    error = refused(service.operator.keys.RevokeKeys, asked)
    assert (error.code, error.reason) == INVALID
    return error


def ids_of(*made: Any) -> list[str]:
    return [one.key.key_id for one in made]


# --- First shown, then done ---------------------------------------------------------------------------------------


def test_a_dry_run_says_what_matches_in_order_of_creation_and_changes_nothing(grid: Service) -> None:
    made = [make_key(grid, labels={"team": "leaving"}) for _ in range(5)]
    make_key(grid)
    revision, events = current_revision(grid), count_rows(grid, "event")

    shown = show(grid, labels={"team": "leaving"}, reason="looking", request_id="unused")

    assert (shown.count, list(shown.key_ids)) == (5, ids_of(*made))
    assert shown.revision == current_revision(grid) == revision
    assert not shown.HasField("propagation")
    assert (count_rows(grid, "event"), count_rows(grid, "request")) == (events, 0)
    assert [get_key(grid, one.key.key_id) for one in made] == [one.key for one in made]


def test_what_was_shown_is_ended_at_once_with_an_event_for_each(grid: Service) -> None:
    made = [make_key(grid), make_connect_key(grid), make_key(grid)]
    suspend(grid, made[2].key.key_id)
    for one in made[:2]:
        assert reason_for(grid, one.api_key, permission="connect_links:create") == "PERMITTED"
    shown = show(grid, created_from=timestamp(grid.clock.now))
    events = count_rows(grid, "event")
    grid.clock.turn(HOUR)

    done = revoke_keys(
        grid,
        shown.count,
        created_from=timestamp(grid.clock.now - HOUR),
        reason="the laptop was stolen",
        request_id="incident-1",
    )

    assert (done.count, list(done.key_ids)) == (3, list(shown.key_ids)) == (3, ids_of(*made))
    assert done.propagation.complete
    assert done.revision == current_revision(grid) != shown.revision
    assert count_rows(grid, "event") == events + 3
    for one in made:
        key = get_key(grid, one.key.key_id)
        assert (key.state, key.state_reason) == (KEY_STATE_REVOKED, "the laptop was stolen")
        assert key.revoke_time == key.update_time == timestamp(grid.clock.now)
        assert not key.HasField("suspend_time")
        last = events_of(grid, one.key.key_id)[-1]
        assert (last.type, last.reason, last.request_id) == ("key.revoked", "the laptop was stolen", "incident-1")
        assert (last.caller_id, last.on_behalf_of_key_id) == ("dev-operator", "")
        assert (last.before["state"], last.after["state"]) == (
            "suspended" if one is made[2] else "active",
            "revoked",
        )
        assert reason_for(grid, one.api_key, permission="connect_links:create") == "KEY_REVOKED"


def test_every_secret_of_a_rotated_key_ends_with_it(grid: Service) -> None:
    made = make_key(grid)
    newer = rotate(grid, made.key.key_id, HOUR)

    revoke_keys(grid, 1, kind=KEY_KIND_SERVER)

    assert {reason_for(grid, api_key) for api_key in (made.api_key, newer.api_key)} == {"KEY_REVOKED"}
    assert list(get_key(grid, made.key.key_id).generations) == list(newer.key.generations)


def test_the_open_links_of_a_revoked_key_end_with_it(grid: Service) -> None:
    maker, other = make_connect_key(grid, labels={"site": "old"}), make_connect_key(grid)

    def link_of(api_key: str) -> connect_service_pb2.CreateConnectLinkResponse:
        return grid.operator.connect.CreateConnectLink(
            connect_service_pb2.CreateConnectLinkRequest(api_key=api_key, redirect_uri=REDIRECT_URI)
        )

    def state_of(link: connect_service_pb2.CreateConnectLinkResponse) -> int:
        asked = connect_service_pb2.GetConnectLinkRequest(link_token=link.link_token)
        return grid.operator.connect.GetConnectLink(asked).connect_link.state

    ended, open_still = link_of(maker.api_key), link_of(other.api_key)
    assert state_of(ended) == CONNECT_LINK_STATE_OPEN

    revoke_keys(grid, 1, labels={"site": "old"})

    assert (state_of(ended), state_of(open_still)) == (CONNECT_LINK_STATE_BLOCKED, CONNECT_LINK_STATE_OPEN)
    completion = connect_service_pb2.CompleteConnectLinkRequest(
        link_token=ended.link_token, devices=[connect_service_pb2.ConnectedDevice(device_id="battery-1")]
    )
    error = refused(grid.operator.connect.CompleteConnectLink, completion)
    assert (error.reason, error.metadata["deny_reason"]) == ("CONNECT_LINK_KEY_NOT_LIVE", "KEY_REVOKED")


# --- The count must hold ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", ["one more", "one fewer"])
def test_when_other_keys_match_than_were_shown_nothing_is_revoked(grid: Service, change: str) -> None:
    made = [make_key(grid), make_key(grid)]
    shown = show(grid, kind=KEY_KIND_SERVER)
    if change == "one more":
        made.append(make_key(grid))
    else:
        revoke(grid, made.pop().key.key_id)
    revision, events = current_revision(grid), count_rows(grid, "event")

    error = refused(revoke_keys, grid, shown.count, kind=KEY_KIND_SERVER, request_id="incident-1")

    assert (error.code, error.reason) == (FAILED, "MATCHES_CHANGED")
    assert error.metadata == {"expected_count": "2", "found_count": str(len(made))}
    assert [get_key(grid, one.key.key_id) for one in made] == [one.key for one in made]
    assert (current_revision(grid), count_rows(grid, "event")) == (revision, events)
    # Refused, the request was not carried out, and its id may be used for the one that is right.
    assert revoke_keys(grid, len(made), kind=KEY_KIND_SERVER, request_id="incident-1").count == len(made)


def test_none_are_revoked_where_none_were_expected(grid: Service) -> None:
    make_key(grid)
    revision = current_revision(grid)

    assert show(grid, kind=KEY_KIND_CONNECT).count == 0
    done = revoke_keys(grid, 0, kind=KEY_KIND_CONNECT)

    assert (done.count, list(done.key_ids), done.revision) == (0, [], revision)
    assert refused(revoke_keys, grid, 0, kind=KEY_KIND_SERVER).reason == "MATCHES_CHANGED"


@pytest.mark.parametrize("expected_count", [-1, -(2**31)])
def test_a_negative_count_is_refused(grid: Service, expected_count: int) -> None:
    made = make_key(grid)

    error = faults(grid, request(kind=KEY_KIND_SERVER, expected_count=expected_count))

    assert list(error.violations) == ["expected_count"]
    assert get_key(grid, made.key.key_id) == made.key


def test_a_thousand_keys_are_revoked_at_once_and_one_more_is_too_many(grid: Service) -> None:
    key_ids = make_many_keys(grid, 1000)
    last = make_key(grid, labels={"batch": "large"}).key
    events = count_rows(grid, "event")

    for refuse in (
        lambda: show(grid, labels={"batch": "large"}),
        lambda: revoke_keys(grid, 1000, labels={"batch": "large"}),
        lambda: revoke_keys(grid, 1001, labels={"batch": "large"}),
    ):
        error = refused(refuse)
        assert (error.code, error.reason, error.metadata) == (FAILED, "MATCHES_TOO_MANY", {"maximum": "1000"})
    assert count_rows(grid, "event") == events
    revoke(grid, last.key_id)

    shown = show(grid, labels={"batch": "large"})
    done = revoke_keys(grid, 1000, labels={"batch": "large"}, reason="all of them")

    assert shown.count == done.count == 1000
    # Made in one transaction, and so in no order but one that stays.
    assert list(shown.key_ids) == list(done.key_ids) == sorted(key_ids)
    assert count_rows(grid, "event") == events + 1001
    (found,) = grid.query("SELECT count(*) AS number FROM api_key WHERE state = 'revoked'")
    assert found["number"] == 1001
    assert event_types(grid, key_ids[-1]) == ["key.revoked"]


# --- Which keys ---------------------------------------------------------------------------------------------------


def test_an_empty_filter_is_refused(grid: Service) -> None:
    made = make_key(grid)

    for asked in (
        request(dry_run=True),
        request(expected_count=1),
        pb.RevokeKeysRequest(workspace_id=WORKSPACE, dry_run=True),
        pb.RevokeKeysRequest(workspace_id=WORKSPACE, expected_count=1),
        request(dry_run=True, labels={}, reference_id="", created_by_key_id="", kind="KEY_KIND_UNSPECIFIED"),
    ):
        assert list(faults(grid, asked).violations) == ["filter"]
    assert get_key(grid, made.key.key_id) == made.key


def make_crowd(grid: Service) -> dict[str, str]:
    """Return ids of keys that differ in all that a filter looks at, by name; an hour lies between one and the next."""
    made: dict[str, str] = {}

    def note(name: str, key_id: str) -> None:
        made[name] = key_id
        grid.clock.turn(HOUR)

    note("plain", make_key(grid).key.key_id)
    note("labelled", make_key(grid, labels={"team": "a", "site": "1"}, on_behalf_of_key_id=made["plain"]).key.key_id)
    note("connect", make_connect_key(grid, labels={"team": "a"}).key.key_id)
    for name, user in (("scoped", USER), ("other scoped", OTHER_USER)):
        scoped = make_scoped_key(grid, f"device of {name}".replace(" ", "-"), reference_id=user).scoped_key
        note(name, scoped.key_id)
        made[f"maker of {name}"] = scoped.created_by_key_id
    note("suspended", make_key(grid, labels={"team": "b"}).key.key_id)
    suspend(grid, made["suspended"])
    note("expired", make_key(grid, expire_time=timestamp(grid.clock.now + HOUR)).key.key_id)
    note("revoked", make_key(grid, labels={"team": "a"}, on_behalf_of_key_id=made["plain"]).key.key_id)
    revoke(grid, made["revoked"])
    return made


@pytest.fixture(scope="module")
def crowd(module_grid: Service) -> dict[str, str]:
    """A crowd that nobody changes."""
    return make_crowd(module_grid)


START = -8 * HOUR
Filter = Callable[[dict[str, str], Service], dict[str, Any]]


def at(service: Service, hours: int, and_more: timedelta = timedelta()) -> Timestamp:
    """Return a time so long after the first of the crowd was made."""
    return timestamp(service.clock.now + START + hours * HOUR + and_more)


FILTERS: dict[str, tuple[Filter, set[str]]] = {
    "server keys": (
        lambda _ids, _s: {"kind": KEY_KIND_SERVER},
        {"plain", "labelled", "suspended", "expired", "maker of scoped", "maker of other scoped"},
    ),
    "connect keys": (lambda _ids, _s: {"kind": KEY_KIND_CONNECT}, {"connect"}),
    "scoped keys": (lambda _ids, _s: {"kind": KEY_KIND_SCOPED}, {"scoped", "other scoped"}),
    "an end user's": (lambda _ids, _s: {"reference_id": USER}, {"scoped"}),
    "nobody's": (lambda _ids, _s: {"reference_id": "nobody"}, set()),
    "a label": (lambda _ids, _s: {"labels": {"team": "a"}}, {"labelled", "connect"}),
    "two labels": (lambda _ids, _s: {"labels": {"team": "a", "site": "1"}}, {"labelled"}),
    "a label of another value": (lambda _ids, _s: {"labels": {"team": "c"}}, set()),
    "what a key asked for": (lambda ids, _s: {"created_by_key_id": ids["plain"]}, {"labelled"}),
    "what a key's link made": (lambda ids, _s: {"created_by_key_id": ids["maker of scoped"]}, {"scoped"}),
    "what no key asked for": (lambda _ids, _s: {"created_by_key_id": "0" * 16}, set()),
    "what nothing could have asked for": (lambda _ids, _s: {"created_by_key_id": "\x00" + "x" * 500}, set()),
    "from a time on": (lambda _ids, s: {"created_from": at(s, 5)}, {"suspended", "expired"}),
    "from just after a time on": (lambda _ids, s: {"created_from": at(s, 5, MOMENT)}, {"expired"}),
    "before a time": (lambda _ids, s: {"created_before": at(s, 1)}, {"plain"}),
    "before just after a time": (lambda _ids, s: {"created_before": at(s, 1, MOMENT)}, {"plain", "labelled"}),
    "between two times": (
        lambda _ids, s: {"created_from": at(s, 1), "created_before": at(s, 3)},
        {"labelled", "connect"},
    ),
    "never": (lambda _ids, s: {"created_from": at(s, 3), "created_before": at(s, 1)}, set()),
    "a kind and a label": (lambda _ids, _s: {"kind": KEY_KIND_SERVER, "labels": {"team": "a"}}, {"labelled"}),
    "a kind and an end user": (lambda _ids, _s: {"kind": KEY_KIND_SERVER, "reference_id": USER}, set()),
    "a kind and a time": (
        lambda _ids, s: {"kind": KEY_KIND_SCOPED, "created_from": at(s, 3), "created_before": at(s, 4)},
        {"scoped"},
    ),
    "everything at once": (
        lambda ids, s: {
            "kind": KEY_KIND_SERVER,
            "labels": {"team": "a"},
            "created_by_key_id": ids["plain"],
            "created_from": at(s, 1),
            "created_before": at(s, 2),
        },
        {"labelled"},
    ),
}


@pytest.mark.parametrize("what", FILTERS)
def test_exactly_the_keys_that_match_every_field_of_the_filter_are_shown(
    shared_grid: Service, crowd: dict[str, str], what: str
) -> None:
    make, expected = FILTERS[what]
    names = {key_id: name for name, key_id in crowd.items()}

    shown = show(shared_grid, **make(crowd, shared_grid))

    assert (shown.count, {names[key_id] for key_id in shown.key_ids}) == (len(expected), expected)


@pytest.mark.parametrize("what", ["connect keys", "an end user's", "nobody's", "two labels", "from a time on"])
def test_exactly_the_keys_that_are_shown_are_ended(grid: Service, what: str) -> None:
    crowd = make_crowd(grid)
    make, expected = FILTERS[what]
    fields = make(crowd, grid)
    before = {name: get_key(grid, key_id) for name, key_id in crowd.items()}

    shown = show(grid, **fields)
    done = revoke_keys(grid, len(expected), **fields)

    names = {key_id: name for name, key_id in crowd.items()}
    assert {names[key_id] for key_id in shown.key_ids} == expected
    assert (done.count, list(done.key_ids)) == (len(expected), list(shown.key_ids))
    for name, key_id in crowd.items():
        if name in expected:
            assert get_key(grid, key_id).state == KEY_STATE_REVOKED
        else:
            assert get_key(grid, key_id) == before[name]
    assert before["suspended"].state == KEY_STATE_SUSPENDED


def test_keys_of_other_workspaces_are_never_touched(grid: Service) -> None:
    here = make_key(grid, labels={"team": "a"})
    there = make_key(grid, workspace_id=OTHER_WORKSPACE, labels={"team": "a"}).key

    for fields in ({"kind": KEY_KIND_SERVER}, {"labels": {"team": "a"}}, {"created_from": timestamp(grid.clock.now)}):
        assert list(show(grid, **fields).key_ids) == ids_of(here)
    assert revoke_keys(grid, 1, labels={"team": "a"}).count == 1

    assert get_key(grid, there.key_id) == there
    assert event_types(grid, there.key_id) == ["key.created"]


def test_a_key_that_is_revoked_never_matches_again(grid: Service) -> None:
    made = make_key(grid)
    revoke_keys(grid, 1, kind=KEY_KIND_SERVER, reason="first")
    revoked = get_key(grid, made.key.key_id)

    assert show(grid, kind=KEY_KIND_SERVER).count == 0
    assert refused(revoke_keys, grid, 1, kind=KEY_KIND_SERVER, reason="second").metadata["found_count"] == "0"
    assert get_key(grid, made.key.key_id) == revoked


# --- What is wrong with a request ---------------------------------------------------------------------------------


BAD_REQUESTS: dict[str, tuple[pb.RevokeKeysRequest, str]] = {
    "a dry run with a count": (request(kind=KEY_KIND_SERVER, dry_run=True, expected_count=1), "expected_count"),
    "a dry run with a count of 0": (request(kind=KEY_KIND_SERVER, dry_run=True, expected_count=0), "expected_count"),
    "neither a dry run nor a count": (request(kind=KEY_KIND_SERVER), "expected_count"),
    "no workspace": (request("", kind=KEY_KIND_SERVER, dry_run=True), "workspace_id"),
    "an unknown kind": (request(kind=99, dry_run=True), "filter.kind"),
    "an end user who cannot be": (request(reference_id="two words", dry_run=True), "filter.reference_id"),
    "a label that cannot be": (request(labels={"Team": "a"}, dry_run=True), "filter.labels"),
    "nine labels": (request(labels={f"l{n}": "" for n in range(9)}, dry_run=True), "filter.labels"),
    "a time that cannot be": (request(created_from=Timestamp(nanos=-1), dry_run=True), "filter.created_from"),
    "a far time": (request(created_before=Timestamp(seconds=2**60), dry_run=True), "filter.created_before"),
    "a reason that is too long": (request(kind=KEY_KIND_SERVER, expected_count=1, reason="x" * 501), "reason"),
    "a bad request id": (request(kind=KEY_KIND_SERVER, expected_count=1, request_id="a b"), "request_id"),
}


@pytest.mark.parametrize("what", BAD_REQUESTS)
def test_a_request_that_is_wrong_is_refused_with_the_field_at_fault(grid: Service, what: str) -> None:
    asked, at_fault = BAD_REQUESTS[what]
    made = make_key(grid)

    assert list(faults(grid, asked).violations) == [at_fault]
    assert get_key(grid, made.key.key_id) == made.key


@pytest.mark.parametrize("how", [{"dry_run": True}, {"expected_count": 0}])
@pytest.mark.parametrize("workspace_id", ["nowhere", "No-Slug", "\x00", "x" * 1000])
def test_a_workspace_that_does_not_exist_is_not_found(grid: Service, how: dict[str, Any], workspace_id: str) -> None:
    error = refused(grid.operator.keys.RevokeKeys, request(workspace_id, kind=KEY_KIND_SERVER, **how))

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "WORKSPACE_NOT_FOUND")


# --- On behalf of a customer's key --------------------------------------------------------------------------------


@pytest.mark.parametrize("why", UNFIT_ACTORS)
@pytest.mark.parametrize("how", [{"dry_run": True}, {"expected_count": 1}], ids=["dry run", "revoking"])
def test_a_key_that_is_not_fit_to_ask_is_shown_nothing_and_gets_nothing_done(
    grid: Service, how: dict[str, Any], why: str
) -> None:
    arrange, reason = UNFIT_ACTORS[why]
    actor = arrange(grid)
    subject = make_key(grid, labels={"team": "a"}).key

    asked = request(labels={"team": "a"}, on_behalf_of_key_id=actor, **how)
    error = refused(grid.operator.keys.RevokeKeys, asked)

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, reason)
    assert get_key(grid, subject.key_id) == subject


def test_the_key_that_asked_may_be_among_those_that_end_and_its_repeat_is_still_answered(grid: Service) -> None:
    actor = make_key(grid, permissions=["keys:manage"])
    stronger = make_key(grid)
    asked: dict[str, Any] = {
        "kind": KEY_KIND_SERVER,
        "on_behalf_of_key_id": actor.key.key_id,
        "request_id": "incident-1",
    }

    done = revoke_keys(grid, show(grid, **asked).count, **asked)

    assert list(done.key_ids) == ids_of(actor, stronger)
    for key_id in done.key_ids:
        assert get_key(grid, key_id).state == KEY_STATE_REVOKED
        assert events_of(grid, key_id)[-1].on_behalf_of_key_id == actor.key.key_id
    assert revoke_keys(grid, 2, **asked).count == 2
    assert refused(revoke_keys, grid, 0, **asked | {"request_id": ""}).reason == "ACTOR_NOT_LIVE"


# --- Repeats ------------------------------------------------------------------------------------------------------


def test_a_repeat_returns_the_count_and_changes_nothing(grid: Service) -> None:
    make_key(grid)
    make_key(grid)
    first = revoke_keys(grid, 2, kind=KEY_KIND_SERVER, request_id="incident-1")
    later = make_key(grid)
    make_key(grid)
    revision, events = current_revision(grid), count_rows(grid, "event")

    again = revoke_keys(grid, 2, kind=KEY_KIND_SERVER, request_id="incident-1")

    assert (again.count, list(again.key_ids)) == (first.count, []) == (2, [])
    assert again.propagation.complete
    assert (current_revision(grid), count_rows(grid, "event")) == (revision, events)
    assert reason_for(grid, later.api_key) == "PERMITTED"
    error = faults(grid, request(kind=KEY_KIND_SERVER, expected_count=3, request_id="incident-1"))
    assert list(error.violations) == ["request_id"]


def test_a_dry_run_under_the_id_of_a_request_neither_repeats_nor_spends_it(grid: Service) -> None:
    make_key(grid)
    assert show(grid, kind=KEY_KIND_SERVER, request_id="incident-1").count == 1
    assert revoke_keys(grid, 1, kind=KEY_KIND_SERVER, request_id="incident-1").count == 1
    assert show(grid, kind=KEY_KIND_SERVER, request_id="incident-1").count == 0


# --- Lineage ------------------------------------------------------------------------------------------------------


def family(service: Service) -> dict[str, Any]:
    """Make a key, what descends from it in every way, and a stranger; return them by name."""
    root = make_key(service)
    child = make_key(service, on_behalf_of_key_id=root.key.key_id, display_name="the child")
    site = make_connect_key(service, on_behalf_of_key_id=child.key.key_id)
    link = service.operator.connect.CreateConnectLink(
        connect_service_pb2.CreateConnectLinkRequest(api_key=site.api_key, redirect_uri=REDIRECT_URI)
    )
    done = service.operator.connect.CompleteConnectLink(
        connect_service_pb2.CompleteConnectLinkRequest(
            link_token=link.link_token, devices=[connect_service_pb2.ConnectedDevice(device_id="battery")]
        )
    )
    stranger = make_scoped_key(service, "charger", reference_id=OTHER_USER)
    return {
        "root": root.key,
        "child": child.key,
        "site": site.key,
        "theirs": done.scoped_key,
        "stranger": stranger.scoped_key,
    }


def names(family_of: dict[str, Any], key_ids: Any) -> set[str]:
    by_id = {key.key_id: name for name, key in family_of.items()}
    return {by_id[key_id] for key_id in key_ids}


def test_keys_are_found_by_every_ancestor(grid: Service) -> None:
    ours = family(grid)
    theirs = ours["theirs"]

    def shown(**fields: Any) -> set[str]:
        return names(ours, show(grid, **fields).key_ids)

    assert shown(descends_from_key_id=ours["root"].key_id) == {"root", "child", "site", "theirs"}
    assert shown(descends_from_key_id=ours["site"].key_id) == {"site", "theirs"}
    assert shown(descends_from_key_id=theirs.key_id) == {"theirs"}
    assert shown(connect_link_id=theirs.connect_link_id) == {"theirs"}
    assert shown(reference_id=theirs.reference_id) == {"theirs"}
    assert shown(device_id="battery") == {"theirs"}
    assert shown(device_id="charger") == {"stranger"}
    assert shown(device_id="charger", reference_id=OTHER_USER, kind=KEY_KIND_SCOPED) == {"stranger"}
    for nothing in (
        {"device_id": "no-such-device"},
        {"device_id": "no device\x00"},
        {"device_id": "charger", "reference_id": USER},
        {"device_id": "charger", "kind": KEY_KIND_SERVER},
        {"descends_from_key_id": "nobody"},
        {"connect_link_id": "nothing"},
        {"device_id": "charger", "descends_from_key_id": ours["root"].key_id},
    ):
        assert shown(**nothing) == set()
    assert show(grid, workspace_id=OTHER_WORKSPACE, descends_from_key_id=ours["root"].key_id).count == 0
    assert show(grid, workspace_id=OTHER_WORKSPACE, device_id="battery").count == 0


def test_a_dry_run_says_what_each_key_is_and_where_it_comes_from(grid: Service) -> None:
    ours = family(grid)

    shown = show(grid, descends_from_key_id=ours["root"].key_id)

    assert [match.key_id for match in shown.keys] == list(shown.key_ids)
    for match in shown.keys:
        key = get_key(grid, match.key_id)
        for field in ("kind", "state", "display_name", "created_by_key_id", "connect_link_id", "reference_id"):
            assert getattr(match, field) == getattr(key, field), field
    assert [match.created_by_key_id for match in shown.keys] == ["", *shown.key_ids[:3]]
    assert shown.keys[1].display_name == "the child"
    assert shown.keys[3].connect_link_id == ours["theirs"].connect_link_id


def test_all_that_descends_is_ended_at_once_and_nothing_else(grid: Service) -> None:
    ours = family(grid)
    revoke(grid, ours["child"].key_id)

    done = revoke_keys(grid, 3, descends_from_key_id=ours["root"].key_id, reason="the laptop was stolen")

    assert names(ours, done.key_ids) == {"root", "site", "theirs"}
    assert list(done.keys) == []
    states = {name: get_key(grid, key.key_id).state for name, key in ours.items()}
    assert {name for name, state in states.items() if state != KEY_STATE_REVOKED} == {"stranger"}


def test_a_dry_run_tells_when_keys_were_last_used(grid: Service) -> None:
    used, unused = make_key(grid), make_key(grid)
    authorize(grid, used.api_key)
    # Whoever asks what was used has it stored first.
    grid.operator.usage.GetKeyUsage(GetKeyUsageRequest(key_id=used.key.key_id))
    times = {match.key_id: match for match in show(grid, kind=KEY_KIND_SERVER).keys}
    assert times[used.key.key_id].last_use_time == timestamp(grid.clock.now)
    assert not times[unused.key.key_id].HasField("last_use_time")
