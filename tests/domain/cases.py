"""Questions with the facts that they are answered from, and how each check is made to fail."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network

from hypothesis import strategies as st

from server.domain.decision import Decision, Question, ask, decide
from server.domain.explanation import Explanation, explain
from server.domain.exposure import Context
from server.domain.kinds import TOKEN_KIND, KeyKind, Permission
from server.domain.model import Device, Generation, Key, KeyState
from server.domain.peppers import Pepper, Peppers
from server.domain.reasons import Reason
from server.domain.token import TokenKind, checksum
from tests.builders import (
    DEVICE_ID,
    MANUFACTURER,
    NOW,
    PEPPERS,
    REFERENCE_ID,
    WORKSPACE_ID,
    api_key_of,
    make_device,
    make_generation,
    make_key,
    make_token,
)

SECOND = timedelta(seconds=1)
BROWSER = Context(client_ip=ip_address("10.1.2.3"), sec_fetch_site="cross-site")
BACKEND = Context(client_ip=ip_address("10.1.2.3"), user_agent="Go-http-client/2.0")
BROWSER_AGENT = "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0"
OTHER_PEPPER = Pepper("pepper-2", bytes(range(1, 33)))

LIST, READ, COMMAND = Permission.DEVICES_LIST, Permission.DEVICES_READ, Permission.DEVICES_COMMAND
ABOUT_A_DEVICE = [READ, COMMAND]
ABOUT_NONE = [permission for permission in Permission if permission not in ABOUT_A_DEVICE]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A question and the facts that it is answered from."""

    api_key: str
    key: Key | None
    device: Device | None
    permission: Permission = READ
    context: Context = BACKEND

    def question(self) -> Question:
        device_id = DEVICE_ID if self.permission in ABOUT_A_DEVICE else ""
        return ask(self.api_key, self.permission.value, device_id, self.context)

    def decide(self, now: datetime = NOW, peppers: Peppers = PEPPERS) -> Decision:
        return decide(self.question(), self.key, self.device, peppers, now)

    def explain(self, now: datetime = NOW, peppers: Peppers = PEPPERS) -> Explanation:
        return explain(self.question(), self.api_key, self.key, self.device, peppers, now)

    def explain_by_id(self, now: datetime = NOW, peppers: Peppers = PEPPERS) -> Explanation:
        question = replace(self, api_key="").question()
        return explain(question, None, self.key, self.device, peppers, now)


def case_of(key: Key, *, permission: Permission = READ, generation: int | None = None) -> Case:
    return Case(api_key=api_key_of(key, generation), key=key, device=make_device(), permission=permission)


def with_key(case: Case, **changes: object) -> Case:
    assert case.key is not None
    return replace(case, key=replace(case.key, **changes))  # type: ignore[arg-type] # any field, by name


def under_another_kind(api_key: str, claimed: KeyKind) -> str:
    """Return a key with the prefix of a kind, its checksum right."""
    kind = TokenKind(api_key.rsplit("_", 2)[0])
    body = api_key.replace(kind.value, TOKEN_KIND[claimed].value)[:-6]
    return body + checksum(body)


FORM, SECRET, EXPOSURE, STATE, SECRET_AGE = "form", "secret", "exposure", "state", "age of the secret"

# For each reason: the check that gives it, and how to make a case fail that check.
Spoil = Callable[[Case], Case]
SPOILED: dict[Reason, tuple[str, Spoil]] = {
    Reason.KEY_MISSING: (FORM, lambda case: replace(case, api_key="")),
    Reason.KEY_MALFORMED: (FORM, lambda case: replace(case, api_key="txk_srv_")),
    Reason.KEY_UNKNOWN: (SECRET, lambda case: replace(case, key=None)),
    Reason.KEY_EXPOSED: (EXPOSURE, lambda case: replace(case, context=replace(case.context, sec_fetch_site="none"))),
    Reason.KEY_REVOKED: (STATE, lambda case: with_key(case, state=KeyState.REVOKED)),
    Reason.KEY_SUSPENDED: (STATE, lambda case: with_key(case, state=KeyState.SUSPENDED)),
    Reason.KEY_EXPIRED: ("expiry", lambda case: with_key(case, expire_time=NOW)),
    Reason.KEY_RETIRED: (SECRET_AGE, lambda case: with_key(case, generations=retired_and_new(case.key))),
    Reason.ADDRESS_NOT_PERMITTED: (
        "address",
        lambda case: with_key(case, allowed_networks=(ip_network("192.0.2.0/24"),)),
    ),
    Reason.PERMISSION_NOT_GRANTED: ("permission", lambda case: with_key(case, permissions=frozenset({LIST}))),
    Reason.DEVICE_NOT_FOUND: (
        "device",
        lambda case: replace(case, device=replace(case.device or make_device(), workspace_id="grid-two")),
    ),
    Reason.DEVICE_NOT_PERMITTED: (
        "device",
        lambda case: replace(case, device=replace(case.device or make_device(), reference_id="end-user-2")),
    ),
    Reason.MANUFACTURER_NOT_PERMITTED: (
        "manufacturer",
        lambda case: with_key(case, allowed_manufacturers=frozenset({"globex"})),
    ),
}
NOT_FOR = {
    KeyKind.SERVER: {Reason.DEVICE_NOT_PERMITTED},
    KeyKind.SCOPED: {Reason.DEVICE_NOT_FOUND, Reason.KEY_EXPOSED},
}
SPOILS = [(kind, reason) for kind in NOT_FOR for reason in SPOILED if reason not in NOT_FOR[kind]]


