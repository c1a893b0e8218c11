"""Calls that a customer's key asked for: the actor must be able to do itself what it asks for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from google.protobuf.message import Message
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1 import workspace_service_pb2
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER, KEY_STATE_ACTIVE, KEY_STATE_REVOKED, KEY_STATE_SUSPENDED
from texture.auth.v1.workspace_pb2 import Workspace

from tests.harness import Refused, Service, refused
from tests.wire.helpers import (
    OTHER_WORKSPACE,
    REDIRECT_URI,
    USER,
    WORKSPACE,
    current_revision,
    duration,
    events_of,
    get_key,
    make_key,
    make_scoped_key,
    make_workspace,
    reason_for,
    suspend,
    timestamp,
    update_key,
    update_request,
)

HOUR = timedelta(hours=1)
DENIED = grpc.StatusCode.PERMISSION_DENIED


@pytest.fixture
def grid(service: Service) -> Service:
    make_workspace(service)
    make_workspace(service, OTHER_WORKSPACE)
    return service


# The mutating calls. Each takes the key that it is about, which is there but for the first, and the actor.
def create(service: Service, _key_id: str, actor: str, **fields: Any) -> Message:
    given: dict[str, Any] = {"workspace_id": WORKSPACE, "kind": KEY_KIND_SERVER, "display_name": "new"} | fields
    return service.operator.keys.CreateKey(pb.CreateKeyRequest(on_behalf_of_key_id=actor, **given))


def update(service: Service, key_id: str, actor: str, *paths: str, **values: Any) -> Message:
    request = update_request(key_id, *paths, **(values if values or paths else {"display_name": "new"}))
    request.on_behalf_of_key_id = actor
    return service.operator.keys.UpdateKey(request)


def suspending(service: Service, key_id: str, actor: str) -> Message:
    return service.operator.keys.SuspendKey(pb.SuspendKeyRequest(key_id=key_id, on_behalf_of_key_id=actor))


def resume(service: Service, key_id: str, actor: str) -> Message:
    suspend(service, key_id)
    return service.operator.keys.ResumeKey(pb.ResumeKeyRequest(key_id=key_id, on_behalf_of_key_id=actor))


def rotate(service: Service, key_id: str, actor: str, **fields: Any) -> Message:
    return service.operator.keys.RotateKey(pb.RotateKeyRequest(key_id=key_id, on_behalf_of_key_id=actor, **fields))


def rotate_once(service: Service, key_id: str) -> None:
    if len(get_key(service, key_id).generations) == 1:
        service.operator.keys.RotateKey(pb.RotateKeyRequest(key_id=key_id, overlap=duration(HOUR)))


def retiring(service: Service, key_id: str, actor: str) -> Message:
    rotate_once(service, key_id)
    request = pb.RetireGenerationRequest(key_id=key_id, generation=1, force=True, on_behalf_of_key_id=actor)
    return service.operator.keys.RetireGeneration(request)


def revoking(service: Service, key_id: str, actor: str) -> Message:
    return service.operator.keys.RevokeKey(pb.RevokeKeyRequest(key_id=key_id, on_behalf_of_key_id=actor))


def revoking_all(service: Service, _key_id: str, actor: str) -> Message:
    """End every server key there is, the actor among them."""
    request = pb.RevokeKeysRequest(
        workspace_id=WORKSPACE, filter=pb.RevokeKeysFilter(kind=KEY_KIND_SERVER), dry_run=True
    )
    found = service.operator.keys.RevokeKeys(request).count
    request.MergeFrom(pb.RevokeKeysRequest(expected_count=found, on_behalf_of_key_id=actor))
    request.dry_run = False
    return service.operator.keys.RevokeKeys(request)


def configure(service: Service, _key_id: str, actor: str) -> Message:
    return service.operator.workspaces.UpdateWorkspace(
        workspace_service_pb2.UpdateWorkspaceRequest(
            workspace=Workspace(workspace_id=WORKSPACE, display_name="new"),
            update_mask=FieldMask(paths=["display_name"]),
            on_behalf_of_key_id=actor,
        )
    )


def erase(service: Service, _key_id: str, actor: str) -> Message:
    return service.operator.workspaces.EraseEndUser(
        workspace_service_pb2.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id=USER, on_behalf_of_key_id=actor)
    )


@dataclass(frozen=True)
class Mutation:
    """A call, the permission that its actor needs, and the event that it leaves."""

    call: Callable[[Service, str, str], Message]
    permission: str
    event: str


MUTATIONS = {
    "CreateKey": Mutation(create, "keys:manage", "key.created"),
    "UpdateKey": Mutation(update, "keys:manage", "key.updated"),
    "SuspendKey": Mutation(suspending, "keys:manage", "key.suspended"),
    "ResumeKey": Mutation(resume, "keys:manage", "key.resumed"),
    "RotateKey": Mutation(rotate, "keys:manage", "key.rotated"),
    "RetireGeneration": Mutation(retiring, "keys:manage", "key.generation_retired"),
    "RevokeKey": Mutation(revoking, "keys:manage", "key.revoked"),
    "RevokeKeys": Mutation(revoking_all, "keys:manage", "key.revoked"),
    "UpdateWorkspace": Mutation(configure, "workspace:configure", "workspace.updated"),
    "EraseEndUser": Mutation(erase, "keys:manage", "end_user.erased"),
}
OF_KEYS = [name for name in MUTATIONS if name not in ("UpdateWorkspace", "EraseEndUser")]


def test_the_table_of_mutations_names_every_call_that_has_an_actor() -> None:
    methods = [
        method
        for module in (pb, workspace_service_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    ]

    assert {method.name for method in methods if "on_behalf_of_key_id" in method.input_type.fields_by_name} == set(
        MUTATIONS
    )


@pytest.mark.parametrize("name", OF_KEYS)
def test_a_live_key_that_may_manage_keys_may_ask_and_the_event_names_it(grid: Service, name: str) -> None:
    mutation = MUTATIONS[name]
    actor, subject = make_key(grid), make_key(grid)

    response: Any = mutation.call(grid, subject.key.key_id, actor.key.key_id)

    changed = response.key.key_id if name == "CreateKey" else subject.key.key_id
    last = events_of(grid, changed)[-1]
    assert (last.type, last.caller_id, last.on_behalf_of_key_id) == (
        mutation.event,
        "dev-operator",
        actor.key.key_id,
    )


def test_a_live_key_that_may_configure_workspaces_may_ask(grid: Service) -> None:
    actor = make_key(grid, permissions=["workspace:configure"])

    response: Any = configure(grid, "", actor.key.key_id)

    assert response.workspace.display_name == "new"


def test_a_created_key_names_the_key_that_asked_for_it(grid: Service) -> None:
    actor = make_key(grid)

    created: Any = create(grid, "", actor.key.key_id)

    assert created.key.created_by_key_id == actor.key.key_id
    assert make_key(grid).key.created_by_key_id == ""


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_key_that_holds_everything_but_the_permission_may_not_ask(grid: Service, name: str) -> None:
    mutation = MUTATIONS[name]
    everything = set(make_key(grid).key.permissions)
    actor = make_key(grid, permissions=everything - {mutation.permission})

    error = refused(mutation.call, grid, make_key(grid).key.key_id, actor.key.key_id)

    assert (error.code, error.reason) == (DENIED, "ACTOR_PERMISSION_MISSING")
    assert error.metadata == {"key_id": actor.key.key_id, "permission": mutation.permission}


# What an actor is limited in, what it may not exceed by that, and something within.
@dataclass(frozen=True)
class Limit:
    actor: dict[str, Any]
    part: str
    beyond: dict[str, Any]
    within: dict[str, Any]


MANAGER = ["keys:manage", "devices:list"]


def limits(service: Service) -> dict[str, Limit]:
    end = service.clock.now + 10 * HOUR
    return {
        "permissions": Limit(
            {"permissions": MANAGER},
            "permissions",
            {"permissions": ["devices:list", "devices:command"]},
            {"permissions": ["devices:list"]},
        ),
        "all permissions": Limit({"permissions": MANAGER}, "permissions", {}, {"permissions": MANAGER}),
        "no networks": Limit({"allowed_cidrs": ["10.0.0.0/8"]}, "allowed_cidrs", {}, {"allowed_cidrs": ["10.0.0.0/8"]}),
        "a wider network": Limit(
            {"allowed_cidrs": ["10.0.0.0/8", "2001:db8::/32"]},
            "allowed_cidrs",
            {"allowed_cidrs": ["10.0.0.0/7"]},
            {"allowed_cidrs": ["10.1.0.0/16", "2001:db8:1::/48"]},
        ),
        "a network more": Limit(
            {"allowed_cidrs": ["10.0.0.0/8"]},
            "allowed_cidrs",
            {"allowed_cidrs": ["10.0.0.0/8", "::/0"]},
            {"allowed_cidrs": ["10.0.0.0/9", "10.128.0.0/9"]},
        ),
        "no manufacturers": Limit(
            {"allowed_manufacturers": ["acme"]}, "allowed_manufacturers", {}, {"allowed_manufacturers": ["acme"]}
        ),
        "a manufacturer more": Limit(
            {"allowed_manufacturers": ["acme", "zenith"]},
            "allowed_manufacturers",
            {"allowed_manufacturers": ["acme", "other"]},
            {"allowed_manufacturers": ["zenith"]},
        ),
        "no expiry": Limit({"expire_time": timestamp(end)}, "expire_time", {}, {"expire_time": timestamp(end)}),
        "a later expiry": Limit(
            {"expire_time": timestamp(end)},
            "expire_time",
            {"expire_time": timestamp(end + timedelta(microseconds=1))},
            {"expire_time": timestamp(end - timedelta(microseconds=1))},
        ),
    }


LIMITS = [
    "permissions",
    "all permissions",
    "no networks",
    "a wider network",
    "a network more",
    "no manufacturers",
    "a manufacturer more",
    "no expiry",
    "a later expiry",
]


def no_limit(service: Service, part: str) -> dict[str, Any]:
    return {part: list(make_key(service).key.permissions) if part == "permissions" else []}


def assert_exceeded(error: Refused, actor: str, *parts: str) -> None:
    assert (error.code, error.reason) == (DENIED, "ACTOR_AUTHORITY_EXCEEDED")
    assert error.metadata == {"key_id": actor, "exceeded": ", ".join(parts)}


@pytest.mark.parametrize("which", LIMITS)
@pytest.mark.parametrize("name", ["CreateKey", "ResumeKey", "RotateKey"])
def test_no_key_brings_about_more_authority_than_it_holds(shared_grid: Service, name: str, which: str) -> None:
    limit = limits(shared_grid)[which]
    actor = make_key(shared_grid, **limit.actor).key.key_id
    subject = "" if name == "CreateKey" else make_key(shared_grid, **limit.beyond).key.key_id

    if name == "CreateKey":
        error = refused(create, shared_grid, "", actor, **limit.beyond)
    else:
        error = refused(MUTATIONS[name].call, shared_grid, subject, actor)

    assert_exceeded(error, actor, limit.part)
    if name == "ResumeKey":
        assert get_key(shared_grid, subject).state == KEY_STATE_SUSPENDED
    if name == "RotateKey":
        assert len(get_key(shared_grid, subject).generations) == 1


@pytest.mark.parametrize("which", LIMITS)
@pytest.mark.parametrize("name", ["CreateKey", "ResumeKey", "RotateKey"])
def test_a_limited_key_may_bring_about_what_is_within_its_limits(shared_grid: Service, name: str, which: str) -> None:
    limit = limits(shared_grid)[which]
    actor = make_key(shared_grid, **limit.actor).key.key_id
    if name == "CreateKey":
        response: Any = create(shared_grid, "", actor, **limit.within)
    else:
        response = MUTATIONS[name].call(shared_grid, make_key(shared_grid, **limit.within).key.key_id, actor)

    assert response.key.state == KEY_STATE_ACTIVE


@pytest.mark.parametrize("which", LIMITS)
def test_a_limited_key_may_not_widen_another_beyond_its_limits(shared_grid: Service, which: str) -> None:
    limit = limits(shared_grid)[which]
    actor = make_key(shared_grid, **limit.actor).key.key_id
    subject = make_key(shared_grid, **limit.within).key
    wanted = limit.beyond or no_limit(shared_grid, limit.part)
    values = {name: value for name, value in wanted.items() if name != "expire_time" or value}

    error = refused(update, shared_grid, subject.key_id, actor, limit.part, **values)

    assert_exceeded(error, actor, limit.part)
    assert get_key(shared_grid, subject.key_id) == subject


@pytest.mark.parametrize("which", LIMITS)
def test_a_limited_key_may_not_widen_itself(shared_grid: Service, which: str) -> None:
    limit = limits(shared_grid)[which]
    actor = make_key(shared_grid, **limit.actor).key
    wanted = limit.beyond or no_limit(shared_grid, limit.part)
    values = {name: value for name, value in wanted.items() if name != "expire_time" or value}

    error = refused(update, shared_grid, actor.key_id, actor.key_id, limit.part, **values)

    assert_exceeded(error, actor.key_id, limit.part)
    assert get_key(shared_grid, actor.key_id) == actor


@pytest.mark.parametrize("which", LIMITS)
def test_a_limited_key_may_narrow_one_that_holds_more(grid: Service, which: str) -> None:
    limit = limits(grid)[which]
    actor = make_key(grid, **limit.actor).key.key_id
    subject = make_key(grid).key.key_id

    response: Any = update(grid, subject, actor, **limit.within)

    part = limit.part
    assert getattr(response.key, part) == getattr(get_key(grid, subject), part)
    if part == "expire_time":
        assert response.key.expire_time == limit.within[part]
    else:
        assert sorted(getattr(response.key, part)) == sorted(limit.within[part])


def test_every_part_that_is_exceeded_is_named(grid: Service) -> None:
    actor = make_key(
        grid,
        permissions=["keys:manage"],
        allowed_cidrs=["10.0.0.0/8"],
        allowed_manufacturers=["acme"],
        expire_time=timestamp(grid.clock.now + HOUR),
    ).key.key_id

    error = refused(create, grid, "", actor)

    assert_exceeded(error, actor, "permissions", "allowed_cidrs", "allowed_manufacturers", "expire_time")


@pytest.mark.parametrize("name", ["SuspendKey", "RevokeKey", "UpdateKey"])
def test_a_limited_key_may_take_from_a_key_that_holds_more_what_it_has(grid: Service, name: str) -> None:
    actor = make_key(grid, permissions=["keys:manage"]).key.key_id
    subject = make_key(grid)

    if name == "UpdateKey":
        update(grid, subject.key.key_id, actor, display_name="renamed", labels={"a": "b"}, allowed_cidrs=["10.0.0.0/8"])
        assert reason_for(grid, subject.api_key) == "ADDRESS_NOT_PERMITTED"
    else:
        MUTATIONS[name].call(grid, subject.key.key_id, actor)
        expected = KEY_STATE_SUSPENDED if name == "SuspendKey" else KEY_STATE_REVOKED
        assert get_key(grid, subject.key.key_id).state == expected


def test_narrowing_in_one_part_does_not_pay_for_widening_in_another(grid: Service) -> None:
    actor = make_key(grid, permissions=["keys:manage", "devices:list"]).key.key_id
    subject = make_key(grid, permissions=["devices:list"]).key

    error = refused(update, grid, subject.key_id, actor, permissions=["devices:command"], allowed_cidrs=["10.0.0.0/8"])

    assert_exceeded(error, actor, "permissions")
    assert get_key(grid, subject.key_id) == subject


def test_a_limited_key_may_not_widen_one_that_held_more_than_it_all_along(grid: Service) -> None:
    actor = make_key(grid, permissions=["keys:manage"]).key.key_id
    subject = make_key(grid, allowed_cidrs=["10.0.0.0/8"]).key

    error = refused(update, grid, subject.key_id, actor, "allowed_cidrs")

    assert_exceeded(error, actor, "permissions")


def test_a_key_may_rotate_suspend_and_revoke_itself(grid: Service) -> None:
    actor = make_key(grid, permissions=["keys:manage"], allowed_cidrs=["10.0.0.0/8"]).key.key_id

    rotate(grid, actor, actor)
    revoking(grid, actor, actor)

    assert get_key(grid, actor).state == KEY_STATE_REVOKED


def test_a_suspended_key_may_not_resume_itself(grid: Service) -> None:
    actor = make_key(grid).key.key_id

    assert refused(resume, grid, actor, actor).reason == "ACTOR_NOT_LIVE"
    assert get_key(grid, actor).state == KEY_STATE_SUSPENDED


def test_a_key_that_ends_may_not_renew_a_scoped_key_beyond_its_own_end(grid: Service) -> None:
    actor = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR)).key.key_id
    scoped = make_scoped_key(grid, "mine").scoped_key

    error = refused(rotate, grid, scoped.key_id, actor)

    assert_exceeded(error, actor, "expire_time")
    assert get_key(grid, scoped.key_id) == scoped


def test_an_overlap_does_not_hide_what_a_rotation_hands_out(grid: Service) -> None:
    actor = make_key(grid, permissions=["keys:manage"]).key.key_id
    subject = make_key(grid).key.key_id

    error = refused(rotate, grid, subject, actor, overlap=duration(HOUR))

    assert_exceeded(error, actor, "permissions")


def test_a_key_may_not_revive_an_expired_one_beyond_its_own_end(grid: Service) -> None:
    actor = make_key(grid, expire_time=timestamp(grid.clock.now + 2 * HOUR)).key.key_id
    subject = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR)).key.key_id
    grid.clock.turn(HOUR)

    error = refused(update, grid, subject, actor, expire_time=timestamp(grid.clock.now + 2 * HOUR))

    assert_exceeded(error, actor, "expire_time")
    update(grid, subject, actor, expire_time=timestamp(grid.clock.now + HOUR))


def test_without_an_actor_the_caller_acts_for_itself(grid: Service) -> None:
    revision = current_revision(grid)
    key = make_key(grid).key
    update_key(grid, key.key_id, display_name="renamed")

    assert {event.on_behalf_of_key_id for event in events_of(grid, key.key_id)} == {""}
    assert current_revision(grid) != revision


def test_a_connect_key_may_be_asked_for_by_a_key_that_may_create_links(grid: Service) -> None:
    with_links = make_key(grid, permissions=["keys:manage", "connect_links:create"]).key.key_id
    without = make_key(grid, permissions=["keys:manage"]).key.key_id
    wanted: dict[str, Any] = {"kind": "KEY_KIND_CONNECT", "redirect_uris": [REDIRECT_URI]}

    assert_exceeded(refused(create, grid, "", without, **wanted), without, "permissions")
    assert create(grid, "", with_links, **wanted)


@pytest.mark.parametrize("permissions", [["workspace:configure"], ["workspace:configure", "connect_links:create"]])
def test_only_a_key_that_may_create_links_adds_a_redirect_uri_to_a_workspace(
    grid: Service, permissions: list[str]
) -> None:
    actor = make_key(grid, permissions=permissions).key.key_id
    request = workspace_service_pb2.UpdateWorkspaceRequest(
        workspace=Workspace(workspace_id=WORKSPACE, redirect_uris=["https://elsewhere.example/"]),
        update_mask=FieldMask(paths=["redirect_uris"]),
        on_behalf_of_key_id=actor,
    )
    if len(permissions) > 1:
        answer = grid.operator.workspaces.UpdateWorkspace(request)
        assert list(answer.workspace.redirect_uris) == ["https://elsewhere.example/"]
    else:
        found = refused(grid.operator.workspaces.UpdateWorkspace, request)
        assert (found.reason, found.metadata["permission"]) == ("ACTOR_PERMISSION_MISSING", "connect_links:create")
