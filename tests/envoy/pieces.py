"""The pieces that Envoy's configurations for tests are put together from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tests.envoy.gateway import LOOPBACK

_TYPES = "type.googleapis.com/envoy.extensions"
_ASKING = "envoy.filters.http.ext_authz"

HTTP_2: Mapping[str, Any] = {
    "typed_extension_protocol_options": {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {"http2_protocol_options": {}},
        }
    }
}


def tls(common: Mapping[str, Any], **more: Any) -> Mapping[str, Any]:
    """Return how a cluster is reached over TLS."""
    context = {"@type": f"{_TYPES}.transport_sockets.tls.v3.UpstreamTlsContext", "common_tls_context": common, **more}
    return {"transport_socket": {"name": "envoy.transport_sockets.tls", "typed_config": context}}


def cluster(name: str, port: int, settings: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    """Return a cluster of one port of this machine."""
    endpoint = {"endpoint": {"address": _address(port)}}
    endpoints = {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]}
    return {"name": name, "load_assignment": endpoints, **(settings or {})}


def asking(authorizer: str, timeout: float, key_from: str, **service: Any) -> Mapping[str, Any]:
    """Return the filter that asks a cluster, by the key of a variable; where there is no answer it says 503."""
    key = {"key": "authorization", "value": f"Bearer %ENVIRONMENT({key_from})%"}
    return {
        "@type": f"{_TYPES}.filters.http.ext_authz.v3.ExtAuthz",
        "transport_api_version": "V3",
        "grpc_service": {
            "envoy_grpc": {"cluster_name": authorizer},
            "timeout": f"{timeout}s",
            "initial_metadata": [key],
            **service,
        },
        "status_on_error": {"code": "ServiceUnavailable"},
        "route_metadata_context_namespaces": ["texture.auth"],
    }


def listener(
    name: str, ask: Mapping[str, Any], routes: Sequence[Mapping[str, Any]], **settings: Any
) -> Mapping[str, Any]:
    """Return a listener on a free port, which asks about each request and then goes by its routes."""
    router = {"@type": f"{_TYPES}.filters.http.router.v3.Router"}
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": name,
        **settings,
        "http_filters": [
            {"name": _ASKING, "typed_config": ask},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
        "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": routes}]},
    }
    filters = [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    return {"name": name, "address": _address(0), "filter_chains": [{"filters": filters}]}


def saying(extensions: Mapping[str, str]) -> Mapping[str, Any]:
    """Return what has a route say what it needs."""
    own = {"@type": f"{_TYPES}.filters.http.ext_authz.v3.ExtAuthzPerRoute"}
    return {"typed_per_filter_config": {_ASKING: {**own, "check_settings": {"context_extensions": extensions}}}}


def _address(port: int) -> Mapping[str, Any]:
    return {"socket_address": {"address": LOOPBACK, "port_value": port}}
