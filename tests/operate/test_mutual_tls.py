"""Callers that prove themselves by certificates, and certificates that are replaced while the server runs."""

from __future__ import annotations

import shutil
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as pb
from texture.auth.v1 import workspace_service_pb2
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER, ROLE_KEY_ADMIN, Role

from server import app
from server.settings import Settings
from server.wire.tls import certificate_names
from tests.harness import Client, as_refused
from tests.operate.certificates import Authority, Certificate
from tests.operate.process import Server, run, serving, wait_until

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

SPIFFE = "spiffe://prod.example/device-api"
LIST = workspace_service_pb2.ListWorkspacesRequest()


@dataclass(frozen=True)
class Place:
    """A migrated store with its operator, an authority for servers and one for callers."""

    folder: Path
    operator_key: str
    authority: Authority
    client_authority: Authority
    certificate: Certificate

    def flags(self, *more: str) -> tuple[str, ...]:
        """Return the flags of a server that demands client certificates."""
        return (
            *("--tls-certificate", str(self.certificate.chain), "--tls-private-key", str(self.certificate.private_key)),
            *("--tls-client-ca", str(self.client_authority.certificate), *more),
        )

    @contextmanager
    def client(self, address: str, identity: Certificate | None = None, key: str | None = None) -> Iterator[Client]:
        """Call with a client certificate, a key, both or neither."""
        trusted = self.authority.certificate.read_bytes()
        credentials = grpc.ssl_channel_credentials(trusted)
        if identity is not None:
            private_key, chain = identity.private_key.read_bytes(), identity.chain.read_bytes()
            credentials = grpc.ssl_channel_credentials(trusted, private_key, chain)
        with grpc.secure_channel(address, credentials, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            yield Client(channel, key)

    @property
    def operator(self) -> Certificate:
        """A certificate that names nobody, to come through the door with."""
        return self.client_authority.issue("operator", hosts=["operator.internal"])


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """Prepare a store for production."""
    peppers = tmp_path / "peppers"
    peppers.write_text(f"p1 {'ab' * 32}\n")
    (tmp_path / "servers").mkdir()
    (tmp_path / "clients").mkdir()
    settings = Settings(database=f"sqlite:{tmp_path / 'auth.db'}", peppers_file=peppers)
    app.migrate(settings)
    operator_key = app.bootstrap(settings, "operator")
    authority = Authority(tmp_path / "servers")
    certificate = authority.issue("server", hosts=["localhost", "127.0.0.1"])
    return Place(tmp_path, operator_key, authority, Authority(tmp_path / "clients"), certificate)


@contextmanager
def demanding(place: Place, *more: str) -> Iterator[Server]:
    store = ("--database", "sqlite:auth.db", "--peppers-file", "peppers")
    with serving(place.folder, *store, *place.flags(*more)) as server:
        yield server


def create(operator: Client, caller_id: str, *names: str, without_key: bool = True) -> pb.CreateCallerResponse:
    return operator.callers.CreateCaller(
        pb.CreateCallerRequest(
            caller_id=caller_id, roles=[ROLE_AUTHORIZER], certificate_names=names, without_key=without_key
        )
    )


def reason(client: Client) -> str:
    """Return why a question is not answered; empty where it is."""
    try:
        client.authorize.Authorize(authorize_pb.AuthorizeRequest(permission="devices:list"))
    except grpc.RpcError as error:
        return as_refused(error).reason
    return ""


def test_a_caller_is_known_by_a_name_in_its_certificate_and_has_its_roles(place: Place) -> None:
    by_uri = place.client_authority.issue("by-uri", hosts=["other.internal"], uris=[SPIFFE])
    by_dns = place.client_authority.issue("by-dns", hosts=["Connect-Backend.internal"])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        made = create(operator, "device-api", SPIFFE)
        assert made.caller_key == ""
        assert not made.caller.generations
        create(operator, "connect-backend", "connect-backend.internal")
        for identity in (by_uri, by_dns):
            with place.client(server.address, identity) as client:
                assert reason(client) == ""
                with pytest.raises(grpc.RpcError) as caught:
                    client.workspaces.ListWorkspaces(LIST)
                assert as_refused(caught.value).reason == "CALLER_ROLE_MISSING"
        callers = {line["caller"] for line in server.log if line["event"] == "rpc"}
        assert {"device-api", "connect-backend"} <= callers


def test_a_certificate_that_names_nobody_is_told_so(place: Place) -> None:
    unknown = place.client_authority.issue("unknown", hosts=["unknown.internal"])
    nameless = place.client_authority.issue("nameless")
    with demanding(place) as server:
        with place.client(server.address, unknown) as client:
            assert reason(client) == "CALLER_CERTIFICATE_UNKNOWN"
        with place.client(server.address, nameless) as client:
            assert reason(client) == "CALLER_CREDENTIAL_MISSING"


def test_the_key_in_the_metadata_wins_over_the_certificate(place: Place) -> None:
    identity = place.client_authority.issue("device-api", uris=[SPIFFE])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        create(operator, "device-api", SPIFFE)
        with place.client(server.address, identity, place.operator_key) as client:
            client.workspaces.ListWorkspaces(LIST)
        with place.client(server.address, identity, "not a key") as client:
            assert reason(client) == "CALLER_CREDENTIAL_MALFORMED"


def test_names_of_two_callers_in_one_certificate_are_nobody(place: Place) -> None:
    both = place.client_authority.issue("both", hosts=["one.internal", "two.internal"])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        create(operator, "caller-one", "one.internal")
        create(operator, "caller-two", "two.internal")
        with place.client(server.address, both) as client:
            assert reason(client) == "CALLER_CERTIFICATE_UNKNOWN"


def test_a_revoked_caller_does_not_stand_in_the_way_of_another_with_the_same_certificate(place: Place) -> None:
    both = place.client_authority.issue("both", hosts=["old.internal", "new.internal"])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        create(operator, "caller-old", "old.internal")
        create(operator, "caller-new", "new.internal")
        operator.callers.RevokeCaller(pb.RevokeCallerRequest(caller_id="caller-old"))
        with place.client(server.address, both) as client:
            assert reason(client) == ""


def test_a_dns_name_does_not_pass_for_a_uri_nor_a_uri_for_a_dns_name() -> None:
    context = {
        "peer_dns": [b"Device-API.internal", b"spiffe://prod/a"],
        "peer_uri": [b"spiffe://prod/b", b"b.internal"],
    }
    assert certificate_names(context) == ("device-api.internal", "spiffe://prod/b")
    assert certificate_names({}) == ()


def test_without_a_certificate_of_the_authority_nobody_comes_through_the_door(place: Place) -> None:
    stranger = Authority(place.folder, "stranger").issue("device-api", uris=[SPIFFE])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        create(operator, "device-api", SPIFFE)
        for identity in (None, stranger):
            with place.client(server.address, identity, place.operator_key) as client:
                with pytest.raises(grpc.RpcError) as caught:
                    client.workspaces.ListWorkspaces(LIST, timeout=20)
                assert isinstance(caught.value, grpc.Call)
                assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


def test_a_second_address_demands_certificates_where_the_first_does_not(place: Place) -> None:
    identity = place.client_authority.issue("device-api", uris=[SPIFFE])
    with demanding(place, "--tls-client-listen", "127.0.0.1:0") as server:
        second = server.output.split("with certificates, on ")[1].split()[0]
        with place.client(server.address, None, place.operator_key) as operator:
            create(operator, "device-api", SPIFFE)
        with place.client(second, identity) as client:
            assert reason(client) == ""
        with place.client(server.address, identity) as client:
            # A certificate that was not asked for was not sent.
            assert reason(client) == "CALLER_CREDENTIAL_MISSING"


def test_a_revoked_caller_is_refused_by_its_certificate_at_its_next_call(place: Place) -> None:
    identity = place.client_authority.issue("device-api", uris=[SPIFFE])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        create(operator, "device-api", SPIFFE)
        with place.client(server.address, identity) as client:
            assert reason(client) == ""
            operator.callers.RevokeCaller(pb.RevokeCallerRequest(caller_id="device-api"))
            assert reason(client) == "CALLER_REVOKED"
            # Its name is free for whoever takes its place.
            create(operator, "device-api-2", SPIFFE)
            assert reason(client) == ""
        old = operator.callers.GetCaller(pb.GetCallerRequest(caller_id="device-api")).caller
        assert not old.certificate_names


def served(place: Place, address: str) -> bytes:
    """Return the certificate that a new connection is served with."""
    host, _, port = address.rpartition(":")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    with socket.create_connection((host, int(port)), timeout=30) as plain, context.wrap_socket(plain) as wrapped:
        return wrapped.getpeercert(binary_form=True) or b""


def replaced_by(place: Place, other: Certificate) -> None:
    shutil.copy(other.chain, place.certificate.chain)
    shutil.copy(other.private_key, place.certificate.private_key)


def test_a_certificate_that_is_replaced_is_served_to_new_connections_without_a_restart(place: Place) -> None:
    store = ("--database", "sqlite:auth.db", "--peppers-file", "peppers")
    with (
        serving(place.folder, *store, *place.flags()[:4]) as server,
        place.client(server.address, None, place.operator_key) as before,
    ):
        before.workspaces.ListWorkspaces(LIST)
        old = served(place, server.address)

        replaced_by(place, place.authority.issue("renewed", hosts=["localhost", "127.0.0.1"]))

        assert served(place, server.address) != old
        with place.client(server.address, None, place.operator_key) as after:
            after.workspaces.ListWorkspaces(LIST)
        # who was connected stays so
        before.workspaces.ListWorkspaces(LIST)
        wait_until(lambda: [line for line in server.log if line["event"] == "certificate reloaded"], "the log says so")


def test_files_that_do_not_fit_together_are_not_served_until_they_do(place: Place) -> None:
    store = ("--database", "sqlite:auth.db", "--peppers-file", "peppers")
    renewed = place.authority.issue("renewed", hosts=["localhost", "127.0.0.1"])
    with serving(place.folder, *store, *place.flags()[:4]) as server:
        old = served(place, server.address)
        shutil.copy(renewed.chain, place.certificate.chain)
        assert served(place, server.address) == served(place, server.address) == old
        refusals = [line for line in server.log if line["event"] == "certificate not reloaded"]
        assert len(refusals) == 1
        assert "is not the private key" in refusals[0]["cause"]
        place.certificate.private_key.unlink()
        assert served(place, server.address) == old
        shutil.copy(renewed.private_key, place.certificate.private_key)
        assert served(place, server.address) != old


def test_the_authority_of_callers_can_be_replaced_too(place: Place) -> None:
    following = Authority(place.folder, "following")
    identity = following.issue("device-api", uris=[SPIFFE])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        create(operator, "device-api", SPIFFE)
        both = place.client_authority.certificate.read_bytes() + following.certificate.read_bytes()
        place.client_authority.certificate.write_bytes(both)
        with place.client(server.address, identity) as client:
            assert reason(client) == ""


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--tls-client-ca", "x.crt"), "TLS_CLIENT_CA: needs TLS_CERTIFICATE"),
        (("--tls-client-listen", "127.0.0.1:0", "--insecure-plaintext"), "TLS_CLIENT_LISTEN: needs TLS_CLIENT_CA"),
        (("--tls-client-listen", "nowhere"), "TLS_CLIENT_LISTEN: must be HOST:PORT"),
    ],
)
def test_settings_that_do_not_fit_together_stop_the_start(place: Place, flags: tuple[str, ...], said: str) -> None:
    done = run(place.folder, "serve", "--database", "sqlite:auth.db", "--peppers-file", "peppers", *flags)
    assert done.returncode == 1
    assert said in done.stderr


