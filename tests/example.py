"""The example service beside Texture Auth, called over gRPC and HTTP as by its customers, with all three kinds of key.

Prints a table of who asked for what and how it was answered, and exits with 1 if any line is not as it should be.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
from device_api import devices_pb2 as api_pb
from device_api.devices_pb2_grpc import DeviceApiStub
from google.protobuf.message import Message
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.caller_pb2 import ROLE_AUTHORIZER
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SERVER, KeyKind
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX

from tests.demo import Line, show
from tests.harness import Client, as_refused
from tests.process import running_server

REDIRECT_URI = "https://app.acme.example/connected"
OK = ("OK", 200, "")
SECONDS = 10


@dataclass(frozen=True)
class Key:
    """A customer's key, and what to call its holder."""

    who: str
    secret: str = field(repr=False)
    key_id: str = ""


@dataclass(frozen=True)
class Keys:
    """One of each kind, and a second server key that is for one manufacturer alone."""

    backend: Key
    voltway: Key
    website: Key
    end_user: Key


@dataclass
class Tour:
    """Calls the device API, both ways, and writes down how it answered."""

    stub: DeviceApiStub
    web: httpx.Client
    lines: list[Line] = field(default_factory=list)

    def list(self, key: Key, expected: tuple[str, int, str], devices: Sequence[str] = ()) -> None:
        """List devices: which they are is looked at, too."""
        by_grpc = self._by_grpc(self.stub.ListDevices, api_pb.ListDevicesRequest(), key)
        by_http = self._by_http("GET", "", key)
        self._note(key, "devices:list", by_grpc, by_http, expected)
        if expected == OK:
            listed = [device.device_id for device in by_grpc[2].devices]
            also = [device["device_id"] for device in by_http[2]["devices"]]
            self.check(f"  and sees {' and '.join(devices)}", (listed, also), ([*devices], [*devices]))

    def read(self, key: Key, device_id: str, expected: tuple[str, int, str]) -> None:
        """Read a device."""
        by_grpc = self._by_grpc(self.stub.GetDevice, api_pb.GetDeviceRequest(device_id=device_id), key)
        by_http = self._by_http("GET", f"/{device_id}", key)
        self._note(key, f"devices:read {device_id}", by_grpc, by_http, expected)

    def command(self, key: Key, device_id: str, expected: tuple[str, int, str]) -> None:
        """Have a device charge."""
        request = api_pb.SendCommandRequest(device_id=device_id, command="charge")
        by_grpc = self._by_grpc(self.stub.SendCommand, request, key)
        by_http = self._by_http("POST", f"/{device_id}/commands", key, json={"command": "charge"})
        self._note(key, f"devices:command {device_id}", by_grpc, by_http, expected)

    def check(self, what: str, found: object, expected: object) -> None:
        """Write down something that is no answer to a call."""
        good = found == expected
        self.lines.append(Line("", what, "OK" if good else "WRONG", "" if good else repr(found), "", ("OK", "")))

    def _by_grpc(self, method: Callable[..., Any], request: Message, key: Key) -> tuple[str, str, Any]:
        """Return the code, the reason and the answer."""
        try:
            return "OK", "", method(request, metadata=_metadata(key), timeout=SECONDS)
        except grpc.RpcError as error:
            refused = as_refused(error)
            return refused.code.name, refused.reason, None

    def _by_http(self, method: str, path: str, key: Key, **more: Any) -> tuple[int, str, Any]:
        """Return the status, the code of the platform's error body and the answer."""
        headers = {"Texture-Api-Key": key.secret} if key.secret else {}
        answer = self.web.request(method, f"/v1/devices{path}", headers=headers, **more)
        body = answer.json()
        return answer.status_code, body.get("code", ""), body

    def _note(
        self,
        key: Key,
        what: str,
        by_grpc: tuple[str, str, Any],
        by_http: tuple[int, str, Any],
        expected: tuple[str, int, str],
    ) -> None:
        reason = by_grpc[1] if by_grpc[1] == by_http[1] else f"{by_grpc[1]} and {by_http[1]}"
        wanted = (expected[0], expected[2], str(expected[1]))
        self.lines.append(Line(key.who, what, by_grpc[0], reason, str(by_http[0]), wanted))


def _metadata(key: Key) -> tuple[tuple[str, str], ...]:
    return (("texture-api-key", key.secret),) if key.secret else ()


def play(tour: Tour, operator: Client, keys: Keys) -> None:
    """Call with keys of every kind, and with none; then revoke."""
    nobody = Key("nobody", "")
    mistyped = Key("who mistypes a key", keys.backend.secret[:-1] + "_")
    tour.list(nobody, ("UNAUTHENTICATED", 401, "KEY_MISSING"))
    tour.list(mistyped, ("UNAUTHENTICATED", 401, "KEY_MALFORMED"))
    tour.list(keys.backend, OK, ["battery-1", "charger-9"])
    tour.read(keys.backend, "battery-1", OK)
    tour.command(keys.backend, "charger-9", OK)
    for others in ("thermostat-4", "no-such-device"):
        tour.read(keys.backend, others, ("NOT_FOUND", 404, "DEVICE_NOT_FOUND"))
    tour.list(keys.voltway, OK, ["charger-9"])
    tour.read(keys.voltway, "battery-1", ("PERMISSION_DENIED", 403, "MANUFACTURER_NOT_PERMITTED"))
    no_permission = ("PERMISSION_DENIED", 403, "PERMISSION_NOT_GRANTED")
    tour.list(keys.website, no_permission)
    tour.read(keys.website, "battery-1", no_permission)
    tour.command(keys.website, "battery-1", no_permission)
    tour.list(keys.end_user, OK, ["battery-1"])
    tour.command(keys.end_user, "battery-1", OK)
    for others in ("charger-9", "no-such-device"):
        tour.read(keys.end_user, others, ("PERMISSION_DENIED", 403, "DEVICE_NOT_PERMITTED"))
    revoked_meanwhile(tour, operator, keys)


