"""Authorize, over the wire."""

from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import timedelta

import pytest
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import connect_service_pb2, device_service_pb2
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SCOPED, KEY_KIND_SERVER, KeyKind

from server.domain.token import checksum
from tests.harness import Service
from tests.wire.helpers import (
    OTHER_USER,
    OTHER_WORKSPACE,
    REDIRECT_URI,
    USER,
    WORKSPACE,
    api_key_of_kind,
    authorize,
    duration,
    make_key,
    make_scoped_key,
    question,
    reason_for,
    reason_of,
    register,
    revoke,
    rotate,
    suspend,
    timestamp,
    update_key,
    with_wrong_secret,
)

HOUR = timedelta(hours=1)
PERMISSIONS = (
    "devices:list",
    "devices:read",
    "devices:command",
    "connect_links:create",
    "keys:manage",
    "workspace:configure",
)
ABOUT_A_DEVICE = ("devices:read", "devices:command")
MAY = {
    KEY_KIND_SERVER: set(PERMISSIONS),
    KEY_KIND_CONNECT: {"connect_links:create"},
    KEY_KIND_SCOPED: {"devices:list", "devices:read", "devices:command"},
}
STATUS = {
    "PERMITTED": 200,
    "KEY_MISSING": 401,
    "KEY_MALFORMED": 401,
    "KEY_UNKNOWN": 401,
    "KEY_EXPOSED": 403,
    "KEY_REVOKED": 401,
    "KEY_SUSPENDED": 401,
    "KEY_EXPIRED": 401,
    "KEY_RETIRED": 401,
    "ADDRESS_NOT_PERMITTED": 403,
    "PERMISSION_NOT_GRANTED": 403,
    "DEVICE_NOT_FOUND": 404,
    "DEVICE_NOT_PERMITTED": 403,
    "MANUFACTURER_NOT_PERMITTED": 403,
}


@pytest.fixture(scope="module")
def devices(module_grid: Service) -> None:
    """Devices of two end users in the first workspace, and of one in the second."""
    register(module_grid, "mine", manufacturer="acme")
    register(module_grid, "other", reference_id=OTHER_USER, manufacturer="zenith")
    register(module_grid, "foreign", workspace_id=OTHER_WORKSPACE)


@pytest.fixture
def grid(devices: None, shared_grid: Service) -> Service:
    """A service with two workspaces, and devices of two end users in the first and of one in the second."""
    return shared_grid


@pytest.mark.parametrize("permission", PERMISSIONS)
@pytest.mark.parametrize("kind", [KEY_KIND_SERVER, KEY_KIND_CONNECT, KEY_KIND_SCOPED])
def test_each_kind_of_key_may_do_exactly_what_its_kind_allows(
    grid: Service, kind: KeyKind.ValueType, permission: str
) -> None:
    api_key = api_key_of_kind(grid, kind)

    answer = authorize(grid, api_key, permission, "mine" if permission in ABOUT_A_DEVICE else "")

    if permission in MAY[kind]:
        assert (answer.decision, reason_of(answer), answer.http_status_code) == (pb.DECISION_ALLOW, "PERMITTED", 200)
        assert answer.missing_permission == ""
    else:
        assert (answer.decision, reason_of(answer)) == (pb.DECISION_DENY, "PERMISSION_NOT_GRANTED")
        assert answer.http_status_code == 403
        assert answer.missing_permission == permission
    assert answer.key.kind == kind
    assert answer.key.workspace_id == WORKSPACE
    assert answer.key.reference_id == (USER if kind == KEY_KIND_SCOPED else "")


def test_a_server_key_that_was_granted_less_may_do_only_that(grid: Service) -> None:
    api_key = make_key(grid, permissions=["devices:read"]).api_key

    answers = {
        permission: reason_for(
            grid, api_key, permission=permission, device_id="mine" if permission in ABOUT_A_DEVICE else ""
        )
        for permission in PERMISSIONS
    }

    assert answers.pop("devices:read") == "PERMITTED"
    assert set(answers.values()) == {"PERMISSION_NOT_GRANTED"}


def _revoked(service: Service) -> pb.AuthorizeRequest:
    made = make_key(service)
    revoke(service, made.key.key_id)
    return question(made.api_key)


def _suspended(service: Service) -> pb.AuthorizeRequest:
    made = make_key(service)
    suspend(service, made.key.key_id)
    return question(made.api_key)


def _expired(service: Service) -> pb.AuthorizeRequest:
    made = make_key(service, expire_time=timestamp(service.clock.now + HOUR))
    service.clock.turn(HOUR)
    return question(made.api_key)


