from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.decision import (
    STEPS,
    Decision,
    DeviceScope,
    Evaluation,
    Presented,
    ask,
    find_generation,
    present,
)
from server.domain.errors import ErrorReason, Refusal
from server.domain.exposure import Context
from server.domain.kinds import KeyKind, Permission
from server.domain.model import Generation, Key, KeyState
from server.domain.peppers import Peppers
from server.domain.reasons import Reason
from server.domain.token import Token, TokenKind, mint, parse
from tests.builders import (
    DEVICE_ID,
    MANUFACTURER,
    NOW,
    PEPPER,
    PEPPERS,
    REFERENCE_ID,
    WORKSPACE_ID,
    api_key_of,
    make_device,
    make_generation,
    make_key,
    make_token,
)
from tests.domain.cases import (
    ABOUT_A_DEVICE,
    ABOUT_NONE,
    BACKEND,
    BROWSER,
    BROWSER_AGENT,
    COMMAND,
    FORM,
    LIST,
    NOT_FOR,
    OTHER_PEPPER,
    READ,
    SECOND,
    SECRET,
    SPOILED,
    SPOILS,
    Case,
    case_of,
    moments,
    retired_and_new,
    under_another_kind,
    with_key,
)

# What each kind may do at most, written out once more.
MOST = {
    KeyKind.SERVER: set(Permission),
    KeyKind.CONNECT: {Permission.CONNECT_LINKS_CREATE},
    KeyKind.SCOPED: {LIST, READ, COMMAND},
}


# --- What was presented -------------------------------------------------------------------------------------------


def test_nothing_at_all_is_a_missing_key() -> None:
    assert present("") == Presented(None, Reason.KEY_MISSING)


@pytest.mark.parametrize(
    "api_key",
    [
        pytest.param(" ", id="a space"),
        pytest.param("\0", id="a zero byte"),
        pytest.param("secret", id="a word"),
        pytest.param("Bearer " + api_key_of(make_key()), id="a header's value"),
        pytest.param(api_key_of(make_key()) + " ", id="a key and a space"),
        pytest.param(api_key_of(make_key())[:-1] + "-", id="a key with a wrong end"),
        pytest.param("txk_srv_" * 1250, id="10 kB of prefixes"),
        pytest.param("\N{SNOWMAN}" * 10000, id="10,000 snowmen"),
        pytest.param("\ud800", id="half a surrogate pair"),
        pytest.param(mint(TokenKind.LINK, "0" * 16).text, id="a link's token"),
        pytest.param(mint(TokenKind.SERVICE, "0" * 16).text, id="the key of an internal service"),
    ],
)
def test_what_is_no_customers_key_is_malformed(api_key: str) -> None:
    assert present(api_key) == Presented(None, Reason.KEY_MALFORMED)


@given(st.text(min_size=1, max_size=300))
def test_noise_is_malformed_and_never_an_error(noise: str) -> None:
    assert present(noise) == Presented(None, Reason.KEY_MALFORMED)
    assert replace(case_of(make_key()), api_key=noise).decide() == Decision(reason=Reason.KEY_MALFORMED)


@pytest.mark.parametrize("kind", KeyKind)
def test_the_key_of_a_customer_is_well_formed(kind: KeyKind) -> None:
    text = api_key_of(make_key(kind))
    assert present(text) == Presented(parse(text), None)
    assert present(text).token is not None


# --- The question -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("permission", ["", "devices:write", "DEVICES_READ", "devices:read ", "devices"])
def test_an_unknown_permission_is_the_calling_services_fault(permission: str) -> None:
    with pytest.raises(Refusal, match="must be one of devices:list, devices:read") as refused:
        ask("", permission, "", BACKEND)
    assert refused.value.reason is ErrorReason.FIELD_INVALID
    assert [violation.field for violation in refused.value.violations] == ["permission"]


