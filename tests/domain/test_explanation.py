from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.decision import STEPS
from server.domain.errors import ErrorReason, Refusal
from server.domain.explanation import Explanation, Step, StepResult
from server.domain.exposure import Context
from server.domain.kinds import KeyKind, Permission
from server.domain.model import Key, KeyState
from server.domain.peppers import Peppers
from server.domain.reasons import Reason
from server.domain.token import TokenKind
from tests.builders import MANUFACTURER, NOW, PEPPER, api_key_of, make_device, make_key, make_token
from tests.domain.cases import (
    BROWSER_AGENT,
    LIST,
    OTHER_PEPPER,
    READ,
    SECOND,
    SPOILED,
    SPOILS,
    Case,
    case_of,
    cases,
    moments,
    retired_and_new,
    under_another_kind,
    with_key,
)

PASSED, FAILED, SKIPPED = StepResult.PASSED, StepResult.FAILED, StepResult.SKIPPED
NAMES = ["form", "secret", "exposure", "liveness", "address", "permission", "ownership", "manufacturer"]
AFTER_THE_SECRET = NAMES[2:]
DAY = timedelta(days=1)


def step_of(explanation: Explanation, name: str) -> Step:
    (found,) = [step for step in explanation.steps if step.name == name]
    return found


def results_of(explanation: Explanation) -> dict[str, StepResult]:
    return {step.name: step.result for step in explanation.steps}


def failures_of(explanation: Explanation) -> list[Reason | None]:
    return [step.reason for step in explanation.steps if step.result is FAILED]


def detail(case: Case, name: str, now: datetime = NOW) -> str:
    return step_of(case.explain(now), name).detail


# --- What holds for every question --------------------------------------------------------------------------------


@given(cases(), moments)
def test_what_is_explained_is_what_is_decided(case: Case, now: datetime) -> None:
    assert case.explain(now).decision == case.decide(now)


@given(cases(), moments)
def test_the_first_step_that_fails_gives_the_reason_and_where_none_does_all_is_permitted(
    case: Case, now: datetime
) -> None:
    explanation = case.explain(now)
    assert next(iter(failures_of(explanation)), Reason.PERMITTED) is explanation.decision.reason
    assert explanation.decision.allowed is (FAILED not in results_of(explanation).values())


@given(cases(), moments, st.booleans())
def test_every_step_is_there_in_the_order_in_which_it_is_taken_and_only_one_that_failed_has_a_reason(
    case: Case, now: datetime, by_id: bool
) -> None:
    explanation = case.explain_by_id(now) if by_id and case.key is not None else case.explain(now)
    assert [step.name for step in explanation.steps] == [name for name, _ in STEPS] == NAMES
    for step in explanation.steps:
        assert (step.reason is not None) is (step.result is FAILED)
        assert step.detail


@given(cases(), moments)
def test_a_step_is_skipped_only_where_no_step_before_has_found_what_it_looks_at(case: Case, now: datetime) -> None:
    results = results_of(case.explain(now))
    skipped = [name for name in NAMES if results[name] is SKIPPED]
    if results["form"] is FAILED:
        assert skipped == ["secret", *AFTER_THE_SECRET]
    elif results["secret"] is FAILED:
        assert skipped == AFTER_THE_SECRET
    else:
        assert skipped == []


@given(cases(), moments)
def test_by_its_id_a_key_gets_the_answer_that_its_newest_secret_would_get(case: Case, now: datetime) -> None:
    if case.key is None:
        return
    presented = replace(case, api_key=api_key_of(case.key))
    by_id, by_key = case.explain_by_id(now), presented.explain(now)
    assert by_id.decision == by_key.decision == presented.decide(now)
    assert by_id.decision.generation == case.key.generations[-1]
    assert [step.result for step in by_id.steps[:2]] == [SKIPPED, SKIPPED]
    assert by_id.steps[2:] == by_key.steps[2:]


