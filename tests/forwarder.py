"""A way to a server that can be cut without anybody being told, as a network does it."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal
from urllib.parse import urlsplit, urlunsplit

Direction = Literal["questions", "answers"]
BOTH: frozenset[Direction] = frozenset({"questions", "answers"})


@dataclass
class _Link:
    """One connection and what of it is lost on the way, its end included."""

    client: socket.socket
    server: socket.socket
    lost: frozenset[Direction]
    pumps: list[threading.Thread] = field(default_factory=list)

    def pump(self, direction: Direction) -> None:
        source, target = (self.client, self.server) if direction == "questions" else (self.server, self.client)
        with suppress(OSError):
            while data := source.recv(65536):
                if direction not in self.lost:
                    target.sendall(data)
            if direction not in self.lost:
                target.shutdown(socket.SHUT_WR)


class Forwarder:
    """Listens on a port of its own, and forwards to a socket, or to a port of this machine.

    As many of the next connections as `hang_ups` says are ended at once.
    """

    def __init__(self, to: Path | int) -> None:
        self.hang_ups = 0
        self._to = to
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._links: list[_Link] = []
        self._lock = threading.Lock()
        self._lost: frozenset[Direction] = frozenset()
        self._acceptor = threading.Thread(target=self._accept, name="forwarder")
        self._acceptor.start()

    def url_of(self, url: str) -> str:
        """Return the URL that leads through here to the database of another URL."""
        parts = urlsplit(url)
        port = self._listener.getsockname()[1]
        return urlunsplit(parts._replace(netloc=f"{parts.username}@127.0.0.1:{port}", query=""))

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def lose(self, lost: frozenset[Direction] = BOTH) -> None:
        """Lose what is sent from now on. What was connected until `recover` stays silent for ever."""
        with self._lock:
            self._lost = lost
            for link in self._links:
                link.lost |= lost

    def recover(self) -> None:
        """Forward for those who connect from now on."""
        with self._lock:
            self._lost = frozenset()

    def cut(self) -> None:
        """End every connection, for both sides to see."""
        with self._lock:
            for link in self._links:
                for end in (link.client, link.server):
                    with suppress(OSError):
                        end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """End every connection, and wait for the threads."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._acceptor.join()
        self._listener.close()
        self.cut()
        for link in self._links:
            for pump in link.pumps:
                pump.join()
            link.client.close()
            link.server.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                try:
                    server = self._server()
                except OSError:
                    client.close()
                    continue
                with self._lock:
                    link = _Link(client, server, self._lost)
                    self._links.append(link)
                for direction in BOTH:
                    thread = threading.Thread(target=link.pump, args=(direction,), name=f"forwarder-{direction}")
                    link.pumps.append(thread)
                    thread.start()

    def _server(self) -> socket.socket:
        """Connect to what is forwarded to. Raises OSError where nobody is there at the moment."""
        if self.hang_ups:
            self.hang_ups -= 1
            raise ConnectionRefusedError
        if isinstance(self._to, int):
            return socket.create_connection(("127.0.0.1", self._to))
        server = socket.socket(socket.AF_UNIX)
        try:
            server.connect(str(self._to))
        except OSError:
            server.close()
            raise
        return server


@contextmanager
def forwarding(to: Path | int) -> Iterator[Forwarder]:
    """Forward to a socket until the block ends."""
    forwarder = Forwarder(to)
    try:
        yield forwarder
    finally:
        forwarder.close()
