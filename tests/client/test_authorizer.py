"""The blocking authorizer on gRPC's own fake channel: what it sends, and what it makes of what comes back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import grpc_testing
import pytest
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import error_pb2
from texture_auth import Asked, Authorizer, Context, Decision, Outcome, Question, deadline

from tests.client.scripted import ALLOW, DENY

_SERVICE = pb.DESCRIPTOR.services_by_name["AuthorizeService"]
_KEY = "txk_svc_CallersOwnSecret"


class Desk:
    """An authorizer that somebody else asks, and the other end of its channel."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self.channel = grpc_testing.channel([_SERVICE], grpc_testing.strict_real_time())
        self.told: list[Asked] = []
        self.metadata: dict[str, Any] = {}
        self.authorizer = self.make()

    def make(self, **settings: Any) -> Authorizer:
        return Authorizer(
            "auth.internal:443",
            **{"channel": self.channel, "caller_key": _KEY, "observers": [self.told.append], "timeout": 30} | settings,
        )

    def answer(
        self,
        ask: Callable[[], Any],
        *answers: Any,
        code: grpc.StatusCode = grpc.StatusCode.OK,
        details: str = "",
        trailing: Any = (),
        method: str = "Authorize",
    ) -> tuple[Any, list[Any]]:
        """Ask, give the answers, and return what came of it and the requests."""
        coming = self._pool.submit(ask)
        requests = []
        for each in answers:
            metadata, request, rpc = self.channel.take_unary_unary(_SERVICE.methods_by_name[method])
            self.metadata = dict(metadata)
            requests.append(request)
            rpc.send_initial_metadata(())
            rpc.terminate(each, trailing, code, details)
        return coming.result(30), requests


@pytest.fixture
def desk() -> Iterator[Desk]:
    with ThreadPoolExecutor(1) as pool:
        yield Desk(pool)


@pytest.fixture
def logged() -> Iterator[list[str]]:
    """What the client logs: level and message."""
    lines: list[str] = []

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.levelname} {record.getMessage()} {record.exc_info}")

    handler, logger = Handler(), logging.getLogger("texture_auth")
    logger.addHandler(handler)
    yield lines
    logger.removeHandler(handler)


def detailed(code: int, *details: Any) -> tuple[tuple[str, bytes], ...]:
    packed = []
    for each in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(each)
    return (("grpc-status-details-bin", status_pb2.Status(code=code, details=packed).SerializeToString()),)


def test_a_question_is_sent_as_it_is_with_the_callers_key(desk: Desk) -> None:
    context = Context.from_headers({"user-agent": "curl/8", "origin": "https://x"}, client_ip="192.0.2.1")
    decision, (request,) = desk.answer(
        lambda: desk.authorizer.authorize("txk_a", "devices:read", "battery", context, at_least_revision="r0"), ALLOW
    )
    assert decision.allowed
    assert (request.api_key, request.permission, request.device_id) == ("txk_a", "devices:read", "battery")
    assert (request.context.user_agent, request.context.origin) == ("curl/8", "https://x")
    assert (request.context.client_ip, request.at_least_revision) == ("192.0.2.1", "r0")
    assert desk.metadata["authorization"] == f"Bearer {_KEY}"


def test_a_yes_is_true_and_a_no_is_false(desk: Desk) -> None:
    allowed, _ = desk.answer(lambda: desk.authorizer.authorize("k", "devices:read", "d"), ALLOW)
    denied, _ = desk.answer(lambda: desk.authorizer.authorize("k", "devices:read", "d"), DENY)
    assert allowed
    assert (allowed.reason, allowed.http_status_code, allowed.key.kind) == ("PERMITTED", 200, "SERVER")
    assert not denied
    assert (denied.outcome, denied.reason, denied.http_status_code) == (Outcome.DENIED, "KEY_REVOKED", 401)


def test_what_cannot_be_sent_as_text_is_a_key_that_does_not_exist_and_not_a_crash(desk: Desk) -> None:
    broken = "txk_\udcff"
    context = Context(user_agent="\udcff" + "a" * 9000)
    decision, (request,) = desk.answer(lambda: desk.authorizer.authorize(broken, "devices:read", broken, context), DENY)
    assert decision.outcome is Outcome.DENIED
    assert request.api_key == request.device_id == "txk_?"
    assert request.context.user_agent == "?" + "a" * 8191


