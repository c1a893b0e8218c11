"""Servers for programs in other languages, in order and out of it."""

from __future__ import annotations

import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from unittest.mock import patch

import grpc
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX

from server import app
from server.domain.token import TokenKind, mint, new_id
from server.settings import Settings
from server.store.peewee_store import PeeweeReader
from tests.harness import Client
from tests.operate.certificates import LOOPBACK, Authority, Certificate, Validity
from tests.operate.process import DEADLINE_SECONDS, Server, serving, wait_until

WORKSPACE, DEVICE = "languages", "charger-1"
EXPIRED = Validity(begins=timedelta(days=-2), ends=timedelta(days=-1))
Environment = Mapping[str, str]


@dataclass(frozen=True)
class Place:
    """A store for production, an authority for every certificate, and what its servers are started with."""

    folder: Path
    settings: Settings
    authority: Authority
    operator_key: str

    def identity(self, name: str, validity: Validity | None = None) -> Certificate:
        """Return the certificate of a caller, which goes by `certificate_name(name)`."""
        return self.authority.issue(f"caller-{name}", uris=[certificate_name(name)], validity=validity)

    def key_file(self, name: str, key: str) -> Path:
        """Return a file that holds a key."""
        path = self.folder / f"{name}.caller-key"
        path.touch(0o600)
        path.write_text(f"{key}\n")
        return path

    def flags(self, certificate: Certificate | None = None) -> tuple[str, ...]:
        """Return the flags of a server on the store."""
        served = certificate or self.authority.issue("server", hosts=LOOPBACK)
        return (
            *("--database", self.settings.database, "--peppers-file", str(self.settings.peppers_file)),
            *("--tls-certificate", str(served.chain), "--tls-private-key", str(served.private_key)),
        )

    @contextmanager
    def client(self, address: str) -> Iterator[Client]:
        """Call a server as the operator."""
        credentials = grpc.ssl_channel_credentials(self.authority.certificate.read_bytes())
        with grpc.secure_channel(address, credentials, (("grpc.use_local_subchannel_pool", 1),)) as channel:
            yield Client(channel, self.operator_key)


@dataclass(frozen=True)
class Running:
    """A server that is well, with a workspace, a device and a key to ask for, and a caller with a key to ask as."""

    place: Place
    address: str
    certificate_address: str
    """Where a client certificate is demanded."""
    api_key: str
    caller_key: str

    def caller(self, address: str, key: str | None = None, identity: Certificate | None = None) -> dict[str, str]:
        """Return how a program is told where to ask, and as whom."""
        told = {"CALLER_ADDRESS": address, "CA": str(self.place.authority.certificate), "API_KEY": self.api_key}
        if key is not None:
            told["CALLER_KEY_FILE"] = str(self.place.key_file("caller", key))
        if identity is not None:
            told |= {"CALLER_CERTIFICATE": str(identity.chain), "CALLER_PRIVATE_KEY": str(identity.private_key)}
        return told


def certificate_name(name: str) -> str:
    """Return the name that a caller goes by in its certificate."""
    return f"spiffe://prod.example/device-api-{name}"


def prepared(folder: Path) -> Place:
    """Make a store for production in an empty folder."""
    peppers = folder / "peppers"
    peppers.write_text(f"p1 {'ab' * 32}\n")
    settings = Settings(database=f"sqlite:{folder / 'auth.db'}", peppers_file=peppers)
    app.migrate(settings)
    return Place(folder, settings, Authority(folder), app.bootstrap(settings, "operator"))


@contextmanager
def running(place: Place) -> Iterator[Running]:
    """Run a server until the block ends: one address for callers with keys, one for those with certificates."""
    demanding = ("--tls-client-ca", str(place.authority.certificate), "--tls-client-listen", "127.0.0.1:0")
    with serving(place.folder, *place.flags(), *demanding) as server, place.client(server.address) as operator:
        operator.workspaces.CreateWorkspace(
            workspace_pb.CreateWorkspaceRequest(
                workspace_id=WORKSPACE, display_name="Languages", environment=ENVIRONMENT_SANDBOX
            )
        )
        operator.devices.RegisterDevices(
            device_pb.RegisterDevicesRequest(
                workspace_id=WORKSPACE,
                devices=[device_pb.DeviceRegistration(device_id=DEVICE, reference_id="user-1")],
            )
        )
        made = operator.keys.CreateKey(
            key_pb.CreateKeyRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="Backend")
        )
        caller = operator.callers.CreateCaller(
            caller_pb.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
        )
        second = server.output.split("with certificates, on ")[1].split()[0]
        yield Running(place, server.address, second, made.api_key, caller.caller_key)


