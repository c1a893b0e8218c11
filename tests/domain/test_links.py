from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import KeyKind, Permission
from server.domain.links import (
    GENERATED_PREFIX,
    ConnectLinkState,
    cancel,
    check_completable,
    check_not_ended,
    check_redirect,
    check_unblocked,
    choose_reference_id,
    complete,
    registered_redirects,
    state_of,
    unseen,
)
from server.domain.model import ConnectLink, Key, KeyState, Workspace
from server.domain.validation import Fields
from tests.builders import NOW, REDIRECT_URI, make_connect_link, make_key, make_workspace

OF_WORKSPACE = "https://workspace.example/connected"
OF_KEY = "https://key.example/connected"
CONNECT = make_key(KeyKind.CONNECT, redirect_uris=(OF_KEY,))
SERVER = make_key()
WORKSPACE = make_workspace(redirect_uris=(OF_WORKSPACE,))
GENERATED = UUID("0198c3a0-7000-7000-8000-000000000001")


def test_a_connect_keys_links_go_where_the_key_says_and_a_server_keys_where_the_workspace_says() -> None:
    assert registered_redirects(CONNECT, WORKSPACE) == (OF_KEY,)
    assert registered_redirects(SERVER, WORKSPACE) == (OF_WORKSPACE,)


def test_a_server_keys_own_redirects_count_for_nothing() -> None:
    assert registered_redirects(make_key(redirect_uris=(OF_KEY,)), WORKSPACE) == (OF_WORKSPACE,)


@pytest.mark.parametrize(("key", "uri"), [(CONNECT, OF_KEY), (SERVER, OF_WORKSPACE)], ids=["connect", "server"])
def test_a_registered_redirect_may_be_named(key: Key, uri: str) -> None:
    check_redirect(uri, key, WORKSPACE)


@pytest.mark.parametrize(
    ("key", "uri", "where"),
    [
        pytest.param(CONNECT, OF_WORKSPACE, "with the connect key", id="the workspace's, with a connect key"),
        pytest.param(SERVER, OF_KEY, "with the workspace", id="a connect key's, with a server key"),
        pytest.param(CONNECT, OF_KEY + "/", "with the connect key", id="a slash more"),
        pytest.param(CONNECT, OF_KEY[:-1], "with the connect key", id="a letter less"),
        pytest.param(CONNECT, "", "with the connect key", id="none"),
    ],
)
def test_any_other_redirect_is_refused(key: Key, uri: str, where: str) -> None:
    with pytest.raises(Refusal, match=where) as refused:
        check_redirect(uri, key, WORKSPACE)
    assert refused.value.reason is ErrorReason.REDIRECT_URI_NOT_REGISTERED
    assert refused.value.metadata == {"key_id": key.key_id}


def test_a_server_key_may_name_the_end_user() -> None:
    assert choose_reference_id(SERVER, "end-user-7", GENERATED) == "end-user-7"


@pytest.mark.parametrize("kind", [KeyKind.CONNECT, KeyKind.SCOPED])
@pytest.mark.parametrize("named", ["end-user-7", f"texture-generated:{GENERATED}", " "])
def test_no_other_key_may_name_the_end_user(kind: KeyKind, named: str) -> None:
    with pytest.raises(Refusal) as refused:
        choose_reference_id(make_key(kind), named, GENERATED)
    assert refused.value.reason is ErrorReason.REFERENCE_ID_NOT_PERMITTED
    assert refused.value.metadata == {"key_id": make_key(kind).key_id}


@pytest.mark.parametrize("key", [CONNECT, SERVER], ids=["connect", "server"])
def test_where_none_is_named_the_end_user_is_made_up(key: Key) -> None:
    chosen = choose_reference_id(key, "", GENERATED)
    assert chosen == "texture-generated:0198c3a0-7000-7000-8000-000000000001"
    fields = Fields()
    fields.visible("reference_id", chosen)
    assert fields.violations == []


# --- Where a link stands ------------------------------------------------------------------------------------------

SECOND = timedelta(seconds=1)


