"""What `texture-auth check` finds: each way in which an adopter may not get through is told from the others."""

from __future__ import annotations

import itertools
import json
import shutil
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import grpc
import pytest
import structlog
from click.testing import CliRunner
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import caller_service_pb2
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceServicer, add_AuthorizeServiceServicer_to_server
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_KEY_ADMIN, Role
from texture_auth import __main__ as command
from texture_auth import check, reach
from texture_auth.check import Subject, exit_code
from texture_auth.finding import Finding, Level
from texture_auth.reach import Place

from server.cli.root import root
from server.domain import token
from tests.client.secure import secured
from tests.harness import Service, running_service
from tests.operate.certificates import DAY, LOOPBACK, Authority, Certificate, Validity
from tests.operate.process import environment

STEPS = ["name", "port", "tls", "grpc", "health", "caller", "role", "time"]
URI = "spiffe://prod.example/device-api"


@dataclass(frozen=True)
class World:
    """A service in plain text and over TLS, with two callers."""

    service: Service
    authority: Authority
    certificate: Certificate
    address: str
    authorizer_key: str
    key_admin_key: str

    @property
    def plain(self) -> Subject:
        """What a caller finds who does everything right, in plain text."""
        return Subject(place=Place(address=self.service.address), caller_key=self.authorizer_key, questions=3)

    @property
    def tls(self) -> Subject:
        """The same over TLS."""
        place = Place(address=self.address, tls_ca=self.authority.certificate)
        return replace(self.plain, place=place)

    @contextmanager
    def serving(self, name: str, **issued: Any) -> Iterator[None]:
        """Have another certificate served for a while."""
        other = self.authority.issue(name, **issued)
        kept = [(path, path.read_bytes()) for path in (self.certificate.private_key, self.certificate.chain)]
        shutil.copyfile(other.private_key, self.certificate.private_key)
        shutil.copyfile(other.chain, self.certificate.chain)
        yield
        for path, content in kept:
            path.write_bytes(content)


