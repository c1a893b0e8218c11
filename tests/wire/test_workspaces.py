"""Workspaces, over the wire."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import workspace_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_CONNECT, ROLE_DEVICES, ROLE_KEY_ADMIN
from texture.auth.v1.workspace_pb2 import (
    ENVIRONMENT_PRODUCTION,
    ENVIRONMENT_SANDBOX,
    ENVIRONMENT_UNSPECIFIED,
    EXPOSURE_POLICY_NOTIFY_ONLY,
    EXPOSURE_POLICY_REVOKE,
    EXPOSURE_POLICY_SUSPEND,
    EXPOSURE_POLICY_UNSPECIFIED,
    Environment,
    Workspace,
)

from tests.harness import Service, refused
from tests.wire.helpers import (
    REDIRECT_URI,
    WORKSPACE,
    count_rows,
    current_revision,
    duration,
    make_key,
    make_scoped_key,
    make_workspace,
    timestamp,
)

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def create(service: Service, **fields: Any) -> pb.CreateWorkspaceResponse:
    given: dict[str, Any] = {"display_name": "Grid", "environment": ENVIRONMENT_SANDBOX} | fields
    return service.operator.workspaces.CreateWorkspace(pb.CreateWorkspaceRequest(**given))


def get(service: Service, workspace_id: str) -> Workspace:
    return service.operator.workspaces.GetWorkspace(pb.GetWorkspaceRequest(workspace_id=workspace_id)).workspace


def update(service: Service, workspace_id: str, *paths: str, **values: Any) -> pb.UpdateWorkspaceResponse:
    return service.operator.workspaces.UpdateWorkspace(
        pb.UpdateWorkspaceRequest(
            workspace=Workspace(workspace_id=workspace_id, **values), update_mask=FieldMask(paths=paths or values)
        )
    )


def list_workspaces(service: Service, **fields: Any) -> pb.ListWorkspacesResponse:
    return service.operator.workspaces.ListWorkspaces(pb.ListWorkspacesRequest(**fields))


FULL: dict[str, Any] = {
    "display_name": "Grid One ⚡",
    "redirect_uris": ["https://app.example/a", "com.example.app:/done"],
    "exposure_policy": EXPOSURE_POLICY_SUSPEND,
    "scoped_key_lifetime": duration(30 * DAY),
    "connect_link_lifetime": duration(HOUR),
}


def test_every_field_of_a_created_workspace_is_kept(service: Service) -> None:
    created = create(service, workspace_id=WORKSPACE, environment=ENVIRONMENT_PRODUCTION, **FULL)

    assert created.workspace == get(service, WORKSPACE)
    assert created.workspace == Workspace(
        workspace_id=WORKSPACE,
        environment=ENVIRONMENT_PRODUCTION,
        create_time=timestamp(service.clock.now),
        update_time=timestamp(service.clock.now),
        **FULL,
    )
    assert created.revision == current_revision(service)


def test_what_is_not_given_has_its_default(service: Service) -> None:
    workspace = create(service).workspace

    assert list(workspace.redirect_uris) == []
    assert workspace.exposure_policy == EXPOSURE_POLICY_REVOKE
    assert workspace.scoped_key_lifetime == duration(365 * DAY)
    assert workspace.connect_link_lifetime == duration(4 * HOUR)


def test_an_id_is_chosen_where_none_is_given(service: Service) -> None:
    chosen = [create(service).workspace.workspace_id for _ in range(5)]

    assert len(set(chosen)) == 5
    for workspace_id in chosen:
        assert create(service, workspace_id=workspace_id + "x").workspace.workspace_id == workspace_id + "x"


def test_an_id_that_is_taken_is_refused(service: Service) -> None:
    first = create(service, workspace_id=WORKSPACE).workspace

    error = refused(create, service, workspace_id=WORKSPACE, display_name="another")

    assert (error.code, error.reason) == (grpc.StatusCode.ALREADY_EXISTS, "WORKSPACE_EXISTS")
    assert error.metadata == {"workspace_id": WORKSPACE}
    assert get(service, WORKSPACE) == first


INVALID_WORKSPACES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "a short id": ({"workspace_id": "ab"}, {"workspace_id"}),
    "a long id": ({"workspace_id": "a" * 64}, {"workspace_id"}),
    "an id in upper case": ({"workspace_id": "Grid"}, {"workspace_id"}),
    "an id that begins with a digit": ({"workspace_id": "1grid"}, {"workspace_id"}),
    "an id that ends with a hyphen": ({"workspace_id": "grid-"}, {"workspace_id"}),
    "an id with a line break": ({"workspace_id": "grid\n"}, {"workspace_id"}),
    "an id with an underscore": ({"workspace_id": "grid_one"}, {"workspace_id"}),
    "no name": ({"display_name": ""}, {"display_name"}),
    "a long name": ({"display_name": "x" * 121}, {"display_name"}),
    "a name with a control character": ({"display_name": "a\x1bb"}, {"display_name"}),
    "no environment": ({"environment": ENVIRONMENT_UNSPECIFIED}, {"environment"}),
    "an unknown environment": ({"environment": 99}, {"environment"}),
    "an unknown policy": ({"exposure_policy": 99}, {"exposure_policy"}),
    "51 redirect URIs": (
        {"redirect_uris": [f"https://app.example/{number}" for number in range(51)]},
        {"redirect_uris"},
    ),
    "a lifetime below a minute": (
        {"scoped_key_lifetime": duration(MINUTE - timedelta(microseconds=1))},
        {"scoped_key_lifetime"},
    ),
    "no lifetime": ({"scoped_key_lifetime": Duration()}, {"scoped_key_lifetime"}),
    "a negative lifetime": ({"scoped_key_lifetime": duration(-DAY)}, {"scoped_key_lifetime"}),
    "a lifetime above 3650 days": (
        {"scoped_key_lifetime": duration(3650 * DAY + timedelta(microseconds=1))},
        {"scoped_key_lifetime"},
    ),
    "an endless lifetime": ({"scoped_key_lifetime": Duration(seconds=10**18)}, {"scoped_key_lifetime"}),
    "a lifetime of two signs": ({"scoped_key_lifetime": Duration(seconds=3600, nanos=-1)}, {"scoped_key_lifetime"}),
    "a link below a minute": ({"connect_link_lifetime": duration(timedelta(seconds=59))}, {"connect_link_lifetime"}),
    "a link above 7 days": (
        {"connect_link_lifetime": duration(7 * DAY + timedelta(microseconds=1))},
        {"connect_link_lifetime"},
    ),
    "a request id with a space": ({"request_id": "a b"}, {"request_id"}),
    "several faults": (
        {
            "workspace_id": "X",
            "display_name": "",
            "redirect_uris": [REDIRECT_URI, "nonsense"],
            "scoped_key_lifetime": duration(timedelta(seconds=1)),
            "connect_link_lifetime": duration(8 * DAY),
        },
        {"workspace_id", "display_name", "redirect_uris[1]", "scoped_key_lifetime", "connect_link_lifetime"},
    ),
}


@pytest.mark.parametrize("fault", INVALID_WORKSPACES)
def test_a_workspace_that_cannot_be_is_refused_and_every_field_at_fault_named(shared_grid: Service, fault: str) -> None:
    fields, expected = INVALID_WORKSPACES[fault]

    before = count_rows(shared_grid, "workspace")

    error = refused(create, shared_grid, **fields)

    assert (error.code, error.reason) == INVALID
    assert set(error.violations) == expected
    assert count_rows(shared_grid, "workspace") == before


@pytest.mark.parametrize(
    "fields",
    [
        {"workspace_id": "abc", "display_name": "x"},
        {"workspace_id": "a" + "-1" * 31, "display_name": "é" * 120},
        {"redirect_uris": [f"https://app.example/{number}" for number in range(50)]},
        {"redirect_uris": ["https://app.example/" + "x" * 2028]},
        {"scoped_key_lifetime": duration(MINUTE), "connect_link_lifetime": duration(MINUTE)},
        {"scoped_key_lifetime": duration(3650 * DAY), "connect_link_lifetime": duration(7 * DAY)},
    ],
    ids="+".join,
)
def test_the_limits_themselves_are_fine(service: Service, fields: dict[str, Any]) -> None:
    created = create(service, **fields).workspace

    assert created == get(service, created.workspace_id)


# The rules are at WorkspaceService; tests/domain has them all.
REDIRECT_URIS = {
    "https://app.example/done": "everywhere",
    "https://app.example:8443/done?a=b&c=d": "everywhere",
    "com.example.app:/done": "everywhere",
    "com.example.app://done": "everywhere",
    "http://localhost:3000/done": "in a sandbox",
    "http://127.0.0.1/done": "in a sandbox",
    "http://[::1]:8080/done": "in a sandbox",
    "http://app.example/done": "nowhere",
    "http://localhost.example/done": "nowhere",
    "http://127.0.0.2/done": "nowhere",
    "": "nowhere",
    "/done": "nowhere",
    "//app.example/done": "nowhere",
    "https:///done": "nowhere",
    "https://APP.example/done": "nowhere",
    "HTTPS://app.example/done": "nowhere",
    "https://user@app.example/done": "nowhere",
    "https://app.example@evil.example/done": "nowhere",
    "https://app.example/done#": "nowhere",
    "https://app.example/a/../done": "nowhere",
    "https://app.example/%2e%2E/done": "nowhere",
    "https://app.example/a%2Fdone": "nowhere",
    "https://app.example/a%5cdone": "nowhere",
    "https://app.example\\done": "nowhere",
    "https://app.example/do ne": "nowhere",
    "https://app.example/done\n": "nowhere",
    "https://äpp.example/done": "nowhere",
    "https://app.example/?texture_scoped_key=x": "nowhere",
    "https://app.example/?a=b&client_state=": "nowhere",
    "https://app.example/?client%5Fstate=x": "nowhere",
    "javascript:alert(1)": "nowhere",
    "javascript:/alert(1)": "nowhere",
    "data:/text/html,x": "nowhere",
    "file:///etc/passwd": "nowhere",
    "https://app.example/" + "x" * 2029: "nowhere",
}


@pytest.mark.parametrize("environment", [ENVIRONMENT_SANDBOX, ENVIRONMENT_PRODUCTION])
@pytest.mark.parametrize("uri", REDIRECT_URIS, ids=lambda uri: ascii(uri)[:60])
def test_a_redirect_uri_is_accepted_where_it_is_safe(
    shared_grid: Service, uri: str, environment: Environment.ValueType
) -> None:
    where = REDIRECT_URIS[uri]

    if where == "everywhere" or (where == "in a sandbox" and environment == ENVIRONMENT_SANDBOX):
        created = create(shared_grid, workspace_id="", environment=environment, redirect_uris=[uri]).workspace
        assert list(created.redirect_uris) == [uri]
    else:
        error = refused(create, shared_grid, environment=environment, redirect_uris=[uri])
        assert (error.code, error.reason) == INVALID
        assert set(error.violations) == {"redirect_uris[0]"}


@pytest.mark.parametrize("workspace_id", ["", "nowhere", "\x00", "x" * 10_000])
def test_there_is_no_workspace_of_an_unknown_id(shared_grid: Service, workspace_id: str) -> None:
    errors = [
        refused(get, shared_grid, workspace_id),
        refused(update, shared_grid, workspace_id, display_name="x"),
    ]

    assert {(error.code, error.reason) for error in errors} == {(grpc.StatusCode.NOT_FOUND, "WORKSPACE_NOT_FOUND")}


def test_workspaces_are_listed_in_order_of_creation_and_in_pages_of_any_size(service: Service) -> None:
    created = [create(service, workspace_id=name * 3).workspace for name in "zaymb"]

    assert list(list_workspaces(service).workspaces) == created
    for page_size in (1, 2, 5, 6):
        listed: list[Workspace] = []
        page = list_workspaces(service, page_size=page_size)
        while True:
            listed += page.workspaces
            if not page.next_page_token:
                break
            page = list_workspaces(service, page_size=page_size, page_token=page.next_page_token)
        assert listed == created


@pytest.mark.parametrize(
    ("fields", "field"),
    [({"page_size": -1}, "page_size"), ({"page_token": "garbage"}, "page_token")],
    ids=lambda value: str(value),  # noqa: PLW0108 - a type here would be taken for something else
)
def test_a_list_that_cannot_be_is_refused(shared_grid: Service, fields: dict[str, Any], field: str) -> None:
    error = refused(list_workspaces, shared_grid, **fields)

    assert (error.code, set(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, {field})


@pytest.mark.parametrize("role", [ROLE_KEY_ADMIN, ROLE_CONNECT, ROLE_DEVICES])
def test_those_who_work_with_workspaces_may_read_them(service: Service, role: Any) -> None:
    make_workspace(service)
    client = service.caller("backend", role).workspaces

    assert client.GetWorkspace(pb.GetWorkspaceRequest(workspace_id=WORKSPACE)).workspace.workspace_id == WORKSPACE
    assert len(client.ListWorkspaces(pb.ListWorkspacesRequest()).workspaces) == 1


NEW_VALUES: dict[str, Any] = {
    "display_name": "renamed",
    "redirect_uris": ["https://app.example/new"],
    "exposure_policy": EXPOSURE_POLICY_NOTIFY_ONLY,
    "scoped_key_lifetime": duration(7 * DAY),
    "connect_link_lifetime": duration(2 * HOUR),
}


@pytest.mark.parametrize("path", NEW_VALUES)
def test_an_update_sets_the_named_field_and_no_other(service: Service, path: str) -> None:
    before = create(service, **FULL).workspace
    service.clock.turn(HOUR)

    updated = update(service, before.workspace_id, path, **NEW_VALUES)

    expected = Workspace()
    expected.CopyFrom(before)
    expected.ClearField(path)  # type: ignore[arg-type]
    expected.MergeFrom(Workspace(**{path: NEW_VALUES[path]}))
    expected.update_time.CopyFrom(timestamp(service.clock.now))
    assert updated.workspace == expected == get(service, before.workspace_id)
    assert updated.revision == current_revision(service)
    assert updated.propagation.complete


def test_an_update_to_nothing_returns_a_field_to_its_default(service: Service) -> None:
    before = create(service, **FULL).workspace
    paths = [path for path in NEW_VALUES if path != "display_name"]

    updated = update(service, before.workspace_id, *paths).workspace

    assert list(updated.redirect_uris) == []
    assert updated.exposure_policy == EXPOSURE_POLICY_REVOKE
    assert updated.scoped_key_lifetime == duration(365 * DAY)
    assert updated.connect_link_lifetime == duration(4 * HOUR)


def test_an_update_that_changes_nothing_leaves_no_trace(service: Service) -> None:
    created = create(service, **FULL)
    events = count_rows(service, "event")
    service.clock.turn(HOUR)

    updated = update(service, created.workspace.workspace_id, **FULL)

    assert (updated.workspace, updated.revision) == (created.workspace, created.revision)
    assert count_rows(service, "event") == events


@pytest.mark.parametrize(
    ("paths", "values", "field"),
    [
        ([], {}, "update_mask"),
        (["*"], {"display_name": "x"}, "update_mask"),
        (["environment"], {"environment": ENVIRONMENT_SANDBOX}, "update_mask"),
        (["workspace_id"], {}, "update_mask"),
        (["create_time"], {}, "update_mask"),
        (["display_name", "nonsense"], {"display_name": "x"}, "update_mask"),
        (["display_name"], {}, "workspace.display_name"),
        (["redirect_uris"], {"redirect_uris": [REDIRECT_URI, "x"]}, "workspace.redirect_uris[1]"),
        (["redirect_uris"], {"redirect_uris": ["http://localhost/"]}, "workspace.redirect_uris[0]"),
        (["exposure_policy"], {"exposure_policy": 99}, "workspace.exposure_policy"),
        (["scoped_key_lifetime"], {"scoped_key_lifetime": Duration()}, "workspace.scoped_key_lifetime"),
        (["connect_link_lifetime"], {"connect_link_lifetime": duration(8 * DAY)}, "workspace.connect_link_lifetime"),
    ],
    ids=str,
)
def test_an_update_that_cannot_be_is_refused(
    service: Service, paths: list[str], values: dict[str, Any], field: str
) -> None:
    make_workspace(service)
    before = get(service, WORKSPACE)
    request = pb.UpdateWorkspaceRequest(
        workspace=Workspace(workspace_id=WORKSPACE, **values), update_mask=FieldMask(paths=paths)
    )

    error = refused(service.operator.workspaces.UpdateWorkspace, request)

    assert (error.code, error.reason) == INVALID
    assert set(error.violations) == {field}
    assert get(service, WORKSPACE) == before


def test_an_unspecified_policy_in_an_update_means_revoke(service: Service) -> None:
    workspace_id = create(service, **FULL).workspace.workspace_id

    updated = update(service, workspace_id, "exposure_policy", exposure_policy=EXPOSURE_POLICY_UNSPECIFIED)

    assert updated.workspace.exposure_policy == EXPOSURE_POLICY_REVOKE


def test_a_shorter_lifetime_is_for_the_scoped_keys_to_come(service: Service) -> None:
    make_workspace(service)
    before = make_scoped_key(service, "mine").scoped_key

    update(service, WORKSPACE, scoped_key_lifetime=duration(DAY))

    after = make_scoped_key(service, "mine").scoped_key
    assert before.expire_time == timestamp(service.clock.now + 365 * DAY)
    assert after.expire_time == timestamp(service.clock.now + DAY)


def test_one_workspace_has_nothing_to_do_with_another(service: Service) -> None:
    make_workspace(service)
    other = create(service).workspace

    update(service, WORKSPACE, display_name="renamed")
    make_key(service)

    assert get(service, other.workspace_id) == other
