"""The tables. What must never be false stands here as a named constraint, whatever the code above believes.

No table is bound to a database: a query is given one when it is executed, so that a process may hold several stores.
"""

from __future__ import annotations

from typing import Any

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    BlobField,
    Check,
    CompositeKey,
    IntegerField,
    Model,
    TextField,
)

from server.store.fields import DurationField, InstantField, JsonField


def foreign_key(name: str, column: str, table: str) -> SQL:
    """Return a named foreign key to the column of the same name."""
    return SQL(f"CONSTRAINT {name} FOREIGN KEY ({column}) REFERENCES {table} ({column})")


def one_of(name: str, column: str, *values: str) -> Any:
    """Return a named constraint of a column to some words."""
    return Check(f"{column} IN ({', '.join(repr(value) for value in values)})", name)


class Revision(Model):
    """The head of the history: one row, and the lock that every writer takes first."""

    row = IntegerField(primary_key=True)
    epoch = TextField()
    number = BigIntegerField()
    nonce = BigIntegerField()

    class Meta:
        table_name = "revision"
        constraints = (Check('"row" = 1', "revision_is_one_row"),)


class Change(Model):
    """What each revision touched."""

    revision = BigIntegerField()
    nonce = BigIntegerField()
    entity_kind = TextField()
    entity_id = TextField()

    class Meta:
        table_name = "change"
        primary_key = CompositeKey("revision", "entity_kind", "entity_id")


class Workspace(Model):
    """Workspaces."""

    workspace_id = TextField(primary_key=True)
    display_name = TextField()
    environment = TextField()
    redirect_uris = JsonField()
    exposure_policy = TextField()
    scoped_key_lifetime = DurationField()
    connect_link_lifetime = DurationField()
    create_time = InstantField()
    update_time = InstantField()
    create_revision = BigIntegerField()

    class Meta:
        table_name = "workspace"
        indexes = ((("create_revision", "workspace_id"), False),)
        constraints = (
            one_of("workspace_environment_known", "environment", "production", "sandbox"),
            one_of("workspace_exposure_policy_known", "exposure_policy", "revoke", "suspend", "notify_only"),
        )


class Key(Model):
    """Customers' keys."""

    key_id = TextField(primary_key=True)
    workspace_id = TextField()
    kind = TextField()
    state = TextField()
    display_name = TextField()
    description = TextField()
    permissions = JsonField()
    allowed_networks = JsonField()
    allowed_manufacturers = JsonField()
    redirect_uris = JsonField()
    reference_id = TextField(null=True)
    connect_link_id = TextField(null=True)
    expire_time = InstantField(null=True)
    create_time = InstantField()
    update_time = InstantField()
    suspend_time = InstantField(null=True)
    revoke_time = InstantField(null=True)
    expose_time = InstantField(null=True)
    state_reason = TextField()
    created_by_caller_id = TextField()
    created_by_key_id = TextField(null=True)
    create_revision = BigIntegerField()

    class Meta:
        table_name = "api_key"
        indexes = (
            (("workspace_id", "create_revision", "key_id"), False),
            (("workspace_id", "reference_id"), False),
            # For what descends from a key, or from a link.
            (("created_by_key_id",), False),
            (("connect_link_id",), False),
        )
        constraints = (
            one_of("key_kind_known", "kind", "server", "connect", "scoped"),
            one_of("key_state_known", "state", "active", "suspended", "revoked"),
            Check("(kind = 'scoped') = (reference_id IS NOT NULL)", "key_has_end_user_iff_scoped"),
            Check("(state = 'suspended') = (suspend_time IS NOT NULL)", "key_suspended_at_a_time"),
            Check("(state = 'revoked') = (revoke_time IS NOT NULL)", "key_revoked_at_a_time"),
            foreign_key("key_of_workspace", "workspace_id", "workspace"),
        )


Key.add_index(Key.index(Key.expire_time, Key.key_id, where=Key.expire_time.is_null(False), name="key_expire_time"))


class GenerationColumns(Model):
    """What is kept of a secret: its digest, never the secret. Customers' keys and callers' have a table each."""

    key_id = TextField()
    number = IntegerField()
    pepper_id = TextField()
    digest = BlobField()
    last_four = TextField()
    create_time = InstantField()
    retire_time = InstantField(null=True)


def one_in_force(table: type[GenerationColumns], name: str) -> Any:
    """Return the index that keeps a key from having two secrets in force."""
    return table.index(table.key_id, unique=True, where=table.retire_time.is_null(), name=name)


