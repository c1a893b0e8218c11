"""SQLite: every constraint of the schema refuses the row that it is there to refuse, whatever the code believes."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest

from tests.store.files import new_engine

Values = dict[str, Any]

# A good row of each table, in an order in which they can be inserted.
GOOD: dict[str, Values] = {
    "change": {"revision": 1, "nonce": 1, "entity_kind": "key", "entity_id": "k"},
    "workspace": {
        "workspace_id": "w",
        "display_name": "",
        "environment": "sandbox",
        "redirect_uris": "[]",
        "exposure_policy": "revoke",
        "scoped_key_lifetime": 1,
        "connect_link_lifetime": 1,
        "create_time": 1,
        "update_time": 1,
        "create_revision": 1,
    },
    "api_key": {
        "key_id": "k",
        "workspace_id": "w",
        "kind": "server",
        "state": "active",
        "display_name": "",
        "description": "",
        "permissions": "[]",
        "allowed_networks": "[]",
        "allowed_manufacturers": "[]",
        "redirect_uris": "[]",
        "reference_id": None,
        "connect_link_id": None,
        "expire_time": None,
        "create_time": 1,
        "update_time": 1,
        "suspend_time": None,
        "revoke_time": None,
        "expose_time": None,
        "state_reason": "",
        "created_by_caller_id": "c",
        "created_by_key_id": None,
        "create_revision": 1,
    },
    "key_generation": {
        "key_id": "k",
        "number": 1,
        "pepper_id": "p",
        "digest": b"",
        "last_four": "",
        "create_time": 1,
        "retire_time": None,
    },
    "key_label": {"key_id": "k", "name": "n", "value": "v"},
    "connect_link": {
        "connect_link_id": "l",
        "workspace_id": "w",
        "key_id": "k",
        "reference_id": "r",
        "redirect_uri": "",
        "client_state": "",
        "pepper_id": "p",
        "digest": b"",
        "create_time": 1,
        "expire_time": 2,
        "complete_time": None,
        "cancel_time": None,
        "scoped_key_id": None,
    },
    "device": {
        "device_id": "d",
        "workspace_id": "w",
        "reference_id": "r",
        "manufacturer": "",
        "create_time": 1,
        "update_time": 1,
        "create_revision": 1,
    },
    "caller": {
        "caller_id": "c",
        "display_name": "",
        "roles": "[]",
        "key_id": "ck",
        "create_time": 1,
        "update_time": 1,
        "revoke_time": None,
        "revoke_reason": "",
        "create_revision": 1,
    },
    "caller_generation": {
        "key_id": "ck",
        "number": 1,
        "pepper_id": "p",
        "digest": b"",
        "last_four": "",
        "create_time": 1,
        "retire_time": None,
    },
    "caller_certificate_name": {"name": "device-api.internal", "caller_id": "c"},
    "event": {
        "event_id": 1,
        "revision": 1,
        "type": "key.created",
        "event_time": 1,
        "workspace_id": None,
        "subject_kind": "key",
        "subject_id": "k",
        "caller_id": "c",
        "on_behalf_of_key_id": None,
        "reason": "",
        "request_id": "",
        "before": None,
        "after": "{}",
    },
    "event_end_user": {"workspace_id": "w", "reference_id": "r", "event_id": 1},
    "request": {
        "caller_id": "c",
        "method": "m",
        "request_id": "r",
        "fingerprint": "f",
        "entity_id": "k",
        "time": 1,
    },
    "process": {"process_id": "p", "state": "live", "lease": 1, "acknowledged": 1, "seen_time": 1},
    "event_link": {
        "chain": "w",
        "number": 1,
        "event_id": 1,
        "pepper_id": "p",
        "salt": b"",
        "content_mac": b"",
        "mac": b"",
        "redaction_pepper_id": None,
        "redaction_content_mac": None,
        "redaction_mac": None,
    },
    "event_chain": {
        "chain": "w",
        "number": 1,
        "mac": b"",
        "pepper_id": "p",
        "pruned_number": 0,
        "pruned_mac": b"",
        "pruned_pepper_id": "p",
        "sealed_from": 1,
        "anchor_pepper_id": "p",
        "anchor_mac": b"",
    },
    "expiry_mark": {"days": 2, "expire_time": 1, "key_id": "k"},
    "webhook_endpoint": {
        "webhook_endpoint_id": "e",
        "workspace_id": "w",
        "url": "",
        "description": "",
        "event_types": "[]",
        "state": "active",
        "disable_reason": None,
        "create_time": 1,
        "update_time": 1,
        "create_revision": 1,
    },
    "webhook_secret": {
        "webhook_endpoint_id": "e",
        "number": 1,
        "pepper_id": "p",
        "sealed": b"",
        "create_time": 1,
        "retire_time": None,
    },
    "webhook_progress": {"webhook_endpoint_id": "e", "event_id": 1, "failing_since": None},
    "webhook_delivery": {
        "number": 1,
        "webhook_delivery_id": "m",
        "webhook_endpoint_id": "e",
        "event_id": 1,
        "event_type": "key.created",
        "state": "delivered",
        "attempts": 1,
        "retries": 0,
        "next_attempt_time": None,
        "give_up_time": 1,
        "last_attempt_time": None,
        "last_http_status_code": None,
        "last_error": "",
        "create_time": 1,
    },
    "key_usage": {
        "key_id": "k",
        "hour": 1,
        "generation": 1,
        "retiring": 0,
        "caller_id": "c",
        "permission": "devices:read",
        "reason": "PERMITTED",
        "count": 1,
        "first_time": 1,
        "last_time": 1,
    },
    "key_last_use": {"key_id": "k", "last_time": 1, "devices": 0, "devices_left_out_time": None},
    "device_touch": {"key_id": "k", "device_id": "d", "count": 1, "first_time": 1, "last_time": 1},
    "usage_report": {
        "process_id": "p",
        "sequence": 1,
        "start_time": 1,
        "report_time": 1,
        "end_time": None,
        "uncounted_time": None,
    },
    "exposure": {"key_id": "k", "generation": 1, "place": "browser", "time": 1},
}

# What tells another good row of the table from the first.
ANOTHER: dict[str, Values] = {
    "change": {"entity_id": "k2"},
    "workspace": {"workspace_id": "w2"},
    "api_key": {"key_id": "k2"},
    "key_generation": {"number": 2, "retire_time": 2},
    "key_label": {"name": "n2"},
    "connect_link": {"connect_link_id": "l2"},
    "device": {"device_id": "d2"},
    "caller": {"caller_id": "c2", "key_id": "ck2"},
    "caller_generation": {"number": 2, "retire_time": 2},
    "caller_certificate_name": {"name": "other.internal"},
    "event": {"event_id": 2},
    "event_end_user": {"reference_id": "r2"},
    "request": {"request_id": "r2"},
    "process": {"process_id": "p2"},
    "event_link": {"number": 2, "event_id": 2},
    "event_chain": {"chain": "w2"},
    "expiry_mark": {"days": 3},
    "webhook_endpoint": {"webhook_endpoint_id": "e2"},
    "webhook_secret": {"number": 2},
    "webhook_progress": {"webhook_endpoint_id": "e3"},
    "webhook_delivery": {"number": 2, "webhook_delivery_id": "m2", "event_id": 2},
    "key_usage": {"hour": 2},
    "key_last_use": {"key_id": "k3"},
    "device_touch": {"device_id": "d2"},
    "usage_report": {"process_id": "p2"},
    "exposure": {"place": "https://code.example"},
}


# What is set in the good row, and need not be.
UNSET = {("webhook_delivery", "event_id")}

# What other good rows belong to.
PARENTS: dict[str, Values] = {"api_key": {"key_id": "k3"}, "webhook_endpoint": {"webhook_endpoint_id": "e3"}}


@dataclass(frozen=True)
class Bad:
    """A row that is good but for these values, and the constraint that they break."""

    constraint: str
    table: str
    changes: Values
    column: str = "key_id"

    def __str__(self) -> str:
        return f"{self.constraint}-{'-'.join(map(str, self.changes.values()))}"


CHECKS = (
    Bad("revision_is_one_row", "revision", {"row": 2, "epoch": "e", "number": 1, "nonce": 1}),
    Bad("workspace_environment_known", "workspace", {"environment": "staging"}),
    Bad("workspace_environment_known", "workspace", {"environment": "SANDBOX"}),
    Bad("workspace_exposure_policy_known", "workspace", {"exposure_policy": "ignore"}),
    Bad("key_kind_known", "api_key", {"kind": "svc"}),
    Bad("key_state_known", "api_key", {"state": "expired"}),
    Bad("key_has_end_user_iff_scoped", "api_key", {"kind": "scoped"}),
    Bad("key_has_end_user_iff_scoped", "api_key", {"reference_id": "r"}),
    Bad("key_has_end_user_iff_scoped", "api_key", {"kind": "connect", "reference_id": "r"}),
    Bad("key_suspended_at_a_time", "api_key", {"state": "suspended"}),
    Bad("key_suspended_at_a_time", "api_key", {"suspend_time": 1}),
    Bad("key_suspended_at_a_time", "api_key", {"state": "revoked", "revoke_time": 1, "suspend_time": 1}),
    Bad("key_revoked_at_a_time", "api_key", {"state": "revoked"}),
    Bad("key_revoked_at_a_time", "api_key", {"revoke_time": 1}),
    Bad("key_generation_counts_from_one", "key_generation", {"number": 0}),
    Bad("connect_link_ends_once", "connect_link", {"complete_time": 1, "cancel_time": 1, "scoped_key_id": "k"}),
    Bad("connect_link_completed_with_key", "connect_link", {"complete_time": 1}),
    Bad("connect_link_completed_with_key", "connect_link", {"scoped_key_id": "k"}),
    Bad("caller_generation_counts_from_one", "caller_generation", {"number": 0}),
    Bad("process_state_known", "process", {"state": "dead"}),
    Bad("event_is_about_something", "event", {"after": None}),
    Bad("event_log_is_one_row", "event_log", {"row": 2, "sealed_from": 1, "pruned_event_id": 0}),
    Bad("event_link_counts_from_one", "event_link", {"number": 0}),
    Bad("webhook_endpoint_state_known", "webhook_endpoint", {"state": "gone"}),
    Bad("webhook_endpoint_disable_reason_known", "webhook_endpoint", {"state": "disabled", "disable_reason": "none"}),
    Bad("webhook_endpoint_disabled_for_a_reason", "webhook_endpoint", {"state": "disabled"}),
    Bad("webhook_endpoint_disabled_for_a_reason", "webhook_endpoint", {"disable_reason": "gone"}),
    Bad("webhook_delivery_state_known", "webhook_delivery", {"state": "lost"}),
    Bad("webhook_delivery_pending_until_a_time", "webhook_delivery", {"state": "pending"}),
    Bad("webhook_delivery_pending_until_a_time", "webhook_delivery", {"next_attempt_time": 1}),
    Bad("key_usage_retiring_or_not", "key_usage", {"retiring": 2}),
)

# SQLite does not say which foreign key is broken; a good row differs in this one value.
FOREIGN_KEYS = (
    Bad("key_of_workspace", "api_key", {"workspace_id": "none"}),
    Bad("key_generation_of_key", "key_generation", {"key_id": "none"}),
    Bad("key_label_of_key", "key_label", {"key_id": "none"}),
    Bad("connect_link_of_workspace", "connect_link", {"workspace_id": "none"}),
    Bad("connect_link_of_key", "connect_link", {"key_id": "none"}),
    Bad("connect_link_scoped_key", "connect_link", {"complete_time": 1, "scoped_key_id": "none"}),
    Bad("device_of_workspace", "device", {"workspace_id": "none"}),
    Bad("caller_generation_of_caller", "caller_generation", {"key_id": "none"}),
    Bad("caller_certificate_name_of_caller", "caller_certificate_name", {"caller_id": "none"}),
    Bad("event_end_user_of_event", "event_end_user", {"event_id": 9}),
    Bad("webhook_endpoint_of_workspace", "webhook_endpoint", {"workspace_id": "none"}),
    Bad("webhook_secret_of_endpoint", "webhook_secret", {"webhook_endpoint_id": "none"}),
    Bad("webhook_progress_of_endpoint", "webhook_progress", {"webhook_endpoint_id": "none"}),
    Bad("webhook_delivery_of_endpoint", "webhook_delivery", {"webhook_endpoint_id": "none"}),
    Bad("key_usage_of_key", "key_usage", {"key_id": "none"}),
    Bad("key_last_use_of_key", "key_last_use", {"key_id": "none"}),
    Bad("device_touch_of_key", "device_touch", {"key_id": "none"}),
)

# SQLite names the columns of a unique index, not the index.
UNIQUE = (
    Bad("key_generation_one_in_force", "key_generation", {"retire_time": None}),
    Bad("caller_generation_one_in_force", "caller_generation", {"retire_time": None}),
    Bad("caller_key_id", "caller", {"key_id": "ck"}),
    Bad("eventlink_event_id", "event_link", {"event_id": 1}, "event_id"),
    Bad("webhookdelivery_webhook_delivery_id", "webhook_delivery", {"webhook_delivery_id": "m"}, "webhook_delivery_id"),
    Bad("webhookdelivery_webhook_endpoint_id_event_id", "webhook_delivery", {"event_id": 1}, "webhook_endpoint_id"),
)


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Return a store with one good row in every table."""
    path = tmp_path_factory.mktemp("constraints") / "auth.db"
    new_engine(path).close()
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for table, values in GOOD.items():
            insert(connection, table, values)
        for table, values in PARENTS.items():
            insert(connection, table, GOOD[table] | values)
        # A copy in memory has no log beside it.
        connection.execute("PRAGMA journal_mode = DELETE")
        return connection.serialize()


