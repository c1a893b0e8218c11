"""The real command in processes of its own, each ended when its block ends."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.harness import Client

COMMAND = (sys.executable, "-m", "server")
DEADLINE_SECONDS = 30
_SERVING = re.compile(r"serving on (\S+?)[,\s]")


def environment(more: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment without any setting of the command or of a proxy, and with more."""
    clean = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("TEXTURE_AUTH_") and not name.lower().endswith("_proxy")
    }
    return {**clean, **(more or {})}


def run(
    folder: Path, *arguments: str, env: Mapping[str, str] | None = None, stdin: str | bytes = ""
) -> subprocess.CompletedProcess[str]:
    """Run a command that ends by itself in a folder."""
    given = stdin.encode() if isinstance(stdin, str) else stdin
    done = subprocess.run(
        [*COMMAND, *arguments],
        cwd=folder,
        env=environment(env),
        input=given,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def wait_until(condition: Callable[[], Any], what: str) -> Any:
    """Ask again and again until the condition holds, and return its value; fail when that takes too long."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise AssertionError(f"waited in vain: {what}")


@dataclass(frozen=True)
class Server:
    """A server in a process of its own; its output is in files."""

    process: subprocess.Popen[bytes]
    address: str
    folder: Path
    stdout: Path
    stderr: Path

    @property
    def output(self) -> str:
        """All that it has printed."""
        return self.stdout.read_text() + self.stderr.read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """The lines of its log, which must be JSON."""
        return [json.loads(line) for line in self.stderr.read_text().splitlines() if line.startswith("{")]

    def exit_code(self, deadline_seconds: float = DEADLINE_SECONDS) -> int:
        """Wait for the process to end."""
        return self.process.wait(deadline_seconds)


@contextmanager
def serving(folder: Path, *flags: str, env: Mapping[str, str] | None = None) -> Iterator[Server]:
    """Run `serve` on a free loopback port until the block ends; by default a development server on `folder`."""
    chosen: Sequence[str] = flags or ("--development",)
    number = len(list(folder.glob("stderr.*")))
    stdout, stderr = folder / f"stdout.{number}", folder / f"stderr.{number}"
    with stdout.open("wb") as out, stderr.open("wb") as err:
        process = subprocess.Popen(
            [*COMMAND, "serve", "--listen", "127.0.0.1:0", *chosen],
            cwd=folder,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
    try:

        def address() -> str | None:
            printed = stdout.read_text() + stderr.read_text()
            found = _SERVING.search(printed)
            assert found or process.poll() is None, f"it ended with {process.returncode}:\n{printed}"
            return found and found[1]

        where = wait_until(address, "the server says where it listens")
        yield Server(process, where, folder, stdout, stderr)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def client(server: Server, caller_key: str | None = None, **options: Any) -> Iterator[Client]:
    """Call a server; with its development operator's key unless another one is given."""
    key = caller_key or (server.folder / "var" / "operator.key").read_text().strip()
    with ExitStack() as stack:
        channel = stack.enter_context(closing(grpc.insecure_channel(server.address, **options)))
        yield Client(channel, key)


def health_stub(channel: grpc.Channel) -> Any:
    """Return a stub of the health service, whose published types leave its methods out."""
    return health_pb2_grpc.HealthStub(channel)


def health(channel: grpc.Channel, timeout: float = 10) -> str:
    """Return the overall health, or the code with which asking for it failed."""
    try:
        answer = health_stub(channel).Check(health_pb2.HealthCheckRequest(), timeout=timeout)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code.name
    return health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
