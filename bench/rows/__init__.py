"""The rows of the table, by what they are about. Each function measures, and returns its rows."""

from __future__ import annotations

from collections.abc import Callable

from bench.report import Row
from bench.rows import batch, caching, client, counting, envoy, guard, misses, revoke, unary, webhooks, workers
from bench.workshop import Workshop

ROWS: dict[str, Callable[[Workshop], list[Row]]] = {
    "unary": unary.rows,
    "batch": batch.rows,
    "spread": caching.spread_rows,
    "memory": caching.memory_rows,
    "size": misses.size_rows,
    "misses": misses.latency_rows,
    "workers": workers.rows,
    "revoke": revoke.rows,
    "faults": revoke.fault_rows,
    "counting": counting.rows,
    "webhooks": webhooks.rows,
    "guard": guard.rows,
    "envoy": envoy.rows,
    "client": client.rows,
}
