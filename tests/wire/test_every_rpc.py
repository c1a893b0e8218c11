"""What holds for every RPC, or for every RPC whose request has a certain field; what is added is held to it as well."""

from __future__ import annotations

import base64
import copy
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import grpc
import pytest
from texture.auth.v1 import caller_service_pb2, webhook_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_OPERATOR
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_STATE_REVOKED

from tests.harness import Service, refused
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    authorize,
    count_rows,
    current_revision,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    register,
    revoke,
    suspend,
    timestamp,
)
from tests.wire.rpcs import METHODS, call, new_slug, new_webhook_endpoint, short, valid_request, with_field

HOUR = timedelta(hours=1)
DENIED = grpc.StatusCode.PERMISSION_DENIED
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def each(paths: Any) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=short)


# Callers


@each(METHODS)
def test_no_rpc_answers_a_caller_that_was_revoked(shared_grid: Service, path: str) -> None:
    caller_id = new_slug(shared_grid)
    revoked = shared_grid.caller(caller_id, ROLE_OPERATOR)
    request = valid_request(shared_grid, path)
    shared_grid.operator.callers.RevokeCaller(caller_service_pb2.RevokeCallerRequest(caller_id=caller_id))
    before = current_revision(shared_grid)

    error = refused(call, revoked, path, request)

    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "CALLER_REVOKED")
    assert current_revision(shared_grid) == before


# Actors


def _revoked(service: Service) -> str:
    key_id = make_key(service).key.key_id
    revoke(service, key_id)
    return key_id


def _suspended(service: Service) -> str:
    key_id = make_key(service).key.key_id
    suspend(service, key_id)
    return key_id


def _expired(service: Service) -> str:
    key_id = make_key(service, expire_time=timestamp(service.clock.now + HOUR)).key.key_id
    service.clock.turn(HOUR)
    return key_id


def _elsewhere(service: Service) -> str:
    return make_key(service, workspace_id=OTHER_WORKSPACE).key.key_id


UNFIT_ACTORS: dict[str, tuple[Callable[[Service], str], str]] = {
    "unknown": (lambda _: "0" * 16, "ACTOR_NOT_FOUND"),
    "no id": (lambda _: "\0%" * 100, "ACTOR_NOT_FOUND"),
    "a whole key": (lambda s: make_key(s).api_key, "ACTOR_NOT_FOUND"),
    "of another workspace": (_elsewhere, "ACTOR_NOT_FOUND"),
    "revoked": (_revoked, "ACTOR_NOT_LIVE"),
    "suspended": (_suspended, "ACTOR_NOT_LIVE"),
    "expired": (_expired, "ACTOR_NOT_LIVE"),
    "narrower": (lambda s: make_key(s, permissions=["devices:read"]).key.key_id, "ACTOR_PERMISSION_MISSING"),
    "a connect key": (lambda s: make_connect_key(s).key.key_id, "ACTOR_PERMISSION_MISSING"),
    "a scoped key": (lambda s: make_scoped_key(s, "mine").scoped_key.key_id, "ACTOR_PERMISSION_MISSING"),
}


@pytest.fixture(scope="module")
def unfit_actors(module_grid: Service) -> dict[str, str]:
    return {why: arrange(module_grid) for why, (arrange, _) in UNFIT_ACTORS.items()}


@each(with_field("on_behalf_of_key_id"))
def test_an_actor_that_is_not_fit_to_ask_gets_nothing_done(
    shared_grid: Service, unfit_actors: dict[str, str], path: str
) -> None:
    request = valid_request(shared_grid, path)
    before = current_revision(shared_grid), count_rows(shared_grid, "event")
    answers = {}

    for why, actor in unfit_actors.items():
        request.on_behalf_of_key_id = actor
        answers[why] = refused(call, shared_grid.operator, path, request)

    assert {why: (error.code, error.reason) for why, error in answers.items()} == {
        why: (DENIED, reason) for why, (_, reason) in UNFIT_ACTORS.items()
    }
    assert (current_revision(shared_grid), count_rows(shared_grid, "event")) == before


# Masks


@pytest.mark.parametrize(
    "paths",
    [[], [""], ["*"], ["nonsense"], ["display_name", "nonsense"], ["display_name."], ["displayName"], ["\0"]],
    ids=ascii,
)
@each(with_field("update_mask"))
def test_a_mask_that_names_what_cannot_be_set_is_refused(shared_grid: Service, path: str, paths: list[str]) -> None:
    request = valid_request(shared_grid, path)
    request.update_mask.paths[:] = paths
    before = current_revision(shared_grid)

    error = refused(call, shared_grid.operator, path, request)

    assert (error.code, error.reason, set(error.violations)) == (*INVALID, {"update_mask"})
    assert current_revision(shared_grid) == before


# Pages


def _two_devices(service: Service) -> dict[str, Any]:
    register(service, "device-1", "device-2", manufacturer="acme")
    return {"reference_id": "", "manufacturers": []}


def _two_keys(service: Service) -> dict[str, Any]:
    make_key(service)
    make_key(service)
    return {"kind": 0, "reference_id": ""}


def _two_events(service: Service) -> dict[str, Any]:
    return {"key_id": _suspended(service)}


def _two_callers(service: Service) -> dict[str, Any]:
    service.caller(new_slug(service), ROLE_OPERATOR)
    return {}


def _two_endpoints(service: Service) -> dict[str, Any]:
    new_webhook_endpoint(service)
    new_webhook_endpoint(service)
    return {}


