"""Peppers: the first signs, all verify, and one that is missing is never mistaken for a wrong key."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import grpc
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture.auth.v1.error_pb2 import ERROR_REASON_PEPPER_UNAVAILABLE

from tests.harness import Refused, Service, refused, running_service
from tests.operate.process import client, serving
from tests.wire.links_helpers import (
    BACKEND_URI,
    create_link,
    create_workspace,
    length,
    reason,
    server_key,
    with_wrong_secret,
)

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