@pytest.mark.parametrize("permission", Permission)
def test_a_device_is_named_where_one_is_needed_and_nowhere_else(permission: Permission) -> None:
    right, wrong = (DEVICE_ID, "") if permission in ABOUT_A_DEVICE else ("", DEVICE_ID)
    question = ask("", permission.value, right, BACKEND)
    assert (question.permission, question.device_id, question.context) == (permission, right, BACKEND)
    with pytest.raises(Refusal, match=permission.value) as refused:
        ask("", permission.value, wrong, BACKEND)
    assert refused.value.reason is ErrorReason.FIELD_INVALID
    assert [violation.field for violation in refused.value.violations] == ["device_id"]


def test_the_representation_of_a_question_hides_the_key() -> None:
    api_key = api_key_of(make_key())
    assert api_key[-38:] not in repr(ask(api_key, READ.value, DEVICE_ID, BACKEND))


# --- The secret ---------------------------------------------------------------------------------------------------


def generations_of(*peppers: Peppers) -> tuple[Generation, ...]:
    return tuple(
        make_generation(TokenKind.SERVER, "0" * 16, number, peppers=theirs)
        for number, theirs in enumerate(peppers, start=1)
    )


def token_of(number: int) -> Token:
    token = parse(make_token(TokenKind.SERVER, "0" * 16, number))
    assert token is not None
    return token


@pytest.mark.parametrize("number", [1, 2, 3])
def test_the_generation_whose_secret_was_presented_is_found(number: int) -> None:
    generations = generations_of(PEPPERS, PEPPERS, PEPPERS)
    assert find_generation(token_of(number), generations, PEPPERS, NOW) == generations[number - 1]


def test_a_secret_of_no_generation_is_not_found() -> None:
    assert find_generation(token_of(3), generations_of(PEPPERS, PEPPERS), PEPPERS, NOW) is None
    assert find_generation(token_of(1), (), PEPPERS, NOW) is None


@pytest.mark.parametrize("missing", [0, 1])
def test_a_generation_whose_pepper_is_missing_does_not_hide_one_that_matches(missing: int) -> None:
    theirs = [PEPPERS, PEPPERS]
    theirs[missing] = Peppers([OTHER_PEPPER])
    generations = generations_of(*theirs)
    assert find_generation(token_of(2 - missing), generations, PEPPERS, NOW) == generations[1 - missing]


@pytest.mark.parametrize("missing", [0, 1])
def test_where_one_generation_cannot_be_compared_no_match_among_the_rest_is_no_answer(missing: int) -> None:
    theirs = [PEPPERS, PEPPERS]
    theirs[missing] = Peppers([OTHER_PEPPER])
    with pytest.raises(Refusal) as refused:
        find_generation(token_of(3), generations_of(*theirs), PEPPERS, NOW)
    assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE


@pytest.mark.parametrize("number", [1, 3], ids=["the retired secret itself", "a secret of no generation"])
def test_a_pepper_may_be_taken_away_once_only_retired_generations_need_it(number: int) -> None:
    retiring, in_force = generations_of(Peppers([OTHER_PEPPER]), PEPPERS)
    generations = (replace(retiring, retire_time=NOW), in_force)
    assert find_generation(token_of(2), generations, PEPPERS, NOW) == in_force
    assert find_generation(token_of(number), generations, PEPPERS, NOW) is None
    with pytest.raises(Refusal) as refused:
        find_generation(token_of(number), generations, PEPPERS, NOW - SECOND)
    assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE


def test_a_retired_generation_whose_pepper_is_missing_does_not_excuse_one_in_force() -> None:
    missing = Peppers([OTHER_PEPPER])
    retired, in_force = generations_of(missing, missing)
    for generations in ((replace(retired, retire_time=NOW), in_force), (in_force, replace(retired, retire_time=NOW))):
        with pytest.raises(Refusal) as refused:
            find_generation(token_of(2), generations, PEPPERS, NOW)
        assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE


def test_a_decision_without_the_pepper_is_an_error_and_no_denial() -> None:
    with pytest.raises(Refusal) as refused:
        case_of(make_key()).decide(peppers=Peppers([OTHER_PEPPER]))
    assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE


def test_a_key_made_under_an_older_pepper_is_recognised() -> None:
    assert case_of(make_key()).decide(peppers=Peppers([OTHER_PEPPER, PEPPER])).allowed


