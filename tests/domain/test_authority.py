from __future__ import annotations

from datetime import timedelta
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.domain.authority import Authority, authority_of, check_actor, check_within, excess
from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import KeyKind, Permission
from server.domain.model import Key, KeyState, Network
from tests.builders import NOW, make_key

LIST, READ, MANAGE = Permission.DEVICES_LIST, Permission.DEVICES_READ, Permission.KEYS_MANAGE
UNLIMITED = Authority(frozenset(Permission), (), frozenset(), None)


def networks(*texts: str) -> tuple[Network, ...]:
    return tuple(ip_network(text) for text in texts)


def limited(
    *,
    permissions: frozenset[Permission] = frozenset(Permission),
    within: tuple[Network, ...] = (),
    manufacturers: tuple[str, ...] = (),
    days: int | None = None,
) -> Authority:
    expire_time = None if days is None else NOW + timedelta(days=days)
    return Authority(permissions, within, frozenset(manufacturers), expire_time)


# A small world, in which one network often lies within another.
some_networks = st.sampled_from(
    networks(
        "0.0.0.0/0",
        "10.0.0.0/8",
        "10.1.0.0/16",
        "10.1.2.0/24",
        "10.1.2.3/32",
        "192.168.0.0/16",
        "::/0",
        "2001:db8::/32",
        "2001:db8:1::/48",
        "2001:db8:1::1/128",
        "::ffff:10.0.0.0/104",
    )
)
authorities = st.builds(
    limited,
    permissions=st.frozensets(st.sampled_from(Permission)),
    within=st.lists(some_networks, max_size=3, unique=True).map(tuple),
    manufacturers=st.lists(st.sampled_from(["acme", "globex", "initech"]), max_size=3).map(tuple),
    days=st.none() | st.integers(1, 4),
)


@given(authorities)
def test_nothing_goes_beyond_itself(authority: Authority) -> None:
    assert excess(authority, authority) == ()


@given(authorities)
def test_nothing_goes_beyond_no_limits_at_all(authority: Authority) -> None:
    assert excess(authority, UNLIMITED) == ()


@given(authorities, authorities, authorities)
def test_what_stays_within_a_second_stays_within_a_third_that_holds_the_second(
    one: Authority, two: Authority, three: Authority
) -> None:
    beyond = set(excess(one, two)) | set(excess(two, three))
    assert set(excess(one, three)) <= beyond


def test_a_chain_of_three_real_restrictions_stays_within() -> None:
    whole = limited(within=networks("10.0.0.0/8", "2001:db8::/32"), manufacturers=("acme", "globex"), days=3)
    half = limited(within=networks("10.1.0.0/16", "2001:db8:1::/48"), manufacturers=("acme",), days=2)
    least = limited(permissions=frozenset({READ}), within=networks("10.1.2.3/32"), manufacturers=("acme",), days=1)
    assert excess(half, whole) == excess(least, half) == excess(least, whole) == ()
    assert excess(whole, half) == ("allowed_cidrs", "allowed_manufacturers", "expire_time")
    assert excess(half, least) == ("permissions", "allowed_cidrs", "expire_time")


@given(authorities, authorities, st.data())
def test_in_a_part_that_is_not_named_the_candidate_reaches_nothing_that_the_holder_does_not(
    candidate: Authority, holder: Authority, data: st.DataObject
) -> None:
    beyond = excess(candidate, holder)
    network = data.draw(st.sampled_from(candidate.networks or networks("0.0.0.0/0", "::/0")))
    address = network[data.draw(st.integers(0, network.num_addresses - 1))]
    maker = data.draw(st.sampled_from(sorted(candidate.manufacturers) or ["acme", "hooli", ""]))
    last = candidate.expire_time or NOW + timedelta(days=36500)
    assert "permissions" in beyond or candidate.permissions <= holder.permissions
    assert "allowed_cidrs" in beyond or not holder.networks or any(address in theirs for theirs in holder.networks)
    assert "allowed_manufacturers" in beyond or not holder.manufacturers or maker in holder.manufacturers
    assert "expire_time" in beyond or holder.expire_time is None or last <= holder.expire_time


