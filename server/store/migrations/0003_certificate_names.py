"""The names of client certificates by which callers may prove themselves."""

from peewee import SQL, Database, TextField
from playhouse.migrate import SchemaMigrator


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the table."""

    class CallerCertificateName(db.Model):
        name = TextField(primary_key=True)
        caller_id = TextField(index=True)

        class Meta:
            table_name = "caller_certificate_name"
            constraints = (
                SQL(
                    "CONSTRAINT caller_certificate_name_of_caller FOREIGN KEY (caller_id) REFERENCES caller (caller_id)"
                ),
            )

    CallerCertificateName.create_table(safe=False)