@pytest.fixture
def connection(filled: bytes) -> Iterator[sqlite3.Connection]:
    """Give a connection to a copy, by nothing but SQLite's driver."""
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as connection:
        connection.deserialize(filled)
        connection.execute("PRAGMA foreign_keys = ON")
        yield connection


def insert(connection: sqlite3.Connection, table: str, values: Values) -> None:
    """Insert a row."""
    places = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO {table} ({', '.join(values)}) VALUES ({places})", tuple(values.values()))


def another(table: str) -> Values:
    """Return a good row that may stand beside the first."""
    return GOOD.get(table, {}) | ANOTHER.get(table, {})


@pytest.mark.parametrize("table", GOOD)
def test_another_good_row_is_accepted(connection: sqlite3.Connection, table: str) -> None:
    count = f"SELECT count(*) FROM {table}"
    (before,) = connection.execute(count).fetchone()
    insert(connection, table, another(table))
    assert connection.execute(count).fetchone() == (before + 1,)


@pytest.mark.parametrize("values", [{"kind": "scoped", "reference_id": "r"}, {"state": "suspended", "suspend_time": 1}])
def test_a_good_key_of_another_sort_is_accepted(connection: sqlite3.Connection, values: Values) -> None:
    insert(connection, "api_key", another("api_key") | values)


