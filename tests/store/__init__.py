"""The store's tests: one suite of promises for every store, and what is peculiar to each."""

import pytest

# Asserts in these say what they compared, as those in test files do.
pytest.register_assert_rewrite(
    "tests.store.promises_of_chains",
    "tests.store.promises_of_end_users",
    "tests.store.promises_of_entities",
    "tests.store.promises_of_lists",
    "tests.store.promises_of_races",
    "tests.store.promises_of_transactions",
    "tests.store.support",
)
