"""The callers of this service, their keys and their roles."""

from __future__ import annotations

import json
from datetime import UTC, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.field_mask_pb2 import FieldMask
from texture.auth.v1 import caller_service_pb2 as pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_CONNECT, ROLE_KEY_ADMIN, ROLE_OPERATOR, Caller, Role

from server.domain.token import TokenKind, parse
from tests.harness import Client, Service, refused
from tests.wire.links_helpers import length, with_wrong_secret

NOT_FOUND = grpc.StatusCode.NOT_FOUND
ALREADY_EXISTS = grpc.StatusCode.ALREADY_EXISTS
FAILED_PRECONDITION = grpc.StatusCode.FAILED_PRECONDITION
INVALID_ARGUMENT = grpc.StatusCode.INVALID_ARGUMENT
UNAUTHENTICATED = grpc.StatusCode.UNAUTHENTICATED
PERMISSION_DENIED = grpc.StatusCode.PERMISSION_DENIED


def create(client: Client, caller_id: str = "device-api", **fields: Any) -> pb.CreateCallerResponse:
    values = {"roles": [ROLE_KEY_ADMIN], **fields}
    return client.callers.CreateCaller(pb.CreateCallerRequest(caller_id=caller_id, **values))


def get(client: Client, caller_id: str = "device-api") -> Caller:
    return client.callers.GetCaller(pb.GetCallerRequest(caller_id=caller_id)).caller


def rotate(client: Client, caller_id: str = "device-api", **fields: Any) -> pb.RotateCallerKeyResponse:
    return client.callers.RotateCallerKey(pb.RotateCallerKeyRequest(caller_id=caller_id, **fields))


def revoke(client: Client, caller_id: str = "device-api", **fields: Any) -> pb.RevokeCallerResponse:
    return client.callers.RevokeCaller(pb.RevokeCallerRequest(caller_id=caller_id, **fields))


def update(client: Client, *paths: str, request_id: str = "", **values: Any) -> pb.UpdateCallerResponse:
    caller = Caller(**{"caller_id": "device-api", **values})
    return client.callers.UpdateCaller(
        pb.UpdateCallerRequest(caller=caller, update_mask=FieldMask(paths=paths), request_id=request_id)
    )


def list_workspaces(client: Client) -> None:
    """Make a call that `key-admin`, `connect` and `devices` may make."""
    client.workspaces.ListWorkspaces(workspace_pb.ListWorkspacesRequest())


def answer_to(service: Service, caller_key: str) -> str:
    """Return what becomes of a call with this key: OK, or the reason of its error."""
    try:
        list_workspaces(service.client(caller_key))
    except grpc.RpcError:
        found = refused(list_workspaces, service.client(caller_key))
        assert found.code is (PERMISSION_DENIED if found.reason == "CALLER_ROLE_MISSING" else UNAUTHENTICATED)
        return found.reason
    return "OK"


class TestCreating:
    def test_a_caller_is_made_with_a_key_that_works(self, service: Service) -> None:
        made = create(service.operator, display_name="Device API", roles=[ROLE_CONNECT, ROLE_AUTHORIZER])
        caller = made.caller
        assert caller.caller_id == "device-api"
        assert caller.display_name == "Device API"
        assert sorted(caller.roles) == [ROLE_AUTHORIZER, ROLE_CONNECT]
        assert caller.create_time.ToDatetime(UTC) == caller.update_time.ToDatetime(UTC) == service.clock.now
        assert not caller.HasField("revoke_time")
        assert made.revision
        token = parse(made.caller_key)
        assert token is not None
        assert (token.kind, token.public_id) == (TokenKind.SERVICE, caller.key_id)
        (generation,) = caller.generations
        assert (generation.generation, generation.last_four) == (1, made.caller_key[-4:])
        assert not generation.HasField("retire_time")
        assert get(service.operator) == caller
        assert answer_to(service, made.caller_key) == "OK"

    def test_without_a_name_the_id_is_the_name(self, service: Service) -> None:
        assert create(service.operator).caller.display_name == "device-api"

    def test_an_id_that_is_taken_stays_taken_after_revocation(self, service: Service) -> None:
        create(service.operator)
        found = refused(create, service.operator)
        assert (found.code, found.reason) == (ALREADY_EXISTS, "CALLER_EXISTS")
        revoke(service.operator)
        assert refused(create, service.operator).reason == "CALLER_EXISTS"

    @pytest.mark.parametrize("caller_id", ["abc", "a1-2", "a" * 63])
    def test_an_id_may_be(self, service: Service, caller_id: str) -> None:
        assert create(service.operator, caller_id).caller.caller_id == caller_id

    @pytest.mark.parametrize(
        "caller_id", ["", "ab", "a" * 64, "Abc", "1abc", "abc-", "-abc", "a_c", "a c", "abü", "abc\n"]
    )
    def test_an_id_may_not_be(self, service: Service, caller_id: str) -> None:
        found = refused(create, service.operator, caller_id, display_name="x")
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["caller_id"]

    @pytest.mark.parametrize(("roles", "at_fault"), [([], "roles"), ([0], "roles[0]"), ([1, 99], "roles[1]")])
    def test_at_least_one_role_is_needed_and_each_must_be_one(
        self, service: Service, roles: list[int], at_fault: str
    ) -> None:
        assert list(refused(create, service.operator, roles=roles).violations) == [at_fault]

    def test_a_role_is_held_once(self, service: Service) -> None:
        assert list(create(service.operator, roles=[1, 1]).caller.roles) == [ROLE_AUTHORIZER]

    @pytest.mark.parametrize("display_name", ["x" * 121, "line\nfeed"])
    def test_a_name_is_for_people(self, service: Service, display_name: str) -> None:
        assert list(refused(create, service.operator, display_name=display_name).violations) == ["display_name"]

    def test_a_repeat_names_the_caller_and_hands_out_nothing(self, service: Service) -> None:
        made = create(service.operator, request_id="once")
        found = refused(create, service.operator, request_id="once")
        assert (found.code, found.reason) == (ALREADY_EXISTS, "REQUEST_REPEATED")
        assert found.metadata == {"caller_id": "device-api"}
        assert answer_to(service, made.caller_key) == "OK"