def _retired(service: Service) -> pb.AuthorizeRequest:
    made = make_key(service)
    rotate(service, made.key.key_id)
    return question(made.api_key)


def _acme_only(service: Service) -> str:
    return make_key(service, allowed_manufacturers=["acme"]).api_key


def _scoped_acme_only(service: Service) -> str:
    scoped = make_scoped_key(service, "mine")
    register(service, "mine-too", manufacturer="zenith")
    update_key(service, scoped.scoped_key.key_id, allowed_manufacturers=["acme"])
    return scoped.scoped_api_key


def _behind_a_network(service: Service) -> str:
    return make_key(service, allowed_cidrs=["10.0.0.0/8", "2001:db8::/32"]).api_key


# What leads to it, the reason, and whether the whole secret was right.
DENIALS: dict[str, tuple[Callable[[Service], pb.AuthorizeRequest], str, bool]] = {
    "nothing was presented": (lambda _: question(""), "KEY_MISSING", False),
    "it is not a key": (lambda _: question("sk_live_123"), "KEY_MALFORMED", False),
    "it has a typing error": (lambda s: question(make_key(s).api_key[:-1] + "!"), "KEY_MALFORMED", False),
    "it is one character short": (lambda s: question(make_key(s).api_key[:-1]), "KEY_MALFORMED", False),
    "it has a space after it": (lambda s: question(make_key(s).api_key + " "), "KEY_MALFORMED", False),
    "it has a line break after it": (lambda s: question(make_key(s).api_key + "\n"), "KEY_MALFORMED", False),
    "its kind was changed": (
        lambda s: question(make_key(s).api_key.replace("txk_srv", "txk_con")),
        "KEY_MALFORMED",
        False,
    ),
    "its kind and checksum were changed": (
        lambda s: question(with_wrong_secret(make_key(s).api_key.replace("txk_srv", "txk_con"))),
        "KEY_UNKNOWN",
        False,
    ),
    "its id is unknown": (
        lambda _: question(with_wrong_secret("txk_srv_0000000000000000_x")),
        "KEY_UNKNOWN",
        False,
    ),
    "its secret is wrong": (lambda s: question(with_wrong_secret(make_key(s).api_key)), "KEY_UNKNOWN", False),
    "it comes from a browser": (
        lambda s: question(make_key(s).api_key, sec_fetch_site="cross-site"),
        "KEY_EXPOSED",
        True,
    ),
    "it was revoked": (_revoked, "KEY_REVOKED", True),
    "it is suspended": (_suspended, "KEY_SUSPENDED", True),
    "it has expired": (_expired, "KEY_EXPIRED", True),
    "its secret was replaced": (_retired, "KEY_RETIRED", True),
    "its address is outside": (
        lambda s: question(_behind_a_network(s), client_ip="192.0.2.1"),
        "ADDRESS_NOT_PERMITTED",
        True,
    ),
    "its address is unknown": (lambda s: question(_behind_a_network(s)), "ADDRESS_NOT_PERMITTED", True),
    "it lacks the permission": (
        lambda s: question(make_key(s, permissions=["devices:read"]).api_key),
        "PERMISSION_NOT_GRANTED",
        True,
    ),
    "the device does not exist": (
        lambda s: question(make_key(s).api_key, "devices:read", "nowhere"),
        "DEVICE_NOT_FOUND",
        True,
    ),
    "the device id is none": (
        lambda s: question(make_key(s).api_key, "devices:read", "not an id\x00' OR 1=1 --"),
        "DEVICE_NOT_FOUND",
        True,
    ),
    "the device is of another workspace": (
        lambda s: question(make_key(s).api_key, "devices:command", "foreign"),
        "DEVICE_NOT_FOUND",
        True,
    ),
    "a scoped key, the device of another end user": (
        lambda s: question(make_scoped_key(s, "mine").scoped_api_key, "devices:read", "other"),
        "DEVICE_NOT_PERMITTED",
        True,
    ),
    "a scoped key, a device of nobody": (
        lambda s: question(make_scoped_key(s, "mine").scoped_api_key, "devices:read", "nowhere"),
        "DEVICE_NOT_PERMITTED",
        True,
    ),
    "a scoped key, no device id": (
        lambda s: question(make_scoped_key(s, "mine").scoped_api_key, "devices:read", "?" * 200),
        "DEVICE_NOT_PERMITTED",
        True,
    ),
    "a scoped key, a device of another workspace": (
        lambda s: question(make_scoped_key(s, "mine").scoped_api_key, "devices:command", "foreign"),
        "DEVICE_NOT_PERMITTED",
        True,
    ),
    "the manufacturer is another": (
        lambda s: question(_acme_only(s), "devices:read", "other"),
        "MANUFACTURER_NOT_PERMITTED",
        True,
    ),
    "a scoped key, the manufacturer is another": (
        lambda s: question(_scoped_acme_only(s), "devices:read", "mine-too"),
        "MANUFACTURER_NOT_PERMITTED",
        True,
    ),
}