@pytest.fixture(autouse=True)
def _quiet_server() -> Iterator[None]:
    """Keep the log of the server, which runs in this process, out of what the command prints."""
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())
    yield
    structlog.reset_defaults()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all of these tests: nothing here changes it."""
    certificates = tmp_path_factory.mktemp("certificates")
    authority = Authority(certificates)
    certificate = authority.issue("server", hosts=LOOPBACK)
    with running_service(tmp_path_factory.mktemp("service")) as service:

        def key(caller_id: str, *roles: Role.ValueType) -> str:
            request = caller_service_pb2.CreateCallerRequest(caller_id=caller_id, roles=roles)
            return service.operator.callers.CreateCaller(request).caller_key

        keys = key("device-api", ROLE_AUTHORIZER), key("dashboard", ROLE_KEY_ADMIN)
        with secured(service, certificate) as address:
            yield World(service, authority, certificate, address, *keys)


def found(subject: Subject) -> list[Finding]:
    """Check, and see that no key is told."""
    findings = list(check.examine(subject))
    assert not token.holds_token(repr((subject, findings)))
    return findings


def failed(subject: Subject) -> Finding:
    """Check what must fail, and return with what: the last step that was taken, which says what to do."""
    *before, last = found(subject)
    assert last.level is Level.FAILURE
    assert last.to_do
    assert all(finding.level is not Level.FAILURE for finding in before)
    return last


@contextmanager
def grpc_server(*servicers: Any) -> Iterator[str]:
    """Run another gRPC server than Texture Auth's."""
    with ThreadPoolExecutor(2) as pool:
        server = grpc.server(pool)
        for add, servicer in servicers:
            add(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        yield f"127.0.0.1:{port}"
        server.stop(None).wait()


def health(status: int) -> tuple[Any, HealthServicer]:
    """Return the health of Authorize, to be served."""
    servicer = HealthServicer()
    servicer.set("texture.auth.v1.AuthorizeService", status)
    return add_HealthServicer_to_server, servicer


class _Web(BaseHTTPRequestHandler):
    """Answers HTTP/1.1 with an error, and logs nothing."""

    def log_message(self, *_: Any) -> None:
        pass


_CONNECT = socket.create_connection


def _connect(address: tuple[str, int], *more: Any) -> socket.socket:
    """Connect to no other address than 127.0.0.1: on this machine all of 127.0.0.0/8 is the same."""
    if address[0] != "127.0.0.1":
        raise ConnectionRefusedError(111, "Connection refused")
    return _CONNECT(address, *more)


class TestAllIsWell:
    def test_each_step_is_told_in_plain_text(self, world: World) -> None:
        findings = found(world.plain)
        assert [(finding.check, finding.level) for finding in findings] == [(step, Level.OK) for step in STEPS]

    def test_and_over_tls_with_the_name_the_issuer_and_the_end_of_the_certificate(self, world: World) -> None:
        findings = found(world.tls)
        assert [(finding.check, finding.level) for finding in findings] == [(step, Level.OK) for step in STEPS]
        assert "for 127.0.0.1, of authority, valid until 20" in findings[2].found

    def test_nothing_is_changed_by_it(self, world: World) -> None:
        tables = ("event", "key_use", "key", "caller")
        present = {row["name"] for row in world.service.query("SELECT name FROM sqlite_master WHERE type = 'table'")}
        counts = {
            table: world.service.query(f"SELECT count(*) AS n FROM {table}") for table in present.intersection(tables)
        }
        found(world.plain)
        assert counts
        for table, count in counts.items():
            assert world.service.query(f"SELECT count(*) AS n FROM {table}") == count

    def test_the_key_that_is_asked_about_is_well_formed_and_nobodys(self) -> None:
        assert token.parse(check._NOBODYS_KEY) is not None

    def test_a_certificate_stands_for_a_key(self, world: World) -> None:
        world.service.operator.callers.CreateCaller(
            caller_service_pb2.CreateCallerRequest(
                caller_id="by-certificate", roles=[ROLE_AUTHORIZER], certificate_names=[URI], without_key=True
            )
        )
        identity = world.authority.issue("client", uris=[URI])
        with secured(world.service, world.certificate, world.authority.certificate) as address:
            place = replace(world.tls.place, address=address)
            refused = failed(replace(world.tls, place=place))
            assert (refused.check, exit_code([refused])) == ("caller", 5)
            assert "demand a client certificate" in refused.found
            mine = replace(place, tls_certificate=identity.chain, tls_private_key=identity.private_key)
            assert exit_code(found(replace(world.tls, place=mine, caller_key=""))) == 0
            stale = world.authority.issue("stale", uris=[URI], validity=Validity(ends=-DAY / 2))
            place = replace(place, tls_certificate=stale.chain, tls_private_key=stale.private_key)
            refused = failed(replace(world.tls, place=place, caller_key=""))
            assert refused.check == "caller"
            assert "does not take the client certificate" in refused.found


class TestWhatIsReached:
    @pytest.mark.parametrize("address", ["localhost", ":50051", "localhost:port", "localhost:99999"])
    def test_an_address_without_host_or_port(self, world: World, address: str) -> None:
        refused = failed(replace(world.plain, place=Place(address=address)))
        assert (refused.check, exit_code([refused])) == ("name", 4)
        assert "HOST:PORT" in refused.to_do

    @pytest.mark.parametrize("name", ["texture-auth.invalid", "x" * 64, "a..b"])
    def test_a_name_that_does_not_resolve(self, world: World, name: str) -> None:
        refused = failed(replace(world.plain, place=Place(address=f"{name}:443")))
        assert (refused.check, exit_code([refused])) == ("name", 4)
        assert f"{name} does not resolve" in refused.found

    def test_a_target_as_grpc_writes_it(self, world: World) -> None:
        place = Place(address=f"dns:///{world.service.address}")
        assert exit_code(found(replace(world.plain, place=place))) == 0

    def test_a_service_that_is_down(self, world: World) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
            refused = failed(replace(world.plain, place=Place(address=address)))
        assert (refused.check, exit_code([refused])) == ("port", 4)
        assert "refused" in refused.found

    def test_a_name_of_several_addresses_of_which_one_is_down_is_a_warning(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        port = int(world.service.address.rpartition(":")[2])
        both = [(socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port)) for host in ("127.0.0.2", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
        monkeypatch.setattr(socket, "create_connection", _connect)
        place = Place(address=f"auth.internal:{port}", insecure_plaintext=True)
        findings = list(reach.examine(place))
        assert [(finding.check, finding.level) for finding in findings] == [
            ("name", Level.OK),
            ("port", Level.WARNING),
            ("tls", Level.WARNING),
            ("grpc", Level.OK),
        ]
        assert "127.0.0.2: connection refused" in findings[1].found
        assert "plain text" in findings[2].found

    def test_one_whose_health_cannot_be_had(self, world: World) -> None:
        broken = mock.create_autospec(HealthServicer, instance=True)
        broken.Check.side_effect = RuntimeError("broken")
        with grpc_server((add_HealthServicer_to_server, broken)) as address:
            refused = failed(replace(world.plain, place=Place(address=address)))
        assert (refused.check, exit_code([refused])) == ("grpc", 4)
        assert "UNKNOWN" in refused.found

    def test_one_that_does_not_say_in_time_whether_it_serves(self, world: World) -> None:
        over = threading.Event()
        hanging = mock.create_autospec(HealthServicer, instance=True)
        hanging.Check.side_effect = lambda *_: over.wait(30)
        with grpc_server((add_HealthServicer_to_server, hanging)) as address:
            refused = failed(replace(world.plain, place=Place(address=address, timeout=0.1)))
            over.set()
        assert (refused.check, exit_code([refused])) == ("health", 4)

    @pytest.mark.parametrize("secure", [True, False])
    def test_one_that_takes_connections_and_hangs(self, world: World, secure: bool) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:
            place = replace(
                (world.tls if secure else world.plain).place,
                address=f"127.0.0.1:{listening.getsockname()[1]}",
                timeout=0.05,
            )
            refused = failed(replace(world.plain, place=place))
        assert (refused.check, exit_code([refused])) == ("grpc", 4)
        assert "says nothing within 0.05 s" in refused.found

    @pytest.mark.parametrize("secure", [True, False])
    def test_a_port_that_speaks_another_protocol(self, world: World, secure: bool) -> None:
        with (
            ThreadingHTTPServer(("127.0.0.1", 0), _Web) as http,
            ThreadPoolExecutor(1) as pool,
        ):
            pool.submit(http.serve_forever, 0.01)
            place = replace((world.tls if secure else world.plain).place, address=f"127.0.0.1:{http.server_address[1]}")
            refused = failed(replace(world.plain, place=place))
            http.shutdown()
        assert (refused.check, exit_code([refused])) == ("grpc", 4)
        assert "no gRPC" in refused.found

    def test_a_port_that_hangs_up(self, world: World) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def hang_up() -> None:
                for _ in range(3):
                    listening.accept()[0].close()

            thread = threading.Thread(target=hang_up)
            thread.start()
            place = Place(address=f"127.0.0.1:{listening.getsockname()[1]}")
            refused = failed(replace(world.plain, place=place))
            thread.join()
        assert (refused.check, exit_code([refused])) == ("grpc", 4)

    def test_a_grpc_server_of_something_else(self, world: World) -> None:
        with grpc_server() as address:
            refused = failed(replace(world.plain, place=Place(address=address)))
        assert (refused.check, exit_code([refused])) == ("grpc", 4)
        assert "not of Texture Auth" in refused.found

    def test_a_service_that_does_not_serve(self, world: World) -> None:
        with grpc_server(health(health_pb2.HealthCheckResponse.NOT_SERVING)) as address:
            refused = failed(replace(world.plain, place=Place(address=address)))
        assert (refused.check, exit_code([refused])) == ("health", 4)
        assert "NOT_SERVING" in refused.found

    def test_one_that_allows_what_cannot_be(self, world: World) -> None:
        generous = mock.create_autospec(AuthorizeServiceServicer, instance=True)
        generous.Authorize.return_value = pb.AuthorizeResponse(decision=pb.DECISION_ALLOW, reason=pb.REASON_PERMITTED)
        serves = health(health_pb2.HealthCheckResponse.SERVING)
        with grpc_server(serves, (add_AuthorizeServiceServicer_to_server, generous)) as address:
            refused = failed(replace(world.plain, place=Place(address=address)))
        assert (refused.check, exit_code([refused])) == ("answer", 1)


class TestTls:
    def test_plain_text_against_tls(self, world: World) -> None:
        refused = failed(replace(world.plain, place=Place(address=world.address)))
        assert (refused.check, exit_code([refused])) == ("tls", 4)
        assert "the server speaks TLS" in refused.found

    def test_tls_against_plain_text(self, world: World) -> None:
        place = replace(world.tls.place, address=world.service.address)
        refused = failed(replace(world.tls, place=place))
        assert (refused.check, exit_code([refused])) == ("tls", 4)
        assert "the server speaks plain text" in refused.found

    def test_an_issuer_that_is_not_trusted(self, world: World, tmp_path: Path) -> None:
        place = replace(world.tls.place, tls_ca=Authority(tmp_path, "stranger").certificate)
        refused = failed(replace(world.tls, place=place))
        assert (refused.check, exit_code([refused])) == ("tls", 4)
        assert "issuer is not trusted" in refused.found

    def test_an_issuer_of_its_own_that_is_not_named(self, world: World) -> None:
        with secured(world.service, world.certificate, world.authority.certificate) as address:
            identity = world.authority.issue("anybody", uris=[URI])
            place = Place(address=address, tls_certificate=identity.chain, tls_private_key=identity.private_key)
            refused = failed(replace(world.tls, place=place))
        assert "one that gRPC trusts by itself" in refused.found

    def test_a_certificate_that_has_expired(self, world: World) -> None:
        with world.serving("expired", hosts=LOOPBACK, validity=Validity(ends=-DAY / 2)):
            refused = failed(world.tls)
        assert (refused.check, exit_code([refused])) == ("tls", 4)
        assert "the certificate expired 20" in refused.found

    def test_one_that_is_not_valid_yet(self, world: World) -> None:
        with world.serving("early", hosts=LOOPBACK, validity=Validity(begins=DAY)):
            refused = failed(world.tls)
        assert "not valid before 20" in refused.found
        assert "clock" in refused.to_do

    def test_one_for_another_name(self, world: World) -> None:
        with world.serving("elsewhere", hosts=["auth.elsewhere", "10.1.2.3"]):
            refused = failed(world.tls)
        assert (refused.check, exit_code([refused])) == ("tls", 4)
        assert "not for 127.0.0.1, but for auth.elsewhere, 10.1.2.3" in refused.found

    def test_one_that_should_have_been_renewed_is_a_warning(self, world: World) -> None:
        with world.serving("late", hosts=LOOPBACK, validity=Validity(ends=timedelta(hours=1))):
            findings = found(world.tls)
        assert exit_code(findings) == 0
        assert [finding.check for finding in findings if finding.level is Level.WARNING] == ["tls"]

    def test_files_that_cannot_be_used(self, world: World, tmp_path: Path) -> None:
        noise = tmp_path / "noise.pem"
        noise.write_text("noise")
        refused = failed(replace(world.tls, place=replace(world.tls.place, tls_ca=noise)))
        assert (refused.check, exit_code([refused])) == ("tls", 4)
        assert "PEM" in refused.to_do


class TestTheCaller:
    def test_without_a_credential(self, world: World) -> None:
        refused = failed(replace(world.plain, caller_key=""))
        assert (refused.check, exit_code([refused])) == ("caller", 5)
        assert "no credential" in refused.found
        assert "TEXTURE_AUTH_CALLER_KEY" in refused.to_do

    def test_with_a_key_that_the_service_does_not_know(self, world: World) -> None:
        stranger = token.mint(token.TokenKind.SERVICE, token.new_id())
        refused = failed(replace(world.plain, caller_key=stranger.text))
        assert (refused.check, exit_code([refused])) == ("caller", 5)
        assert f"{stranger.public_id} is not let in: CALLER_CREDENTIAL_UNKNOWN" in refused.found

    def test_with_a_key_that_is_none(self, world: World) -> None:
        refused = failed(replace(world.plain, caller_key="hunter2"))
        assert (refused.check, exit_code([refused])) == ("caller", 5)
        assert "CALLER_CREDENTIAL_MALFORMED" in refused.found
        assert "hunter2" not in refused.found

    def test_without_the_role(self, world: World) -> None:
        findings = found(replace(world.plain, caller_key=world.key_admin_key))
        assert findings[-2].check == "caller"
        assert "dashboard" in findings[-2].found
        assert (findings[-1].check, findings[-1].level, exit_code(findings)) == ("role", Level.FAILURE, 5)
        assert "authorizer, operator" in findings[-1].found
        assert "callers update dashboard" in findings[-1].to_do

    def test_with_answers_that_come_too_late(self, world: World) -> None:
        refused = failed(replace(world.plain, deadline=0.000_001, questions=1000))
        assert (refused.check, exit_code([refused])) == ("time", 4)
        assert refused.found.startswith("0 answers; 3 without")

    def test_answers_that_come_just_in_time_are_a_warning(self, world: World) -> None:
        ticks = itertools.count()
        *_, last = found(replace(world.plain, deadline=30, clock=lambda: next(ticks) * 20.0))
        assert (last.check, last.level) == ("time", Level.WARNING)
        assert "3 answers: p50 20000.0 ms, p99 20000.0 ms" in last.found


def by_the_service(world: World, *arguments: str, **variables: str) -> tuple[int, str]:
    """Run the service's own command line."""
    clean: dict[str, str | None] = dict.fromkeys(sys.modules["os"].environ.keys() - environment().keys())
    done = CliRunner().invoke(root, arguments, env={**clean, **_variables(world), **variables})
    return done.exit_code, done.stdout


def by_the_wheel(world: World, monkeypatch: pytest.MonkeyPatch, *arguments: str, **variables: str) -> int:
    """Run the command that the client's wheel brings, and return its exit code."""
    monkeypatch.setattr(sys, "argv", ["texture-auth", *arguments])
    for name, value in (_variables(world) | variables).items():
        monkeypatch.setenv(name, value)
    try:
        return command.main()
    except SystemExit as ended:
        return int(ended.code or 0)


def _variables(world: World) -> dict[str, str]:
    return {"TEXTURE_AUTH_ADDRESS": world.service.address, "TEXTURE_AUTH_CALLER_KEY": world.authorizer_key}


class TestTheCommands:
    def test_both_print_a_line_for_each_step(
        self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, printed = by_the_service(world, "check", "--questions", "2")
        assert code == 0
        assert by_the_wheel(world, monkeypatch, "check", "--questions", "2") == 0
        for text in (printed, capsys.readouterr().out):
            assert [line.split()[:2] for line in text.splitlines()] == [["✓", step] for step in STEPS]

    def test_both_print_json(
        self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, printed = by_the_service(world, "check", "--json", TEXTURE_AUTH_CALLER_KEY="hunter2")
        assert code == 5
        assert by_the_wheel(world, monkeypatch, "check", "--json", TEXTURE_AUTH_CALLER_KEY="hunter2") == 5
        for text in (printed, capsys.readouterr().out):
            told = json.loads(text)
            assert told["healthy"] is False
            assert [finding["check"] for finding in told["findings"]] == STEPS[:6]
            assert told["findings"][-1]["level"] == "failure"

    def test_a_key_in_the_arguments_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert by_the_wheel(world, monkeypatch, "--address", world.authorizer_key, "check") == 2
        assert "stands in the arguments" in capsys.readouterr().err

    def test_a_file_that_cannot_be_read_is_named(
        self, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert by_the_wheel(world, monkeypatch, "--caller-key-file", "/nowhere/key", "check") == 5
        assert "/nowhere/key" in capsys.readouterr().err
        assert by_the_service(world, "--caller-key-file", "/nowhere/key", "check")[0] == 5

    @pytest.mark.parametrize(
        "arguments",
        [(), ("check", "--questions", "0"), ("check", "--deadline", "0"), ("--tls-certificate", "x", "check")],
    )
    def test_wrong_usage_is_refused(
        self, world: World, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...]
    ) -> None:
        assert by_the_wheel(world, monkeypatch, *arguments) == 2
