"""Posting to the outside: to an HTTPS URL that somebody else has chosen, without being led to the inside.

At every attempt the name is resolved, every address that it has must be public, and the connection goes to one of those
very addresses, while the certificate must be for the name: a name that leads elsewhere the next time gains nothing.
Redirects are not followed, and no proxy is used, whatever the environment says.
"""

from __future__ import annotations

import re
import socket
import ssl
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import closing
from dataclasses import dataclass
from enum import Enum
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from server.domain.webhooks import is_public, url_fault

# What an attempt may take in all, after its name is resolved, and what each address may take to accept.
TOTAL_SECONDS = 15.0
CONNECT_SECONDS = 5.0
# How many addresses of a name are tried.
MOST_ADDRESSES = 3
# How much of an answer is read: its head must be within that, those of provisional answers before it included, and the
# rest is of no interest.
MOST_BYTES = 16_384

_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})[ \r]")
# Found as it stands: what parses all headers, as the standard library does, does what the others ask of it, such as
# decoding by any codec that they name, and fails in as many ways.
_RETRY_AFTER = re.compile(rb"\nretry-after:([^\r\n]*)", re.IGNORECASE)
_FIRST_FINAL = 200
_END = b"\r\n\r\n"
_USER_AGENT = "texture-auth-webhooks/1"

Resolve = Callable[[str, int], Collection[str]]


class NotPosted(Exception):  # noqa: N818 - it names a state
    """There was no answer."""

    def __init__(self, why: Why) -> None:
        super().__init__(why.value)
        self.why = why


class Why(Enum):
    """Why there was no answer, by the names that `webhook.proto` has for it."""

    URL_NOT_PERMITTED = "url_not_permitted"
    NAME_NOT_RESOLVED = "name_not_resolved"
    ADDRESS_NOT_PERMITTED = "address_not_permitted"
    CONNECTION_FAILED = "connection_failed"
    CERTIFICATE_INVALID = "certificate_invalid"
    TLS_FAILED = "tls_failed"
    TIMED_OUT = "timed_out"
    ANSWER_MALFORMED = "answer_malformed"


@dataclass(frozen=True, slots=True)
class Answered:
    """The HTTP status of an answer, and its `Retry-After` as it was written; empty where there was none."""

    status: int
    retry_after: str = ""


def resolve(host: str, port: int) -> Collection[str]:
    """Return the addresses of a name, each once, in the order in which they are to be tried. Raises OSError."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


class Outbound:
    """Posts. Safe for use by many threads.

    `private_hosts` are names, or addresses, that may lead to private addresses, and whose certificates may be vouched
    for by the authorities of a file (PEM) as well. Raises OSError and ssl.SSLError where the file cannot be used.
    """

    def __init__(
        self,
        private_hosts: Collection[str] = (),
        private_ca: Path | None = None,
        *,
        resolve: Resolve = resolve,
        total_seconds: float = TOTAL_SECONDS,
    ) -> None:
        self.private_hosts = frozenset(private_hosts)
        self._resolve = resolve
        self._total_seconds = total_seconds
        self._private_ca = private_ca
        if private_ca is not None:
            ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(private_ca)

    # To read what this machine trusts takes longer than all else of a start, so it waits until it is needed.

    @cached_property
    def _public_tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()

    @cached_property
    def _private_tls(self) -> ssl.SSLContext:
        context = ssl.create_default_context()
        if self._private_ca is not None:
            context.load_verify_locations(self._private_ca)
        return context

    def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answered:
        """Post a JSON body once, and return the answer. Raises NotPosted."""
        if url_fault(url, self.private_hosts) is not None:
            raise NotPosted(Why.URL_NOT_PERMITTED)
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or 443
        addresses = self._addresses(host, port)
        deadline = time.monotonic() + self._total_seconds
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        lines = {
            "Host": parts.netloc,
            "User-Agent": _USER_AGENT,
            "Content-Type": "application/json",
            "Content-Length": str(len(body)),
            "Connection": "close",
            **headers,
        }
        head = f"POST {target} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        tls = self._private_tls if host in self.private_hosts else self._public_tls
        try:
            with (
                closing(_connected(addresses, port, deadline)) as plain,
                tls.wrap_socket(plain, server_hostname=host, do_handshake_on_connect=False) as connection,
            ):
                _shake_hands(connection, deadline)
                _send(connection, head.encode("ascii") + b"\r\n" + body, deadline)
                return _answer(connection, deadline)
        except TimeoutError:
            raise NotPosted(Why.TIMED_OUT) from None
        except OSError:
            raise NotPosted(Why.CONNECTION_FAILED) from None

    def _addresses(self, host: str, port: int) -> list[str]:
        """Return the addresses to connect to, once it is clear that all that the name has may be connected to."""
        try:
            addresses = list(self._resolve(host, port))
        except (OSError, UnicodeError):
            addresses = []
        if not addresses:
            raise NotPosted(Why.NAME_NOT_RESOLVED)
        if host not in self.private_hosts and not all(is_public(address) for address in addresses):
            raise NotPosted(Why.ADDRESS_NOT_PERMITTED)
        return addresses[:MOST_ADDRESSES]


def _left(deadline: float) -> float:
    """Return how many seconds are left. Raises TimeoutError where none are."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def _connected(addresses: list[str], port: int, deadline: float) -> socket.socket:
    """Return a connection to the first of the addresses that accepts it. Raises OSError."""
    for address in addresses[:-1]:
        try:
            return socket.create_connection((address, port), timeout=min(CONNECT_SECONDS, _left(deadline)))
        except OSError:
            continue
    return socket.create_connection((addresses[-1], port), timeout=min(CONNECT_SECONDS, _left(deadline)))


def _shake_hands(connection: ssl.SSLSocket, deadline: float) -> None:
    connection.settimeout(_left(deadline))
    try:
        connection.do_handshake()
    except ssl.SSLCertVerificationError:
        raise NotPosted(Why.CERTIFICATE_INVALID) from None
    except ssl.SSLError:
        raise NotPosted(Why.TLS_FAILED) from None


def _send(connection: ssl.SSLSocket, message: bytes, deadline: float) -> None:
    rest = memoryview(message)
    while rest:
        connection.settimeout(_left(deadline))
        rest = rest[connection.send(rest) :]


def _answer(connection: ssl.SSLSocket, deadline: float) -> Answered:
    """Read the head of the answer, passing over those of provisional ones."""
    received, most = b"", MOST_BYTES
    while most:
        # Whoever sends a byte now and then gains no time by it.
        connection.settimeout(_left(deadline))
        some = connection.recv(most)
        if not some:
            break
        received += some
        most -= len(some)
        while _END in received:
            head, _, received = received.partition(_END)
            answered = _read_head(head + _END)
            if answered.status >= _FIRST_FINAL:
                return answered
    raise NotPosted(Why.ANSWER_MALFORMED)


def _read_head(head: bytes) -> Answered:
    status = _STATUS.match(head)
    if status is None:
        raise NotPosted(Why.ANSWER_MALFORMED)
    retry_after = _RETRY_AFTER.search(head)
    return Answered(int(status[1]), "" if retry_after is None else retry_after[1].decode("latin-1").strip(" \t"))
