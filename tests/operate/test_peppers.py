"""Peppers: the first signs, all verify, and one that is missing is never mistaken for a wrong key."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture.auth.v1.error_pb2 import ERROR_REASON_PEPPER_UNAVAILABLE

from server.store.contract import StoreUnavailable
from tests.harness import Refused, Service, refused, running_service
from tests.operate.process import client, serving
from tests.wire.links_helpers import (
    BACKEND_URI,
    SITE_URI,
    connect_key,
    create_link,
    create_workspace,
    length,
    reason,
    server_key,
    with_wrong_secret,
)

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
ONE = f"one {'a1' * 32}"
TWO = f"two {'b2' * 32}"


def stored_under(service: Service) -> set[str]:
    """Return the ids of the peppers that keys are stored under."""
    with closing(sqlite3.connect(service.database)) as database:
        return {row[0] for row in database.execute("SELECT DISTINCT pepper_id FROM key_generation")}


def assert_pepper_unavailable(found: Refused) -> None:
    assert (found.code, found.reason) == (UNAVAILABLE, "PEPPER_UNAVAILABLE")
    assert found.retry_seconds


def test_a_key_whose_pepper_is_missing_is_unavailable_and_never_unknown(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        old = server_key(service.operator)
        link = create_link(service.operator, old.api_key, BACKEND_URI)
        request_of_caller = caller_pb.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
        old_caller_key = service.operator.callers.CreateCaller(request_of_caller).caller_key
    # The development operator is recognised by neither pepper, so that its key is renewed under the new one.
    with running_service(tmp_path, peppers=TWO) as service:
        operator = service.operator
        new = server_key(operator)
        for api_key in (old.api_key, with_wrong_secret(old.api_key)):
            assert_pepper_unavailable(refused(reason, operator, api_key))
            assert_pepper_unavailable(refused(operator.keys.LookupKey, key_pb.LookupKeyRequest(api_key=api_key)))
            assert_pepper_unavailable(refused(create_link, operator, api_key, BACKEND_URI))
        request = connect_pb.GetConnectLinkRequest(link_token=link.link_token)
        assert_pepper_unavailable(refused(operator.connect.GetConnectLink, request))
        calling = service.client(old_caller_key)
        assert_pepper_unavailable(refused(calling.callers.ListCallers, caller_pb.ListCallersRequest()))

        # Everything else goes on.
        assert reason(operator, new.api_key) == "PERMITTED"
        assert operator.keys.GetKey(key_pb.GetKeyRequest(key_id=old.key.key_id)).key == old.key


def test_in_a_batch_it_spoils_no_other_question(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        old = server_key(service.operator).api_key
    with running_service(tmp_path, peppers=TWO) as service:
        new = server_key(service.operator).api_key
        questions = [authorize_pb.Question(api_key=key, permission="devices:list") for key in (new, old, new)]
        batch = authorize_pb.BatchAuthorizeRequest(questions=questions)
        first, second, third = service.operator.authorize.BatchAuthorize(batch).answers
        assert first.answer.decision == third.answer.decision == authorize_pb.DECISION_ALLOW
        assert second.error.reason == ERROR_REASON_PEPPER_UNAVAILABLE


def test_a_key_that_is_rotated_works_again_where_its_old_pepper_is_missing(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        old = server_key(service.operator)
    with running_service(tmp_path, peppers=TWO) as service:
        rotation = key_pb.RotateKeyRequest(key_id=old.key.key_id, overlap=length(timedelta(hours=1)))
        rotated = service.operator.keys.RotateKey(rotation)
        assert reason(service.operator, rotated.api_key) == "PERMITTED"
        # While the old secret is in force, nobody here can tell it from a wrong one.
        assert_pepper_unavailable(refused(reason, service.operator, old.api_key))
        # Afterwards it is denied whatever it is, so that a pepper which nothing in force needs can be taken away.
        service.clock.turn(timedelta(hours=1))
        assert reason(service.operator, old.api_key) in ("KEY_UNKNOWN", "KEY_RETIRED")
        assert reason(service.operator, rotated.api_key) == "PERMITTED"


def test_a_pepper_is_replaced_without_a_key_lost(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        operator_key = service.operator_key
        api_keys = [server_key(service.operator).api_key]
        assert stored_under(service) == {"one"}
    # Rolled out for verifying only: every process can check the new one before any process signs with it.
    with running_service(tmp_path, peppers=f"{ONE}\n{TWO}") as service:
        assert service.operator_key == operator_key
        api_keys.append(server_key(service.operator).api_key)
        assert stored_under(service) == {"one"}
    # Promoted.
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        assert service.operator_key == operator_key
        api_keys.append(server_key(service.operator).api_key)
        assert stored_under(service) == {"one", "two"}
        assert [reason(service.operator, api_key) for api_key in api_keys] == ["PERMITTED"] * 3
    # A process that was not promoted yet understands what the others signed.
    with running_service(tmp_path, peppers=f"{ONE}\n{TWO}") as service:
        assert [reason(service.operator, api_key) for api_key in api_keys] == ["PERMITTED"] * 3


def generations_of(service: Service, table: str = "key_generation") -> list[tuple[str, str, int]]:
    """Return which pepper each secret is kept under."""
    with closing(sqlite3.connect(service.database)) as database:
        return list(database.execute(f"SELECT key_id, pepper_id, number FROM {table} ORDER BY key_id, number"))


def keep_house(service: Service) -> None:
    service.app._housekeeper.run_once()


def test_a_secret_moves_to_the_pepper_that_signs_when_it_is_used(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        used, unused = server_key(service.operator), server_key(service.operator)
        request_of_caller = caller_pb.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
        caller = service.operator.callers.CreateCaller(request_of_caller)
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        keep_house(service)
        assert reason(service.client(caller.caller_key), used.api_key) == "PERMITTED"
        before = service.operator.keys.GetKey(key_pb.GetKeyRequest(key_id=used.key.key_id)).key

        keep_house(service)

        kept = {key_id: pepper_id for key_id, pepper_id, _ in generations_of(service)}
        assert kept == {used.key.key_id: "two", unused.key.key_id: "one"}
        callers = {key_id: pepper_id for key_id, pepper_id, _ in generations_of(service, "caller_generation")}
        assert callers[caller.caller.key_id] == "two"
        # To its owner nothing has changed, and nothing has happened.
        assert service.operator.keys.GetKey(key_pb.GetKeyRequest(key_id=used.key.key_id)).key == before
        events = service.operator.keys.ListKeyEvents(key_pb.ListKeyEventsRequest(key_id=used.key.key_id)).events
        assert [event.type for event in events] == ["key.created"]
        revision = service.query("SELECT number FROM revision")
        assert reason(service.client(caller.caller_key), used.api_key) == "PERMITTED"
        keep_house(service)
        assert service.query("SELECT number FROM revision") == revision
    with running_service(tmp_path, peppers=TWO) as service:
        assert reason(service.client(caller.caller_key), used.api_key) == "PERMITTED"
        assert_pepper_unavailable(refused(reason, service.operator, unused.api_key))


def test_a_connect_key_moves_when_it_makes_a_link(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        site = connect_key(service.operator)
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        keep_house(service)
        create_link(service.operator, site.api_key, SITE_URI)
        keep_house(service)
        assert stored_under(service) == {"two"}


def test_each_secret_of_an_overlap_moves_by_itself_and_a_retired_one_not_at_all(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        first = server_key(service.operator)
        ended = service.operator.keys.RotateKey(key_pb.RotateKeyRequest(key_id=first.key.key_id))
        overlapping = key_pb.RotateKeyRequest(key_id=first.key.key_id, overlap=length(timedelta(hours=1)))
        service.operator.keys.RotateKey(overlapping)
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        keep_house(service)
        assert reason(service.operator, first.api_key) == "KEY_RETIRED"
        assert reason(service.operator, ended.api_key) == "PERMITTED"
        keep_house(service)
        assert [(number, pepper_id) for _, pepper_id, number in generations_of(service)] == [
            (1, "one"),
            (2, "two"),
            (3, "one"),
        ]
        assert reason(service.operator, ended.api_key) == "PERMITTED"


def test_a_wrong_secret_moves_nothing(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        api_key = server_key(service.operator).api_key
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        keep_house(service)
        assert reason(service.operator, with_wrong_secret(api_key)) == "KEY_UNKNOWN"
        keep_house(service)
        assert stored_under(service) == {"one"}


def test_what_changes_between_the_use_and_the_move_stays_changed(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        rotated, revoked = server_key(service.operator), server_key(service.operator)
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        service.app._housekeeper.stop()
        rehashing = service.app._rehashing
        assert not rehashing.store()
        assert reason(service.operator, rotated.api_key) == reason(service.operator, revoked.api_key) == "PERMITTED"
        overlap = length(timedelta(hours=1))
        service.operator.keys.RotateKey(key_pb.RotateKeyRequest(key_id=rotated.key.key_id, overlap=overlap))
        service.operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=revoked.key.key_id))

        rehashing.store()

        assert reason(service.operator, rotated.api_key) == "PERMITTED"
        service.clock.turn(timedelta(hours=1))
        assert reason(service.operator, rotated.api_key) == "KEY_RETIRED"
        assert reason(service.operator, revoked.api_key) == "KEY_REVOKED"
        kept = {(key_id, number): pepper_id for key_id, pepper_id, number in generations_of(service)}
        assert kept == {
            (rotated.key.key_id, 1): "two",
            (rotated.key.key_id, 2): "two",
            (revoked.key.key_id, 1): "one",
        }


def test_a_process_that_was_not_promoted_moves_nothing_back(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=f"{ONE}\n{TWO}") as service:
        create_workspace(service.operator)
        api_key = server_key(service.operator).api_key
        keep_house(service)
        # Another process, which was promoted, mints under the new pepper and moves what it sees used.
        with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as promoted:
            keep_house(promoted)
            assert reason(promoted.operator, api_key) == "PERMITTED"
            keep_house(promoted)
        assert stored_under(service) == {"two"}
        assert reason(service.operator, api_key) == "PERMITTED"
        keep_house(service)
        assert stored_under(service) == {"two"}


def test_digests_wait_while_the_store_is_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        api_keys = [server_key(service.operator).api_key for _ in range(3)]
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        service.app._housekeeper.stop()
        rehashing = service.app._rehashing
        assert not rehashing.store()
        monkeypatch.setattr("server.service.rehashing.AT_ONCE", 2)
        for api_key in api_keys:
            assert reason(service.operator, api_key) == "PERMITTED"
        store = type(service.app._resources.store)
        with monkeypatch.context() as patch:
            patch.setattr(store, "write", lambda _: (_ for _ in ()).throw(StoreUnavailable("away")))
            with pytest.raises(StoreUnavailable):
                rehashing.store()
        # A portion at a time, so that no writer waits long.
        more = rehashing.store()
        while more:
            more = rehashing.store()
        assert stored_under(service) == {"two"}


def test_a_revoked_key_needs_no_pepper(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=ONE) as service:
        create_workspace(service.operator)
        revoked = server_key(service.operator)
        service.operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=revoked.key.key_id))
    with running_service(tmp_path, peppers=TWO) as service:
        assert reason(service.operator, revoked.api_key) == "KEY_UNKNOWN"


def test_a_page_token_survives_a_promotion(tmp_path: Path) -> None:
    with running_service(tmp_path, peppers=f"{ONE}\n{TWO}") as service:
        service.caller("second", ROLE_AUTHORIZER)
        page = service.operator.callers.ListCallers(caller_pb.ListCallersRequest(page_size=1))
    with running_service(tmp_path, peppers=f"{TWO}\n{ONE}") as service:
        request = caller_pb.ListCallersRequest(page_size=1, page_token=page.next_page_token)
        assert [caller.caller_id for caller in service.operator.callers.ListCallers(request).callers] == ["second"]


def test_a_missing_pepper_is_loud(tmp_path: Path) -> None:
    quiet = ("--development", "--log-format", "json", "--log-level", "warning")
    with (
        serving(tmp_path, *quiet, env={"TEXTURE_AUTH_PEPPERS": ONE}) as server,
        client(server) as calling,
    ):
        create_workspace(calling)
        api_key = server_key(calling).api_key
    with (
        serving(tmp_path, *quiet, env={"TEXTURE_AUTH_PEPPERS": TWO}) as server,
        client(server) as calling,
    ):
        assert_pepper_unavailable(refused(reason, calling, api_key))
        assert [line for line in server.log if line["level"] in ("warning", "error", "critical")]
        assert "one" in server.stderr.read_text()
