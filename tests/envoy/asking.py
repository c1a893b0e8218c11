"""An Envoy that asks one address about everything, and answers itself where it is told yes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.envoy import pieces
from tests.envoy.gateway import Envoy, running_envoy
from tests.operate.certificates import Certificate


@contextmanager
def asking(
    folder: Path,
    address: str,
    caller_key: str,
    timeout: float,
    tls_ca: Path | None = None,
    identity: Certificate | None = None,
) -> Iterator[Envoy]:
    """Run it: its listener `customers` wants `devices:list`. About failures it is told what envoy.yaml is told."""
    retries = {"num_retries": 1, "retry_on": "connect-failure,reset,unavailable"}
    ask = pieces.asking("texture_auth", timeout, "CALLER_KEY", retry_policy=retries)
    says = pieces.saying({"texture-permission": "devices:list"})
    every = {"match": {"prefix": "/"}, "direct_response": {"status": 200}, **says}
    listener = pieces.listener("customers", {**ask, "failure_mode_allow": False}, [every])
    settings = {"connect_timeout": "5s", **pieces.HTTP_2, **({} if tls_ca is None else _tls(tls_ca, identity))}
    cluster = pieces.cluster("texture_auth", int(address.rpartition(":")[2]), settings)
    config = json.dumps({"static_resources": {"listeners": [listener], "clusters": [cluster]}})
    with running_envoy(folder, config, CALLER_KEY=caller_key) as envoy:
        yield envoy


def _tls(tls_ca: Path, identity: Certificate | None) -> Mapping[str, Any]:
    common: dict[str, Any] = {"validation_context": {"trusted_ca": {"filename": str(tls_ca)}}}
    if identity is not None:
        files = {"certificate_chain": identity.chain, "private_key": identity.private_key}
        common["tls_certificates"] = [{name: {"filename": str(file)} for name, file in files.items()}]
    return pieces.tls(common)
