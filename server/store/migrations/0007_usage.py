"""What keys were used for, and how far processes have come in telling so."""

from peewee import SQL, BigIntegerField, Check, CompositeKey, Database, IntegerField, TextField
from playhouse.migrate import SchemaMigrator


def of_key(name: str) -> SQL:
    """Return the foreign key to a customer's key of what goes with it."""
    return SQL(f"CONSTRAINT {name} FOREIGN KEY (key_id) REFERENCES api_key (key_id) ON DELETE CASCADE")


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the tables."""

    class KeyUsage(db.Model):
        key_id = TextField()
        hour = BigIntegerField(index=True)
        generation = IntegerField()
        retiring = IntegerField()
        caller_id = TextField()
        permission = TextField()
        reason = TextField()
        count = BigIntegerField()
        first_time = BigIntegerField()
        last_time = BigIntegerField()

        class Meta:
            table_name = "key_usage"
            primary_key = CompositeKey("key_id", "hour", "generation", "retiring", "caller_id", "permission", "reason")
            constraints = (Check("retiring IN (0, 1)", "key_usage_retiring_or_not"), of_key("key_usage_of_key"))

    class KeyLastUse(db.Model):
        key_id = TextField(primary_key=True)
        last_time = BigIntegerField()
        devices = IntegerField()
        devices_left_out_time = BigIntegerField(null=True)

        class Meta:
            table_name = "key_last_use"
            constraints = (of_key("key_last_use_of_key"),)

    KeyLastUse.add_index(
        KeyLastUse.index(
            KeyLastUse.key_id, where=KeyLastUse.devices_left_out_time.is_null(False), name="key_last_use_left_out"
        )
    )

    class DeviceTouch(db.Model):
        key_id = TextField()
        device_id = TextField()
        count = BigIntegerField()
        first_time = BigIntegerField()
        last_time = BigIntegerField(index=True)

        class Meta:
            table_name = "device_touch"
            primary_key = CompositeKey("key_id", "device_id")
            indexes = ((("device_id", "key_id"), False),)
            constraints = (of_key("device_touch_of_key"),)

    class UsageReport(db.Model):
        process_id = TextField(primary_key=True)
        sequence = BigIntegerField()
        start_time = BigIntegerField()
        report_time = BigIntegerField()
        end_time = BigIntegerField(null=True)
        uncounted_time = BigIntegerField(null=True)

        class Meta:
            table_name = "usage_report"

    for table in (KeyUsage, KeyLastUse, DeviceTouch, UsageReport):
        table.create_table(safe=False)
