"""CreateKey, over the wire."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from texture.auth.v1 import key_service_pb2 as pb
from texture.auth.v1.key_pb2 import (
    KEY_KIND_CONNECT,
    KEY_KIND_SCOPED,
    KEY_KIND_SERVER,
    KEY_KIND_UNSPECIFIED,
    KEY_STATE_ACTIVE,
    Key,
    KeyKind,
)
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX

from server.domain.token import parse
from tests.harness import Service, refused
from tests.wire.helpers import (
    REDIRECT_URI,
    WORKSPACE,
    count_rows,
    current_revision,
    get_key,
    make_connect_key,
    make_key,
    make_workspace,
    reason_for,
    timestamp,
)

DAY = timedelta(days=1)
EVERYTHING = [
    "connect_links:create",
    "devices:command",
    "devices:list",
    "devices:read",
    "keys:manage",
    "workspace:configure",
]
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def list_keys(service: Service, workspace_id: str = WORKSPACE, **fields: Any) -> pb.ListKeysResponse:
    return service.operator.keys.ListKeys(pb.ListKeysRequest(workspace_id=workspace_id, **fields))


def test_every_field_of_a_created_key_is_kept(grid: Service) -> None:
    given: dict[str, Any] = {
        "display_name": "Nightly export ⚡",
        "description": "Reads what the report needs. " * 10,
        "labels": {"team": "billing", "cost-centre_1.a": ""},
        "permissions": ["devices:read", "devices:list"],
        "allowed_cidrs": ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"],
        "allowed_manufacturers": ["zenith", "acme"],
        "expire_time": timestamp(grid.clock.now + DAY),
    }

    created = make_key(grid, **given).key

    assert created == get_key(grid, created.key_id)
    assert list_keys(grid).keys == [created]
    assert created == Key(
        key_id=created.key_id,
        workspace_id=WORKSPACE,
        kind=KEY_KIND_SERVER,
        state=KEY_STATE_ACTIVE,
        **{**given, "permissions": ["devices:list", "devices:read"], "allowed_manufacturers": ["acme", "zenith"]},
        generations=created.generations,
        create_time=timestamp(grid.clock.now),
        update_time=timestamp(grid.clock.now),
        created_by_caller_id="dev-operator",
    )


def test_a_server_key_holds_all_that_its_kind_allows_and_is_restricted_in_nothing_unless_told_otherwise(
    grid: Service,
) -> None:
    created = make_key(grid)

    key = created.key
    assert list(key.permissions) == EVERYTHING
    assert (key.description, dict(key.labels), list(key.allowed_cidrs), list(key.allowed_manufacturers)) == (
        "",
        {},
        [],
        [],
    )
    assert not key.HasField("expire_time")
    assert list(key.redirect_uris) == []
    (generation,) = key.generations
    assert (generation.generation, generation.last_four) == (1, created.api_key[-4:])
    assert generation.create_time == timestamp(grid.clock.now)
    assert not generation.HasField("retire_time")


def test_a_connect_key_may_create_links_and_nothing_else(grid: Service) -> None:
    uris = ["https://app.example/a", "com.example.app:/done"]

    key = make_connect_key(grid, redirect_uris=uris).key

    assert list(key.permissions) == ["connect_links:create"]
    assert list(key.redirect_uris) == uris
    assert key.kind == KEY_KIND_CONNECT


@pytest.mark.parametrize(("kind", "prefix"), [(KEY_KIND_SERVER, "txk_srv"), (KEY_KIND_CONNECT, "txk_con")])
def test_the_full_key_names_its_kind_and_its_id(grid: Service, kind: KeyKind.ValueType, prefix: str) -> None:
    created = make_key(grid, kind=kind, redirect_uris=[REDIRECT_URI] if kind == KEY_KIND_CONNECT else [])

    token = parse(created.api_key)
    assert token is not None
    assert (token.kind.value, token.public_id) == (prefix, created.key.key_id)


def test_the_full_key_is_shown_once(grid: Service) -> None:
    created = make_key(grid)
    secret = created.api_key.rsplit("_", 1)[1]

    shown = [
        created.key,
        get_key(grid, created.key.key_id),
        list_keys(grid),
        grid.operator.keys.LookupKey(pb.LookupKeyRequest(api_key=created.api_key)),
    ]

    assert all(secret not in str(message) and secret[:8] not in str(message) for message in shown)


@pytest.mark.parametrize("service", ["sqlite"], indirect=True)
def test_the_store_does_not_hold_the_key(grid: Service) -> None:
    secret = make_key(grid).api_key.rsplit("_", 1)[1].encode()

    stored = [path.read_bytes() for path in grid.database.parent.glob("texture-auth.db*")]

    assert stored
    assert all(secret not in content for content in stored)


def test_ids_and_secrets_never_repeat(grid: Service) -> None:
    created = [make_key(grid) for _ in range(20)]

    assert len({one.key.key_id for one in created}) == len({one.api_key[-38:] for one in created}) == 20


def test_a_new_key_works_at_once_and_the_answer_holds_the_revision(grid: Service) -> None:
    created = make_key(grid)

    assert reason_for(grid, created.api_key, at_least_revision=created.revision) == "PERMITTED"
    assert current_revision(grid) == created.revision


def test_http_redirect_uris_are_for_loopback_in_a_sandbox(service: Service) -> None:
    make_workspace(service, environment=ENVIRONMENT_SANDBOX)
    uris = ["http://localhost:3000/done", "http://127.0.0.1/done", "http://[::1]:8080/done"]

    assert list(make_connect_key(service, redirect_uris=uris).key.redirect_uris) == uris


CONNECT = {"kind": KEY_KIND_CONNECT}
# What is asked, and the fields that are at fault.
INVALID_KEYS: dict[str, tuple[dict[str, Any], set[str]]] = {
    "no workspace": ({"workspace_id": ""}, {"workspace_id"}),
    "no kind": ({"kind": KEY_KIND_UNSPECIFIED}, {"kind"}),
    "a scoped key": ({"kind": KEY_KIND_SCOPED}, {"kind"}),
    "an unknown kind": ({"kind": 99}, {"kind"}),
    "no name": ({"display_name": ""}, {"display_name"}),
    "a long name": ({"display_name": "x" * 121}, {"display_name"}),
    "a name with a line break": ({"display_name": "a\nb"}, {"display_name"}),
    "a long description": ({"description": "x" * 1001}, {"description"}),
    "an unknown permission": ({"permissions": ["devices:list", "devices:delete"]}, {"permissions[1]"}),
    "an empty permission": ({"permissions": [""]}, {"permissions[0]"}),
    "more than a connect key may": (
        CONNECT | {"permissions": ["connect_links:create", "devices:list"], "redirect_uris": [REDIRECT_URI]},
        {"permissions[1]"},
    ),
    "a network with host bits": ({"allowed_cidrs": ["10.0.0.0/8", "10.1.2.3/8"]}, {"allowed_cidrs[1]"}),
    "an address": ({"allowed_cidrs": ["10.0.0.1"]}, {"allowed_cidrs[0]"}),
    "a network that is none": ({"allowed_cidrs": ["everywhere/8"]}, {"allowed_cidrs[0]"}),
    "a network with a zone": ({"allowed_cidrs": ["fe80::%eth0/64"]}, {"allowed_cidrs[0]"}),
    "a network with a long prefix": ({"allowed_cidrs": ["10.0.0.0/33"]}, {"allowed_cidrs[0]"}),
    "a network with a netmask": ({"allowed_cidrs": ["10.0.0.0/255.0.0.0"]}, {"allowed_cidrs[0]"}),
    "a network with a host mask": ({"allowed_cidrs": ["10.0.0.0/0.255.255.255"]}, {"allowed_cidrs[0]"}),
    "an empty network": ({"allowed_cidrs": [""]}, {"allowed_cidrs[0]"}),
    "65 networks": ({"allowed_cidrs": [f"10.0.{number}.0/24" for number in range(65)]}, {"allowed_cidrs"}),
    "a manufacturer in upper case": ({"allowed_manufacturers": ["Acme"]}, {"allowed_manufacturers[0]"}),
    "an empty manufacturer": ({"allowed_manufacturers": [""]}, {"allowed_manufacturers[0]"}),
    "a long manufacturer": ({"allowed_manufacturers": ["x" * 65]}, {"allowed_manufacturers[0]"}),
    "65 manufacturers": (
        {"allowed_manufacturers": [f"maker-{number}" for number in range(65)]},
        {"allowed_manufacturers"},
    ),
    "a label's name": ({"labels": {"Team": "a"}}, {"labels"}),
    "a label without a name": ({"labels": {"": "a"}}, {"labels"}),
    "a long label's name": ({"labels": {"x" * 64: "a"}}, {"labels"}),
    "a long label's value": ({"labels": {"team": "x" * 129}}, {"labels['team']"}),
    "33 labels": ({"labels": {f"l{number}": "" for number in range(33)}}, {"labels"}),
    "redirect URIs on a server key": ({"redirect_uris": [REDIRECT_URI]}, {"redirect_uris"}),
    "a connect key without redirect URI": (CONNECT, {"redirect_uris"}),
    "51 redirect URIs": (
        CONNECT | {"redirect_uris": [f"https://app.example/{number}" for number in range(51)]},
        {"redirect_uris"},
    ),
    "http in production": (CONNECT | {"redirect_uris": ["http://localhost/done"]}, {"redirect_uris[0]"}),
    "a bad URI after a repeated one": (
        CONNECT | {"redirect_uris": [REDIRECT_URI, REDIRECT_URI, "https://app.example/#x"]},
        {"redirect_uris[2]"},
    ),
    "an expiry in the past": ({"expire_time": timestamp(datetime(2029, 1, 1, tzinfo=UTC))}, {"expire_time"}),
    "an expiry right now": ({"expire_time": timestamp(datetime(2030, 1, 1, 12, tzinfo=UTC))}, {"expire_time"}),
    "an expiry that is no time": ({"expire_time": Timestamp(seconds=10**18)}, {"expire_time"}),
    "an expiry with too many nanoseconds": (
        {"expire_time": Timestamp(seconds=2_000_000_000, nanos=1_000_000_000)},
        {"expire_time"},
    ),
    "a request id with a space": ({"request_id": "a b"}, {"request_id"}),
    "several faults": (
        {
            "display_name": "",
            "description": "\x00",
            "permissions": ["fly"],
            "allowed_cidrs": ["10.1.2.3/8", "x"],
            "allowed_manufacturers": ["A"],
            "labels": {"team": "\x7f"},
            "redirect_uris": [REDIRECT_URI],
        },
        {
            "display_name",
            "description",
            "permissions[0]",
            "allowed_cidrs[0]",
            "allowed_cidrs[1]",
            "allowed_manufacturers[0]",
            "labels['team']",
            "redirect_uris",
        },
    ),
}


@pytest.mark.parametrize("fault", INVALID_KEYS)
def test_a_key_that_cannot_be_is_refused_and_every_field_at_fault_named(shared_grid: Service, fault: str) -> None:
    fields, expected = INVALID_KEYS[fault]

    before = count_rows(shared_grid, "api_key")

    error = refused(make_key, shared_grid, **fields)

    assert (error.code, error.reason) == INVALID
    assert set(error.violations) == expected
    assert all(error.violations.values())
    assert count_rows(shared_grid, "api_key") == before


@pytest.mark.parametrize(
    "fields",
    [
        {"display_name": "x" * 120, "description": "é" * 1000},
        {"labels": {f"l{number}": "x" * 128 for number in range(32)}},
        {"labels": {"x" * 63: ""}},
        {"allowed_cidrs": [f"10.0.{number}.0/24" for number in range(64)]},
        {"allowed_cidrs": ["0.0.0.0/0", "::/0"]},
        {"allowed_manufacturers": [f"maker_{number}" for number in range(64)]},
        {"allowed_manufacturers": ["x" * 64]},
        {"kind": KEY_KIND_CONNECT, "redirect_uris": [f"https://app.example/{number}" for number in range(50)]},
        {"expire_time": timestamp(datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))},
        {"expire_time": timestamp(datetime(2030, 1, 1, 12, 0, 0, 1, tzinfo=UTC))},
    ],
    ids="+".join,
)
def test_the_limits_themselves_are_fine(grid: Service, fields: dict[str, Any]) -> None:
    created = make_key(grid, **fields)

    assert get_key(grid, created.key.key_id) == created.key
    permission = "connect_links:create"
    assert reason_for(grid, created.api_key, permission=permission, client_ip="10.0.0.1") == "PERMITTED"


def test_a_key_needs_a_workspace(service: Service) -> None:
    error = refused(make_key, service)

    assert (error.code, error.reason) == (grpc.StatusCode.NOT_FOUND, "WORKSPACE_NOT_FOUND")
