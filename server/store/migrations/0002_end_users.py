"""Events by end user and by age, and links by end user and by key: what erasure and retention look for.

Servers of the first release must not run any more when this is applied: they would go on recording events without
saying whose they are, and the erasure of an end user would miss those.
"""

import json
from collections.abc import Iterator

from peewee import SQL, BigAutoField, BigIntegerField, CompositeKey, Database, TextField
from playhouse.migrate import SchemaMigrator

_ROWS_AT_ONCE = 500


def _end_users(*sides: str | None) -> Iterator[tuple[str, str]]:
    """Return workspace and reference_id of each end user that the sides of an event hold, once each."""
    found = set()
    for side in sides:
        values = {} if side is None else json.loads(side)
        end_user = (values.get("workspace_id"), values.get("reference_id"))
        if all(isinstance(part, str) for part in end_user):
            found.add(end_user)
    return iter(sorted(found))


def up(_migrator: SchemaMigrator, db: Database) -> None:
    """Create the table and the indexes, and find out about the events that are there."""

    class Event(db.Model):
        event_id = BigAutoField()
        before = TextField(null=True)
        after = TextField(null=True)

        class Meta:
            table_name = "event"

    class EventEndUser(db.Model):
        workspace_id = TextField()
        reference_id = TextField()
        event_id = BigIntegerField(index=True)

        class Meta:
            table_name = "event_end_user"
            primary_key = CompositeKey("workspace_id", "reference_id", "event_id")
            constraints = (
                SQL("CONSTRAINT event_end_user_of_event FOREIGN KEY (event_id) REFERENCES event (event_id)"),
            )

    EventEndUser.create_table(safe=False)
    for name, table, columns in (
        ("event_event_time", "event", '"event_time"'),
        ("connectlink_workspace_id_reference_id", "connect_link", '"workspace_id", "reference_id"'),
        ("connectlink_key_id", "connect_link", '"key_id"'),
        ("connectlink_scoped_key_id", "connect_link", '"scoped_key_id"'),
    ):
        db.execute_sql(f'CREATE INDEX "{name}" ON "{table}" ({columns})')

    after = 0
    while True:
        query = Event.select().where(Event.event_id > after).order_by(Event.event_id).limit(_ROWS_AT_ONCE)
        events = list(query)
        if not events:
            return
        rows = [
            {"workspace_id": workspace_id, "reference_id": reference_id, "event_id": event.event_id}
            for event in events
            for workspace_id, reference_id in _end_users(event.before, event.after)
        ]
        if rows:
            EventEndUser.insert_many(rows).execute()
        after = events[-1].event_id
