"""Connect links: where one stands, and whether it may be completed."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from enum import Enum
from uuid import UUID

from server.domain import redirects
from server.domain.decision import standing
from server.domain.errors import ErrorReason, Refusal
from server.domain.kinds import CEILING, KeyKind, Permission
from server.domain.model import ConnectLink, Key, KeyState, Workspace
from server.domain.reasons import OUTCOMES, Reason

GENERATED_PREFIX = "texture-generated:"


class ConnectLinkState(Enum):
    """Where a link stands. BLOCKED: its key may create no links now, or its redirect URI is not registered now."""

    OPEN = "open"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    BLOCKED = "blocked"


def registered_redirects(key: Key, workspace: Workspace) -> tuple[str, ...]:
    """Return the redirect URIs that links of this key may name."""
    return key.redirect_uris if key.kind is KeyKind.CONNECT else workspace.redirect_uris


def check_redirect(uri: str, key: Key, workspace: Workspace) -> None:
    """Make sure that links of this key may name this redirect URI.

    Raises Refusal (REDIRECT_URI_NOT_REGISTERED).
    """
    if not redirects.registered(uri, registered_redirects(key, workspace)):
        where = "with the connect key" if key.kind is KeyKind.CONNECT else "with the workspace"
        raise Refusal(
            ErrorReason.REDIRECT_URI_NOT_REGISTERED,
            f"redirect_uri: is not registered {where}, letter for letter",
            metadata={"key_id": key.key_id},
        )


def choose_reference_id(key: Key, named: str, generated: UUID) -> str:
    """Return the end user of a new link: the one named, or one made for it.

    A connect key is public. If it could name an end user, anyone could name somebody else, connect a device of their
    own and be handed a key to the other's devices. For the same reason a server key must itself hold what the scoped
    key will. Raises Refusal (REFERENCE_ID_NOT_PERMITTED).
    """
    if not named:
        return f"{GENERATED_PREFIX}{generated}"
    if key.kind is not KeyKind.SERVER:
        raise Refusal(
            ErrorReason.REFERENCE_ID_NOT_PERMITTED,
            "reference_id: only a server key may name one; leave it empty with a connect key",
            metadata={"key_id": key.key_id},
        )
    if not _holds_what_is_minted(key):
        raise Refusal(
            ErrorReason.REFERENCE_ID_NOT_PERMITTED,
            "reference_id: only a server key that holds every devices permission may name one",
            metadata={"key_id": key.key_id},
        )
    return named


def state_of(link: ConnectLink, key: Key, workspace: Workspace, now: datetime) -> ConnectLinkState:
    """Return where the link stands, given the key that made it and its workspace."""
    try:
        check_completable(link, key, workspace, now)
    except Refusal as refusal:
        return _STATE_BY_REASON.get(refusal.reason, ConnectLinkState.BLOCKED)
    return ConnectLinkState.OPEN


def check_completable(link: ConnectLink, key: Key, workspace: Workspace, now: datetime) -> None:
    """Make sure that the link may be completed now. Raises Refusal, one reason for each way in which it may not."""
    check_not_ended(link)
    if now >= link.expire_time:
        raise Refusal(ErrorReason.CONNECT_LINK_EXPIRED, "the Connect link has expired")
    check_unblocked(link, key, workspace, now)


def check_not_ended(link: ConnectLink) -> None:
    """Make sure that the link was neither completed nor cancelled. Raises Refusal."""
    if link.complete_time is not None:
        raise Refusal(ErrorReason.CONNECT_LINK_COMPLETED, "the Connect link has been completed")
    if link.cancel_time is not None:
        raise Refusal(ErrorReason.CONNECT_LINK_CANCELLED, "the Connect link was cancelled")


def check_unblocked(link: ConnectLink, key: Key, workspace: Workspace, now: datetime) -> None:
    """Make sure that the link's key may still create it. Raises Refusal."""
    denied = standing(key, Permission.CONNECT_LINKS_CREATE, now)
    named = key.kind is KeyKind.SERVER and not link.reference_id.startswith(GENERATED_PREFIX)
    if denied is None and named and not _holds_what_is_minted(key):
        denied = Reason.PERMISSION_NOT_GRANTED
    if denied is not None:
        raise Refusal(
            ErrorReason.CONNECT_LINK_KEY_NOT_LIVE,
            f"the Connect link's key may no longer create it: {OUTCOMES[denied].explanation}",
            metadata={"key_id": key.key_id, "deny_reason": denied.name},
        )
    check_redirect(link.redirect_uri, key, workspace)


def unseen(scoped_key: Key) -> bool:
    """Tell whether a scoped key is as it was minted: nobody has rotated, changed, suspended or revoked it since."""
    return scoped_key.state is KeyState.ACTIVE and scoped_key.update_time == scoped_key.create_time


def complete(link: ConnectLink, scoped_key_id: str, now: datetime) -> ConnectLink:
    """Return the link as completed, with the key that was minted for it."""
    return replace(link, complete_time=link.complete_time or now, scoped_key_id=scoped_key_id)


def cancel(link: ConnectLink, now: datetime) -> ConnectLink:
    """Return the link as cancelled; a cancelled one as it is. Raises Refusal for a completed one."""
    if link.cancel_time is not None:
        return link
    check_not_ended(link)
    return replace(link, cancel_time=now)


def _holds_what_is_minted(key: Key) -> bool:
    return CEILING[KeyKind.SCOPED] <= key.permissions


_STATE_BY_REASON = {
    ErrorReason.CONNECT_LINK_COMPLETED: ConnectLinkState.COMPLETED,
    ErrorReason.CONNECT_LINK_CANCELLED: ConnectLinkState.CANCELLED,
    ErrorReason.CONNECT_LINK_EXPIRED: ConnectLinkState.EXPIRED,
}