@pytest.mark.parametrize("bad", CHECKS, ids=str)
def test_a_row_that_breaks_a_check_is_refused_by_its_name(connection: sqlite3.Connection, bad: Bad) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=rf"^CHECK constraint failed: {bad.constraint}$"):
        insert(connection, bad.table, another(bad.table) | bad.changes)


@pytest.mark.parametrize("bad", FOREIGN_KEYS, ids=str)
def test_a_row_of_something_that_does_not_exist_is_refused(connection: sqlite3.Connection, bad: Bad) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=r"^FOREIGN KEY constraint failed$"):
        insert(connection, bad.table, another(bad.table) | bad.changes)
    connection.execute("PRAGMA foreign_keys = OFF")
    insert(connection, bad.table, another(bad.table) | bad.changes)


@pytest.mark.parametrize("bad", UNIQUE, ids=str)
def test_a_second_row_where_there_may_be_one_is_refused(connection: sqlite3.Connection, bad: Bad) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=rf"^UNIQUE constraint failed: {bad.table}\.{bad.column}"):
        insert(connection, bad.table, another(bad.table) | bad.changes)


@pytest.mark.parametrize("table", GOOD)
def test_the_same_row_twice_is_refused(connection: sqlite3.Connection, table: str) -> None:
    with pytest.raises(sqlite3.IntegrityError, match=rf"^UNIQUE constraint failed: {table}\."):
        insert(connection, table, GOOD[table])


