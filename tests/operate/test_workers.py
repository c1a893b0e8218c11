"""Several workers on one port: they serve as one server, one that crashes comes back, and they end in order."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from texture.auth.v1 import caller_service_pb2 as caller_pb
from texture.auth.v1 import key_service_pb2 as key_pb
from texture.auth.v1.key_pb2 import KEY_KIND_SERVER

from server import app
from server.settings import Settings
from server.supervisor import FIRST_DELAY_SECONDS
from tests.harness import Client
from tests.operate.certificates import Authority
from tests.operate.process import Server, client, health, health_stub, run, serving, wait_until
from tests.operate.test_signals import refused_as_unavailable, writers_kept_waiting
from tests.wire.links_helpers import WORKSPACE, create_workspace, reason, server_key

TWO = ("--development", "--workers", "2", "--log-format", "json")
# With one thread, a worker that does not answer is a worker whose thread is in the call that was made before.
BUSY = (*TWO, "--threads", "1", "--drain-seconds", "3600")
PLAINTEXT = ("--insecure-plaintext", "--peppers-file", "peppers", "--database", "sqlite:auth.db")
PEPPERS = f"2030-01 {'a1' * 32}\n"
# So many connections go to one worker of two once in half a million times.
CONNECTIONS = 20


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    """A folder with peppers and a migrated database."""
    (tmp_path / "peppers").write_text(PEPPERS)
    app.migrate(Settings(database=f"sqlite:{tmp_path / 'auth.db'}"))
    return tmp_path


@contextmanager
def connections(server: Server, count: int = CONNECTIONS) -> Iterator[list[Client]]:
    """Call a server over so many connections of their own."""
    with ExitStack() as stack:
        own = [("grpc.use_local_subchannel_pool", 1)]
        yield [stack.enter_context(client(server, options=own)) for _ in range(count)]


def told(server: Server, event: str) -> list[dict[str, Any]]:
    """Return the lines of a server's log of one event."""
    return [line for line in server.log if line["event"] == event]


def pids(server: Server) -> dict[int, int]:
    """Return the processes of the workers, by number, as they were started last."""
    return {line["number"]: line["pid"] for line in told(server, "worker started")}


def answered_by(server: Server) -> set[int]:
    """Return the workers that have answered calls."""
    return {line["worker"] for line in told(server, "rpc")}


def list_callers(calling: Client, timeout: float | None = None) -> Any:
    return calling.callers.ListCallers(caller_pb.ListCallersRequest(), timeout=timeout)


def status(calling: Client) -> Any:
    """Watch the overall health over a connection."""
    return health_stub(calling.channel).Watch(health_pb2.HealthCheckRequest(), timeout=60)


def busy(calling: Client) -> bool:
    """Tell whether the only thread of the worker at the other end is in a call."""
    try:
        list_callers(calling, 0.25)
    except grpc.RpcError as error:
        code: grpc.StatusCode = error.code()
        return code is grpc.StatusCode.DEADLINE_EXCEEDED
    return False


def calls_in_flight(callers: Sequence[Client]) -> list[Any]:
    """Begin a call over each connection that waits for the lock; return the futures once the workers have them."""
    request = key_pb.CreateKeyRequest(workspace_id=WORKSPACE, kind=KEY_KIND_SERVER, display_name="in flight")
    futures = []
    for calling in callers:
        futures.append(calling.keys.CreateKey.future(request, timeout=60))
        wait_until(lambda calling=calling: busy(calling), "the worker's thread is in a call")  # type: ignore[misc]
    return futures


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest) -> str:
    """A database of the test's own: once of each kind."""
    url: str = request.getfixturevalue("postgres_url") if request.param == "postgres" else "sqlite:var/texture-auth.db"
    return url


def test_all_workers_answer_on_one_port_and_what_one_revokes_all_deny(tmp_path: Path, database: str) -> None:
    with serving(tmp_path, *TWO, "--database", database) as server, connections(server) as callers:
        assert server.stdout.read_text().count("serving on") == 1
        assert len(set(pids(server).values()) | {server.process.pid}) == 3
        create_workspace(callers[0])
        made = server_key(callers[0])
        assert {reason(calling, made.api_key) for calling in callers} == {"PERMITTED"}
        assert answered_by(server) == {1, 2}
        callers[0].keys.RevokeKey(key_pb.RevokeKeyRequest(key_id=made.key.key_id))
        assert {reason(calling, made.api_key) for calling in callers} == {"KEY_REVOKED"}
        server.process.terminate()
        assert server.exit_code() == 0


def test_every_line_of_the_log_is_whole_and_names_its_worker(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO, "--queue", "1000") as server, connections(server) as callers:
        futures = [
            calling.callers.ListCallers.future(caller_pb.ListCallersRequest()) for calling in callers for _ in range(20)
        ]
        for future in futures:
            future.result()
        assert len(server.log) == len(server.stderr.read_text().splitlines())
        assert {line["worker"] for line in server.log} == {1, 2, "supervisor"}
        assert len(told(server, "rpc")) == len(futures)


