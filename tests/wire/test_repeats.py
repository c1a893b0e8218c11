"""Questions that are asked again: answered as if they never had been, from what the first answer left behind."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import device_service_pb2, key_service_pb2
from texture.auth.v1.caller_service_pb2 import RevokeCallerRequest
from texture.auth.v1.request_context_pb2 import RequestContext

from server.wire.repeats import Repeats
from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    OTHER_USER,
    USER,
    WORKSPACE,
    authorize,
    current_revision,
    dealt_with,
    make_key,
    make_scoped_key,
    make_workspace,
    question,
    reason_for,
    reason_of,
    register,
    revoke,
    rotate,
    suspend,
    timestamp,
    update_key,
)
from tests.wire.links_helpers import transfer
from tests.wire.test_batch_authorize import listing
from tests.wire.test_deadlines import AUTHORIZE

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)


@pytest.fixture
def repeated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the decisions that were given again, so that a test knows that it tests that."""
    names: list[str] = []
    answer, write = Repeats.answer, Repeats.write

    def answer_and_tell(self: Repeats, raw: bytes) -> Any:
        repeat = answer(self, raw)
        if repeat is not None:
            names.append(repeat.decision_id)
        return repeat

    def write_and_tell(self: Repeats, found: Any) -> Any:
        messages = write(self, found)
        names.extend(pb.BatchAnswer.FromString(message).answer.decision_id for message in messages or () if message)
        return messages

    monkeypatch.setattr(Repeats, "answer", answer_and_tell)
    monkeypatch.setattr(Repeats, "write", write_and_tell)
    return names


def ask(service: Service, *questions: pb.Question, **fields: Any) -> list[pb.AuthorizeResponse]:
    request = pb.BatchAuthorizeRequest(questions=questions, **fields)
    response = service.operator.authorize.BatchAuthorize(request)
    assert {answer.answer.revision for answer in response.answers} <= {response.revision}
    return [answer.answer for answer in response.answers]


# One question


def test_the_second_answer_is_the_first_under_another_name(grid: Service, repeated: list[str]) -> None:
    register(grid, "battery-1", manufacturer="acme")
    for api_key, asked in (
        (make_key(grid).api_key, {"permission": "devices:read", "device_id": "battery-1"}),
        (make_key(grid, allowed_manufacturers=["acme", "b"]).api_key, {"client_ip": "10.1.2.3"}),
        (make_scoped_key(grid, "battery-2").scoped_api_key, {"permission": "devices:list"}),
    ):
        first, second = authorize(grid, api_key, **asked), authorize(grid, api_key, **asked)

        assert second.decision == pb.DECISION_ALLOW
        assert repeated.pop() == second.decision_id != first.decision_id
        assert len(second.decision_id) == 24
        for answer in (first, second):
            answer.ClearField("decision_id")
        assert second == first


def test_a_change_of_something_else_shows_in_the_revision_alone(grid: Service, repeated: list[str]) -> None:
    api_key = make_key(grid).api_key
    first = authorize(grid, api_key)
    make_key(grid)

    second, third = authorize(grid, api_key), authorize(grid, api_key)

    assert repeated[-1] == third.decision_id
    assert reason_of(second) == reason_of(third) == "PERMITTED"
    assert second.revision == third.revision == current_revision(grid) != first.revision


@pytest.mark.parametrize("end", [revoke, suspend, rotate])
def test_what_ends_a_key_ends_its_repeats(grid: Service, repeated: list[str], end: Any) -> None:
    key = make_key(grid)
    assert [reason_for(grid, key.api_key) for _ in range(3)] == ["PERMITTED"] * 3
    assert len(repeated) == 2

    end(grid, key.key.key_id)

    expected = {revoke: "KEY_REVOKED", suspend: "KEY_SUSPENDED", rotate: "KEY_RETIRED"}[end]
    assert [reason_for(grid, key.api_key) for _ in range(3)] == [expected] * 3


