"""Stubs of other languages: what is asked for and cannot be made is told, and what is committed names no machine."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def stubs(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / ".ci" / "stubs", *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_language_that_is_none_is_told_so_with_those_that_are(tmp_path: Path) -> None:
    done = stubs("make", "cobol", str(tmp_path / "made"))
    assert done.returncode == 2
    assert "no stubs of 'cobol'" in done.stderr
    assert {"java", "kotlin", "csharp", "ruby", "php", "cpp", "objc"} <= set(re.findall(r"\w+", done.stderr))
    assert not (tmp_path / "made").exists()


def test_without_a_folder_it_says_how_it_is_called() -> None:
    done = stubs("make", "java")
    assert done.returncode == 2
    assert "stubs make LANGUAGE FOLDER" in done.stderr


@pytest.mark.parametrize(("language", "tool"), [("go", "go"), ("typescript", "npm")])
def test_what_needs_a_toolchain_that_is_missing_is_left_out_loudly(tmp_path: Path, language: str, tool: str) -> None:
    # With what the script itself needs, and no toolchain.
    for command in ("dirname", "mkdir", "bash", "env"):
        (tmp_path / command).symlink_to(Path("/usr/bin") / command)
    done = stubs("make", language, str(tmp_path / "made"), PATH=str(tmp_path))
    assert done.returncode == 3
    assert f"!!! {tool} is not on this machine" in done.stderr


def test_the_lock_of_npm_carries_a_hash_of_each_package_and_the_address_of_none() -> None:
    lock = (ROOT / "tests" / "typescript" / "package-lock.json").read_text("utf-8")
    # Where packages come from is for each machine to say.
    assert "://" not in lock
    packages = re.findall(r'^    "(node_modules/[^"]+)": \{\n(.*?)^    \}', lock, re.DOTALL | re.MULTILINE)
    assert packages
    for name, described in packages:
        assert '"integrity": "sha512-' in described or '"resolved": "file:' in described, name