def test_both_addresses_are_served_by_all_workers(prepared: Path) -> None:
    authority = Authority(prepared)
    own, theirs = authority.issue("server", hosts=["127.0.0.1"]), authority.issue("caller", uris=["spiffe://a/b"])
    flags = (
        *PLAINTEXT[1:],
        *("--workers", "2", "--tls-certificate", str(own.chain), "--tls-private-key", str(own.private_key)),
        *("--tls-client-ca", str(authority.certificate), "--tls-client-listen", "127.0.0.1:0"),
    )
    with serving(prepared, *flags) as server:
        demanding = server.stderr.read_text().rpartition("on ")[2].strip()
        root = authority.certificate.read_bytes()
        for address, identity in (
            (server.address, {}),
            (
                demanding,
                {"private_key": theirs.private_key.read_bytes(), "certificate_chain": theirs.chain.read_bytes()},
            ),
        ):
            credentials = grpc.ssl_channel_credentials(root, **identity)
            for _ in range(5):
                options = [("grpc.use_local_subchannel_pool", 1)]
                with closing(grpc.secure_channel(address, credentials, options=options)) as channel:
                    assert health(channel) == "SERVING"


def test_a_worker_that_is_killed_comes_back_and_the_others_answer_meanwhile(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO) as server:
        before = pids(server)
        os.kill(before[2], signal.SIGKILL)
        wait_until(lambda: told(server, "worker ended"), "its end is noticed")
        assert told(server, "worker ended")[0].items() >= {"number": 2, "pid": before[2], "signal": "SIGKILL"}.items()

        def back() -> bool:
            with connections(server, 1) as (calling,):
                list_callers(calling)
            return len(told(server, "worker serves")) == 3

        wait_until(back, "it is back")
        assert pids(server)[1] == before[1]
        assert pids(server)[2] != before[2]
        with connections(server) as callers:
            for calling in callers:
                list_callers(calling)
        server.process.terminate()
        assert server.exit_code() == 0


def test_a_worker_that_crashes_again_and_again_is_started_ever_more_rarely(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO) as server:
        for crash in range(1, 5):
            os.kill(pids(server)[2], signal.SIGKILL)
            wait_until(lambda crash=crash: len(told(server, "worker started")) == 2 + crash, "it is started again")  # type: ignore[misc]
        restarts = told(server, "worker restarts")
        assert [line["crashes"] for line in restarts] == [1, 2, 3, 4]
        for line in restarts:
            most = FIRST_DELAY_SECONDS * 2 ** (line["crashes"] - 1)
            assert most / 2 <= line["seconds"] <= most
        assert pids(server)[1] == told(server, "worker started")[0]["pid"]


def test_after_sigterm_health_turns_on_every_worker_and_all_calls_in_flight_finish(tmp_path: Path) -> None:
    with serving(tmp_path, *BUSY) as server, connections(server, 10) as callers:
        create_workspace(callers[0])
        for calling in callers:
            list_callers(calling)
        assert answered_by(server) == {1, 2}
        seen = [status(calling) for calling in callers]
        assert {next(each).status for each in seen} == {health_pb2.HealthCheckResponse.SERVING}
        with writers_kept_waiting(server) as holder:
            futures = calls_in_flight(callers)
            server.process.terminate()
            assert {next(each).status for each in seen} == {health_pb2.HealthCheckResponse.NOT_SERVING}
            for each in seen:
                each.cancel()
            wait_until(lambda: refused_as_unavailable(server), "new calls are refused")
            assert server.process.poll() is None
            assert not any(future.done() for future in futures)
            holder.rollback()
        assert len({future.result().key.key_id for future in futures}) == len(futures)
        assert server.exit_code() == 0
        assert "error" not in {line["level"] for line in server.log}


def test_a_signal_to_every_process_of_the_group_is_one_signal(tmp_path: Path) -> None:
    with serving(tmp_path, *BUSY) as server, connections(server, 4) as callers:
        create_workspace(callers[0])
        with writers_kept_waiting(server) as holder:
            futures = calls_in_flight(callers)
            for process in (*pids(server).values(), server.process.pid):
                os.kill(process, signal.SIGTERM)
            wait_until(lambda: len(told(server, "draining")) == 3, "all know of it")
            holder.rollback()
        assert all(future.result().api_key for future in futures)
        assert server.exit_code() == 0
        assert told(server, "stopped at once") == []


def test_a_second_signal_stops_all_workers_at_once_with_one(tmp_path: Path) -> None:
    with serving(tmp_path, *BUSY) as server, connections(server, 4) as callers:
        create_workspace(callers[0])
        with writers_kept_waiting(server):
            futures = calls_in_flight(callers)
            server.process.send_signal(signal.SIGINT)
            wait_until(lambda: refused_as_unavailable(server), "new calls are refused")
            server.process.send_signal(signal.SIGINT)
            assert server.exit_code() == 1
            assert all(isinstance(future.exception(), grpc.RpcError) for future in futures)
        assert "supervisor" in {line["worker"] for line in told(server, "stopped at once")}
        assert "store unavailable" not in {line["event"] for line in server.log}


