"""What the authorizer's connection does about servers that fail, drain, restart, or are not who they should be."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from texture_auth import AsyncAuthorizer, Authorizer, Outcome
from texture_auth.connection import connection, is_loopback

from tests.client.scripted import ALLOW, NOT_SERVING, SERVING, Scripted, failing, scripted_server
from tests.operate.certificates import LOOPBACK, Authority

PATIENT = 30.0


@pytest.fixture
def server() -> Iterator[Scripted]:
    # One each: gRPC keeps one budget of retries for all the channels to an address.
    with scripted_server() as server:
        yield server


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def secured(authority: Authority) -> Iterator[Scripted]:
    own = authority.issue("server", hosts=LOOPBACK)
    credentials = grpc.ssl_server_credentials(
        [(own.private_key.read_bytes(), own.chain.read_bytes())],
        authority.certificate.read_bytes(),
        require_client_auth=True,
    )
    with scripted_server(credentials=credentials) as server:
        yield server


def unavailable_twice(server: Scripted) -> Callable[[Any, grpc.ServicerContext], Any]:
    unavailable = failing(grpc.StatusCode.UNAVAILABLE)
    return lambda request, context: unavailable(request, context) if len(server.asked) < 3 else ALLOW


def until(true: Callable[[], bool]) -> None:
    for _ in range(2_000):
        if true():
            return
    raise AssertionError("it never came to be")


class TestRetries:
    def test_a_question_that_finds_the_service_unavailable_is_asked_again(self, server: Scripted) -> None:
        server.answer = unavailable_twice(server)
        with Authorizer(server.address, timeout=PATIENT) as authorizer:
            assert authorizer.authorize("k", "devices:read", "d").allowed
        assert len(server.asked) == 3

    def test_and_so_it_is_in_coroutines(self, server: Scripted) -> None:
        server.answer = unavailable_twice(server)

        async def ask() -> bool:
            async with AsyncAuthorizer(server.address, timeout=PATIENT) as authorizer:
                return (await authorizer.authorize("k", "devices:read", "d")).allowed

        assert asyncio.run(ask())
        assert len(server.asked) == 3

    def test_retries_end_when_their_budget_is_spent(self) -> None:
        with (
            scripted_server(failing(grpc.StatusCode.UNAVAILABLE)) as server,
            Authorizer(server.address, timeout=PATIENT) as authorizer,
        ):
            attempts = []
            for _ in range(5):
                before = len(server.asked)
                assert authorizer.authorize("k", "devices:read", "d").code is grpc.StatusCode.UNAVAILABLE
                attempts.append(len(server.asked) - before)
        assert attempts[0] == 5
        assert attempts[-1] == 1

    def test_no_other_error_is_retried(self, server: Scripted) -> None:
        others = set(grpc.StatusCode) - {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        with Authorizer(server.address, timeout=PATIENT) as authorizer:
            for code in others:
                server.answer = failing(code)
                decision = authorizer.authorize("k", "devices:read", "d")
                assert (decision.outcome, decision.code, decision.reason) == (Outcome.UNANSWERED, code, code.name)
        assert len(server.asked) == len(others)

    def test_all_attempts_share_one_deadline(self, server: Scripted) -> None:
        server.answer = failing(grpc.StatusCode.UNAVAILABLE)
        with Authorizer(server.address, timeout=PATIENT) as authorizer:
            authorizer.authorize("k", "devices:read", "d", timeout=10)
        assert len(server.asked) > 1
        assert 10 >= server.remaining[0] > server.remaining[-1]

    def test_a_server_that_comes_back_within_the_deadline_answers(self) -> None:
        # Somebody listens, takes the connection and hangs up, as a server that ends does.
        with socket.create_server(("127.0.0.1", 0)) as ending:
            port = ending.getsockname()[1]
            found = []
            with Authorizer(f"127.0.0.1:{port}", timeout=PATIENT) as authorizer:
                asking = threading.Thread(
                    target=lambda: found.append(authorizer.authorize("k", "devices:read", "d")), daemon=True
                )
                asking.start()
                ending.accept()[0].close()
                ending.close()
                with scripted_server(port=port):
                    asking.join()
        assert found[0].allowed

    def test_nobody_there_is_a_no(self) -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            with Authorizer(f"127.0.0.1:{taken.getsockname()[1]}") as authorizer:
                decision = authorizer.authorize("k", "devices:read", "d")
        assert not decision
        assert decision.outcome is Outcome.UNANSWERED
        assert decision.http_status_code == 503


class TestManyServers:
    @pytest.fixture
    def two(self) -> Iterator[tuple[Scripted, Scripted, Authorizer]]:
        with (
            scripted_server() as one,
            scripted_server() as other,
            Authorizer(f"ipv4:{one.address},{other.address}", timeout=PATIENT) as authorizer,
        ):
            yield one, other, authorizer

    def test_questions_go_to_all_of_them_in_turn(self, two: tuple[Scripted, Scripted, Authorizer]) -> None:
        one, other, authorizer = two
        until(lambda: authorizer.authorize("k", "devices:read", "d").allowed and bool(one.asked and other.asked))

    def test_one_that_does_not_serve_is_asked_nothing_until_it_does(
        self, two: tuple[Scripted, Scripted, Authorizer]
    ) -> None:
        one, other, authorizer = two
        one.is_serving(NOT_SERVING)
        for _ in range(10):
            assert authorizer.authorize("k", "devices:read", "d").allowed
        assert not one.asked
        assert len(other.asked) == 10
        one.is_serving(SERVING)
        until(lambda: authorizer.authorize("k", "devices:read", "d").allowed and bool(one.asked))

    def test_one_that_begins_to_drain_is_asked_no_more(self, two: tuple[Scripted, Scripted, Authorizer]) -> None:
        one, other, authorizer = two
        until(lambda: authorizer.authorize("k", "devices:read", "d").allowed and bool(one.asked and other.asked))
        one.is_serving(NOT_SERVING)

        def left_alone() -> bool:
            before = len(one.asked)
            return all(authorizer.authorize("k", "devices:read", "d") for _ in range(4)) and len(one.asked) == before

        until(left_alone)

    def test_where_none_serves_the_answer_is_no(self, two: tuple[Scripted, Scripted, Authorizer]) -> None:
        one, other, authorizer = two
        one.is_serving(NOT_SERVING)
        other.is_serving(NOT_SERVING)
        decision = authorizer.authorize("k", "devices:read", "d")
        assert decision.code is grpc.StatusCode.UNAVAILABLE
        assert not one.asked
        assert not other.asked


def test_many_workers_behind_one_port_get_a_connection_each(server: Scripted) -> None:
    with Authorizer(server.address, connections=3) as authorizer:
        for _ in range(6):
            assert authorizer.authorize("k", "devices:read", "d").allowed
    assert len(server.peers) == 3


def test_loopback_is_not_reached_by_a_proxy(server: Scripted, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "grpc_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with Authorizer(server.address) as authorizer:
        assert authorizer.authorize("k", "devices:read", "d").allowed


class TestTls:
    def test_server_and_caller_prove_themselves_by_certificates(self, authority: Authority, secured: Scripted) -> None:
        own = authority.issue("caller")
        with Authorizer(
            secured.address,
            tls_ca=authority.certificate,
            client_certificate=str(own.chain),
            client_private_key=own.private_key.read_bytes(),
            timeout=PATIENT,
        ) as authorizer:
            assert authorizer.authorize("k", "devices:read", "d").allowed

    def test_a_server_whose_authority_is_not_trusted_gets_neither_question_nor_credential(
        self, authority: Authority, secured: Scripted, tmp_path: Path
    ) -> None:
        own = authority.issue("caller")
        secured.asked.clear()
        with Authorizer(
            secured.address,
            caller_key="secret",
            tls_ca=Authority(tmp_path).certificate,
            client_certificate=own.chain,
            client_private_key=own.private_key,
        ) as authorizer:
            assert authorizer.authorize("k", "devices:read", "d").outcome is Outcome.UNANSWERED
        assert not secured.asked

    def test_what_is_no_pem_is_refused_at_once(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match="tls_ca holds no PEM"):
            Authorizer("localhost:1", tls_ca=b"rubbish")
        with pytest.raises(ValueError, match="go together"):
            Authorizer("localhost:1", client_certificate=b"-----BEGIN CERTIFICATE-----")
        with pytest.raises(FileNotFoundError):
            Authorizer("localhost:1", tls_ca=tmp_path / "none")


class TestPlainText:
    @pytest.mark.parametrize(
        "address",
        ["localhost:1", "127.0.0.1:1", "[::1]:1", "127.9.9.9:1", "unix:///x", "dns:///localhost:1", "ipv4:127.0.0.1:1"],
    )
    def test_is_for_this_machine(self, address: str) -> None:
        assert connection(address).credentials is None

    @pytest.mark.parametrize(
        "address",
        [
            "auth.internal:443",
            "10.0.0.1:1",
            "localhost",
            "127.0.0.1",
            "127.0.0.1.example:1",
            "dns:///auth.internal:1",
            "dns://localhost:53/auth.internal:1",
            "dns://10.0.0.1:53/localhost:1",
            "ipv4:127.0.0.1:1,10.0.0.1:1",
            "xds:///localhost:1",
            "localhost:1@evil:1",
        ],
    )
    def test_goes_nowhere_else_unless_told_by_name(self, address: str) -> None:
        assert connection(address).credentials is not None
        assert connection(address, insecure_plaintext=True).credentials is None

    @given(st.text(alphabet="localhst127.0:/[]@dnsipv46,x", max_size=30))
    def test_an_address_that_is_taken_for_this_machine_names_no_other(self, address: str) -> None:
        if is_loopback(address) and not address.startswith("unix"):
            rest = address.removeprefix("dns:").removeprefix("ipv4:").removeprefix("ipv6:")
            hosts = {each.rpartition("/")[2].rpartition(":")[0].strip("[]") for each in rest.split(",")}
            assert all(host in {"localhost", "::1"} or host.startswith("127.") for host in hosts)

    def test_is_not_spoken_where_a_certificate_authority_is_named(self, tmp_path: Path) -> None:
        ca = Authority(tmp_path).certificate
        assert connection("localhost:1", tls_ca=ca, insecure_plaintext=True).credentials is not None


def test_an_address_or_a_number_that_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="address"):
        Authorizer("")
    with pytest.raises(ValueError, match="connections"):
        Authorizer("localhost:1", connections=0)
    with pytest.raises(ValueError, match="timeout"):
        Authorizer("localhost:1", timeout=float("nan"))


def test_grpc_is_not_touched_before_the_first_question_so_that_processes_may_be_forked(server: Scripted) -> None:
    with Authorizer(server.address) as authorizer:
        assert not authorizer._channels
        assert authorizer.authorize("k", "devices:read", "d").allowed
        assert authorizer._channels