@pytest.mark.parametrize("why", DENIALS)
def test_a_denial_is_an_answer_with_its_reason_and_status(grid: Service, why: str) -> None:
    arrange, reason, secret_was_right = DENIALS[why]

    answer = grid.operator.authorize.Authorize(arrange(grid))

    assert answer.decision == pb.DECISION_DENY
    assert reason_of(answer) == reason
    assert answer.http_status_code == STATUS[reason]
    assert answer.HasField("key") is secret_was_right
    assert not answer.HasField("device_scope")
    assert (answer.missing_permission != "") is (reason == "PERMISSION_NOT_GRANTED")
    assert answer.revision
    assert answer.decision_id


def test_the_table_of_denials_names_every_reason_of_the_contract() -> None:
    named = {reason for _, reason, _ in DENIALS.values()} | {"PERMITTED"}

    assert named == {name.removeprefix("REASON_") for name in pb.Reason.keys()} - {"UNSPECIFIED"}  # noqa: SIM118
    assert named == set(STATUS)


def test_a_device_of_an_unknown_manufacturer_is_reached_by_no_restricted_key(grid: Service) -> None:
    register(grid, "unlabelled")

    assert reason_for(grid, _acme_only(grid), permission="devices:read", device_id="unlabelled") == (
        "MANUFACTURER_NOT_PERMITTED"
    )


@pytest.mark.parametrize("client_ip", ["10.255.0.1", "::ffff:10.1.2.3", "2001:db8:1::1", "2001:0DB8:0:0::9"])
def test_a_key_works_from_inside_its_networks(grid: Service, client_ip: str) -> None:
    assert reason_for(grid, _behind_a_network(grid), client_ip=client_ip) == "PERMITTED"


@pytest.mark.parametrize("client_ip", ["11.0.0.1", "::ffff:11.1.2.3", "2001:db9::1", "::10.1.2.3"])
def test_a_key_does_not_work_from_outside_its_networks(grid: Service, client_ip: str) -> None:
    assert reason_for(grid, _behind_a_network(grid), client_ip=client_ip) == "ADDRESS_NOT_PERMITTED"


NOISE = {
    "ten kilobytes": "x" * 10_240,
    "ten kilobytes of key": "txk_srv_" + "a" * 10_240,
    "control characters": "\x00\x01\x1b[31m\r\n\x7f",
    "non-ASCII": "txk_srv_ключ_🔑",
    "digits of another script": "txk_srv_" + "٣" * 16 + "_" + "٣" * 38,
    "blank": " ",
    "two keys": "txk_srv_a txk_srv_b",
    "sql": "' OR 1=1; --",
}


@pytest.mark.parametrize("noise", NOISE)
@pytest.mark.parametrize("permission", ["devices:list", "devices:read"])
def test_whatever_is_sent_as_a_key_gets_a_decision(grid: Service, noise: str, permission: str) -> None:
    answer = authorize(grid, NOISE[noise], permission, "mine" if permission in ABOUT_A_DEVICE else "")

    assert (answer.decision, reason_of(answer)) == (pb.DECISION_DENY, "KEY_MALFORMED")


def test_a_key_with_one_character_changed_is_malformed_wherever_it_stands(grid: Service) -> None:
    api_key = make_key(grid).api_key
    changed = [
        api_key[:place] + other + api_key[place + 1 :]
        for place, character in enumerate(api_key)
        for other in {"0", "z", character.swapcase()} - {character}
    ]
    request = pb.BatchAuthorizeRequest(
        questions=[pb.Question(api_key=one, permission="devices:list") for one in (*changed, api_key)]
    )

    *answers, unchanged = [answer.answer for answer in grid.operator.authorize.BatchAuthorize(request).answers]

    assert {reason_of(answer) for answer in answers} == {"KEY_MALFORMED"}
    assert {answer.http_status_code for answer in answers} == {401}
    assert reason_of(unchanged) == "PERMITTED"