def test_an_error_says_its_reason_and_which_fields_are_wrong(desk: Desk, logged: list[str]) -> None:
    violation = error_details_pb2.BadRequest.FieldViolation(field="permission", description="must be one of …")
    decision, _ = desk.answer(
        lambda: desk.authorizer.authorize("txk_secret", "nope"),
        None,
        code=grpc.StatusCode.INVALID_ARGUMENT,
        trailing=detailed(
            3,
            error_details_pb2.ErrorInfo(reason="FIELD_INVALID", domain="auth.texture"),
            error_details_pb2.BadRequest(field_violations=[violation]),
        ),
    )
    assert decision.outcome is Outcome.UNANSWERED
    assert (decision.reason, decision.code) == ("FIELD_INVALID", grpc.StatusCode.INVALID_ARGUMENT)
    assert decision.message == "permission: must be one of …"
    (line,) = logged
    assert line.startswith("ERROR")
    assert "permission: must be one of …" in line
    assert "txk_secret" not in line


@pytest.mark.parametrize(
    "trailing",
    [
        (("grpc-status-details-bin", b"\xff\xff"),),
        detailed(13, error_details_pb2.ErrorInfo(reason="SOMETHING", domain="proxy.example")),
        (),
    ],
)
def test_an_error_with_foreign_or_broken_details_goes_by_its_code(desk: Desk, trailing: Any) -> None:
    decision, _ = desk.answer(
        lambda: desk.authorizer.authorize("k", "devices:read", "d"),
        None,
        code=grpc.StatusCode.INTERNAL,
        details="a fault",
        trailing=trailing,
    )
    assert (decision.reason, decision.message) == ("INTERNAL", "a fault")


class TestMany:
    def test_each_question_is_sent_with_its_context(self, desk: Desk) -> None:
        question = Question(
            api_key="k", permission="devices:read", device_id="d", context=Context(client_ip="192.0.2.1")
        )
        _, (request,) = desk.answer(
            lambda: desk.authorizer.authorize_many([question]),
            pb.BatchAuthorizeResponse(answers=[pb.BatchAnswer(answer=DENY)]),
            method="BatchAuthorize",
        )
        (sent,) = request.questions
        assert (sent.device_id, sent.context.client_ip) == ("d", "192.0.2.1")

    def ask(self, desk: Desk, count: int, response: Any) -> list[Decision]:
        questions = [Question(api_key=f"k{number}", permission="devices:list") for number in range(count)]
        decisions, (request,) = desk.answer(
            lambda: desk.authorizer.authorize_many(questions), response, method="BatchAuthorize"
        )
        assert [each.api_key for each in request.questions] == [each.api_key for each in questions]
        found: list[Decision] = decisions
        return found

    def test_questions_are_answered_in_order_and_a_wrong_one_spoils_no_other(self, desk: Desk) -> None:
        listed = pb.AuthorizeResponse()
        listed.CopyFrom(ALLOW)
        listed.device_scope.workspace_id = "acme"
        wrong = pb.QuestionError(
            reason=error_pb2.ERROR_REASON_FIELD_INVALID,
            field_violations=[pb.FieldViolation(field="device_id", description="is refused")],
        )
        answers = [
            pb.BatchAnswer(answer=listed),
            pb.BatchAnswer(error=wrong),
            pb.BatchAnswer(answer=DENY),
            pb.BatchAnswer(),
            pb.BatchAnswer(error=pb.QuestionError(reason=error_pb2.ERROR_REASON_PEPPER_UNAVAILABLE)),
        ]
        decisions = self.ask(desk, 5, pb.BatchAuthorizeResponse(answers=answers, revision="r1"))
        assert [(each.outcome.value, each.reason) for each in decisions] == [
            ("allowed", "PERMITTED"),
            ("unanswered", "FIELD_INVALID"),
            ("denied", "KEY_REVOKED"),
            ("unanswered", "ANSWER_UNKNOWN"),
            ("unanswered", "PEPPER_UNAVAILABLE"),
        ]
        assert decisions[1].message == "device_id: is refused"

    @pytest.mark.parametrize("count", [0, 1, 3])
    def test_a_wrong_number_of_answers_answers_none(self, desk: Desk, count: int) -> None:
        response = pb.BatchAuthorizeResponse(answers=[pb.BatchAnswer(answer=DENY)] * count)
        assert {each.outcome for each in self.ask(desk, 2, response)} == {Outcome.UNANSWERED}

    def test_none_is_asked_for_nothing_and_too_many_are_refused(self, desk: Desk) -> None:
        assert desk.authorizer.authorize_many([]) == []
        with pytest.raises(ValueError, match="1001 questions"):
            desk.authorizer.authorize_many([Question(api_key="", permission="devices:list")] * 1001)

    def test_an_error_of_the_call_is_the_no_of_each(self, desk: Desk) -> None:
        decisions, _ = desk.answer(
            lambda: desk.authorizer.authorize_many([Question(api_key="", permission="devices:list")] * 3),
            None,
            code=grpc.StatusCode.RESOURCE_EXHAUSTED,
            method="BatchAuthorize",
        )
        assert [each.code for each in decisions] == [grpc.StatusCode.RESOURCE_EXHAUSTED] * 3


