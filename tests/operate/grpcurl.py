"""The grpcurls that the tests try: the one that `make tools` has Go build, and the older one of the environment."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

_ENVIRONMENT = Path(sys.executable).parent
_PLACES = {
    "built by Go": _ENVIRONMENT.parent / "go" / "bin" / "grpcurl",
    "of the environment": _ENVIRONMENT / "grpcurl",
}
GRPCURLS = tuple(_PLACES)


def grpcurl(which: str) -> Path:
    """Return one of them. Where it is missing, the test is skipped, but in CI it fails."""
    path = _PLACES[which]
    if path.exists():
        return path
    if os.environ.get("CI"):
        pytest.fail(f"there is no grpcurl {which}: 'make tools' makes it, and needs Go")
    pytest.skip(f"there is no grpcurl {which}")
