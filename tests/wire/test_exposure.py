"""Keys that arrive from browsers, over the wire."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import structlog
from texture.auth.v1 import authorize_service_pb2, connect_service_pb2, key_service_pb2
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.key_pb2 import (
    KEY_KIND_CONNECT,
    KEY_KIND_SCOPED,
    KEY_STATE_ACTIVE,
    KEY_STATE_REVOKED,
    KeyKind,
    KeyState,
)
from texture.auth.v1.request_context_pb2 import RequestContext
from texture.auth.v1.workspace_pb2 import EXPOSURE_POLICY_NOTIFY_ONLY, EXPOSURE_POLICY_SUSPEND, ExposurePolicy

from server.service import exposures
from server.store.contract import StoreUnavailable
from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    REDIRECT_URI,
    api_key_of_kind,
    authorize,
    dealt_with,
    event_types,
    events_of,
    get_key,
    make_connect_key,
    make_key,
    make_workspace,
    reason_for,
    reason_of,
    revoke,
    rotate,
    with_wrong_secret,
)

BROWSER_AGENT = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0 Safari/537.36"


def test_a_right_secret_from_a_browser_is_a_leak_whatever_else_is_wrong_with_the_key(grid: Service) -> None:
    made = make_key(grid)
    revoke(grid, made.key.key_id)

    assert reason_for(grid, made.api_key, sec_fetch_site="none") == "KEY_EXPOSED"


EXPOSURES = {
    "Sec-Fetch-Site: cross-site": ({"sec_fetch_site": "cross-site"}, True),
    "Sec-Fetch-Site: same-origin": ({"sec_fetch_site": "same-origin"}, True),
    "Sec-Fetch-Site: same-site": ({"sec_fetch_site": "same-site"}, True),
    "Sec-Fetch-Site: none": ({"sec_fetch_site": "none"}, True),
    "Origin and a browser's agent": ({"origin": "https://shop.example", "user_agent": BROWSER_AGENT}, True),
    "Origin: null and Sec-Fetch-Dest": ({"origin": "null", "sec_fetch_dest": "empty"}, True),
    "Origin and Sec-Fetch-User": ({"origin": "https://shop.example", "sec_fetch_user": "?1"}, True),
    "Sec-Fetch-Mode alone, as Node's fetch sends it": ({"sec_fetch_mode": "cors"}, False),
    "Origin and Sec-Fetch-Mode, which a backend may send": (
        {"origin": "https://shop.example", "sec_fetch_mode": "cors"},
        False,
    ),
    "a browser's agent alone": ({"user_agent": BROWSER_AGENT}, False),
    "Origin alone": ({"origin": "https://shop.example"}, False),
    "Origin and a backend's agent": ({"origin": "https://shop.example", "user_agent": "curl/8.5.0"}, False),
    "nothing": ({}, False),
}


@pytest.mark.parametrize("signs", EXPOSURES)
def test_a_server_key_from_a_browser_is_exposed_and_from_a_backend_is_not(grid: Service, signs: str) -> None:
    context, exposed = EXPOSURES[signs]

    assert reason_for(grid, make_key(grid).api_key, **context) == ("KEY_EXPOSED" if exposed else "PERMITTED")


@pytest.mark.parametrize("kind", [KEY_KIND_CONNECT, KEY_KIND_SCOPED])
def test_connect_and_scoped_keys_live_in_browsers(grid: Service, kind: KeyKind.ValueType) -> None:
    permission = "connect_links:create" if kind == KEY_KIND_CONNECT else "devices:list"

    answer = authorize(
        grid,
        api_key_of_kind(grid, kind),
        permission,
        sec_fetch_site="cross-site",
        origin="https://shop.example",
        user_agent=BROWSER_AGENT,
    )

    assert reason_of(answer) == "PERMITTED"


def test_a_wrong_secret_from_a_browser_is_merely_unknown(grid: Service) -> None:
    assert reason_for(grid, with_wrong_secret(make_key(grid).api_key), sec_fetch_site="cross-site") == "KEY_UNKNOWN"


# `ExposurePolicy` in workspace.proto, and DESIGN section 8: "the workspace's policy (REVOKE by default, ...)".
@pytest.mark.parametrize(
    ("policy", "state"),
    [
        ("EXPOSURE_POLICY_UNSPECIFIED", "KEY_STATE_REVOKED"),
        ("EXPOSURE_POLICY_REVOKE", "KEY_STATE_REVOKED"),
        ("EXPOSURE_POLICY_SUSPEND", "KEY_STATE_SUSPENDED"),
        ("EXPOSURE_POLICY_NOTIFY_ONLY", "KEY_STATE_ACTIVE"),
    ],
)
def test_an_exposed_key_is_dealt_with_by_its_workspaces_policy(service: Service, policy: str, state: str) -> None:
    make_workspace(service, exposure_policy=ExposurePolicy.Value(policy))
    made = make_key(service)

    authorize(service, made.api_key, sec_fetch_site="cross-site")
    dealt_with(service)

    assert KeyState.Name(get_key(service, made.key.key_id).state) == state


def test_an_exposure_is_an_event_and_its_end_another_and_each_comes_once(grid: Service) -> None:
    made = make_key(grid)
    for _ in range(3):
        assert reason_for(grid, made.api_key, sec_fetch_site="cross-site") == "KEY_EXPOSED"
        dealt_with(grid)

    _, event, end = events_of(grid, made.key.key_id)

    assert (event.type, event.caller_id) == ("key.exposed", "dev-operator")
    assert (end.type, end.caller_id, end.reason) == ("key.revoked", "dev-operator", event.reason)
    assert event.reason
    assert event.after["state"] == "revoked"
    assert get_key(grid, made.key.key_id).state_reason == event.reason


# As ExposurePolicy promises of NOTIFY_ONLY: the exposure is recorded, and the key is left as it is.
def test_an_exposure_is_recorded_where_the_policy_leaves_the_key_as_it_is(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_NOTIFY_ONLY)
    made = make_key(service)

    assert reason_for(service, made.api_key, sec_fetch_site="cross-site") == "KEY_EXPOSED"
    dealt_with(service)

    assert event_types(service, made.key.key_id) == ["key.created", "key.exposed"]
    assert reason_for(service, made.api_key) == "PERMITTED"


def test_an_exposed_key_ends_for_backends_too(grid: Service) -> None:
    made, other = make_key(grid), make_key(grid)

    authorize(grid, made.api_key, sec_fetch_site="cross-site")
    dealt_with(grid)

    assert reason_for(grid, made.api_key) == "KEY_REVOKED"
    assert reason_for(grid, other.api_key) == "PERMITTED"


def test_a_key_that_is_exposed_again_after_it_was_resumed_is_suspended_again(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_SUSPEND)
    made = make_key(service)
    for _ in range(2):
        authorize(service, made.api_key, sec_fetch_site="cross-site")
        dealt_with(service)
        assert reason_for(service, made.api_key) == "KEY_SUSPENDED"
        service.operator.keys.ResumeKey(key_service_pb2.ResumeKeyRequest(key_id=made.key.key_id))

    assert reason_for(service, made.api_key) == "PERMITTED"


HARMLESS = {
    "a wrong secret": {"sec_fetch_site": "cross-site"},
    "a browser's agent alone": {"user_agent": BROWSER_AGENT},
    "an origin alone": {"origin": "https://shop.example"},
}


@pytest.mark.parametrize("what", HARMLESS)
def test_nobody_can_end_a_key_without_its_secret_or_without_a_certain_sign(grid: Service, what: str) -> None:
    made = make_key(grid)
    given = with_wrong_secret(made.api_key) if what == "a wrong secret" else made.api_key

    authorize(grid, given, **HARMLESS[what])
    dealt_with(grid)

    assert get_key(grid, made.key.key_id) == made.key


def test_exposed_keys_of_a_batch_are_dealt_with_and_no_others(grid: Service) -> None:
    exposed, fine = [make_key(grid), make_key(grid)], make_key(grid)
    browser = RequestContext(sec_fetch_site="cross-site")
    questions = [
        pb.Question(api_key=made.api_key, permission="devices:list", context=browser) for made in (*exposed, *exposed)
    ]
    questions.append(pb.Question(api_key=fine.api_key, permission="devices:list"))

    response = grid.operator.authorize.BatchAuthorize(pb.BatchAuthorizeRequest(questions=questions))
    dealt_with(grid)

    assert [reason_of(answer.answer) for answer in response.answers] == ["KEY_EXPOSED"] * 4 + ["PERMITTED"]
    assert [reason_for(grid, made.api_key) for made in exposed] == ["KEY_REVOKED"] * 2
    assert reason_for(grid, fine.api_key) == "PERMITTED"


def test_a_server_key_that_makes_a_link_from_a_browser_is_exposed_too(grid: Service) -> None:
    made = make_key(grid)

    error = refused(
        grid.operator.connect.CreateConnectLink,
        connect_service_pb2.CreateConnectLinkRequest(
            api_key=made.api_key, redirect_uri=REDIRECT_URI, context=RequestContext(sec_fetch_site="cross-site")
        ),
    )

    dealt_with(grid)
    assert (error.reason, error.metadata["deny_reason"]) == ("API_KEY_DENIED", "KEY_EXPOSED")
    assert reason_for(grid, made.api_key) == "KEY_REVOKED"


def test_a_secret_that_was_replaced_because_it_leaked_does_not_end_the_new_one(grid: Service) -> None:
    made = make_key(grid)
    renewed = rotate(grid, made.key.key_id)

    authorize(grid, made.api_key, sec_fetch_site="cross-site")
    dealt_with(grid)

    assert reason_for(grid, renewed.api_key) == "PERMITTED"


def test_a_retired_secret_in_the_same_batch_does_not_hide_the_exposure_of_the_live_one(grid: Service) -> None:
    made = make_key(grid)
    live = rotate(grid, made.key.key_id).api_key
    context = RequestContext(sec_fetch_site="cross-site")
    questions = [
        authorize_service_pb2.Question(api_key=api_key, permission="devices:list", context=context)
        for api_key in (live, made.api_key)
    ]

    grid.operator.authorize.BatchAuthorize(authorize_service_pb2.BatchAuthorizeRequest(questions=questions))
    dealt_with(grid)

    assert KeyState.Name(get_key(grid, made.key.key_id).state) == "KEY_STATE_REVOKED"


def test_many_keys_that_leak_at_once_are_all_dealt_with(service: Service) -> None:
    make_workspace(service)
    made = [make_key(service) for _ in range(120)]
    context = RequestContext(sec_fetch_site="cross-site")
    questions = [pb.Question(api_key=one.api_key, permission="devices:list", context=context) for one in made]

    service.operator.authorize.BatchAuthorize(pb.BatchAuthorizeRequest(questions=questions))
    dealt_with(service)

    assert service.query("SELECT state, count(*) AS n FROM api_key GROUP BY state") == [{"state": "revoked", "n": 120}]
    expected = ["key.created", "key.exposed", "key.revoked"]
    assert all(event_types(service, one.key.key_id) == expected for one in made)


def test_what_could_not_be_dealt_with_is_told_by_the_log_and_tried_again_by_itself(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(service)
    made = make_key(service)
    monkeypatch.setattr(exposures, "RETRY_SECONDS", 0.01)

    def away(*_: object) -> None:
        raise StoreUnavailable("others keep the lock")

    with monkeypatch.context() as patch, structlog.testing.capture_logs() as lines:
        patch.setattr(type(service.app._resources.store), "write", away)
        assert reason_for(service, made.api_key, sec_fetch_site="none") == "KEY_EXPOSED"
        assert not service.app._exposures.settle(0.05)
    dealt_with(service)

    assert {line["log_level"] for line in lines if line["event"] == "exposed keys not dealt with yet"} == {"warning"}
    assert reason_for(service, made.api_key) == "KEY_REVOKED"
    assert event_types(service, made.key.key_id) == ["key.created", "key.exposed", "key.revoked"]


def test_what_is_left_to_do_is_done_before_a_server_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exposures, "WAIT_SECONDS", 0.0)
    with running_service(tmp_path) as running:
        make_workspace(running)
        made = [make_key(running) for _ in range(3)]
        with other_writer(running):
            for one in made:
                authorize(running, one.api_key, sec_fetch_site="cross-site")
            assert [get_key(running, one.key.key_id).state for one in made] == [KEY_STATE_ACTIVE] * 3
    with running_service(tmp_path) as running:
        assert [get_key(running, one.key.key_id).state for one in made] == [KEY_STATE_REVOKED] * 3


@contextmanager
def other_writer(service: Service) -> Iterator[None]:
    """Have somebody else keep the write lock."""
    begun, over = threading.Event(), threading.Event()

    def write() -> None:
        with service.app._resources.store.write() as writer:
            begun.set()
            # Whoever does nothing for long is thrown out.
            while not over.wait(0.5):
                writer.head()

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        try:
            assert begun.wait(60)
            yield
        finally:
            over.set()
            writing.result()


def test_a_key_is_dealt_with_once_however_many_requests_it_arrives_with_at_the_same_moment(service: Service) -> None:
    make_workspace(service, exposure_policy=EXPOSURE_POLICY_SUSPEND)
    made = [make_key(service) for _ in range(3)]

    with ThreadPoolExecutor(24) as pool:
        reasons = list(
            pool.map(lambda number: reason_for(service, made[number % 3].api_key, sec_fetch_site="none"), range(120))
        )
    dealt_with(service)

    assert set(reasons) == {"KEY_EXPOSED"}
    for one in made:
        assert event_types(service, one.key.key_id) == ["key.created", "key.exposed", "key.suspended"]


def test_no_thread_that_decides_asks_the_store_about_exposed_keys(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_workspace(service)
    made = make_key(service)
    assert reason_for(service, made.api_key) == "PERMITTED"
    store, asked = type(service.app._resources.store), set()

    def noted(self: Any, ask: Any) -> Any:
        asked.add(threading.current_thread().name.rpartition("_")[0])
        return ask(self)

    for name in ("read", "write"):
        monkeypatch.setattr(store, name, partialmethod(noted, getattr(store, name)))
    authorize(service, made.api_key, sec_fetch_site="cross-site")
    dealt_with(service)

    assert "decisions" not in asked
    monkeypatch.undo()
    assert reason_for(service, made.api_key) == "KEY_REVOKED"


def test_however_many_exposed_keys_wait_for_a_writer_others_are_decided_about(service: Service) -> None:
    make_workspace(service)
    exposed, fine = [make_key(service) for _ in range(30)], make_key(service)
    with other_writer(service), ThreadPoolExecutor(30) as pool:
        asked = [pool.submit(reason_for, service, one.api_key, sec_fetch_site="cross-site") for one in exposed]
        assert [reason_for(service, fine.api_key) for _ in range(20)] == ["PERMITTED"] * 20
        # They are answered, too, before anything can be done about them.
        assert {one.result() for one in asked} == {"KEY_EXPOSED"}
        assert [get_key(service, one.key.key_id).state for one in exposed] == [KEY_STATE_ACTIVE] * 30
    dealt_with(service)

    assert {reason_for(service, one.api_key) for one in exposed} == {"KEY_REVOKED"}


DAY = timedelta(days=1)


class TestSuspicion:
    """A user agent alone, which anybody can fake, is told of and changes nothing."""

    def suspect(self, service: Service, api_key: str, version: int = 1) -> None:
        """Use a key with a user agent that was not seen before."""
        agent = BROWSER_AGENT.replace("126", str(version))
        assert reason_for(service, api_key, user_agent=agent) == "PERMITTED"
        dealt_with(service)

    def test_it_is_an_event_once_a_day_and_the_key_stays_as_it_is(self, grid: Service) -> None:
        made = make_key(grid)
        for version in range(3):
            self.suspect(grid, made.api_key, version)
        assert event_types(grid, made.key.key_id) == ["key.created", "key.exposure_suspected"]
        grid.clock.turn(DAY)
        for version in range(3, 6):
            self.suspect(grid, made.api_key, version)

        _, *suspected = events_of(grid, made.key.key_id)
        assert [event.type for event in suspected] == ["key.exposure_suspected"] * 2
        assert suspected[0].after["state"] == "active"
        assert "user agent" in suspected[0].reason
        assert get_key(grid, made.key.key_id) == made.key

    def test_another_process_does_not_tell_it_again(self, grid: Service) -> None:
        made = make_key(grid)
        self.suspect(grid, made.api_key)
        grid.app._exposures._told.clear()
        self.suspect(grid, made.api_key, 2)

        assert event_types(grid, made.key.key_id) == ["key.created", "key.exposure_suspected"]

    def test_the_new_secret_of_a_rotated_key_is_suspected_by_itself(self, grid: Service) -> None:
        made = make_key(grid)
        self.suspect(grid, made.api_key)
        self.suspect(grid, rotate(grid, made.key.key_id).api_key, 2)

        assert event_types(grid, made.key.key_id)[1:] == [
            "key.exposure_suspected",
            "key.rotated",
            "key.exposure_suspected",
        ]

    def test_a_key_that_is_denied_or_no_server_key_is_not_suspected(self, grid: Service) -> None:
        revoked, connect = make_key(grid), make_connect_key(grid)
        revoke(grid, revoked.key.key_id)
        assert reason_for(grid, revoked.api_key, user_agent=BROWSER_AGENT) == "KEY_REVOKED"
        assert (
            reason_for(grid, connect.api_key, permission="connect_links:create", user_agent=BROWSER_AGENT)
            == "PERMITTED"
        )
        dealt_with(grid)

        assert event_types(grid, revoked.key.key_id)[-1] == "key.revoked"
        assert event_types(grid, connect.key.key_id) == ["key.created"]

    def test_certainty_comes_through_a_suspicion(self, grid: Service) -> None:
        made = make_key(grid)
        self.suspect(grid, made.api_key)
        assert reason_for(grid, made.api_key, sec_fetch_site="cross-site") == "KEY_EXPOSED"
        dealt_with(grid)

        assert event_types(grid, made.key.key_id)[1:] == ["key.exposure_suspected", "key.exposed", "key.revoked"]
        assert reason_for(grid, made.api_key) == "KEY_REVOKED"


UNCLEAR = {
    "a page's own site": {"sec_fetch_site": "same-origin", "sec_fetch_mode": "cors", "user_agent": BROWSER_AGENT},
    "another host of its site": {"sec_fetch_site": "same-site", "origin": "https://shop.example"},
    "a navigation": {"sec_fetch_site": "none", "sec_fetch_mode": "navigate"},
    "an image of another site": {"sec_fetch_site": "cross-site", "sec_fetch_mode": "no-cors"},
}


@pytest.mark.parametrize("what", UNCLEAR)
def test_a_key_that_a_proxy_adds_to_what_a_browser_sent_is_denied_told_of_once_and_left_alive(
    grid: Service, what: str
) -> None:
    made = make_key(grid)
    for _ in range(3):
        assert reason_for(grid, made.api_key, **UNCLEAR[what]) == "KEY_EXPOSED"
        dealt_with(grid)

    _, event = events_of(grid, made.key.key_id)
    assert event.type == "key.exposure_suspected"
    assert "proxy" in event.reason
    assert get_key(grid, made.key.key_id) == made.key
    assert reason_for(grid, made.api_key) == "PERMITTED"
    assert reason_for(grid, made.api_key, sec_fetch_site="cross-site") == "KEY_EXPOSED"
    dealt_with(grid)
    assert reason_for(grid, made.api_key) == "KEY_REVOKED"


def test_a_suspicion_of_a_user_agent_does_not_keep_that_of_a_proxy_from_being_told(grid: Service) -> None:
    made = make_key(grid)
    for context in ({"user_agent": BROWSER_AGENT}, {"sec_fetch_site": "same-origin"}, {"user_agent": BROWSER_AGENT}):
        reason_for(grid, made.api_key, **context)
        dealt_with(grid)

    first, second = events_of(grid, made.key.key_id)[1:]
    assert ("user agent" in first.reason, "proxy" in second.reason) == (True, True)
