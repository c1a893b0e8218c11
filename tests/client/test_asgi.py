"""What guarded FastAPI and Starlette apps let on, and what they answer otherwise."""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any

import fastapi
import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import BaseRoute, Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect
from texture_auth import Context, Decision, Question
from texture_auth.asgi import Authorized, TextureAuth, authorize, authorized, public, require_all_routes
from texture_auth.rules import MapError, Mode
from texture_auth.vantage import TrustedPeers
from texture_auth.verdicts import Verdict, current_decision

from tests.client.shapes import KEY, UNANSWERED, AsyncOracle, Oracle, allowed, denied, logged

HEADERS = {"Texture-Api-Key": KEY}
Ran = list[str]


def fastapi_app(ran: Ran) -> fastapi.FastAPI:
    app = fastapi.FastAPI(openapi_url=None)
    lists = Authorized("devices:list")

    @app.get("/devices")
    def devices(decision: Annotated[Decision, fastapi.Depends(lists)]) -> dict[str, str]:
        ran.append("devices")
        return {"reason": decision.reason}

    router = fastapi.APIRouter(dependencies=[fastapi.Depends(Authorized("devices:read", device="device_id"))])

    @router.get("/devices/{device_id}")
    async def device(device_id: str) -> dict[str, str]:
        ran.append(device_id)
        decision = current_decision()
        assert decision is not None
        return {"reason": decision.reason}

    @app.get("/health")
    @public
    async def health() -> dict[str, str]:
        return {}

    @app.websocket("/live/{device_id}")
    async def live(
        socket: fastapi.WebSocket,
        decision: Annotated[Decision, fastapi.Depends(Authorized("devices:read", device="device_id"))],
    ) -> None:
        await socket.accept()
        await socket.send_text(decision.reason)
        await socket.close()

    app.include_router(router)
    return app


def starlette_app(ran: Ran) -> Starlette:
    @authorized("devices:list")
    def devices(_request: Request) -> Response:
        ran.append("devices")
        decision = current_decision()
        assert decision is not None
        return JSONResponse({"reason": decision.reason})

    class Device(HTTPEndpoint):
        @authorized("devices:read", device="device_id")
        async def get(self, request: Request) -> Response:
            ran.append(request.path_params["device_id"])
            decision = current_decision()
            assert decision is not None
            return JSONResponse({"reason": decision.reason})

    @public
    async def health(_request: Request) -> Response:
        return JSONResponse({})

    @authorized("devices:read", device="device_id")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        decision = current_decision()
        assert decision is not None
        await socket.send_text(decision.reason)
        await socket.close()

    return Starlette(
        routes=[
            Route("/devices", devices),
            Route("/health", health),
            WebSocketRoute("/live/{device_id}", live),
            Mount("/", routes=[Route("/devices/{device_id}", Device)]),
        ]
    )


MAKERS = {"fastapi": fastapi_app, "starlette": starlette_app}


class Site:
    """A guarded app, and a client for it that sends a key."""

    def __init__(self, make: Callable[[Ran], Starlette], *, asynchronous: bool = False, **settings: Any) -> None:
        self.oracle = Oracle()
        self.ran: Ran = []
        self.app = make(self.ran)
        authorizer = AsyncOracle(self.oracle) if asynchronous else self.oracle
        self.app.add_middleware(TextureAuth, authorizer=authorizer, **settings)
        self.client = TestClient(self.app, headers=HEADERS, client=("192.0.2.1", 50000))


@pytest.fixture(params=MAKERS)
def make(request: pytest.FixtureRequest) -> Callable[[Ran], Starlette]:
    return MAKERS[request.param]


@pytest.mark.parametrize("asynchronous", [False, True])
def test_who_may_is_served_and_the_endpoint_knows_who_it_is(
    make: Callable[[Ran], Starlette], asynchronous: bool
) -> None:
    site = Site(make, asynchronous=asynchronous)
    with site.client as client:
        assert client.get("/devices").json() == {"reason": "PERMITTED"}
        assert client.get("/devices/meter-1").json() == {"reason": "PERMITTED"}
        assert client.get("/health", headers={"Texture-Api-Key": ""}).status_code == 200
    asked = [(question.api_key, question.permission, question.device_id) for question in site.oracle.asked]
    assert asked == [(KEY, "devices:list", ""), (KEY, "devices:read", "meter-1")]
    assert site.ran == ["devices", "meter-1"]


def test_who_may_not_gets_the_platforms_error_body(make: Callable[[Ran], Starlette]) -> None:
    site = Site(make)
    for decision, message in (
        (denied("KEY_REVOKED", 401), "This API key has been revoked."),
        (denied("PERMISSION_NOT_GRANTED", 403, "devices:read"), "This API key lacks a permission: devices:read."),
        (denied("DEVICE_NOT_FOUND", 404), "This device does not exist."),
    ):
        site.oracle.says(decision)
        answer = site.client.get("/devices/meter-1")
        assert answer.status_code == decision.http_status_code
        assert answer.json() == {"code": decision.reason, "message": message}
        assert answer.headers.get("www-authenticate") == ("Texture-Api-Key" if answer.status_code == 401 else None)
        assert answer.headers["cache-control"] == "no-store"
        assert "retry-after" not in answer.headers
    assert site.ran == []