def test_a_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO, "--drain-seconds", "0") as server:
        os.kill(pids(server)[2], signal.SIGSTOP)
        server.process.terminate()
        assert server.exit_code() == 1
        assert [line["number"] for line in told(server, "worker killed")] == [2]


def test_workers_whose_supervisor_was_killed_drain_and_end(tmp_path: Path) -> None:
    with serving(tmp_path, *BUSY) as server, connections(server, 4) as callers:
        create_workspace(callers[0])
        with writers_kept_waiting(server) as holder:
            futures = calls_in_flight(callers)
            server.process.kill()
            wait_until(lambda: len(told(server, "draining")) == 2, "both workers drain")
            holder.rollback()
        assert all(future.result().api_key for future in futures)
        wait_until(lambda: {line["worker"] for line in told(server, "stopped")} == {1, 2}, "both workers end")


def test_sighup_replaces_each_worker_by_one_that_serves(tmp_path: Path) -> None:
    with serving(tmp_path, *TWO) as server:
        before = pids(server)
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: len(told(server, "worker ended")) == 2, "both are replaced")
        assert before.keys() == pids(server).keys()
        assert not set(before.values()) & set(pids(server).values())
        order = [line["event"] for line in server.log if line["worker"] == "supervisor"]
        assert order[order.index("reloading") :] == [
            "reloading",
            *["worker started", "worker serves", "worker ended"] * 2,
        ]
        with connections(server) as callers:
            for calling in callers:
                list_callers(calling)
        server.process.terminate()
        assert server.exit_code() == 0


def test_where_a_new_worker_refuses_to_start_the_old_ones_go_on(prepared: Path) -> None:
    with serving(prepared, *PLAINTEXT, "--workers", "2", "--log-format", "json") as server:
        (prepared / "peppers").unlink()
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: told(server, "reload given up"), "it is given up")
        assert server.output.count("error: ") == 1
        assert len(told(server, "worker started")) == 3
        with closing(grpc.insecure_channel(server.address)) as channel:
            assert health(channel) == "SERVING"
        assert len(told(server, "worker ended")) == 1


@pytest.mark.parametrize(
    ("faulty", "code", "why"), [("peppers", 1, "TEXTURE_AUTH_PEPPERS_FILE: "), ("auth.db", 4, "texture-auth migrate")]
)
def test_workers_that_refuse_to_start_say_why_once_and_all_end(
    prepared: Path, faulty: str, code: int, why: str
) -> None:
    (prepared / faulty).unlink()
    done = run(prepared, "serve", "--listen", "127.0.0.1:0", "--workers", "3", *PLAINTEXT)
    assert done.returncode == code
    assert done.stderr.count(why) == 1
    assert "Traceback" not in done.stderr
    assert "serving on" not in done.stdout + done.stderr


@pytest.mark.parametrize(("first", "second"), [("1", "2"), ("2", "2"), ("2", "1")])
def test_a_port_that_another_server_has_is_not_shared_with_it(prepared: Path, first: str, second: str) -> None:
    with serving(prepared, *PLAINTEXT, "--workers", first) as server:
        done = run(prepared, "serve", "--listen", server.address, "--workers", second, *PLAINTEXT)
        assert done.returncode == 1
        assert f"error: cannot listen on {server.address}" in done.stderr


def test_a_port_that_a_stranger_would_share_is_not_shared_with_him(prepared: Path) -> None:
    with socket.socket() as stranger:
        stranger.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        stranger.bind(("127.0.0.1", 0))
        stranger.listen()
        address = f"127.0.0.1:{stranger.getsockname()[1]}"
        done = run(prepared, "serve", "--listen", address, "--workers", "2", *PLAINTEXT)
    assert done.returncode == 1
    assert f"error: cannot listen on {address}" in done.stderr


def test_a_group_starts_on_the_port_that_another_one_has_just_left(prepared: Path) -> None:
    with serving(prepared, *PLAINTEXT, "--workers", "2") as server:
        address = server.address
        with closing(grpc.insecure_channel(address)) as channel:
            assert health(channel) == "SERVING"
            server.process.terminate()
            assert server.exit_code() == 0
    with serving(prepared, *PLAINTEXT, "--workers", "2", "--listen", address) as server:
        assert server.address == address


def test_a_worker_without_a_supervisor_is_refused(prepared: Path) -> None:
    done = run(prepared, "serve", "--listen", "127.0.0.1:0", *PLAINTEXT, env={"TEXTURE_AUTH_WORKER": "1"})
    assert done.returncode == 1
    assert done.stderr.startswith("error: TEXTURE_AUTH_WORKER: ")
