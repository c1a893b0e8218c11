"""What a check finds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(Enum):
    """How bad a finding is."""

    OK = "ok"
    WARNING = "warning"
    FAILURE = "failure"


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found, and what to do about it, which is empty where all is well. Holds no secret."""

    check: str
    """Which check: `name`, `port`, `tls`, `grpc`, `health`, `caller`, `role` or `time`."""
    level: Level
    found: str
    to_do: str = ""


def ok(check: str, found: str) -> Finding:
    """Return that all is well."""
    return Finding(check, Level.OK, found)


def warning(check: str, found: str, to_do: str) -> Finding:
    """Return what works, and may not for long."""
    return Finding(check, Level.WARNING, found, to_do)


def failure(check: str, found: str, to_do: str) -> Finding:
    """Return what does not work."""
    return Finding(check, Level.FAILURE, found, to_do)
