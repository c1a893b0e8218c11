"""What adopters see when the service does not answer: each failure happens, and client/FAILURES.md is held to it."""

from __future__ import annotations

import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import httpx
import pytest
import uvicorn
from device_api import devices_pb2
from device_api.devices_pb2_grpc import DeviceApiStub
from device_api.grpc_api import make_server
from device_api.http_api import make_app
from device_api.store import Store
from google.protobuf.message import Message
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1 import caller_service_pb2
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture_auth import Authorizer, Decision, Question

from server.app import WAITING_FOR_EACH_THREAD
from server.domain import token
from tests.client.scripted import scripted_server
from tests.client.secure import secured
from tests.envoy.asking import asking
from tests.forwarder import forwarding
from tests.harness import Service, as_refused, running_service
from tests.languages.__main__ import EXCEPTIONS, EXPECTED
from tests.operate.certificates import DAY, LOOPBACK, Authority, Certificate, Validity
from tests.operate.process import wait_until
from tests.wire.helpers import make_key, make_workspace, question
from tests.wire.test_desks import slow_store

TABLE = Path(__file__).parents[2] / "client" / "FAILURES.md"
COLUMNS = ("client", "interceptor", "asgi", "envoy", "go", "typescript")
# Nothing waits for so long: where there is an error, it comes by itself.
PATIENT = 60.0
HURRIED = 0.2


@dataclass(frozen=True)
class Way:
    """How an adopter comes to the service."""

    address: str
    caller_key: str
    api_key: str
    tls_ca: Path | None = None
    identity: Certificate | None = None
    timeout: float = PATIENT

    def authorizer(self) -> Authorizer:
        """Return a client that has not been used before."""
        return Authorizer(
            self.address,
            caller_key=self.caller_key,
            tls_ca=self.tls_ca,
            client_certificate=None if self.identity is None else self.identity.chain,
            client_private_key=None if self.identity is None else self.identity.private_key,
            timeout=self.timeout,
        )

    def channel(self) -> grpc.Channel:
        """Return what a generated stub works on, with no setting of its own."""
        if self.tls_ca is None:
            return grpc.insecure_channel(self.address)
        private_key = None if self.identity is None else self.identity.private_key.read_bytes()
        chain = None if self.identity is None else self.identity.chain.read_bytes()
        credentials = grpc.ssl_channel_credentials(self.tls_ca.read_bytes(), private_key, chain)
        return grpc.secure_channel(self.address, credentials)


class Chosen:
    """The authorizer of the device API, another one for each failure."""

    def __init__(self) -> None:
        self.authorizer: Authorizer | None = None

    def authorize(self, *asked: Any, **more: Any) -> Decision:
        """Ask, for as long as the authorizer itself has."""
        assert self.authorizer is not None
        return self.authorizer.authorize(*asked, **more | {"timeout": None})

    def authorize_many(self, questions: Sequence[Question], **more: Any) -> list[Decision]:
        """Ask."""
        assert self.authorizer is not None
        return self.authorizer.authorize_many(questions, **more)


@dataclass(frozen=True)
class World:
    """A service, as it is and over TLS with an expired certificate, and a device API with its customer's key.

    At `demanding_address` callers have to present a certificate.
    """

    service: Service
    expired_address: str
    demanding_address: str
    authority: Authority
    expired: Certificate
    caller_key: str
    api_key: str
    chosen: Chosen
    by_grpc: DeviceApiStub
    by_http: httpx.Client

    def way(self, address: str, **more: Any) -> Way:
        """Return a way to an address."""
        return Way(address, **{"caller_key": self.caller_key, "api_key": self.api_key, **more})