@pytest.mark.parametrize(
    ("table", "column"),
    [(table, column) for table, values in GOOD.items() for column, value in values.items() if value is not None],
)
def test_a_column_that_must_be_set_is_refused_without_a_value(
    connection: sqlite3.Connection, table: str, column: str
) -> None:
    if (table, column) == ("event", "after"):
        # It may be unset where `before` is set.
        insert(connection, table, another(table) | {"before": "{}", column: None})
        return
    if (table, column) in {("event", "event_id"), ("expiry_mark", "days"), ("webhook_delivery", "number")} | UNSET:
        # The database gives it, or it may be missing.
        insert(connection, table, another(table) | {column: None})
        return
    with pytest.raises(sqlite3.IntegrityError, match=rf"^NOT NULL constraint failed: {table}\.{column}$"):
        insert(connection, table, another(table) | {column: None})


@pytest.mark.parametrize(
    ("table", "row"),
    [("workspace", "w"), ("api_key", "k"), ("caller", "c"), ("event", 1)],
    ids=["workspace", "key", "caller", "event"],
)
def test_what_others_belong_to_cannot_be_deleted(connection: sqlite3.Connection, table: str, row: str | int) -> None:
    column = {"workspace": "workspace_id", "api_key": "key_id", "caller": "caller_id", "event": "event_id"}[table]
    with pytest.raises(sqlite3.IntegrityError, match=r"^FOREIGN KEY constraint failed$"):
        connection.execute(f"DELETE FROM {table} WHERE {column} = ?", (row,))


def test_every_constraint_of_the_schema_is_tried_here(connection: sqlite3.Connection) -> None:
    schema = "\n".join(sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL"))
    named = set(re.findall(r'CONSTRAINT "?(\w+)', schema)) | set(re.findall(r'CREATE UNIQUE INDEX "(\w+)"', schema))
    named = {name for name in named if not name.startswith("schema_migration")}
    assert named == {bad.constraint for bad in (*CHECKS, *FOREIGN_KEYS, *UNIQUE)}
    tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    assert tables == {*GOOD, "revision", "event_log", "schema_migration"}
    for table, values in GOOD.items():
        columns = {name for _, name, *_ in connection.execute(f"PRAGMA table_info({table})")}
        assert columns == set(values)