class TestDeadlines:
    @pytest.mark.parametrize("seconds", [0, -1, float("nan")])
    def test_a_question_whose_time_is_over_is_not_asked(self, desk: Desk, seconds: float) -> None:
        decision, _ = desk.answer(lambda: desk.authorizer.authorize("k", "devices:read", "d", timeout=seconds))
        assert (decision.outcome, decision.code) == (Outcome.UNANSWERED, grpc.StatusCode.DEADLINE_EXCEEDED)

    def test_nor_is_one_of_a_call_that_is_out_of_time_whatever_it_is_given(self, desk: Desk) -> None:
        with deadline(-1), deadline(100), deadline(None):
            decision = desk.authorizer.authorize("k", "devices:read", "d", timeout=20)
        assert decision.code is grpc.StatusCode.DEADLINE_EXCEEDED

    def test_the_least_of_the_limits_counts(self, desk: Desk) -> None:
        asking = desk.authorizer._asking
        assert asking._seconds(None) == 30
        assert asking._seconds(7) == 7
        assert asking._seconds(100) == 30
        with deadline(20):
            assert 10 < asking._seconds(None) <= 20
            assert asking._seconds(7) == 7
        with deadline(100):
            assert asking._seconds(None) == 30

    def test_a_deadline_is_of_its_own_thread_and_block(self, desk: Desk) -> None:
        found: list[float] = []
        with deadline(1):
            other = threading.Thread(target=lambda: found.append(desk.authorizer._asking._seconds(None)))
            other.start()
            other.join()
        assert [*found, desk.authorizer._asking._seconds(None)] == [30, 30]


class TestRevisions:
    def asked_for(self, requests: list[Any]) -> list[str]:
        return [each.at_least_revision for each in requests]

    def at(self, revision: str, answer: Any = ALLOW) -> Any:
        made = pb.AuthorizeResponse()
        made.CopyFrom(answer)
        made.revision = revision
        return made

    def ask(self, desk: Desk, *answers: Any, **more: Any) -> tuple[Decision, list[str]]:
        decision, requests = desk.answer(lambda: desk.authorizer.authorize("k", "devices:read", "d", **more), *answers)
        return decision, self.asked_for(requests)

    def test_one_that_was_observed_is_carried_and_moves_on_with_the_answers(self, desk: Desk) -> None:
        desk.authorizer.observe("r5")
        assert self.ask(desk, self.at("r7"))[1] == ["r5"]
        assert self.ask(desk, self.at("r8"))[1] == ["r7"]

    def test_nothing_is_carried_that_was_not_observed(self, desk: Desk) -> None:
        desk.authorizer.observe("")
        assert self.ask(desk, self.at("r7"))[1] == [""]
        assert self.ask(desk, self.at("r8"), at_least_revision="r2")[1] == ["r2"]
        assert self.ask(desk, self.at("r9"))[1] == [""]

    def test_of_two_each_is_asked_for_until_they_are_one(self, desk: Desk) -> None:
        desk.authorizer.observe("a")
        desk.authorizer.observe("b")
        assert self.ask(desk, self.at("c"), self.at("d"))[1] == ["a", "b"]
        assert self.ask(desk, self.at("e"), self.at("e"))[1] == ["c", "d"]
        assert self.ask(desk, self.at("e"))[1] == ["e"]

    def test_a_yes_must_be_one_for_all_of_them(self, desk: Desk) -> None:
        desk.authorizer.observe("a")
        desk.authorizer.observe("b")
        decision, asked = self.ask(desk, self.at("a"), self.at("b", DENY))
        assert (decision.outcome, asked) == (Outcome.DENIED, ["a", "b"])
        decision, asked = self.ask(desk, self.at("a", DENY))
        assert (decision.outcome, asked) == (Outcome.DENIED, ["a"])

    def test_one_of_the_question_itself_counts_besides(self, desk: Desk) -> None:
        desk.authorizer.observe("a")
        assert self.ask(desk, self.at("x"), self.at("a"), at_least_revision="x")[1] == ["x", "a"]
        assert self.ask(desk, self.at("a"), at_least_revision="a")[1] == ["a"]

    def test_one_that_cannot_be_verified_fails_one_question_and_is_carried_no_more(self, desk: Desk) -> None:
        desk.authorizer.observe("of another history")
        decision, _ = desk.answer(
            lambda: desk.authorizer.authorize("k", "devices:read", "d"),
            None,
            code=grpc.StatusCode.FAILED_PRECONDITION,
            trailing=detailed(9, error_details_pb2.ErrorInfo(reason="REVISION_NOT_VERIFIABLE", domain="auth.texture")),
        )
        assert (decision.outcome, decision.reason) == (Outcome.UNANSWERED, "REVISION_NOT_VERIFIABLE")
        assert self.ask(desk, self.at("r1"))[1] == [""]

    def test_an_error_of_another_kind_keeps_it(self, desk: Desk) -> None:
        desk.authorizer.observe("a")
        desk.answer(lambda: desk.authorizer.authorize("k", "devices:read", "d"), None, code=grpc.StatusCode.UNAVAILABLE)
        assert self.ask(desk, self.at("a"))[1] == ["a"]

    def test_a_batch_must_reflect_them_all_question_by_question(self, desk: Desk) -> None:
        desk.authorizer.observe("a")
        desk.authorizer.observe("b")
        yes, no = pb.BatchAnswer(answer=ALLOW), pb.BatchAnswer(answer=DENY)
        questions = [Question(api_key="k", permission="devices:read", device_id="d")] * 3
        decisions, requests = desk.answer(
            lambda: desk.authorizer.authorize_many(questions),
            pb.BatchAuthorizeResponse(answers=[yes, no, yes], revision="c"),
            pb.BatchAuthorizeResponse(answers=[yes, yes, no], revision="c"),
            method="BatchAuthorize",
        )
        assert [each.allowed for each in decisions] == [True, False, False]
        assert self.asked_for(requests) == ["a", "b"]
        assert self.ask(desk, self.at("c"))[1] == ["c"]


