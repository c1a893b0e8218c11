from __future__ import annotations

import pytest
from google.rpc import code_pb2

from server.domain.reasons import OUTCOMES, Reason

# What a public API answers, as the design lists it.
STATUS = {
    Reason.PERMITTED: 200,
    Reason.KEY_MISSING: 401,
    Reason.KEY_MALFORMED: 401,
    Reason.KEY_UNKNOWN: 401,
    Reason.KEY_EXPOSED: 403,
    Reason.KEY_REVOKED: 401,
    Reason.KEY_SUSPENDED: 401,
    Reason.KEY_EXPIRED: 401,
    Reason.KEY_RETIRED: 401,
    Reason.ADDRESS_NOT_PERMITTED: 403,
    Reason.PERMISSION_NOT_GRANTED: 403,
    Reason.DEVICE_NOT_FOUND: 404,
    Reason.DEVICE_NOT_PERMITTED: 403,
    Reason.MANUFACTURER_NOT_PERMITTED: 403,
}
GRPC_CODE = {200: "OK", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED", 404: "NOT_FOUND"}


def test_every_reason_has_an_outcome() -> None:
    assert set(OUTCOMES) == set(Reason)


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_has_the_http_status_of_the_design(reason: Reason) -> None:
    assert OUTCOMES[reason].http_status_code == STATUS[reason]


@pytest.mark.parametrize("reason", Reason)
def test_the_grpc_code_of_a_reason_means_what_its_http_status_means(reason: Reason) -> None:
    outcome = OUTCOMES[reason]
    assert outcome.grpc_code == GRPC_CODE[outcome.http_status_code]
    assert outcome.grpc_code in code_pb2.Code.keys()  # noqa: SIM118 - an enum of protobuf is no dict


def test_only_permitted_is_a_success() -> None:
    assert [reason for reason in Reason if OUTCOMES[reason].http_status_code == 200] == [Reason.PERMITTED]


@pytest.mark.parametrize("reason", Reason)
def test_the_explanation_of_a_reason_is_a_sentence(reason: Reason) -> None:
    explanation = OUTCOMES[reason].explanation
    assert explanation[0].isupper()
    assert explanation.endswith(".")


def test_no_two_reasons_have_the_same_explanation() -> None:
    assert len({outcome.explanation for outcome in OUTCOMES.values()}) == len(Reason)
