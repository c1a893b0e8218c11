"""The chain of the event log, and how far warnings of keys that expire have come.

Events that are there already are in no chain: it begins with the next one. Servers of an older release must not run any
more when this is applied: what they recorded would be in no chain either, as what somebody inserted is.
"""

from peewee import (
    BigIntegerField,
    BlobField,
    Check,
    CompositeKey,
    Database,
    IntegerField,
    TextField,
)
from playhouse.migrate import SchemaMigrator


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the tables and the index, and note where the chain begins."""

    class EventLink(db.Model):
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

    class EventChain(db.Model):
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

    class EventLog(db.Model):
        row = IntegerField(primary_key=True)
        sealed_from = BigIntegerField()
        pruned_event_id = BigIntegerField()

        class Meta:
            table_name = "event_log"
            constraints = (Check('"row" = 1', "event_log_is_one_row"),)

    class ExpiryMark(db.Model):
        days = IntegerField(primary_key=True)
        expire_time = BigIntegerField()
        key_id = TextField()

        class Meta:
            table_name = "expiry_mark"

    for table in (EventLink, EventChain, EventLog, ExpiryMark):
        table.create_table(safe=False)
    db.execute_sql(
        'INSERT INTO "event_log" ("row", "sealed_from", "pruned_event_id") '
        'SELECT 1, COALESCE(MAX("event_id"), 0) + 1, 0 FROM "event"'
    )
    db.execute_sql(
        'CREATE INDEX "key_expire_time" ON "api_key" ("expire_time", "key_id") WHERE ("expire_time" IS NOT NULL)'
    )
