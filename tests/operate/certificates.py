"""Self-signed certificates for tests."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Certificate:
    """A certificate for 127.0.0.1 and localhost, which is its own authority, and its private key, PEM files."""

    chain: Path
    private_key: Path


def make_certificate(folder: Path, name: str = "server") -> Certificate:
    """Make a certificate in a folder, with the openssl command; skip the test where there is none."""
    command = shutil.which("openssl")
    if command is None:
        pytest.skip("NO TLS TEST WAS RUN: the openssl command, which makes their certificates, is not installed")
    made = Certificate(folder / f"{name}.crt", folder / f"{name}.key")
    subprocess.run(
        [
            *(command, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-days", "2", "-subj", "/CN=localhost"),
            *("-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"),
            *("-keyout", str(made.private_key), "-out", str(made.chain)),
        ],
        check=True,
        capture_output=True,
        timeout=30,
    )
    return made
