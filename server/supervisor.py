"""Several processes on one port: starts workers, starts them again when they crash, and ends them in order.

A worker is a fresh process of the same command, in a process group of its own, so that Ctrl-C reaches the supervisor
alone. Workers share the port, between which the kernel spreads connections, and the store; nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import random
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import structlog

from server.metrics.exposition import Workers
from server.settings import Settings
from server.wire.server import AddressTaken
from server.worker import AT_ONCE, DRAIN, RETIRE, RETIRED, SERVING, VARIABLE

# How long a worker that crashed is waited for: twice as long each time, until it has served for so long.
FIRST_DELAY_SECONDS = 0.1
LONGEST_DELAY_SECONDS = 10.0
STEADY_SECONDS = 30.0
# How long the group may take to say NOT_SERVING everywhere, before it drains all the same.
RETIRE_SECONDS = 1.0
# How much longer than calls in flight may go on a worker may take to end, and how long after a second signal.
GRACE_SECONDS = 10.0
STOP_SECONDS = 2.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD)

_log = structlog.get_logger("texture_auth.supervisor")


@contextmanager
def reserved(settings: Settings) -> Iterator[dict[str, str]]:
    """Keep the addresses of the settings for a group until the block ends; return them by setting, with their ports.

    Raises AddressTaken.
    """
    with ExitStack() as kept:
        addresses = {}
        for name in ("listen", "tls_client_listen"):
            address = getattr(settings, name)
            if address is not None:
                addresses[name] = _reserve(address, kept)
        yield addresses


def _reserve(address: str, kept: ExitStack) -> str:
    host, _, text = address.rpartition(":")
    port, found = int(text), 0
    try:
        resolved = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError:
        raise AddressTaken(f"cannot listen on {address}") from None
    for family, where in dict.fromkeys((family, where) for family, _, _, _, where in resolved):
        try:
            bound = kept.enter_context(_bound(family, (where[0], port, *where[2:])))
        except OSError as error:
            # A name may have addresses that this machine has not, as gRPC minds.
            if error.errno == errno.EADDRINUSE:
                raise AddressTaken(f"cannot listen on {address}") from None
        else:
            found += 1
            port = bound.getsockname()[1]
    if not found:
        raise AddressTaken(f"cannot listen on {address}")
    return f"{host}:{port}"


def _bound(family: int, where: tuple[Any, ...]) -> socket.socket:
    """Return a socket that keeps an address, and takes no connection, for sockets with SO_REUSEPORT. Raises OSError.

    It is bound before it has the option itself: whoever holds the address has no part in this group, though he may
    share his port with others. Without SO_REUSEADDR first, so that of two groups one alone gets it; but with it, if
    there are old connections of an earlier server.
    """
    for reuse in (0, 1):
        bound = socket.socket(family, socket.SOCK_STREAM)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, reuse)
            bound.bind(where)
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError:
            bound.close()
            if reuse:
                raise
        else:
            return bound
    raise AssertionError  # pragma: no cover - the second try returns or raises


@dataclass(eq=False, slots=True)
class _Worker:
    """A process. `name` is what its metrics are written under.

    `served` is when it said that it serves, `end` when it is killed, if it was told to end.
    """

    number: int
    name: str
    process: subprocess.Popen[bytes]
    line: socket.socket
    heard: bytes = field(default=b"", repr=False)
    served: float | None = None
    retired: bool = False
    end: float | None = None

    def tell(self, order: bytes) -> None:
        """Send an order. One that has ended is heard of elsewhere."""
        with suppress(OSError):
            self.line.send(order + b"\n")


@dataclass(slots=True)
class Supervisor:
    """A group of workers. `addresses` are as `reserved` returns them; `opened` is called once, when all serve.

    `metrics` are those of the workers, which are told where to write them, and forgotten when they have ended.
    """

    settings: Settings
    addresses: Mapping[str, str]
    opened: Callable[[], None]
    metrics: Workers
    _selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    # By number: those that are to serve, when the next one of those that crashed starts, and how often they did.
    _workers: dict[int, _Worker] = field(default_factory=dict)
    _due: dict[int, float] = field(default_factory=dict)
    _crashes: dict[int, int] = field(default_factory=dict)
    # A rolling reload: who is still to be replaced, by whom now, and the one that was.
    _to_replace: list[int] = field(default_factory=list)
    _successor: _Worker | None = None
    _leaving: _Worker | None = None
    _open: bool = False
    # Ending: from when on, until when health is waited for, whether it was told to drain; and the exit code.
    _ending: bool = False
    _drain_at: float | None = None
    _code: int = 0

    def run(self) -> int:
        """Serve until the first signal, then drain; the second one stops at once. Return the exit code.

        A worker that ends before it serves, while the group opens, ends the group, with its exit code.
        """
        with _signals() as signals:
            self._selector.register(signals, selectors.EVENT_READ)
            # The first one alone: it makes what a first start in development makes, and says why it refuses, once.
            self._start(1)
            while self._due or self._everybody():
                for key, _ in self._selector.select(self._patience()):
                    if key.fileobj is signals:
                        self._heed(signals.recv(256))
                    else:
                        self._hear(key.data)
                self._reap()
                self._do_what_is_due(time.monotonic())
        _log.info("stopped", code=self._code)
        return self._code

    def _everybody(self) -> list[_Worker]:
        return [*self._workers.values(), *(one for one in (self._successor, self._leaving) if one is not None)]

    def _start(self, number: int) -> None:
        """Start a worker. One that cannot be started is one that crashed."""
        try:
            worker = self._spawn(number)
        except OSError as error:
            _log.error("worker not started", number=number, cause=str(error))
            self._crashed(number, None, 1)
        else:
            self._workers[number] = worker

    def _spawn(self, number: int) -> _Worker:
        # While one replaces another there are two of a number, and each has a file of its own.
        taken = {worker.name for worker in self._everybody()}
        name = next(name for name in (str(number), f"{number}-next") if name not in taken)
        line, theirs = socket.socketpair()
        with theirs:
            # The command as it was given: what is secret is in the environment or in files, and stays there.
            process = subprocess.Popen(  # noqa: S603 - it is this process's own
                [sys.executable, *sys.orig_argv[1:]],
                stdin=theirs.fileno(),
                env={**os.environ, **self.metrics.environment(name), VARIABLE: str(number)},
                process_group=0,
            )
        line.setblocking(False)
        line.send(json.dumps(self.addresses).encode() + b"\n")
        worker = _Worker(number, name, process, line)
        self._selector.register(line, selectors.EVENT_READ, worker)
        _log.info("worker started", number=number, pid=process.pid)
        return worker

    def _heed(self, numbers: bytes) -> None:
        for number in numbers:
            if number in (signal.SIGTERM, signal.SIGINT):
                if self._ending:
                    self._stop_at_once()
                else:
                    self._end(0)
            elif number == signal.SIGHUP and self._open and not self._ending:
                _log.info("reloading")
                self._to_replace = list(range(1, self.settings.workers + 1))

    def _hear(self, worker: _Worker) -> None:
        try:
            said = worker.line.recv(256)
        except OSError:
            said = b""
        if not said:
            # It ends, which is another event.
            self._selector.unregister(worker.line)
            return
        *words, worker.heard = (worker.heard + said).split(b"\n")
        for word in words:
            if word == RETIRED:
                worker.retired = True
            elif word == SERVING and worker.served is None:
                worker.served = time.monotonic()
                _log.info("worker serves", number=worker.number, pid=worker.process.pid)
                self._serves(worker)

    def _serves(self, worker: _Worker) -> None:
        if worker is self._successor:
            self._successor = None
            self._due.pop(worker.number, None)
            self._leaving = self._workers.get(worker.number)
            self._workers[worker.number] = worker
            if self._leaving is not None:
                self._drain(self._leaving)
        elif not self._open and not self._ending:
            for number in range(1, self.settings.workers + 1):
                if number not in self._workers and number not in self._due:
                    self._start(number)
            served = [one.served is not None for one in self._workers.values()]
            if len(served) == self.settings.workers and all(served):
                self._open = True
                self.opened()

    def _reap(self) -> None:
        for worker in self._everybody():
            code = worker.process.poll()
            if code is None:
                continue
            with suppress(KeyError):
                self._selector.unregister(worker.line)
            worker.line.close()
            self.metrics.forget(worker.name)
            how = {"code": code} if code >= 0 else {"signal": signal.Signals(-code).name}
            expected = worker.end is not None
            tell = _log.info if expected else _log.error
            tell("worker ended", number=worker.number, pid=worker.process.pid, **how)
            if worker is self._leaving:
                self._leaving = None
            elif worker is self._successor:
                self._successor = None
                if not self._ending:
                    _log.error("reload given up", number=worker.number)
                    self._to_replace = []
            else:
                del self._workers[worker.number]
                if not self._ending:
                    self._crashed(worker.number, worker.served, code)

    def _crashed(self, number: int, served: float | None, code: int) -> None:
        """Start a worker again after a while; but where it has not served, and the group neither, end the group."""
        if not self._open and served is None:
            self._end(code if code > 0 else 1)
            return
        now = time.monotonic()
        if served is not None and now - served >= STEADY_SECONDS:
            self._crashes.pop(number, None)
        crashes = self._crashes[number] = self._crashes.get(number, 0) + 1
        # Not all at the same moment, where all crash for the same reason.
        delay = min(FIRST_DELAY_SECONDS * 2 ** min(crashes - 1, 16), LONGEST_DELAY_SECONDS)
        delay *= random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        self._due[number] = now + delay
        _log.warning("worker restarts", number=number, crashes=crashes, seconds=round(delay, 3))

    def _end(self, code: int) -> None:
        """Begin to end the group: health first says NOT_SERVING on every worker, then all drain, at once.

        In this order nobody is told SERVING by one worker while another one refuses his call; and all at once, since
        whoever is refused connects again, and had better find nobody than one that is to drain next.
        """
        _log.info("draining", seconds=self.settings.drain_seconds)
        self._ending, self._code, self._drain_at = True, code, time.monotonic() + RETIRE_SECONDS
        self._due.clear()
        self._to_replace = []
        for worker in self._everybody():
            worker.tell(RETIRE)
            if worker.served is None:
                # It has no call yet, and may not follow orders for long.
                worker.end = time.monotonic() + self.settings.drain_seconds + GRACE_SECONDS
                worker.process.terminate()

    def _drain(self, worker: _Worker) -> None:
        if worker.end is None:
            worker.end = time.monotonic() + self.settings.drain_seconds + GRACE_SECONDS
            worker.tell(DRAIN)

    def _stop_at_once(self) -> None:
        _log.warning("stopped at once")
        self._code, self._drain_at = 1, None
        for worker in self._everybody():
            worker.end = time.monotonic() + STOP_SECONDS
            # The first one too, since it may not have been told to drain yet.
            worker.process.terminate()
            for number in AT_ONCE:
                worker.process.send_signal(number)

    def _patience(self) -> float | None:
        """Return how long there is nothing to do by itself; None for ever."""
        times = [*self._due.values(), *(one.end for one in self._everybody() if one.end is not None)]
        if self._drain_at is not None:
            times.append(self._drain_at)
        return max(0.0, min(times) - time.monotonic()) if times else None

    def _do_what_is_due(self, now: float) -> None:
        for number in [number for number, due in self._due.items() if due <= now]:
            del self._due[number]
            self._start(number)
        healths = [one.retired or one.served is None for one in self._everybody()]
        if self._drain_at is not None and (all(healths) or self._drain_at <= now):
            self._drain_at = None
            for worker in self._everybody():
                self._drain(worker)
        for worker in self._everybody():
            if worker.end is not None and worker.end <= now:
                _log.error("worker killed", number=worker.number, pid=worker.process.pid)
                self._code = self._code or int(self._ending)
                worker.end = now + STOP_SECONDS
                worker.process.kill()
        if self._to_replace and self._successor is None and self._leaving is None:
            number = self._to_replace.pop(0)
            try:
                self._successor = self._spawn(number)
            except OSError as error:
                _log.error("reload given up", number=number, cause=str(error))
                self._to_replace = []


@contextmanager
def _signals() -> Iterator[socket.socket]:
    """Return a socket that the numbers of signals are read from, until the block ends."""
    theirs, ours = socket.socketpair()
    with theirs, ours:
        ours.setblocking(False)
        theirs.setblocking(False)
        before = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        wakeup = signal.set_wakeup_fd(ours.fileno())
        try:
            yield theirs
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in before.items():
                signal.signal(number, handler)
