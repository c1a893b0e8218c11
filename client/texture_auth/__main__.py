"""`texture-auth check`, where only the client is installed: the same options as on the service's own command line."""

from __future__ import annotations

import argparse
import io
import os
import re
import sys
from pathlib import Path

from texture_auth.check import (
    CALLER_KEY_VARIABLE,
    DEFAULT_DEADLINE,
    DEFAULT_QUESTIONS,
    NOT_ADMITTED,
    CredentialInvalid,
    Subject,
    read_caller_key,
    report,
)
from texture_auth.reach import Place

# Anything that looks like a key or a link token.
_SECRET = re.compile(r"(?:txk_[a-z]{3}|txl)_[0-9A-Za-z]{16}_[0-9A-Za-z]{8,}")
_EXIT_CODES = """exit codes: 0 all is well, warnings or not; 1 what answers is not the service; 2 wrong usage;
4 the service cannot be reached, or not in time; 5 the caller's credential is missing or unknown, or lacks the role"""


def main() -> int:
    """Run the command, and return its exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # Where there are no ticks, a question mark must do.
        sys.stdout.reconfigure(errors="replace")
    parser = _parser()
    if any(_SECRET.search(argument) for argument in sys.argv[1:]):
        parser.error(
            "a key stands in the arguments, where others on this machine can read it: give it in the environment or "
            "in a file, and have this one revoked"
        )
    given = parser.parse_args()
    if (given.tls_certificate is None) != (given.tls_private_key is None):
        parser.error("--tls-certificate and --tls-private-key go together")
    try:
        key = read_caller_key(os.environ, given.caller_key_file)
    except CredentialInvalid as error:
        parser.exit(NOT_ADMITTED, f"error: {error}\n")
    place = Place(
        address=given.address,
        tls_ca=given.tls_ca,
        tls_certificate=given.tls_certificate,
        tls_private_key=given.tls_private_key,
        insecure_plaintext=given.insecure_plaintext,
        timeout=given.timeout,
    )
    subject = Subject(place=place, caller_key=key, deadline=given.deadline, questions=given.questions)
    return report(subject, given.as_json, print)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="texture-auth", description="What adopters of Texture Auth run.", epilog=_EXIT_CODES
    )
    environment = os.environ.get
    parser.add_argument(
        "--address",
        default=environment("TEXTURE_AUTH_ADDRESS", "127.0.0.1:50051"),
        help="HOST:PORT of the service [TEXTURE_AUTH_ADDRESS; 127.0.0.1:50051]",
    )
    _add_path(
        parser, "--caller-key-file", f"{CALLER_KEY_VARIABLE}_FILE", f"a file with the svc key; or {CALLER_KEY_VARIABLE}"
    )
    _add_path(parser, "--tls-ca", "TEXTURE_AUTH_TLS_CA", "trust this certificate authority (PEM) and no other")
    _add_path(parser, "--tls-certificate", "TEXTURE_AUTH_CLIENT_CERTIFICATE", "present this client certificate (PEM)")
    _add_path(parser, "--tls-private-key", "TEXTURE_AUTH_CLIENT_PRIVATE_KEY", "the private key of it (PEM)")
    parser.add_argument(
        "--insecure-plaintext",
        action="store_true",
        default=environment("TEXTURE_AUTH_CLIENT_PLAINTEXT", "").lower() in {"1", "true", "t", "yes", "y", "on"},
        help="call without TLS; needs not be said for loopback [TEXTURE_AUTH_CLIENT_PLAINTEXT]",
    )
    parser.add_argument("--timeout", type=_seconds, default=10.0, help="seconds each step may take [10]")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    check = commands.add_parser(
        "check",
        epilog=_EXIT_CODES,
        help="can the service be reached, does it trust the caller, does it answer in time?",
        description="Say, step by step, whether the service can be reached, trusts the caller and answers in time. "
        "Changes nothing.",
    )
    check.add_argument("--deadline", type=_seconds, default=DEFAULT_DEADLINE, help="seconds your own calls leave [1]")
    check.add_argument(
        "--questions", type=_count, default=DEFAULT_QUESTIONS, help="how many are asked for the times [100]"
    )
    check.add_argument("--json", action="store_true", dest="as_json", help="print JSON, for scripts")
    return parser


def _add_path(parser: argparse.ArgumentParser, flag: str, variable: str, text: str) -> None:
    value = os.environ.get(variable)
    parser.add_argument(flag, type=Path, default=Path(value) if value else None, help=f"{text} [{variable}]")


def _seconds(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise ValueError(text)
    return value


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError(text)
    return value


if __name__ == "__main__":
    sys.exit(main())
