"""Who may call what."""

from __future__ import annotations

from typing import Any

import grpc
from envoy.service.auth.v3 import external_auth_pb2
from texture.auth.v1 import (
    authorize_service_pb2,
    caller_service_pb2,
    connect_service_pb2,
    device_service_pb2,
    event_service_pb2,
    key_service_pb2,
    usage_service_pb2,
    webhook_service_pb2,
    workspace_service_pb2,
)

from server.domain.errors import ErrorReason
from server.domain.kinds import Role
from server.wire import policy
from server.wire.errors import CODES
from server.wire.server import SERVICES

MODULES = (
    authorize_service_pb2,
    caller_service_pb2,
    connect_service_pb2,
    device_service_pb2,
    event_service_pb2,
    key_service_pb2,
    webhook_service_pb2,
    usage_service_pb2,
    workspace_service_pb2,
)


def methods_of(module: Any) -> set[str]:
    return {
        f"/{service.full_name}/{method.name}"
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }


def declared_methods() -> set[str]:
    return {method for module in MODULES for method in methods_of(module)}


def test_the_role_table_names_every_rpc_of_the_contract_and_nothing_else() -> None:
    assert set(policy.ROLES) - policy.REFLECTION - policy.GATEWAYS == declared_methods()
    assert methods_of(external_auth_pb2) == policy.GATEWAYS


def test_every_rpc_is_open_to_operators() -> None:
    assert all(Role.OPERATOR in roles for roles in policy.ROLES.values())


def test_only_health_is_open_to_everybody() -> None:
    assert all(method.startswith("/grpc.health.v1.Health/") for method in policy.OPEN)


def test_every_service_of_the_contract_is_served() -> None:
    assert {method.split("/")[1] for method in declared_methods()} == set(SERVICES)


def test_every_error_reason_has_a_code_and_none_of_them_is_ok_or_unknown() -> None:
    assert set(CODES) == set(ErrorReason)
    assert not {grpc.StatusCode.OK, grpc.StatusCode.UNKNOWN} & set(CODES.values())
