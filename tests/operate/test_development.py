"""The development server: everything that it needs, it makes."""

from __future__ import annotations

import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from texture.auth.v1 import caller_service_pb2 as caller_pb

from tests.harness import refused
from tests.operate.process import DEADLINE_SECONDS, Server, client, environment, run, serving
from tests.wire.links_helpers import create_workspace, reason, server_key

pytestmark = pytest.mark.usefixtures("unmeasured_processes")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def works(server: Server, caller_key: str | None = None) -> bool:
    with client(server, caller_key) as calling:
        return calling.callers.GetCaller(caller_pb.GetCallerRequest(caller_id="dev-operator")).caller.caller_id != ""


def test_the_first_start_makes_what_it_needs_for_its_owner_alone(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert works(server)
    var = tmp_path / "var"
    for name in ("texture-auth.db", "peppers", "operator.key"):
        assert mode(var / name) == 0o600, name


def test_the_first_start_prints_what_to_do_next_and_no_secret(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        printed = server.stdout.read_text()
        assert server.address in printed
        assert f"export TEXTURE_AUTH_ADDRESS={server.address}" in printed
        assert 'TEXTURE_AUTH_CALLER_KEY="$(cat var/operator.key)"' in printed
        assert "grpcurl -plaintext" in printed
        for name in ("peppers", "operator.key"):
            for word in (tmp_path / "var" / name).read_text().split():
                assert word == "dev" or word not in server.output


@pytest.mark.skipif(shutil.which("bash") is None, reason="the steps are for a shell")
@pytest.mark.parametrize("data", ["var", "its data"])
def test_what_it_prints_can_be_pasted_into_a_shell(tmp_path: Path, data: str) -> None:
    with serving(tmp_path, "--development", "--database", f"sqlite:{data}/auth.db") as server:
        printed = server.stdout.read_text()
        steps = printed[printed.index("  export PATH=") : printed.index("The same questions with grpcurl")]
        pasted = subprocess.run(
            ["bash", "-euo", "pipefail", "-c", steps],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            timeout=DEADLINE_SECONDS,
            check=False,
            text=True,
        )
    assert pasted.returncode == 0, pasted.stderr
    assert "PERMITTED" in pasted.stdout


def test_a_second_start_goes_on_where_the_first_one_ended(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client(server) as calling:
        create_workspace(calling)
        api_key = server_key(calling).api_key
        made = [(tmp_path / "var" / name).read_text() for name in ("peppers", "operator.key")]
    with serving(tmp_path) as server, client(server) as calling:
        assert [(tmp_path / "var" / name).read_text() for name in ("peppers", "operator.key")] == made
        assert reason(calling, api_key) == "PERMITTED"


def test_a_lost_operator_key_is_renewed_and_the_lost_one_ends(tmp_path: Path) -> None:
    path = tmp_path / "var" / "operator.key"
    with serving(tmp_path) as server:
        lost = path.read_text().strip()
    path.unlink()
    with serving(tmp_path) as server:
        assert path.read_text().strip() != lost
        assert mode(path) == 0o600
        assert works(server)
        with client(server, lost) as calling:
            found = refused(calling.callers.ListCallers, caller_pb.ListCallersRequest())
            assert found.reason == "CALLER_CREDENTIAL_RETIRED"


def test_an_operator_key_of_another_database_is_renewed(tmp_path: Path) -> None:
    with serving(tmp_path):
        pass
    for path in (tmp_path / "var").glob("texture-auth.db*"):
        path.unlink()
    with serving(tmp_path) as server:
        assert works(server)


def test_lost_peppers_are_not_mistaken_for_unknown_keys(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client(server) as calling:
        create_workspace(calling)
        api_key = server_key(calling).api_key
    (tmp_path / "var" / "peppers").unlink()
    with serving(tmp_path) as server, client(server) as calling:
        found = refused(reason, calling, api_key)
        assert found.reason == "PEPPER_UNAVAILABLE"


def test_after_its_operator_was_revoked_it_starts_again_or_says_what_to_do(tmp_path: Path) -> None:
    with serving(tmp_path) as server, client(server) as calling:
        calling.callers.RevokeCaller(caller_pb.RevokeCallerRequest(caller_id="dev-operator"))
    done = run_briefly(tmp_path)
    assert "serving on" in done or "bootstrap" in done or "operator.key" in done, done


def run_briefly(folder: Path) -> str:
    """Start the server, and return what it printed, whether or not it came to serving."""
    try:
        with serving(folder) as server:
            return server.output
    except AssertionError as error:
        return str(error)


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "192.0.2.1:0", "example.com:0"])
def test_it_listens_on_loopback_only(tmp_path: Path, listen: str) -> None:
    done = run(tmp_path, "serve", "--development", "--listen", listen)
    assert done.returncode == 1
    assert "TEXTURE_AUTH_LISTEN" in done.stderr
    assert "loopback" in done.stderr
    assert not (tmp_path / "var").exists()


def test_its_metrics_are_on_loopback_only(tmp_path: Path) -> None:
    done = run(tmp_path, "serve", "--development", "--metrics-listen", "0.0.0.0:0")
    assert done.returncode == 1
    assert done.stderr == "error: TEXTURE_AUTH_METRICS_LISTEN: must be a loopback address in development\n"