def test_an_unknown_id_and_a_wrong_secret_get_the_same_answer() -> None:
    key = make_key()
    unknown = Case(api_key=api_key_of(key), key=None, device=make_device()).decide()
    wrong = replace(case_of(key), api_key=api_key_of(key, 99)).decide()
    assert unknown == wrong == Decision(reason=Reason.KEY_UNKNOWN)


@pytest.mark.parametrize("kind", KeyKind)
@pytest.mark.parametrize("claimed", KeyKind)
def test_a_secret_presented_under_another_kind_is_unknown(kind: KeyKind, claimed: KeyKind) -> None:
    key = make_key(kind)
    case = replace(case_of(key), api_key=under_another_kind(api_key_of(key), claimed))
    assert (case.decide().reason is Reason.KEY_UNKNOWN) is (claimed is not kind)


# --- The order of the checks --------------------------------------------------------------------------------------


def spoil(kind: KeyKind, reasons: list[Reason]) -> Decision:
    """Decide a case that fails the checks of all these reasons. The last is spoiled first: it needs a key."""
    case = case_of(make_key(kind))
    for reason in sorted(reasons, key=list(Reason).index, reverse=True):
        case = SPOILED[reason][1](case)
    return case.decide()


def possible_together(reasons: tuple[Reason, ...]) -> bool:
    checks = [SPOILED[reason][0] for reason in reasons]
    return len(set(checks)) == len(checks)


PAIRS = [
    pytest.param(kind, earlier, later, id=f"{kind.value}: {earlier.name} before {later.name}")
    for kind in NOT_FOR
    for earlier, later in combinations([reason for of, reason in SPOILS if of is kind], 2)
    if possible_together((earlier, later))
]


def test_every_reason_but_permitted_can_be_brought_about() -> None:
    assert set(SPOILED) == set(Reason) - {Reason.PERMITTED}


@pytest.mark.parametrize("kind", NOT_FOR)
def test_a_case_that_fails_nothing_is_permitted(kind: KeyKind) -> None:
    assert spoil(kind, []).reason is Reason.PERMITTED
    assert spoil(kind, []).allowed


@pytest.mark.parametrize(("kind", "reason"), SPOILS)
def test_a_case_that_fails_one_check_is_denied_for_that(kind: KeyKind, reason: Reason) -> None:
    decision = spoil(kind, [reason])
    assert decision.reason is reason
    assert not decision.allowed


@pytest.mark.parametrize(("kind", "earlier", "later"), PAIRS)
def test_of_two_failed_checks_the_earlier_decides(kind: KeyKind, earlier: Reason, later: Reason) -> None:
    assert spoil(kind, [later, earlier]).reason is earlier


@given(st.sampled_from(sorted(NOT_FOR, key=str)), st.data())
def test_of_any_number_of_failed_checks_the_earliest_decides(kind: KeyKind, data: st.DataObject) -> None:
    reasons = data.draw(
        st.lists(
            st.sampled_from([reason for of, reason in SPOILS if of is kind]),
            min_size=1,
            unique_by=lambda reason: SPOILED[reason][0],
        )
    )
    assert spoil(kind, reasons).reason is min(reasons, key=list(Reason).index)


def test_the_steps_are_taken_in_the_order_of_the_design() -> None:
    assert [name for name, _ in STEPS] == [
        "form",
        "secret",
        "exposure",
        "liveness",
        "address",
        "permission",
        "ownership",
        "manufacturer",
    ]


def test_what_is_said_of_an_unproven_key_is_the_reason_and_nothing_else() -> None:
    for reason in (Reason.KEY_MISSING, Reason.KEY_MALFORMED, Reason.KEY_UNKNOWN):
        assert spoil(KeyKind.SERVER, [reason]) == Decision(reason=reason)


@pytest.mark.parametrize(
    ("kind", "reason"), [(kind, reason) for kind, reason in SPOILS if SPOILED[reason][0] not in (FORM, SECRET)]
)
def test_a_denial_of_a_proven_key_names_the_key_and_the_secret(kind: KeyKind, reason: Reason) -> None:
    decision = spoil(kind, [reason])
    assert decision.key is not None
    assert decision.key.key_id == make_key(kind).key_id
    assert decision.generation == decision.key.generations[0]
    assert decision.device_scope is None