@given(cases(), moments)
def test_no_detail_holds_a_secret_a_digest_or_what_a_header_says(case: Case, now: datetime) -> None:
    explanations = [case.explain(now)]
    # Noise of a few letters may stand in any sentence.
    hidden = {case.api_key} if len(case.api_key) > 7 else set()
    if case.key is not None:
        explanations.append(case.explain_by_id(now))
        for generation in case.key.generations:
            secret = api_key_of(case.key, generation.number).rsplit("_", 1)[-1]
            hidden |= {secret[start : start + 8] for start in range(len(secret) - 7)}
            hidden |= {generation.digest.hex(), str(generation.digest), generation.digest.hex()[:8]}
    context = case.context
    headers = {context.user_agent, context.origin, context.sec_fetch_site, context.sec_fetch_mode}
    hidden |= (headers | {context.sec_fetch_dest, context.sec_fetch_user}) - {""}
    for explanation in explanations:
        for step in explanation.steps:
            assert [word for word in hidden if word in step.detail] == []


# --- Together and apart -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "reason"), SPOILS)
def test_one_thing_that_is_wrong_fails_one_step(kind: KeyKind, reason: Reason) -> None:
    explanation = SPOILED[reason][1](case_of(make_key(kind))).explain()
    assert explanation.decision.reason is reason
    assert failures_of(explanation) == [reason]


def test_everything_in_the_way_is_seen_at_once() -> None:
    wrong = [
        Reason.KEY_EXPOSED,
        Reason.KEY_SUSPENDED,
        Reason.ADDRESS_NOT_PERMITTED,
        Reason.PERMISSION_NOT_GRANTED,
        Reason.DEVICE_NOT_FOUND,
        Reason.MANUFACTURER_NOT_PERMITTED,
    ]
    case = case_of(make_key())
    for reason in wrong:
        case = SPOILED[reason][1](case)
    explanation = case.explain()
    assert failures_of(explanation) == wrong
    assert explanation.decision == case.decide()
    assert list(results_of(explanation).values()) == [PASSED, PASSED] + 6 * [FAILED]


def test_a_later_step_adds_nothing_to_the_decision_of_an_earlier_one() -> None:
    case = SPOILED[Reason.KEY_EXPOSED][1](with_key(case_of(make_key()), expire_time=NOW + SECOND))
    explanation = case.explain()
    assert explanation.decision.reason is Reason.KEY_EXPOSED
    assert explanation.decision.valid_until is None
    assert step_of(explanation, "liveness").result is PASSED


@pytest.mark.parametrize("explain", [Case.explain, Case.explain_by_id], ids=["by key", "by id"])
def test_without_the_pepper_nothing_is_explained_as_nothing_is_decided(explain: Callable[..., Explanation]) -> None:
    with pytest.raises(Refusal) as refused:
        explain(case_of(make_key()), peppers=Peppers([OTHER_PEPPER]))
    assert refused.value.reason is ErrorReason.PEPPER_UNAVAILABLE


# --- What the words say -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("api_key", "words"),
    [
        pytest.param("", "nothing was presented", id="nothing"),
        pytest.param(
            make_token(TokenKind.SERVER, "ServerKey0000001"),
            "a txk_srv key with id ServerKey0000001, its checksum right",
            id="a key",
        ),
        pytest.param(
            make_token(TokenKind.SERVICE, "0" * 16),
            "a txk_svc token, which is no key of a customer",
            id="a caller's key",
        ),
        pytest.param(
            make_token(TokenKind.LINK, "0" * 16), "a txl token, which is no key of a customer", id="a link's token"
        ),
        pytest.param(
            make_token(TokenKind.SERVER, "ServerKey0000001")[:-1],
            "not of the form txk_{srv|con|scp}_ID_SECRET, or with a wrong checksum: "
            "mistyped, cut off, or something else",
            id="a key cut off",
        ),
    ],
)
def test_the_form_is_said_in_words(api_key: str, words: str) -> None:
    assert detail(replace(case_of(make_key()), api_key=api_key), "form") == words


def test_a_key_named_by_its_id_has_no_form_and_no_secret() -> None:
    steps = case_of(make_key()).explain_by_id().steps
    words = "the key was named by its id, and no secret presented"
    assert [(step.name, step.result, step.detail) for step in steps[:2]] == [
        ("form", SKIPPED, words),
        ("secret", SKIPPED, words),
    ]


