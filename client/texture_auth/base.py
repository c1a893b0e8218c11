"""What both authorizers are, but for how they call."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Generic, Self, TypeVar

from texture.auth.v1.authorize_service_pb2_grpc import AuthorizeServiceStub

from texture_auth.asking import Asking
from texture_auth.connection import Connection, Pem, connection
from texture_auth.credentials import caller_key as credential
from texture_auth.environment import settings
from texture_auth.observing import Counters, Observer

DEFAULT_TIMEOUT = 1.0

_Channel = TypeVar("_Channel")


class AuthorizerBase(Generic[_Channel]):
    """Settings, counters and revisions."""

    def __init__(
        self,
        address: str,
        *,
        caller_key: str | Callable[[], str] = "",
        caller_key_file: str | os.PathLike[str] | None = None,
        tls_ca: Pem | None = None,
        client_certificate: Pem | None = None,
        client_private_key: Pem | None = None,
        insecure_plaintext: bool = False,
        timeout: float = DEFAULT_TIMEOUT,
        connections: int = 1,
        observers: Iterable[Observer] = (),
        channel: _Channel | None = None,
    ) -> None:
        """Connect when the first question is asked; make it after a fork, or ask nothing before.

        `address` is HOST:PORT, or any name that gRPC resolves (`dns:///auth.internal:443`): questions go in turn to all
        the servers that it leads to. `connections` opens so many to each, for many workers behind one port.

        Plain text is for loopback, and elsewhere only with `insecure_plaintext`. Else TLS: trusting `tls_ca`, or what
        gRPC trusts (a list of its own, not the system's), and presenting the client certificate, if there is one; all
        three PEM or paths.

        `caller_key` is the `svc` key of this service, or what returns it at each call; `caller_key_file` a file that
        holds it, and is read again when it changes.

        `timeout` is the longest that an answer may take, in seconds, retries included. `observers` are told of each
        question. `channel` is one of your own, to be used in place of all that is said here of connections.

        Raises ValueError for what contradicts itself, OSError for a file that cannot be read.
        """
        self._asking = Asking(
            caller_key=credential(caller_key, caller_key_file), timeout=timeout, observers=tuple(observers)
        )
        self._address = address
        self._count = connections
        self._own = channel
        self._connection: Connection | None = None
        self._lock = threading.Lock()
        self._turns = itertools.count()
        self._channels: tuple[_Channel, ...] = ()
        self._stubs: tuple[Any, ...] = ()
        self._closed = False
        if channel is None:
            self._connection = connection(
                address,
                tls_ca=tls_ca,
                client_certificate=client_certificate,
                client_private_key=client_private_key,
                insecure_plaintext=insecure_plaintext,
                connections=connections,
            )

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ, **more: Any) -> Self:
        """Return an authorizer with the settings of the `texture-auth` command line, and others by argument.

        They are TEXTURE_AUTH_ADDRESS, TEXTURE_AUTH_CALLER_KEY or TEXTURE_AUTH_CALLER_KEY_FILE, TEXTURE_AUTH_TLS_CA,
        TEXTURE_AUTH_CLIENT_CERTIFICATE, TEXTURE_AUTH_CLIENT_PRIVATE_KEY and TEXTURE_AUTH_CLIENT_PLAINTEXT. Raises
        ValueError for an address or a credential that is missing.
        """
        return cls(**settings(environ) | more)

    @property
    def counters(self) -> Counters:
        """How the questions so far came out."""
        return self._asking.observation.counters()

    def observe(self, revision: str) -> None:
        """Have every later answer reflect a state of the service: the `revision` of RevokeKey's answer, say.

        So what was revoked is denied even if RevokeKey was told not to wait. Several may be observed, in any order, by
        any thread. While they cannot be told to be one state, each question is asked once for each of them. When the
        service cannot verify one, as after a restore, one question is unanswered for it, and it is carried no more.
        """
        self._asking.revisions.observe(revision)

    def _new_channel(self, connection: Connection) -> _Channel:
        """Return a channel."""
        raise NotImplementedError

    def _stub(self) -> Any:
        """Return the stub whose turn it is; the first time, make the channels."""
        stubs = self._stubs or self._open()
        return stubs[next(self._turns) % len(stubs)]

    def _open(self) -> tuple[Any, ...]:
        with self._lock:
            if self._closed:
                raise ValueError("the authorizer is closed")
            if not self._stubs:
                channels: Any = (self._own,)
                if self._connection is not None:
                    connection = self._connection
                    channels = self._channels = tuple(self._new_channel(connection) for _ in range(self._count))
                self._stubs = tuple(AuthorizeServiceStub(channel) for channel in channels)
            return self._stubs

    def _shut(self) -> tuple[_Channel, ...]:
        """Make no channel from now on, and return those to be closed."""
        with self._lock:
            self._closed = True
            self._stubs = ()
            channels, self._channels = self._channels, ()
            return channels

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._address}>"