def revoked_meanwhile(tour: Tour, operator: Client, keys: Keys) -> None:
    """A key is revoked: what is asked with it is denied at once, and a stream that runs is ended."""
    watching = tour.stub.WatchDevice(
        api_pb.WatchDeviceRequest(device_id="battery-1"), metadata=_metadata(keys.end_user), timeout=SECONDS
    )
    before = next(watching).charge_percent
    tour.command(keys.backend, "battery-1", OK)
    tour.check("  which who watches it sees", next(watching).charge_percent > before, True)
    operator.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=keys.end_user.key_id, reason="the phone was stolen"))
    revoked = ("UNAUTHENTICATED", 401, "KEY_REVOKED")
    tour.read(keys.end_user, "battery-1", revoked)
    tour.list(keys.end_user, revoked)
    try:
        for _ in watching:
            pass
        ended = ("OK", "")
    except grpc.RpcError as error:
        refused = as_refused(error)
        ended = (refused.code.name, refused.reason)
    tour.lines.append(Line(keys.end_user.who, "the stream that runs", ended[0], ended[1], "", (revoked[0], revoked[2])))
    tour.list(keys.backend, OK, ["battery-1", "charger-9"])


def make_keys(operator: Client) -> Keys:
    """Make two workspaces with the devices of the example's store, and keys of the first one."""
    for workspace, devices in (
        ("acme", (("battery-1", "user-1", "heliovolt"), ("charger-9", "user-9", "voltway"))),
        ("globex", (("thermostat-4", "user-4", "warmly"),)),
    ):
        operator.workspaces.CreateWorkspace(
            workspace_pb.CreateWorkspaceRequest(
                workspace_id=workspace,
                display_name=workspace.title(),
                environment=ENVIRONMENT_SANDBOX,
                redirect_uris=[REDIRECT_URI],
            )
        )
        registrations = [
            device_pb.DeviceRegistration(device_id=device_id, reference_id=reference_id, manufacturer=manufacturer)
            for device_id, reference_id, manufacturer in devices
        ]
        operator.devices.RegisterDevices(
            device_pb.RegisterDevicesRequest(workspace_id=workspace, devices=registrations)
        )
    backend = _key(operator, KEY_KIND_SERVER, "server key 'Backend'")
    return Keys(
        backend=backend,
        voltway=_key(
            operator,
            KEY_KIND_SERVER,
            "server key for voltway's",
            allowed_manufacturers=["voltway"],
        ),
        website=_key(operator, KEY_KIND_CONNECT, "connect key 'Website'", redirect_uris=[REDIRECT_URI]),
        end_user=_end_users_key(operator, backend),
    )


def _key(operator: Client, kind: KeyKind.ValueType, who: str, **more: Any) -> Key:
    made = operator.keys.CreateKey(key_pb.CreateKeyRequest(workspace_id="acme", kind=kind, display_name=who, **more))
    return Key(who, made.api_key, made.key.key_id)


def _end_users_key(operator: Client, backend: Key) -> Key:
    link = operator.connect.CreateConnectLink(
        connect_pb.CreateConnectLinkRequest(api_key=backend.secret, redirect_uri=REDIRECT_URI, reference_id="user-1")
    )
    done = operator.connect.CompleteConnectLink(
        connect_pb.CompleteConnectLinkRequest(
            link_token=link.link_token,
            devices=[connect_pb.ConnectedDevice(device_id="battery-1", manufacturer="heliovolt")],
        )
    )
    return Key("scoped key of user-1", done.scoped_api_key, done.scoped_key.key_id)


@contextmanager
def running_example(address: str, caller_key: str) -> Iterator[tuple[str, str]]:
    """Run the example service, which asks at an address; yield where it answers gRPC and HTTP."""
    settings = {
        "TEXTURE_AUTH_ADDRESS": address,
        "TEXTURE_AUTH_CALLER_KEY": caller_key,
        "DEVICE_API_GRPC": "127.0.0.1:0",
        "DEVICE_API_HTTP": "127.0.0.1:0",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", "device_api"], env={**os.environ, **settings}, stdout=subprocess.PIPE, text=True
    )
    try:
        said = process.stdout.readline() if process.stdout is not None else ""
        found = re.fullmatch(r"gRPC on (\S+), HTTP on (\S+)\n", said)
        if found is None:
            raise RuntimeError(f"the example did not start, and said {said!r}")
        yield found[1], found[2]
    finally:
        process.terminate()
        process.communicate(timeout=SECONDS)


def main() -> int:
    """Run the example and its customers."""
    with tempfile.TemporaryDirectory(prefix="texture-auth-example-") as name:
        folder = Path(name)
        with running_server(folder, "--development") as server, grpc.insecure_channel(server.address) as channel:
            operator = Client(channel, (folder / "var" / "operator.key").read_text().strip())
            caller = operator.callers.CreateCaller(
                caller_pb.CreateCallerRequest(caller_id="device-api", roles=[ROLE_AUTHORIZER])
            )
            with (
                running_example(server.address, caller.caller_key) as (grpc_address, http_address),
                grpc.insecure_channel(grpc_address) as api,
                httpx.Client(base_url=f"http://{http_address}", timeout=SECONDS, trust_env=False) as web,
            ):
                tour = Tour(DeviceApiStub(api), web)
                play(tour, operator, make_keys(operator))
    return 0 if show(tour.lines, "What a device API answers its customers", "gRPC") else 1


if __name__ == "__main__":
    sys.exit(main())