@pytest.mark.parametrize(
    ("kind", "reason"),
    [("con", "KEY_UNKNOWN"), ("scp", "KEY_UNKNOWN"), ("svc", "KEY_MALFORMED"), ("adm", "KEY_MALFORMED")],
)
def test_the_kind_of_a_key_cannot_be_changed_by_whoever_can_reckon_a_checksum(
    grid: Service, kind: str, reason: str
) -> None:
    body = make_key(grid).api_key[:-6].replace("txk_srv", f"txk_{kind}")

    answer = authorize(grid, body + checksum(body), "connect_links:create")

    assert (answer.decision, reason_of(answer), answer.http_status_code) == (pb.DECISION_DENY, reason, 401)
    assert not answer.HasField("key")


@pytest.mark.parametrize(
    "device_id", ["x" * 129, "x" * 10_240, "a/b", "ü", "a\0", "a\n", " mine", "mine ", "MINE", "%"]
)
def test_a_device_id_that_no_device_can_have_is_that_of_none(grid: Service, device_id: str) -> None:
    asked = {"permission": "devices:read", "device_id": device_id}

    assert reason_for(grid, make_key(grid).api_key, **asked) == "DEVICE_NOT_FOUND"
    assert reason_for(grid, make_scoped_key(grid, "mine").scoped_api_key, **asked) == "DEVICE_NOT_PERMITTED"


def test_the_key_of_an_internal_service_is_no_api_key(grid: Service) -> None:
    answer = authorize(grid, grid.operator_key)

    assert (answer.decision, reason_of(answer)) == (pb.DECISION_DENY, "KEY_MALFORMED")
    assert not answer.HasField("key")


def test_a_link_token_is_no_api_key(grid: Service) -> None:
    link = grid.operator.connect.CreateConnectLink(
        connect_service_pb2.CreateConnectLinkRequest(api_key=make_key(grid).api_key, redirect_uri=REDIRECT_URI)
    )

    answer = authorize(grid, link.link_token, "connect_links:create")

    assert (answer.decision, reason_of(answer)) == (pb.DECISION_DENY, "KEY_MALFORMED")
    assert not answer.HasField("key")


def test_the_answers_to_a_wrong_secret_and_to_an_unknown_id_differ_in_nothing_but_their_names(grid: Service) -> None:
    revoked = make_key(grid)
    revoke(grid, revoked.key.key_id)
    answers = [
        authorize(grid, with_wrong_secret(api_key))
        for api_key in (make_key(grid).api_key, revoked.api_key, "txk_srv_0000000000000000_x")
    ]

    for answer in answers:
        answer.ClearField("decision_id")
        answer.ClearField("revision")
    assert answers[0] == answers[1] == answers[2]


def test_a_server_key_lists_the_devices_of_its_workspace(grid: Service) -> None:
    assert authorize(grid, make_key(grid).api_key).device_scope == pb.DeviceScope(workspace_id=WORKSPACE)


def test_a_scoped_key_lists_the_devices_of_its_end_user(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")

    answer = authorize(grid, scoped.scoped_api_key)

    assert answer.device_scope == pb.DeviceScope(workspace_id=WORKSPACE, reference_id=USER)
    assert answer.key == pb.AuthorizedKey(
        key_id=scoped.scoped_key.key_id, kind=KEY_KIND_SCOPED, workspace_id=WORKSPACE, reference_id=USER
    )


def test_a_restricted_key_lists_the_devices_of_its_manufacturers(grid: Service) -> None:
    api_key = make_key(grid, allowed_manufacturers=["zenith", "acme"]).api_key

    answer = authorize(grid, api_key)

    assert answer.device_scope == pb.DeviceScope(workspace_id=WORKSPACE, manufacturers=["acme", "zenith"])


def test_a_device_scope_may_be_handed_to_the_device_list_as_it_is(grid: Service) -> None:
    scope = authorize(grid, _scoped_acme_only(grid)).device_scope

    listed = grid.operator.devices.ListDevices(
        device_service_pb2.ListDevicesRequest(
            workspace_id=scope.workspace_id, reference_id=scope.reference_id, manufacturers=scope.manufacturers
        )
    )

    assert [device.device_id for device in listed.devices] == ["mine"]


@pytest.mark.parametrize("permission", [permission for permission in PERMISSIONS if permission != "devices:list"])
def test_only_a_list_call_gets_a_scope(grid: Service, permission: str) -> None:
    device_id = "mine" if permission in ABOUT_A_DEVICE else ""

    answer = authorize(grid, make_key(grid).api_key, permission, device_id)

    assert answer.decision == pb.DECISION_ALLOW
    assert not answer.HasField("device_scope")


def test_a_scoped_key_reaches_devices_that_its_user_connects_later(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine").scoped_api_key
    assert reason_for(grid, scoped, permission="devices:command", device_id="heat-pump") == "DEVICE_NOT_PERMITTED"

    register(grid, "heat-pump")

    assert reason_for(grid, scoped, permission="devices:command", device_id="heat-pump") == "PERMITTED"


def test_a_key_for_ever_has_no_end_of_validity(grid: Service) -> None:
    assert not authorize(grid, make_key(grid).api_key).HasField("valid_for")


def test_the_time_that_an_answer_holds_counts_down_to_the_expiry(grid: Service) -> None:
    api_key = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR)).api_key

    assert authorize(grid, api_key).valid_for == duration(HOUR)
    grid.clock.turn(timedelta(minutes=59, seconds=59, milliseconds=999))
    last = authorize(grid, api_key)
    assert (last.decision, last.valid_for) == (pb.DECISION_ALLOW, duration(timedelta(milliseconds=1)))
    grid.clock.turn(timedelta(milliseconds=1))
    after = authorize(grid, api_key)
    assert reason_of(after) == "KEY_EXPIRED"
    assert not after.HasField("valid_for")