class KeyGeneration(GenerationColumns):
    """The secrets of customers' keys."""

    class Meta:
        table_name = "key_generation"
        primary_key = CompositeKey("key_id", "number")
        constraints = (
            Check("number >= 1", "key_generation_counts_from_one"),
            foreign_key("key_generation_of_key", "key_id", "api_key"),
        )


KeyGeneration.add_index(one_in_force(KeyGeneration, "key_generation_one_in_force"))


class KeyLabel(Model):
    """The labels of customers' keys, one a row, so that keys can be found by them."""

    key_id = TextField()
    name = TextField()
    value = TextField()

    class Meta:
        table_name = "key_label"
        primary_key = CompositeKey("key_id", "name")
        indexes = ((("name", "value"), False),)
        constraints = (foreign_key("key_label_of_key", "key_id", "api_key"),)


class ConnectLink(Model):
    """Connect links."""

    connect_link_id = TextField(primary_key=True)
    workspace_id = TextField()
    key_id = TextField()
    reference_id = TextField()
    redirect_uri = TextField()
    client_state = TextField()
    pepper_id = TextField()
    digest = BlobField()
    create_time = InstantField()
    expire_time = InstantField()
    complete_time = InstantField(null=True)
    cancel_time = InstantField(null=True)
    scoped_key_id = TextField(null=True)

    class Meta:
        table_name = "connect_link"
        indexes = (
            (("workspace_id", "reference_id"), False),
            # For the deletion of keys, which must find out whether a link refers to them.
            (("key_id",), False),
            (("scoped_key_id",), False),
        )
        constraints = (
            Check("complete_time IS NULL OR cancel_time IS NULL", "connect_link_ends_once"),
            Check("(complete_time IS NULL) = (scoped_key_id IS NULL)", "connect_link_completed_with_key"),
            foreign_key("connect_link_of_workspace", "workspace_id", "workspace"),
            foreign_key("connect_link_of_key", "key_id", "api_key"),
            SQL("CONSTRAINT connect_link_scoped_key FOREIGN KEY (scoped_key_id) REFERENCES api_key (key_id)"),
        )


class Device(Model):
    """Devices and their owners."""

    device_id = TextField(primary_key=True)
    workspace_id = TextField()
    reference_id = TextField()
    manufacturer = TextField()
    create_time = InstantField()
    update_time = InstantField()
    create_revision = BigIntegerField()

    class Meta:
        table_name = "device"
        indexes = (
            (("workspace_id", "create_revision", "device_id"), False),
            (("workspace_id", "reference_id", "create_revision", "device_id"), False),
        )
        constraints = (foreign_key("device_of_workspace", "workspace_id", "workspace"),)


class Caller(Model):
    """Internal services and operators."""

    caller_id = TextField(primary_key=True)
    display_name = TextField()
    roles = JsonField()
    key_id = TextField(unique=True)
    create_time = InstantField()
    update_time = InstantField()
    revoke_time = InstantField(null=True)
    revoke_reason = TextField()
    create_revision = BigIntegerField()

    class Meta:
        table_name = "caller"
        indexes = ((("create_revision", "caller_id"), False),)


class CallerCertificateName(Model):
    """The names of client certificates by which callers may prove themselves, one a row: a name is one caller's."""

    name = TextField(primary_key=True)
    caller_id = TextField(index=True)

    class Meta:
        table_name = "caller_certificate_name"
        constraints = (foreign_key("caller_certificate_name_of_caller", "caller_id", "caller"),)


class CallerGeneration(GenerationColumns):
    """The secrets of callers' keys."""

    class Meta:
        table_name = "caller_generation"
        primary_key = CompositeKey("key_id", "number")
        constraints = (
            Check("number >= 1", "caller_generation_counts_from_one"),
            foreign_key("caller_generation_of_caller", "key_id", "caller"),
        )


CallerGeneration.add_index(one_in_force(CallerGeneration, "caller_generation_one_in_force"))


class Event(Model):
    """The event log. Rows are added in the transaction of the change that they describe."""

    event_id = BigAutoField()
    revision = BigIntegerField()
    type = TextField()
    event_time = InstantField(index=True)
    workspace_id = TextField(null=True)
    subject_kind = TextField()
    subject_id = TextField()
    caller_id = TextField()
    on_behalf_of_key_id = TextField(null=True)
    reason = TextField()
    request_id = TextField()
    before = JsonField(null=True)
    after = JsonField(null=True)

    class Meta:
        table_name = "event"
        indexes = (
            (("subject_kind", "subject_id", "event_id"), False),
            (("workspace_id", "event_id"), False),
        )
        constraints = (Check("before IS NOT NULL OR after IS NOT NULL", "event_is_about_something"),)


