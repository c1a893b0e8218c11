"""The command line against a running service."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

from click.testing import CliRunner, Result

from server.cli.root import root
from tests.harness import Service
from tests.operate.process import environment


@dataclass(frozen=True)
class Cli:
    """The command with an operator's credential in its environment."""

    service: Service

    def run(self, *arguments: str, stdin: str = "", env: dict[str, str] | None = None) -> Result:
        """Run a command, and return what came of it."""
        clean: dict[str, str | None] = dict.fromkeys(os.environ.keys() - environment().keys())
        own = {"TEXTURE_AUTH_ADDRESS": self.service.address, "TEXTURE_AUTH_CALLER_KEY": self.service.operator_key}
        done = CliRunner().invoke(root, arguments, input=stdin, env={**clean, **own, **(env or {})})
        assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
        return done

    def good(self, *arguments: str, stdin: str = "") -> str:
        """Run a command that must succeed, and return its standard output."""
        done = self.run(*arguments, stdin=stdin)
        assert done.exit_code == 0, done.output
        return done.stdout

    def json(self, *arguments: str, stdin: str = "") -> Any:
        """Run a command that must succeed with `--json`, and return what it printed."""
        return json.loads(self.good(*arguments, "--json", stdin=stdin))
