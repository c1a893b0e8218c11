"""ExplainAuthorization, over the wire: the answer that Authorize gives, every step of it, and nothing done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import structlog
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.caller_pb2 import (
    ROLE_AUTHORIZER,
    ROLE_CONNECT,
    ROLE_DEVICES,
    ROLE_KEY_ADMIN,
    ROLE_OPERATOR,
    ROLE_WATCHER,
    Role,
)
from texture.auth.v1.key_pb2 import KEY_STATE_ACTIVE
from texture.auth.v1.request_context_pb2 import RequestContext

from server.domain.token import TokenKind, mint
from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    USER,
    authorize,
    count_rows,
    current_revision,
    duration,
    event_types,
    get_key,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    reason_for,
    reason_of,
    register,
    revoke,
    rotate,
    suspend,
    timestamp,
    with_wrong_secret,
)
from tests.wire.rpcs import new_slug

HOUR = timedelta(hours=1)
NAMES = ["form", "secret", "exposure", "liveness", "address", "permission", "ownership", "manufacturer"]
BROWSER = {"sec_fetch_site": "cross-site", "origin": "https://shop.example", "user_agent": "an agent of its own"}


@pytest.fixture(scope="module")
def devices(module_grid: Service) -> None:
    """Devices of two end users in the first workspace."""
    register(module_grid, "mine", manufacturer="acme")
    register(module_grid, "other", reference_id=OTHER_USER, manufacturer="zenith")


@pytest.fixture
def grid(devices: None, shared_grid: Service) -> Service:
    """A service with two workspaces, and devices of two end users in the first."""
    return shared_grid


def explain(
    service: Service,
    permission: str = "devices:list",
    device_id: str = "",
    at_least_revision: str = "",
    context: dict[str, str] | None = None,
    **subject: str,
) -> pb.ExplainAuthorizationResponse:
    """Ask for the explanation of an answer, about `key_id` or `api_key`; to list devices, unless told otherwise."""
    return service.operator.authorize.ExplainAuthorization(
        pb.ExplainAuthorizationRequest(
            permission=permission,
            device_id=device_id,
            at_least_revision=at_least_revision,
            context=RequestContext(**(context or {})),
            **subject,
        )
    )


def results(explanation: pb.ExplainAuthorizationResponse) -> dict[str, str]:
    return {step.name: pb.StepResult.Name(step.result).removeprefix("STEP_RESULT_") for step in explanation.steps}


def failures(explanation: pb.ExplainAuthorizationResponse) -> dict[str, str]:
    """Return the reasons of the steps that failed."""
    assert all((step.result == pb.STEP_RESULT_FAILED) is bool(step.reason) for step in explanation.steps)
    return {step.name: pb.Reason.Name(step.reason).removeprefix("REASON_") for step in explanation.steps if step.reason}


def as_authorize_answers(explanation: pb.ExplainAuthorizationResponse) -> pb.AuthorizeResponse:
    """Return the answer of an explanation, which has the id of no decision."""
    assert explanation.answer.decision_id == ""
    assert [step.name for step in explanation.steps] == NAMES
    assert explanation.explanation.endswith(".")
    return explanation.answer


def without_id(answer: pb.AuthorizeResponse) -> pb.AuthorizeResponse:
    assert answer.decision_id
    answer.decision_id = ""
    return answer


# --- Who may ask, and what ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("role", [ROLE_AUTHORIZER, ROLE_WATCHER, ROLE_KEY_ADMIN, ROLE_CONNECT, ROLE_DEVICES])
def test_only_an_operator_may_ask(grid: Service, role: Role.ValueType) -> None:
    made = make_key(grid)
    request = pb.ExplainAuthorizationRequest(key_id=made.key.key_id, permission="devices:list")

    error = refused(grid.caller(new_slug(grid), role).authorize.ExplainAuthorization, request)

    assert (error.code, error.reason) == (grpc.StatusCode.PERMISSION_DENIED, "CALLER_ROLE_MISSING")
    assert error.metadata["roles"] == "operator"
    answered = grid.caller(new_slug(grid), ROLE_OPERATOR).authorize.ExplainAuthorization(request)
    assert reason_of(answered.answer) == "PERMITTED"


def test_a_question_about_no_key_is_refused(grid: Service) -> None:
    error = refused(explain, grid)

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert list(error.violations) == ["subject"]


def test_a_question_about_two_keys_is_one_about_the_last(grid: Service) -> None:
    first, last = make_key(grid), make_key(grid)
    by_id = pb.ExplainAuthorizationRequest(key_id=first.key.key_id, permission="devices:list")
    by_key = pb.ExplainAuthorizationRequest(api_key=last.api_key)
    call: Any = grid.operator.channel.unary_unary(
        "/texture.auth.v1.AuthorizeService/ExplainAuthorization",
        response_deserializer=pb.ExplainAuthorizationResponse.FromString,
    )

    both = call(by_id.SerializeToString() + by_key.SerializeToString())

    assert both.answer.key.key_id == last.key.key_id
    assert results(both)["secret"] == "PASSED"


@pytest.mark.parametrize("key_id", ["", "0" * 16, "not an id", "\x00", "x" * 5000, "a whole key"])
def test_a_key_id_that_does_not_exist_is_not_found_and_not_repeated(grid: Service, key_id: str) -> None:
    if key_id == "a whole key":
        key_id = make_key(grid).api_key

    error = refused(explain, grid, key_id=key_id)

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")
    assert not key_id or key_id not in error.message


@pytest.mark.parametrize("subject", ["key_id", "api_key"])
@pytest.mark.parametrize(
    ("asked", "at_fault"),
    [
        pytest.param({"permission": "devices:melt"}, "permission", id="an unknown permission"),
        pytest.param({"permission": ""}, "permission", id="no permission"),
        pytest.param({"permission": "devices:read"}, "device_id", id="no device where one is needed"),
        pytest.param({"device_id": "mine"}, "device_id", id="a device where none belongs"),
        pytest.param({"context": {"client_ip": "10.0.0.1:443"}}, "context.client_ip", id="an address with a port"),
        pytest.param({"context": {"origin": "x" * 8193}}, "context.origin", id="a header that is too long"),
    ],
)
def test_the_faults_of_the_question_are_those_of_authorize(
    grid: Service, subject: str, asked: dict[str, Any], at_fault: str
) -> None:
    made = make_key(grid)
    error = refused(explain, grid, **asked, **{subject: made.key.key_id if subject == "key_id" else made.api_key})

    assert (error.code, error.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")
    assert list(error.violations) == [at_fault]


# --- The answer is the one of Authorize ---------------------------------------------------------------------------


@dataclass(frozen=True)
class Made:
    """A key, and a question about it."""

    api_key: str
    reason: str
    step: str
    permission: str = "devices:list"
    device_id: str = ""
    context: dict[str, str] = field(default_factory=dict)


def _revoked(service: Service) -> Made:
    made = make_key(service)
    revoke(service, made.key.key_id)
    return Made(made.api_key, "KEY_REVOKED", "liveness")


def _suspended(service: Service) -> Made:
    made = make_key(service)
    suspend(service, made.key.key_id)
    return Made(made.api_key, "KEY_SUSPENDED", "liveness")


def _expired(service: Service) -> Made:
    made = make_key(service, expire_time=timestamp(service.clock.now + HOUR))
    service.clock.turn(HOUR)
    return Made(made.api_key, "KEY_EXPIRED", "liveness")


def _in_a_browser(service: Service) -> Made:
    return Made(make_key(service).api_key, "KEY_EXPOSED", "exposure", context=BROWSER)


def _elsewhere(service: Service) -> Made:
    api_key = make_key(service, allowed_cidrs=["10.0.0.0/8"]).api_key
    return Made(api_key, "ADDRESS_NOT_PERMITTED", "address", context={"client_ip": "192.0.2.1"})


def _not_granted(service: Service) -> Made:
    return Made(
        make_connect_key(service).api_key, "PERMISSION_NOT_GRANTED", "permission", context={"user_agent": "curl/8"}
    )


def _no_device(service: Service) -> Made:
    return Made(make_key(service).api_key, "DEVICE_NOT_FOUND", "ownership", "devices:read", "not an id\x00")


def _anothers_device(service: Service) -> Made:
    api_key = make_scoped_key(service, "mine").scoped_api_key
    return Made(api_key, "DEVICE_NOT_PERMITTED", "ownership", "devices:command", "other")


def _another_make(service: Service) -> Made:
    api_key = make_key(service, allowed_manufacturers=["zenith"]).api_key
    return Made(api_key, "MANUFACTURER_NOT_PERMITTED", "manufacturer", "devices:read", "mine")


def _fine(service: Service) -> Made:
    api_key = make_key(service, expire_time=timestamp(service.clock.now + HOUR)).api_key
    return Made(api_key, "PERMITTED", "")


def _fine_to_read(service: Service) -> Made:
    return Made(make_scoped_key(service, "mine").scoped_api_key, "PERMITTED", "", "devices:read", "mine", BROWSER)


QUESTIONS: dict[str, Callable[[Service], Made]] = {
    "nothing is wrong": _fine,
    "nothing is wrong with a scoped key in a browser": _fine_to_read,
    "it was revoked": _revoked,
    "it is suspended": _suspended,
    "it has expired": _expired,
    "it comes from a browser": _in_a_browser,
    "it comes from elsewhere": _elsewhere,
    "it lacks the permission": _not_granted,
    "the device does not exist": _no_device,
    "the device is another end user's": _anothers_device,
    "the device is of another make": _another_make,
}


@pytest.mark.parametrize("what", QUESTIONS)
@pytest.mark.parametrize("subject", ["key_id", "api_key"])
def test_by_key_and_by_id_the_answer_is_that_of_authorize_with_the_step_that_decides(
    grid: Service, subject: str, what: str
) -> None:
    made = QUESTIONS[what](grid)
    key_id = made.api_key.split("_")[2]
    named = {subject: key_id if subject == "key_id" else made.api_key}

    explanation = explain(grid, made.permission, made.device_id, context=made.context, **named)

    expected = authorize(grid, made.api_key, made.permission, made.device_id, **made.context)
    # An exposed key is dealt with by Authorize, after its answer was made.
    assert as_authorize_answers(explanation) == without_id(expected)
    assert reason_of(explanation.answer) == made.reason
    assert explanation.answer.key.key_id == key_id
    assert explanation.generation == 1
    assert failures(explanation) == ({made.step: made.reason} if made.step else {})
    skipped = {name for name, result in results(explanation).items() if result == "SKIPPED"}
    assert skipped == ({"form", "secret"} if subject == "key_id" else set())


def test_a_replaced_secret_is_retired_and_by_id_the_newest_one_is_asked_about(grid: Service) -> None:
    made = make_key(grid)
    newest = rotate(grid, made.key.key_id).api_key

    old, new = explain(grid, api_key=made.api_key), explain(grid, api_key=newest)
    by_id = explain(grid, key_id=made.key.key_id)

    assert (failures(old), old.generation) == ({"liveness": "KEY_RETIRED"}, 1)
    assert (failures(new), new.generation) == ({}, 2)
    assert (by_id.answer, by_id.generation) == (new.answer, 2)
    grid.clock.turn(HOUR)
    in_overlap = rotate(grid, made.key.key_id, HOUR)
    assert explain(grid, api_key=newest).answer.valid_for == duration(HOUR)
    assert not explain(grid, key_id=in_overlap.key.key_id).answer.HasField("valid_for")


NO_KEYS: dict[str, tuple[Callable[[Service], str], str, str]] = {
    "nothing": (lambda _: "", "KEY_MISSING", "form"),
    "a word": (lambda _: "sk_live_123", "KEY_MALFORMED", "form"),
    "10 kB of noise": (lambda _: "\x00txk_srv_\N{SNOWMAN}" * 800, "KEY_MALFORMED", "form"),
    "a key cut off": (lambda s: make_key(s).api_key[:-1], "KEY_MALFORMED", "form"),
    "a link's token": (lambda _: mint(TokenKind.LINK, "0" * 16).text, "KEY_MALFORMED", "form"),
    "a caller's key": (lambda s: s.operator_key, "KEY_MALFORMED", "form"),
    "an unknown id": (lambda _: mint(TokenKind.SERVER, "0" * 16).text, "KEY_UNKNOWN", "secret"),
    "a wrong secret": (lambda s: with_wrong_secret(make_key(s).api_key), "KEY_UNKNOWN", "secret"),
    "another kind": (
        lambda s: with_wrong_secret(make_key(s).api_key.replace("txk_srv", "txk_con")),
        "KEY_UNKNOWN",
        "secret",
    ),
}


@pytest.mark.parametrize("what", NO_KEYS)
def test_whatever_was_presented_gets_an_answer_and_no_error(grid: Service, what: str) -> None:
    make, reason, step = NO_KEYS[what]
    api_key = make(grid)

    explanation = explain(grid, "devices:read", "mine", api_key=api_key)

    answer = as_authorize_answers(explanation)
    assert (answer.decision, reason_of(answer), answer.http_status_code) == (pb.DECISION_DENY, reason, 401)
    assert failures(explanation) == {step: reason}
    assert not answer.HasField("key")
    assert explanation.generation == 0
    later = NAMES[NAMES.index(step) + 1 :]
    assert {results(explanation)[name] for name in later} == {"SKIPPED"}
    assert answer == without_id(authorize(grid, api_key, "devices:read", "mine"))


def test_everything_that_is_wrong_is_shown_and_the_first_of_it_decides(grid: Service) -> None:
    made = make_key(
        grid,
        permissions=["devices:list"],
        allowed_cidrs=["10.0.0.0/8"],
        allowed_manufacturers=["zenith"],
        expire_time=timestamp(grid.clock.now + HOUR),
    )
    register(grid, "foreign", workspace_id=OTHER_WORKSPACE, manufacturer="acme")
    grid.clock.turn(HOUR)

    explanation = explain(grid, "devices:read", "foreign", context=BROWSER, key_id=made.key.key_id)

    assert reason_of(explanation.answer) == "KEY_EXPOSED"
    assert explanation.answer.missing_permission == ""
    assert failures(explanation) == {
        "exposure": "KEY_EXPOSED",
        "liveness": "KEY_EXPIRED",
        "address": "ADDRESS_NOT_PERMITTED",
        "permission": "PERMISSION_NOT_GRANTED",
        "ownership": "DEVICE_NOT_FOUND",
        "manufacturer": "MANUFACTURER_NOT_PERMITTED",
    }
    details = {step.name: step.detail for step in explanation.steps}
    assert details["permission"] == "devices:read, against what the key holds: devices:list"
    assert details["ownership"].startswith(f"the device is of workspace {OTHER_WORKSPACE}, end user {USER};")
    assert details["manufacturer"] == "acme, against zenith"


# --- Freshness ----------------------------------------------------------------------------------------------------


def test_it_is_answered_at_a_revision_or_later(grid: Service) -> None:
    made = make_key(grid)

    explanation = explain(grid, at_least_revision=made.revision, key_id=made.key.key_id)

    assert explanation.answer.revision == current_revision(grid)


@pytest.mark.parametrize("revision", ["x", "a revision of another store"])
def test_a_revision_that_cannot_be_verified_is_refused(grid: Service, revision: str) -> None:
    error = refused(explain, grid, at_least_revision=revision, key_id=make_key(grid).key.key_id)

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_VERIFIABLE")


# --- Nothing comes of it ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subject", ["key_id", "api_key"])
def test_a_key_explained_with_a_browsers_signs_is_not_taken_for_leaked(grid: Service, subject: str) -> None:
    made = make_key(grid)
    revision, events, changes = current_revision(grid), count_rows(grid, "event"), count_rows(grid, "change")

    named = {subject: made.key.key_id if subject == "key_id" else made.api_key}
    explanation = explain(grid, context=BROWSER, **named)

    assert reason_of(explanation.answer) == "KEY_EXPOSED"
    key = get_key(grid, made.key.key_id)
    assert (key, key.state) == (made.key, KEY_STATE_ACTIVE)
    assert not key.HasField("expose_time")
    assert event_types(grid, made.key.key_id) == ["key.created"]
    assert (count_rows(grid, "event"), count_rows(grid, "change")) == (events, changes)
    assert current_revision(grid) == explanation.answer.revision == revision
    assert reason_for(grid, made.api_key) == "PERMITTED"


@pytest.mark.parametrize("right", [True, False], ids=["the right secret", "a wrong secret"])
def test_neither_the_answer_nor_the_log_tells_the_secret(grid: Service, right: bool) -> None:
    made = make_key(grid)
    api_key = made.api_key if right else with_wrong_secret(made.api_key)
    with structlog.testing.capture_logs() as lines:
        explanation = explain(grid, context=BROWSER, api_key=api_key)

    (line,) = lines
    assert (line["event"], line["method"].rpartition("/")[2]) == ("rpc", "ExplainAuthorization")
    assert line["explained"] == ("KEY_EXPOSED" if right else "KEY_UNKNOWN")
    assert line["key_id"] == (made.key.key_id if right else None)
    secret = api_key.rsplit("_", 1)[-1]
    told = [str(line), str(explanation)]
    for start in range(len(secret) - 7):
        assert all(secret[start : start + 8] not in text for text in told)
    digests = grid.query("SELECT digest FROM key_generation")
    assert digests
    for row in digests:
        assert all(bytes(row["digest"]).hex() not in text for text in told)
    for header in BROWSER.values():
        assert all(header not in text for text in told)


def test_an_explanation_is_logged_where_no_permission_is(tmp_path: Path) -> None:
    with running_service(tmp_path, log_allow_sample=0) as service:
        make_workspace(service)
        made = make_key(service)
        with structlog.testing.capture_logs() as lines:
            authorize(service, made.api_key)
            explain(service, key_id=made.key.key_id)

    assert [line["method"].rpartition("/")[2] for line in lines] == ["ExplainAuthorization"]
    assert lines[0]["explained"] == "PERMITTED"
