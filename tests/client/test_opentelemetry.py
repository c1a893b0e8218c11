"""What OpenTelemetry is told of questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from texture.auth.v1 import authorize_service_pb2 as pb
from texture_auth import Authorizer, Question
from texture_auth.opentelemetry import OpenTelemetryObserver

from tests.client.scripted import ALLOW, DENY, Scripted, failing, scripted_server

_KEY = "txk_srv_customers"
_CALLER = "txk_svc_callers"


@pytest.fixture(scope="module")
def server() -> Iterator[Scripted]:
    with scripted_server() as running:
        yield running


class Telemetry:
    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        self._reader = InMemoryMetricReader()
        self.tracers = TracerProvider()
        self.tracers.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.meters = MeterProvider([self._reader])
        self.observer = OpenTelemetryObserver(tracer_provider=self.tracers, meter_provider=self.meters)

    @property
    def spans(self) -> Any:
        return self._exporter.get_finished_spans()

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        assert data is not None
        (resource,) = data.resource_metrics
        return [
            point
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]


@pytest.fixture
def telemetry() -> Telemetry:
    return Telemetry()


def test_a_question_is_a_span_within_the_surrounding_one(server: Scripted, telemetry: Telemetry) -> None:
    server.answer = lambda _request, _context: DENY
    with Authorizer(server.address, caller_key=_CALLER, observers=[telemetry.observer]) as authorizer:
        with telemetry.tracers.get_tracer("test").start_as_current_span("served") as served:
            authorizer.authorize(_KEY, "devices:read", "battery-1")
        span, _ = telemetry.spans
        assert span.parent.span_id == served.get_span_context().span_id
        assert span.kind is trace.SpanKind.CLIENT
        assert span.name == "texture.auth.v1.AuthorizeService/Authorize"
        assert span.start_time <= span.end_time
        assert span.attributes["rpc.response.status_code"] == "OK"
        assert span.attributes["texture_auth.reason"] == "KEY_REVOKED"
        assert span.status.status_code is trace.StatusCode.UNSET


def test_what_has_no_answer_is_an_error(server: Scripted, telemetry: Telemetry) -> None:
    server.answer = failing(grpc.StatusCode.INTERNAL)
    with Authorizer(server.address, caller_key=_CALLER, observers=[telemetry.observer]) as authorizer:
        authorizer.authorize(_KEY, "devices:read", "battery-1")
    (span,) = telemetry.spans
    assert span.status.status_code is trace.StatusCode.ERROR
    assert span.attributes["error.type"] == span.attributes["rpc.response.status_code"] == "INTERNAL"


def test_durations_are_of_calls_and_decisions_of_questions(server: Scripted, telemetry: Telemetry) -> None:
    answers = [pb.BatchAnswer(answer=each) for each in (ALLOW, DENY, DENY)]
    server.answer = lambda _request, _context: pb.BatchAuthorizeResponse(answers=answers)
    with Authorizer(server.address, caller_key=_CALLER, observers=[telemetry.observer]) as authorizer:
        authorizer.authorize_many([Question(api_key=_KEY, permission="devices:read", device_id="d")] * 3)
    (duration,) = telemetry.points("rpc.client.call.duration")
    assert duration.count == 1
    decisions = {
        point.attributes["texture_auth.outcome"]: point.value for point in telemetry.points("texture_auth.decisions")
    }
    assert decisions == {"allowed": 1, "denied": 2}
    assert len(telemetry.spans) == 1


def test_no_key_is_told(server: Scripted, telemetry: Telemetry) -> None:
    server.answer = failing(grpc.StatusCode.UNAUTHENTICATED, "who are you")
    with Authorizer(server.address, caller_key=_CALLER, observers=[telemetry.observer]) as authorizer:
        authorizer.authorize(_KEY, "devices:read", "battery-1")
    told = "".join(span.to_json() for span in telemetry.spans) + repr(telemetry.points("texture_auth.decisions"))
    assert "UNAUTHENTICATED" in told
    assert _KEY not in told
    assert _CALLER not in told
