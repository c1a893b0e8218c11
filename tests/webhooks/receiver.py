"""A real HTTPS receiver of webhooks on loopback, which answers as a test has it answer."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from standardwebhooks.webhooks import Webhook

from tests.operate.certificates import Certificate
from tests.operate.process import wait_until

HOST = "localhost"


@dataclass(frozen=True)
class Received:
    """A request as it came."""

    line: str
    headers: Mapping[str, str]
    body: str

    @property
    def message_id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def payload(self) -> Any:
        return json.loads(self.body)

    def signed_by(self, secret: str) -> bool:
        """Tell whether one of its signatures was made by a secret, whatever the time is."""
        sent = datetime.fromtimestamp(int(self.headers["webhook-timestamp"]), UTC)
        expected = Webhook(secret).sign(msg_id=self.message_id, timestamp=sent, data=self.body)
        return expected in self.headers["webhook-signature"].split(" ")


Reply = Callable[[ssl.SSLSocket, Received], None]


def status(line: str, *headers: str) -> Reply:
    """Return a reply with a status line and headers."""
    answer = "".join(f"{part}\r\n" for part in (f"HTTP/1.1 {line}", *headers, "Content-Length: 0", ""))
    return lambda connection, _: connection.sendall(answer.encode())


_ACCEPT = status("204 No Content")


@dataclass
class Receiver:
    """What it received, and how it answers."""

    listener: socket.socket
    context: ssl.SSLContext
    reply: Reply = _ACCEPT
    received: list[Received] = field(default_factory=list)
    connections: int = 0
    # Set at the end, so that no reply waits for ever.
    ended: threading.Event = field(default_factory=threading.Event)

    @property
    def port(self) -> int:
        return int(self.listener.getsockname()[1])

    @property
    def url(self) -> str:
        return f"https://{HOST}:{self.port}/hooks?of=acme"

    def silent(self, _connection: ssl.SSLSocket, _request: Received) -> None:
        """Reply nothing, until the receiver ends."""
        self.ended.wait()

    def of_type(self, event_type: str) -> list[Received]:
        return [one for one in self.received if one.payload["type"] == event_type]

    def wait_for(self, count: int) -> list[Received]:
        """Wait until so many requests have come, and return them."""
        wait_until(lambda: len(self.received) >= count, f"{count} webhooks")
        return self.received

    def run(self) -> None:
        while not self.ended.is_set():
            with suppress(OSError):
                connection, _ = self.listener.accept()
                self.connections += 1
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, plain: socket.socket) -> None:
        with suppress(OSError, ssl.SSLError), self.context.wrap_socket(plain, server_side=True) as connection:
            stream = connection.makefile("rb")
            line = stream.readline().decode().strip()
            headers = {}
            while text := stream.readline().decode().strip():
                name, _, value = text.partition(":")
                headers[name.lower()] = value.strip()
            request = Received(line, headers, stream.read(int(headers["content-length"])).decode())
            self.received.append(request)
            self.reply(connection, request)


@contextmanager
def receiving(certificate: Certificate, port: int = 0) -> Iterator[Receiver]:
    """Run a receiver on loopback until the block ends."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate.chain, certificate.private_key)
    with socket.create_server(("127.0.0.1", port)) as listener:
        receiver = Receiver(listener, context)
        thread = threading.Thread(target=receiver.run, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            receiver.ended.set()
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def settings_for(ca: Path) -> dict[str, Any]:
    """Return the settings of a server that may send to receivers here."""
    return {"webhook_private_hosts": HOST, "webhook_ca": ca}
