"""For FastAPI and Starlette services: no route runs unless the holder of the caller's API key may do what it does.

    app.add_middleware(TextureAuth, authorizer=authorizer)

    @app.get("/devices/{device_id}")
    async def device(decision: Annotated[Decision, Depends(Authorized("devices:read", device="device_id"))]): ...

Needs the extra `asgi`.
"""

import functools
import inspect
import logging
import sys
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse
from starlette.routing import BaseRoute
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from texture_auth.aio import AuthorizesAsync
from texture_auth.authorizer import DEFAULT_TIMEOUT, Authorizes
from texture_auth.decision import Decision, Outcome
from texture_auth.guard import NO_DEVICE
from texture_auth.rules import MapError, Mode, permission_fault
from texture_auth.vantage import NOBODY, TrustedPeers, context_of_http
from texture_auth.verdicts import (
    KEY_HEADER,
    RETRY_SECONDS,
    Hook,
    Verdict,
    Verdicts,
    checked,
    decided,
    deciding,
    failed,
    presented,
    public_message,
    public_reason,
)

_SCOPE = "texture_auth"
_MARK = "__texture_auth__"
_UNAUTHENTICATED = 401
_POLICY_VIOLATION = 1008
_METHODS = ("get", "head", "post", "put", "patch", "delete", "options", "on_connect")

_log = logging.getLogger("texture_auth.guard")

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


class Refused(HTTPException):
    """The request may not do what it asks for. `TextureAuth` answers it, whatever becomes of the exception."""

    def __init__(self, decision: Decision) -> None:
        super().__init__(decision.http_status_code, public_message(decision), headers_of(decision))
        self.decision = decision


def body_of(decision: Decision) -> Mapping[str, str]:
    """Return the platform's error body."""
    return {"code": public_reason(decision), "message": public_message(decision)}


def headers_of(decision: Decision) -> Mapping[str, str]:
    """Return the headers that go with it."""
    # Caches may keep a 404 that says nothing of it, and serve it to the device's owner.
    headers = {"Cache-Control": "no-store"}
    if decision.http_status_code == _UNAUTHENTICATED:
        # RFC 9110 wants a challenge with every 401. There is no registered scheme for keys in a header of their own.
        headers["WWW-Authenticate"] = "Texture-Api-Key"
    if decision.outcome is Outcome.UNANSWERED:
        headers["Retry-After"] = str(RETRY_SECONDS)
    return headers


class TextureAuth:
    """The middleware that authorizes by, and that answers for those who are refused."""

    def __init__(
        self,
        app: ASGIApp,
        authorizer: Authorizes | AuthorizesAsync,
        *,
        mode: Mode = Mode.ENFORCE,
        trusted: TrustedPeers = NOBODY,
        timeout: float = DEFAULT_TIMEOUT,
        hook: Hook | None = None,
        public: Collection[str] = (),
        require_all_routes: bool = True,
    ) -> None:
        """Wrap an app.

        `timeout` (seconds) bounds a question. Unless `require_all_routes` is off, the app does not start while a route
        neither asks for a permission, nor is marked by `public`, nor is named in `public` by its path, such as
        `/openapi.json`; where a server does not tell of the start, the first request fails.
        """
        self._app = app
        self._authorizer = authorizer
        self._asynchronous = inspect.iscoroutinefunction(authorizer.authorize)
        self._mode = mode
        self._trusted = trusted
        self._timeout = timeout
        self._verdicts = Verdicts(hook)
        self._public = public
        self._unchecked = require_all_routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve a connection."""
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return
        self._check(scope)
        exchange = _Exchange(self, scope, send)
        try:
            with deciding(None):
                await self._app({**scope, _SCOPE: exchange}, receive, exchange.send)
        except Exception:
            if not await exchange.answered():
                raise
            return
        await exchange.answered()

    async def decide(self, connection: HTTPConnection, permission: str, device_id: str, mode: Mode | None) -> Verdict:
        """Return the verdict about a request."""
        headers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in connection.scope["headers"]]
        key = presented([value for name, value in headers if name == KEY_HEADER])
        client = connection.client
        context = context_of_http("" if client is None else client.host, headers, self._trusted)
        decision = key if isinstance(key, Decision) else await self._ask(key, permission, device_id, context)
        verdict = Verdict(
            method=_route_name(connection.scope), permission=permission, decision=decision, mode=mode or self._mode
        )
        self._verdicts.tell(verdict)
        return verdict

    async def _ask(self, *question: Any) -> Decision:
        try:
            ask: Any = functools.partial(self._authorizer.authorize, *question, timeout=self._timeout)
            return checked(await (ask() if self._asynchronous else run_in_threadpool(ask)))
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no yes
            return failed(error)

    def _check(self, scope: Scope) -> None:
        if self._unchecked:
            require_all_routes(scope.get("app", self._app), self._public)
            self._unchecked = False

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            self._check(scope)
        except MapError as error:
            _log.error("%s", error)
            await receive()
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            raise
        await self._app(scope, receive, send)


class _Exchange:
    """A request and its answer. Once it is refused, no answer goes out but the refusal."""

    def __init__(self, guard: TextureAuth, scope: Scope, send: Send) -> None:
        self.guard = guard
        self._scope = scope
        self._send = send
        self._started = False
        self._refused: Decision | None = None

    def refuse(self, decision: Decision) -> None:
        self._refused = decision

    async def send(self, message: Message) -> None:
        if self._refused is None:
            self._started = True
            await self._send(message)

    async def answered(self) -> bool:
        """Send the refusal, if there is one, and return whether there was."""
        if self._refused is None:
            return False
        if self._scope["type"] == "websocket":
            await self._close(self._refused)
        elif self._started:
            return False
        else:
            response = JSONResponse(body_of(self._refused), self._refused.http_status_code, headers_of(self._refused))
            await response(self._scope, _nothing, self._send)
        return True

    async def _close(self, decision: Decision) -> None:
        if not self._started and "websocket.http.response" in (self._scope.get("extensions") or {}):
            response = JSONResponse(body_of(decision), decision.http_status_code, headers_of(decision))
            await response(self._scope, _nothing, self._send)
        else:
            # Before the connection is accepted, servers make a 403 of it.
            close = {"type": "websocket.close", "code": _POLICY_VIOLATION, "reason": public_reason(decision)}
            await self._send(close)


async def _nothing() -> Message:
    return {"type": "http.disconnect"}


async def authorize(
    connection: HTTPConnection, permission: str, device_id: str = "", *, mode: Mode | None = None
) -> Decision:
    """Return the decision about a request or WebSocket, or raise Refused.

    For what `Authorized` cannot say, such as a device that the body names. Raises RuntimeError without `TextureAuth`.
    """
    exchange = connection.scope.get(_SCOPE)
    if not isinstance(exchange, _Exchange):
        raise RuntimeError("the app has no middleware texture_auth.asgi.TextureAuth")  # noqa: TRY004
    verdict = await exchange.guard.decide(connection, permission, device_id, mode)
    if not verdict.passed:
        exchange.refuse(verdict.decision)
        raise Refused(verdict.decision)
    decided(verdict.decision)
    return verdict.decision


@dataclass(frozen=True)
class Authorized:
    """A dependency for FastAPI: the decision about the request, which is refused unless it is a yes.

    `device` names the path parameter that holds the device's id. Raises MapError for a permission that there is not,
    and for a device too many or too few. In shadow mode the decision may be a no.
    """

    permission: str
    device: str = ""
    mode: Mode | None = None

    def __post_init__(self) -> None:
        """Look at what is asked for."""
        fault = permission_fault(self.permission, self.device)
        if fault:
            raise MapError([fault])

    async def __call__(self, connection: HTTPConnection) -> Decision:
        """Decide about a request."""
        device_id = str(connection.path_params.get(self.device, "")) or NO_DEVICE if self.device else ""
        return await authorize(connection, self.permission, device_id, mode=self.mode)


def authorized(
    permission: str, device: str = "", *, mode: Mode | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Awaitable[Any]]]:
    """Make an endpoint of Starlette, of requests or of a WebSocket, run only for those who may.

    The arguments are those of `Authorized`; `current_decision()` returns the decision.
    """
    rule = Authorized(permission, device, mode)

    def decorate(endpoint: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
        @functools.wraps(endpoint)
        async def behave(*args: Any, **kwargs: Any) -> Any:
            await rule(next(each for each in (*args, *kwargs.values()) if isinstance(each, HTTPConnection)))
            if inspect.iscoroutinefunction(endpoint):
                return await endpoint(*args, **kwargs)
            return await run_in_threadpool(endpoint, *args, **kwargs)

        setattr(behave, _MARK, rule)
        return behave

    return decorate


def public(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint that needs no key."""
    setattr(endpoint, _MARK, None)
    return endpoint


