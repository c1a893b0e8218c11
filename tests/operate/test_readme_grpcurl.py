"""The lines with grpcurl of the README, and of what a development server prints, by a real grpcurl and server."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from server.domain.token import holds_token
from server.wire.server import SERVICES
from tests.operate.grpcurl import GRPCURLS, grpcurl
from tests.operate.process import DEADLINE_SECONDS, Server, environment, serving
from tests.operate.readme import README, blocks

ADDRESS = "127.0.0.1:50051"
# Between what one line prints and what the next one does.
END = "-- ended with "
pytestmark = pytest.mark.usefixtures("unmeasured_processes")


@pytest.fixture(params=GRPCURLS)
def binary(request: pytest.FixtureRequest) -> Path:
    return grpcurl(request.param)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as running:
        yield running


@dataclass(frozen=True)
class Answer:
    """A line that was pasted, and what became of it."""

    line: str
    code: int
    printed: str

    def parsed(self) -> Any:
        assert self.code == 0, self
        return json.loads(self.printed)


def paste(server: Server, binary: Path, lines: Sequence[str]) -> list[Answer]:
    """Paste lines into one shell, in the server's directory; the arguments of each grpcurl end up in a file there."""
    script = [
        "exec 2>&1",
        f'grpcurl() {{ printf "%s\\n" "$@" >> arguments; "{binary}" "$@"; }}',
        *(f'{line}\nprintf "\\n{END}%s\\n" "$?"' for line in lines),
    ]
    done = subprocess.run(
        [shutil.which("bash") or "bash", "-c", "\n".join(script)],
        cwd=server.folder,
        env=environment({"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}),
        capture_output=True,
        timeout=3 * DEADLINE_SECONDS,
        check=True,
        text=True,
    )
    *found, rest = re.split(rf"\n{END}(\d+)\n", done.stdout)
    assert rest == "", done.stdout
    answers = zip(lines, found[1::2], found[::2], strict=True)
    return [Answer(line, int(code), printed) for line, code, printed in answers]


def test_the_readmes_story_is_true(server: Server, binary: Path) -> None:
    (story,) = blocks("With grpcurl", "sh")
    (error,) = blocks("With grpcurl", "")
    assert ADDRESS in story

    answers = paste(server, binary, story.replace(ADDRESS, server.address).splitlines())

    def of(part: str) -> list[Answer]:
        return [answer for answer in answers if part in answer.line]

    assert set(SERVICES) <= set(of(" list")[0].printed.split())
    assert "string api_key = 1" in of(" describe ")[0].printed
    assert of("CreateWorkspace")[0].parsed()["workspace"]["workspace_id"] == "volt"
    assert [device["device_id"] for device in of("RegisterDevices")[0].parsed()["devices"]] == ["charger-1"]
    before, after = (answer.parsed() for answer in answers if answer.line == "may")
    assert (before["decision"], before["reason"]) == ("DECISION_ALLOW", "REASON_PERMITTED")
    assert of("RevokeKey")[0].parsed()["key"]["state_reason"] == "left on a laptop"
    assert (after["decision"], after["reason"]) == ("DECISION_DENY", "REASON_KEY_REVOKED")
    assert before["key"]["key_id"] == after["key"]["key_id"] == of("RevokeKey")[0].parsed()["key"]["key_id"]
    assert of("CreateWorkspace")[1].code == 67
    # Each grpcurl has its own way to indent.
    assert "".join(of("CreateWorkspace")[1].printed.split()) == "".join(error.split())
    assert [answer.code for answer in answers[:-1]] == [0] * (len(answers) - 1)
    assert not any(holds_token(answer.printed) for answer in answers)
    assert not holds_token((server.folder / "arguments").read_text())


def test_every_grpcurl_of_the_readme_is_part_of_that_story() -> None:
    (story,) = blocks("With grpcurl", "sh")

    pasteable = re.findall(r"^```sh\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)

    assert [block for block in pasteable if "grpcurl" in block] == [story]


def test_what_a_development_server_prints_for_grpcurl_is_true(server: Server, binary: Path) -> None:
    printed = server.stdout.read_text()
    steps, questions = printed[printed.index("  export PATH=") : printed.index("'make demo'")].split(
        "The same questions with grpcurl:"
    )
    listing, authorizing = questions.strip().split("\n", 1)

    _, listed, answer = paste(server, binary, [steps, listing, authorizing])

    assert set(SERVICES) <= set(listed.printed.split())
    assert answer.parsed()["decision"] == "DECISION_ALLOW"
    assert not holds_token((server.folder / "arguments").read_text())
