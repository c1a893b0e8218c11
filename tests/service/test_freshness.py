"""Freshness: whatever the order of things, nobody decides from before a change that was waited for."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis.stateful import run_state_machine_as_test

from tests.service.machines import Everything, Expiry, Members, Memory, OneFile, Pauses
from tests.service.world import World

THOROUGH = settings(
    max_examples=50,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


@pytest.mark.parametrize("machine", [Everything, Members, Memory, Pauses, OneFile, Expiry])
def test_no_promise_is_broken_in_any_order_of_things(machine: type[World]) -> None:
    run_state_machine_as_test(machine, settings=THOROUGH)