LIVE, REVOKED = make_key(KeyKind.CONNECT), make_key(KeyKind.CONNECT, state=KeyState.REVOKED)
COMPLETED = {"complete_time": NOW - SECOND, "scoped_key_id": "ScopedKey0000001"}


@pytest.mark.parametrize(
    ("link", "state", "reason"),
    [
        pytest.param(
            make_connect_link(**COMPLETED),
            ConnectLinkState.COMPLETED,
            ErrorReason.CONNECT_LINK_COMPLETED,
            id="completed",
        ),
        pytest.param(
            make_connect_link(cancel_time=NOW - SECOND),
            ConnectLinkState.CANCELLED,
            ErrorReason.CONNECT_LINK_CANCELLED,
            id="cancelled",
        ),
        pytest.param(
            make_connect_link(expire_time=NOW),
            ConnectLinkState.EXPIRED,
            ErrorReason.CONNECT_LINK_EXPIRED,
            id="expired at this instant",
        ),
        pytest.param(
            make_connect_link(**COMPLETED, expire_time=NOW - SECOND),
            ConnectLinkState.COMPLETED,
            ErrorReason.CONNECT_LINK_COMPLETED,
            id="completed before it could expire",
        ),
    ],
)
@pytest.mark.parametrize("key", [LIVE, REVOKED], ids=["its key is live", "its key is revoked"])
def test_a_link_that_has_ended_says_how_whatever_its_key(
    link: ConnectLink, key: Key, state: ConnectLinkState, reason: ErrorReason
) -> None:
    assert state_of(link, key, make_workspace(), NOW) is state
    with pytest.raises(Refusal) as refused:
        check_completable(link, key, make_workspace(), NOW)
    assert refused.value.reason is reason


@pytest.mark.parametrize(
    ("key", "workspace"),
    [
        pytest.param(
            make_key(KeyKind.CONNECT, redirect_uris=(OF_KEY,)), make_workspace(), id="taken from the connect key"
        ),
        pytest.param(make_key(), make_workspace(redirect_uris=()), id="taken from the workspace"),
    ],
)
def test_a_link_whose_redirect_is_no_longer_registered_is_blocked(key: Key, workspace: Workspace) -> None:
    assert state_of(make_connect_link(), key, workspace, NOW) is ConnectLinkState.BLOCKED
    with pytest.raises(Refusal) as refused:
        check_completable(make_connect_link(), key, workspace, NOW)
    assert refused.value.reason is ErrorReason.REDIRECT_URI_NOT_REGISTERED


BLOCKING = {
    "key was revoked": (REVOKED, "KEY_REVOKED"),
    "key is suspended": (make_key(KeyKind.CONNECT, state=KeyState.SUSPENDED), "KEY_SUSPENDED"),
    "key has expired": (make_key(KeyKind.CONNECT, expire_time=NOW), "KEY_EXPIRED"),
    "key does not hold the permission": (make_key(KeyKind.CONNECT, permissions=frozenset()), "PERMISSION_NOT_GRANTED"),
}


@pytest.mark.parametrize("words", BLOCKING)
def test_a_link_whose_key_may_create_none_now_is_blocked(words: str) -> None:
    key, _ = BLOCKING[words]
    assert state_of(make_connect_link(), key, make_workspace(), NOW) is ConnectLinkState.BLOCKED
    with pytest.raises(Refusal, match=words) as refused:
        check_completable(make_connect_link(), key, make_workspace(), NOW)
    assert refused.value.reason is ErrorReason.CONNECT_LINK_KEY_NOT_LIVE
    assert refused.value.metadata["key_id"] == key.key_id


@pytest.mark.parametrize("words", BLOCKING)
def test_a_blocked_link_gives_the_deny_reason_that_the_contract_promises(words: str) -> None:
    key, deny_reason = BLOCKING[words]
    with pytest.raises(Refusal) as refused:
        check_unblocked(make_connect_link(), key, make_workspace(), NOW)
    assert refused.value.metadata.get("deny_reason") == deny_reason


