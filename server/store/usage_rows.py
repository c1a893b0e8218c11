"""What keys were used for, in rows: the part of the store that the reader, the notes and the writer share."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

import peewee
from peewee import fn

from server.domain.reasons import Reason
from server.domain.usage import Bucket, CallerUse, LastUse, Span, Touch, UsageBatch, UsageReport, Use
from server.store import tables
from server.store.contract import MOST_TOUCHES, Cursor, Page
from server.store.fields import InstantField, microseconds
from server.store.statements import portions

T = TypeVar("T")

_INSTANT = InstantField()
# Of which several processes may add to the same row.
_ADD_UP = (
    '"count" = old."count" + excluded."count", '
    '"first_time" = CASE WHEN excluded."first_time" < old."first_time" THEN excluded."first_time" '
    'ELSE old."first_time" END, '
    '"last_time" = CASE WHEN excluded."last_time" > old."last_time" THEN excluded."last_time" ELSE old."last_time" END'
)
_LAST_USE = (
    '"last_time" = CASE WHEN excluded."last_time" > old."last_time" THEN excluded."last_time" '
    'ELSE old."last_time" END, '
    '"devices" = old."devices" + excluded."devices", '
    '"devices_left_out_time" = COALESCE(excluded."devices_left_out_time", old."devices_left_out_time")'
)
_REPORT = ", ".join(
    f'"{name}" = excluded."{name}"' for name in ("sequence", "report_time", "end_time", "uncounted_time")
)


class UsageReading:
    """The queries, in a transaction that is open."""

    _database: peewee.Database

    def list_key_usage(
        self, key_id: str, begin: datetime | None, end: datetime | None, after: Cursor | None, limit: int
    ) -> Page[Use]:
        """List what a key was used for."""
        table = tables.KeyUsage
        order = (table.hour, table.generation, table.retiring, table.caller_id, table.permission, table.reason)
        query = table.select().where(_of_key(key_id, begin, end)).order_by(*order).limit(limit + 1)
        if after is not None:
            query = query.where(peewee.Tuple(*order) > peewee.Tuple(after.position, *json.loads(after.row_id)))
        found = self._asked(query)
        following = None
        if len(found) > limit:
            last = found[limit - 1]
            place = json.dumps([last[field.name] for field in order[1:]])
            following = Cursor(microseconds(last["hour"]), place)
        return Page(tuple(_to_use(row) for row in found[:limit]), following)

    def total_key_usage(self, key_id: str, begin: datetime | None, end: datetime | None) -> Sequence[Use]:
        """Return the same added up."""
        table = tables.KeyUsage
        apart = (table.generation, table.caller_id, table.permission, table.reason)
        query = table.select(*apart, fn.MIN(table.hour).alias("hour"), *_spans(table))
        query = query.where(_of_key(key_id, begin, end)).group_by(*apart)
        return [_to_use({**row, "key_id": key_id, "retiring": 0}) for row in self._asked(query)]

    def usage_of_replaced(self, key_id: str) -> Mapping[int, Sequence[CallerUse]]:
        """Return who has used secrets since they were replaced."""
        table = tables.KeyUsage
        query = (
            table.select(table.generation, table.caller_id, *_spans(table))
            .where((table.key_id == key_id) & (table.retiring == 1))
            .group_by(table.generation, table.caller_id)
        )
        found: dict[int, list[CallerUse]] = defaultdict(list)
        for row in self._asked(query):
            found[row["generation"]].append(CallerUse(row["caller_id"], _to_span(row)))
        return found

    def last_uses(self, key_ids: Collection[str]) -> Mapping[str, LastUse]:
        """Return when keys were last used."""
        table = tables.KeyLastUse
        return {
            row["key_id"]: LastUse(row["last_time"], row["devices_left_out_time"])
            for some in portions(list(key_ids))
            for row in self._asked(table.select().where(table.key_id.in_(some)))
        }

    def list_key_devices(self, key_id: str, after: Cursor | None, limit: int) -> Page[Touch]:
        """List the devices that a key has touched."""
        table = tables.DeviceTouch
        return self._touches(table.select().where(table.key_id == key_id), table.device_id, after, limit)

    def list_device_keys(self, device_id: str, after: Cursor | None, limit: int) -> Page[Touch]:
        """List the keys that have touched a device."""
        table = tables.DeviceTouch
        return self._touches(table.select().where(table.device_id == device_id), table.key_id, after, limit)

    def touches_left_out(self, workspace_id: str) -> bool:
        """Tell whether a key has touched more devices than are remembered."""
        table, key = tables.KeyLastUse, tables.Key
        query = (
            table.select(table.key_id)
            .join(key, on=(table.key_id == key.key_id))
            .where(table.devices_left_out_time.is_null(False) & (key.workspace_id == workspace_id))
        )
        return bool(self._asked(query.limit(1)))

    def usage_reports(self) -> Sequence[UsageReport]:
        """Return how far each process has come."""
        return [UsageReport(**row) for row in self._asked(tables.UsageReport.select())]

    def _touches(self, query: Any, order: peewee.Field, after: Cursor | None, limit: int) -> Page[Touch]:
        if after is not None:
            query = query.where(order > after.row_id)
        found = self._asked(query.order_by(order).limit(limit + 1))
        following = Cursor(0, found[limit - 1][order.name]) if len(found) > limit else None
        touches = (Touch(row["key_id"], row["device_id"], _to_span(row)) for row in found[:limit])
        return Page(tuple(touches), following)

    def _asked(self, query: Any) -> list[dict[str, Any]]:
        return list(query.dicts().execute(self._database))

    def _forget_touches(self, device_ids: Collection[str]) -> None:
        """Forget who has touched devices."""
        table = tables.DeviceTouch
        for some in portions(list(device_ids)):
            table.delete().where(table.device_id.in_(some)).execute(self._database)


class UsageNoting(UsageReading):
    """The changes.

    Statements are put together by hand: there may be tens of thousands of rows a second. Where several processes add at
    once, they do so in the same order, so that none waits for one that waits for it.
    """

    def add_usage(self, batch: UsageBatch) -> None:
        """Add what a process has counted."""
        table, report = tables.UsageReport, batch.report
        stored = self._asked(table.select(table.sequence).where(table.process_id == report.process_id))
        if stored and stored[0]["sequence"] >= report.sequence:
            return
        keys = self._kept(tables.Key.key_id, {bucket.key_id for bucket in batch.uses})
        if keys:
            self._add_uses({bucket: span for bucket, span in batch.uses.items() if bucket.key_id in keys})
            self._add_touches(batch, keys)
        if report.end_time is not None and report.uncounted_time is None:
            table.delete().where(table.process_id == report.process_id).execute(self._database)
            return
        columns = ("process_id", "sequence", "start_time", "report_time", "end_time", "uncounted_time")
        values = (getattr(report, name) for name in columns)
        row = tuple(_INSTANT.db_value(value) if isinstance(value, datetime) else value for value in values)
        self._put(table, columns, 1, [row], _REPORT)

    def prune_usage(self, before: datetime, limit: int) -> int:
        """Forget what is old."""
        usage, touch, report, last = tables.KeyUsage, tables.DeviceTouch, tables.UsageReport, tables.KeyLastUse
        forgotten = self._forget_oldest(usage, usage.hour, before, limit)
        forgotten += self._forget_oldest(touch, touch.last_time, before, limit)
        forgotten += self._forget_oldest(report, report.report_time, before, limit)
        last.update(devices_left_out_time=None).where(last.devices_left_out_time < before).execute(self._database)
        return forgotten

    def _forget_oldest(self, table: Any, time: peewee.Field, before: datetime, limit: int) -> int:
        key = table._meta.get_primary_keys()  # noqa: SLF001 - Peewee's way
        oldest = table.select(*key).where(time < before).order_by(time).limit(limit)
        # The time once more, since a row may be added to before it is deleted.
        deleted: int = table.delete().where(peewee.Tuple(*key).in_(oldest) & (time < before)).execute(self._database)
        return deleted

    def _add_uses(self, uses: Mapping[Bucket, Span]) -> None:
        last: dict[str, int] = {}
        rows = []
        for bucket, span in uses.items():
            first_time, last_time = microseconds(span.first_time), microseconds(span.last_time)
            last[bucket.key_id] = max(last_time, last.get(bucket.key_id, last_time))
            rows.append(
                (
                    bucket.key_id,
                    microseconds(bucket.hour),
                    bucket.generation,
                    int(bucket.retiring),
                    bucket.caller_id,
                    bucket.permission,
                    bucket.reason.name,
                    span.count,
                    first_time,
                    last_time,
                )
            )
        # First: of several processes that add touches of a key, one after the other counts its devices.
        self._put_last_uses([(key_id, time, 0, None) for key_id, time in last.items()])
        columns = ("key_id", "hour", "generation", "retiring", "caller_id", "permission", "reason")
        self._put(tables.KeyUsage, (*columns, "count", "first_time", "last_time"), len(columns), rows, _ADD_UP)

    def _add_touches(self, batch: UsageBatch, keys: Collection[str]) -> None:
        devices = self._kept(tables.Device.device_id, {device_id for _, device_id in batch.touches})
        pairs = sorted(pair for pair in batch.touches if pair[0] in keys and pair[1] in devices)
        known = self._known(pairs)
        fresh: dict[str, list[str]] = defaultdict(list)
        for key_id, device_id in pairs:
            if (key_id, device_id) not in known:
                fresh[key_id].append(device_id)
        room = self._room({key_id: len(new) for key_id, new in fresh.items()})
        kept = known.union(*({(key_id, one) for one in new[: room[key_id]]} for key_id, new in fresh.items()))
        rows = [
            (*pair, span.count, microseconds(span.first_time), microseconds(span.last_time))
            for pair in pairs
            if pair in kept
            for span in (batch.touches[pair],)
        ]
        self._put(tables.DeviceTouch, ("key_id", "device_id", "count", "first_time", "last_time"), 2, rows, _ADD_UP)
        left_out = {key_id: time for key_id, time in batch.left_out.items() if key_id in keys}
        for key_id, new in fresh.items():
            if len(new) > room[key_id]:
                left_out[key_id] = max(batch.touches[key_id, one].last_time for one in new[room[key_id] :])
        added = {key_id: min(len(new), room[key_id]) for key_id, new in fresh.items()}
        self._put_last_uses(
            [
                (key_id, 0, added.get(key_id, 0), _INSTANT.db_value(left_out.get(key_id)))
                for key_id in added.keys() | left_out.keys()
            ]
        )

    def _kept(self, column: peewee.Field, ids: Collection[str]) -> set[str]:
        """Return those that exist, and do until this transaction ends: one that is being deleted is as good as gone."""
        table, name = column.model._meta.table_name, column.name  # noqa: SLF001 - Peewee's way
        locked = "FOR KEY SHARE SKIP LOCKED" if self._database.for_update else ""
        found: set[str] = set()
        for some in portions(sorted(ids)):
            marks = ", ".join([self._database.param] * len(some))
            rows = self._database.execute_sql(
                f'SELECT "{name}" FROM "{table}" WHERE "{name}" IN ({marks}) ORDER BY "{name}" {locked}',  # noqa: S608 - no values
                some,
            ).fetchall()
            found.update(one for (one,) in rows)
        return found

    def _known(self, pairs: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Return which of these keys have touched which of these devices already."""
        place = self._database.param
        found: set[tuple[str, str]] = set()
        for some in portions(pairs):
            values = ", ".join([f"({place}, {place})"] * len(some))
            rows = self._database.execute_sql(
                f'SELECT t."key_id", t."device_id" FROM (VALUES {values}) AS v '  # noqa: S608 - no values
                'JOIN "device_touch" AS t ON t."key_id" = v.column1 AND t."device_id" = v.column2',
                [part for pair in some for part in pair],
            ).fetchall()
            found.update((key_id, device_id) for key_id, device_id in rows)
        return found

    def _room(self, wanted: Mapping[str, int]) -> Mapping[str, int]:
        """Return how many devices more may be kept for keys, at least as many as are wanted where there is room."""
        last, touch = tables.KeyLastUse, tables.DeviceTouch
        room: dict[str, int] = {}
        for some in portions(sorted(wanted)):
            for row in self._asked(last.select(last.key_id, last.devices).where(last.key_id.in_(some))):
                room[row["key_id"]] = MOST_TOUCHES - row["devices"]
        for key_id in [key_id for key_id, number in wanted.items() if room[key_id] < number]:
            # Some may have been forgotten since they were counted.
            kept = touch.select().where(touch.key_id == key_id).count(self._database)
            last.update(devices=kept).where(last.key_id == key_id).execute(self._database)
            room[key_id] = max(0, MOST_TOUCHES - kept)
        return room

    def _put_last_uses(self, rows: list[tuple[Any, ...]]) -> None:
        columns = ("key_id", "last_time", "devices", "devices_left_out_time")
        self._put(tables.KeyLastUse, columns, 1, rows, _LAST_USE)

    def _put(
        self, table: Any, columns: Sequence[str], key_length: int, rows: Sequence[tuple[Any, ...]], update: str
    ) -> None:
        """Insert rows, or update those that are there, whose key are the first columns, in order."""
        names, key = (", ".join(f'"{name}"' for name in some) for some in (columns, columns[:key_length]))
        marks = f"({', '.join([self._database.param] * len(columns))})"
        for some in portions(sorted(rows, key=lambda row: row[:key_length])):
            self._database.execute_sql(
                f'INSERT INTO "{table._meta.table_name}" AS old ({names}) '  # noqa: S608, SLF001 - no values; Peewee's way
                f"VALUES {', '.join([marks] * len(some))} ON CONFLICT ({key}) DO UPDATE SET {update}",
                [value for row in some for value in row],
            )


def _of_key(key_id: str, begin: datetime | None, end: datetime | None) -> Any:
    """Return the condition of being of a key, and of hours from one instant until another."""
    table = tables.KeyUsage
    wanted = table.key_id == key_id
    if begin is not None:
        wanted &= table.hour >= begin
    if end is not None:
        wanted &= table.hour < end
    return wanted


def _spans(table: Any) -> tuple[Any, ...]:
    return (
        fn.SUM(table.count).alias("count"),
        fn.MIN(table.first_time).alias("first_time"),
        fn.MAX(table.last_time).alias("last_time"),
    )


def _to_span(row: Mapping[str, Any]) -> Span:
    return Span(int(row["count"]), row["first_time"], row["last_time"])


def _to_use(row: Mapping[str, Any]) -> Use:
    bucket = Bucket(
        key_id=row["key_id"],
        hour=row["hour"],
        generation=row["generation"],
        retiring=bool(row["retiring"]),
        caller_id=row["caller_id"],
        permission=row["permission"],
        reason=Reason[row["reason"]],
    )
    return Use(bucket, _to_span(row))
