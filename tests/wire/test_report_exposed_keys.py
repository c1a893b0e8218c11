"""ReportExposedKeys, over the wire: what somebody has found where it must not be."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import grpc
import pytest
import structlog
from texture.auth.v1 import caller_service_pb2, connect_service_pb2, key_service_pb2, workspace_service_pb2
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_KEY_ADMIN
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SCOPED, KeyKind, KeyState
from texture.auth.v1.workspace_pb2 import (
    EXPOSURE_POLICY_NOTIFY_ONLY,
    EXPOSURE_POLICY_REVOKE,
    EXPOSURE_POLICY_SUSPEND,
    ExposurePolicy,
    Workspace,
)

from server.domain.token import TokenKind, mint, new_id
from tests.harness import Service, refused
from tests.wire.helpers import (
    REDIRECT_URI,
    USER,
    WORKSPACE,
    api_key_of_kind,
    authorize,
    count_rows,
    current_revision,
    dealt_with,
    event_types,
    events_of,
    get_key,
    make_connect_key,
    make_key,
    make_scoped_key,
    make_workspace,
    question,
    reason_for,
    revoke,
    rotate,
    with_wrong_secret,
)

URL = "https://code.example/volt/backend/blob/main/settings.py#L3"
OTHER_URL = "https://paste.example/1"
HOUR = timedelta(hours=1)


def report(service: Service, *api_keys: str, url: str = URL, source: str = "scanner", **fields: Any) -> Any:
    """Report keys, all found at one place."""
    reports = [pb.ExposedKeyReport(api_key=api_key, url=url, source=source) for api_key in api_keys]
    return service.operator.keys.ReportExposedKeys(pb.ReportExposedKeysRequest(reports=reports, **fields))


def outcomes(answer: pb.ReportExposedKeysResponse) -> list[str]:
    return [pb.ExposureOutcome.Name(one.outcome).removeprefix("EXPOSURE_OUTCOME_") for one in answer.results]


def outcome(service: Service, api_key: str, **given: Any) -> str:
    """Report one key, and return what became of it."""
    (found,) = outcomes(report(service, api_key, **given))
    return found


def set_policy(service: Service, policy: ExposurePolicy.ValueType) -> None:
    request = workspace_service_pb2.UpdateWorkspaceRequest(
        workspace=Workspace(workspace_id=WORKSPACE, exposure_policy=policy)
    )
    request.update_mask.paths.append("exposure_policy")
    service.operator.workspaces.UpdateWorkspace(request)


def resume(service: Service, key_id: str) -> None:
    service.operator.keys.ResumeKey(key_service_pb2.ResumeKeyRequest(key_id=key_id))


@pytest.mark.parametrize(
    ("policy", "done", "reason"),
    [
        ("EXPOSURE_POLICY_REVOKE", "REVOKED", "KEY_REVOKED"),
        ("EXPOSURE_POLICY_SUSPEND", "SUSPENDED", "KEY_SUSPENDED"),
        ("EXPOSURE_POLICY_NOTIFY_ONLY", "NOTED", "PERMITTED"),
    ],
)
def test_a_reported_server_key_is_dealt_with_by_its_workspaces_policy(
    service: Service, policy: str, done: str, reason: str
) -> None:
    make_workspace(service, exposure_policy=ExposurePolicy.Value(policy))
    made = make_key(service)
    assert reason_for(service, made.api_key) == "PERMITTED"

    answer = report(service, made.api_key)

    assert reason_for(service, made.api_key) == reason
    assert outcomes(answer) == [done]
    assert answer.propagation.complete
    assert answer.revision == current_revision(service)
    (result,) = answer.results
    key = get_key(service, made.key.key_id)
    assert (result.key_id, result.kind, result.workspace_id) == (key.key_id, key.kind, WORKSPACE)
    assert result.state == key.state
    _, event, *ended = events_of(service, key.key_id)
    assert (event.type, event.caller_id, event.reason) == (
        "key.exposed",
        "dev-operator",
        "reported as exposed by scanner",
    )
    assert [one.type for one in ended] == ([] if done == "NOTED" else [f"key.{done.lower()}"])
    for one in ended:
        assert (one.caller_id, one.reason, one.before) == (event.caller_id, event.reason, event.before)
        assert {**one.after, "exposure_url": URL, "exposure_source": "scanner"} == dict(event.after)
    assert (event.after["exposure_url"], event.after["exposure_source"]) == (URL, "scanner")
    assert key.HasField("expose_time")
    assert key.state_reason == ("" if done == "NOTED" else event.reason)


@pytest.mark.parametrize("kind", [KEY_KIND_CONNECT, KEY_KIND_SCOPED])
def test_a_connect_key_and_a_scoped_key_are_only_noted(grid: Service, kind: KeyKind.ValueType) -> None:
    permission = "connect_links:create" if kind == KEY_KIND_CONNECT else "devices:list"
    api_key = api_key_of_kind(grid, kind)

    answer = report(grid, api_key)

    assert outcomes(answer) == ["NOTED"]
    assert KeyState.Name(answer.results[0].state) == "KEY_STATE_ACTIVE"
    assert event_types(grid, answer.results[0].key_id)[-1] == "key.exposed"
    assert reason_for(grid, api_key, permission=permission) == "PERMITTED"
    assert outcome(grid, api_key) == "ALREADY_KNOWN"


def noise(service: Service) -> dict[str, str]:
    """What is no key that anybody has, told alike."""
    made = make_key(service)
    link = service.operator.connect.CreateConnectLink(
        connect_service_pb2.CreateConnectLinkRequest(
            api_key=make_key(service).api_key, redirect_uri=REDIRECT_URI, reference_id=USER
        )
    )
    return {
        "nothing": "",
        "words": "hunter2",
        "a typing error": made.api_key[:-1] + "_",
        "a cut off key": made.api_key[:-1],
        "an unknown key": mint(TokenKind.SERVER, new_id()).text,
        "an unknown caller": mint(TokenKind.SERVICE, new_id()).text,
        "a wrong secret": with_wrong_secret(made.api_key),
        "a wrong secret of a caller": with_wrong_secret(service.operator_key),
        "another kind": mint(TokenKind.CONNECT, made.key.key_id).text,
        "a link token": link.link_token,
    }


def test_whatever_is_no_key_that_anybody_has_is_answered_alike_and_leaves_no_trace(grid: Service) -> None:
    given = noise(grid)
    events, revision = count_rows(grid, "event"), current_revision(grid)

    answer = report(grid, *given.values())

    assert outcomes(answer) == ["UNKNOWN"] * len(given)
    assert {one.SerializeToString() for one in answer.results} == {
        pb.ReportedKey(outcome=pb.EXPOSURE_OUTCOME_UNKNOWN).SerializeToString()
    }
    assert (count_rows(grid, "event"), count_rows(grid, "exposure")) == (events, 0)
    assert current_revision(grid) == revision


def test_noise_beside_keys_spoils_none_of_them_and_each_is_answered_in_its_place(grid: Service) -> None:
    given = list(noise(grid).values())
    made = [make_key(grid) for _ in range(len(given))]

    answer = report(grid, *[text for pair in zip(given, [one.api_key for one in made], strict=True) for text in pair])

    assert outcomes(answer) == ["UNKNOWN", "REVOKED"] * len(given)
    assert [one.key_id for one in answer.results[1::2]] == [one.key.key_id for one in made]


def test_a_key_may_stand_between_spaces(grid: Service) -> None:
    assert outcome(grid, f"\n {make_key(grid).api_key}\t") == "REVOKED"


def test_the_same_report_again_changes_nothing(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_SUSPEND)
    made = make_key(service)
    assert outcome(service, made.api_key) == "SUSPENDED"
    resume(service, made.key.key_id)
    events, revision = count_rows(service, "event"), current_revision(service)

    assert [outcome(service, made.api_key, source=source) for source in ("scanner", "a person")] == [
        "ALREADY_KNOWN"
    ] * 2

    assert (count_rows(service, "event"), current_revision(service)) == (events, revision)
    assert reason_for(service, made.api_key) == "PERMITTED"


def test_another_place_is_an_event_of_its_own_and_suspends_a_key_that_was_resumed(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_SUSPEND)
    made = make_key(service)
    assert outcome(service, made.api_key) == "SUSPENDED"
    assert [outcome(service, made.api_key, url=OTHER_URL) for _ in range(2)] == ["ALREADY_KNOWN"] * 2
    resume(service, made.key.key_id)
    assert outcome(service, made.api_key, url="https://third.example") == "SUSPENDED"

    exposed = [event for event in events_of(service, made.key.key_id) if event.type == "key.exposed"]
    assert [event.after["exposure_url"] for event in exposed] == [URL, OTHER_URL, "https://third.example"]
    assert [event.before["state"] for event in exposed] == ["active", "suspended", "active"]


def test_a_policy_of_revoking_ends_what_an_earlier_one_had_left_alive(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_NOTIFY_ONLY)
    made = make_key(service)
    assert outcome(service, made.api_key) == "NOTED"
    set_policy(service, EXPOSURE_POLICY_REVOKE)

    assert [outcome(service, made.api_key) for _ in range(2)] == ["REVOKED", "ALREADY_KNOWN"]
    assert event_types(service, made.key.key_id) == ["key.created", "key.exposed", "key.exposed", "key.revoked"]


def test_a_scanner_and_a_browser_make_one_exposure(grid: Service) -> None:
    seen_first, reported_first = make_key(grid), make_key(grid)
    authorize(grid, seen_first.api_key, sec_fetch_site="cross-site")
    dealt_with(grid)
    assert outcome(grid, seen_first.api_key, url="") == "ALREADY_KNOWN"
    assert outcome(grid, reported_first.api_key) == "REVOKED"
    authorize(grid, reported_first.api_key, sec_fetch_site="cross-site")
    dealt_with(grid)

    for made in (seen_first, reported_first):
        assert event_types(grid, made.key.key_id) == ["key.created", "key.exposed", "key.revoked"]


def test_a_key_that_stands_twice_in_one_call_is_dealt_with_once(grid: Service) -> None:
    made = make_key(grid)
    reports = [pb.ExposedKeyReport(api_key=made.api_key, url=url) for url in (URL, URL, OTHER_URL, "")]

    answer = grid.operator.keys.ReportExposedKeys(pb.ReportExposedKeysRequest(reports=reports))

    assert outcomes(answer) == ["REVOKED", "ALREADY_KNOWN", "ALREADY_KNOWN", "ALREADY_KNOWN"]
    _, *events = events_of(grid, made.key.key_id)
    assert [event.type for event in events] == ["key.exposed", "key.revoked", "key.exposed"]
    assert [event.after["exposure_url"] for event in events[::2]] == [URL, OTHER_URL]


def test_reports_at_the_same_moment_make_one_exposure(service: Service) -> None:
    make_workspace(service)
    made = make_key(service)

    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: outcome(service, made.api_key), range(8)))

    assert sorted(done) == ["ALREADY_KNOWN"] * 7 + ["REVOKED"]
    assert event_types(service, made.key.key_id) == ["key.created", "key.exposed", "key.revoked"]


def test_an_old_secret_ends_nothing(grid: Service) -> None:
    made = make_key(grid)
    renewed = rotate(grid, made.key.key_id)

    answer = report(grid, made.api_key)

    assert outcomes(answer) == ["RETIRED"]
    assert answer.results[0].key_id == made.key.key_id
    assert reason_for(grid, renewed.api_key) == "PERMITTED"
    assert event_types(grid, made.key.key_id) == ["key.created", "key.rotated"]


def test_an_old_secret_that_still_works_ends_the_key(grid: Service) -> None:
    made = make_key(grid)
    renewed = rotate(grid, made.key.key_id, HOUR)

    assert outcome(grid, made.api_key) == "REVOKED"
    assert reason_for(grid, renewed.api_key) == "KEY_REVOKED"


def test_a_new_secret_at_the_same_place_is_an_exposure_of_its_own(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_SUSPEND)
    made = make_key(service)
    assert outcome(service, made.api_key) == "SUSPENDED"
    resume(service, made.key.key_id)
    service.clock.turn(HOUR)
    assert outcome(service, rotate(service, made.key.key_id).api_key) == "SUSPENDED"


def test_a_key_that_is_revoked_already_is_noted(grid: Service) -> None:
    made = make_key(grid)
    revoke(grid, made.key.key_id)

    assert [outcome(grid, made.api_key) for _ in range(2)] == ["NOTED", "ALREADY_KNOWN"]
    assert event_types(grid, made.key.key_id) == ["key.created", "key.revoked", "key.exposed"]


def test_operators_are_told_loudly_of_the_key_of_a_caller_which_goes_on_working(grid: Service) -> None:
    request = caller_service_pb2.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
    key = grid.operator.callers.CreateCaller(request).caller_key

    with structlog.testing.capture_logs() as lines:
        answers = [report(grid, key, url=url) for url in (URL, URL, OTHER_URL)]

    assert [outcomes(answer) for answer in answers] == [["CALLER_KEY"]] * 3
    assert answers[0].results[0].key_id == key.split("_")[2]
    loud = [line for line in lines if line["log_level"] == "error"]
    assert [line["exposed_caller_id"] for line in loud] == ["device-api"] * 2
    rows = grid.query("SELECT type, subject_id FROM event WHERE type = 'caller.exposed'")
    assert [row["subject_id"] for row in rows] == ["device-api"] * 2
    assert reason_for(grid, make_key(grid).api_key) == "PERMITTED"
    # It is still who it was.
    assert grid.client(key).authorize.Authorize(question(make_key(grid).api_key)).revision


def test_the_key_of_a_caller_that_was_revoked_is_of_no_use_any_more(grid: Service) -> None:
    request = caller_service_pb2.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
    key = grid.operator.callers.CreateCaller(request).caller_key
    grid.operator.callers.RevokeCaller(caller_service_pb2.RevokeCallerRequest(caller_id="device-api"))

    assert outcome(grid, key) == "RETIRED"


def test_a_report_under_the_same_request_id_does_nothing_again(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_SUSPEND)
    made = make_key(service)
    assert outcome(service, made.api_key, request_id="r-1") == "SUSPENDED"
    resume(service, made.key.key_id)
    assert outcome(service, made.api_key, request_id="r-1") == "ALREADY_KNOWN"

    assert reason_for(service, made.api_key) == "PERMITTED"


def test_where_a_key_was_found_is_written_down_without_keys_and_cut_to_a_length(grid: Service) -> None:
    made, other = make_key(grid), make_key(grid)
    secret = made.api_key.rpartition("_")[2]
    url = f"https://me:pass@x.example/?key={made.api_key}&s={secret}&o={other.api_key}\x00&{'y' * 5000}"

    report(grid, made.api_key, url=url, source=f"bot {made.api_key} " + "z" * 500)

    event = events_of(grid, made.key.key_id)[1]
    kept: Any = event.after
    assert kept["exposure_url"].startswith("https://x.example/?key=")
    assert "pass" not in kept["exposure_url"]
    assert len(kept["exposure_url"]) == 2000
    assert len(kept["exposure_source"]) == 100
    for told in (str(event), str(get_key(grid, made.key.key_id))):
        assert secret not in told
        assert other.api_key not in told


@pytest.mark.parametrize("count", [0, 101])
def test_no_report_and_more_than_a_hundred_are_refused(grid: Service, count: int) -> None:
    made = make_key(grid)
    reports = [pb.ExposedKeyReport(api_key=made.api_key)] * count

    error = refused(grid.operator.keys.ReportExposedKeys, pb.ReportExposedKeysRequest(reports=reports))

    assert (error.code, list(error.violations)) == (grpc.StatusCode.INVALID_ARGUMENT, ["reports"])
    assert reason_for(grid, made.api_key) == "PERMITTED"


def test_a_hundred_are_dealt_with_at_once(grid: Service) -> None:
    made = [make_key(grid) for _ in range(100)]
    assert outcomes(report(grid, *[one.api_key for one in made])) == ["REVOKED"] * 100


def test_an_erased_end_users_exposures_are_forgotten_and_the_place_taken_out_of_the_log(grid: Service) -> None:
    made = make_scoped_key(grid, "mine")
    report(grid, made.scoped_api_key)
    assert count_rows(grid, "exposure") == 1

    grid.operator.workspaces.EraseEndUser(
        workspace_service_pb2.EraseEndUserRequest(workspace_id=WORKSPACE, reference_id=USER)
    )

    assert count_rows(grid, "exposure") == 0
    assert URL not in str(grid.query("SELECT * FROM event"))
    assert outcome(grid, made.scoped_api_key) == "UNKNOWN"


def test_a_key_admin_may_report_and_others_may_not(grid: Service) -> None:
    made = make_connect_key(grid)
    request = pb.ReportExposedKeysRequest(reports=[pb.ExposedKeyReport(api_key=made.api_key)])
    assert outcomes(grid.caller("dashboard", ROLE_KEY_ADMIN).keys.ReportExposedKeys(request)) == ["NOTED"]

    error = refused(grid.caller("device-api", ROLE_AUTHORIZER).keys.ReportExposedKeys, request)
    assert error.reason == "CALLER_ROLE_MISSING"
