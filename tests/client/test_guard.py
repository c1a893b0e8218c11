"""What a guarded gRPC server lets on, and what it answers otherwise: on a sync server and on an aio one."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import grpc
import pytest
from texture_auth import Decision, Question
from texture_auth.answers import unanswered
from texture_auth.guard import NO_DEVICE
from texture_auth.rules import Mode, Rule
from texture_auth.verdicts import Verdict, current_decision

from tests.client.shapes import (
    KEY,
    RULES,
    STREAMS,
    UNANSWERED,
    Guarded,
    Request,
    allowed,
    denied,
    guarded,
    logged,
    path,
)
from tests.harness import Refused, as_refused
from tests.operate.process import wait_until

FORMS = ["sync", "aio"]
DENIALS = [
    (denied("KEY_REVOKED", 401), grpc.StatusCode.UNAUTHENTICATED),
    (denied("PERMISSION_NOT_GRANTED", 403, "devices:read"), grpc.StatusCode.PERMISSION_DENIED),
    (denied("DEVICE_NOT_FOUND", 404), grpc.StatusCode.NOT_FOUND),
    (denied("OF_A_LATER_RELEASE", 418), grpc.StatusCode.PERMISSION_DENIED),
]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def service(form: str) -> Iterator[Guarded]:
    with guarded(form) as running:
        yield running


def ask_for(name: str, *devices: str) -> Any:
    """Return what a method is called with."""
    requests = [Request(device_id=device, device={"id": device}) for device in devices or ("meter-1",)]
    return iter(requests) if STREAMS[name][0] else requests[0]


def answers(service: Guarded, name: str, *devices: str, **options: Any) -> list[str]:
    """Return the texts that a method answers with."""
    service.handlers.more.set()
    found = service.stub.call(name, ask_for(name, *devices), **options)
    return [response.text for response in (found if STREAMS[name][1] else [found])]


def error_of(service: Guarded, name: str, *devices: str, **options: Any) -> Refused:
    """Return the error that a method answers with."""
    with pytest.raises(grpc.RpcError) as caught:
        answers(service, name, *devices, **options)
    return as_refused(caught.value)


def test_who_may_is_served_and_the_handler_knows_who_it_is(service: Guarded) -> None:
    assert answers(service, "Get") == ["PERMITTED"]
    assert answers(service, "List") == ["PERMITTED"]
    assert answers(service, "Follow") == ["PERMITTED", "more"]
    assert answers(service, "Upload", "meter-1", "meter-2") == ["meter-1:PERMITTED meter-2:PERMITTED"]
    assert answers(service, "Talk", "meter-1", "meter-2") == ["welcome", "meter-1:PERMITTED", "meter-2:PERMITTED"]
    assert current_decision() is None


def test_each_method_asks_for_what_its_rule_says(service: Guarded) -> None:
    for name in STREAMS:
        answers(service, name)
    asked = [(question.api_key, question.permission, question.device_id) for question in service.oracle.asked]
    assert asked == [
        (KEY, "devices:read", "meter-1"),
        (KEY, "devices:list", ""),
        (KEY, "devices:read", "meter-1"),
        (KEY, "devices:command", "meter-1"),
        (KEY, "devices:command", "meter-1"),
    ]


@pytest.mark.parametrize("name", STREAMS)
def test_who_may_not_gets_the_reason_and_the_handler_does_not_run(service: Guarded, name: str) -> None:
    for decision, code in DENIALS:
        service.oracle.says(decision)
        error = error_of(service, name)
        assert (error.code, error.reason) == (code, decision.reason)
        assert error.metadata.pop("decision_id") == "decision-2"
        assert error.metadata == ({"missing_permission": "devices:read"} if decision.missing_permission else {})
        assert error.retry_seconds is None
    assert service.handlers.ran == []


@pytest.mark.parametrize("name", STREAMS)
def test_no_answer_is_no_leave(service: Guarded, name: str) -> None:
    service.oracle.says(UNANSWERED)
    error = error_of(service, name)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "AUTHORIZATION_UNAVAILABLE")
    assert error.retry_seconds == 1
    service.oracle.says(unanswered("DEADLINE_EXCEEDED", "too slow", grpc.StatusCode.DEADLINE_EXCEEDED))
    assert error_of(service, name).code == grpc.StatusCode.DEADLINE_EXCEEDED
    assert service.handlers.ran == []


def test_an_authorizer_that_fails_or_answers_nonsense_lets_nobody_on(
    service: Guarded,
) -> None:
    def fail(question: Question) -> Decision:
        raise ValueError(f"cannot ask {question.api_key}")

    with logged() as records:
        for answer in (fail, lambda _: None, lambda _: True):
            service.oracle.answer = answer
            for name in STREAMS:
                error = error_of(service, name)
                assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "AUTHORIZATION_UNAVAILABLE")
    assert service.handlers.ran == []
    text = "".join(record.getMessage() for record in records)
    assert "reason=AUTHORIZER_FAILED" in text
    assert KEY not in text


@pytest.mark.parametrize("name", STREAMS)
def test_without_a_key_or_with_two_there_is_nothing_to_ask(service: Guarded, name: str) -> None:
    assert error_of(service, name, key=None).reason == "KEY_MISSING"
    assert error_of(service, name, key="").reason == "KEY_MISSING"
    error = error_of(service, name, metadata=[("texture-api-key", KEY)])
    assert (error.code, error.reason) == (grpc.StatusCode.UNAUTHENTICATED, "KEY_MALFORMED")
    assert service.oracle.asked == []
    assert service.handlers.ran == []


def test_who_names_no_device_is_answered_as_for_one_that_does_not_exist(service: Guarded) -> None:
    for name in ("Get", "Follow", "Upload", "Talk"):
        answers(service, name, "")
    assert {question.device_id for question in service.oracle.asked} == {NO_DEVICE}
    service.oracle.says(denied("DEVICE_NOT_FOUND", 404))
    with pytest.raises(grpc.RpcError) as caught:
        service.stub.call("Upload", iter([]))
    assert as_refused(caught.value).code == grpc.StatusCode.NOT_FOUND


def test_a_question_takes_no_longer_than_the_call_has_left(form: str) -> None:
    with guarded(form, timeout=5.0) as service:
        answers(service, "Get", timeout=4)
        answers(service, "Follow", timeout=4)
        answers(service, "Get", timeout=30)
        answers(service, "Get", timeout=None)
    *bounded, free, endless = service.oracle.timeouts
    assert all(timeout is not None and 0 < timeout < 4.5 for timeout in bounded)
    assert (free, endless) == (5.0, 5.0)


def test_shadow_mode_lets_on_what_it_would_refuse_and_says_so(form: str) -> None:
    verdicts: list[Verdict] = []
    with logged() as records, guarded(form, mode=Mode.SHADOW, hook=verdicts.append) as service:
        service.oracle.says(denied("KEY_REVOKED", 401))
        assert answers(service, "Get") == ["KEY_REVOKED"]
        assert answers(service, "Upload", "meter-1", "meter-2") == ["meter-1:KEY_REVOKED meter-2:KEY_REVOKED"]
        assert answers(service, "Talk", "") == ["welcome", ":KEY_REVOKED"]
        assert answers(service, "Follow", key=None) == ["KEY_MISSING", "more"]
        service.oracle.says(UNANSWERED)
        assert answers(service, "List") == ["STORE_UNAVAILABLE"]
    counts = service.guard.counts()
    assert counts[path("Upload"), "KEY_REVOKED", True] == 2
    assert counts[path("List"), "STORE_UNAVAILABLE", True] == 1
    assert [verdict.passed for verdict in verdicts] == [True] * 6
    warned = [record.__dict__["texture_auth"] for record in records if record.levelno == logging.WARNING]
    assert [each["reason"] for each in warned if each["method"] == path("Upload")] == ["KEY_REVOKED"] * 2
    assert {each["mode"] for each in warned} == {"shadow"}
    assert KEY not in "".join(f"{record.getMessage()} {record.__dict__}" for record in records)


def test_one_method_alone_may_be_in_shadow_mode(form: str) -> None:
    rules = {**RULES, path("List"): Rule("devices:list", mode=Mode.SHADOW)}
    with guarded(form, rules=rules) as service:
        service.oracle.says(denied("KEY_REVOKED", 401))
        assert answers(service, "List") == ["KEY_REVOKED"]
        assert error_of(service, "Get").reason == "KEY_REVOKED"


def test_each_verdict_is_counted_and_told_without_the_key(form: str) -> None:
    verdicts: list[Verdict] = []

    def hook(verdict: Verdict) -> None:
        verdicts.append(verdict)
        raise RuntimeError("a hook that fails changes nothing")

    with guarded(form, hook=hook) as service:
        answers(service, "Get")
        service.oracle.says(denied("KEY_REVOKED", 401))
        error_of(service, "Get")
    assert [(each.method, each.permission, each.decision.reason, each.passed, each.recheck) for each in verdicts] == [
        (path("Get"), "devices:read", "PERMITTED", True, False),
        (path("Get"), "devices:read", "KEY_REVOKED", False, False),
    ]
    assert KEY not in repr(verdicts)
    assert service.guard.counts() == {
        (path("Get"), "PERMITTED", True): 1,
        (path("Get"), "KEY_REVOKED", False): 1,
    }


class Conversation:
    """A stream of requests that the test sends one by one."""

    answers: Any
    answer: Any

    def __init__(self, service: Guarded, name: str) -> None:
        self._said: list[Any] = []
        self._changed = threading.Condition()
        if STREAMS[name][1]:
            self.answers = service.stub.call(name, self._requests())
        else:
            self.answer = _future(service, name, self._requests())

    def say(self, device: str | None) -> None:
        with self._changed:
            self._said.append(device)
            self._changed.notify_all()

    def _requests(self) -> Iterator[Any]:
        while True:
            with self._changed:
                assert self._changed.wait_for(lambda: self._said, timeout=30)
                device = self._said.pop(0)
            if device is None:
                return
            yield Request(device_id=device)


def _future(service: Guarded, name: str, requests: Iterator[Any]) -> Any:
    method = service.channel.stream_unary(path(name), Request.SerializeToString, lambda raw: raw)
    return method.future(requests, metadata=(("texture-api-key", KEY),), timeout=30)


def test_the_handler_does_not_begin_before_the_first_request_is_looked_at(service: Guarded) -> None:
    talk = Conversation(service, "Talk")
    service.oracle.says(denied("DEVICE_NOT_PERMITTED", 403))
    talk.say("meter-1")
    with pytest.raises(grpc.RpcError) as caught:
        next(talk.answers)
    assert as_refused(caught.value).reason == "DEVICE_NOT_PERMITTED"
    assert service.handlers.ran == []


@pytest.mark.parametrize("name", ["Talk", "Upload"])
def test_each_request_of_a_stream_is_looked_at_before_the_handler_sees_it(service: Guarded, name: str) -> None:
    def answer(question: Question) -> Decision:
        return denied("DEVICE_NOT_PERMITTED", 403) if question.device_id == "another" else allowed()

    service.oracle.answer = answer
    error = error_of(service, name, "meter-1", "meter-2", "another", "meter-3")
    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "DEVICE_NOT_PERMITTED")
    assert service.handlers.seen == ["meter-1", "meter-2"]


def test_the_same_device_is_not_asked_about_again_within_the_period(service: Guarded) -> None:
    answers(service, "Talk", "meter-1", "meter-2", "meter-1", "meter-1", "meter-2")
    assert [question.device_id for question in service.oracle.asked] == ["meter-1", "meter-2"]
    assert service.handlers.seen == ["meter-1", "meter-2", "meter-1", "meter-1", "meter-2"]


@pytest.mark.parametrize("no", [denied("KEY_REVOKED", 401), UNANSWERED])
def test_a_stream_ends_when_the_answer_becomes_no_while_its_handler_is_blocked(service: Guarded, no: Decision) -> None:
    follow = service.stub.call("Follow", Request(device_id="meter-1"))
    assert next(follow).text == "PERMITTED"
    service.oracle.says(no)
    service.time.time += 61
    with pytest.raises(grpc.RpcError) as caught:
        next(follow)
    assert as_refused(caught.value).reason in {"KEY_REVOKED", "AUTHORIZATION_UNAVAILABLE"}
    assert service.guard.counts()[path("Follow"), no.reason, False] == 1


def test_streams_of_silent_clients_end_too(service: Guarded) -> None:
    talk, upload = Conversation(service, "Talk"), Conversation(service, "Upload")
    for conversation in (talk, upload):
        conversation.say("meter-1")
    assert [next(talk.answers).text, next(talk.answers).text] == ["welcome", "meter-1:PERMITTED"]
    wait_until(lambda: len(service.oracle.asked) >= 2, "both are asked about")
    service.oracle.says(denied("KEY_REVOKED", 401))
    service.time.time += 61
    for ended in (lambda: next(talk.answers), upload.answer.result):
        with pytest.raises(grpc.RpcError) as caught:
            ended()
        assert as_refused(caught.value).reason == "KEY_REVOKED"
    for conversation in (talk, upload):
        conversation.say(None)


def test_one_device_that_is_lost_ends_a_stream_about_many(service: Guarded) -> None:
    talk = Conversation(service, "Talk")
    for device in ("meter-1", "meter-2"):
        talk.say(device)
    assert [next(talk.answers).text for _ in range(3)][2] == "meter-2:PERMITTED"
    service.oracle.answer = lambda question: (
        denied("DEVICE_NOT_FOUND", 404) if question.device_id == "meter-1" else allowed()
    )
    service.time.time += 61
    with pytest.raises(grpc.RpcError) as caught:
        next(talk.answers)
    assert as_refused(caught.value).code == grpc.StatusCode.NOT_FOUND
    talk.say(None)


def test_streams_that_may_go_on_do_and_are_asked_about_together(service: Guarded) -> None:
    follows = [service.stub.call("Follow", Request(device_id=f"meter-{number}")) for number in range(3)]
    assert [next(follow).text for follow in follows] == ["PERMITTED"] * 3
    batches = len(service.oracle.timeouts)
    service.time.time += 61
    wait_until(lambda: len(service.oracle.asked) >= 6, "all are asked about again")
    service.handlers.more.set()
    assert [[response.text for response in follow] for follow in follows] == [["more"]] * 3
    assert len(service.oracle.timeouts) == batches + 1


def test_what_time_alone_may_change_is_asked_about_when_it_may(service: Guarded) -> None:
    service.oracle.says(allowed(valid_for=timedelta(seconds=5)))
    follow = service.stub.call("Follow", Request(device_id="meter-1"))
    next(follow)
    service.oracle.says(denied("KEY_EXPIRED", 401))
    service.time.time += 6
    with pytest.raises(grpc.RpcError) as caught:
        next(follow)
    assert as_refused(caught.value).reason == "KEY_EXPIRED"


def test_in_shadow_mode_a_stream_goes_on_and_the_no_is_counted(form: str) -> None:
    with guarded(form, mode=Mode.SHADOW) as service:
        follow = service.stub.call("Follow", Request(device_id="meter-1"))
        next(follow)
        service.oracle.says(denied("KEY_REVOKED", 401))
        service.time.time += 61
        wait_until(lambda: (path("Follow"), "KEY_REVOKED", True) in service.guard.counts(), "the no is counted")
        service.handlers.more.set()
        assert [response.text for response in follow] == ["more"]
