"""Where the service is, how it is reached, and what gRPC does about failures by itself."""

from __future__ import annotations

import ipaddress
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import grpc

Pem: TypeAlias = bytes | str | os.PathLike[str]
"""PEM, or the path of a file that holds it. Read once, when the authorizer is made."""

_SERVICE = "texture.auth.v1.AuthorizeService"

# One question makes 5 attempts at most, within 0.9 seconds: so that the restart of a server is ridden out, and so that,
# where nobody is there, the error that says so comes before a deadline of a second. The budget ends retries where more
# than a few fail: then each question that fails does so at once, until others have succeeded.
_SERVICE_CONFIG: dict[str, Any] = {
    "loadBalancingConfig": [{"round_robin": {}}],
    # A server that says NOT_SERVING, since it drains or cannot ask its database, gets no questions.
    "healthCheckConfig": {"serviceName": _SERVICE},
    "methodConfig": [
        {
            "name": [{"service": _SERVICE}],
            "retryPolicy": {
                "maxAttempts": 5,
                "initialBackoff": "0.1s",
                "maxBackoff": "0.2s",
                "backoffMultiplier": 2,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
}

_OPTIONS: tuple[tuple[str, Any], ...] = (
    ("grpc.service_config", json.dumps(_SERVICE_CONFIG)),
    # What a DNS record says must not take its place.
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_retries", 1),
    # The scopes of a large batch may take more than the 4 MiB that gRPC takes by itself.
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # A server that is back is found within the retries, and one that is gone is not asked without end.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    # A connection whose other end went without a word is found out. The stream of health checks keeps it in use.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 5_000),
)


@dataclass(frozen=True, slots=True)
class Connection:
    """What a channel to the service is made of."""

    address: str
    credentials: grpc.ChannelCredentials | None = field(repr=False)
    """None is plain text."""
    options: tuple[tuple[str, Any], ...] = field(repr=False)

    def open(self) -> grpc.Channel:
        """Return a channel, which connects when it is first used."""
        if self.credentials is None:
            return grpc.insecure_channel(self.address, self.options)
        return grpc.secure_channel(self.address, self.credentials, self.options)

    def open_async(self) -> grpc.aio.Channel:
        """Return a channel of the running event loop, which connects when it is first used."""
        if self.credentials is None:
            return grpc.aio.insecure_channel(self.address, self.options)
        return grpc.aio.secure_channel(self.address, self.credentials, self.options)


def connection(
    address: str,
    *,
    tls_ca: Pem | None = None,
    client_certificate: Pem | None = None,
    client_private_key: Pem | None = None,
    insecure_plaintext: bool = False,
    connections: int = 1,
) -> Connection:
    """Return how to reach the service. Plain text only to loopback, or where it is asked for by name.

    Raises ValueError for what contradicts itself or is no PEM, OSError for a file that cannot be read.
    """
    if not address:
        raise ValueError("the address of the service is empty")
    if connections < 1:
        raise ValueError("connections must be 1 or more")
    if (client_certificate is None) != (client_private_key is None):
        raise ValueError("client_certificate and client_private_key go together")
    local = is_loopback(address)
    options = _OPTIONS
    if local:
        # What is meant for this machine must not leave it by a proxy.
        options = (*options, ("grpc.enable_http_proxy", 0))
    if connections > 1:
        # Channels of one process share connections otherwise.
        options = (*options, ("grpc.use_local_subchannel_pool", 1))
    plain = tls_ca is None and client_certificate is None and (insecure_plaintext or local)
    credentials = None if plain else _credentials(tls_ca, client_certificate, client_private_key)
    return Connection(address, credentials, options)


def is_loopback(address: str) -> bool:
    """Tell whether what an address of gRPC's (HOST:PORT, `dns:///…`, `ipv4:…`, `unix:…`) names is on this machine."""
    scheme, _, rest = address.partition(":")
    if scheme in {"unix", "unix-abstract"}:
        return True
    if scheme in {"ipv4", "ipv6"}:
        return all(_is_local(each) for each in rest.split(","))
    if scheme == "dns":
        # Another resolver than this machine's own may know another localhost.
        return _is_local(rest.removeprefix("///"))
    return _is_local(address)


def _is_local(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _credentials(
    tls_ca: Pem | None, client_certificate: Pem | None, client_private_key: Pem | None
) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        _pem(tls_ca, "tls_ca"),
        _pem(client_private_key, "client_private_key"),
        _pem(client_certificate, "client_certificate"),
    )


def _pem(given: Pem | None, name: str) -> bytes | None:
    """Return what is in a PEM. gRPC itself would say nothing of one that is none, and never connect."""
    if given is None:
        return None
    content = given if isinstance(given, bytes) else Path(given).read_bytes()
    if b"-----BEGIN " not in content:
        raise ValueError(f"{name} holds no PEM")
    return content
