"""The story of Texture Auth, played against a server of its own through the generated stubs, as a client would.

Prints a table of who asked for what and what the answer was, and exits with 1 if any line is not as it should be.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import grpc
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp
from rich.console import Console
from rich.table import Table
from texture.auth.v1 import authorize_service_pb2 as authorize_pb
from texture.auth.v1 import connect_service_pb2 as connect_pb
from texture.auth.v1 import device_service_pb2 as device_pb
from texture.auth.v1 import event_service_pb2 as event_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1 import usage_service_pb2 as usage_pb
from texture.auth.v1 import webhook_service_pb2 as webhook_pb
from texture.auth.v1 import workspace_service_pb2 as workspace_pb
from texture.auth.v1.key_pb2 import KEY_KIND_CONNECT, KEY_KIND_SERVER
from texture.auth.v1.request_context_pb2 import RequestContext
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX

from tests.harness import Client, as_refused
from tests.operate.certificates import Authority
from tests.process import running_server
from tests.webhooks.receiver import HOST, Receiver, receiving

WORKSPACE = "acme"
REDIRECT_URI = "https://app.acme.example/connected?lang=en"
BROWSER = RequestContext(
    client_ip="198.51.100.7",
    origin="https://app.acme.example",
    sec_fetch_site="cross-site",
    sec_fetch_mode="cors",
    user_agent="Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36",
)


@dataclass
class Line:
    """One line of the table, and what it should have been."""

    who: str
    what: str
    answer: str
    reason: str
    http: str
    expected: tuple[str, ...]
    """The answer, the reason and, where it counts, the HTTP status."""

    @property
    def good(self) -> bool:
        return (self.answer, self.reason, self.http)[: len(self.expected)] == self.expected


@dataclass
class Story:
    """The lines so far, and the client that plays them."""

    client: Client
    lines: list[Line] = field(default_factory=list)

    def ask(
        self,
        who: str,
        api_key: str,
        permission: str,
        device_id: str,
        expected: str,
        context: RequestContext | None = None,
    ) -> authorize_pb.AuthorizeResponse:
        """Ask for a decision and write down the answer; `expected` is the reason, PERMITTED for yes."""
        answer = self.client.authorize.Authorize(
            authorize_pb.AuthorizeRequest(api_key=api_key, permission=permission, device_id=device_id, context=context)
        )
        reason = authorize_pb.Reason.Name(answer.reason).removeprefix("REASON_")
        if answer.missing_permission:
            reason += f" ({answer.missing_permission})"
            expected += f" ({permission})"
        self.lines.append(
            Line(
                who,
                f"{permission} {device_id}".strip(),
                authorize_pb.Decision.Name(answer.decision).removeprefix("DECISION_"),
                reason,
                str(answer.http_status_code),
                ("ALLOW" if expected == "PERMITTED" else "DENY", expected),
            )
        )
        return answer

    def check(self, who: str, what: str, found: object, expected: object) -> None:
        """Write down something that is not a decision."""
        good = found == expected
        self.lines.append(Line(who, what, "OK" if good else "WRONG", "" if good else f"{found!r}", "", ("OK", "")))

    def refusal(
        self, who: str, what: str, method: Callable[..., Message], request: Message, expected: tuple[str, str]
    ) -> None:
        """Make a call that must be refused, and write down why it was; `expected` is the code and the reason."""
        try:
            method(request)
        except grpc.RpcError as error:
            found = as_refused(error)
            self.lines.append(Line(who, what, found.code.name, found.reason, "", expected))
        else:
            self.lines.append(Line(who, what, "OK", "", "", expected))


def play(client: Client, receiver: Receiver) -> list[Line]:
    """Play the story, in two acts."""
    story = Story(client)
    act_one(story)
    act_two(story, receiver)
    return story.lines


def act_one(story: Story) -> None:
    """Keys of all kinds do what they may, and nothing else."""
    client = story.client
    client.workspaces.CreateWorkspace(
        workspace_pb.CreateWorkspaceRequest(
            workspace_id=WORKSPACE, display_name="Acme Energy", environment=ENVIRONMENT_SANDBOX
        )
    )
    two_server_keys(story)
    home, someone_else = connect_flow(story)
    scoped_key(story, home, someone_else)
    rotation(story)
    expiry(story)
    typing_errors(story)


def server_key(story: Story, name: str, expires: timedelta | None = None) -> key_pb.CreateKeyResponse:
    """Create a server key."""
    expire_time = None
    if expires is not None:
        expire_time = Timestamp()
        expire_time.FromDatetime(datetime.now(UTC) + expires)
    return story.client.keys.CreateKey(
        key_pb.CreateKeyRequest(
            workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name=name, expire_time=expire_time
        )
    )


def two_server_keys(story: Story) -> None:
    """Two keys for two contexts: revoking one touches the other in nothing."""
    nightly, backend = server_key(story, "Nightly report"), server_key(story, "Backend")
    story.client.devices.RegisterDevices(
        device_pb.RegisterDevicesRequest(
            workspace_id=WORKSPACE,
            devices=[
                device_pb.DeviceRegistration(device_id="charger-9", reference_id="user-9", manufacturer="voltway")
            ],
        )
    )
    story.ask("server key 'Nightly report'", nightly.api_key, "devices:read", "charger-9", "PERMITTED")
    story.client.keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=nightly.key.key_id, reason="laptop lost"))
    story.ask("  the same, revoked", nightly.api_key, "devices:read", "charger-9", "KEY_REVOKED")
    story.ask("server key 'Backend'", backend.api_key, "devices:read", "charger-9", "PERMITTED")
    story.ask("server key 'Backend'", backend.api_key, "devices:read", "charger-0", "DEVICE_NOT_FOUND")
    answer = story.ask("server key 'Backend'", backend.api_key, "devices:list", "", "PERMITTED")
    story.check("", "  the list may hold all of the workspace", answer.device_scope.workspace_id, WORKSPACE)


def connect_flow(story: Story) -> tuple[str, str]:
    """A connect key creates a link and nothing else; the end user's devices arrive and their key is minted."""
    website = story.client.keys.CreateKey(
        key_pb.CreateKeyRequest(
            workspace_id=WORKSPACE,
            kind=KEY_KIND_CONNECT,
            display_name="Website",
            redirect_uris=[REDIRECT_URI],
        )
    ).api_key
    for permission, device in (
        ("devices:list", ""),
        ("devices:read", "charger-9"),
        ("devices:command", "charger-9"),
        ("keys:manage", ""),
        ("workspace:configure", ""),
    ):
        story.ask("connect key 'Website'", website, permission, device, "PERMISSION_NOT_GRANTED")
    story.ask("connect key 'Website'", website, "connect_links:create", "", "PERMITTED", BROWSER)
    story.refusal(
        "connect key 'Website'",
        "a link in somebody else's name",
        story.client.connect.CreateConnectLink,
        connect_pb.CreateConnectLinkRequest(api_key=website, redirect_uri=REDIRECT_URI, reference_id="user-9"),
        ("PERMISSION_DENIED", "REFERENCE_ID_NOT_PERMITTED"),
    )
    link = story.client.connect.CreateConnectLink(
        connect_pb.CreateConnectLinkRequest(api_key=website, redirect_uri=REDIRECT_URI, client_state="cart-17")
    )
    done = story.client.connect.CompleteConnectLink(
        connect_pb.CompleteConnectLinkRequest(
            link_token=link.link_token,
            devices=[connect_pb.ConnectedDevice(device_id="battery-1", manufacturer="heliovolt")],
        )
    )
    query = parse_qs(urlsplit(done.redirect_uri).query)
    expected = {"lang": ["en"], "texture_scoped_key": [done.scoped_api_key], "client_state": ["cart-17"]}
    story.check("end user", "connects battery-1, is sent on with texture_scoped_key", query, expected)
    story.refusal(
        "end user",
        "completes the link again",
        story.client.connect.CompleteConnectLink,
        connect_pb.CompleteConnectLinkRequest(
            link_token=link.link_token, devices=[connect_pb.ConnectedDevice(device_id="battery-2")]
        ),
        ("FAILED_PRECONDITION", "CONNECT_LINK_COMPLETED"),
    )
    return done.scoped_api_key, "charger-9"