def test_an_authority_that_is_no_certificate_stops_the_start(place: Place) -> None:
    place.client_authority.certificate.write_text("this is no certificate")
    store = ("--database", "sqlite:auth.db", "--peppers-file", "peppers")
    done = run(place.folder, "serve", *store, *place.flags())
    assert done.returncode == 1
    assert "TLS_CLIENT_CA" in done.stderr
    assert "no certificate in PEM form" in done.stderr


def test_the_command_line_calls_with_a_certificate(place: Place) -> None:
    identity = place.client_authority.issue("console", uris=[SPIFFE])
    with demanding(place) as server, place.client(server.address, place.operator, place.operator_key) as operator:
        roles: list[Role.ValueType] = [ROLE_KEY_ADMIN]
        operator.callers.CreateCaller(
            pb.CreateCallerRequest(caller_id="console", roles=roles, certificate_names=[SPIFFE], without_key=True)
        )
        flags = ("--address", server.address, "--tls-ca", str(place.authority.certificate))
        pair = ("--tls-certificate", str(identity.chain), "--tls-private-key", str(identity.private_key))
        done = run(place.folder, *flags, *pair, "workspaces", "list")
        assert (done.returncode, done.stderr) == (0, "no workspaces\n")
        done = run(place.folder, *flags, *pair[:2], "workspaces", "list")
        assert done.returncode == 2
        assert "go together" in done.stderr
