"""Samples of every entity, between them with every field set and unset, and what a test needs to treat them alike."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from ipaddress import ip_network
from typing import Any

from server.domain.kinds import Environment, ExposurePolicy, KeyKind, Permission, Role
from server.domain.model import Generation, KeyState
from server.domain.token import TokenKind
from server.store.contract import Reader, Writer
from tests.builders import (
    CALLER_KEY_ID,
    NOW,
    make_caller,
    make_connect_link,
    make_device,
    make_generation,
    make_key,
    make_workspace,
)
from tests.store.support import CONNECT_KEY_ID, OTHER_WORKSPACE_ID, SCOPED_KEY_ID, SERVER_KEY_ID

EXACT = datetime(2026, 2, 28, 23, 59, 59, 999_999, tzinfo=UTC)
FAR_EAST = datetime(2026, 6, 1, 3, 0, 0, 1, tzinfo=timezone(timedelta(hours=5, minutes=45)))
BEFORE_1970 = datetime(1969, 12, 31, 23, 59, 59, 1, tzinfo=UTC)
LATER = NOW + timedelta(days=30, microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Handling:
    """One kind of entity, and how the store is asked about it.

    `replacements` are later states of the first sample, each after the one before; between them they change every
    field that is not `fixed`.
    """

    kind: str
    samples: tuple[Any, ...]
    replacements: tuple[Any, ...]
    fixed: frozenset[str]
    add: Callable[[Writer, Any], None]
    replace: Callable[[Writer, Any], None]
    get: Callable[[Reader, Any], Any]
    change_id: Callable[[Any], str]
    # What else is noted when one is added: what it may have been looked for by, in vain.
    also_noted: Callable[[Any], set[tuple[str, str]]] = lambda _entity: set()

    def __str__(self) -> str:
        return self.kind


def three_generations(kind: TokenKind, public_id: str) -> tuple[Generation, ...]:
    """Return a retired generation, one in its overlap and one in force."""
    return (
        make_generation(kind, public_id, 1, pepper_id="old-pepper", retire_time=NOW - timedelta(days=1)),
        make_generation(kind, public_id, 2, digest=bytes(range(224, 256)), retire_time=LATER),
        make_generation(kind, public_id, 3, create_time=BEFORE_1970),
    )


def _rotated(generation: Generation, kind: TokenKind, public_id: str) -> tuple[Generation, ...]:
    """Return a generation as it retires, its digest made anew under another pepper, and the one after it."""
    retired = replace(generation, pepper_id="pepper-2", digest=b"\x00" * 32, retire_time=NOW)
    return (retired, make_generation(kind, public_id, 2))


_FULL_KEY = make_key(
    key_id="FullKey000000001",
    workspace_id=OTHER_WORKSPACE_ID,
    state=KeyState.SUSPENDED,
    display_name="Flotte Süd ⚡",
    description="two\nlines, a 'quote' and a \"double\" one",
    labels={"team": "fleet", "empty": "", "größe": "ü" * 63},
    permissions=frozenset({Permission.DEVICES_LIST, Permission.DEVICES_COMMAND}),
    allowed_networks=(ip_network("203.0.113.0/24"), ip_network("2001:db8::/32"), ip_network("192.0.2.7/32")),
    allowed_manufacturers=frozenset({"acme", "solaredge"}),
    redirect_uris=("https://b.example/", "app.texture://done", "https://a.example/"),
    expire_time=EXACT,
    generations=three_generations(TokenKind.SERVER, "FullKey000000001"),
    create_time=BEFORE_1970,
    update_time=FAR_EAST,
    suspend_time=NOW,
    state_reason="seen in a browser",
    created_by_caller_id="console",
    created_by_key_id=SERVER_KEY_ID,
)
_FIRST_KEY = make_key(key_id="FirstKey00000001")
_FIRST_KEY_ROTATED = _rotated(_FIRST_KEY.generations[0], TokenKind.SERVER, _FIRST_KEY.key_id)

KEYS = Handling(
    kind="key",
    samples=(
        _FIRST_KEY,
        _FULL_KEY,
        make_key(
            KeyKind.SCOPED,
            key_id="AnotherScopedKey",
            state=KeyState.REVOKED,
            revoke_time=LATER,
            expose_time=LATER,
            state_reason="lost",
            expire_time=NOW + timedelta(days=365),
        ),
        make_key(KeyKind.CONNECT, key_id="BareKey000000001", permissions=frozenset(), redirect_uris=()),
    ),
    replacements=(
        replace(_FULL_KEY, key_id=_FIRST_KEY.key_id, generations=_FIRST_KEY_ROTATED),
        make_key(
            KeyKind.SCOPED,
            key_id=_FIRST_KEY.key_id,
            state=KeyState.REVOKED,
            revoke_time=NOW,
            expose_time=NOW,
            labels={"team": "other"},
            generations=_FIRST_KEY_ROTATED,
        ),
        replace(_FIRST_KEY, generations=_FIRST_KEY_ROTATED),
    ),
    fixed=frozenset({"key_id"}),
    add=lambda writer, key: writer.add_key(key),
    replace=lambda writer, key: writer.replace_key(key),
    get=lambda reader, key: reader.keys([key.key_id]).get(key.key_id),
    change_id=lambda key: str(key.key_id),
)

_FIRST_WORKSPACE = make_workspace(workspace_id="north")

WORKSPACES = Handling(
    kind="workspace",
    samples=(
        _FIRST_WORKSPACE,
        make_workspace(
            workspace_id="south",
            display_name="Süd ⚡",
            environment=Environment.SANDBOX,
            redirect_uris=("http://127.0.0.1/", "app.texture://done", "https://a.example/"),
            exposure_policy=ExposurePolicy.SUSPEND,
            scoped_key_lifetime=timedelta(days=1, microseconds=1),
            connect_link_lifetime=timedelta(minutes=5),
            create_time=BEFORE_1970,
            update_time=FAR_EAST,
        ),
        make_workspace(workspace_id="west", redirect_uris=(), exposure_policy=ExposurePolicy.NOTIFY_ONLY),
    ),
    replacements=(
        make_workspace(
            workspace_id=_FIRST_WORKSPACE.workspace_id,
            display_name="renamed",
            environment=Environment.SANDBOX,
            redirect_uris=(),
            exposure_policy=ExposurePolicy.NOTIFY_ONLY,
            scoped_key_lifetime=timedelta(seconds=1),
            connect_link_lifetime=timedelta(seconds=2),
            create_time=EXACT,
            update_time=LATER,
        ),
    ),
    fixed=frozenset({"workspace_id"}),
    add=lambda writer, workspace: writer.add_workspace(workspace),
    replace=lambda writer, workspace: writer.replace_workspace(workspace),
    get=lambda reader, workspace: reader.workspace(workspace.workspace_id),
    change_id=lambda workspace: str(workspace.workspace_id),
)

_FIRST_LINK = make_connect_link(connect_link_id="FirstLink0000001")

CONNECT_LINKS = Handling(
    kind="connect_link",
    samples=(
        _FIRST_LINK,
        make_connect_link(
            connect_link_id="CompletedLink001",
            workspace_id=OTHER_WORKSPACE_ID,
            key_id=SERVER_KEY_ID,
            reference_id="end-user-2",
            redirect_uri="app.texture://done?a=b",
            client_state='{"ü": "⚡"}',
            pepper_id="old-pepper",
            digest=bytes(range(32)),
            create_time=BEFORE_1970,
            expire_time=EXACT,
            complete_time=FAR_EAST,
            scoped_key_id=SCOPED_KEY_ID,
        ),
        make_connect_link(connect_link_id="CancelledLink001", cancel_time=LATER),
    ),
    replacements=(
        make_connect_link(
            connect_link_id=_FIRST_LINK.connect_link_id,
            workspace_id=OTHER_WORKSPACE_ID,
            key_id=SERVER_KEY_ID,
            reference_id="end-user-2",
            redirect_uri="https://b.example/",
            client_state="a state",
            pepper_id="pepper-2",
            digest=b"\x00" * 32,
            create_time=EXACT,
            expire_time=LATER,
            complete_time=NOW,
            scoped_key_id=SCOPED_KEY_ID,
        ),
        replace(_FIRST_LINK, cancel_time=LATER),
    ),
    fixed=frozenset({"connect_link_id"}),
    add=lambda writer, link: writer.add_connect_link(link),
    replace=lambda writer, link: writer.replace_connect_link(link),
    get=lambda reader, link: reader.connect_link(link.connect_link_id),
    change_id=lambda link: str(link.connect_link_id),
)

_FIRST_CALLER_KEY_ID = "FirstCallerKey01"
_FIRST_CALLER = make_caller(
    caller_id="first",
    key_id=_FIRST_CALLER_KEY_ID,
    generations=(make_generation(TokenKind.SERVICE, _FIRST_CALLER_KEY_ID),),
)

CALLERS = Handling(
    kind="caller",
    samples=(
        _FIRST_CALLER,
        make_caller(
            caller_id="full",
            display_name="Konsole ⚡",
            roles=frozenset(Role),
            certificate_names=frozenset({"device-api.internal", "spiffe://prod.example/device-api"}),
            key_id="FullCallerKey001",
            generations=three_generations(TokenKind.SERVICE, "FullCallerKey001"),
            create_time=BEFORE_1970,
            update_time=FAR_EAST,
            revoke_time=EXACT,
            revoke_reason="gone",
        ),
        make_caller(
            caller_id="bare",
            roles=frozenset(),
            key_id="BareCallerKey001",
            generations=(make_generation(TokenKind.SERVICE, "BareCallerKey001"),),
        ),
    ),
    replacements=(
        make_caller(
            caller_id=_FIRST_CALLER.caller_id,
            display_name="renamed",
            roles=frozenset({Role.OPERATOR, Role.KEY_ADMIN}),
            certificate_names=frozenset({"renamed.internal"}),
            key_id=_FIRST_CALLER_KEY_ID,
            generations=_rotated(_FIRST_CALLER.generations[0], TokenKind.SERVICE, _FIRST_CALLER_KEY_ID),
            create_time=EXACT,
            update_time=LATER,
            revoke_time=NOW,
            revoke_reason="gone",
        ),
    ),
    # Every generation belongs to the key, so the key stays the caller's for good.
    fixed=frozenset({"caller_id", "key_id"}),
    add=lambda writer, caller: writer.add_caller(caller),
    replace=lambda writer, caller: writer.replace_caller(caller),
    get=lambda reader, caller: reader.caller(caller.caller_id),
    # A caller is looked for by its key, so that is what caches know it by.
    change_id=lambda caller: str(caller.key_id),
    also_noted=lambda caller: {("certificate_name", name) for name in caller.certificate_names},
)

_FIRST_DEVICE = make_device(device_id="first")

DEVICES = Handling(
    kind="device",
    samples=(
        _FIRST_DEVICE,
        make_device(
            device_id="Wechselrichter ⚡ 1",
            workspace_id=OTHER_WORKSPACE_ID,
            reference_id="texture-generated:2",
            manufacturer="",
            create_time=BEFORE_1970,
            update_time=FAR_EAST,
        ),
    ),
    replacements=(
        make_device(
            device_id=_FIRST_DEVICE.device_id,
            workspace_id=OTHER_WORKSPACE_ID,
            reference_id="end-user-2",
            manufacturer="solaredge",
            update_time=LATER,
        ),
    ),
    # A device stays registered since the time when it was, whoever has it now.
    fixed=frozenset({"device_id", "create_time"}),
    add=lambda writer, device: writer.put_devices([device]),
    replace=lambda writer, device: writer.put_devices([device]),
    get=lambda reader, device: reader.devices([device.device_id]).get(device.device_id),
    change_id=lambda device: str(device.device_id),
)

HANDLINGS = (WORKSPACES, KEYS, CONNECT_LINKS, DEVICES, CALLERS)

# Those that are inserted, with Duplicate for an id that exists, and replaced only where they exist.
INSERTED = (WORKSPACES, KEYS, CONNECT_LINKS, CALLERS)

# Two entities whose ids differ in nothing but the case of a letter.
CASES = {
    "workspace": (make_workspace(workspace_id="east"), make_workspace(workspace_id="EAST")),
    "key": (make_key(key_id="CaseKey00000000a"), make_key(key_id="CaseKey00000000A")),
    "connect_link": (
        make_connect_link(connect_link_id="CaseLink0000000a", key_id=CONNECT_KEY_ID),
        make_connect_link(connect_link_id="CaseLink0000000A", key_id=CONNECT_KEY_ID),
    ),
    "device": (make_device(device_id="case-a"), make_device(device_id="case-A", reference_id="end-user-2")),
    "caller": (
        make_caller(caller_id="case-a", key_id=CALLER_KEY_ID.lower()),
        make_caller(caller_id="case-A", key_id=CALLER_KEY_ID.upper()),
    ),
}
