"""The wheel of adopters: what is in it, and what is not."""

from __future__ import annotations

import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CLIENT = ROOT / "client"


def build(project: Path, target: str, into: Path) -> Path:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into)],
        cwd=project,
        check=True,
        capture_output=True,
    )
    (made,) = into.iterdir()
    return made


def names(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(CLIENT, "wheel", tmp_path_factory.mktemp("wheel"))


def test_it_brings_the_client_and_every_stub_with_their_types_and_nothing_else(wheel: Path) -> None:
    packed = names(wheel)
    assert {name.split("/")[0] for name in packed} == {"texture_auth", "texture", "texture_auth_client-0.1.0.dist-info"}
    assert {"texture_auth/py.typed", "texture/auth/py.typed"} <= packed
    assert not [name for name in packed if "__pycache__" in name or "server" in name.split("/")]
    stubs = {str(path.relative_to(ROOT / "generated/python")) for path in (ROOT / "generated/python").rglob("*.py*")}
    assert {name for name in stubs if name.endswith((".py", ".pyi"))} <= packed
    modules = {f"texture_auth/{path.name}" for path in (CLIENT / "texture_auth").glob("*.py")}
    assert modules <= packed


def test_what_is_in_it_imports_no_server_code(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    for name in names(wheel):
        if name.endswith((".py", ".pyi")):
            assert not re.search(r"^\s*(from|import) server\b", archive.read(name).decode(), re.MULTILINE), name


def test_a_wheel_made_from_the_sdist_is_the_same(wheel: Path, tmp_path: Path) -> None:
    (tmp_path / "sdist").mkdir()
    sdist = build(CLIENT, "sdist", tmp_path / "sdist")
    with tarfile.open(sdist) as packed:
        packed.extractall(tmp_path / "unpacked", filter="data")
    (tmp_path / "wheel").mkdir()
    (project,) = (tmp_path / "unpacked").iterdir()
    assert not (project / "examples").exists()
    assert names(build(project, "wheel", tmp_path / "wheel")) == names(wheel)


def test_it_asks_for_releases_that_its_stubs_admit() -> None:
    dependencies = tomllib.loads((CLIENT / "pyproject.toml").read_text())["project"]["dependencies"]
    asked = dict(each.split(">=") for each in dependencies)
    stubs = ROOT / "generated/python/texture/auth/v1"
    made_for_grpc = re.search(
        r"GRPC_GENERATED_VERSION = '([\d.]+)'", (stubs / "authorize_service_pb2_grpc.py").read_text()
    )
    made_for_protobuf = re.search(
        r"# Protobuf Python Version: ([\d.]+)", (stubs / "authorize_service_pb2.py").read_text()
    )
    assert made_for_grpc is not None
    assert made_for_protobuf is not None
    assert (asked["grpcio"], asked["protobuf"]) == (made_for_grpc[1], made_for_protobuf[1])