class TestObservers:
    def test_are_told_how_each_question_came_out(self, desk: Desk) -> None:
        desk.answer(lambda: desk.authorizer.authorize("txk_secret", "devices:read", "d"), DENY)
        desk.answer(
            lambda: desk.authorizer.authorize("txk_secret", "devices:command", "d"),
            None,
            code=grpc.StatusCode.UNAVAILABLE,
        )
        denied, failed = desk.told
        assert (denied.permission, denied.outcome, denied.reason) == ("devices:read", Outcome.DENIED, "KEY_REVOKED")
        assert (failed.outcome, failed.code) == (Outcome.UNANSWERED, grpc.StatusCode.UNAVAILABLE)
        assert denied.seconds >= 0
        assert "secret" not in repr(desk.told)

    def test_one_that_raises_spoils_nothing(self, desk: Desk, logged: list[str]) -> None:
        def broken(_: Asked) -> None:
            raise RuntimeError

        authorizer = desk.make(observers=[broken, desk.told.append])
        decision, _ = desk.answer(lambda: authorizer.authorize("k", "devices:read", "d"), ALLOW)
        assert decision.allowed
        assert len(desk.told) == 1
        assert len(logged) == 1

    def test_counters_count_by_outcome_and_reason(self, desk: Desk) -> None:
        for answer in (ALLOW, ALLOW, DENY):
            desk.answer(lambda: desk.authorizer.authorize("k", "devices:read", "d"), answer)
        desk.authorizer.authorize("k", "devices:read", "d", timeout=0)
        counters = desk.authorizer.counters
        assert (counters.allowed, counters.denied, counters.unanswered) == (2, 1, 1)
        assert counters.by_reason[Outcome.DENIED, "KEY_REVOKED"] == 1