def require_all_routes(app: Any, public: Collection[str] = ()) -> None:
    """Raise MapError, naming every route of a Starlette or FastAPI app that does not say what it asks for.

    `public` holds paths that need no key, as they stand in the routes.
    """
    found = list(_route_faults(getattr(app, "routes", ()), "", public))
    if found:
        raise MapError(found)


def _route_faults(routes: Iterable[BaseRoute], prefix: str, public: Collection[str]) -> Iterator[str]:
    for route in _flat(routes):
        path = prefix + getattr(route, "path", "")
        if path in public:
            continue
        endpoint = getattr(route, "endpoint", None)
        if endpoint is not None:
            yield from (f"{path}: {fault}" for fault in _endpoint_faults(route, endpoint))
        elif inner := getattr(route, "routes", None):
            yield from _route_faults(inner, path, public)
        else:
            yield f"{path}: nothing is known of what is served there"


def _flat(routes: Iterable[BaseRoute]) -> Iterable[Any]:
    """Return routes with those of included routers in the place of these, as releases of FastAPI that keep them do."""
    fastapi = sys.modules.get("fastapi.routing")
    flatten = getattr(fastapi, "iter_route_contexts", None)
    return routes if flatten is None else list(flatten(routes))


def _endpoint_faults(route: Any, endpoint: Any) -> Iterator[str]:
    parts = [endpoint]
    if inspect.isclass(endpoint):
        parts = [getattr(endpoint, name) for name in _METHODS if hasattr(endpoint, name)]
    dependencies = list(_dependencies(getattr(route, "dependant", None)))
    marks = [getattr(part, _MARK) for part in parts if hasattr(part, _MARK)]
    if not dependencies:
        unmarked = [part for part in parts if not hasattr(part, _MARK)]
        yield from (f"{part.__qualname__} does not say what it asks for" for part in unmarked)
    for rule in (*dependencies, *marks):
        if rule is not None and rule.device and rule.device not in route.param_convertors:
            yield f"there is no path parameter {rule.device!r}"


def _dependencies(dependant: Any) -> Iterator[Authorized]:
    if dependant is not None:
        if isinstance(dependant.call, Authorized):
            yield dependant.call
        for inner in dependant.dependencies:
            yield from _dependencies(inner)


def _route_name(scope: Scope) -> str:
    """Return what a verdict calls a request: never its own path, of which there are any number."""
    path = getattr(scope.get("route"), "path", None) or getattr(scope.get("endpoint"), "__qualname__", "(no route)")
    return f"{scope.get('method', 'WEBSOCKET')} {path}"