def test_the_time_that_an_answer_holds_counts_down_to_the_end_of_an_overlap(grid: Service) -> None:
    made = make_key(grid, expire_time=timestamp(grid.clock.now + 10 * HOUR))
    rotated = rotate(grid, made.key.key_id, overlap=2 * HOUR)

    assert authorize(grid, made.api_key).valid_for == duration(2 * HOUR)
    assert authorize(grid, rotated.api_key).valid_for == duration(10 * HOUR)
    grid.clock.turn(HOUR)
    assert authorize(grid, made.api_key).valid_for == duration(HOUR)
    grid.clock.turn(HOUR)
    retired = authorize(grid, made.api_key)
    assert reason_of(retired) == "KEY_RETIRED"
    # From then on it is denied for another reason.
    assert retired.valid_for == duration(8 * HOUR)


def test_a_denial_that_an_expiry_will_change_says_when(grid: Service) -> None:
    api_key = make_key(grid, permissions=["devices:read"], expire_time=timestamp(grid.clock.now + HOUR)).api_key

    answer = authorize(grid, api_key)

    assert (reason_of(answer), answer.valid_for) == ("PERMISSION_NOT_GRANTED", duration(HOUR))


def test_every_answer_has_a_name_of_its_own(grid: Service) -> None:
    api_key = make_key(grid).api_key

    names = {authorize(grid, api_key if number % 2 else "noise").decision_id for number in range(50)}

    assert len(names) == 50


@pytest.mark.parametrize("ending", [revoke, suspend])
def test_no_allow_after_a_key_was_ended(grid: Service, ending: Callable[[Service, str], None]) -> None:
    made = make_key(grid)
    assert authorize(grid, made.api_key).decision == pb.DECISION_ALLOW

    ending(grid, made.key.key_id)

    for _ in range(20):
        assert authorize(grid, made.api_key).decision == pb.DECISION_DENY


@pytest.mark.parametrize("ending", [revoke, suspend])
def test_no_call_that_starts_after_a_key_was_ended_is_allowed_however_many_are_under_way(
    grid: Service, ending: Callable[[Service, str], None]
) -> None:
    made = make_key(grid)
    others = make_key(grid)
    ended = threading.Event()
    ready = threading.Barrier(5)
    wrong: list[str] = []

    def ask_on() -> None:
        ready.wait()
        after = 0
        while after < 20:
            started_after = ended.is_set()
            answer = authorize(grid, made.api_key)
            if started_after:
                after += 1
                if answer.decision != pb.DECISION_DENY:
                    wrong.append(f"{reason_of(answer)} after the end")
            elif reason_of(answer) not in ("PERMITTED", "KEY_REVOKED", "KEY_SUSPENDED"):
                wrong.append(f"{reason_of(answer)} before the end")
            if reason_for(grid, others.api_key) != "PERMITTED":
                wrong.append("another key was touched")

    threads = [threading.Thread(target=ask_on) for _ in range(4)]
    for thread in threads:
        thread.start()
    ready.wait()
    for _ in range(5):
        authorize(grid, made.api_key)
    ending(grid, made.key.key_id)
    ended.set()
    for thread in threads:
        thread.join()

    assert wrong == []
