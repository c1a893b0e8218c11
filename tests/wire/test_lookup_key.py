"""LookupKey, over the wire."""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
from texture.auth.v1 import key_service_pb2 as pb

from tests.harness import Service, refused
from tests.wire.helpers import (
    authorize,
    event_types,
    get_key,
    make_key,
    make_scoped_key,
    revoke,
    rotate,
    suspend,
    timestamp,
    with_wrong_secret,
)

HOUR = timedelta(hours=1)
INVALID = (grpc.StatusCode.INVALID_ARGUMENT, "FIELD_INVALID")


def lookup(service: Service, api_key: str) -> pb.LookupKeyResponse:
    return service.operator.keys.LookupKey(pb.LookupKeyRequest(api_key=api_key))


@pytest.mark.parametrize("state", ["active", "suspended", "revoked", "expired"])
def test_a_key_is_recognised_in_every_state(grid: Service, state: str) -> None:
    made = make_key(grid, expire_time=timestamp(grid.clock.now + HOUR) if state == "expired" else None)
    if state == "suspended":
        suspend(grid, made.key.key_id)
    if state == "revoked":
        revoke(grid, made.key.key_id)
    grid.clock.turn(HOUR)

    found = lookup(grid, made.api_key)

    assert (found.key, found.generation) == (get_key(grid, made.key.key_id), 1)


def test_each_secret_of_a_key_is_recognised_for_what_it_is(grid: Service) -> None:
    made = make_key(grid)
    rotated = rotate(grid, made.key.key_id)

    assert lookup(grid, made.api_key).generation == 1
    assert lookup(grid, rotated.api_key).generation == 2
    assert lookup(grid, made.api_key).key == lookup(grid, rotated.api_key).key


def test_scoped_keys_are_recognised_too(grid: Service) -> None:
    scoped = make_scoped_key(grid, "mine")

    assert lookup(grid, scoped.scoped_api_key).key == scoped.scoped_key


def test_an_unknown_id_and_a_wrong_secret_are_told_alike(grid: Service) -> None:
    errors = [
        refused(lookup, grid, with_wrong_secret(api_key))
        for api_key in (make_key(grid).api_key, "txk_srv_0000000000000000_x")
    ]

    assert errors[0] == errors[1]
    assert (errors[0].code, errors[0].reason) == (grpc.StatusCode.NOT_FOUND, "KEY_NOT_FOUND")


@pytest.mark.parametrize("what", ["", "garbage", "x" * 10_240, "typing error", "svc", "id alone"])
def test_what_is_no_customers_key_cannot_be_looked_up(grid: Service, what: str) -> None:
    made = make_key(grid)
    given = {
        "typing error": made.api_key[:-1] + ("0" if made.api_key[-1] != "0" else "1"),
        "svc": grid.operator_key,
        "id alone": made.key.key_id,
    }.get(what, what)

    error = refused(lookup, grid, given)

    assert (error.code, error.reason) == INVALID
    assert set(error.violations) == {"api_key"}
    assert not given or given not in str(error)


def test_looking_a_key_up_changes_nothing(grid: Service) -> None:
    made = make_key(grid)

    lookup(grid, made.api_key)

    assert event_types(grid, made.key.key_id) == ["key.created"]
    assert authorize(grid, made.api_key).revision == made.revision