# --- Exposure -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [KeyKind.CONNECT, KeyKind.SCOPED])
def test_connect_and_scoped_keys_live_in_browsers(kind: KeyKind) -> None:
    permission = Permission.CONNECT_LINKS_CREATE if kind is KeyKind.CONNECT else READ
    assert replace(case_of(make_key(kind), permission=permission), context=BROWSER).decide().allowed


def test_a_server_key_is_not_denied_on_a_mere_suspicion() -> None:
    assert replace(case_of(make_key()), context=Context(user_agent=BROWSER_AGENT)).decide().allowed


def test_a_wrong_secret_from_a_browser_is_no_leak() -> None:
    case = replace(case_of(make_key()), api_key=api_key_of(make_key(), 99), context=BROWSER)
    assert case.decide().reason is Reason.KEY_UNKNOWN


# --- Time ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expire", "retire", "valid_until"),
    [
        pytest.param(None, None, None, id="nothing ends"),
        pytest.param(2, None, 2, id="an expiry"),
        pytest.param(None, 2, 2, id="an overlap"),
        pytest.param(2, 3, 2, id="an expiry before the overlap ends"),
        pytest.param(3, 2, 2, id="an expiry after the overlap ends"),
    ],
)
def test_a_decision_is_valid_until_the_first_thing_ends(
    expire: int | None, retire: int | None, valid_until: int | None
) -> None:
    def moment(seconds: int | None) -> datetime | None:
        return None if seconds is None else NOW + seconds * SECOND

    key = make_key(expire_time=moment(expire))
    generation = replace(key.generations[0], retire_time=moment(retire))
    decision = case_of(replace(key, generations=(generation,))).decide()
    assert decision.allowed
    assert decision.valid_until == moment(valid_until)


@given(
    st.sampled_from([KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.REVOKED]),
    st.none() | moments,
    st.none() | moments,
    st.lists(st.sampled_from(sorted(set(SPOILED) - {Reason.KEY_EXPIRED, Reason.KEY_RETIRED}, key=str)), max_size=1),
    st.integers(0, 12),
)
def test_time_alone_changes_no_decision_before_the_instant_that_it_names(
    state: KeyState, expire: datetime | None, retire: datetime | None, spoiled: list[Reason], later: int
) -> None:
    key = make_key(state=state, expire_time=expire)
    case = case_of(replace(key, generations=(replace(key.generations[0], retire_time=retire),)))
    for reason in spoiled:
        case = SPOILED[reason][1](case)
    first, then = case.decide(), case.decide(NOW + later * SECOND)
    if first.valid_until is None:
        assert then == first
    elif NOW + later * SECOND < first.valid_until:
        assert first.valid_until > NOW
        assert then == first
    else:
        assert not then.allowed


@given(moments, moments)
def test_a_permission_ends_at_the_instant_that_the_decision_names_and_not_later(
    expire: datetime, retire: datetime
) -> None:
    key = make_key(expire_time=expire)
    case = case_of(replace(key, generations=(replace(key.generations[0], retire_time=retire),)))
    valid_until = case.decide(NOW - 6 * SECOND).valid_until
    assert valid_until == min(expire, retire)
    assert case.decide(valid_until - timedelta(microseconds=1)).allowed
    assert not case.decide(valid_until).allowed


def test_a_retired_secret_of_a_key_that_will_expire_is_called_expired_from_then_on() -> None:
    case = with_key(case_of(make_key()), expire_time=NOW + SECOND)
    case = with_key(case, generations=retired_and_new(case.key))
    assert case.decide().reason is Reason.KEY_RETIRED
    assert case.decide().valid_until == NOW + SECOND
    assert case.decide(NOW + SECOND).reason is Reason.KEY_EXPIRED
    assert case.decide(NOW + SECOND).valid_until is None


def test_the_new_secret_works_while_the_old_one_runs_out_and_after() -> None:
    key = make_key()
    key = replace(key, generations=retired_and_new(key))
    assert case_of(key, generation=2).decide(NOW - SECOND).allowed
    assert case_of(key, generation=1).decide(NOW - SECOND).allowed
    assert case_of(key, generation=2).decide().allowed
    assert case_of(key, generation=1).decide().reason is Reason.KEY_RETIRED


