"""Both authorizers against the real service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import caller_service_pb2, device_service_pb2, key_service_pb2, workspace_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_DEVICES
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX
from texture_auth import AsyncAuthorizer, Authorizer, Context, Outcome, Question

from tests.harness import Service, running_service, untraced

PATIENT = 30.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with untraced(with_threads=True), running_service(tmp_path_factory.mktemp("service")) as running:
        running.operator.workspaces.CreateWorkspace(
            workspace_service_pb2.CreateWorkspaceRequest(
                workspace_id="acme", display_name="Acme", environment=ENVIRONMENT_SANDBOX
            )
        )
        running.operator.devices.RegisterDevices(
            device_service_pb2.RegisterDevicesRequest(
                workspace_id="acme",
                devices=[device_service_pb2.DeviceRegistration(device_id="battery-1", reference_id="user-1")],
            )
        )
        yield running


@pytest.fixture(scope="module")
def authorizer(service: Service) -> Iterator[Authorizer]:
    with Authorizer(service.address, caller_key=service.operator_key, timeout=PATIENT) as made:
        yield made


def new_key(service: Service) -> str:
    created = service.operator.keys.CreateKey(
        key_service_pb2.CreateKeyRequest(workspace_id="acme", kind=KEY_KIND_SERVER, display_name="Backend")
    )
    return created.api_key


def revoke(service: Service, api_key: str, *, return_immediately: bool = False) -> str:
    found = service.operator.keys.LookupKey(key_service_pb2.LookupKeyRequest(api_key=api_key))
    revoked = service.operator.keys.RevokeKey(
        key_service_pb2.RevokeKeyRequest(key_id=found.key.key_id, reason="lost", return_immediately=return_immediately)
    )
    return revoked.revision


def test_a_decision_says_all_that_the_service_knows(service: Service, authorizer: Authorizer) -> None:
    api_key = new_key(service)
    decision = authorizer.authorize(api_key, "devices:list")
    assert decision
    assert decision.key is not None
    assert (decision.key.kind, decision.key.workspace_id) == ("SERVER", "acme")
    assert decision.device_scope is not None
    assert decision.device_scope.admits(workspace_id="acme", reference_id="user-1", manufacturer="")
    assert not decision.device_scope.admits(workspace_id="other", reference_id="user-1", manufacturer="")
    assert decision.revision
    assert decision.decision_id
    missing = authorizer.authorize(api_key, "devices:read", "battery-9")
    assert (missing.outcome, missing.reason, missing.http_status_code) == (Outcome.DENIED, "DEVICE_NOT_FOUND", 404)


def test_a_key_from_a_browser_is_denied_by_the_context(service: Service, authorizer: Authorizer) -> None:
    context = Context.from_headers({"sec-fetch-site": "cross-site"}, client_ip="192.0.2.1")
    decision = authorizer.authorize(new_key(service), "devices:list", context=context)
    assert (decision.reason, decision.http_status_code) == ("KEY_EXPOSED", 403)


def test_a_thousand_questions_are_answered_from_one_state_each_for_itself(
    service: Service, authorizer: Authorizer
) -> None:
    api_key = new_key(service)
    questions = [Question(api_key=api_key, permission="devices:read", device_id=f"battery-{n}") for n in range(999)]
    decisions = authorizer.authorize_many([*questions, Question(api_key=api_key, permission="nonsense")])
    assert [number for number, each in enumerate(decisions) if each] == [1]
    assert decisions[-1].reason == "FIELD_INVALID"
    assert len({each.revision for each in decisions[:-1]}) == 1


def test_a_thousand_scopes_that_are_as_large_as_can_be_arrive(service: Service, authorizer: Authorizer) -> None:
    makers = [f"{number:02}{'m' * 62}" for number in range(64)]
    request = key_service_pb2.CreateKeyRequest(
        workspace_id="acme", kind=KEY_KIND_SERVER, display_name="Narrow", allowed_manufacturers=makers
    )
    api_key = service.operator.keys.CreateKey(request).api_key
    decisions = authorizer.authorize_many([Question(api_key=api_key, permission="devices:list")] * 1000)
    assert all(decisions)
    assert all(one.device_scope is not None and len(one.device_scope.manufacturers) == 64 for one in decisions)


def test_what_was_revoked_without_waiting_is_denied_after_its_revision_was_observed(
    service: Service, authorizer: Authorizer
) -> None:
    keys = [new_key(service) for _ in range(3)]
    live = new_key(service)
    assert all(authorizer.authorize(each, "devices:read", "battery-1") for each in keys)
    for each in keys:
        authorizer.observe(revoke(service, each, return_immediately=True))
    for each in keys:
        assert authorizer.authorize(each, "devices:read", "battery-1").reason == "KEY_REVOKED"
    assert authorizer.authorize(live, "devices:read", "battery-1")
    # A yes was asked for each of them, so by now they are known to be one state.
    assert len(authorizer._asking.revisions.carried) == 1


def test_a_revision_of_another_history_fails_one_question(service: Service) -> None:
    api_key = new_key(service)
    with Authorizer(service.address, caller_key=service.operator_key) as authorizer:
        authorizer.observe("NQiGU8w5Re6dtw-UQQen6AAAAAAAAAABLsQkQ4qX3uU")
        assert authorizer.authorize(api_key, "devices:read", "battery-1").reason == "REVISION_NOT_VERIFIABLE"
        assert authorizer.authorize(api_key, "devices:read", "battery-1").allowed


def test_many_threads_share_one_authorizer(service: Service, authorizer: Authorizer) -> None:
    api_key = new_key(service)
    devices = [f"battery-{number % 2}" for number in range(60)]
    before = authorizer.counters
    with ThreadPoolExecutor(6) as pool:
        decisions = list(pool.map(lambda each: authorizer.authorize(api_key, "devices:read", each), devices))
    assert [bool(each) for each in decisions] == [device == "battery-1" for device in devices]
    after = authorizer.counters
    assert (after.allowed - before.allowed, after.denied - before.denied) == (30, 30)


def test_many_coroutines_share_one_authorizer_and_see_a_revocation(service: Service) -> None:
    api_key = new_key(service)

    async def ask() -> None:
        async with AsyncAuthorizer(service.address, caller_key=service.operator_key, timeout=PATIENT) as authorizer:
            devices = [f"battery-{number % 2}" for number in range(40)]
            decisions = await asyncio.gather(*(authorizer.authorize(api_key, "devices:read", each) for each in devices))
            assert [bool(each) for each in decisions] == [device == "battery-1" for device in devices]
            revision = await asyncio.to_thread(revoke, service, api_key, return_immediately=True)
            decision = await authorizer.authorize(api_key, "devices:read", "battery-1", at_least_revision=revision)
            assert decision.reason == "KEY_REVOKED"

    asyncio.run(ask())


def test_a_callers_key_that_is_rotated_in_its_file_is_used_at_once(service: Service, tmp_path: Path) -> None:
    callers = service.operator.callers
    created = callers.CreateCaller(
        caller_service_pb2.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
    )
    (tmp_path / "key").write_text(created.caller_key)
    with Authorizer(service.address, caller_key_file=tmp_path / "key", timeout=PATIENT) as authorizer:
        assert authorizer.authorize("", "devices:list").outcome is Outcome.DENIED
        rotated = callers.RotateCallerKey(caller_service_pb2.RotateCallerKeyRequest(caller_id="device-api"))
        assert authorizer.authorize("", "devices:list").reason == "CALLER_CREDENTIAL_RETIRED"
        (tmp_path / "key").write_text(rotated.caller_key)
        assert authorizer.authorize("", "devices:list").outcome is Outcome.DENIED


def test_a_caller_that_may_not_ask_is_told_so_and_allows_nothing(service: Service) -> None:
    created = service.operator.callers.CreateCaller(
        caller_service_pb2.CreateCallerRequest(caller_id="device-backend", roles=[ROLE_DEVICES])
    )
    with Authorizer(service.address, caller_key=created.caller_key, timeout=PATIENT) as authorizer:
        decision = authorizer.authorize(new_key(service), "devices:read", "battery-1")
    assert (decision.outcome, decision.code) == (Outcome.UNANSWERED, grpc.StatusCode.PERMISSION_DENIED)
    assert decision.reason == "CALLER_ROLE_MISSING"
