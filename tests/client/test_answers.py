"""From answers to decisions, whatever the answers are."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.protobuf import duration_pb2
from hypothesis import given
from hypothesis import strategies as st
from texture.auth.v1 import authorize_service_pb2 as pb
from texture_auth import Outcome
from texture_auth.answers import decision_of, request_of

from tests.client.scripted import ALLOW, DENY

_ANSWERS = st.builds(
    pb.AuthorizeResponse,
    decision=st.integers(0, 3),
    reason=st.integers(0, 16),
    http_status_code=st.sampled_from([0, 200, 401, 403, 404, 500]),
    key=st.none() | st.builds(pb.AuthorizedKey, key_id=st.text(max_size=3), kind=st.integers(0, 6)),
    device_scope=st.none() | st.builds(pb.DeviceScope, workspace_id=st.text(max_size=3)),
)


@given(_ANSWERS, st.sampled_from(["devices:list", "devices:read"]))
def test_only_an_answer_that_is_a_yes_in_every_part_is_a_yes(answer: pb.AuthorizeResponse, permission: str) -> None:
    decision = decision_of(answer, permission)
    assert bool(decision) == (
        answer.decision == pb.DECISION_ALLOW
        and answer.reason == pb.REASON_PERMITTED
        and answer.http_status_code == 200
        and answer.HasField("key")
        and (permission != "devices:list" or answer.HasField("device_scope"))
    )
    assert decision.allowed == bool(decision) == (decision.http_status_code == 200)
    if decision.outcome is Outcome.DENIED:
        assert answer.decision == pb.DECISION_DENY
        assert 400 <= decision.http_status_code < 500


@given(st.text(), st.text(), st.text())
def test_whatever_a_customer_sends_can_be_asked_about(api_key: str, permission: str, device_id: str) -> None:
    request = request_of(api_key, permission, device_id, None, "")
    assert request.api_key == api_key.encode(errors="replace").decode()


def test_a_reason_that_this_client_does_not_know_yet_is_still_a_denial() -> None:
    answer = pb.AuthorizeResponse()
    answer.CopyFrom(DENY)
    answer.reason = 99  # type: ignore[assignment]
    decision = decision_of(answer)
    assert (decision.outcome, decision.reason) == (Outcome.DENIED, "UNKNOWN_99")


@pytest.mark.parametrize("seconds", [None, 90])
def test_how_long_an_answer_stays_true_is_a_length_of_time(seconds: int | None) -> None:
    answer = pb.AuthorizeResponse()
    answer.CopyFrom(ALLOW)
    if seconds is not None:
        answer.valid_for.CopyFrom(duration_pb2.Duration(seconds=seconds))
    assert decision_of(answer).valid_for == (None if seconds is None else timedelta(seconds=seconds))
