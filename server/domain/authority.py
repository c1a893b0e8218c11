"""Who may act on whose behalf: what a key may do, compared part by part with what another may."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from ipaddress import IPv4Network, IPv6Network

from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import CEILING, Permission
from server.domain.model import Key, KeyState, Network


@dataclass(frozen=True, slots=True)
class Authority:
    """All that limits a key: permissions, networks, manufacturers, expiry. Empty limits nothing, as None does."""

    permissions: frozenset[Permission]
    networks: tuple[Network, ...]
    manufacturers: frozenset[str]
    expire_time: datetime | None


def authority_of(key: Key) -> Authority:
    """Return what the key may do while it is live."""
    return Authority(key.permissions, key.allowed_networks, key.allowed_manufacturers, key.expire_time)


def excess(candidate: Authority, holder: Authority) -> tuple[str, ...]:
    """Name the parts in which `candidate` goes beyond `holder`; empty where it holds nothing more."""
    beyond = []
    if not candidate.permissions <= holder.permissions:
        beyond.append("permissions")
    if holder.networks and not (
        candidate.networks
        and all(any(_within(mine, theirs) for theirs in holder.networks) for mine in candidate.networks)
    ):
        beyond.append("allowed_cidrs")
    if holder.manufacturers and not (candidate.manufacturers and candidate.manufacturers <= holder.manufacturers):
        beyond.append("allowed_manufacturers")
    if holder.expire_time is not None and (candidate.expire_time is None or candidate.expire_time > holder.expire_time):
        beyond.append("expire_time")
    return tuple(beyond)


def check_actor(actor: Key | None, workspace_id: str, permission: Permission, now: datetime) -> Key:
    """Return the customer's key that asked, if it may ask for such a thing in this workspace.

    Raises Refusal: ACTOR_NOT_FOUND (also for a key of another workspace), ACTOR_NOT_LIVE,
    ACTOR_PERMISSION_MISSING.
    """
    if actor is None or actor.workspace_id != workspace_id:
        raise Refusal(ErrorReason.ACTOR_NOT_FOUND, "on_behalf_of_key_id: there is no such key in this workspace")
    state = actor.state_at(now)
    if state is not KeyState.ACTIVE:
        raise Refusal(
            ErrorReason.ACTOR_NOT_LIVE,
            f"on_behalf_of_key_id: the key is {state.value}",
            metadata={"key_id": actor.key_id, "state": state.value},
        )
    if permission not in actor.permissions & CEILING[actor.kind]:
        raise Refusal(
            ErrorReason.ACTOR_PERMISSION_MISSING,
            f"on_behalf_of_key_id: the key does not hold {permission.value}",
            metadata={"key_id": actor.key_id, "permission": permission.value},
        )
    return actor


def check_within(result: Key, actor: Key) -> None:
    """Make sure that what an actor brings about holds no authority that the actor does not.

    Raises Refusal (ACTOR_AUTHORITY_EXCEEDED), naming the parts.
    """
    beyond = excess(authority_of(result), authority_of(actor))
    if beyond:
        parts = ", ".join(beyond)
        raise Refusal(
            ErrorReason.ACTOR_AUTHORITY_EXCEEDED,
            f"on_behalf_of_key_id: the result would go beyond that key in {parts}",
            metadata={"key_id": actor.key_id, "exceeded": parts},
        )


def _within(inner: Network, outer: Network) -> bool:
    if isinstance(inner, IPv4Network) and isinstance(outer, IPv4Network):
        return inner.subnet_of(outer)
    if isinstance(inner, IPv6Network) and isinstance(outer, IPv6Network):
        return inner.subnet_of(outer)
    return False
