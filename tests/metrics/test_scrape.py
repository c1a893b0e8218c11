"""What one server shows to Prometheus."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client import Metric as Family
from texture.auth.v1 import authorize_service_pb2 as pb
from texture.auth.v1.key_service_pb2 import ExposedKeyReport, ReportExposedKeysRequest

from server.app import App, StartRefused
from server.domain.reasons import Reason
from server.metrics.prometheus import _CALL_SECONDS, PrometheusTelemetry
from server.service.housekeeping import Chore, Housekeeper
from server.service.telemetry import SILENT
from server.settings import Settings
from tests.harness import Service, refused, running_service
from tests.metrics.scrapes import (
    AUTHORIZE,
    appears,
    measured,
    refusal,
    samples,
    scrape,
    shows,
    tell_of_a_lease,
    value,
)
from tests.operate.drive import METHODS, World, life, with_text
from tests.wire.helpers import authorize, make_connect_key, make_key, make_workspace, register
from tests.wire.links_helpers import server_key
from tests.wire.test_deadlines import LIST, held_up
from tests.wire.test_exposure import BROWSER_AGENT

BATCH = "/texture.auth.v1.AuthorizeService/BatchAuthorize"
# Whatever may stand in a label, and no more.
BOUNDED = {
    "method": {*METHODS, "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"},
    "code": {code.name for code in grpc.StatusCode},
    "reason": {reason.name for reason in Reason},
    "why": {"queue_full", "loads_full", "deadline_past"},
    "desk": {"decisions", "others"},
    "outcome": {
        *("acknowledged", "fenced", "incomplete", "failed", "done", "put_off", "delivered", "given_up"),
        *("revoked", "suspended", "noted", "suspected"),
    },
    "source": {"browser", "report"},
    "kind": {"caller", "certificate_name", "device", "key", "read", "write"},
    "chore": {
        *("rehash secrets", "reseal webhook secrets", "forget changes", "warn of expiry"),
        *("prune events", "prune usage", "prune webhook deliveries"),
    },
    "worker": {"0"},
    "store": {"sqlite", "postgres"},
}
PATTERNS = {
    "le": r"[0-9.e-]+|\+Inf",
    "version": r"[0-9][0-9a-z.+]*|unknown",
    "python": r"3\.[0-9]+\.[0-9]+\S*",
    "grpcio": r"1\.[0-9]+\.[0-9]+\S*",
}


@pytest.fixture
def scraped(tmp_path: Path) -> Iterator[Service]:
    """A server that is scraped, with a workspace and a device."""
    with measured(tmp_path) as service:
        make_workspace(service)
        register(service, "battery-1")
        yield service


def asked(api_key: str, device_id: str = "battery-1") -> dict[str, Any]:
    return {"api_key": api_key, "permission": "devices:read", "device_id": device_id}


class TestCalls:
    def test_they_are_counted_and_timed_by_rpc_and_code(self, scraped: Service) -> None:
        api_key = make_key(scraped).api_key
        started = time.perf_counter()
        for _ in range(3):
            scraped.operator.authorize.Authorize(pb.AuthorizeRequest(**asked(api_key)))
        took = time.perf_counter() - started
        refused(scraped.client(None).authorize.Authorize, pb.AuthorizeRequest(**asked(api_key)))
        refused(scraped.operator.authorize.Authorize, pb.AuthorizeRequest(api_key=api_key, permission="fly"))

        where = scraped.app.metrics_address
        shows(where, 1, "rpc_duration_seconds_count", method=AUTHORIZE, code="INVALID_ARGUMENT")
        text = scrape(where)
        assert value(text, "rpc_duration_seconds_count", method=AUTHORIZE, code="OK") == 3
        assert value(text, "rpc_duration_seconds_bucket", method=AUTHORIZE, code="OK", le="+Inf") == 3
        assert value(text, "rpc_duration_seconds_count", method=AUTHORIZE, code="UNAUTHENTICATED") == 1
        seconds = value(text, "rpc_duration_seconds_sum", method=AUTHORIZE, code="OK")
        assert seconds is not None
        assert 0 < seconds < took

    def test_decisions_are_counted_by_reason_those_of_a_batch_each(self, scraped: Service) -> None:
        api_key = make_key(scraped).api_key
        scraped.operator.authorize.Authorize(pb.AuthorizeRequest(**asked(api_key)))
        questions = [pb.Question(**asked(api_key, device_id)) for device_id in ("battery-1", "battery-1", "none")]
        questions += [pb.Question(**asked("", "battery-1")), pb.Question(api_key=api_key, permission="fly")]
        scraped.operator.authorize.BatchAuthorize(pb.BatchAuthorizeRequest(questions=questions))

        where = scraped.app.metrics_address
        shows(where, 3, "decisions_total", reason="PERMITTED")
        text = scrape(where)
        assert value(text, "decisions_total", reason="DEVICE_NOT_FOUND") == 1
        assert value(text, "decisions_total", reason="KEY_MISSING") == 1
        assert value(text, "decisions_total") == 5
        assert value(text, "rpc_duration_seconds_count", method=BATCH) == 1

    def test_those_that_are_refused_for_load_are_counted_by_why(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with measured(tmp_path, threads=1, queue=1) as service:
            where = service.app.metrics_address
            with held_up(service, monkeypatch) as started:
                first = service.operator.workspaces.ListWorkspaces.future(LIST)
                assert started.wait(10)
                second = service.operator.workspaces.ListWorkspaces.future(LIST)
                shows(where, 1, "queue_calls")
                assert value(scrape(where), "threads_busy") == 1
                assert refused(service.operator.workspaces.ListWorkspaces, LIST).reason == "OVERLOADED"
            first.result()
            second.result()
            shows(where, 1, "sheds_total", why="queue_full")
            shows(where, 0, "queue_calls")
            assert value(scrape(where), "rpc_duration_seconds_count", code="RESOURCE_EXHAUSTED") == 1
            for name in ("queue_limit_calls", "threads"):
                assert value(scrape(where), name, desk="others") == 1

    def test_a_call_whose_deadline_is_past_when_its_turn_comes_is_one(self, scraped: Service) -> None:
        call: Any = scraped.channel.unary_unary(AUTHORIZE)
        with pytest.raises(grpc.RpcError):
            call(b"", timeout=0.0009)
        # It may have ended before the server so much as heard of it.
        while value(scrape(scraped.app.metrics_address), "sheds_total", why="deadline_past") == 0:
            with pytest.raises(grpc.RpcError):
                call(b"", timeout=0.0009)


class TestTheServer:
    def test_transactions_are_counted_and_timed(self, scraped: Service) -> None:
        where = scraped.app.metrics_address
        shows(where, 2, "store_transaction_duration_seconds_count", kind="write")
        make_key(scraped)
        shows(where, 3, "store_transaction_duration_seconds_count", kind="write")
        reads = value(scrape(where), "store_transaction_duration_seconds_count", kind="read")
        assert reads is not None
        assert reads > 3

    def test_one_that_fails_is_counted_too(self, scraped: Service) -> None:
        where = scraped.app.metrics_address
        shows(where, 2, "store_transaction_duration_seconds_count", kind="write")
        elsewhere = scraped.database.rename(scraped.folder / "elsewhere")
        with pytest.raises(Exception, match=r"No such file"), scraped.app._resources.store.write():
            pass
        elsewhere.rename(scraped.database)
        shows(where, 3, "store_transaction_duration_seconds_count", kind="write")

    def test_it_says_what_it_is_made_of_and_that_it_is_up(self, scraped: Service) -> None:
        where = scraped.app.metrics_address
        text = scrape(where)
        assert value(text, "worker_up", worker="0") == 1
        assert value(text, "build_info", store="sqlite", grpcio=grpc.__version__) == 1
        begun, memory = value(text, "worker_start_time_seconds"), value(text, "worker_resident_memory_bytes")
        assert begun is not None
        assert time.time() - 120 < begun <= time.time()
        assert memory is not None
        assert memory > 10_000_000

    def test_chores_and_what_they_moved_are_counted(self, tmp_path: Path) -> None:
        (tmp_path / "peppers").write_text(f"old {'a1' * 32}\n")
        with measured(tmp_path, peppers_file=tmp_path / "peppers"):
            pass
        (tmp_path / "peppers").write_text(f"new {'b2' * 32}\nold {'a1' * 32}\n")
        with measured(tmp_path, peppers_file=tmp_path / "peppers", event_retention_days=1) as service:
            make_workspace(service)
            where = service.app.metrics_address
            shows(where, 1, "rehashed_secrets_total")
            service.app._housekeeper.run_once()
            appears(where, "chores_total", chore="prune events", outcome="done")
            with service.app._database.engine.writing() as database:
                database.execute_sql("ALTER TABLE event RENAME TO elsewhere")
                service.app._database.engine.commit()
            service.app._housekeeper.run_once()
            appears(where, "chores_total", chore="prune events", outcome="put_off")
            faulty = Chore("prune events", 1.0, lambda: 1 / 0 > 0)
            Housekeeper([faulty], telemetry=service.app._resources.telemetry).run_once()
            appears(where, "chores_total", chore="prune events", outcome="failed")

    def test_exposed_keys_are_counted_by_who_found_them_and_what_that_came_to(self, scraped: Service) -> None:
        where = scraped.app.metrics_address
        for source in ("browser", "report"):
            for outcome in ("revoked", "suspended", "noted", "suspected"):
                assert value(scrape(where), "exposures_total", source=source, outcome=outcome) == 0
        suspected, seen, found, public = (
            make_key(scraped),
            make_key(scraped),
            make_key(scraped),
            make_connect_key(scraped),
        )
        authorize(scraped, suspected.api_key, user_agent=BROWSER_AGENT)
        authorize(scraped, seen.api_key, sec_fetch_site="cross-site")
        reports = [ExposedKeyReport(api_key=one.api_key) for one in (found, public, found)]
        scraped.operator.keys.ReportExposedKeys(ReportExposedKeysRequest(reports=reports))
        shows(where, 1, "exposures_total", source="report", outcome="revoked")
        shows(where, 1, "exposures_total", source="report", outcome="noted")
        shows(where, 1, "exposures_total", source="browser", outcome="revoked")
        shows(where, 1, "exposures_total", source="browser", outcome="suspected")
        assert value(scrape(where), "exposures_total") == 4

    def test_the_telemetry_that_parts_give_is_shown(self, scraped: Service) -> None:
        where, telemetry = scraped.app.metrics_address, scraped.app._resources.telemetry
        assert value(scrape(where), "lease_left_seconds") is None
        assert value(scrape(where), "cache_hits_total", kind="key") == 0
        before = value(scrape(where), "barrier_duration_seconds_bucket", outcome="acknowledged", le="0.025")
        tell_of_a_lease(scraped)
        telemetry.cache_hit("key")
        telemetry.cache_hit("key", 4)
        telemetry.cache_miss("device")
        telemetry.barrier(0.02, "acknowledged")
        telemetry.barrier(2.03, "fenced")
        shows(where, 5, "cache_hits_total", kind="key")
        text = scrape(where)
        assert value(text, "cache_misses_total", kind="device") == 1
        assert value(text, "lease_left_seconds", worker="0") == 1.5
        assert before is not None
        assert value(text, "barrier_duration_seconds_bucket", outcome="acknowledged", le="0.025") == before + 1
        assert value(text, "barrier_duration_seconds_bucket", outcome="fenced", le="2.0") == 0
        assert value(text, "barrier_duration_seconds_bucket", outcome="fenced", le="2.5") == 1

    def test_what_is_remembered_and_how_far_that_goes_is_shown(self, scraped: Service) -> None:
        where = scraped.app.metrics_address
        api_key = server_key(scraped.operator).api_key
        for _ in range(3):
            scraped.operator.authorize.Authorize(pb.AuthorizeRequest(**asked(api_key)))
        shows(where, 1, "cache_misses_total", kind="key")
        shows(where, 2, "cache_hits_total", kind="key")
        shows(where, 1, "cache_entries", kind="key")
        shows(where, 1, "cache_entries", kind="device")
        applied = value(scrape(where), "revision_applied")
        assert applied
        assert applied == value(scrape(where), "revision_head")


class TestLabels:
    def test_whatever_is_called_labels_are_of_sets_that_do_not_grow(self, tmp_path: Path) -> None:
        with measured(tmp_path, event_retention_days=1) as service:
            world = World(service.channel, service.operator_key)
            world.play(life())
            key = next(token for token in sorted(world.secrets) if token.startswith("txk_srv_"))
            for request in world.every_request():
                world.call(request, "by nobody", None)
                for where, changed in with_text(request, key):
                    world.call(changed, f"with a key in {where}")
            for unheard_of in (f"/{key}/{key}", f"/texture.auth.v1.KeyService/{key}"):
                unknown: Any = service.channel.unary_unary(unheard_of)
                with pytest.raises(grpc.RpcError):
                    unknown(b"", timeout=10)
            tell_of_a_lease(service)
            service.app._housekeeper.run_once()
            appears(service.app.metrics_address, "chores_total", chore="prune events")
            text = scrape(service.app.metrics_address)

        found: dict[str, set[str]] = {}
        for sample in samples(text):
            assert sample.name.startswith("texture_auth_")
            for name, shown in sample.labels.items():
                found.setdefault(name, set()).add(shown)
        assert found.keys() == BOUNDED.keys() | PATTERNS.keys()
        for name, bounded in BOUNDED.items():
            assert found[name] <= bounded, name
        for name, pattern in PATTERNS.items():
            assert all(re.fullmatch(pattern, shown) for shown in found[name])
        assert found["method"] >= METHODS.keys()

        told = "\n".join(said for _, said in world.told)
        ids = set(re.findall(r'(?:key_id|workspace_id|reference_id|device_id|caller_id): "([^"]+)"', told))
        assert len(ids) > 15
        words = set(re.split(r"[^0-9A-Za-z_:-]+", text))
        assert ids & words == set()
        assert not any(token in text for token in world.secrets)

    def test_names_follow_the_conventions_of_prometheus(self, scraped: Service) -> None:
        tell_of_a_lease(scraped)
        text = scrape(scraped.app.metrics_address)
        kinds = dict(line.split()[2:4] for line in text.splitlines() if line.startswith("# TYPE "))
        for name, kind in kinds.items():
            assert name.endswith("_total") == (kind == "counter"), name
            assert name.endswith("_seconds") or kind != "histogram", name
            assert f"# HELP {name} " in text
        assert "_created" not in text


class TestTheAddress:
    def test_nothing_else_is_served_on_it(self, scraped: Service) -> None:
        where = scraped.app.metrics_address
        for path in ("/", "/metrics/", "/metrics/../etc/passwd", "/favicon.ico", "/healthz"):
            assert refusal(where, path)[0] == 404, path
        for method in ("POST", "PUT", "DELETE", "OPTIONS"):
            assert refusal(where, "/metrics", method)[:2] == (405, "GET"), method

    def test_a_scrape_that_fails_says_nothing_of_why(self, scraped: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        def fails(_registry: CollectorRegistry) -> Iterator[Family]:
            raise ValueError("sesame")

        monkeypatch.setattr(CollectorRegistry, "collect", fails)
        assert refusal(scraped.app.metrics_address, "/metrics") == (500, None, b"500 Internal Server Error\n")

    def test_one_that_is_taken_refuses_the_start_and_says_which_setting_it_is(
        self, scraped: Service, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        folder = tmp_path_factory.mktemp("other")
        settings = Settings(
            development=True,
            database=f"sqlite:{folder / 'auth.db'}",
            listen="127.0.0.1:0",
            metrics_listen=scraped.app.metrics_address,
        )
        app = App(settings)
        with pytest.raises(StartRefused, match=r"^TEXTURE_AUTH_METRICS_LISTEN: cannot listen on 127.0.0.1:\d+: Addr"):
            app.start()

    def test_it_may_be_of_ip_version_6(self, tmp_path: Path) -> None:
        with running_service(tmp_path, metrics_listen="[::1]:0") as service:
            assert re.fullmatch(r"\[::1\]:\d+", service.app.metrics_address or "")
            shows(service.app.metrics_address, 1, "worker_up")

    def test_without_one_nobody_is_told(self, tmp_path: Path) -> None:
        with running_service(tmp_path) as service:
            assert service.app.metrics_address is None
            assert service.app._resources.telemetry is SILENT
            assert service.app._resources.store is service.app._database.store

    def test_it_is_free_again_after_a_stop(self, tmp_path: Path) -> None:
        with measured(tmp_path) as service:
            where = service.app.metrics_address
        with running_service(tmp_path, metrics_listen=where):
            shows(where, 1, "worker_up")


class TestWritingDown:
    def test_durations_end_up_where_the_library_itself_would_count_them(self) -> None:
        telemetry = PrometheusTelemetry(store="sqlite", worker="0")
        registry = CollectorRegistry()
        theirs = Histogram("theirs", "Theirs.", buckets=_CALL_SECONDS, registry=registry)
        for seconds in (0.0, 0.0001, 0.00010001, 0.3, 10.0, 10.1, 7000.0, *_CALL_SECONDS):
            theirs.observe(seconds)
            telemetry.rpc(AUTHORIZE, "OK", seconds)
        telemetry.write_down()
        ours = generate_latest(telemetry.registry).decode()
        for sample in samples(generate_latest(registry).decode()):
            if not sample.name.endswith("_created"):
                labels = {"method": AUTHORIZE, "code": "OK", **sample.labels}
                assert value(ours, sample.name.replace("theirs", "rpc_duration_seconds"), **labels) == sample.value

    def test_what_cannot_be_seen_does_not_hide_the_rest(self) -> None:
        telemetry = PrometheusTelemetry(store="sqlite", worker="0")
        telemetry.sample(lambda: 1 / 0)  # type: ignore[arg-type]
        telemetry.sample(lambda: telemetry.head(5))
        telemetry.shed("queue_full")
        telemetry.write_down()
        text = generate_latest(telemetry.registry).decode()
        assert value(text, "revision_head") == 5
        assert value(text, "sheds_total", why="queue_full") == 1

    def test_what_was_told_last_is_written_down_at_the_end(self) -> None:
        telemetry = PrometheusTelemetry(store="sqlite", worker="0")
        telemetry.start()
        telemetry.shed("queue_full")
        telemetry.stop()
        assert value(generate_latest(telemetry.registry).decode(), "sheds_total") == 1


def test_silence_takes_everything() -> None:
    SILENT.rpc(AUTHORIZE, "OK", 1.0)
    SILENT.decided([Reason.PERMITTED])
    SILENT.sample(lambda: pytest.fail("nobody looks"))
