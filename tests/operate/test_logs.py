"""The log must not fail those whose calls it is about."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import grpc
from texture.auth.v1 import caller_service_pb2 as pb

from server.logs import _Steadfast
from tests.harness import Client, refused
from tests.operate.process import COMMAND, environment, health, wait_until


def test_calls_are_answered_and_health_follows_the_store_after_the_reader_of_the_log_has_ended(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, "serve", "--development", "--listen", "127.0.0.1:0", "--log-format", "json"],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=writer,
        text=True,
    )
    os.close(writer)
    try:
        assert process.stdout is not None
        address = next(found[1] for line in process.stdout if (found := re.search(r"serving on (\S+?),", line)))
        os.close(reader)
        with grpc.insecure_channel(address) as channel:
            operator = Client(channel, (tmp_path / "var" / "operator.key").read_text().strip())
            operator.callers.ListCallers(pb.ListCallersRequest())
            unknown = refused(operator.callers.GetCaller, pb.GetCallerRequest(caller_id="nobody"))
            assert unknown.reason == "CALLER_NOT_FOUND"
            database = tmp_path / "var" / "texture-auth.db"
            database.rename(tmp_path / "away")
            wait_until(lambda: health(channel) == "NOT_SERVING", "health says that the store is away")
            (tmp_path / "away").rename(database)
            wait_until(lambda: health(channel) == "SERVING", "health says that the store is back")
        process.terminate()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.communicate()


class Full:
    """A file that can be written to only while there is room."""

    def __init__(self) -> None:
        self.room = True
        self.lines: list[str] = []

    def write(self, line: str) -> None:
        if not self.room:
            raise OSError(28, "No space left on device")
        if line:
            self.lines.append(line)

    def flush(self) -> None:
        self.write("")


def test_lines_that_are_lost_are_counted_and_told_of_when_there_is_room_again() -> None:
    full = Full()
    steadfast = _Steadfast(full)  # type: ignore[arg-type]  # it has what is used of a file
    steadfast.write("one\n")
    full.room = False
    for _ in range(3):
        steadfast.write("lost\n")
        steadfast.flush()
    full.room = True
    steadfast.write("two\n")
    steadfast.write("three\n")
    assert full.lines == ["one\n", "3 lines of the log could not be written\n", "two\n", "three\n"]
