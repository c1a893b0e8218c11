"""Metrics on an address of their own: plain HTTP, `GET /metrics` and nothing else.

One process serves its own. Of several workers, each writes into a folder that they share, under a name that it has from
their supervisor, and the supervisor serves all of them in one scrape:

    with of_workers(listen) as metrics:
        ...                         # start each worker with `metrics.environment("2")` in its own
        metrics.forget("2")         # whenever one has ended, before another one gets its name

Counters of a worker outlive it, and go on where another one gets its name: so a name is one process's at a time.
Gauges of a worker that was forgotten are gone.
"""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socketserver import TCPServer
from typing import TYPE_CHECKING, Any
from wsgiref.simple_server import WSGIRequestHandler

import structlog
from prometheus_client import CollectorRegistry, Metric, disable_created_metrics, make_wsgi_app, multiprocess, values
from prometheus_client.exposition import ThreadingWSGIServer

if TYPE_CHECKING:
    from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

# What tells a worker under which name it writes, and where. The second is prometheus_client's.
NAME = "TEXTURE_AUTH_WORKER_METRICS"
FOLDER = "PROMETHEUS_MULTIPROC_DIR"
PATH = "/metrics"
# How long a client that says nothing, or does not read, keeps a thread.
PATIENCE_SECONDS = 10

_log = structlog.get_logger("texture_auth.metrics")


class CannotListen(Exception):  # noqa: N818 - it names a state
    """The address for metrics cannot be listened on."""


def keep_values(name: str | None) -> None:
    """Have every metric that is made from now on written into the folder, under a worker's name; None: kept here.

    Otherwise the library would have decided by the environment when it was imported, and named files by process ids:
    with those, each worker that crashes would leave files that every later scrape has to read.
    """
    kind = values.MutexValue if name is None else values.MultiProcessValue(lambda: name)
    values.ValueClass = kind  # the way that the library gives for this


class Exposition:
    """A listener that answers scrapes."""

    def __init__(self, listen: str, registry: CollectorRegistry) -> None:
        """Listen, and answer from a thread of its own. Raises CannotListen."""
        # The times at which counters were made are twice as many series, for nothing that this service needs.
        disable_created_metrics()
        host, _, port = listen.rpartition(":")
        try:
            self._server = _Server(host.strip("[]"), int(port), _only_metrics(make_wsgi_app(registry)))
        except OSError as error:
            raise CannotListen(f"cannot listen on {listen}: {error.strerror or error}") from error
        self.address = f"{host}:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, name="scrapes", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class Workers:
    """The metrics of workers. `address` is where they are scraped; None where they are not."""

    address: str | None = None
    folder: Path | None = None

    def environment(self, name: str) -> Mapping[str, str]:
        """Return what is to be in the environment of a worker, to have it write under a name."""
        return {} if self.folder is None else {FOLDER: str(self.folder), NAME: name}

    def forget(self, name: str) -> None:
        """Take away the gauges of a worker that has ended."""
        if self.folder is not None:
            multiprocess.mark_process_dead(name, str(self.folder))


@contextmanager
def of_workers(listen: str | None) -> Iterator[Workers]:
    """Serve what workers write, from an empty folder that is the owner's alone, and gone afterwards.

    Without an address nothing is served, and nothing written. Raises CannotListen.
    """
    if listen is None:
        yield Workers()
        return
    folder = Path(tempfile.mkdtemp(prefix="texture-auth-metrics-"))
    try:
        exposition = Exposition(listen, shared_registry(folder))
        try:
            yield Workers(exposition.address, folder)
        finally:
            exposition.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def shared_registry(folder: Path) -> CollectorRegistry:
    """Return a registry of what all processes have written into a folder, whether they live or not."""
    registry = CollectorRegistry()
    _Shared(registry, path=str(folder))  # type: ignore[no-untyped-call]
    return registry


class _Shared(multiprocess.MultiProcessCollector):
    """The library's collector, but for files that a worker is about to begin: of an empty one it can read nothing."""

    def collect(self) -> Iterable[Metric]:
        with os.scandir(self._path) as files:
            begun = sorted(file.path for file in files if file.name.endswith(".db") and _size(file))
        return self.merge(begun)  # type: ignore[no-any-return, no-untyped-call]


def _size(file: os.DirEntry[str]) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # of a worker that was forgotten at this moment
        return 0


class _Quiet(WSGIRequestHandler):
    timeout = PATIENCE_SECONDS

    def log_message(self, *_args: Any) -> None:
        """Keep out of the log."""


class _Server(ThreadingWSGIServer):
    """The library's server, on IPv6 too, and without asking for the name of its address, which can take seconds."""

    def __init__(self, host: str, port: int, app: WSGIApplication) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Quiet)
        self.set_app(app)

    def server_bind(self) -> None:
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])
        self.setup_environ()

    def handle_error(self, *_args: Any) -> None:
        """Let a client go that went away in the middle."""


def _only_metrics(scrape: Callable[..., Any]) -> WSGIApplication:
    """Return an application that answers nothing but scrapes."""

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"] != PATH:
            return _plainly(start_response, "404 Not Found")
        if environ["REQUEST_METHOD"] != "GET":
            return _plainly(start_response, "405 Method Not Allowed", ("Allow", "GET"))
        try:
            return scrape(environ, start_response)  # type: ignore[no-any-return]
        except Exception as error:  # noqa: BLE001 - what it was is for the log, never for whoever scrapes
            _log.error("scrape failed", exc_info=error)
            return _plainly(start_response, "500 Internal Server Error")

    return answer


def _plainly(start_response: StartResponse, status: str, *headers: tuple[str, str]) -> Iterable[bytes]:
    start_response(status, [("Content-Type", "text/plain"), *headers])
    return [f"{status}\n".encode()]