def test_where_nothing_could_be_a_key_the_secret_is_not_looked_at_and_neither_is_the_rest() -> None:
    explanation = replace(case_of(make_key()), api_key="noise").explain()
    assert step_of(explanation, "secret").detail == "nothing was presented that could be a key"
    assert {step_of(explanation, name).detail for name in AFTER_THE_SECRET} == {"the key is not known"}


def test_a_right_secret_is_named_by_its_number() -> None:
    case = case_of(make_key(generations=retired_and_new(make_key())))
    assert detail(case, "secret") == "the whole secret is right: number 2 of the key"
    assert (
        detail(replace(case, api_key=api_key_of(make_key(), 1)), "secret")
        == "the whole secret is right: number 1 of the key"
    )


def test_a_secret_that_is_not_right_is_told_apart_from_a_key_that_is_not_there_and_from_another_kind() -> None:
    case = case_of(make_key(generations=retired_and_new(make_key())))
    wrong = replace(case, api_key=api_key_of(make_key(), 99))
    assert detail(wrong, "secret") == "the key exists, and this is none of its secrets (1, 2)"
    assert detail(replace(case, key=None), "secret") == "there is no key with this id"
    claimed = replace(case, api_key=under_another_kind(case.api_key, KeyKind.CONNECT))
    assert detail(claimed, "secret") == "the key with this id is a server key, which the prefix denies"
    # Whoever holds none of its secrets is still told one and the same.
    assert wrong.decide() == replace(case, key=None).decide() == claimed.decide()


@pytest.mark.parametrize(
    ("kind", "context", "words"),
    [
        pytest.param(KeyKind.SERVER, Context(), "signs of a browser: none, from nothing", id="nothing"),
        pytest.param(
            KeyKind.SERVER,
            Context(user_agent=BROWSER_AGENT),
            "signs of a browser: suspected, from User-Agent",
            id="a browser's agent",
        ),
        pytest.param(
            KeyKind.SERVER,
            Context(sec_fetch_site="none", sec_fetch_mode="cors", sec_fetch_dest="empty", sec_fetch_user="?1"),
            "signs of a browser: certain, from Sec-Fetch-Site, Sec-Fetch-Mode, Sec-Fetch-Dest, Sec-Fetch-User",
            id="a browser",
        ),
        pytest.param(
            KeyKind.SCOPED,
            Context(sec_fetch_site="none", origin="https://shop.example"),
            "signs of a browser: certain, from Sec-Fetch-Site, Origin; a scoped key may live in one",
            id="a scoped key in a browser",
        ),
        pytest.param(
            KeyKind.CONNECT,
            Context(),
            "signs of a browser: none, from nothing; a connect key may live in one",
            id="a connect key",
        ),
    ],
)
def test_the_signs_of_a_browser_are_weighed_and_the_headers_named(kind: KeyKind, context: Context, words: str) -> None:
    assert detail(replace(case_of(make_key(kind)), context=context), "exposure") == words


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        pytest.param({}, "the key is active", id="active"),
        pytest.param({"expire_time": NOW + DAY}, "the key is active until 2026-07-02T12:00:00Z", id="until"),
        pytest.param({"expire_time": NOW}, "the key is expired since 2026-07-01T12:00:00Z", id="expired"),
        pytest.param(
            {"state": KeyState.SUSPENDED, "suspend_time": NOW - DAY, "expire_time": NOW - SECOND},
            "the key is suspended since 2026-06-30T12:00:00Z",
            id="suspended, and past its expiry",
        ),
        pytest.param(
            {"state": KeyState.REVOKED, "revoke_time": NOW - SECOND},
            "the key is revoked since 2026-07-01T11:59:59Z",
            id="revoked",
        ),
    ],
)
def test_the_state_of_the_key_is_said_with_its_time(changes: dict[str, object], words: str) -> None:
    assert detail(with_key(case_of(make_key()), **changes), "liveness") == f"{words}; the secret is its newest"


