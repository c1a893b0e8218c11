"""The metrics of one server process: its own, or its part of what workers share."""

from __future__ import annotations

from collections.abc import Mapping

from server.metrics.exposition import NAME, Exposition, keep_values
from server.metrics.prometheus import PrometheusTelemetry
from server.metrics.store import MeasuredStore
from server.service.telemetry import SILENT, Telemetry
from server.store.contract import Store

# What a server is called that is the only one of its kind.
ONLY = "0"


class ProcessMetrics:
    """What a process tells of itself, if anybody is to know: `telemetry` is silent where nobody listens."""

    def __init__(self, listen: str | None, worker: int | None, environment: Mapping[str, str], store_kind: str) -> None:
        """Take `listen` for the address of scrapes, unless the process is a worker, whose supervisor serves them."""
        name = environment.get(NAME)
        self.telemetry: Telemetry = SILENT
        self._prometheus: PrometheusTelemetry | None = None
        self._listen = listen if worker is None else None
        self._exposition: Exposition | None = None
        if listen is None or (worker is not None and name is None):
            return
        keep_values(None if worker is None else name)
        self.telemetry = self._prometheus = PrometheusTelemetry(
            store=store_kind, worker=ONLY if worker is None else str(worker)
        )

    def measured(self, store: Store) -> Store:
        """Return a store whose transactions are told of."""
        return store if self._prometheus is None else MeasuredStore(store, self.telemetry)

    def start(self) -> str | None:
        """Begin to write down, and serve if that is not done elsewhere. Return the address. Raises CannotListen."""
        if self._prometheus is None:
            return None
        if self._listen is not None:
            self._exposition = Exposition(self._listen, self._prometheus.registry)
        self._prometheus.start()
        return None if self._exposition is None else self._exposition.address

    def stop(self) -> None:
        """Write down the last of it, and serve no more."""
        if self._prometheus is not None:
            self._prometheus.stop()
        if self._exposition is not None:
            self._exposition.stop()