class TestFinding:
    def test_callers_are_listed_in_order_of_creation_page_by_page(self, service: Service) -> None:
        names = ["zulu", "alpha", "mike"]
        made = [create(service.operator, name).caller for name in names]
        found: list[Caller] = []
        token = ""
        while True:
            page = service.operator.callers.ListCallers(pb.ListCallersRequest(page_size=2, page_token=token))
            found += page.callers
            token = page.next_page_token
            if not token:
                break
        assert [caller.caller_id for caller in found] == ["dev-operator", *names]
        assert found[1:] == made

    @pytest.mark.parametrize(
        ("fields", "at_fault"), [({"page_size": -1}, "page_size"), ({"page_token": "x"}, "page_token")]
    )
    def test_what_cannot_be_listed_is_refused(self, service: Service, fields: dict[str, Any], at_fault: str) -> None:
        found = refused(service.operator.callers.ListCallers, pb.ListCallersRequest(**fields))
        assert list(found.violations) == [at_fault]

    @pytest.mark.parametrize("caller_id", ["", "nobody", "NOT AN ID"])
    def test_an_unknown_caller_is_not_found(self, service: Service, caller_id: str) -> None:
        for call in (get, rotate, revoke):
            found = refused(call, service.operator, caller_id)
            assert (found.code, found.reason) == (NOT_FOUND, "CALLER_NOT_FOUND")
        found = refused(update, service.operator, "display_name", caller_id=caller_id, display_name="x")
        assert found.reason == "CALLER_NOT_FOUND"


class TestUpdating:
    def test_only_the_named_fields_change(self, service: Service) -> None:
        made = create(service.operator, display_name="before").caller
        service.clock.turn(timedelta(minutes=1))
        answer = update(service.operator, "display_name", display_name="after", roles=[ROLE_OPERATOR])
        assert answer.caller.display_name == "after"
        assert answer.caller.roles == made.roles
        assert answer.caller.update_time.ToDatetime(UTC) == service.clock.now
        assert answer.propagation.complete
        assert get(service.operator) == answer.caller

    def test_a_change_of_roles_takes_effect_at_once(self, service: Service) -> None:
        key = create(service.operator, roles=[ROLE_KEY_ADMIN]).caller_key
        assert answer_to(service, key) == "OK"
        update(service.operator, "roles", roles=[ROLE_AUTHORIZER])
        assert answer_to(service, key) == "CALLER_ROLE_MISSING"
        update(service.operator, "roles", roles=[ROLE_AUTHORIZER, ROLE_CONNECT])
        assert answer_to(service, key) == "OK"
        listing = device_pb.ListDevicesRequest(workspace_id="nowhere")
        assert refused(service.client(key).devices.ListDevices, listing).reason == "CALLER_ROLE_MISSING"

    def test_an_operator_can_give_up_its_own_role(self, service: Service) -> None:
        key = create(service.operator, "second", roles=[ROLE_OPERATOR]).caller_key
        second = service.client(key)
        update(second, "roles", caller_id="second", roles=[ROLE_AUTHORIZER])
        assert refused(get, second).reason == "CALLER_ROLE_MISSING"

    @pytest.mark.parametrize("paths", [(), ("caller_id",), ("display_name", "key_id"), ("generations",), ("*",)])
    def test_a_mask_names_what_may_be_set_and_nothing_else(self, service: Service, paths: tuple[str, ...]) -> None:
        create(service.operator)
        found = refused(update, service.operator, *paths, display_name="x")
        assert found.code is INVALID_ARGUMENT
        assert list(found.violations) == ["update_mask"]

    def test_a_value_that_is_wrong_is_named_under_the_caller(self, service: Service) -> None:
        create(service.operator)
        found = refused(update, service.operator, "display_name", "roles", display_name="")
        assert set(found.violations) == {"caller.display_name", "caller.roles"}

    def test_a_revoked_caller_does_not_change(self, service: Service) -> None:
        create(service.operator)
        revoke(service.operator)
        for call in (
            lambda: update(service.operator, "display_name", display_name="x"),
            lambda: rotate(service.operator),
        ):
            found = refused(call)
            assert (found.code, found.reason) == (FAILED_PRECONDITION, "CALLER_IS_REVOKED")

    def test_a_repeat_returns_the_caller_as_it_is(self, service: Service) -> None:
        create(service.operator)
        update(service.operator, "display_name", display_name="first", request_id="once")
        update(service.operator, "display_name", display_name="second")
        again = update(service.operator, "display_name", display_name="first", request_id="once")
        assert again.caller.display_name == "second"