def test_a_restriction_that_is_added_counts_for_repeats(grid: Service) -> None:
    key = make_key(grid)
    asked = {"client_ip": "10.1.2.3"}
    assert [reason_for(grid, key.api_key, **asked) for _ in range(2)] == ["PERMITTED"] * 2

    update_key(grid, key.key.key_id, allowed_cidrs=["192.0.2.0/24"])

    assert reason_for(grid, key.api_key, **asked) == "ADDRESS_NOT_PERMITTED"


def test_a_device_that_changes_hands_is_out_of_reach_for_repeats(grid: Service, repeated: list[str]) -> None:
    api_key = make_scoped_key(grid, "battery-1", reference_id=USER).scoped_api_key
    asked = {"permission": "devices:command", "device_id": "battery-1"}
    assert [reason_for(grid, api_key, **asked) for _ in range(2)] == ["PERMITTED"] * 2
    assert len(repeated) == 1

    transfer(grid.operator, "battery-1", workspace_id=WORKSPACE, reference_id=USER, new_reference_id=OTHER_USER)

    assert reason_for(grid, api_key, **asked) == "DEVICE_NOT_PERMITTED"


def test_a_repeat_tells_how_long_it_is_good_for_by_then_and_is_none_after(grid: Service, repeated: list[str]) -> None:
    key = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR))
    assert authorize(grid, key.api_key).valid_for.ToTimedelta() == HOUR
    grid.clock.turn(HOUR - MINUTE)
    (batched,) = ask(grid, listing(key.api_key))
    later = authorize(grid, key.api_key)
    (again,) = ask(grid, listing(key.api_key))

    assert repeated == [later.decision_id, again.decision_id]
    assert {answer.valid_for.ToTimedelta() for answer in (batched, later, again)} == {MINUTE}
    grid.clock.turn(MINUTE)
    assert reason_for(grid, key.api_key) == "KEY_EXPIRED"
    assert [reason_of(answer) for answer in ask(grid, listing(key.api_key))] == ["KEY_EXPIRED"]


def test_the_end_of_an_overlap_ends_repeats(grid: Service) -> None:
    key = make_key(grid)
    rotate(grid, key.key.key_id, overlap=HOUR)
    assert [reason_for(grid, key.api_key) for _ in range(2)] == ["PERMITTED"] * 2
    grid.clock.turn(HOUR)

    assert reason_for(grid, key.api_key) == "KEY_RETIRED"


def test_the_same_words_from_a_browser_are_another_question(grid: Service) -> None:
    api_key = make_key(grid).api_key
    assert [reason_for(grid, api_key) for _ in range(2)] == ["PERMITTED"] * 2

    assert reason_for(grid, api_key, sec_fetch_site="cross-site") == "KEY_EXPOSED"
    dealt_with(grid)
    assert reason_for(grid, api_key) == "KEY_REVOKED"


def test_a_repeat_that_asks_for_a_revision_is_of_that_one_or_later(grid: Service, repeated: list[str]) -> None:
    api_key = make_key(grid).api_key
    at_least = authorize(grid, api_key).revision
    make_key(grid)
    assert [reason_for(grid, api_key, at_least_revision=at_least) for _ in range(2)] == ["PERMITTED"] * 2
    assert len(repeated) == 1
    assert [reason_of(answer) for answer in ask(grid, listing(api_key), at_least_revision=at_least)] == ["PERMITTED"]

    # A question that was answered is no voucher for a revision that nobody knows.
    for call in (
        lambda: authorize(grid, api_key, at_least_revision="x" * 43),
        lambda: ask(grid, listing(api_key), at_least_revision="x" * 43),
    ):
        assert refused(call).code is grpc.StatusCode.FAILED_PRECONDITION


