"""Webhooks: the endpoints of workspaces, the secrets that sign for them, how far each has come, and what was sent."""

from peewee import SQL, BigAutoField, BigIntegerField, BlobField, Check, CompositeKey, Database, IntegerField, TextField
from playhouse.migrate import SchemaMigrator


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the tables."""

    class WebhookEndpoint(db.Model):
        webhook_endpoint_id = TextField(primary_key=True)
        workspace_id = TextField()
        url = TextField()
        description = TextField()
        event_types = TextField()
        state = TextField()
        disable_reason = TextField(null=True)
        create_time = BigIntegerField()
        update_time = BigIntegerField()
        create_revision = BigIntegerField()

        class Meta:
            table_name = "webhook_endpoint"
            indexes = ((("workspace_id", "create_revision", "webhook_endpoint_id"), False),)
            constraints = (
                Check("state IN ('active', 'disabled')", "webhook_endpoint_state_known"),
                Check("disable_reason IN ('requested', 'gone', 'failing')", "webhook_endpoint_disable_reason_known"),
                Check("(state = 'disabled') = (disable_reason IS NOT NULL)", "webhook_endpoint_disabled_for_a_reason"),
                SQL(
                    "CONSTRAINT webhook_endpoint_of_workspace "
                    "FOREIGN KEY (workspace_id) REFERENCES workspace (workspace_id)"
                ),
            )

    class WebhookSecret(db.Model):
        webhook_endpoint_id = TextField()
        number = IntegerField()
        pepper_id = TextField()
        sealed = BlobField()
        create_time = BigIntegerField()
        retire_time = BigIntegerField(null=True)

        class Meta:
            table_name = "webhook_secret"
            primary_key = CompositeKey("webhook_endpoint_id", "number")
            constraints = (
                SQL(
                    "CONSTRAINT webhook_secret_of_endpoint "
                    "FOREIGN KEY (webhook_endpoint_id) REFERENCES webhook_endpoint (webhook_endpoint_id)"
                ),
            )

    class WebhookProgress(db.Model):
        webhook_endpoint_id = TextField(primary_key=True)
        event_id = BigIntegerField()
        failing_since = BigIntegerField(null=True)

        class Meta:
            table_name = "webhook_progress"
            constraints = (
                SQL(
                    "CONSTRAINT webhook_progress_of_endpoint "
                    "FOREIGN KEY (webhook_endpoint_id) REFERENCES webhook_endpoint (webhook_endpoint_id)"
                ),
            )

    class WebhookDelivery(db.Model):
        number = BigAutoField()
        webhook_delivery_id = TextField(unique=True)
        webhook_endpoint_id = TextField()
        event_id = BigIntegerField(null=True)
        event_type = TextField()
        state = TextField()
        attempts = IntegerField()
        retries = IntegerField()
        next_attempt_time = BigIntegerField(null=True)
        give_up_time = BigIntegerField()
        last_attempt_time = BigIntegerField(null=True)
        last_http_status_code = IntegerField(null=True)
        last_error = TextField()
        create_time = BigIntegerField()

        class Meta:
            table_name = "webhook_delivery"
            indexes = (
                (("webhook_endpoint_id", "event_id"), True),
                (("webhook_endpoint_id", "state", "next_attempt_time"), False),
                (("webhook_endpoint_id", "number"), False),
                (("state", "create_time"), False),
            )
            constraints = (
                Check("state IN ('pending', 'delivered', 'failed')", "webhook_delivery_state_known"),
                Check("(state = 'pending') = (next_attempt_time IS NOT NULL)", "webhook_delivery_pending_until_a_time"),
                SQL(
                    "CONSTRAINT webhook_delivery_of_endpoint "
                    "FOREIGN KEY (webhook_endpoint_id) REFERENCES webhook_endpoint (webhook_endpoint_id)"
                ),
            )

    for table in (WebhookEndpoint, WebhookSecret, WebhookProgress, WebhookDelivery):
        table.create_table(safe=False)
