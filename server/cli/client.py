"""The command line as a caller: its connection, its credential, and what becomes of errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, Protocol, TypeVar

import click
import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2
from grpc_status import rpc_status
from texture_auth import check

from server.addresses import is_loopback

REFUSED = check.REFUSED
DENIED = 3
UNAVAILABLE = check.UNAVAILABLE
NOT_ADMITTED = check.NOT_ADMITTED

CALLER_KEY_VARIABLE = check.CALLER_KEY_VARIABLE

EXIT_CODES = """
Exit codes: 0 done, or allowed; 1 refused; 2 wrong usage; 3 denied (authorize); 4 the service cannot be reached or
cannot answer; 5 the caller's credential is missing or unknown, or lacks the role.
"""

_EXIT_BY_CODE = {
    grpc.StatusCode.UNAVAILABLE: UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED: UNAVAILABLE,
    grpc.StatusCode.RESOURCE_EXHAUSTED: UNAVAILABLE,
    grpc.StatusCode.INTERNAL: UNAVAILABLE,
    grpc.StatusCode.UNAUTHENTICATED: NOT_ADMITTED,
}

Reply = TypeVar("Reply")
Reply_co = TypeVar("Reply_co", covariant=True)


class Method(Protocol[Reply_co]):
    """An RPC of a stub."""

    def __call__(self, request: Any, *, timeout: float, metadata: Any) -> Reply_co:
        """Call it."""


@dataclass(frozen=True, slots=True)
class Identity:
    """A client certificate and its private key, PEM files."""

    certificate: Path
    private_key: Path


@dataclass(slots=True)
class Client:
    """One channel, opened when it is first needed."""

    address: str
    caller_key_file: Path | None
    tls_ca: Path | None
    identity: Identity | None
    insecure_plaintext: bool
    timeout: float
    _channel: grpc.Channel | None = field(default=None, repr=False)

    @property
    def channel(self) -> grpc.Channel:
        """The channel. Plain text only to loopback, or where it was asked for by name."""
        if self._channel is None:
            if self.tls_ca is not None or self.identity is not None:
                self._channel = grpc.secure_channel(self.address, self._credentials())
            elif self.insecure_plaintext or is_loopback(self.address):
                # What is meant for this machine must not leave it by a proxy.
                options = (("grpc.enable_http_proxy", 0),) if is_loopback(self.address) else ()
                self._channel = grpc.insecure_channel(self.address, options)
            else:
                self._channel = grpc.secure_channel(self.address, grpc.ssl_channel_credentials())
        return self._channel

    def call(self, method: Method[Reply], request: Message) -> Reply:
        """Call an RPC; on an error, explain it on standard error and end with its exit code."""
        try:
            return method(request, timeout=self.timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            explain(error)

    def attempt(self, method: Method[Reply], request: Message, *, unless: Collection[grpc.StatusCode]) -> Reply | None:
        """Call an RPC as `call` does, but return None for errors of these codes."""
        try:
            return method(request, timeout=self.timeout, metadata=self._metadata())
        except grpc.RpcError as error:
            if isinstance(error, grpc.Call) and error.code() in unless:
                return None
            explain(error)

    def stream(self, method: Callable[..., Iterable[Reply]], request: Message) -> Iterable[Reply]:
        """Call an RPC that streams, without a deadline. An error is the caller's to explain."""
        return method(request, metadata=self._metadata())

    def _credentials(self) -> grpc.ChannelCredentials:
        trusted = None if self.tls_ca is None else self.tls_ca.read_bytes()
        if self.identity is None:
            return grpc.ssl_channel_credentials(trusted)
        return grpc.ssl_channel_credentials(
            trusted, self.identity.private_key.read_bytes(), self.identity.certificate.read_bytes()
        )

    def _metadata(self) -> tuple[tuple[str, str], ...]:
        key = self._caller_key()
        return (("authorization", f"Bearer {key}"),) if key else ()

    def _caller_key(self) -> str:
        """Return the caller's own key: from a file or from the environment, never from the arguments.

        Empty where there is none and a client certificate stands for it.
        """
        try:
            key = check.read_caller_key(os.environ, self.caller_key_file)
        except check.CredentialInvalid as error:
            fail(str(error), NOT_ADMITTED)
        if not key and self.identity is None:
            fail(
                "no credential: set TEXTURE_AUTH_CALLER_KEY or TEXTURE_AUTH_CALLER_KEY_FILE to the svc key of a caller",
                NOT_ADMITTED,
            )
        return key


def fail(message: str, code: int) -> NoReturn:
    """End with a message on standard error."""
    click.echo(f"error: {message}", err=True)
    sys.exit(code)


def explain(error: grpc.RpcError) -> NoReturn:
    """Say what an error means, with its reason and the fields at fault, and end."""
    if not isinstance(error, grpc.Call):  # pragma: no cover - every RpcError of a stub is one
        raise error
    code = error.code()
    reason = code.name
    message = error.details() or ""
    lines: list[str] = []
    status = rpc_status.from_call(error)
    for packed in () if status is None else status.details:
        info = error_details_pb2.ErrorInfo()
        bad_request = error_details_pb2.BadRequest()
        if packed.Unpack(info):
            reason = info.reason
            lines += [f"  {name}: {value}" for name, value in sorted(info.metadata.items())]
        elif packed.Unpack(bad_request):
            message = "the request is not as it should be"
            lines += [
                f"  {violation.field or 'message'}: {violation.description}"
                for violation in bad_request.field_violations
            ]
    exit_code = _EXIT_BY_CODE.get(code, REFUSED)
    if reason == "CALLER_ROLE_MISSING":
        exit_code = NOT_ADMITTED
    fail("\n".join([f"{reason}: {message}", *lines]), exit_code)


def read_secret(what: str) -> str:
    """Read a key or token from standard input, or from a prompt that shows nothing; never from the arguments."""
    if sys.stdin.isatty():
        return str(click.prompt(what, hide_input=True, err=True, default="", show_default=False)).strip()
    # Whatever it is, the service is asked: it knows what to say of noise.
    return sys.stdin.buffer.read().decode("utf-8", errors="replace").strip()


def client_command(group: click.Group, name: str | None = None) -> Callable[[Callable[..., None]], click.Command]:
    """Add a command that takes the client, and `--json` for scripts."""

    def decorate(function: Callable[..., None]) -> click.Command:
        wrapped = click.option("--json", "as_json", is_flag=True, help="Print JSON, for scripts.")(function)
        return group.command(name)(click.pass_obj(wrapped))

    return decorate
