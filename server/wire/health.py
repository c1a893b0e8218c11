"""Health for every service and overall: it says whether the store can be asked."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

import structlog
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import OVERALL_HEALTH, HealthServicer

from server.store.contract import StoreUnavailable, deadline_within

PROBE_SECONDS = 1.0
# How long the store may take to answer. One that takes longer is of no use to a call either.
ANSWER_SECONDS = 2.0

_log = structlog.get_logger("texture_auth.health")


class HealthMonitor:
    """Asks the store every second, and at once when a call has failed for want of it."""

    def __init__(self, ping: Callable[[], None], services: Iterable[str], probe_seconds: float = PROBE_SECONDS) -> None:
        self.servicer = HealthServicer()
        self._ping = ping
        self._services = (OVERALL_HEALTH, *services)
        self._probe_seconds = probe_seconds
        self._serving: bool | None = None
        self._wake = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._watch, name="health", daemon=True)

    def start(self) -> None:
        """Find out once, then watch."""
        self._probe()
        self._thread.start()

    def probe_now(self) -> None:
        """Look again without waiting for the second to end."""
        self._wake.set()

    def drain(self) -> None:
        """Say NOT_SERVING from now on, whatever the store says."""
        self._stopping = True
        self._wake.set()
        self.servicer.enter_graceful_shutdown()

    def stop(self) -> None:
        """Drain, and wait until the store is asked no more."""
        self.drain()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._stopping:
            self._wake.wait(self._probe_seconds)
            self._wake.clear()
            self._probe()

    def _probe(self) -> None:
        cause = ""
        try:
            with deadline_within(ANSWER_SECONDS):
                self._ping()
        except StoreUnavailable as error:
            cause = str(error) or "the store is unavailable"
        except Exception as error:  # noqa: BLE001 - a monitor that dies says SERVING for ever
            cause = type(error).__name__
        serving = not cause
        if serving is self._serving:
            return
        self._serving = serving
        status = health_pb2.HealthCheckResponse.SERVING if serving else health_pb2.HealthCheckResponse.NOT_SERVING
        for service in self._services:
            self.servicer.set(service, status)
        if serving:
            _log.info("health", status="SERVING")
        else:
            _log.error("health", status="NOT_SERVING", cause=cause)
