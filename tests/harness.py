"""A real server on a free port, with a clock that tests turn, and clients for it."""

from __future__ import annotations

import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pool
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from texture.auth.v1 import caller_service_pb2
from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub
from texture.auth.v1.caller_pb2 import Role
from texture.auth.v1.caller_service_pb2_grpc import CallerServiceStub
from texture.auth.v1.connect_service_pb2_grpc import ConnectServiceStub
from texture.auth.v1.device_service_pb2_grpc import DeviceServiceStub
from texture.auth.v1.event_service_pb2_grpc import EventServiceStub
from texture.auth.v1.key_service_pb2_grpc import KeyServiceStub
from texture.auth.v1.usage_service_pb2_grpc import UsageServiceStub
from texture.auth.v1.webhook_service_pb2_grpc import WebhookServiceStub
from texture.auth.v1.workspace_service_pb2_grpc import WorkspaceServiceStub

from server.app import App
from server.settings import Settings

_DATABASE = "texture-auth.db"


class TurnedClock:
    """A clock that stands still until it is turned."""

    def __init__(self) -> None:
        self.now = datetime(2030, 1, 1, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def turn(self, by: timedelta) -> None:
        self.now += by


class _Credential(grpc.UnaryUnaryClientInterceptor, grpc.UnaryStreamClientInterceptor):
    def __init__(self, metadata: tuple[tuple[str, str], ...]) -> None:
        self._metadata = metadata

    def intercept_unary_unary(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._admitted(client_call_details, client_call_details.timeout or 30), request)

    def intercept_unary_stream(self, continuation: Any, client_call_details: Any, request: Any) -> Any:
        return continuation(self._admitted(client_call_details, client_call_details.timeout), request)

    def _admitted(self, client_call_details: Any, timeout: float | None) -> _Details:
        details = _Details()
        details.method = client_call_details.method
        details.timeout = timeout
        details.metadata = (*(client_call_details.metadata or ()), *self._metadata)
        details.credentials = client_call_details.credentials
        details.wait_for_ready = client_call_details.wait_for_ready
        details.compression = client_call_details.compression
        return details


class _Details(grpc.ClientCallDetails):
    method: str
    timeout: float | None
    metadata: tuple[tuple[str, str], ...]
    credentials: Any
    wait_for_ready: Any
    compression: Any


class Client:
    """Every stub of the service, called with one credential."""

    def __init__(self, channel: grpc.Channel, caller_key: str | None) -> None:
        metadata = () if caller_key is None else (("authorization", f"Bearer {caller_key}"),)
        self.channel = grpc.intercept_channel(channel, _Credential(metadata))
        self.authorize = AuthorizeServiceStub(self.channel)
        self.keys = KeyServiceStub(self.channel)
        self.connect = ConnectServiceStub(self.channel)
        self.devices = DeviceServiceStub(self.channel)
        self.workspaces = WorkspaceServiceStub(self.channel)
        self.callers = CallerServiceStub(self.channel)
        self.webhooks = WebhookServiceStub(self.channel)
        self.usage = UsageServiceStub(self.channel)
        self.events = EventServiceStub(self.channel)


@dataclass(frozen=True)
class Service:
    """A running server. `operator` is a client that may call everything."""

    app: App
    clock: TurnedClock
    folder: Path
    database: Path
    address: str
    channel: grpc.Channel
    operator_key: str
    operator: Client

    def query(self, statement: str) -> list[dict[str, Any]]:
        """Look at the tables themselves, for what no RPC tells."""
        with self.app._database.engine.reading() as database:
            cursor = database.execute_sql(statement)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def client(self, caller_key: str | None) -> Client:
        """Return a client with another credential, or none."""
        return Client(self.channel, caller_key)

    def caller(self, caller_id: str, *roles: Role.ValueType) -> Client:
        """Create a caller with these roles, and return a client with its credential."""
        request = caller_service_pb2.CreateCallerRequest(caller_id=caller_id, roles=roles)
        return self.client(self.operator.callers.CreateCaller(request).caller_key)


def first_start(database: str = "") -> Mapping[str, bytes]:
    """Start a development server for the first time, and return the files that it makes, by name.

    On SQLite the database is among them.
    """
    with tempfile.TemporaryDirectory() as folder:
        chosen = database or f"sqlite:{folder}/{_DATABASE}"
        settings = Settings(development=True, database=chosen, development_folder=Path(folder))
        App(settings, TurnedClock()).stop()
        return {file.name: file.read_bytes() for file in Path(folder).iterdir()}


# Each test on SQLite begins with a copy.
_first_start_on_sqlite = cache(first_start)


def prepare(folder: Path, files: Mapping[str, bytes]) -> None:
    """Put files into a folder where none of them is."""
    for name, content in files.items():
        with os.fdopen(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(content)


@contextmanager
def untraced(*, with_threads: bool) -> Iterator[None]:
    """Measure no coverage in this thread, nor in threads that start meanwhile, if told so: it doubles all times."""
    here, in_threads = sys.gettrace(), threading.gettrace()
    sys.settrace(None)
    if with_threads:
        threading.settrace(None)
    try:
        yield
    finally:
        sys.settrace(here)
        threading.settrace(in_threads)


def _settings(chosen: Mapping[str, Any]) -> Settings:
    """Return settings that are known to be right: to look at the environment for each takes a third of a start."""
    return _defaults().model_copy(update=chosen)


@cache
def _defaults() -> Settings:
    return Settings(development=True)


@contextmanager
def running_service(folder: Path, **settings: Any) -> Iterator[Service]:
    """Run a development server in `folder`: on SQLite there, unless the settings name another database."""
    database = folder / _DATABASE
    clock = TurnedClock()
    if not any(folder.iterdir()) and settings.keys().isdisjoint({"database", "peppers", "peppers_file", "development"}):
        prepare(folder, _first_start_on_sqlite())
    chosen = {
        "development": True,
        "database": f"sqlite:{database}",
        "development_folder": folder,
        "listen": "127.0.0.1:0",
        **settings,
    }
    app = App(_settings(chosen) if settings.keys() <= {"database"} else Settings(**chosen), clock)
    address = f"127.0.0.1:{app.start()}"
    try:
        with grpc.insecure_channel(address) as channel:
            key = (folder / "operator.key").read_text().strip()
            yield Service(app, clock, folder, database, address, channel, key, Client(channel, key))
    finally:
        app.stop()


@dataclass(frozen=True)
class Refused:
    """An error as a client sees it."""

    code: grpc.StatusCode
    message: str
    reason: str
    metadata: dict[str, str]
    violations: dict[str, str]
    retry_seconds: float | None


def first_answer(channel: grpc.Channel, path: str, request: Any, *converters: Any, **options: Any) -> Any:
    """Call an RPC by its path, and return its answer: of one that streams, the first, and end the stream."""
    service, _, name = path.strip("/").rpartition("/")
    try:
        streams = descriptor_pool.Default().FindServiceByName(service).methods_by_name[name].server_streaming
    except KeyError:
        streams = False
    if not streams:
        return channel.unary_unary(path, *converters)(request, **options)
    stream = channel.unary_stream(path, *converters)(request, **options)
    try:
        return next(stream)
    finally:
        stream.cancel()


def refused(call: Callable[..., Any], *args: Any, **kwargs: Any) -> Refused:
    """Make a call that must fail, and return its error, which must be a rich one of this service."""
    with pytest.raises(grpc.RpcError) as caught:
        call(*args, **kwargs)
    return as_refused(caught.value)


def as_refused(error: grpc.RpcError) -> Refused:
    """Return an error as a client sees it."""
    assert isinstance(error, grpc.Call)
    status = rpc_status.from_call(error)
    assert status is not None, f"{error.code()}: {error.details()} has no details"
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    retry = error_details_pb2.RetryInfo()
    has_retry = False
    for packed in status.details:
        if not packed.Unpack(info) and not packed.Unpack(bad_request):
            has_retry = packed.Unpack(retry) or has_retry
    assert info.domain == "auth.texture"
    return Refused(
        code=error.code(),
        message=error.details() or "",
        reason=info.reason,
        metadata=dict(info.metadata),
        violations={violation.field: violation.description for violation in bad_request.field_violations},
        retry_seconds=retry.retry_delay.ToTimedelta().total_seconds() if has_retry else None,
    )