class Turns:
    """A server that is away, or silent, at a program's second question, and well at its third."""

    def __init__(self, begin: Callable[[], None], end: Callable[[], None], told: Environment) -> None:
        self.begin, self.end, self.told = begin, end, told


@contextmanager
def slow(well: Running) -> Iterator[Turns]:
    """A server that stands still for a while, its connections open."""
    with serving(well.place.folder, *well.place.flags()) as server:

        def stop() -> None:
            server.process.send_signal(signal.SIGSTOP)
            # Until all of its threads do.
            os.waitpid(server.process.pid, os.WUNTRACED)

        def go_on() -> None:
            server.process.send_signal(signal.SIGCONT)

        yield Turns(stop, go_on, well.caller(server.address, well.caller_key))


@contextmanager
def restarting(well: Running) -> Iterator[Turns]:
    """A server that ends as it is told to, and is started again on the same port."""
    flags = (*well.place.flags(), "--drain-seconds", "0")
    with ExitStack() as stack:
        servers: list[Server] = [stack.enter_context(serving(well.place.folder, *flags))]

        def stop() -> None:
            servers[0].process.terminate()
            servers[0].exit_code()

        def start() -> None:
            again = serving(well.place.folder, *flags, "--listen", servers[0].address)
            servers.append(stack.enter_context(again))

        yield Turns(stop, start, well.caller(servers[0].address, well.caller_key))


@contextmanager
def service_down(well: Running) -> Iterator[Environment]:
    """An address at which nobody listens, nor will."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield well.caller(f"127.0.0.1:{taken.getsockname()[1]}", well.caller_key)


@contextmanager
def wrong_credential(well: Running) -> Iterator[Environment]:
    """A key of a caller's form that nobody made."""
    yield well.caller(well.address, mint(TokenKind.SERVICE, new_id()).text)


@contextmanager
def expired_certificate(well: Running) -> Iterator[Environment]:
    """A caller's certificate that was valid until yesterday."""
    yield well.caller(well.certificate_address, identity=well.place.identity("late", EXPIRED))


@contextmanager
def expired_server_certificate(well: Running) -> Iterator[Environment]:
    """A server's certificate that was valid until yesterday."""
    certificate = well.place.authority.issue("late-server", hosts=LOOPBACK, validity=EXPIRED)
    with serving(well.place.folder, *well.place.flags(certificate)) as server:
        yield well.caller(server.address, well.caller_key)


@contextmanager
def overloaded(well: Running) -> Iterator[Environment]:
    """A server whose database answers nobody, and for whose answers as many wait as may."""
    threads, go_on, waiting = 1, threading.Event(), threading.Semaphore(0)
    most = threads * app.WAITING_FOR_EACH_THREAD
    certificate = well.place.authority.issue("overloaded", hosts=LOOPBACK)
    settings = well.place.settings.model_copy(
        update={
            "listen": "127.0.0.1:0",
            "threads": threads,
            "tls_certificate": certificate.chain,
            "tls_private_key": certificate.private_key,
        }
    )
    real = PeeweeReader.keys

    def held(self: PeeweeReader, ids: Any) -> Any:
        waiting.release()
        go_on.wait(DEADLINE_SECONDS)
        return real(self, ids)

    with ExitStack() as stack:
        service = app.App(settings, lambda: datetime.now(UTC))
        address = f"127.0.0.1:{service.start()}"
        stack.callback(service.stop)
        operator = stack.enter_context(well.place.client(address))
        stack.callback(go_on.set)
        stack.enter_context(patch.object(PeeweeReader, "keys", held))
        storm = [mint(TokenKind.SERVER, new_id()).text for _ in range(most)]
        calls = [operator.authorize.Authorize.future(_question(key), timeout=DEADLINE_SECONDS) for key in storm]
        decisions = service._server._decisions
        wait_until(lambda: decisions.busy == most, "as many wait for the database as may")
        yield well.caller(address, well.caller_key)
        go_on.set()
        for call in calls:
            call.result()


def _question(key: str) -> authorize_pb.AuthorizeRequest:
    return authorize_pb.AuthorizeRequest(api_key=key, permission="devices:list")


Situation = Callable[[Running], Any]
AT_ONCE: Sequence[tuple[str, Situation]] = (
    ("service-down", service_down),
    ("wrong-credential", wrong_credential),
    ("expired-certificate", expired_certificate),
    ("expired-server-certificate", expired_server_certificate),
    ("overloaded", overloaded),
)
IN_TURNS: Sequence[tuple[str, Situation]] = (("slow", slow), ("restarting", restarting))