class TestRotating:
    def test_without_an_overlap_the_old_key_ends_at_once(self, service: Service) -> None:
        old = create(service.operator).caller_key
        rotated = rotate(service.operator)
        assert rotated.caller.key_id == old.split("_")[2]
        assert rotated.propagation.complete
        assert [generation.generation for generation in rotated.caller.generations] == [1, 2]
        assert answer_to(service, old) == "CALLER_CREDENTIAL_RETIRED"
        assert answer_to(service, rotated.caller_key) == "OK"

    def test_during_the_overlap_both_keys_work_and_after_it_the_new_one_does(self, service: Service) -> None:
        old = create(service.operator).caller_key
        rotated = rotate(service.operator, overlap=length(timedelta(hours=1)))
        retires = rotated.caller.generations[0].retire_time.ToDatetime(UTC)
        assert retires == service.clock.now + timedelta(hours=1)
        service.clock.turn(timedelta(hours=1) - timedelta(microseconds=1))
        assert answer_to(service, old) == answer_to(service, rotated.caller_key) == "OK"
        service.clock.turn(timedelta(microseconds=1))
        assert answer_to(service, old) == "CALLER_CREDENTIAL_RETIRED"
        assert answer_to(service, rotated.caller_key) == "OK"

    def test_while_an_overlap_runs_only_force_rotates_and_replaces_the_newest(self, service: Service) -> None:
        old = create(service.operator).caller_key
        lost = rotate(service.operator, overlap=length(timedelta(hours=1))).caller_key
        found = refused(rotate, service.operator)
        assert (found.code, found.reason) == (FAILED_PRECONDITION, "ROTATION_IN_PROGRESS")
        assert found.metadata["retire_time"]
        again = rotate(service.operator, force=True).caller_key
        assert answer_to(service, old) == answer_to(service, again) == "OK"
        assert answer_to(service, lost) == "CALLER_CREDENTIAL_RETIRED"

    @pytest.mark.parametrize("overlap", [timedelta(days=30, seconds=1), timedelta(seconds=-1)])
    def test_an_overlap_has_limits(self, service: Service, overlap: timedelta) -> None:
        create(service.operator)
        assert list(refused(rotate, service.operator, overlap=length(overlap)).violations) == ["overlap"]

    def test_a_repeat_hands_out_nothing(self, service: Service) -> None:
        create(service.operator)
        key = rotate(service.operator, request_id="once").caller_key
        found = refused(rotate, service.operator, request_id="once")
        assert (found.code, found.reason) == (ALREADY_EXISTS, "REQUEST_REPEATED")
        assert found.metadata == {"caller_id": "device-api"}
        assert answer_to(service, key) == "OK"


class TestRevoking:
    def test_a_revoked_caller_is_told_so(self, service: Service) -> None:
        key = create(service.operator).caller_key
        answer = revoke(service.operator, reason="decommissioned")
        assert answer.caller.revoke_time.ToDatetime(UTC) == service.clock.now
        assert answer.caller.revoke_reason == "decommissioned"
        assert answer.propagation.complete
        assert answer_to(service, key) == "CALLER_REVOKED"
        # Only who has the whole key learns that it was one.
        assert answer_to(service, with_wrong_secret(key)) == "CALLER_CREDENTIAL_UNKNOWN"

    def test_revoking_again_changes_nothing(self, service: Service) -> None:
        create(service.operator)
        first = revoke(service.operator, reason="first").caller
        service.clock.turn(timedelta(minutes=1))
        assert revoke(service.operator, reason="second").caller == first

    def test_no_other_caller_is_touched(self, service: Service) -> None:
        create(service.operator)
        other = create(service.operator, "other").caller_key
        revoke(service.operator)
        assert answer_to(service, other) == "OK"

    def test_a_reason_of_more_than_500_characters_is_refused(self, service: Service) -> None:
        create(service.operator)
        assert list(refused(revoke, service.operator, reason="x" * 501).violations) == ["reason"]