class TestCallersKey:
    def sent(self, desk: Desk, authorizer: Authorizer) -> str | None:
        decision, _ = desk.answer(lambda: authorizer.authorize("k", "devices:read", "d"), ALLOW)
        assert decision.allowed
        return desk.metadata.get("authorization")

    def test_of_a_file_is_read_again_when_it_was_rotated(self, desk: Desk, tmp_path: Path) -> None:
        file = tmp_path / "key"
        file.write_text("first\n")
        authorizer = desk.make(caller_key="", caller_key_file=file)
        assert self.sent(desk, authorizer) == "Bearer first"
        file.write_text("second\n")
        assert self.sent(desk, authorizer) == "Bearer second"
        file.unlink()
        assert self.sent(desk, authorizer) == "Bearer second"
        file.write_text("the third one\n")
        assert self.sent(desk, authorizer) == "Bearer second"
        file.write_text("fourth\n")
        assert self.sent(desk, authorizer) == "Bearer fourth"

    def test_of_a_function_is_asked_for_each_time(self, desk: Desk) -> None:
        keys = iter(["one", "two", ""])
        authorizer = desk.make(caller_key=lambda: next(keys))
        assert [self.sent(desk, authorizer) for _ in range(3)] == ["Bearer one", "Bearer two", None]

    @pytest.mark.parametrize("bad", ["line\nbreak", "schlüssel", "two words"])
    def test_what_is_none_is_refused_and_shown_nowhere(self, desk: Desk, tmp_path: Path, bad: str) -> None:
        with pytest.raises(ValueError, match="not a svc key") as refused:
            desk.make(caller_key=bad)
        assert bad not in str(refused.value)
        (tmp_path / "key").write_text(bad)
        with pytest.raises(ValueError, match="not a svc key"):
            desk.make(caller_key="", caller_key_file=tmp_path / "key")
        decision, _ = desk.answer(lambda: desk.make(caller_key=lambda: bad).authorize("k", "devices:read", "d"))
        assert decision.reason == "CALLER_KEY_UNAVAILABLE"
        assert bad not in repr(decision)

    def test_is_in_a_file_of_text_or_given_and_not_both(self, desk: Desk, tmp_path: Path) -> None:
        (tmp_path / "key").write_bytes(b"\xff\xfesecret")
        with pytest.raises(ValueError, match="is not text") as refused:
            desk.make(caller_key="", caller_key_file=tmp_path / "key")
        assert "secret" not in str(refused.value)
        with pytest.raises(ValueError, match="exclude one another"):
            desk.make(caller_key_file=tmp_path / "key")

    def test_a_function_that_fails_fails_the_question_alone(self, desk: Desk, logged: list[str]) -> None:
        def key() -> str:
            raise OSError(_KEY)

        decision, _ = desk.answer(lambda: desk.make(caller_key=key).authorize("k", "devices:read", "d"))
        assert decision.outcome is Outcome.UNANSWERED
        assert logged
        assert _KEY not in repr(decision) + repr(logged)

    def test_is_in_no_repr(self, desk: Desk) -> None:
        shown = repr(vars(desk.authorizer)) + repr(vars(desk.authorizer._asking)) + repr(desk.authorizer)
        assert _KEY not in shown


def test_a_closed_authorizer_answers_no() -> None:
    with ExitStack() as stack:
        authorizer = stack.enter_context(Authorizer("localhost:1"))
    decision = authorizer.authorize("k", "devices:read", "d")
    assert (decision.outcome, decision.reason) == (Outcome.UNANSWERED, "CLIENT_FAULT")


class TestEnvironment:
    def test_has_the_settings_of_the_command_line(self, tmp_path: Path) -> None:
        (tmp_path / "key").write_text("file-key")
        environ = {
            "TEXTURE_AUTH_ADDRESS": "auth.internal:443",
            "TEXTURE_AUTH_CALLER_KEY": "key",
            "TEXTURE_AUTH_CALLER_KEY_FILE": str(tmp_path / "key"),
            "TEXTURE_AUTH_CLIENT_PLAINTEXT": "true",
        }
        authorizer = Authorizer.from_environment(environ, timeout=2)
        assert authorizer._connection is not None
        assert authorizer._connection.credentials is None
        assert authorizer._asking._caller_key.metadata() == (("authorization", "Bearer file-key"),)
        assert authorizer._asking._seconds(None) == 2

    @pytest.mark.parametrize(
        ("environ", "complaint"),
        [
            ({}, "TEXTURE_AUTH_ADDRESS is not set"),
            ({"TEXTURE_AUTH_ADDRESS": "a:1"}, "no credential"),
            ({"TEXTURE_AUTH_ADDRESS": "a:1", "TEXTURE_AUTH_CALLER_KEY": " "}, "no credential"),
            ({"TEXTURE_AUTH_ADDRESS": "a:1", "TEXTURE_AUTH_CLIENT_PLAINTEXT": "maybe"}, "CLIENT_PLAINTEXT"),
            ({"TEXTURE_AUTH_ADDRESS": "a:1", "TEXTURE_AUTH_CLIENT_CERTIFICATE": "x"}, "go together"),
        ],
    )
    def test_says_what_is_missing_or_wrong(self, environ: dict[str, str], complaint: str) -> None:
        with pytest.raises(ValueError, match=complaint):
            Authorizer.from_environment(environ)