def test_no_answer_is_no_leave(make: Callable[[Ran], Starlette]) -> None:
    def fail(_question: Question) -> Decision:
        raise ValueError(KEY)

    site = Site(make)
    for said in (lambda _: UNANSWERED, fail, lambda _: None):
        site.oracle.answer = said
        for path in ("/devices", "/devices/meter-1"):
            answer = site.client.get(path)
            assert (answer.status_code, answer.json()["code"]) == (503, "AUTHORIZATION_UNAVAILABLE")
            assert answer.headers["retry-after"] == "1"
            assert KEY not in answer.text
    assert site.ran == []


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ([], "KEY_MISSING"),
        ([(b"texture-api-key", b"")], "KEY_MISSING"),
        ([(b"texture-api-key", b"one"), (b"texture-api-key", b"one")], "KEY_MALFORMED"),
        ([(b"texture-api-key", "schlüssel".encode())], "KEY_MALFORMED"),
        ([(b"texture-api-key", b"\xff\xfe")], "KEY_MALFORMED"),
    ],
)
def test_what_cannot_be_one_key_is_not_asked_about(headers: list[tuple[bytes, bytes]], reason: str) -> None:
    site = Site(fastapi_app)
    with TestClient(site.app) as client:
        answer = client.get("/devices", headers=headers)
    assert (answer.status_code, answer.json()["code"]) == (401, reason)
    assert site.oracle.asked == []
    assert site.ran == []


def test_a_websocket_is_refused_before_it_is_accepted(make: Callable[[Ran], Starlette]) -> None:
    site = Site(make)
    with site.client.websocket_connect("/live/meter-1") as socket:
        assert socket.receive_text() == "PERMITTED"
    site.oracle.says(denied("KEY_REVOKED", 401))
    with pytest.raises(WebSocketDisconnect) as caught, site.client.websocket_connect("/live/meter-1"):
        pass
    # Where the server can answer a handshake with a response, that is what it gets.
    assert getattr(caught.value, "status_code", 401) == 401


def test_a_websocket_that_loses_its_leave_is_closed() -> None:
    @authorized("devices:list")
    async def live(socket: WebSocket) -> None:
        await socket.accept()
        while True:
            device_id = await socket.receive_text()
            await authorize(socket, "devices:read", device_id)
            await socket.send_text(device_id)

    site = Site(lambda _: Starlette(routes=[WebSocketRoute("/live", live)]))
    with site.client.websocket_connect("/live") as socket:
        socket.send_text("meter-1")
        assert socket.receive_text() == "meter-1"
        site.oracle.says(denied("DEVICE_NOT_FOUND", 404))
        socket.send_text("meter-2")
        with pytest.raises(WebSocketDisconnect) as caught:
            socket.receive_text()
    assert (caught.value.code, caught.value.reason) == (1008, "DEVICE_NOT_FOUND")


def test_shadow_mode_lets_on_what_it_would_refuse_and_says_so(make: Callable[[Ran], Starlette]) -> None:
    verdicts: list[Verdict] = []
    with logged() as records:
        site = Site(make, mode=Mode.SHADOW, hook=verdicts.append)
        site.oracle.says(denied("DEVICE_NOT_FOUND", 404))
        assert site.client.get("/devices/meter-1").json() == {"reason": "DEVICE_NOT_FOUND"}
        assert site.client.get("/devices", headers={"Texture-Api-Key": ""}).json() == {"reason": "KEY_MISSING"}
    assert [(each.permission, each.decision.reason, each.passed) for each in verdicts] == [
        ("devices:read", "DEVICE_NOT_FOUND", True),
        ("devices:list", "KEY_MISSING", True),
    ]
    assert "meter-1" not in verdicts[0].method
    assert [record.levelname for record in records] == ["WARNING"] * 2
    assert KEY not in "".join(f"{record.getMessage()} {record.__dict__}" for record in records)


def test_once_refused_nothing_else_is_answered() -> None:
    @authorized("devices:list")
    async def inner(_request: Request) -> Response:
        raise AssertionError

    @public
    async def forgiving(request: Request) -> Response:
        try:
            return Response(str(await inner(request)))
        except Exception:  # noqa: BLE001 - as careless as code can be
            return PlainTextResponse("come in")

    def make(_ran: Ran) -> Starlette:
        app = Starlette(routes=[Route("/", forgiving), Mount("/mounted", fastapi_app([]))])
        app.add_exception_handler(Exception, lambda *_: PlainTextResponse("never mind"))
        return app

    site = Site(make)
    site.oracle.says(denied("KEY_REVOKED", 401))
    for path in ("/", "/mounted/devices", "/mounted/devices/meter-1"):
        answer = site.client.get(path)
        assert (answer.status_code, answer.json()["code"]) == (401, "KEY_REVOKED")


