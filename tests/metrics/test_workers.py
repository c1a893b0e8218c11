"""What several workers show in one scrape, with a supervisor that serves it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import grpc
import pytest
from texture.auth.v1 import authorize_service_pb2 as pb

from server.metrics.exposition import CannotListen, Workers, of_workers
from tests.harness import Client
from tests.metrics.scrapes import AUTHORIZE, samples, scrape, shows, value
from tests.operate.process import Server, serving

CALL = {"method": AUTHORIZE, "code": "OK"}


def environment_of(metrics: Workers, number: str) -> Mapping[str, str]:
    """Return what a supervisor adds to the environment of a worker."""
    listen = "127.0.0.1:9"  # the supervisor's: no worker so much as looks at it
    return {**metrics.environment, "TEXTURE_AUTH_WORKER": number, "TEXTURE_AUTH_METRICS_LISTEN": listen}


def call(server: Server, folder: Path, times: int) -> None:
    """Have a worker answer some calls."""
    with grpc.insecure_channel(server.address) as channel:
        client = Client(channel, (folder / "var" / "operator.key").read_text().strip())
        for _ in range(times):
            client.authorize.Authorize(pb.AuthorizeRequest(api_key="x", permission="devices:list"))


def test_all_workers_are_in_one_scrape_and_one_that_died_leaves_its_counts(tmp_path: Path) -> None:
    with ExitStack() as running, of_workers("127.0.0.1:0") as metrics:
        where = metrics.address
        assert samples(scrape(where)) == []
        one = running.enter_context(serving(tmp_path, env=environment_of(metrics, "1")))
        two = running.enter_context(serving(tmp_path, env=environment_of(metrics, "2")))
        call(one, tmp_path, 2)
        call(two, tmp_path, 3)
        shows(where, 5, "rpc_duration_seconds_count", **CALL)
        assert value(scrape(where), "rpc_duration_seconds_bucket", le="+Inf", **CALL) == 5
        assert value(scrape(where), "decisions_total", reason="KEY_MALFORMED") == 5
        assert value(scrape(where), "build_info", store="sqlite") == 1
        assert value(scrape(where), "worker_up", worker="1") == value(scrape(where), "worker_up", worker="2") == 1
        assert "_created" not in scrape(where)
        assert "pid=" not in scrape(where)

        one.process.kill()
        one.exit_code()
        metrics.forget("1")
        text = scrape(where)
        assert {sample.labels["worker"] for sample in samples(text) if "worker" in sample.labels} == {"1", "2"}
        assert value(text, "worker_cpu_seconds_total", worker="1") is not None, "a counter stays"
        for gauge in ("worker_up", "worker_resident_memory_bytes", "threads", "threads_busy", "queue_calls"):
            assert value(text, gauge, worker="1") is None, gauge
            assert value(text, gauge, worker="2") is not None, gauge
        assert value(text, "rpc_duration_seconds_count", **CALL) == 5

        again = running.enter_context(serving(tmp_path, env=environment_of(metrics, "1")))
        call(again, tmp_path, 1)
        shows(where, 6, "rpc_duration_seconds_count", **CALL)
        shows(where, 2, "worker_up")
        assert metrics.folder is not None
        assert len({file.name for file in metrics.folder.iterdir() if "_1.db" in file.name}) == 4, "no more than before"

        two.process.terminate()
        assert two.exit_code() == 0
        call(again, tmp_path, 1)
        metrics.forget("2")
        shows(where, 7, "rpc_duration_seconds_count", **CALL)
        shows(where, 1, "worker_up")


def test_a_worker_writes_down_the_calls_that_it_answered_while_it_drained(tmp_path: Path) -> None:
    with of_workers("127.0.0.1:0") as metrics, serving(tmp_path, env=environment_of(metrics, "1")) as worker:
        call(worker, tmp_path, 4)
        worker.process.terminate()
        assert worker.exit_code() == 0
        assert value(scrape(metrics.address), "rpc_duration_seconds_count", **CALL) == 4


def test_lines_of_a_workers_log_say_which_it_is(tmp_path: Path) -> None:
    flags = ("--development", "--log-format", "json")
    with serving(tmp_path, *flags, env={"TEXTURE_AUTH_WORKER": "3"}) as worker:
        call(worker, tmp_path, 1)
    assert worker.log
    assert {line["worker"] for line in worker.log} == {"3"}
    with serving(tmp_path, *flags) as alone:
        pass
    assert alone.log
    assert not any("worker" in line for line in alone.log)


def test_a_worker_without_a_folder_serves_and_writes_no_metrics(tmp_path: Path) -> None:
    env = {"TEXTURE_AUTH_WORKER": "1", "TEXTURE_AUTH_METRICS_LISTEN": "127.0.0.1:9"}
    with serving(tmp_path, env=env) as worker:
        call(worker, tmp_path, 1)
        assert worker.process.poll() is None


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
        assert (metrics.address, metrics.folder, dict(metrics.environment)) == (None, None, {})


def test_an_address_that_is_taken_is_told_to_the_supervisor() -> None:
    with of_workers("127.0.0.1:0") as metrics, pytest.raises(CannotListen), of_workers(metrics.address):
        pass


def test_a_supervisor_loads_no_grpc_for_it() -> None:
    program = "import server.metrics.exposition, sys; sys.exit('grpc' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