@contextmanager
def device_api(chosen: Chosen) -> Iterator[tuple[DeviceApiStub, httpx.Client]]:
    """Run the example service in this process, and yield clients for it."""
    store = Store()
    started = threading.Event()

    @asynccontextmanager
    async def lifespan(_: Any) -> Any:
        started.set()
        yield

    app = make_app(store, chosen, lifespan)
    with ExitStack() as stack:
        server = make_server(store, chosen)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        stack.callback(lambda: server.stop(None).wait())
        listening = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        web = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
        pool = stack.enter_context(ThreadPoolExecutor(1))
        pool.submit(web.run, [listening])
        stack.callback(lambda: setattr(web, "should_exit", True))
        assert started.wait(PATIENT)
        channel = stack.enter_context(grpc.insecure_channel(f"127.0.0.1:{port}"))
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield DeviceApiStub(channel), stack.enter_context(httpx.Client(base_url=url, timeout=PATIENT, trust_env=False))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """One for all of these tests."""
    folder = tmp_path_factory.mktemp("certificates")
    authority = Authority(folder)
    expired = authority.issue("expired", hosts=LOOPBACK, validity=Validity(ends=-DAY / 2))
    chosen = Chosen()
    with running_service(tmp_path_factory.mktemp("service"), threads=1, envoy=True) as service:
        make_workspace(service)
        request = caller_service_pb2.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
        caller_key = service.operator.callers.CreateCaller(request).caller_key
        good = authority.issue("good", hosts=LOOPBACK)
        with (
            secured(service, expired) as expired_address,
            secured(service, good, authority.certificate) as demanding_address,
            device_api(chosen) as (by_grpc, by_http),
        ):
            yield World(
                service=service,
                expired_address=expired_address,
                demanding_address=demanding_address,
                authority=authority,
                expired=expired,
                caller_key=caller_key,
                api_key=make_key(service).api_key,
                chosen=chosen,
                by_grpc=by_grpc,
                by_http=by_http,
            )


@contextmanager
def down(world: World) -> Iterator[Way]:
    """Nobody listens on the port, and nobody else can take it meanwhile."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield world.way(f"127.0.0.1:{taken.getsockname()[1]}")


@contextmanager
def slow(world: World) -> Iterator[Way]:
    """Every call hangs."""
    over = threading.Event()
    with scripted_server(lambda *_: over.wait(PATIENT) and pb.AuthorizeResponse()) as server:
        yield world.way(server.address, timeout=HURRIED)
        over.set()


@contextmanager
def restarting(world: World) -> Iterator[Way]:
    """The server ends when the first connection comes, and is there again for the second."""
    with forwarding(int(world.service.address.rpartition(":")[2])) as forwarder:
        forwarder.hang_ups = 1
        yield world.way(forwarder.address)


@contextmanager
def wrong_credential(world: World) -> Iterator[Way]:
    """The caller's key is of another installation."""
    stranger = token.mint(token.TokenKind.SERVICE, token.new_id()).text
    yield world.way(world.service.address, caller_key=stranger)


@contextmanager
def expired_certificate(world: World) -> Iterator[Way]:
    """Its operator forgot to renew it."""
    yield world.way(world.expired_address, tls_ca=world.authority.certificate)


@contextmanager
def expired_identity(world: World) -> Iterator[Way]:
    """The caller forgot to renew its own."""
    yield world.way(world.demanding_address, tls_ca=world.authority.certificate, identity=world.expired)


def nobodys_key() -> str:
    """Return a key that the service has to look for in its database."""
    return token.mint(token.TokenKind.SERVER, token.new_id()).text


@contextmanager
def overloaded(world: World) -> Iterator[Way]:
    """As many questions wait for the database as may."""
    ask = world.service.operator.authorize.Authorize
    with pytest.MonkeyPatch.context() as monkeypatch, slow_store(monkeypatch):
        waiting = [ask.future(question(nobodys_key()), timeout=PATIENT) for _ in range(WAITING_FOR_EACH_THREAD)]
        wait_until(lambda: world.service.app._server._decisions.busy == len(waiting), "all of them wait")
        yield world.way(world.service.address, api_key=nobodys_key())
    for call in waiting:
        call.result()


FAILURES: dict[str, Callable[[World], AbstractContextManager[Way]]] = {
    "service down": down,
    "service slow": slow,
    "service restarting": restarting,
    "wrong credential": wrong_credential,
    "the service's certificate expired": expired_certificate,
    "the caller's certificate expired": expired_identity,
    "service overloaded": overloaded,
}


# What tests/languages calls them.
ELSEWHERE = {
    "service down": "service-down",
    "service slow": "slow",
    "service restarting": "restarting",
    "wrong credential": "wrong-credential",
    "the service's certificate expired": "expired-server-certificate",
    "the caller's certificate expired": "expired-certificate",
    "service overloaded": "overloaded",
}


