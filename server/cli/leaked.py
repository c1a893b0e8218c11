"""Finding keys in what a scanner or a person has found, without asking anybody."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

from server.domain.token import Token, tokens_in


@dataclass(frozen=True, slots=True)
class Find:
    """A key whose form and checksum are right, and where it stands: a file, or standard input, and a line."""

    token: Token
    file: str
    line: int

    def shown(self) -> dict[str, str | int]:
        """Return what may be said of it, which is not the key."""
        return {
            "kind": self.token.kind.name,
            "key_id": self.token.public_id,
            "file": self.file,
            "line": self.line,
        }


def read_text() -> str:
    """Return all of standard input, whatever it is."""
    return sys.stdin.buffer.read().decode("utf-8", errors="replace")


def finds_in(text: str) -> list[Find]:
    """Return the keys in a JSON report of gitleaks or, failing that, in any text."""
    report = _report(text)
    if report is None:
        return [
            Find(token, "", number)
            for number, line in enumerate(text.splitlines(), start=1)
            for token in tokens_in(line)
        ]
    return [
        Find(token, str(finding.get("File", "")), int(finding.get("StartLine") or 0))
        for finding in report
        # What was matched may hold more than one.
        for token in tokens_in(f"{finding.get('Secret', '')}\n{finding.get('Match', '')}")
    ]


def is_redacted(text: str) -> bool:
    """Tell whether a report does not hold what was found, so that nothing can be said of it."""
    return any(finding.get("Secret") == "REDACTED" for finding in _report(text) or ())


def _report(text: str) -> list[dict[str, Any]] | None:
    """Return the findings of a report of gitleaks; None where a text is none."""
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, list) and all(isinstance(one, dict) and "RuleID" in one for one in found):
        return found
    return None
