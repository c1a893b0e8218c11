"""What descends from a key or a link is found, and where keys have been found exposed is remembered."""

from peewee import BigIntegerField, CompositeKey, Database, IntegerField, TextField
from playhouse.migrate import SchemaMigrator


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the indexes and the table."""
    # By the names that the models give them, which Peewee's migrator would not.
    db.execute_sql('CREATE INDEX "key_created_by_key_id" ON "api_key" ("created_by_key_id")')
    db.execute_sql('CREATE INDEX "key_connect_link_id" ON "api_key" ("connect_link_id")')

    class Exposure(db.Model):
        key_id = TextField()
        generation = IntegerField()
        place = TextField()
        time = BigIntegerField()

        class Meta:
            table_name = "exposure"
            primary_key = CompositeKey("key_id", "generation", "place")

    Exposure.create_table(safe=False)