class EventEndUser(Model):
    """Which events hold which end users, so that theirs can be found. It follows from the events alone."""

    workspace_id = TextField()
    reference_id = TextField()
    event_id = BigIntegerField(index=True)

    class Meta:
        table_name = "event_end_user"
        primary_key = CompositeKey("workspace_id", "reference_id", "event_id")
        constraints = (foreign_key("event_end_user_of_event", "event_id", "event"),)


class EventLink(Model):
    """What holds each event in the chain of its workspace. Of events that were pruned, some remain for a while."""

    chain = TextField()
    number = BigIntegerField()
    event_id = BigIntegerField(unique=True)
    pepper_id = TextField()
    salt = BlobField()
    content_mac = BlobField()
    mac = BlobField()
    redaction_pepper_id = TextField(null=True)
    redaction_content_mac = BlobField(null=True)
    redaction_mac = BlobField(null=True)

    class Meta:
        table_name = "event_link"
        primary_key = CompositeKey("chain", "number")
        constraints = (Check("number >= 1", "event_link_counts_from_one"),)


class EventChain(Model):
    """Both ends of each chain: the last link, and where what is kept of it begins, under a seal."""

    chain = TextField(primary_key=True)
    number = BigIntegerField()
    mac = BlobField()
    pepper_id = TextField()
    pruned_number = BigIntegerField()
    pruned_mac = BlobField()
    pruned_pepper_id = TextField()
    sealed_from = BigIntegerField()
    anchor_pepper_id = TextField()
    anchor_mac = BlobField()

    class Meta:
        table_name = "event_chain"


class EventLog(Model):
    """One row about the whole log: its first event that is in a chain, and the last one that was pruned."""

    row = IntegerField(primary_key=True)
    sealed_from = BigIntegerField()
    pruned_event_id = BigIntegerField()

    class Meta:
        table_name = "event_log"
        constraints = (Check('"row" = 1', "event_log_is_one_row"),)


class ExpiryMark(Model):
    """How far warnings of so many days have come: to the key that expires then."""

    days = IntegerField(primary_key=True)
    expire_time = InstantField()
    key_id = TextField()

    class Meta:
        table_name = "expiry_mark"


class Request(Model):
    """Requests that were carried out under a request id."""

    caller_id = TextField()
    method = TextField()
    request_id = TextField()
    fingerprint = TextField()
    entity_id = TextField()
    time = InstantField(index=True)

    class Meta:
        table_name = "request"
        primary_key = CompositeKey("caller_id", "method", "request_id")


class Process(Model):
    """The processes that decide from memory, for how long each may without hearing, and the revision it has applied."""

    process_id = TextField(primary_key=True)
    state = TextField()
    lease = DurationField()
    acknowledged = BigIntegerField()
    seen_time = InstantField()

    class Meta:
        table_name = "process"
        constraints = (one_of("process_state_known", "state", "live", "fencing"),)


class Exposure(Model):
    """Where secrets of customers' and callers' keys have been found, so that each place counts once."""

    key_id = TextField()
    generation = IntegerField()
    place = TextField()
    time = InstantField()

    class Meta:
        table_name = "exposure"
        primary_key = CompositeKey("key_id", "generation", "place")


class WebhookEndpoint(Model):
    """Where workspaces are told of their events."""

    webhook_endpoint_id = TextField(primary_key=True)
    workspace_id = TextField()
    url = TextField()
    description = TextField()
    event_types = JsonField()
    state = TextField()
    disable_reason = TextField(null=True)
    create_time = InstantField()
    update_time = InstantField()
    create_revision = BigIntegerField()

    class Meta:
        table_name = "webhook_endpoint"
        indexes = ((("workspace_id", "create_revision", "webhook_endpoint_id"), False),)
        constraints = (
            one_of("webhook_endpoint_state_known", "state", "active", "disabled"),
            one_of("webhook_endpoint_disable_reason_known", "disable_reason", "requested", "gone", "failing"),
            Check("(state = 'disabled') = (disable_reason IS NOT NULL)", "webhook_endpoint_disabled_for_a_reason"),
            foreign_key("webhook_endpoint_of_workspace", "workspace_id", "workspace"),
        )


class WebhookSecret(Model):
    """What signs for an endpoint, encrypted under a key that the pepper yields."""

    webhook_endpoint_id = TextField()
    number = IntegerField()
    pepper_id = TextField()
    sealed = BlobField()
    create_time = InstantField()
    retire_time = InstantField(null=True)

    class Meta:
        table_name = "webhook_secret"
        primary_key = CompositeKey("webhook_endpoint_id", "number")
        constraints = (foreign_key("webhook_secret_of_endpoint", "webhook_endpoint_id", "webhook_endpoint"),)