@pytest.mark.parametrize(
    ("candidate", "holder", "beyond"),
    [
        pytest.param(
            limited(permissions=frozenset({READ, MANAGE})),
            limited(permissions=frozenset({READ, LIST})),
            ("permissions",),
            id="a permission that the holder lacks",
        ),
        pytest.param(
            limited(permissions=frozenset()), limited(permissions=frozenset({READ})), (), id="no permission at all"
        ),
        pytest.param(
            limited(), limited(within=networks("10.0.0.0/8")), ("allowed_cidrs",), id="anywhere, from one network"
        ),
        pytest.param(
            limited(within=networks("10.0.0.0/8")),
            limited(within=networks("10.1.0.0/16")),
            ("allowed_cidrs",),
            id="a wider network",
        ),
        pytest.param(
            limited(within=networks("10.1.0.0/16", "192.168.0.0/16")),
            limited(within=networks("10.0.0.0/8")),
            ("allowed_cidrs",),
            id="one network within and one without",
        ),
        pytest.param(
            limited(within=networks("10.1.0.0/16", "2001:db8:1::/48")),
            limited(within=networks("2001:db8::/32", "10.0.0.0/8")),
            (),
            id="each network within one of the holder's",
        ),
        pytest.param(
            limited(within=networks("2001:db8::/32")),
            limited(within=networks("0.0.0.0/0")),
            ("allowed_cidrs",),
            id="IPv6 is not within all of IPv4",
        ),
        pytest.param(
            limited(within=networks("10.0.0.0/8")),
            limited(within=networks("::/0")),
            ("allowed_cidrs",),
            id="IPv4 is not within all of IPv6",
        ),
        pytest.param(limited(within=networks("10.0.0.0/8")), limited(), (), id="one network, from anywhere"),
        pytest.param(
            limited(), limited(manufacturers=("acme",)), ("allowed_manufacturers",), id="every maker, from one"
        ),
        pytest.param(
            limited(manufacturers=("acme", "globex")),
            limited(manufacturers=("acme",)),
            ("allowed_manufacturers",),
            id="one maker more",
        ),
        pytest.param(limited(manufacturers=("acme",)), limited(), (), id="one maker, from all"),
        pytest.param(limited(), limited(days=1), ("expire_time",), id="for ever, from one day"),
        pytest.param(limited(days=2), limited(days=1), ("expire_time",), id="a day longer"),
        pytest.param(limited(days=1), limited(days=1), (), id="exactly as long"),
        pytest.param(limited(days=1), limited(), (), id="one day, from for ever"),
    ],
)
def test_the_parts_that_go_beyond_are_named(candidate: Authority, holder: Authority, beyond: tuple[str, ...]) -> None:
    assert excess(candidate, holder) == beyond


def test_the_authority_of_a_key_is_all_that_limits_it() -> None:
    key = make_key(
        permissions=frozenset({READ}),
        allowed_networks=networks("10.0.0.0/8"),
        allowed_manufacturers=frozenset({"acme"}),
        expire_time=NOW,
    )
    assert authority_of(key) == Authority(frozenset({READ}), networks("10.0.0.0/8"), frozenset({"acme"}), NOW)


def test_a_live_key_of_the_workspace_that_holds_the_permission_may_act() -> None:
    actor = make_key(permissions=frozenset({MANAGE}), expire_time=NOW + timedelta(seconds=1))
    assert check_actor(actor, actor.workspace_id, MANAGE, NOW) is actor


OWN, OTHER = make_key().workspace_id, "grid-two"
LACKING = make_key(permissions=frozenset(Permission) - {MANAGE})


@pytest.mark.parametrize(
    ("actor", "workspace_id", "reason", "metadata"),
    [
        pytest.param(None, OWN, ErrorReason.ACTOR_NOT_FOUND, {}, id="no such key"),
        pytest.param(make_key(), OTHER, ErrorReason.ACTOR_NOT_FOUND, {}, id="a key of another workspace"),
        pytest.param(
            make_key(state=KeyState.REVOKED),
            OTHER,
            ErrorReason.ACTOR_NOT_FOUND,
            {},
            id="a revoked key of another workspace tells nothing of itself",
        ),
        *(
            pytest.param(
                key,
                OWN,
                ErrorReason.ACTOR_NOT_LIVE,
                {"key_id": key.key_id, "state": state},
                id=f"a key that is {state}",
            )
            for state, key in (
                ("revoked", make_key(state=KeyState.REVOKED)),
                ("suspended", make_key(state=KeyState.SUSPENDED)),
                ("expired", make_key(expire_time=NOW)),
            )
        ),
        *(
            pytest.param(
                key,
                OWN,
                ErrorReason.ACTOR_PERMISSION_MISSING,
                {"key_id": key.key_id, "permission": "keys:manage"},
                id=name,
            )
            for name, key in (
                ("a key without the permission", LACKING),
                # As in a decision: what a record says above its kind's ceiling counts for nothing.
                ("a connect key whose record says all", make_key(KeyKind.CONNECT, permissions=frozenset(Permission))),
                ("a scoped key whose record says all", make_key(KeyKind.SCOPED, permissions=frozenset(Permission))),
            )
        ),
    ],
)
def test_anything_else_may_not_act(
    actor: Key | None, workspace_id: str, reason: ErrorReason, metadata: dict[str, str]
) -> None:
    with pytest.raises(Refusal) as refused:
        check_actor(actor, workspace_id, MANAGE, NOW)
    assert refused.value.reason is reason
    assert refused.value.metadata == metadata


def test_a_missing_key_and_one_of_another_workspace_get_the_same_words() -> None:
    words = set()
    for actor in (None, make_key(workspace_id="grid-two"), make_key(workspace_id="grid-two", state=KeyState.REVOKED)):
        with pytest.raises(Refusal) as refused:
            check_actor(actor, "grid-one", MANAGE, NOW)
        words.add(refused.value.message)
    assert len(words) == 1


def test_a_key_may_bring_about_one_with_as_much_as_it_holds() -> None:
    actor = make_key(allowed_manufacturers=frozenset({"acme"}), expire_time=NOW)
    check_within(make_key(key_id="AnotherKey000001", allowed_manufacturers=frozenset({"acme"}), expire_time=NOW), actor)


def test_a_key_may_not_bring_about_one_that_goes_beyond_it_and_hears_in_what() -> None:
    actor = make_key(allowed_networks=networks("10.0.0.0/8"), expire_time=NOW)
    with pytest.raises(Refusal, match="beyond that key in allowed_cidrs, expire_time") as refused:
        check_within(make_key(), actor)
    assert refused.value.reason is ErrorReason.ACTOR_AUTHORITY_EXCEEDED
    assert refused.value.metadata == {"key_id": actor.key_id, "exceeded": "allowed_cidrs, expire_time"}