def _two_deliveries(service: Service) -> dict[str, Any]:
    # Elsewhere, where no request that comes needs its place.
    webhook_endpoint_id = new_webhook_endpoint(service, OTHER_WORKSPACE)
    for _ in range(2):
        request = webhook_service_pb2.TestWebhookEndpointRequest(webhook_endpoint_id=webhook_endpoint_id)
        service.operator.webhooks.TestWebhookEndpoint(request)
    return {"webhook_endpoint_id": webhook_endpoint_id, "state": 0}


def _used_key(service: Service) -> str:
    """Return the id of a key that is used for two things on each of two devices."""
    register(service, "used-1", "used-2")
    key = make_key(service)
    for device_id in ("used-1", "used-2"):
        for permission in ("devices:read", "devices:command"):
            authorize(service, key.api_key, permission, device_id)
    return key.key.key_id


def _two_uses(service: Service) -> dict[str, Any]:
    return {"key_id": _used_key(service)}


def _two_users(service: Service) -> dict[str, Any]:
    _used_key(service)
    _used_key(service)
    return {"device_id": "used-1"}


def _another_device(service: Service) -> str:
    _used_key(service)
    return "used-2"


def _two_logged(service: Service) -> dict[str, Any]:
    make_key(service)
    return {"types": []}


def _two_chains(service: Service) -> dict[str, Any]:
    make_workspace(service, new_slug(service))
    return {}


# What makes a list of two at least, and returns the fields by which it is asked for.
LISTS: dict[str, Callable[[Service], dict[str, Any]]] = {
    "GetKeyUsage": _two_uses,
    "ListCallers": _two_callers,
    "ListDeviceKeys": _two_users,
    "ListDevices": _two_devices,
    "ListKeyDevices": _two_uses,
    "ListChainHeads": _two_chains,
    "ListEvents": _two_logged,
    "ListKeyEvents": _two_events,
    "ListKeys": _two_keys,
    "ListWebhookDeliveries": _two_deliveries,
    "ListWebhookEndpoints": _two_endpoints,
    "ListWorkspaces": lambda _: {},
}
# Another value of each field that narrows a list.
OTHER_FILTERS: dict[str, Callable[[Service], Any]] = {
    "device_id": _another_device,
    "end_time": lambda service: timestamp(service.clock.now),
    "key_id": _suspended,
    "kind": lambda _: KEY_KIND_CONNECT,
    "labels": lambda _: {"team": "billing"},
    "manufacturers": lambda _: ["acme"],
    "reference_id": lambda _: OTHER_USER,
    "start_time": lambda service: timestamp(service.clock.now - HOUR),
    "state": lambda _: KEY_STATE_REVOKED,
    "webhook_endpoint_id": new_webhook_endpoint,
    "types": lambda _: ["key.created"],
    "after": lambda _: "AAAAAAAAAAAAAAAAAAAAAA",
    "workspace_id": lambda _: OTHER_WORKSPACE,
}


@pytest.fixture(scope="module")
def second_pages(module_grid: Service) -> dict[str, Any]:
    """The requests for the second page of each list."""
    return {path: second_page(module_grid, path) for path in with_field("page_token")}


@pytest.fixture
def page(second_pages: dict[str, Any], path: str) -> Any:
    """A copy of the request for the second page of this list."""
    return copy.deepcopy(second_pages[path])


def second_page(service: Service, path: str) -> Any:
    """Return a request for the second page of a list."""
    given = LISTS[short(path)](service)
    request = type(valid_request(service, path))(**{"page_size": 1, **_needed(path), **given})
    request.page_token = call(service.operator, path, request).next_page_token
    assert request.page_token
    return request


def _needed(path: str) -> dict[str, Any]:
    return {"workspace_id": "grid-one"} if "workspace_id" in METHODS[path].input_type.fields_by_name else {}


def refused_page(service: Service, path: str, request: Any) -> None:
    error = refused(call, service.operator, path, request)
    assert (error.code, error.reason, set(error.violations)) == (*INVALID, {"page_token"})


@each(with_field("page_token"))
def test_a_page_token_with_a_bit_changed_in_any_byte_is_refused(shared_grid: Service, path: str, page: Any) -> None:
    call(shared_grid.operator, path, page)
    token = page.page_token
    raw = base64.urlsafe_b64decode(token + "=" * (-len(token) % 4))

    for place in range(len(raw)):
        changed = bytearray(raw)
        changed[place] ^= 1 << place % 8
        page.page_token = base64.urlsafe_b64encode(changed).decode().rstrip("=")
        refused_page(shared_grid, path, page)


@pytest.mark.parametrize("token", ["garbage", "=", "é", "\0", "AAAA", "A" * 10_240])
@each(with_field("page_token"))
def test_a_page_token_that_is_none_is_refused(shared_grid: Service, path: str, page: Any, token: str) -> None:
    page.page_token = token

    refused_page(shared_grid, path, page)


@each(with_field("page_token"))
def test_a_page_token_of_another_filter_is_refused(shared_grid: Service, path: str, page: Any) -> None:
    filters = {field.name for field in page.DESCRIPTOR.fields} - {"page_size", "page_token"}

    for name in filters:
        other = type(page)()
        other.CopyFrom(page)
        other.ClearField(name)
        other.MergeFrom(type(page)(**{name: OTHER_FILTERS[name](shared_grid)}))
        refused_page(shared_grid, path, other)


@each(with_field("page_token"))
def test_a_page_token_of_another_list_is_refused(
    shared_grid: Service, path: str, page: Any, second_pages: dict[str, Any]
) -> None:
    for other in second_pages.keys() - {path}:
        page.page_token = second_pages[other].page_token
        refused_page(shared_grid, path, page)
