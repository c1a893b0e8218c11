"""The samples that the conformance suite goes through leave nothing out."""

from __future__ import annotations

from dataclasses import fields

import pytest

from server.store.contract import Reader, Writer
from tests.store.promises_of_transactions import MUTATIONS, TRACELESS
from tests.store.samples import HANDLINGS, Handling

every_entity = pytest.mark.parametrize("handling", HANDLINGS, ids=str)


@every_entity
def test_the_samples_set_and_leave_unset_every_field(handling: Handling) -> None:
    for part in fields(handling.samples[0]):
        values = [getattr(sample, part.name) for sample in handling.samples]
        assert any(value != values[0] for value in values), part.name
        if part.default is None:
            assert None in values, part.name


@every_entity
def test_the_replacements_change_every_field_that_may_change(handling: Handling) -> None:
    first = handling.samples[0]
    for part in fields(first):
        values = [getattr(state, part.name) for state in handling.replacements]
        changes = any(value != getattr(first, part.name) for value in values)
        assert changes == (part.name not in handling.fixed) or part.name == "create_time", part.name


def test_the_table_of_mutations_names_every_method_that_changes_something() -> None:
    public = {name for name in dir(Writer) if not name.startswith("_")}
    assert set(MUTATIONS) | set(TRACELESS) == public - set(dir(Reader)) - {"revision"}