class WebhookProgress(Model):
    """Up to which event deliveries were made for an endpoint, and since when every attempt has failed. No fact."""

    webhook_endpoint_id = TextField(primary_key=True)
    event_id = BigIntegerField()
    failing_since = InstantField(null=True)

    class Meta:
        table_name = "webhook_progress"
        constraints = (foreign_key("webhook_progress_of_endpoint", "webhook_endpoint_id", "webhook_endpoint"),)


class WebhookDelivery(Model):
    """The messages to endpoints. An event has one for each endpoint, a test has no event. No facts."""

    number = BigAutoField()
    webhook_delivery_id = TextField(unique=True)
    webhook_endpoint_id = TextField()
    event_id = BigIntegerField(null=True)
    event_type = TextField()
    state = TextField()
    attempts = IntegerField()
    retries = IntegerField()
    next_attempt_time = InstantField(null=True)
    give_up_time = InstantField()
    last_attempt_time = InstantField(null=True)
    last_http_status_code = IntegerField(null=True)
    last_error = TextField()
    create_time = InstantField()

    class Meta:
        table_name = "webhook_delivery"
        indexes = (
            (("webhook_endpoint_id", "event_id"), True),
            (("webhook_endpoint_id", "state", "next_attempt_time"), False),
            (("webhook_endpoint_id", "number"), False),
            (("state", "create_time"), False),
        )
        constraints = (
            one_of("webhook_delivery_state_known", "state", "pending", "delivered", "failed"),
            Check("(state = 'pending') = (next_attempt_time IS NOT NULL)", "webhook_delivery_pending_until_a_time"),
            foreign_key("webhook_delivery_of_endpoint", "webhook_endpoint_id", "webhook_endpoint"),
        )


def of_key(name: str) -> SQL:
    """Return the foreign key to a customer's key of what goes with it."""
    return SQL(f"CONSTRAINT {name} FOREIGN KEY (key_id) REFERENCES api_key (key_id) ON DELETE CASCADE")


class KeyUsage(Model):
    """What keys were used for, counted by the hour."""

    key_id = TextField()
    hour = InstantField(index=True)
    generation = IntegerField()
    retiring = IntegerField()
    caller_id = TextField()
    permission = TextField()
    reason = TextField()
    count = BigIntegerField()
    first_time = InstantField()
    last_time = InstantField()

    class Meta:
        table_name = "key_usage"
        primary_key = CompositeKey("key_id", "hour", "generation", "retiring", "caller_id", "permission", "reason")
        constraints = (Check("retiring IN (0, 1)", "key_usage_retiring_or_not"), of_key("key_usage_of_key"))


class KeyLastUse(Model):
    """When keys were last used, of how many devices it is kept that they touched them, and whether there were more."""

    key_id = TextField(primary_key=True)
    last_time = InstantField()
    devices = IntegerField()
    devices_left_out_time = InstantField(null=True)

    class Meta:
        table_name = "key_last_use"
        constraints = (of_key("key_last_use_of_key"),)


KeyLastUse.add_index(
    KeyLastUse.index(
        KeyLastUse.key_id, where=KeyLastUse.devices_left_out_time.is_null(False), name="key_last_use_left_out"
    )
)


class DeviceTouch(Model):
    """Which devices keys have touched. A device may be gone meanwhile."""

    key_id = TextField()
    device_id = TextField()
    count = BigIntegerField()
    first_time = InstantField()
    last_time = InstantField(index=True)

    class Meta:
        table_name = "device_touch"
        primary_key = CompositeKey("key_id", "device_id")
        indexes = ((("device_id", "key_id"), False),)
        constraints = (of_key("device_touch_of_key"),)


class UsageReport(Model):
    """How far each process has come in telling what keys were used for."""

    process_id = TextField(primary_key=True)
    sequence = BigIntegerField()
    start_time = InstantField()
    report_time = InstantField()
    end_time = InstantField(null=True)
    uncounted_time = InstantField(null=True)

    class Meta:
        table_name = "usage_report"


# In an order in which they can be created.
TABLES = (
    Revision,
    Change,
    Workspace,
    Key,
    KeyGeneration,
    KeyLabel,
    ConnectLink,
    Device,
    Caller,
    CallerGeneration,
    CallerCertificateName,
    Event,
    EventEndUser,
    EventLink,
    EventChain,
    EventLog,
    ExpiryMark,
    Request,
    Process,
    Exposure,
    WebhookEndpoint,
    WebhookSecret,
    WebhookProgress,
    WebhookDelivery,
    KeyUsage,
    KeyLastUse,
    DeviceTouch,
    UsageReport,
)
