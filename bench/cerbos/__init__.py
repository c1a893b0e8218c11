"""Cerbos, which decides by a policy: the same questions put to it, as fairly as can be.

It runs with no audit log, no telemetry, no schemas, policies that are not watched for changes, and its limits at their
highest, on one core, warm. It is told all facts with each question: it verifies no secret and looks nothing up.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import Message
from grpc_tools import protoc

from bench import processes, tools
from bench.facts import PERMISSIONS, WORKSPACE, Facts
from server.domain.kinds import CEILING

METHOD = "/cerbos.svc.v1.CerbosService/CheckResources"
# The actions of a result come in any order, and each answer has an id of its own.
VARYING = "2.~,3"
# As many as Cerbos can be told to take in a request.
MOST_RESOURCES = 500
_HERE = Path(__file__).parent
_START_SECONDS = 30


@contextmanager
def running() -> Iterator[processes.Running]:
    """Run Cerbos on the server's core until the block ends. Raises Missing."""
    program = tools.cerbos()
    address = f"127.0.0.1:{free_port()}"
    with tempfile.TemporaryDirectory(prefix="bench-cerbos-") as folder:
        settings = {
            "server": {
                "grpcListenAddr": address,
                "httpListenAddr": f"127.0.0.1:{free_port()}",
                "requestLimits": {"maxActionsPerResource": 50, "maxResourcesPerRequest": MOST_RESOURCES},
            },
            "storage": {"driver": "disk", "disk": {"directory": str(_HERE / "policies"), "watchForChanges": False}},
            "audit": {"enabled": False},
            "schema": {"enforcement": "none"},
            "telemetry": {"disabled": True},
        }
        file = Path(folder) / "cerbos.json"
        file.write_text(json.dumps(settings))
        command = [str(program), "server", f"--config={file}", "--log-level=error"]
        environment = {"GOMAXPROCS": "1", "CERBOS_NO_TELEMETRY": "1"}
        with processes.running(command, environment=environment, address=address) as server:
            _wait(server)
            yield server


def exchange(
    facts: Facts, key: int, devices: Sequence[int], permissions: Sequence[str] = PERMISSIONS[:1]
) -> tuple[Message, Message]:
    """Return a request about a key and devices, and the answer that it must get."""
    kind = facts.kind(key)
    request, answer = _message("CheckResourcesRequest"), _message("CheckResourcesResponse")
    request.request_id = answer.request_id = "bench"
    answer.cerbos_call_id = "c"
    request.principal.id = facts.key_id(key)
    request.principal.roles.append(kind.value)
    attributes = request.principal.attr
    attributes["state"].string_value = "active"
    attributes["workspace_id"].string_value = WORKSPACE
    attributes["reference_id"].string_value = facts.end_user(key)
    for permission in sorted(each.value for each in CEILING[kind]):
        attributes["permissions"].list_value.values.add(string_value=permission)
    for device in devices:
        entry = request.resources.add(actions=permissions)
        entry.resource.kind, entry.resource.id = "device", facts.device_id(device)
        entry.resource.attr["workspace_id"].string_value = WORKSPACE
        entry.resource.attr["reference_id"].string_value = facts.end_user(device)
        result = answer.results.add()
        result.resource.kind, result.resource.id = "device", facts.device_id(device)
        for permission in permissions:
            result.actions[permission] = 1 if facts.allows(key, device) else 2
    return request, answer


@cache
def _types() -> descriptor_pool.DescriptorPool:
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / "set"
        include = Path(protoc.__file__).parent / "_proto"
        protoc.main(["protoc", f"-I{_HERE}", f"-I{include}", "--include_imports", f"-o{made}", "check.proto"])
        found = descriptor_pb2.FileDescriptorSet.FromString(made.read_bytes())
    pool = descriptor_pool.DescriptorPool()
    for file in found.file:
        pool.Add(file)
    return pool


def _message(name: str) -> Any:
    described = _types().FindMessageTypeByName(f"texture.auth.bench.cerbos.{name}")
    return message_factory.GetMessageClass(described)()


def free_port() -> int:
    """Return a port on loopback that nobody had a moment ago, for servers that cannot say which one they took."""
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        port: int = listener.getsockname()[1]
        return port


def _wait(server: processes.Running) -> None:
    until = time.monotonic() + _START_SECONDS
    with grpc.insecure_channel(server.address) as channel:
        try:
            grpc.channel_ready_future(channel).result(until - time.monotonic())
        except grpc.FutureTimeoutError:
            raise RuntimeError(f"Cerbos did not start:\n{server.log.read_text()}") from None
