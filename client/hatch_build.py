"""Puts the stubs, which are made elsewhere in the repository, into the wheel and into the sdist.

A wheel that is made from the sdist finds them there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class Stubs(BuildHookInterface[Any]):
    """The package `texture.auth.v1`."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:  # noqa: ARG002 - hatchling's signature
        """Name them."""
        root = Path(self.root)
        stubs = root / "texture"
        if not stubs.is_dir():
            stubs = root.parent / "generated" / "python" / "texture"
            # They have types, too.
            build_data["force_include"][str(root / "py.typed")] = "texture/auth/py.typed"
        for file in sorted(stubs.rglob("*")):
            if file.suffix in {".py", ".pyi", ".typed"}:
                build_data["force_include"][str(file)] = f"texture/{file.relative_to(stubs)}"
