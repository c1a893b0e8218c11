"""The tables of the first release, and the beginning of a history: a new epoch at revision 0."""

import secrets
import uuid
from typing import Any

from peewee import (
    SQL,
    BigAutoField,
    BigIntegerField,
    BlobField,
    Check,
    CompositeKey,
    Database,
    IntegerField,
    TextField,
)
from playhouse.migrate import SchemaMigrator


def foreign_key(name: str, column: str, table: str) -> SQL:
    """Return a named foreign key to the column of the same name."""
    return SQL(f"CONSTRAINT {name} FOREIGN KEY ({column}) REFERENCES {table} ({column})")


def one_of(name: str, column: str, *values: str) -> Any:
    """Return a named constraint of a column to some words."""
    return Check(f"{column} IN ({', '.join(repr(value) for value in values)})", name)


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create everything."""

    class Revision(db.Model):
        row = IntegerField(primary_key=True)
        epoch = TextField()
        number = BigIntegerField()
        nonce = BigIntegerField()

        class Meta:
            table_name = "revision"
            constraints = (Check('"row" = 1', "revision_is_one_row"),)

    class Change(db.Model):
        revision = BigIntegerField()
        nonce = BigIntegerField()
        entity_kind = TextField()
        entity_id = TextField()

        class Meta:
            table_name = "change"
            primary_key = CompositeKey("revision", "entity_kind", "entity_id")

    class Workspace(db.Model):
        workspace_id = TextField(primary_key=True)
        display_name = TextField()
        environment = TextField()
        redirect_uris = TextField()
        exposure_policy = TextField()
        scoped_key_lifetime = BigIntegerField()
        connect_link_lifetime = BigIntegerField()
        create_time = BigIntegerField()
        update_time = BigIntegerField()
        create_revision = BigIntegerField()

        class Meta:
            table_name = "workspace"
            indexes = ((("create_revision", "workspace_id"), False),)
            constraints = (
                one_of("workspace_environment_known", "environment", "production", "sandbox"),
                one_of("workspace_exposure_policy_known", "exposure_policy", "revoke", "suspend", "notify_only"),
            )

    class Key(db.Model):
        key_id = TextField(primary_key=True)
        workspace_id = TextField()
        kind = TextField()
        state = TextField()
        display_name = TextField()
        description = TextField()
        permissions = TextField()
        allowed_networks = TextField()
        allowed_manufacturers = TextField()
        redirect_uris = TextField()
        reference_id = TextField(null=True)
        connect_link_id = TextField(null=True)
        expire_time = BigIntegerField(null=True)
        create_time = BigIntegerField()
        update_time = BigIntegerField()
        suspend_time = BigIntegerField(null=True)
        revoke_time = BigIntegerField(null=True)
        expose_time = BigIntegerField(null=True)
        state_reason = TextField()
        created_by_caller_id = TextField()
        created_by_key_id = TextField(null=True)
        create_revision = BigIntegerField()

        class Meta:
            table_name = "api_key"
            indexes = (
                (("workspace_id", "create_revision", "key_id"), False),
                (("workspace_id", "reference_id"), False),
            )
            constraints = (
                one_of("key_kind_known", "kind", "server", "connect", "scoped"),
                one_of("key_state_known", "state", "active", "suspended", "revoked"),
                Check("(kind = 'scoped') = (reference_id IS NOT NULL)", "key_has_end_user_iff_scoped"),
                Check("(state = 'suspended') = (suspend_time IS NOT NULL)", "key_suspended_at_a_time"),
                Check("(state = 'revoked') = (revoke_time IS NOT NULL)", "key_revoked_at_a_time"),
                foreign_key("key_of_workspace", "workspace_id", "workspace"),
            )

    class KeyGeneration(db.Model):
        key_id = TextField()
        number = IntegerField()
        pepper_id = TextField()
        digest = BlobField()
        last_four = TextField()
        create_time = BigIntegerField()
        retire_time = BigIntegerField(null=True)

        class Meta:
            table_name = "key_generation"
            primary_key = CompositeKey("key_id", "number")
            constraints = (
                Check("number >= 1", "key_generation_counts_from_one"),
                foreign_key("key_generation_of_key", "key_id", "api_key"),
            )

    KeyGeneration.add_index(
        KeyGeneration.index(
            KeyGeneration.key_id,
            unique=True,
            where=KeyGeneration.retire_time.is_null(),
            name="key_generation_one_in_force",
        )
    )

    class KeyLabel(db.Model):
        key_id = TextField()
        name = TextField()
        value = TextField()

        class Meta:
            table_name = "key_label"
            primary_key = CompositeKey("key_id", "name")
            indexes = ((("name", "value"), False),)
            constraints = (foreign_key("key_label_of_key", "key_id", "api_key"),)

    class ConnectLink(db.Model):
        connect_link_id = TextField(primary_key=True)
        workspace_id = TextField()
        key_id = TextField()
        reference_id = TextField()
        redirect_uri = TextField()
        client_state = TextField()
        pepper_id = TextField()
        digest = BlobField()
        create_time = BigIntegerField()
        expire_time = BigIntegerField()
        complete_time = BigIntegerField(null=True)
        cancel_time = BigIntegerField(null=True)
        scoped_key_id = TextField(null=True)

        class Meta:
            table_name = "connect_link"
            constraints = (
                Check("complete_time IS NULL OR cancel_time IS NULL", "connect_link_ends_once"),
                Check("(complete_time IS NULL) = (scoped_key_id IS NULL)", "connect_link_completed_with_key"),
                foreign_key("connect_link_of_workspace", "workspace_id", "workspace"),
                foreign_key("connect_link_of_key", "key_id", "api_key"),
                SQL("CONSTRAINT connect_link_scoped_key FOREIGN KEY (scoped_key_id) REFERENCES api_key (key_id)"),
            )

    class Device(db.Model):
        device_id = TextField(primary_key=True)
        workspace_id = TextField()
        reference_id = TextField()
        manufacturer = TextField()
        create_time = BigIntegerField()
        update_time = BigIntegerField()
        create_revision = BigIntegerField()

        class Meta:
            table_name = "device"
            indexes = (
                (("workspace_id", "create_revision", "device_id"), False),
                (("workspace_id", "reference_id", "create_revision", "device_id"), False),
            )
            constraints = (foreign_key("device_of_workspace", "workspace_id", "workspace"),)

    class Caller(db.Model):
        caller_id = TextField(primary_key=True)
        display_name = TextField()
        roles = TextField()
        key_id = TextField(unique=True)
        create_time = BigIntegerField()
        update_time = BigIntegerField()
        revoke_time = BigIntegerField(null=True)
        revoke_reason = TextField()
        create_revision = BigIntegerField()

        class Meta:
            table_name = "caller"
            indexes = ((("create_revision", "caller_id"), False),)

    class CallerGeneration(db.Model):
        key_id = TextField()
        number = IntegerField()
        pepper_id = TextField()
        digest = BlobField()
        last_four = TextField()
        create_time = BigIntegerField()
        retire_time = BigIntegerField(null=True)

        class Meta:
            table_name = "caller_generation"
            primary_key = CompositeKey("key_id", "number")
            constraints = (
                Check("number >= 1", "caller_generation_counts_from_one"),
                foreign_key("caller_generation_of_caller", "key_id", "caller"),
            )

    CallerGeneration.add_index(
        CallerGeneration.index(
            CallerGeneration.key_id,
            unique=True,
            where=CallerGeneration.retire_time.is_null(),
            name="caller_generation_one_in_force",
        )
    )

    class Event(db.Model):
        event_id = BigAutoField()
        revision = BigIntegerField()
        type = TextField()
        event_time = BigIntegerField()
        workspace_id = TextField(null=True)
        subject_kind = TextField()
        subject_id = TextField()
        caller_id = TextField()
        on_behalf_of_key_id = TextField(null=True)
        reason = TextField()
        request_id = TextField()
        before = TextField(null=True)
        after = TextField(null=True)

        class Meta:
            table_name = "event"
            indexes = (
                (("subject_kind", "subject_id", "event_id"), False),
                (("workspace_id", "event_id"), False),
            )
            constraints = (Check("before IS NOT NULL OR after IS NOT NULL", "event_is_about_something"),)

    class Request(db.Model):
        caller_id = TextField()
        method = TextField()
        request_id = TextField()
        fingerprint = TextField()
        entity_id = TextField()
        time = BigIntegerField(index=True)

        class Meta:
            table_name = "request"
            primary_key = CompositeKey("caller_id", "method", "request_id")

    # In an order in which each finds what it refers to.
    for table in (
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
        Event,
        Request,
    ):
        table.create_table(safe=False)
    epoch, nonce = str(uuid.uuid4()), secrets.randbits(63)
    Revision.insert(row=1, epoch=epoch, number=0, nonce=nonce).execute()
    Change.insert(revision=0, nonce=nonce, entity_kind="epoch", entity_id=epoch).execute()
