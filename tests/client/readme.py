"""Runs what the client's README shows, with any Python, against a server: each block of `python`, by itself.

python -m tests.client.readme PYTHON [--with-extras]

PYTHON is that of an environment into which the wheel was installed, and nothing of the server. Without the flag, blocks
that need an extra are left out.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from texture.auth.v1 import device_service_pb2, key_service_pb2, workspace_service_pb2
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER
from texture.auth.v1.workspace_pb2 import ENVIRONMENT_SANDBOX

from tests.harness import running_service

README = Path(__file__).parents[2] / "client" / "README.md"
_BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_EXTRA = re.compile(
    r"^\s*(?:from|import) (?:fastapi|starlette|opentelemetry|texture_auth\.(?:asgi|opentelemetry))\b", re.MULTILINE
)
# What a block calls `decision` must be an answer of the service.
_PLAYER = """
import json, sys
blocks, given = json.load(sys.stdin)
for block in blocks:
    names = {"__name__": "__main__", **given}
    print(block, flush=True)
    exec(compile(block, "README.md", "exec"), names)
    decision = names.get("decision")
    assert decision is None or decision.outcome.name != "UNANSWERED", decision
"""


def blocks(*, with_extras: bool) -> list[str]:
    """Return the blocks of code, with those that need an extra or without."""
    return [each for each in _BLOCK.findall(README.read_text()) if with_extras or not _EXTRA.search(each)]


@contextmanager
def served() -> Iterator[tuple[Mapping[str, str], Mapping[str, str]]]:
    """Serve what the README speaks of; yield what a block finds in its environment, and the names it is given."""
    with tempfile.TemporaryDirectory() as folder, running_service(Path(folder)) as service:
        operator = service.operator
        operator.workspaces.CreateWorkspace(
            workspace_service_pb2.CreateWorkspaceRequest(
                workspace_id="acme", display_name="Acme", environment=ENVIRONMENT_SANDBOX
            )
        )
        registered = operator.devices.RegisterDevices(
            device_service_pb2.RegisterDevicesRequest(
                workspace_id="acme",
                devices=[device_service_pb2.DeviceRegistration(device_id="home-battery-1", reference_id="user-1")],
            )
        )
        created = operator.keys.CreateKey(
            key_service_pb2.CreateKeyRequest(workspace_id="acme", kind=KEY_KIND_SERVER, display_name="Backend")
        )
        yield (
            {"TEXTURE_AUTH_ADDRESS": service.address, "TEXTURE_AUTH_CALLER_KEY": service.operator_key},
            {"api_key": created.api_key, "revision": registered.revision},
        )


def play(python: str, *, with_extras: bool, python_path: str = "") -> subprocess.CompletedProcess[str]:
    """Run the blocks in a process of their own. Raises CalledProcessError when one fails."""
    with served() as (environment, given), tempfile.TemporaryDirectory() as elsewhere:
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        if python_path:
            clean["PYTHONPATH"] = python_path
        return subprocess.run(
            [python, "-c", _PLAYER],
            input=json.dumps([blocks(with_extras=with_extras), given]),
            env={**clean, **environment},
            cwd=elsewhere,
            text=True,
            check=True,
            stdout=subprocess.PIPE,
        )


def check(python: str) -> None:
    """Run the command that the wheel brings along. Raises CalledProcessError when it finds something wrong."""
    with served() as (environment, _), tempfile.TemporaryDirectory() as elsewhere:
        command = [str(Path(python).with_name("texture-auth")), "check"]
        subprocess.run(command, env={**os.environ, "PYTHONPATH": "", **environment}, cwd=elsewhere, check=True)


if __name__ == "__main__":
    extras = "--with-extras" in sys.argv[2:]
    server = subprocess.run(
        [sys.argv[1], "-c", "import server"], cwd=tempfile.gettempdir(), env={}, capture_output=True, check=False
    )
    if server.returncode == 0:
        sys.exit("the environment holds server code")
    play(sys.argv[1], with_extras=extras)
    check(sys.argv[1])
    print(f"{len(blocks(with_extras=extras))} blocks of the client's README did what they say")  # noqa: T201 - for who waits