def test_a_replaced_secret_is_said_to_end_and_then_to_have_ended() -> None:
    case = with_key(case_of(make_key()), generations=retired_and_new(make_key()))
    replaced = "the key is active; the secret was replaced, and its overlap"
    assert detail(case, "liveness", NOW - SECOND) == f"{replaced} ends at 2026-07-01T12:00:00Z"
    assert detail(case, "liveness") == f"{replaced} ended at 2026-07-01T12:00:00Z"


@pytest.mark.parametrize(
    ("networks", "client", "words"),
    [
        pytest.param([], "10.1.2.3", "10.1.2.3; any will do", id="anywhere"),
        pytest.param([], None, "an unknown address; any will do", id="anywhere, unknown"),
        pytest.param(["10.0.0.0/8"], "192.0.2.1", "192.0.2.1, against 10.0.0.0/8", id="elsewhere"),
        pytest.param(
            ["10.0.0.0/8", "2001:db8::/32"],
            None,
            "an unknown address, against 10.0.0.0/8, 2001:db8::/32",
            id="unknown where it matters",
        ),
    ],
)
def test_the_address_is_said_against_the_networks(networks: list[str], client: str | None, words: str) -> None:
    key = make_key(allowed_networks=tuple(ip_network(network) for network in networks))
    context = Context(client_ip=None if client is None else ip_address(client))
    assert detail(replace(case_of(key), context=context), "address") == words


@pytest.mark.parametrize(
    ("key", "wanted", "words"),
    [
        pytest.param(
            make_key(permissions=frozenset({LIST, READ})),
            Permission.DEVICES_COMMAND,
            "devices:command, against what the key holds: devices:list, devices:read",
            id="not granted",
        ),
        pytest.param(
            make_key(permissions=frozenset()), LIST, "devices:list, against what the key holds: nothing", id="nothing"
        ),
        pytest.param(
            make_key(KeyKind.CONNECT, permissions=frozenset(Permission)),
            LIST,
            "no connect key may ever hold devices:list",
            id="beyond the kind",
        ),
    ],
)
def test_the_permission_is_said_against_what_the_key_holds(key: Key, wanted: Permission, words: str) -> None:
    assert detail(case_of(key, permission=wanted), "permission") == words


def test_the_owner_of_the_device_is_said_against_the_keys() -> None:
    server, scoped = case_of(make_key()), case_of(make_key(KeyKind.SCOPED))
    theirs = make_device(workspace_id="grid-two", reference_id="end-user-2")
    of_theirs = "the device is of workspace grid-two, end user end-user-2"
    assert detail(replace(server, device=theirs), "ownership") == f"{of_theirs}; the key is of workspace grid-one"
    assert detail(replace(scoped, device=theirs), "ownership") == (
        f"{of_theirs}; the key is of workspace grid-one, end user end-user-1"
    )
    assert detail(replace(server, device=None), "ownership") == (
        "there is no such device; the key is of workspace grid-one"
    )
    assert detail(replace(server, permission=LIST), "ownership") == "devices:list is not about one device"


@pytest.mark.parametrize(
    ("allowed", "manufacturer", "words"),
    [
        pytest.param(set(), MANUFACTURER, "any will do", id="any"),
        pytest.param({"globex", "acme"}, MANUFACTURER, "acme, against acme, globex", id="one of two"),
        pytest.param({"globex"}, "", "an unknown manufacturer, against globex", id="unknown where it matters"),
        pytest.param({"globex"}, None, "no device, against globex", id="no device"),
    ],
)
def test_the_manufacturer_is_said_against_those_allowed(
    allowed: set[str], manufacturer: str | None, words: str
) -> None:
    key = make_key(allowed_manufacturers=frozenset(allowed))
    device = None if manufacturer is None else make_device(manufacturer=manufacturer)
    assert detail(replace(case_of(key), device=device), "manufacturer") == words


def test_a_key_made_under_an_older_pepper_is_explained() -> None:
    assert case_of(make_key()).explain(peppers=Peppers([OTHER_PEPPER, PEPPER])).decision.allowed