# --- Addresses ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("networks", "client", "allowed"),
    [
        pytest.param([], None, True, id="anywhere, unknown"),
        pytest.param([], "203.0.113.7", True, id="anywhere"),
        pytest.param(["10.0.0.0/8"], "10.255.255.255", True, id="the last address of the network"),
        pytest.param(["10.0.0.0/8"], "11.0.0.0", False, id="one past the network"),
        pytest.param(["10.0.0.0/8"], None, False, id="unknown where it matters"),
        pytest.param(["10.0.0.0/8", "192.0.2.0/24"], "192.0.2.1", True, id="the second network"),
        pytest.param(["2001:db8::/32"], "2001:db8::1", True, id="IPv6"),
        pytest.param(["0.0.0.0/0"], "2001:db8::1", False, id="IPv6 is not within all of IPv4"),
        pytest.param(["::/0"], "10.0.0.1", False, id="IPv4 is not within all of IPv6"),
        pytest.param(["0.0.0.0/0", "::/0"], None, False, id="unknown where everywhere is allowed by name"),
    ],
)
def test_a_restricted_key_works_from_its_networks_only(networks: list[str], client: str | None, allowed: bool) -> None:
    key = make_key(allowed_networks=tuple(ip_network(network) for network in networks))
    context = Context(client_ip=None if client is None else ip_address(client))
    decision = replace(case_of(key), context=context).decide()
    assert decision.reason is (Reason.PERMITTED if allowed else Reason.ADDRESS_NOT_PERMITTED)


# --- Permissions --------------------------------------------------------------------------------------------------


@given(st.sampled_from(KeyKind), st.frozensets(st.sampled_from(Permission)), st.sampled_from(Permission))
def test_no_key_is_permitted_more_than_its_kind_allows_whatever_its_record_says(
    kind: KeyKind, granted: frozenset[Permission], permission: Permission
) -> None:
    decision = case_of(make_key(kind, permissions=granted), permission=permission).decide()
    if permission in granted and permission in MOST[kind]:
        assert decision.reason is Reason.PERMITTED
        assert decision.missing_permission is None
    else:
        assert decision.reason is Reason.PERMISSION_NOT_GRANTED
        assert decision.missing_permission is permission


@pytest.mark.parametrize(("kind", "reason"), SPOILS)
def test_a_permission_is_called_missing_only_where_that_is_the_reason(kind: KeyKind, reason: Reason) -> None:
    missing = spoil(kind, [reason]).missing_permission
    assert missing is (READ if reason is Reason.PERMISSION_NOT_GRANTED else None)


# --- Devices ------------------------------------------------------------------------------------------------------


@given(
    st.sampled_from([WORKSPACE_ID, "grid-two"]),
    st.sampled_from([REFERENCE_ID, "end-user-2", ""]),
    st.sampled_from([MANUFACTURER, "globex", ""]),
    st.sampled_from([READ, COMMAND]),
)
def test_a_scoped_key_reaches_the_devices_of_its_own_end_user_and_no_other(
    workspace_id: str, reference_id: str, manufacturer: str, permission: Permission
) -> None:
    device = make_device(workspace_id=workspace_id, reference_id=reference_id, manufacturer=manufacturer)
    decision = replace(case_of(make_key(KeyKind.SCOPED), permission=permission), device=device).decide()
    mine = (workspace_id, reference_id) == (WORKSPACE_ID, REFERENCE_ID)
    assert decision.reason is (Reason.PERMITTED if mine else Reason.DEVICE_NOT_PERMITTED)


def test_a_scoped_key_cannot_tell_anothers_device_from_one_that_does_not_exist() -> None:
    case = case_of(make_key(KeyKind.SCOPED))
    absent = replace(case, device=None).decide()
    assert absent.reason is Reason.DEVICE_NOT_PERMITTED
    for others in (make_device(reference_id="end-user-2"), make_device(workspace_id="grid-two")):
        assert replace(case, device=others).decide() == absent


