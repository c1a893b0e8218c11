from __future__ import annotations

import re
from enum import Enum
from pathlib import Path

import pytest
from texture.auth.v1 import (
    authorize_service_pb2,
    caller_pb2,
    connect_link_pb2,
    error_pb2,
    key_pb2,
    webhook_pb2,
    workspace_pb2,
)

from server.domain.decision import STEPS
from server.domain.errors import ErrorReason
from server.domain.events import EventType
from server.domain.explanation import StepResult
from server.domain.kinds import Environment, ExposurePolicy, KeyKind, Permission, Role
from server.domain.links import ConnectLinkState
from server.domain.model import KeyState, WebhookDeliveryState, WebhookDisableReason, WebhookEndpointState
from server.domain.reasons import Reason

PROTOS = Path(__file__).parents[2] / "protos" / "texture" / "auth" / "v1"


@pytest.mark.parametrize(
    ("domain", "names", "prefix"),
    [
        pytest.param(ErrorReason, error_pb2.ErrorReason.keys(), "ERROR_REASON_", id="ErrorReason"),
        pytest.param(Reason, authorize_service_pb2.Reason.keys(), "REASON_", id="Reason"),
        pytest.param(StepResult, authorize_service_pb2.StepResult.keys(), "STEP_RESULT_", id="StepResult"),
        pytest.param(KeyKind, key_pb2.KeyKind.keys(), "KEY_KIND_", id="KeyKind"),
        pytest.param(KeyState, key_pb2.KeyState.keys(), "KEY_STATE_", id="KeyState"),
        pytest.param(Role, caller_pb2.Role.keys(), "ROLE_", id="Role"),
        pytest.param(Environment, workspace_pb2.Environment.keys(), "ENVIRONMENT_", id="Environment"),
        pytest.param(ExposurePolicy, workspace_pb2.ExposurePolicy.keys(), "EXPOSURE_POLICY_", id="ExposurePolicy"),
        pytest.param(
            WebhookEndpointState,
            webhook_pb2.WebhookEndpointState.keys(),
            "WEBHOOK_ENDPOINT_STATE_",
            id="WebhookEndpointState",
        ),
        pytest.param(
            WebhookDisableReason,
            webhook_pb2.WebhookDisableReason.keys(),
            "WEBHOOK_DISABLE_REASON_",
            id="WebhookDisableReason",
        ),
        pytest.param(
            WebhookDeliveryState,
            webhook_pb2.WebhookDeliveryState.keys(),
            "WEBHOOK_DELIVERY_STATE_",
            id="WebhookDeliveryState",
        ),
        pytest.param(
            ConnectLinkState, connect_link_pb2.ConnectLinkState.keys(), "CONNECT_LINK_STATE_", id="ConnectLinkState"
        ),
    ],
)
def test_the_domain_and_the_contract_have_the_same_names_in_the_same_order(
    domain: type[Enum], names: list[str], prefix: str
) -> None:
    unspecified, *others = names
    assert unspecified == f"{prefix}UNSPECIFIED"
    assert [member.name for member in domain] == [name.removeprefix(prefix) for name in others]


def test_the_contract_lists_every_type_of_event_and_no_other() -> None:
    comment = (PROTOS / "event.proto").read_text().partition("// What happened:")[2].partition("string type")[0]
    assert re.findall(r"`([a-z_.]+)`", comment) == [event_type.value for event_type in EventType]


def test_the_contract_lists_every_permission_and_no_other() -> None:
    comment = (PROTOS / "authorize_service.proto").read_text().partition("// One of `")[2].partition("Anything")[0]
    assert re.findall(r"`?([a-z_]+:[a-z]+)`", comment) == [permission.value for permission in Permission]


def test_the_contract_lists_every_step_of_an_explanation_in_order_and_no_other() -> None:
    comment = (PROTOS / "authorize_service.proto").read_text().partition("// Its name: ")[2].partition("More may")[0]
    assert re.findall(r"`([a-z]+)`", comment) == [name for name, _ in STEPS]
