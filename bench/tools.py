"""What the bench makes or fetches for itself, once, in a folder that git ignores: the load generator, and Cerbos."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CACHE = Path(__file__).with_name(".cache")
LOAD_SOURCE = Path(__file__).with_name("load")

CERBOS_PACKAGE = "@cerbos/cerbos-linux-x64"
CERBOS_VERSION = "0.55.0"
CERBOS_INTEGRITY = "sha512-eLZUycJfaQWK0XTRgH/Oz2E3XiNCUavDd1LhzFxhUpZ3s5CuQqmqG327ta0On8YOTxuZO/19cG4kvfC22r03/Q=="


class Missing(Exception):  # noqa: N818 - it names a state
    """Something that the bench needs cannot be had on this machine; the message says what, and why."""


def load_generator() -> Path:
    """Return the load generator, which Go builds from `bench/load`. Raises Missing."""
    source = hashlib.sha256()
    for file in sorted(LOAD_SOURCE.iterdir()):
        source.update(file.read_bytes())
    made = CACHE / f"load-{source.hexdigest()[:16]}"
    if not made.exists():
        go = shutil.which("go")
        if go is None:
            raise Missing("the load generator is built by Go, which is not on this machine")
        with _place() as folder:
            fresh = Path(folder) / "load"
            # Whatever Go was told elsewhere about vendoring and workspaces is about other builds.
            environment = {**os.environ, "GOWORK": "off", "GOFLAGS": "", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"}
            _run([go, "build", "-trimpath", "-o", str(fresh), "."], LOAD_SOURCE, environment)
            fresh.replace(made)
    return made


def cerbos() -> Path:
    """Return Cerbos' server, from its npm package, whose bytes must be the ones that are known. Raises Missing."""
    made = CACHE / f"cerbos-{CERBOS_VERSION}"
    if not made.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise Missing("Cerbos comes as an npm package, and npm is not on this machine")
        with _place() as folder:
            printed = _run([npm, "pack", "--json", f"{CERBOS_PACKAGE}@{CERBOS_VERSION}"], Path(folder))
            package = Path(folder) / json.loads(printed)[0]["filename"]
            digest = base64.b64encode(hashlib.sha512(package.read_bytes()).digest()).decode()
            if f"sha512-{digest}" != CERBOS_INTEGRITY:
                raise Missing(f"{CERBOS_PACKAGE}@{CERBOS_VERSION} is not the package that is known: sha512-{digest}")
            with tarfile.open(package) as files:
                files.extractall(folder, filter="data")
            fresh = Path(folder) / "package" / "cerbos-linux-x64"
            fresh.chmod(0o755)
            fresh.replace(made)
    return made


def _place() -> tempfile.TemporaryDirectory[str]:
    """Return a folder to make something in, beside where it goes, so that it gets there whole or not at all."""
    CACHE.mkdir(exist_ok=True)
    return tempfile.TemporaryDirectory(dir=CACHE)


def _run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(  # noqa: S603 - the programs that were asked for
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise Missing(f"{Path(command[0]).name} {command[1]} failed: {done.stderr.strip()[-500:]}")
    return done.stdout