def test_only_operators_manage_callers(service: Service) -> None:
    roles = [role for role in Role.values() if role not in (0, ROLE_OPERATOR)]
    other = service.client(create(service.operator, "other", roles=roles).caller_key)
    listing = pb.ListCallersRequest()
    for found in (
        refused(create, other, "third"),
        refused(get, other, "other"),
        refused(other.callers.ListCallers, listing),
        refused(update, other, "roles", caller_id="other", roles=[ROLE_OPERATOR]),
        refused(rotate, other, "other"),
        refused(revoke, other, "other"),
    ):
        assert (found.code, found.reason) == (PERMISSION_DENIED, "CALLER_ROLE_MISSING")
        assert found.metadata["roles"] == "operator"


def test_every_change_of_a_caller_is_an_event_and_none_holds_a_secret(service: Service) -> None:
    keys = [create(service.operator).caller_key, rotate(service.operator).caller_key]
    update(service.operator, "display_name", display_name="after")
    revoke(service.operator, reason="decommissioned", request_id="once")
    events = service.query("SELECT * FROM event WHERE subject_id = 'device-api' ORDER BY event_id")
    digests = [bytes(row["digest"]) for row in service.query("SELECT digest FROM caller_generation")]
    assert [event["type"] for event in events] == [
        "caller.created",
        "caller.rotated",
        "caller.updated",
        "caller.revoked",
    ]
    assert {event["caller_id"] for event in events} == {"dev-operator"}
    assert (events[-1]["reason"], events[-1]["request_id"]) == ("decommissioned", "once")
    assert json.loads(events[2]["before"])["display_name"] == "device-api"
    assert json.loads(events[2]["after"])["display_name"] == "after"
    told = json.dumps(events)
    for key in keys:
        assert key not in told
        assert key.rsplit("_", 1)[-1][:32] not in told
    for digest in digests:
        assert digest.hex() not in told
    assert "digest" not in told


def test_a_caller_shows_the_names_of_its_certificates_in_order(service: Service) -> None:
    names = ["spiffe://prod.example/device-api", "device-api.internal"]
    made = create(service.operator, certificate_names=names)
    assert list(made.caller.certificate_names) == sorted(names)
    assert made.caller_key
    assert get(service.operator) == made.caller
    assert list(update(service.operator, "certificate_names").caller.certificate_names) == []


def test_a_certificate_name_that_is_none_is_refused_by_its_place(service: Service) -> None:
    found = refused(create, service.operator, certificate_names=["good.internal", "*.internal"])
    assert (found.code, list(found.violations)) == (INVALID_ARGUMENT, ["certificate_names[1]"])


def test_a_certificate_name_that_another_caller_has_is_refused_and_named(service: Service) -> None:
    create(service.operator, certificate_names=["a.internal"])
    create(service.operator, "another-one")
    for found in (
        refused(create, service.operator, "a-third-one", certificate_names=["b.internal", "a.internal"]),
        refused(
            update, service.operator, "certificate_names", caller_id="another-one", certificate_names=["a.internal"]
        ),
    ):
        assert (found.code, found.reason) == (ALREADY_EXISTS, "CERTIFICATE_NAME_TAKEN")
        assert found.metadata == {"certificate_name": "a.internal", "caller_id": "device-api"}
    assert refused(get, service.operator, "a-third-one").code is NOT_FOUND


def test_a_caller_without_a_key_needs_a_certificate_name_and_keeps_one(service: Service) -> None:
    found = refused(create, service.operator, without_key=True)
    assert (found.code, list(found.violations)) == (INVALID_ARGUMENT, ["certificate_names"])

    made = create(service.operator, without_key=True, certificate_names=["a.internal"])

    assert (made.caller_key, list(made.caller.generations)) == ("", [])
    found = refused(update, service.operator, "certificate_names")
    assert (found.code, list(found.violations)) == (INVALID_ARGUMENT, ["caller.certificate_names"])


def test_a_caller_without_a_key_is_given_its_first_by_a_rotation(service: Service) -> None:
    create(service.operator, without_key=True, certificate_names=["a.internal"])
    rotated = rotate(service.operator)
    assert [generation.generation for generation in rotated.caller.generations] == [1]
    list_workspaces(service.client(rotated.caller_key))
    update(service.operator, "certificate_names")