def by_client(world: World, way: Way) -> str:
    """Ask by the Python client."""
    with way.authorizer() as authorizer:
        decision = authorizer.authorize(way.api_key, "devices:list")
    return f"`{decision.outcome.name}` `{decision.reason}`"


def by_interceptor(world: World, way: Way) -> str:
    """Ask as a customer of a gRPC service."""
    with way.authorizer() as world.chosen.authorizer:
        code, reason = outcome(
            world.by_grpc.ListDevices,
            devices_pb2.ListDevicesRequest(),
            metadata=(("texture-api-key", way.api_key),),
            timeout=PATIENT,
        )
    return f"`{code.name}` `{reason}`" if reason else f"`{code.name}`"


def by_asgi(world: World, way: Way) -> str:
    """Ask as a customer of an HTTP service."""
    with way.authorizer() as world.chosen.authorizer:
        answer = world.by_http.get("/v1/devices", headers={"Texture-Api-Key": way.api_key})
    body = answer.json()
    assert ("Retry-After" in answer.headers) is ("message" in body) is ("code" in body)
    return f"`{answer.status_code}` `{body['code']}`" if "code" in body else f"`{answer.status_code}`"


def by_envoy(world: World, way: Way) -> str:
    """Ask as a customer of whatever is behind an Envoy."""
    with (
        tempfile.TemporaryDirectory() as folder,
        asking(Path(folder), way.address, way.caller_key, way.timeout, way.tls_ca, way.identity) as envoy,
    ):
        answer = envoy.ask("customers", "GET", "/", [("host", "api.example"), ("texture-api-key", way.api_key)])
    return f"`{answer.status}`"


def by_stub(world: World, way: Way) -> grpc.StatusCode:
    """Ask by a generated stub alone."""
    with way.channel() as channel:
        stub = AuthorizeServiceStub(channel)
        metadata = (("authorization", f"Bearer {way.caller_key}"),)
        request = pb.AuthorizeRequest(api_key=way.api_key, permission="devices:list")
        return outcome(stub.Authorize, request, metadata=metadata, timeout=way.timeout)[0]


def outcome(method: Callable[..., Any], request: Message, **more: Any) -> tuple[grpc.StatusCode, str]:
    """Call, and return the code and, of this library's own refusals, the reason."""
    try:
        method(request, **more)
    except grpc.RpcError as error:
        call = cast("grpc.Call", error)
        rich = any(name == "grpc-status-details-bin" for name, _ in call.trailing_metadata() or ())
        return call.code(), as_refused(error).reason if rich else ""
    return grpc.StatusCode.OK, ""


def rows() -> dict[str, dict[str, str]]:
    """Return the table as it is written."""
    lines = [line for line in TABLE.read_text("utf-8").splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    return {name: dict(zip(COLUMNS, columns, strict=True)) for name, *columns in cells}


def test_the_table_has_a_row_for_each_failure() -> None:
    assert list(rows()) == list(FAILURES)


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize(
    ("column", "ask"),
    [("client", by_client), ("interceptor", by_interceptor), ("asgi", by_asgi), ("envoy", by_envoy)],
)
def test_adopters_see_what_the_table_says(
    world: World, failure: str, column: str, ask: Callable[[World, Way], str]
) -> None:
    with FAILURES[failure](world) as way:
        assert ask(world, way) == rows()[failure][column]


@pytest.mark.parametrize("failure", FAILURES)
def test_a_generated_stub_gets_the_code_that_programs_in_other_languages_are_held_to(
    world: World, failure: str
) -> None:
    with FAILURES[failure](world) as way:
        assert by_stub(world, way).name == elsewhere("python", failure)


@pytest.mark.parametrize("failure", FAILURES)
def test_the_table_says_of_other_languages_what_their_programs_are_held_to(failure: str) -> None:
    row = rows()[failure]
    assert row["go"] == f"`{elsewhere('go', failure).title().replace('_', '')}`"
    assert row["typescript"] == f"`{elsewhere('typescript', failure)}`"


def elsewhere(language: str, failure: str) -> str:
    """Return the code that a program in a language is held to: see tests/languages."""
    case = ELSEWHERE[failure]
    return EXCEPTIONS.get((language, case), EXPECTED[case]).split()[0]
