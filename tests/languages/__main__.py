"""Has programs in other languages ask a real server: `python -m tests.languages LANGUAGE=COMMAND ...`.

Of each language but Java, which is asked for one answer, the program plays the whole story and is then put into every
situation in which a question has no answer. Exits with 1 at the first that is not as it should be.
"""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from tests.languages.situations import (
    AT_ONCE,
    DEVICE,
    IN_TURNS,
    Place,
    Running,
    Situation,
    Turns,
    certificate_name,
    prepared,
    running,
)

SECONDS = 120
# What a caller sees. Where the service itself says nothing, there is no reason; of languages that see something else,
# the exceptions are below.
EXPECTED = {
    "service-down": "UNAVAILABLE -",
    "slow": "DEADLINE_EXCEEDED -",
    "restarting": "UNAVAILABLE -",
    "wrong-credential": "UNAUTHENTICATED CALLER_CREDENTIAL_UNKNOWN",
    "expired-certificate": "UNAVAILABLE -",
    "expired-server-certificate": "UNAVAILABLE -",
    "overloaded": "RESOURCE_EXHAUSTED OVERLOADED",
}
# Connect has no code of its own for a server that it does not trust, nor for a connection that is ended after it stood:
# with TLS 1.3 it stands until the server has looked at the caller's certificate.
EXCEPTIONS = {
    ("typescript", "expired-certificate"): "CANCELED -",
    ("typescript", "expired-server-certificate"): "INTERNAL -",
}
_SECRET = re.compile(r"txk_(?:srv|con|scp|svc)_[0-9A-Za-z]{16}_[0-9A-Za-z]{8}")


class WrongError(Exception):
    """Something is not as it should be."""


def environment(told: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a program, without a proxy's settings."""
    return {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")} | dict(told)


def printed(language: str, text: str) -> str:
    """Show what a program has printed, which must hold no key."""
    if _SECRET.search(text):
        raise WrongError(f"{language}: a key is in what the program prints")
    sys.stdout.write("".join(f"{language:11} {line}\n" for line in text.splitlines()))
    return text


def run(language: str, command: Sequence[str], told: Mapping[str, str]) -> str:
    """Run a program that must end well, and return what it prints."""
    done = subprocess.run(
        command,
        env=environment(told),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    text = printed(language, done.stdout)
    printed(language, done.stderr)
    if done.returncode:
        raise WrongError(f"{language}: the program ended with {done.returncode}")
    return text


def play_story(language: str, command: Sequence[str], well: Running) -> None:
    """Have a program play the story: as an operator with a key, as a device API with a certificate."""
    place: Place = well.place
    told = well.caller(well.certificate_address, identity=place.identity(language)) | {
        "NAME": language,
        "CERTIFICATE_NAME": certificate_name(language),
        "OPERATOR_ADDRESS": well.address,
        "OPERATOR_KEY_FILE": str(place.key_file("operator", place.operator_key)),
    }
    if "none wrong" not in run(language, [*command, "story"], told):
        raise WrongError(f"{language}: the story was not told to its end")


def fail_at_once(language: str, command: Sequence[str], well: Running, case: str, situation: Situation) -> None:
    """Have a program ask where there is no answer."""
    with situation(well) as told:
        expect(language, case, run(language, [*command, "failure", case], told))


def fail_in_turns(language: str, command: Sequence[str], well: Running, case: str, situation: Situation) -> None:
    """Have a program ask, ask again while something is wrong, and go on asking when it is no more."""
    with situation(well) as turns:
        program = subprocess.Popen(
            [*command, "failure", case],
            env=environment({**turns.told, "DURING": "1"}),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            text = printed(language, _in_turns(program, turns))
            if program.wait(SECONDS):
                raise WrongError(f"{language}: the program ended with {program.returncode}")
        finally:
            program.kill()
            program.communicate()
    expect(language, case, text)
    if f"RECOVERED {case}" not in text:
        raise WrongError(f"{language}: {case}: there was no answer afterwards")


def _in_turns(program: subprocess.Popen[str], turns: Turns) -> str:
    if program.stdin is None or program.stdout is None:
        raise AssertionError
    lines, left = [], [turns.begin, turns.end]
    for line in program.stdout:
        if line.strip() != "READY":
            lines.append(line)
            continue
        left.pop(0)()
        program.stdin.write("go on\n")
        program.stdin.flush()
    return "".join(lines)


def expect(language: str, case: str, text: str) -> None:
    """Look for the line that says what the program saw."""
    expected = EXCEPTIONS.get((language, case), EXPECTED[case])
    if f"FAILURE {case} {expected}\n" not in text:
        raise WrongError(f"{language}: {case}: expected {expected}")


def ask_once(language: str, command: Sequence[str], well: Running) -> None:
    """Have a program ask two questions."""
    told = well.caller(well.address, well.caller_key)
    text = run(language, [*command, DEVICE, "no-such-device"], told)
    if text.splitlines() != [f"{DEVICE} true 200", "no-such-device false 404"]:
        raise WrongError(f"{language}: expected other answers")


def main(programs: Sequence[str]) -> int:
    """Put every program to the test."""
    # Of the server in this process, for which nobody has chosen a log.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with tempfile.TemporaryDirectory() as folder, running(prepared(Path(folder))) as well:
        for program in programs:
            language, _, words = program.partition("=")
            command = shlex.split(words)
            try:
                if language == "java":
                    ask_once(language, command, well)
                    continue
                play_story(language, command, well)
                for case, situation in AT_ONCE:
                    fail_at_once(language, command, well, case, situation)
                for case, situation in IN_TURNS:
                    fail_in_turns(language, command, well, case, situation)
            except WrongError as wrong:
                sys.stderr.write(f"{wrong}\n")
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