def retired_and_new(key: Key | None) -> tuple[Generation, ...]:
    assert key is not None
    return (
        make_generation(TOKEN_KIND[key.kind], key.key_id, 1, retire_time=NOW),
        make_generation(TOKEN_KIND[key.kind], key.key_id, 2),
    )


moments = st.integers(-5, 5).map(lambda seconds: NOW + seconds * SECOND)
contexts = st.builds(
    Context,
    client_ip=st.none() | st.sampled_from(["10.1.2.3", "192.0.2.1", "2001:db8::1"]).map(ip_address),
    user_agent=st.sampled_from(["", "Go-http-client/2.0", BROWSER_AGENT]),
    origin=st.sampled_from(["", "https://shop.example"]),
    sec_fetch_site=st.sampled_from(["", "cross-site", "same-origin", "elsewhere"]),
    sec_fetch_mode=st.sampled_from(["", "cors"]),
    sec_fetch_dest=st.sampled_from(["", "empty"]),
    sec_fetch_user=st.sampled_from(["", "?1", "?0"]),
)
devices = st.none() | st.builds(
    make_device,
    workspace_id=st.sampled_from([WORKSPACE_ID, "grid-two"]),
    reference_id=st.sampled_from([REFERENCE_ID, "end-user-2"]),
    manufacturer=st.sampled_from([MANUFACTURER, "globex", ""]),
)


@st.composite
def keys(draw: st.DrawFn) -> Key:
    """A key of any kind in any state, with one secret or two, the first of which has been replaced."""
    kind = draw(st.sampled_from(KeyKind))
    key = make_key(kind)
    if draw(st.booleans()):
        replaced = make_generation(TOKEN_KIND[kind], key.key_id, 1, retire_time=draw(moments))
        key = replace(key, generations=(replaced, make_generation(TOKEN_KIND[kind], key.key_id, 2)))
    state = draw(st.sampled_from([KeyState.ACTIVE, KeyState.SUSPENDED, KeyState.REVOKED]))
    return replace(
        key,
        state=state,
        suspend_time=draw(moments) if state is KeyState.SUSPENDED else None,
        revoke_time=draw(moments) if state is KeyState.REVOKED else None,
        expire_time=draw(st.none() | moments),
        permissions=draw(st.sampled_from([key.permissions, frozenset(Permission), frozenset({LIST})])),
        allowed_networks=draw(st.sampled_from([(), (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))])),
        allowed_manufacturers=draw(st.sampled_from([frozenset(), frozenset({MANUFACTURER}), frozenset({"solaredge"})])),
    )


def presentable(key: Key) -> st.SearchStrategy[str]:
    """What might be presented as a key: most often one of its secrets."""
    right = [api_key_of(key, generation.number) for generation in key.generations]
    wrong = [
        "",
        "txk_srv_",
        api_key_of(key, 99),
        right[0][:-1],
        *(under_another_kind(right[-1], kind) for kind in KeyKind),
        make_token(TokenKind.SERVICE, key.key_id),
        make_token(TokenKind.LINK, key.key_id),
    ]
    return st.sampled_from(right) | st.sampled_from(right) | st.sampled_from(wrong) | st.text(max_size=60)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Any question about a key that was presented, and any facts."""
    key = draw(keys())
    return Case(
        api_key=draw(presentable(key)),
        key=draw(st.sampled_from([key, key, key, None])),
        device=draw(devices),
        permission=draw(st.sampled_from(Permission)),
        context=draw(contexts),
    )
