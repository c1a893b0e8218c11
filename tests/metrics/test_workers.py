"""What several workers show in one scrape, with a supervisor that serves it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as pb

from server.metrics.exposition import CannotListen, of_workers
from tests.harness import Client
from tests.metrics.scrapes import AUTHORIZE, samples, scrape, shows, value
from tests.operate.process import Server, run, serving, wait_until

pytestmark = pytest.mark.usefixtures("unmeasured_processes")

CALL = {"method": AUTHORIZE, "code": "OK"}
TWO = ("--development", "--workers", "2", "--log-format", "json", "--metrics-listen", "127.0.0.1:0")
GAUGES = ("worker_up", "worker_resident_memory_bytes", "threads", "threads_busy", "queue_calls")


def call(server: Server, folder: Path, times: int) -> None:
    """Have calls answered, each over a connection of its own."""
    key = (folder / "var" / "operator.key").read_text().strip()
    for _ in range(times):
        with grpc.insecure_channel(server.address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            Client(channel, key).authorize.Authorize(pb.AuthorizeRequest(api_key="x", permission="devices:list"))


def address_of(server: Server) -> str:
    """Return where a server's metrics are, by its log."""
    (address,) = [line["address"] for line in server.log if line["event"] == "metrics served"]
    return str(address)


def pids(server: Server, event: str) -> list[tuple[int, int]]:
    """Return the numbers and processes of the workers of which the log tells something, in order."""
    return [(line["number"], line["pid"]) for line in server.log if line["event"] == event]


def test_all_workers_are_in_one_scrape_and_those_that_end_leave_their_counts(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO) as server:
        where = address_of(server)
        call(server, tmp_path, 20)
        shows(where, 20, "rpc_duration_seconds_count", **CALL)
        text = scrape(where)
        assert value(text, "rpc_duration_seconds_bucket", le="+Inf", **CALL) == 20
        assert value(text, "decisions_total", reason="KEY_MALFORMED") == 20
        assert value(text, "build_info", store="sqlite") == 1
        assert value(text, "worker_up", worker="1") == value(text, "worker_up", worker="2") == 1
        assert "_created" not in text
        assert "pid=" not in text

        # One that is killed takes its gauges along, and another one goes on with its counts.
        _, pid = pids(server, "worker serves")[0]
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: len(pids(server, "worker serves")) == 3, "the worker is back")
        shows(where, 2, "worker_up")
        call(server, tmp_path, 10)
        shows(where, 30, "rpc_duration_seconds_count", **CALL)

        # Those that are replaced have written down all that they answered.
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(pids(server, "worker ended")) == 3, "both are replaced")
        shows(where, 2, "worker_up")
        shows(where, 30, "rpc_duration_seconds_count", **CALL)
        text = scrape(where)
        assert {sample.labels["worker"] for sample in samples(text) if "worker" in sample.labels} == {"1", "2"}
        for gauge in GAUGES:
            assert value(text, gauge, worker="1") is not None, gauge


def test_a_worker_that_was_forgotten_has_no_gauges_but_its_counts(tmp_path: Path) -> None:
    with of_workers("127.0.0.1:0") as metrics:
        program = (
            "import os; from server.metrics.process import ProcessMetrics;"
            "metrics = ProcessMetrics('127.0.0.1:9', 1, os.environ, 'sqlite'); metrics.start();"
            "metrics.telemetry.shed('queue_full'); metrics.stop()"
        )
        env = {**os.environ, **metrics.environment("1")}
        subprocess.run([sys.executable, "-c", program], check=True, timeout=60, env=env, cwd=tmp_path)
        assert value(scrape(metrics.address), "worker_up", worker="1") is not None
        metrics.forget("1")
        text = scrape(metrics.address)
        assert value(text, "worker_up", worker="1") is None
        assert value(text, "sheds_total", why="queue_full") == 1


def test_an_address_for_metrics_that_is_taken_is_a_refusal_to_start(tmp_path: Path) -> None:
    with of_workers("127.0.0.1:0") as metrics:
        assert metrics.address is not None
        refused = run(tmp_path, "serve", *TWO[:-1], metrics.address)
    assert refused.returncode != 0
    assert "TEXTURE_AUTH_METRICS_LISTEN: cannot listen on" in refused.stderr


def test_the_folder_of_a_supervisor_is_its_own_and_is_gone_afterwards(tmp_path: Path) -> None:
    with of_workers("127.0.0.1:0") as metrics:
        assert metrics.folder is not None
        assert metrics.folder.stat().st_mode & 0o777 == 0o700
        assert list(metrics.folder.iterdir()) == []
        (metrics.folder / "counter_1.db").touch()
        assert samples(scrape(metrics.address)) == [], "a file that a worker has only just made holds nothing"
        metrics.forget("1")
    assert not metrics.folder.exists()


def test_without_an_address_a_supervisor_serves_nothing() -> None:
    with of_workers(None) as metrics:
        metrics.forget("1")
        assert (metrics.address, metrics.folder, metrics.environment("1")) == (None, None, {})


def test_an_address_that_is_taken_is_told_to_the_supervisor() -> None:
    with of_workers("127.0.0.1:0") as metrics, pytest.raises(CannotListen), of_workers(metrics.address):
        pass


def test_a_supervisor_loads_no_grpc_for_it() -> None:
    program = "import server.metrics.exposition, sys; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