def test_every_repeat_is_logged_if_every_allow_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running_service(tmp_path, log_allow_sample=1.0) as service:
        make_workspace(service)
        key = make_key(service)
        names = [authorize(service, key.api_key).decision_id for _ in range(3)]
        written = capsys.readouterr().out

    for name in names:
        (line,) = (line for line in written.splitlines() if name in line)
        for part in ("decision=ALLOW", "reason=PERMITTED", "permission=devices:list", f"key_id={key.key.key_id}"):
            assert part in line


# Many questions


def test_a_batch_of_old_and_new_questions_is_answered_in_order(grid: Service, repeated: list[str]) -> None:
    register(grid, *(f"device-{number}" for number in range(4)))
    api_key, ended = make_key(grid).api_key, make_key(grid)
    revoke(grid, ended.key.key_id)
    expiring = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR)).api_key

    def reading(number: int) -> pb.Question:
        return pb.Question(api_key=api_key, permission="devices:read", device_id=f"device-{number}")

    ask(grid, reading(0), reading(2), listing(expiring))
    asked = [reading(0), reading(9), reading(1), listing(ended.api_key), listing(expiring), reading(2), reading(0)]
    answers = ask(grid, *asked)

    assert [reason_of(answer) for answer in answers] == [
        "PERMITTED",
        "DEVICE_NOT_FOUND",
        "PERMITTED",
        "KEY_REVOKED",
        "PERMITTED",
        "PERMITTED",
        "PERMITTED",
    ]
    assert repeated == [answers[number].decision_id for number in (0, 4, 5, 6)]
    assert len({answer.decision_id for answer in answers}) == len(answers)
    assert answers[4].valid_for.ToTimedelta() == HOUR
    # And the questions of a batch are those of single calls.
    single = grid.operator.authorize.Authorize(pb.AuthorizeRequest.FromString(reading(1).SerializeToString()))
    assert repeated[-1] == single.decision_id


def test_a_question_that_is_none_spoils_no_repeats(grid: Service) -> None:
    good = listing(make_key(grid).api_key)
    ask(grid, good)
    request = pb.BatchAuthorizeRequest(questions=[good, pb.Question(api_key="x", permission="nonsense"), good])

    answers = grid.operator.authorize.BatchAuthorize(request).answers

    assert [answer.WhichOneof("result") for answer in answers] == ["answer", "error", "answer"]
    assert answers[1].error.field_violations[0].field == "permission"


def test_a_commit_between_old_and_new_questions_has_all_of_them_answered_after_it(
    grid: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = make_key(grid), make_key(grid)
    ask(grid, listing(old.api_key))
    write = Repeats.write

    def after_a_revocation(self: Repeats, found: Any) -> Any:
        monkeypatch.setattr(Repeats, "write", write)
        revoke(grid, old.key.key_id)
        return write(self, found)

    monkeypatch.setattr(Repeats, "write", after_a_revocation)
    answers = ask(grid, listing(old.api_key), listing(new.api_key))

    assert [reason_of(answer) for answer in answers] == ["KEY_REVOKED", "PERMITTED"]


# Whatever happens


@pytest.fixture(scope="module")
def playground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with running_service(tmp_path_factory.mktemp("playground")) as service:
        make_workspace(service)
        yield service


CHANGES = st.sampled_from(["nothing", "suspend", "resume", "rotate", "restrict", "free", "transfer", "minutes"])


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(CHANGES, min_size=1, max_size=8))
def test_whatever_happens_the_answers_are_those_of_an_explanation(playground: Service, changes: list[str]) -> None:
    """An explanation reads the store, and remembers nothing."""
    service = playground
    made = make_key(service, expire_time=timestamp(service.clock.now + 3 * MINUTE))
    device = f"device-{made.key.key_id}"
    scoped = make_scoped_key(service, device, reference_id=f"user-{made.key.key_id}").scoped_api_key
    secrets = [made.api_key]
    for change in changes:
        happen(service, change, made.key.key_id, device, secrets)
        asked = [
            question(api_key, permission, device if permission == "devices:read" else "", **context)
            for api_key in (*secrets, scoped)
            for permission in ("devices:read", "devices:list")
            for context in ({}, {"client_ip": "10.0.0.1"})
        ]
        explained = [explanation(service, each) for each in asked]
        assert [unnamed(service.operator.authorize.Authorize(each)) for each in asked] == explained
        batch = [
            pb.Question(api_key=e.api_key, permission=e.permission, device_id=e.device_id, context=e.context)
            for e in asked
        ]
        assert [unnamed(answer) for answer in ask(service, *batch)] == explained