def scoped_key(story: Story, key: str, others_device: str) -> None:
    """The scoped key reaches its own end user's devices, and learns nothing about any other."""
    who = "scoped key of the end user"
    story.ask(who, key, "devices:read", "battery-1", "PERMITTED")
    story.ask(who, key, "devices:command", "battery-1", "PERMITTED")
    story.ask(who, key, "devices:read", others_device, "DEVICE_NOT_PERMITTED")
    story.ask(who, key, "devices:read", "no-such-device", "DEVICE_NOT_PERMITTED")
    story.ask(who, key, "connect_links:create", "", "PERMISSION_NOT_GRANTED")
    answer = story.ask(who, key, "devices:list", "", "PERMITTED")
    listed = story.client.devices.ListDevices(
        device_pb.ListDevicesRequest(
            workspace_id=answer.device_scope.workspace_id, reference_id=answer.device_scope.reference_id
        )
    )
    story.check("", "  a list with that scope", [device.device_id for device in listed.devices], ["battery-1"])


def rotation(story: Story) -> None:
    """Both secrets work while the overlap runs; then the old one is retired."""
    old = server_key(story, "Rotated")
    overlap = Duration()
    overlap.FromTimedelta(timedelta(seconds=3))
    new = story.client.keys.RotateKey(key_pb.RotateKeyRequest(key_id=old.key.key_id, overlap=overlap))
    story.ask("rotated key, old secret", old.api_key, "devices:list", "", "PERMITTED")
    story.ask("rotated key, new secret", new.api_key, "devices:list", "", "PERMITTED")
    wait_until(new.key.generations[0].retire_time)
    story.ask("  old, the overlap over", old.api_key, "devices:list", "", "KEY_RETIRED")
    story.ask("  new", new.api_key, "devices:list", "", "PERMITTED")