@pytest.mark.parametrize(
    ("key", "now"),
    [
        pytest.param(make_key(KeyKind.CONNECT), NOW, id="a connect key"),
        pytest.param(make_key(), NOW, id="a server key"),
        pytest.param(make_key(), make_connect_link().expire_time - SECOND, id="the last second"),
    ],
)
def test_an_open_link_can_be_completed(key: Key, now: datetime) -> None:
    check_completable(make_connect_link(), key, make_workspace(), now)
    assert state_of(make_connect_link(), key, make_workspace(), now) is ConnectLinkState.OPEN


NARROW = make_key(permissions=frozenset({Permission.CONNECT_LINKS_CREATE}))


def test_a_narrow_server_key_may_not_name_an_end_user_whose_devices_it_could_not_reach_itself() -> None:
    with pytest.raises(Refusal) as refused:
        choose_reference_id(NARROW, "victim", UUID(int=1))
    assert refused.value.reason is ErrorReason.REFERENCE_ID_NOT_PERMITTED


def test_a_link_that_names_an_end_user_is_blocked_once_its_key_could_not_name_one() -> None:
    assert state_of(make_connect_link(), NARROW, make_workspace(), NOW) is ConnectLinkState.BLOCKED
    generated = make_connect_link(reference_id=f"{GENERATED_PREFIX}{UUID(int=1)}")
    assert state_of(generated, NARROW, make_workspace(), NOW) is ConnectLinkState.OPEN


@pytest.mark.parametrize(
    ("change", "expected"),
    [({}, True), ({"update_time": NOW}, False), ({"state": KeyState.SUSPENDED}, False)],
    ids=["as it was minted", "changed since", "suspended"],
)
def test_a_scoped_key_is_unseen_while_it_is_as_it_was_minted(change: dict[str, Any], expected: bool) -> None:
    minted = make_key(KeyKind.SCOPED, update_time=make_key().create_time)
    assert unseen(replace(minted, **change)) is expected


def test_a_blocked_link_opens_again_with_its_key() -> None:
    link, workspace = make_connect_link(), make_workspace()
    suspended = make_key(KeyKind.CONNECT, state=KeyState.SUSPENDED)
    assert state_of(link, suspended, workspace, NOW) is ConnectLinkState.BLOCKED
    assert state_of(link, make_key(KeyKind.CONNECT), workspace, NOW) is ConnectLinkState.OPEN


# --- How a link ends ----------------------------------------------------------------------------------------------


def test_a_completed_link_names_its_key_and_its_time() -> None:
    done = complete(make_connect_link(), "ScopedKey0000001", NOW)
    assert done == make_connect_link(complete_time=NOW, scoped_key_id="ScopedKey0000001")
    assert state_of(done, make_key(KeyKind.CONNECT), make_workspace(), NOW) is ConnectLinkState.COMPLETED


def test_a_repeated_completion_names_the_fresh_key_and_keeps_the_time() -> None:
    done = complete(make_connect_link(), "ScopedKey0000001", NOW)
    again = complete(done, "ScopedKey0000002", NOW + SECOND)
    assert again == make_connect_link(complete_time=NOW, scoped_key_id="ScopedKey0000002")


def test_a_cancelled_link_is_cancelled_for_good() -> None:
    cancelled = cancel(make_connect_link(), NOW)
    assert cancelled == make_connect_link(cancel_time=NOW)
    assert cancel(cancelled, NOW + SECOND) is cancelled
    with pytest.raises(Refusal) as refused:
        check_not_ended(cancelled)
    assert refused.value.reason is ErrorReason.CONNECT_LINK_CANCELLED


def test_an_expired_link_may_still_be_cancelled() -> None:
    link = make_connect_link(expire_time=NOW - SECOND)
    assert cancel(link, NOW).cancel_time == NOW


def test_a_completed_link_cannot_be_cancelled() -> None:
    with pytest.raises(Refusal) as refused:
        cancel(complete(make_connect_link(), "ScopedKey0000001", NOW), NOW)
    assert refused.value.reason is ErrorReason.CONNECT_LINK_COMPLETED


def test_a_link_that_has_not_ended_may_go_on() -> None:
    check_not_ended(make_connect_link(expire_time=NOW - SECOND))
    check_unblocked(make_connect_link(redirect_uri=REDIRECT_URI), make_key(KeyKind.CONNECT), make_workspace(), NOW)