def happen(service: Service, change: str, key_id: str, device_id: str, secrets: list[str]) -> None:
    if change == "suspend":
        suspend(service, key_id)
    elif change == "resume":
        service.operator.keys.ResumeKey(key_service_pb2.ResumeKeyRequest(key_id=key_id))
    elif change == "rotate":
        fields: dict[str, Any] = {"overlap": MINUTE} if len(secrets) == 1 else {"force": True}
        secrets.append(rotate(service, key_id, **fields).api_key)
    elif change in ("restrict", "free"):
        networks = ["192.0.2.0/24"] if change == "restrict" else []
        update_key(service, key_id, "allowed_cidrs", allowed_cidrs=networks)
    elif change == "transfer":
        device = service.operator.devices.GetDevice(device_service_pb2.GetDeviceRequest(device_id=device_id)).device
        owner, user = device.reference_id, f"user-{key_id}"
        new_owner = OTHER_USER if owner == user else user
        transfer(service.operator, device_id, workspace_id=WORKSPACE, reference_id=owner, new_reference_id=new_owner)
    elif change == "minutes":
        service.clock.turn(MINUTE)


def explanation(service: Service, asked: pb.AuthorizeRequest) -> pb.AuthorizeResponse:
    request = pb.ExplainAuthorizationRequest(
        api_key=asked.api_key, permission=asked.permission, device_id=asked.device_id, context=asked.context
    )
    return service.operator.authorize.ExplainAuthorization(request).answer


def unnamed(answer: pb.AuthorizeResponse) -> pb.AuthorizeResponse:
    answer.ClearField("decision_id")
    return answer


# What is kept


def test_no_question_is_kept(grid: Service) -> None:
    api_key = make_key(grid).api_key
    message = pb.Question(
        api_key=api_key, permission="devices:list", context=RequestContext(user_agent="a gateway of ours")
    )
    ask(grid, message)
    handlers = grid.app._server._server._state.registered_method_handlers  # type: ignore[attr-defined]
    servicer = handlers[AUTHORIZE].unary_unary.__self__

    kept = servicer._repeats._memo._conclusions
    assert len(kept) == 1
    ((digest, conclusion),) = kept.items()
    assert len(digest) == 16
    for part in (api_key[-38:-6], "a gateway of ours"):
        assert part.encode() not in digest + conclusion.value.alone + conclusion.value.frame


def test_a_denial_is_worked_out_each_time(grid: Service, repeated: list[str]) -> None:
    assert [reason_for(grid, make_key(grid).api_key + "x") for _ in range(2)] == ["KEY_MALFORMED"] * 2
    wrong = make_key(grid).api_key
    assert [reason_for(grid, wrong, permission="devices:read", device_id="nowhere") for _ in range(2)] == [
        "DEVICE_NOT_FOUND"
    ] * 2
    assert not repeated


def test_a_caller_that_was_recognised_is_not_once_it_is_revoked(grid: Service) -> None:
    client = grid.caller("device-api", "ROLE_AUTHORIZER")  # type: ignore[arg-type]
    asked = question(make_key(grid).api_key)
    for _ in range(3):
        client.authorize.Authorize(asked)
    grid.operator.callers.RevokeCaller(RevokeCallerRequest(caller_id="device-api"))

    assert refused(client.authorize.Authorize, asked).reason == "CALLER_REVOKED"