def expiry(story: Story) -> None:
    """A key ends when it was said to end."""
    short = server_key(story, "Contractor", expires=timedelta(seconds=3))
    story.ask("server key, 3 s to live", short.api_key, "devices:list", "", "PERMITTED")
    wait_until(short.key.expire_time)
    story.ask("  the same, later", short.api_key, "devices:list", "", "KEY_EXPIRED")


def typing_errors(story: Story) -> None:
    """What is no key is told so."""
    key = server_key(story, "Typed").api_key
    story.ask("a key with a typing error", key[:-1] + "_", "devices:list", "", "KEY_MALFORMED")
    story.ask("no key", "", "devices:list", "", "KEY_MISSING")


def act_two(story: Story, receiver: Receiver) -> None:
    """A server key turns up in a browser: it is denied and revoked, its owner hears of it, and what it did is known."""
    owner = story.client.webhooks.CreateWebhookEndpoint(
        webhook_pb.CreateWebhookEndpointRequest(
            workspace_id=WORKSPACE, url=receiver.url, event_types=["key.exposed", "key.revoked"]
        )
    )
    leaked = server_key(story, "Pasted into a web page")
    who = "server key 'Pasted into a web page'"
    story.ask(f"{who}, in the backend", leaked.api_key, "devices:read", "charger-9", "PERMITTED")
    story.ask("  in a browser", leaked.api_key, "devices:command", "charger-9", "KEY_EXPOSED", BROWSER)
    asked = time.monotonic()
    story.ask("  in the backend, from then on", leaked.api_key, "devices:read", "charger-9", "KEY_REVOKED")
    receiver.wait_for(2)
    (heard,) = receiver.of_type("key.exposed")
    payload = heard.payload
    found = (payload["type"], payload["data"]["subject_id"], heard.signed_by(owner.signing_secret))
    story.check("its owner", "is told by a signed webhook", found, ("key.exposed", leaked.key.key_id, True))
    seconds = time.monotonic() - asked
    story.check("", f"  in under a second: {seconds:.2f} s", seconds < 1, True)
    touched = story.client.usage.ListKeyDevices(usage_pb.ListKeyDevicesRequest(key_id=leaked.key.key_id)).touches
    story.check("incident report", "the devices it touched", [touch.device_id for touch in touched], ["charger-9"])
    uses = story.client.usage.GetKeyUsage(usage_pb.GetKeyUsageRequest(key_id=leaked.key.key_id)).totals
    reasons = sorted(authorize_pb.Reason.Name(use.reason).removeprefix("REASON_") for use in uses)
    story.check("", "  and what it was answered", reasons, ["KEY_EXPOSED", "KEY_REVOKED", "PERMITTED"])
    verified = story.client.events.VerifyChain(event_pb.VerifyChainRequest(workspace_id=WORKSPACE))
    story.check("audit", "nobody has rewritten the log", verified.HasField("broken"), False)


def wait_until(moment: Timestamp) -> None:
    """Let real time pass."""
    left = moment.ToDatetime(UTC) - datetime.now(UTC)
    time.sleep(max(0.0, left.total_seconds()) + 0.05)


def show(lines: Sequence[Line], title: str = "May the holder of this key do this?", answer: str = "answer") -> bool:
    """Print the table, and tell whether all of it is as it should be."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    for column in ("", "who", "what", answer, "reason", "HTTP"):
        table.add_column(column)
    for line in lines:
        mark = "[green]✓[/]" if line.good else "[bold red]✗[/]"
        reason = line.reason if line.good else f"{line.reason}, expected {' '.join(line.expected)}"
        table.add_row(mark, line.who, line.what, line.answer, reason, line.http)
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
    wrong = sum(not line.good for line in lines)
    console.print(f"\n{len(lines)} lines, {wrong} wrong")
    return wrong == 0


def incident(address: str, key: str, key_id: str) -> bool:
    """Print what an operator is told of a key by the command line, and tell whether it was."""
    Console().print(f"\n$ texture-auth incident {key_id}\n", highlight=False)
    environment = {**os.environ, "TEXTURE_AUTH_ADDRESS": address, "TEXTURE_AUTH_CALLER_KEY": key}
    return (
        subprocess.run([sys.executable, "-m", "server", "incident", key_id], env=environment, check=False).returncode
        == 0
    )


def main() -> int:
    """Run the demonstration."""
    with tempfile.TemporaryDirectory(prefix="texture-auth-demo-") as name:
        folder = Path(name)
        authority = Authority(folder)
        # The owner's receiver is on this machine, where webhooks go only if the operator says so.
        private = {
            "TEXTURE_AUTH_WEBHOOK_PRIVATE_HOSTS": HOST,
            "TEXTURE_AUTH_WEBHOOK_CA": str(authority.certificate),
        }
        with (
            receiving(authority.issue("receiver", hosts=(HOST,))) as receiver,
            running_server(folder, "--development", **private) as server,
            grpc.insecure_channel(server.address) as channel,
        ):
            key = (folder / "var" / "operator.key").read_text().strip()
            client = Client(channel, key)
            good = show(play(client, receiver))
            leaked = client.events.ListEvents(event_pb.ListEventsRequest(types=["key.exposed"])).events[0].event
            good = incident(server.address, key, leaked.subject_id) and good
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
