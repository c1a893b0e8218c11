"""Questions that cannot be answered, over the wire: faults of the calling service, and of this one."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as pb

from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    authorize,
    make_key,
    make_workspace,
    reason_for,
)

HEADERS = ("origin", "sec_fetch_site", "sec_fetch_mode", "sec_fetch_dest", "sec_fetch_user")
FAULTS = {
    "an unknown permission": ({"permission": "devices:delete"}, {"permission"}),
    "no permission": ({"permission": ""}, {"permission"}),
    "a permission in upper case": ({"permission": "DEVICES:LIST"}, {"permission"}),
    "no device where one is needed": ({"permission": "devices:read"}, {"device_id"}),
    "no device to command": ({"permission": "devices:command"}, {"device_id"}),
    "a device for a list": ({"permission": "devices:list", "device_id": "mine"}, {"device_id"}),
    "a device for a link": ({"permission": "connect_links:create", "device_id": "mine"}, {"device_id"}),
    "a device for keys": ({"permission": "keys:manage", "device_id": "mine"}, {"device_id"}),
    "a device for settings": ({"permission": "workspace:configure", "device_id": "mine"}, {"device_id"}),
    "a name as address": ({"client_ip": "localhost"}, {"context.client_ip"}),
    "an address with a port": ({"client_ip": "10.0.0.1:443"}, {"context.client_ip"}),
    "an address with a zone": ({"client_ip": "fe80::1%eth0"}, {"context.client_ip"}),
    "a network": ({"client_ip": "10.0.0.0/8"}, {"context.client_ip"}),
    "a padded address": ({"client_ip": " 10.0.0.1"}, {"context.client_ip"}),
    "leading zeros": ({"client_ip": "010.0.0.1"}, {"context.client_ip"}),
    "two addresses": ({"client_ip": "10.0.0.1, 10.0.0.2"}, {"context.client_ip"}),
    "a number": ({"client_ip": "167772161"}, {"context.client_ip"}),
    "a user agent without end": ({"user_agent": "x" * 8193}, {"context.user_agent"}),
    "every header without end": (
        dict.fromkeys(HEADERS, "x" * 8193),
        {f"context.{name}" for name in HEADERS},
    ),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("api_key", ["a right key", "no key"])
def test_a_fault_of_the_calling_service_is_an_error_that_names_the_field(
    shared_grid: Service, fault: str, api_key: str
) -> None:
    asked, fields = FAULTS[fault]

    error = refused(authorize, shared_grid, make_key(shared_grid).api_key if api_key == "a right key" else "", **asked)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert set(error.violations) == fields


def test_a_header_of_8192_characters_is_fine(grid: Service) -> None:
    assert reason_for(grid, make_key(grid).api_key, user_agent="é" * 8192) == "PERMITTED"


def test_a_question_without_a_context_is_fine(grid: Service) -> None:
    request = pb.AuthorizeRequest(api_key=make_key(grid).api_key, permission="devices:list")

    assert grid.operator.authorize.Authorize(request).decision == pb.DECISION_ALLOW


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_a_store_that_is_away_is_unavailable_and_worth_a_retry(grid: Service) -> None:
    api_key = make_key(grid).api_key
    away = grid.database.with_name("away")
    grid.database.rename(away)

    error = refused(authorize, grid, api_key)

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STORE_UNAVAILABLE")
    assert error.retry_seconds is not None
    assert error.retry_seconds > 0
    away.rename(grid.database)
    assert reason_for(grid, api_key) == "PERMITTED"


def test_a_key_whose_pepper_is_not_here_is_unavailable_and_never_unknown(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=f"first {'11' * 32}") as service:
        make_workspace(service)
        old = make_key(service).api_key
    with running_service(tmp_path, peppers=f"second {'22' * 32}") as service:
        error = refused(authorize, service, old)
        batch = service.operator.authorize.BatchAuthorize(
            pb.BatchAuthorizeRequest(
                questions=[
                    pb.Question(api_key=api_key, permission="devices:list")
                    for api_key in (old, make_key(service).api_key)
                ]
            )
        )

    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "PEPPER_UNAVAILABLE")
    assert error.retry_seconds is not None
    assert [answer.WhichOneof("result") for answer in batch.answers] == ["error", "answer"]
    assert batch.answers[1].answer.decision == pb.DECISION_ALLOW


def test_a_key_works_after_a_new_pepper_was_promoted(tmp_path: Path) -> None:
    first, second = f"first {'11' * 32}", f"second {'22' * 32}"
    with running_service(tmp_path, peppers=first) as service:
        make_workspace(service)
        old = make_key(service).api_key
    with running_service(tmp_path, peppers=f"{second}\n{first}") as service:
        assert reason_for(service, old) == "PERMITTED"
        assert reason_for(service, make_key(service).api_key) == "PERMITTED"