def test_a_scoped_key_without_an_end_user_reaches_nothing() -> None:
    case = case_of(make_key(KeyKind.SCOPED, reference_id=None))
    for reference_id in (REFERENCE_ID, "", "None"):
        device = make_device(reference_id=reference_id)
        assert replace(case, device=device).decide().reason is Reason.DEVICE_NOT_PERMITTED


def test_a_server_key_reaches_the_devices_of_every_end_user_of_its_workspace_and_no_other() -> None:
    case = case_of(make_key())
    assert replace(case, device=make_device(reference_id="end-user-2")).decide().allowed
    absent = replace(case, device=None).decide()
    assert absent.reason is Reason.DEVICE_NOT_FOUND
    assert replace(case, device=make_device(workspace_id="grid-two")).decide() == absent


@pytest.mark.parametrize("kind", [KeyKind.SERVER, KeyKind.SCOPED])
@pytest.mark.parametrize(
    ("allowed", "manufacturer", "reason"),
    [
        pytest.param(set(), "acme", Reason.PERMITTED, id="any maker"),
        pytest.param(set(), "", Reason.PERMITTED, id="any maker, unknown"),
        pytest.param({"acme", "globex"}, "acme", Reason.PERMITTED, id="one of two"),
        pytest.param({"globex"}, "acme", Reason.MANUFACTURER_NOT_PERMITTED, id="another"),
        pytest.param({"acme"}, "", Reason.MANUFACTURER_NOT_PERMITTED, id="unknown where it matters"),
        pytest.param({"acme"}, "ACME", Reason.MANUFACTURER_NOT_PERMITTED, id="another spelling"),
    ],
)
def test_a_restricted_key_reaches_the_devices_of_its_makers_only(
    kind: KeyKind, allowed: set[str], manufacturer: str, reason: Reason
) -> None:
    key = make_key(kind, allowed_manufacturers=frozenset(allowed))
    assert replace(case_of(key), device=make_device(manufacturer=manufacturer)).decide().reason is reason


@pytest.mark.parametrize("permission", ABOUT_NONE)
def test_what_is_about_no_device_does_not_depend_on_one(permission: Permission) -> None:
    key = make_key(allowed_manufacturers=frozenset({"globex"}))
    for device in (None, make_device(), make_device(workspace_id="grid-two")):
        assert replace(case_of(key, permission=permission), device=device).decide().allowed


# --- Lists --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "scope"),
    [
        pytest.param(make_key(), DeviceScope(WORKSPACE_ID, None, frozenset()), id="a server key: the workspace"),
        pytest.param(
            make_key(KeyKind.SCOPED),
            DeviceScope(WORKSPACE_ID, REFERENCE_ID, frozenset()),
            id="a scoped key: its end user",
        ),
        pytest.param(
            make_key(allowed_manufacturers=frozenset({"acme"})),
            DeviceScope(WORKSPACE_ID, None, frozenset({"acme"})),
            id="a restricted key: its makers",
        ),
    ],
)
def test_permission_to_list_comes_with_what_the_list_may_hold(key: Key, scope: DeviceScope) -> None:
    assert case_of(key, permission=LIST).decide().device_scope == scope


@pytest.mark.parametrize("permission", [permission for permission in Permission if permission is not LIST])
def test_other_permissions_come_with_no_scope(permission: Permission) -> None:
    decision = case_of(make_key(), permission=permission).decide()
    assert decision.allowed
    assert decision.device_scope is None


def test_a_list_that_is_denied_has_no_scope() -> None:
    decision = replace(case_of(make_key(), permission=LIST), context=BROWSER).decide()
    assert decision.reason is Reason.KEY_EXPOSED
    assert decision.device_scope is None


# --- Standing alone -----------------------------------------------------------------------------------------------


def test_a_step_taken_by_itself_does_not_trust_that_the_form_was_checked() -> None:
    question = ask("", READ.value, DEVICE_ID, BACKEND)
    assert Evaluation(question, make_key(), make_device(), PEPPERS, NOW).secret() is Reason.KEY_UNKNOWN


def test_the_representation_of_a_decision_shows_no_digest() -> None:
    key = make_key()
    shown = repr(case_of(key).decide())
    assert "digest" not in shown
    assert api_key_of(key)[-38:] not in shown
