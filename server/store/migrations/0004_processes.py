"""The processes that decide from memory, and how far each of them has come."""

from peewee import BigIntegerField, Check, Database, TextField
from playhouse.migrate import SchemaMigrator


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the table."""

    class Process(db.Model):
        process_id = TextField(primary_key=True)
        state = TextField()
        lease = BigIntegerField()
        acknowledged = BigIntegerField()
        seen_time = BigIntegerField()

        class Meta:
            table_name = "process"
            constraints = (Check("state IN ('live', 'fencing')", "process_state_known"),)

    Process.create_table(safe=False)
