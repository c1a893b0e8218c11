"""An Envoy that asks one address about everything, and answers itself where it is told yes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.envoy.gateway import LOOPBACK, Envoy, running_envoy
from tests.operate.certificates import Certificate

_TYPES = "type.googleapis.com/envoy.extensions"


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
    ask = {
        "@type": f"{_TYPES}.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": "texture_auth"},
            "timeout": f"{timeout}s",
            "initial_metadata": [{"key": "authorization", "value": "Bearer %ENVIRONMENT(CALLER_KEY)%"}],
            "retry_policy": {"num_retries": 1, "retry_on": "connect-failure,reset,unavailable"},
        },
        "failure_mode_allow": False,
        "status_on_error": {"code": "ServiceUnavailable"},
    }
    every = {
        "match": {"prefix": "/"},
        "direct_response": {"status": 200},
        "typed_per_filter_config": {
            "ask": {
                "@type": f"{_TYPES}.filters.http.ext_authz.v3.ExtAuthzPerRoute",
                "check_settings": {"context_extensions": {"texture-permission": "devices:list"}},
            }
        },
    }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "customers",
        "http_filters": [
            {"name": "ask", "typed_config": ask},
            {"name": "route", "typed_config": {"@type": f"{_TYPES}.filters.http.router.v3.Router"}},
        ],
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [every]}]},
    }
    listener = {
        "name": "customers",
        "address": _address(f"{LOOPBACK}:0"),
        "filter_chains": [{"filters": [{"name": "manager", "typed_config": manager}]}],
    }
    cluster: dict[str, Any] = {
        "name": "texture_auth",
        "connect_timeout": "5s",
        "load_assignment": {
            "cluster_name": "texture_auth",
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
    }
    if tls_ca is not None:
        cluster["transport_socket"] = _tls(tls_ca, identity)
    resources = {"static_resources": {"listeners": [listener], "clusters": [cluster]}}
    with running_envoy(folder, json.dumps(resources), CALLER_KEY=caller_key) as envoy:
        yield envoy


def _tls(tls_ca: Path, identity: Certificate | None) -> Mapping[str, Any]:
    context: dict[str, Any] = {"validation_context": {"trusted_ca": {"filename": str(tls_ca)}}}
    if identity is not None:
        files = {"certificate_chain": identity.chain, "private_key": identity.private_key}
        context["tls_certificates"] = [{name: {"filename": str(file)} for name, file in files.items()}]
    config = {"@type": f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": context}
    return {"name": "envoy.transport_sockets.tls", "typed_config": config}


def _address(address: str) -> Mapping[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
