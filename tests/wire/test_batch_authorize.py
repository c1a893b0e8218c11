"""BatchAuthorize, over the wire."""

from __future__ import annotations

import threading
from typing import Any

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import error_pb2
from texture.auth.v1.request_context_pb2 import RequestContext

from tests.harness import Service, refused
from tests.wire.helpers import (
    authorize,
    current_revision,
    make_key,
    make_scoped_key,
    make_workspace,
    reason_of,
    register,
    revoke,
)


def ask(service: Service, *questions: pb.Question, at_least_revision: str = "") -> pb.BatchAuthorizeResponse:
    request = pb.BatchAuthorizeRequest(questions=questions, at_least_revision=at_least_revision)
    return service.operator.authorize.BatchAuthorize(request)


def listing(api_key: str, **fields: Any) -> pb.Question:
    return pb.Question(api_key=api_key, permission="devices:list", **fields)


def reading(api_key: str, device_id: str) -> pb.Question:
    return pb.Question(api_key=api_key, permission="devices:read", device_id=device_id)


@pytest.fixture
def grid(service: Service) -> Service:
    make_workspace(service)
    register(service, *(f"device-{number}" for number in range(10)))
    return service


def test_the_answers_come_in_the_order_of_the_questions(grid: Service) -> None:
    mine = make_key(grid).api_key
    scoped = make_scoped_key(grid, "device-0").scoped_api_key
    revoked = make_key(grid)
    revoke(grid, revoked.key.key_id)

    response = ask(
        grid,
        reading(mine, "device-3"),
        reading(mine, "nowhere"),
        listing(revoked.api_key),
        listing("noise"),
        listing(""),
        reading(scoped, "nowhere"),
        reading(mine, "device-3"),
    )

    assert [reason_of(answer.answer) for answer in response.answers] == [
        "PERMITTED",
        "DEVICE_NOT_FOUND",
        "KEY_REVOKED",
        "KEY_MALFORMED",
        "KEY_MISSING",
        "DEVICE_NOT_PERMITTED",
        "PERMITTED",
    ]


def test_each_answer_is_what_a_single_call_would_say(grid: Service) -> None:
    scoped = make_scoped_key(grid, "device-0").scoped_api_key
    (batched,) = ask(grid, listing(scoped, context=RequestContext(client_ip="10.0.0.1"))).answers

    single = authorize(grid, scoped, client_ip="10.0.0.1")

    assert batched.answer.decision_id != single.decision_id
    single.ClearField("decision_id")
    batched.answer.ClearField("decision_id")
    assert batched.answer == single


def test_bad_questions_get_errors_of_their_own_and_spoil_no_other(grid: Service) -> None:
    mine = make_key(grid).api_key

    response = ask(
        grid,
        listing(mine),
        pb.Question(api_key=mine, permission="devices:delete"),
        pb.Question(api_key=mine, permission="devices:read"),
        listing(mine, device_id="device-1"),
        listing(mine, context=RequestContext(client_ip="here", origin="x" * 8193)),
        pb.Question(),
        reading(mine, "device-1"),
    )

    assert [answer.WhichOneof("result") for answer in response.answers] == ["answer", *["error"] * 5, "answer"]
    assert reason_of(response.answers[0].answer) == reason_of(response.answers[6].answer) == "PERMITTED"
    errors = [answer.error for answer in response.answers[1:6]]
    assert {error.reason for error in errors} == {error_pb2.ERROR_REASON_FIELD_INVALID}
    assert all(error.message for error in errors)
    assert [{violation.field for violation in error.field_violations} for error in errors] == [
        {"permission"},
        {"device_id"},
        {"device_id"},
        {"context.client_ip", "context.origin"},
        {"permission"},
    ]
    assert mine not in str(errors)


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_has_at_least_one_question_and_at_most_a_thousand(grid: Service, count: int) -> None:
    error = refused(ask, grid, *[listing("noise")] * count)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert set(error.violations) == {"questions"}


def test_a_thousand_questions_about_as_many_keys_and_devices_are_fine(grid: Service) -> None:
    mine = make_key(grid).api_key
    register(grid, *(f"many-{number}" for number in range(500)))

    response = ask(grid, *[reading(mine, f"many-{number}") for number in range(1000)])

    reasons = [reason_of(answer.answer) for answer in response.answers]
    assert reasons == ["PERMITTED"] * 500 + ["DEVICE_NOT_FOUND"] * 500
    assert len({answer.answer.decision_id for answer in response.answers}) == 1000


def test_every_answer_of_a_batch_is_from_the_same_revision(grid: Service) -> None:
    mine = make_key(grid).api_key

    response = ask(grid, listing(mine), listing("noise"), reading(mine, "device-1"))

    assert {answer.answer.revision for answer in response.answers} == {response.revision}
    assert response.revision == current_revision(grid)


def test_a_batch_sees_one_state_while_others_change_it(grid: Service) -> None:
    made = make_key(grid)
    begun = threading.Event()
    answers: list[pb.BatchAuthorizeResponse] = []

    def ask_on() -> None:
        while len(answers) < 10 or reason_of(answers[-1].answers[0].answer) != "KEY_REVOKED":
            answers.append(ask(grid, *[listing(made.api_key)] * 100))
            begun.set()

    thread = threading.Thread(target=ask_on)
    thread.start()
    begun.wait()
    revoke(grid, made.key.key_id)
    thread.join()

    for response in answers:
        assert len({(answer.answer.reason, answer.answer.revision) for answer in response.answers}) == 1


def test_a_batch_honours_a_revision_that_was_given_out(grid: Service) -> None:
    made = make_key(grid)

    assert reason_of(ask(grid, listing(made.api_key), at_least_revision=made.revision).answers[0].answer) == "PERMITTED"


def test_a_revision_that_cannot_be_verified_fails_the_whole_batch(grid: Service) -> None:
    error = refused(ask, grid, listing(make_key(grid).api_key), at_least_revision="garbage")

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_VERIFIABLE")
