"""Valid things to test with. Every field can be changed by name; the same arguments always make the same thing.

A key made here has one secret for each generation, which `api_key_of` gives in full.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from server.domain.kinds import CEILING, TOKEN_KIND, Environment, ExposurePolicy, KeyKind, Role
from server.domain.model import Caller, ConnectLink, Device, Generation, Key, Workspace
from server.domain.peppers import Pepper, Peppers
from server.domain.token import TokenKind, checksum

NOW = datetime(2026, 7, 1, 12, tzinfo=UTC)
EARLIER = NOW - timedelta(days=30)

PEPPER = Pepper("pepper-1", bytes(range(32)))
PEPPERS = Peppers([PEPPER])

WORKSPACE_ID = "grid-one"
REFERENCE_ID = "end-user-1"
DEVICE_ID = "inverter-1"
MANUFACTURER = "acme"
REDIRECT_URI = "https://app.example/connected"
KEY_IDS = {
    KeyKind.SERVER: "ServerKey0000001",
    KeyKind.CONNECT: "ConnectKey000001",
    KeyKind.SCOPED: "ScopedKey0000001",
}
CALLER_KEY_ID = "CallerKey0000001"
LINK_ID = "ConnectLink00001"


def make_token(kind: TokenKind, public_id: str, number: int = 1) -> str:
    """Return the full text of a well-formed token; `number` tells the secrets of one id apart."""
    body = f"{kind.value}_{public_id}_{number:032d}"
    return body + checksum(body)


def make_generation(
    kind: TokenKind, public_id: str, number: int = 1, *, peppers: Peppers = PEPPERS, **changes: Any
) -> Generation:
    """Return the generation whose secret is `make_token` of the same arguments; in force unless changed."""
    text = make_token(kind, public_id, number)
    pepper_id, digest = peppers.digest(text)
    generation = Generation(number=number, pepper_id=pepper_id, digest=digest, last_four=text[-4:], create_time=EARLIER)
    return replace(generation, **changes)


def make_key(kind: KeyKind = KeyKind.SERVER, **changes: Any) -> Key:
    """Return a live key that holds all its kind allows and is restricted in nothing."""
    key_id = changes.get("key_id", KEY_IDS[kind])
    key = Key(
        key_id=key_id,
        workspace_id=WORKSPACE_ID,
        kind=kind,
        display_name=f"a {kind.value} key",
        permissions=CEILING[kind],
        redirect_uris=(REDIRECT_URI,) if kind is KeyKind.CONNECT else (),
        reference_id=REFERENCE_ID if kind is KeyKind.SCOPED else None,
        connect_link_id=LINK_ID if kind is KeyKind.SCOPED else None,
        generations=(make_generation(TOKEN_KIND[kind], key_id),),
        create_time=EARLIER,
        update_time=EARLIER,
        created_by_caller_id="dashboard",
    )
    return replace(key, **changes)


def api_key_of(key: Key, number: int | None = None) -> str:
    """Return a secret of a key made here, in full: that of one generation, or the newest."""
    return make_token(TOKEN_KIND[key.kind], key.key_id, number or key.generations[-1].number)


def make_device(**changes: Any) -> Device:
    """Return a device of the end user that `make_key` makes scoped keys for."""
    device = Device(
        device_id=DEVICE_ID,
        workspace_id=WORKSPACE_ID,
        reference_id=REFERENCE_ID,
        manufacturer=MANUFACTURER,
        create_time=EARLIER,
        update_time=EARLIER,
    )
    return replace(device, **changes)


def make_workspace(**changes: Any) -> Workspace:
    """Return a production workspace with one redirect URI."""
    workspace = Workspace(
        workspace_id=WORKSPACE_ID,
        display_name="Grid One",
        environment=Environment.PRODUCTION,
        redirect_uris=(REDIRECT_URI,),
        exposure_policy=ExposurePolicy.REVOKE,
        scoped_key_lifetime=timedelta(days=365),
        connect_link_lifetime=timedelta(hours=4),
        create_time=EARLIER,
        update_time=EARLIER,
    )
    return replace(workspace, **changes)


def make_connect_link(**changes: Any) -> ConnectLink:
    """Return an open link made with the connect key of `make_key`."""
    pepper_id, digest = PEPPERS.digest(make_token(TokenKind.LINK, LINK_ID))
    link = ConnectLink(
        connect_link_id=LINK_ID,
        workspace_id=WORKSPACE_ID,
        key_id=KEY_IDS[KeyKind.CONNECT],
        reference_id=REFERENCE_ID,
        redirect_uri=REDIRECT_URI,
        client_state="",
        pepper_id=pepper_id,
        digest=digest,
        create_time=NOW - timedelta(hours=1),
        expire_time=NOW + timedelta(hours=3),
    )
    return replace(link, **changes)


def make_caller(**changes: Any) -> Caller:
    """Return an internal service that may ask for decisions."""
    caller = Caller(
        caller_id="device-api",
        display_name="Device API",
        roles=frozenset({Role.AUTHORIZER}),
        key_id=CALLER_KEY_ID,
        generations=(make_generation(TokenKind.SERVICE, CALLER_KEY_ID),),
        create_time=EARLIER,
        update_time=EARLIER,
    )
    return replace(caller, **changes)