def test_without_the_middleware_nobody_is_served(make: Callable[[Ran], Starlette]) -> None:
    ran: Ran = []
    with TestClient(make(ran), headers=HEADERS) as client, pytest.raises(RuntimeError, match="TextureAuth"):
        client.get("/devices")
    assert ran == []


def context_of(site: Site, **headers: str) -> Context:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    site.client.get("/devices", headers=names)
    context = site.oracle.asked[-1].context
    assert context is not None
    return context


def test_whom_a_request_was_forwarded_for_is_believed_of_trusted_peers_alone() -> None:
    forged = {"x_forwarded_for": "10.9.9.9, 198.51.100.7", "origin": "https://app.example", "sec_fetch_site": "none"}
    near = context_of(Site(starlette_app), **forged)
    assert (near.client_ip, near.origin, near.sec_fetch_site) == ("192.0.2.1", "https://app.example", "none")
    behind = Site(starlette_app, trusted=TrustedPeers(networks=("192.0.2.0/24",)))
    assert context_of(behind, **forged).client_ip == "198.51.100.7"
    elsewhere = Site(starlette_app, trusted=TrustedPeers(networks=("203.0.113.0/24",)))
    assert context_of(elsewhere, **forged).client_ip == "192.0.2.1"


def test_a_device_that_the_body_names_can_be_asked_about() -> None:
    app = fastapi.FastAPI(openapi_url=None)

    @app.post("/commands")
    @public
    async def command(request: Request, body: dict[str, str]) -> dict[str, str]:
        await authorize(request, "devices:command", body["device"])
        return body

    site = Site(lambda _: app)
    assert site.client.post("/commands", json={"device": "meter-1"}).json() == {"device": "meter-1"}
    assert site.oracle.asked[0].device_id == "meter-1"
    site.oracle.says(denied("DEVICE_NOT_FOUND", 404))
    assert site.client.post("/commands", json={"device": "meter-2"}).status_code == 404


async def _open(_connection: HTTPConnection) -> Response:
    return Response()


def test_routes_that_do_not_say_what_they_ask_for_are_named_together() -> None:
    class Half(HTTPEndpoint):
        @authorized("devices:list")
        async def get(self, _request: Request) -> Response:
            return Response()

        async def post(self, _request: Request) -> Response:
            return Response()

    async def raw(_scope: Any, _receive: Any, _send: Any) -> None: ...

    routes: list[BaseRoute] = [
        Route("/open", _open),
        Route("/half", Half),
        Route("/said", authorized("devices:read", device="id")(_open)),
        Mount("/inner", routes=[Route("/open", _open), Route("/{id}", authorized("devices:read", device="id")(_open))]),
        Mount("/raw", raw),
        Mount("/api", fastapi.FastAPI()),
    ]
    with pytest.raises(MapError) as caught:
        require_all_routes(Starlette(routes=routes), public={"/api/docs", "/api/docs/oauth2-redirect", "/api/redoc"})
    paths = [fault.partition(": ")[0] for fault in caught.value.faults]
    assert paths == ["/open", "/half", "/said", "/inner/open", "/raw", "/api/openapi.json"]
    require_all_routes(fastapi_app([]))
    require_all_routes(starlette_app([]))


def test_an_app_with_an_open_route_does_not_start() -> None:
    app = Starlette(routes=[Route("/open", _open)])
    app.add_middleware(TextureAuth, authorizer=Oracle())
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    with logged() as records, pytest.raises(SystemExit):
        asyncio.run(server.serve())
    assert "/open" in records[0].getMessage()
    # Servers that tell nothing of the start get no further.
    with pytest.raises(MapError, match="/open"):
        TestClient(app).get("/open")


def test_a_permission_that_there_is_not_is_noticed_when_it_is_written() -> None:
    for permission, device in (("devices:paint", ""), ("devices:read", ""), ("devices:list", "device_id")):
        with pytest.raises(MapError):
            Authorized(permission, device)
        with pytest.raises(MapError):
            authorized(permission, device)


def test_a_real_server_answers_the_same() -> None:
    site = Site(fastapi_app)
    site.oracle.answer = lambda question: (
        allowed() if question.device_id == "meter-1" else denied("DEVICE_NOT_FOUND", 404)
    )

    async def play() -> list[httpx.Response]:
        server = uvicorn.Server(uvicorn.Config(site.app, host="127.0.0.1", port=0, log_config=None))
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():  # noqa: ASYNC110 - it tells nobody when it is
            await asyncio.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", headers=HEADERS) as client:
            found = [await client.get(f"/devices/{device}") for device in ("meter-1", "meter-2")]
        server.should_exit = True
        await serving
        return found

    served, refused = asyncio.run(play())
    assert served.json() == {"reason": "PERMITTED"}
    assert (refused.status_code, refused.json()["code"]) == (404, "DEVICE_NOT_FOUND")
    context = site.oracle.asked[0].context
    assert context is not None
    assert context.client_ip == "127.0.0.1"
