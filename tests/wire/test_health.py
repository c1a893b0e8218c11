"""Health follows the store, whatever becomes of the question."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from server.store.contract import StoreUnavailable, seconds_left
from server.wire.health import ANSWER_SECONDS, HealthMonitor

SERVING = health_pb2.HealthCheckResponse.SERVING
# Check does not look at it.
NO_CONTEXT: Any = None
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class Probe:
    """A store that fails when it is told to, and lets a test wait for the next question."""

    def __init__(self) -> None:
        self.failure: Exception | None = None
        self.asked = threading.Semaphore(0)

    def __call__(self) -> None:
        self.asked.release()
        if self.failure is not None:
            raise self.failure


def status(monitor: HealthMonitor) -> int:
    return int(monitor.servicer.Check(health_pb2.HealthCheckRequest(service=""), NO_CONTEXT).status)


@pytest.mark.parametrize("failure", [StoreUnavailable("away"), StoreUnavailable(), ValueError("anything")])
def test_health_outlives_every_failure_and_recovers_by_itself(failure: Exception) -> None:
    probe = Probe()
    monitor = HealthMonitor(probe, [], probe_seconds=0.01)
    monitor.start()
    try:
        assert status(monitor) == SERVING
        probe.failure = failure
        # Two questions: by the second, the answer to the first has been told.
        _drain(probe)
        assert status(monitor) == NOT_SERVING
        probe.failure = None
        _drain(probe)
        assert status(monitor) == SERVING
    finally:
        monitor.stop()


def test_a_store_has_a_limit_for_its_answer() -> None:
    limits: list[float] = []
    monitor = HealthMonitor(lambda: limits.append(seconds_left()), [])
    monitor.start()
    monitor.stop()
    assert limits
    assert max(limits) <= ANSWER_SECONDS


def _drain(probe: Probe) -> None:
    while probe.asked.acquire(blocking=False):
        pass
    for _ in range(3):
        assert probe.asked.acquire(timeout=30)
