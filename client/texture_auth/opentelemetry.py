"""OpenTelemetry: a client span and a duration for each question, by the semantic conventions for RPC.

Needs the extra `texture-auth-client[opentelemetry]`. Of the key nothing is told, and of the device neither.
"""

from __future__ import annotations

import time

from opentelemetry import metrics, trace

from texture_auth.decision import Outcome
from texture_auth.observing import Asked

_SCOPE = "texture_auth"
# Those that the conventions advise for durations.
_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_NANOSECONDS = 1e9


class OpenTelemetryObserver:
    """An observer for an authorizer: `Authorizer(…, observers=[OpenTelemetryObserver()])`.

    The histogram `rpc.client.call.duration` (seconds) and spans of kind CLIENT carry `rpc.system.name`, `rpc.method`,
    `rpc.response.status_code`, `texture_auth.permission`, `texture_auth.outcome` and `texture_auth.reason`, and where
    the question has no answer `error.type`. Of a batch each question is counted by `texture_auth.decisions`, and there
    is one span and one duration.
    """

    def __init__(
        self,
        *,
        tracer_provider: trace.TracerProvider | None = None,
        meter_provider: metrics.MeterProvider | None = None,
    ) -> None:
        self._tracer = trace.get_tracer(_SCOPE, tracer_provider=tracer_provider)
        meter = metrics.get_meter(_SCOPE, meter_provider=meter_provider)
        self._durations = meter.create_histogram(
            "rpc.client.call.duration",
            unit="s",
            description="Duration of outgoing RPCs.",
            explicit_bucket_boundaries_advisory=_BUCKETS,
        )
        self._decisions = meter.create_counter(
            "texture_auth.decisions", unit="{decision}", description="Questions, by how they came out."
        )

    def __call__(self, asked: Asked) -> None:
        """Tell of a question that is over."""
        came_out: dict[str, str | int] = {
            "texture_auth.permission": asked.permission,
            "texture_auth.outcome": asked.outcome.value,
            "texture_auth.reason": asked.reason,
        }
        self._decisions.add(1, came_out)
        if asked.place:
            return
        call: dict[str, str | int] = {
            "rpc.system.name": "grpc",
            "rpc.method": asked.method,
            "rpc.response.status_code": "OK" if asked.code is None else asked.code.name,
        }
        # One question of a batch may be wrong, and the call as it should be.
        failed = asked.outcome is Outcome.UNANSWERED and (asked.batch == 1 or asked.code is not None)
        if failed:
            call["error.type"] = asked.reason
        self._durations.record(asked.seconds, call)
        # It is over, so it began before. The surrounding span is its parent, as observers are told where it was asked.
        ended = time.time_ns()
        span = self._tracer.start_span(
            asked.method,
            kind=trace.SpanKind.CLIENT,
            attributes=call | (came_out if asked.batch == 1 else {}),
            start_time=ended - int(asked.seconds * _NANOSECONDS),
        )
        if failed:
            span.set_status(trace.StatusCode.ERROR, asked.reason)
        span.end(ended)
