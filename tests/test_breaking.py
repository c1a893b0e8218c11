"""What `make check` says of protos that a release has promised, by the script that it runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
KEYS = Path("texture/auth/v1/key_service.proto")


@pytest.fixture
def protos(tmp_path: Path) -> Path:
    """A copy of the protos, of which nothing has been released."""
    return Path(shutil.copytree(ROOT / "protos", tmp_path / "protos", ignore=shutil.ignore_patterns("releases")))


def breaking(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the script with the environment's buf, as the Makefile does."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return subprocess.run(
        [ROOT / ".ci" / "breaking", *map(str, arguments)],
        env={**os.environ, "PATH": path},
        capture_output=True,
        timeout=60,
        check=False,
        text=True,
    )


def release(protos: Path, version: str = "0.1.0") -> Path:
    done = breaking("keep", protos, version)
    assert done.returncode == 0, done.stderr
    return protos / "releases" / f"{version}.binpb"


def change(protos: Path, old: str, new: str) -> None:
    path = protos / KEYS
    text = path.read_text("utf-8")
    assert text.count(old) == 1, old
    path.write_text(text.replace(old, new), "utf-8")


FIELD = "  string api_key = 1 [debug_redact = true];\n}"
RPC = "  rpc LookupKey(LookupKeyRequest) returns (LookupKeyResponse);\n"
BREAKS = {
    "a field is gone": (FIELD, "}"),
    "a number is another": (FIELD, FIELD.replace("= 1", "= 9")),
    "a type is another": (FIELD, FIELD.replace("string", "bytes")),
    "a name is another": (FIELD, FIELD.replace("api_key", "key")),
    "an RPC is gone": (RPC, ""),
}
ADDS = {
    "nothing": (RPC, RPC),
    "a field": (FIELD, FIELD.replace("}", "  string hint = 2;\n}")),
    "an RPC": (RPC, RPC + RPC.replace("rpc LookupKey", "rpc LookupKeyAgain")),
    "a comment": (RPC, "  // More.\n" + RPC),
}


@pytest.mark.parametrize("what", BREAKS)
def test_what_breaks_a_release_is_found(protos: Path, what: str) -> None:
    release(protos)
    change(protos, *BREAKS[what])

    done = breaking("check", protos)

    assert done.returncode == 1, done.stderr
    assert str(KEYS) in done.stdout + done.stderr
    assert "break what release 0.1.0 promised" in done.stderr


@pytest.mark.parametrize("what", ADDS)
def test_what_is_added_breaks_no_release(protos: Path, what: str) -> None:
    release(protos)
    change(protos, *ADDS[what])

    done = breaking("check", protos)

    assert (done.returncode, done.stderr) == (0, "")
    assert "release 0.1.0" in done.stdout


def test_every_release_is_held_to_and_not_the_last_one_alone(protos: Path) -> None:
    release(protos)
    change(protos, *ADDS["a field"])
    release(protos, "0.2.0")
    change(protos, "  string hint = 2;\n", "")

    done = breaking("check", protos)

    assert done.returncode == 1
    assert "break nothing of release 0.1.0" in done.stdout
    assert "break what release 0.2.0 promised" in done.stderr


def test_without_a_release_there_is_nothing_to_break_and_that_is_said(protos: Path) -> None:
    done = breaking("check", protos)

    assert done.returncode == 0
    assert "holds no release" in done.stderr


def test_a_release_that_was_kept_is_not_kept_again(protos: Path) -> None:
    image = release(protos)
    before = image.read_bytes()
    change(protos, *ADDS["a field"])

    done = breaking("keep", protos, "0.1.0")

    assert done.returncode == 1
    assert "is there" in done.stderr
    assert image.read_bytes() == before


def test_a_release_that_breaks_an_earlier_one_is_not_kept(protos: Path) -> None:
    release(protos)
    change(protos, *BREAKS["an RPC is gone"])

    assert breaking("keep", protos, "0.2.0").returncode == 1
    assert [path.name for path in (protos / "releases").iterdir()] == ["0.1.0.binpb"]


@pytest.mark.parametrize("version", ["", "1", "v0.1.0", "0.1.0-rc1", "../0.1.0", "latest"])
def test_a_release_is_named_by_three_numbers(protos: Path, version: str) -> None:
    done = breaking("keep", protos, version)

    assert done.returncode == 1
    assert not (protos / "releases").exists()


def test_make_check_runs_this_script() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")

    (check,) = (line for line in makefile.splitlines() if "$(MAKE)" in line and " check-types " in line)
    assert " check-protos " in check
    assert "check-protos: setup\n\tcd protos" in makefile
    assert "\t$(BREAKING) check protos\n" in makefile
    assert "\t@$(BREAKING) keep protos" in makefile
