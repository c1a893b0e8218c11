"""`at_least_revision`, over the wire: an answer from that state or a later one."""

from __future__ import annotations

import base64
import struct
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2, key_service_pb2

from tests.harness import Service, refused, running_service
from tests.wire.helpers import (
    authorize,
    current_revision,
    make_key,
    make_workspace,
    reason_for,
    reason_of,
    rotate,
)

HOUR = timedelta(hours=1)


def test_a_revision_from_any_earlier_answer_is_honoured(grid: Service) -> None:
    made = make_key(grid)
    rotated = rotate(grid, made.key.key_id, overlap=HOUR)
    older = authorize(grid, made.api_key).revision
    newer = grid.operator.keys.RevokeKey(key_service_pb2.RevokeKeyRequest(key_id=made.key.key_id)).revision

    for revision in (made.revision, rotated.revision, older, newer):
        answer = authorize(grid, made.api_key, at_least_revision=revision)
        assert (reason_of(answer), answer.revision) == ("KEY_REVOKED", newer)


def test_a_decision_changes_no_revision_and_a_change_does(grid: Service) -> None:
    api_key = make_key(grid).api_key
    before = authorize(grid, api_key).revision

    assert authorize(grid, api_key, "devices:read", "nowhere").revision == before
    assert make_key(grid).revision != before


def _unpack(revision: str) -> tuple[bytes, int, int]:
    epoch, number, nonce = struct.unpack(">16sQQ", base64.urlsafe_b64decode(revision + "="))
    return epoch, number, nonce


def _pack(epoch: bytes, number: int, nonce: int) -> str:
    return base64.urlsafe_b64encode(struct.pack(">16sQQ", epoch, number, nonce)).rstrip(b"=").decode()


ALTERATIONS: dict[str, Callable[[str], str]] = {
    "garbage": lambda _: "garbage",
    "not ASCII": lambda _: "revisión",
    "not base64": lambda _: "!" * 43,
    "long": lambda _: "A" * 100_000,
    "cut short": lambda revision: revision[:-1],
    "padded": lambda revision: revision + "=",
    "spaced": lambda revision: revision + " ",
    "zero": lambda _: _pack(bytes(16), 0, 0),
    "another nonce": lambda revision: _pack(*_unpack(revision)[:2], _unpack(revision)[2] ^ 1),
    "a nonce beyond 63 bits": lambda revision: _pack(*_unpack(revision)[:2], _unpack(revision)[2] | 1 << 63),
    "another epoch": lambda revision: _pack(uuid4().bytes, *_unpack(revision)[1:]),
    "of the future": lambda revision: _pack(_unpack(revision)[0], _unpack(revision)[1] + 100, _unpack(revision)[2]),
    "of the farthest future": lambda revision: _pack(_unpack(revision)[0], 2**64 - 1, 2**64 - 1),
    "of another number": lambda revision: _pack(_unpack(revision)[0], _unpack(revision)[1] - 1, _unpack(revision)[2]),
}


@pytest.mark.parametrize("which", ["the newest", "an older one"])
@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_a_revision_that_was_never_given_out_cannot_be_verified(
    shared_grid: Service, alteration: str, which: str
) -> None:
    revision = current_revision(shared_grid)
    api_key = make_key(shared_grid).api_key
    if which == "the newest":
        revision = current_revision(shared_grid)

    error = refused(authorize, shared_grid, api_key, at_least_revision=ALTERATIONS[alteration](revision))

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_VERIFIABLE")


def test_the_revision_of_another_store_cannot_be_verified(grid: Service, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    with running_service(tmp_path / "elsewhere") as other:
        make_workspace(other)
        revision = current_revision(other)

    error = refused(authorize, grid, make_key(grid).api_key, at_least_revision=revision)

    assert (error.code, error.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "REVISION_NOT_VERIFIABLE")


def test_a_revision_survives_a_restart(tmp_path: Path) -> None:
    with running_service(tmp_path) as service:
        make_workspace(service)
        made = make_key(service)
    with running_service(tmp_path) as service:
        assert reason_for(service, made.api_key, at_least_revision=made.revision) == "PERMITTED"


def test_a_revision_that_is_no_longer_kept_cannot_be_verified(grid: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("server.service.housekeeping.KEPT_REVISIONS", 2)
    old = make_key(grid)
    new = [make_key(grid).revision for _ in range(2)]
    grid.app._housekeeper.run_once()

    # The database cannot tell any more; a process may remember it for longer.
    request = authorize_service_pb2.ExplainAuthorizationRequest(
        api_key=old.api_key, permission="devices:list", at_least_revision=old.revision
    )
    assert refused(grid.operator.authorize.ExplainAuthorization, request).reason == "REVISION_NOT_VERIFIABLE"
    for revision in new:
        assert reason_for(grid, old.api_key, at_least_revision=revision) == "PERMITTED"
    assert current_revision(grid) == new[-1]
