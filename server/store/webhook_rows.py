"""Webhook endpoints and deliveries: the part of the store on Peewee that is about them.

Whoever locks more than one row of an endpoint locks its progress first, then deliveries, then the endpoint itself, so
that nobody waits in a circle; or waits for none of them, and passes over those that others have locked.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from itertools import groupby
from typing import Any

import peewee
from peewee import fn

from server.domain.events import Event
from server.domain.model import (
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookDisableReason,
    WebhookEndpoint,
    WebhookEndpointState,
    WebhookSecret,
)
from server.domain.webhooks import new_delivery
from server.store import tables
from server.store.contract import Cursor, Duplicate, EventFilter, Page, WebhookOutcome, WebhookReplay, WebhookStanding
from server.store.fields import instant
from server.store.statements import storable, update

_PENDING = WebhookDeliveryState.PENDING.value
_FAILED = WebhookDeliveryState.FAILED.value
_ACTIVE = WebhookEndpointState.ACTIVE.value
# The kind that the change log knows endpoints by.
_KIND = "webhook_endpoint"


def secrets_in_force(now: datetime) -> Any:
    """Return the query of the secrets that are not retired."""
    table = tables.WebhookSecret
    return table.select(table.pepper_id).where(table.retire_time.is_null() | (table.retire_time > now))


def endpoint_row(endpoint: WebhookEndpoint) -> dict[str, Any]:
    """Return the columns of an endpoint; its secrets are rows of their own."""
    return {
        "webhook_endpoint_id": endpoint.webhook_endpoint_id,
        "workspace_id": endpoint.workspace_id,
        "url": endpoint.url,
        "description": endpoint.description,
        "event_types": sorted(endpoint.event_types),
        "state": endpoint.state.value,
        "disable_reason": None if endpoint.disable_reason is None else endpoint.disable_reason.value,
        "create_time": endpoint.create_time,
        "update_time": endpoint.update_time,
    }


def to_endpoint(row: Mapping[str, Any], secrets: Iterable[Mapping[str, Any]]) -> WebhookEndpoint:
    """Return the endpoint of a row."""
    reason = row["disable_reason"]
    return WebhookEndpoint(
        webhook_endpoint_id=row["webhook_endpoint_id"],
        workspace_id=row["workspace_id"],
        url=row["url"],
        description=row["description"],
        event_types=frozenset(row["event_types"]),
        state=WebhookEndpointState(row["state"]),
        disable_reason=None if reason is None else WebhookDisableReason(reason),
        secrets=tuple(
            WebhookSecret(
                number=secret["number"],
                pepper_id=secret["pepper_id"],
                sealed=bytes(secret["sealed"]),
                create_time=secret["create_time"],
                retire_time=secret["retire_time"],
            )
            for secret in secrets
        ),
        create_time=row["create_time"],
        update_time=row["update_time"],
    )


def delivery_row(delivery: WebhookDelivery) -> dict[str, Any]:
    """Return the columns of a delivery, its place in the log left to the database."""
    return {
        "webhook_delivery_id": delivery.webhook_delivery_id,
        "webhook_endpoint_id": delivery.webhook_endpoint_id,
        "event_id": delivery.event_id,
        "event_type": delivery.event_type,
        "state": delivery.state.value,
        "attempts": delivery.attempts,
        "retries": delivery.retries,
        "next_attempt_time": delivery.next_attempt_time,
        "give_up_time": delivery.give_up_time,
        "last_attempt_time": delivery.last_attempt_time,
        "last_http_status_code": delivery.last_http_status_code,
        "last_error": delivery.last_error,
        "create_time": delivery.create_time,
    }


def to_delivery(row: Mapping[str, Any]) -> WebhookDelivery:
    """Return the delivery of a row."""
    values = {name: value for name, value in row.items() if name != "number"}
    return WebhookDelivery(**(values | {"state": WebhookDeliveryState(row["state"])}))


class WebhookReading:
    """What a snapshot tells of them. The names that it leaves open are those of the class that it is a part of."""

    _database: peewee.Database
    _rows: Callable[[Any], list[dict[str, Any]]]
    _first: Callable[[Any], dict[str, Any] | None]
    _by_id: Callable[[Any, peewee.Field, str], dict[str, Any] | None]
    _page: Callable[..., Page[Any]]
    events_after: Callable[[int, EventFilter, int], Sequence[Event]]

    def webhook_endpoint(self, webhook_endpoint_id: str) -> WebhookEndpoint | None:
        """Return an endpoint."""
        table = tables.WebhookEndpoint
        row = self._by_id(table, table.webhook_endpoint_id, webhook_endpoint_id)
        return None if row is None else self._to_endpoints([row])[0]

    def list_webhook_endpoints(self, workspace_id: str, after: Cursor | None, limit: int) -> Page[WebhookEndpoint]:
        """List the endpoints of a workspace."""
        table = tables.WebhookEndpoint
        query = table.select().where(table.workspace_id == workspace_id)
        return self._page(query, (table.create_revision, table.webhook_endpoint_id), after, limit, self._to_endpoints)

    def webhook_endpoints_under(self, pepper_ids: Collection[str], limit: int) -> Sequence[WebhookEndpoint]:
        """Return endpoints with a secret under one of these peppers."""
        table, secret = tables.WebhookEndpoint, tables.WebhookSecret
        holders = secret.select(secret.webhook_endpoint_id).where(secret.pepper_id.in_(list(pepper_ids)))
        query = table.select().where(table.webhook_endpoint_id.in_(holders)).order_by(table.webhook_endpoint_id)
        return self._to_endpoints(self._rows(query.limit(limit)))

    def webhook_standings(self) -> Sequence[WebhookStanding]:
        """Return how far each active endpoint has come."""
        table, progress, event, delivery = (
            tables.WebhookEndpoint,
            tables.WebhookProgress,
            tables.Event,
            tables.WebhookDelivery,
        )
        newest = event.select(fn.MAX(event.event_id)).where(event.workspace_id == table.workspace_id)
        due = delivery.select(fn.MIN(delivery.next_attempt_time)).where(
            (delivery.webhook_endpoint_id == table.webhook_endpoint_id) & (delivery.state == _PENDING)
        )
        query = (
            table.select(
                table.webhook_endpoint_id,
                progress.event_id,
                progress.failing_since,
                newest.alias("newest"),
                due.alias("due"),
            )
            .join(progress, on=(progress.webhook_endpoint_id == table.webhook_endpoint_id))
            .where(table.state == _ACTIVE)
            .order_by(table.webhook_endpoint_id)
        )
        return [
            WebhookStanding(
                webhook_endpoint_id=row["webhook_endpoint_id"],
                behind=row["newest"] is not None and row["newest"] > row["event_id"],
                next_attempt_time=None if row["due"] is None else instant(row["due"]),
                failing_since=row["failing_since"],
            )
            for row in self._rows(query)
        ]

    def webhook_delivery(self, webhook_delivery_id: str) -> WebhookDelivery | None:
        """Return a delivery."""
        table = tables.WebhookDelivery
        row = self._by_id(table, table.webhook_delivery_id, webhook_delivery_id)
        return None if row is None else to_delivery(row)

    def list_webhook_deliveries(
        self, webhook_endpoint_id: str, state: WebhookDeliveryState | None, after: Cursor | None, limit: int
    ) -> Page[WebhookDelivery]:
        """List the deliveries of an endpoint, newest first."""
        table = tables.WebhookDelivery
        query = table.select().where(table.webhook_endpoint_id == webhook_endpoint_id)
        if state is not None:
            query = query.where(table.state == state.value)
        if after is not None:
            query = query.where(table.number < after.position)
        found = self._rows(query.order_by(table.number.desc()).limit(limit + 1))
        shown = found[:limit]
        following = Cursor(shown[-1]["number"], "") if len(found) > limit else None
        return Page(tuple(to_delivery(row) for row in shown), following)

    def _to_endpoints(self, found: list[dict[str, Any]]) -> list[WebhookEndpoint]:
        table = tables.WebhookSecret
        secrets: dict[str, list[dict[str, Any]]] = defaultdict(list)
        if found:
            ids = [row["webhook_endpoint_id"] for row in found]
            query = table.select().where(table.webhook_endpoint_id.in_(ids)).order_by(table.number)
            for row in self._rows(query):
                secrets[row["webhook_endpoint_id"]].append(row)
        return [to_endpoint(row, secrets[row["webhook_endpoint_id"]]) for row in found]


class WebhookWriting(WebhookReading):
    """The changes that go with facts."""

    _touch: Callable[[str, str], None]
    _add: Callable[[Any, dict[str, Any]], None]
    _insert: Callable[[Any, list[dict[str, Any]]], None]
    _replace: Callable[[Any, peewee.Field, dict[str, Any]], None]

    def add_webhook_endpoint(self, endpoint: WebhookEndpoint) -> None:
        """Insert an endpoint."""
        if self.webhook_endpoint(endpoint.webhook_endpoint_id) is not None:
            raise Duplicate
        self._touch(_KIND, endpoint.webhook_endpoint_id)
        self._add(tables.WebhookEndpoint, endpoint_row(endpoint))
        self._put_secrets(endpoint)
        newest = self._first(tables.Event.select(fn.MAX(tables.Event.event_id).alias("newest")))
        begin = {"event_id": (newest or {}).get("newest") or 0, "failing_since": None}
        self._insert(tables.WebhookProgress, [{"webhook_endpoint_id": endpoint.webhook_endpoint_id, **begin}])

    def replace_webhook_endpoint(self, endpoint: WebhookEndpoint) -> None:
        """Store the new state of an endpoint."""
        self._touch(_KIND, endpoint.webhook_endpoint_id)
        table, progress = tables.WebhookEndpoint, tables.WebhookProgress
        was = self._by_id(table, table.webhook_endpoint_id, endpoint.webhook_endpoint_id)
        as_it_was = was is not None and (was["state"], was["url"]) == (_ACTIVE, endpoint.url)
        if endpoint.state is WebhookEndpointState.ACTIVE and not as_it_was:
            progress.update(failing_since=None).where(
                progress.webhook_endpoint_id == endpoint.webhook_endpoint_id
            ).execute(self._database)
        self._replace(table, table.webhook_endpoint_id, endpoint_row(endpoint))
        self._put_secrets(endpoint)

    def remove_webhook_endpoint(self, webhook_endpoint_id: str) -> None:
        """Delete an endpoint."""
        self._touch(_KIND, webhook_endpoint_id)
        for table in (tables.WebhookProgress, tables.WebhookDelivery, tables.WebhookSecret, tables.WebhookEndpoint):
            table.delete().where(table.webhook_endpoint_id == webhook_endpoint_id).execute(self._database)

    def add_webhook_delivery(self, delivery: WebhookDelivery) -> None:
        """Insert a delivery."""
        self._touch(_KIND, delivery.webhook_endpoint_id)
        self._insert(tables.WebhookDelivery, [delivery_row(delivery)])

    def replay_webhook_deliveries(
        self, wanted: WebhookReplay, now: datetime, give_up_time: datetime, limit: int
    ) -> int:
        """Make deliveries pending again."""
        table = tables.WebhookDelivery
        chosen = table.webhook_endpoint_id == wanted.webhook_endpoint_id
        if wanted.failed_since is not None:
            chosen &= (table.state == _FAILED) & (table.create_time >= wanted.failed_since)
        else:
            chosen &= (table.state != _PENDING) & table.webhook_delivery_id.in_(storable(wanted.webhook_delivery_ids))
        some = table.select(table.number).where(chosen).order_by(table.number).limit(limit)
        count: int = (
            table.update(state=_PENDING, retries=0, next_attempt_time=now, give_up_time=give_up_time)
            .where(table.number.in_(some))
            .execute(self._database)
        )
        if count:
            self._touch(_KIND, wanted.webhook_endpoint_id)
        return count

    def _put_secrets(self, endpoint: WebhookEndpoint) -> None:
        table = tables.WebhookSecret
        table.delete().where(table.webhook_endpoint_id == endpoint.webhook_endpoint_id).execute(self._database)
        self._insert(
            table,
            [
                {
                    "webhook_endpoint_id": endpoint.webhook_endpoint_id,
                    "number": secret.number,
                    "pepper_id": secret.pepper_id,
                    "sealed": secret.sealed,
                    "create_time": secret.create_time,
                    "retire_time": secret.retire_time,
                }
                for secret in endpoint.secrets
            ],
        )


class WebhookNoting(WebhookReading):
    """What is noted while they are sent."""

    def make_webhook_deliveries(self, webhook_endpoint_id: str, now: datetime, limit: int) -> bool:
        """Make deliveries of events."""
        progress, delivery = tables.WebhookProgress, tables.WebhookDelivery
        mine = progress.webhook_endpoint_id == webhook_endpoint_id
        row = self._first(self._locking(progress.select().where(mine)))
        endpoint = self.webhook_endpoint(webhook_endpoint_id)
        if endpoint is None or endpoint.state is not WebhookEndpointState.ACTIVE:
            return False
        if row is None:
            # Whoever has it may be about something else, and make none.
            return True
        # Of all types, so that those that are passed over are not looked at again.
        wanted = EventFilter(workspace_id=endpoint.workspace_id)
        events = self.events_after(row["event_id"], wanted, limit)
        if not events:
            return False
        new = [
            delivery_row(new_delivery(webhook_endpoint_id, event.event_id, event.type.value, now))
            for event in events
            if not endpoint.event_types or event.type.value in endpoint.event_types
        ]
        if new:
            delivery.insert_many(new).execute(self._database)
        progress.update(event_id=events[-1].event_id).where(mine).execute(self._database)
        return bool(self.events_after(events[-1].event_id or 0, wanted, 1))

    def claim_webhook_deliveries(
        self, webhook_endpoint_id: str, now: datetime, until: datetime, limit: int
    ) -> Sequence[WebhookDelivery]:
        """Take deliveries that are due."""
        table = tables.WebhookDelivery
        due = (table.state == _PENDING) & (table.next_attempt_time <= now)
        some = (
            table.select(table.number)
            .where((table.webhook_endpoint_id == webhook_endpoint_id) & due)
            .order_by(table.next_attempt_time, table.number)
            .limit(limit)
        )
        numbers = [row["number"] for row in self._rows(self._locking(some))]
        if not numbers:
            return []
        table.update(next_attempt_time=until, attempts=table.attempts + 1).where(table.number.in_(numbers)).execute(
            self._database
        )
        claimed = self._rows(table.select().where(table.number.in_(numbers)).order_by(table.number))
        return [to_delivery(row) for row in claimed]

    def note_webhook_outcomes(self, webhook_endpoint_id: str, outcomes: Sequence[WebhookOutcome]) -> int:
        """Store what became of attempts."""
        progress = tables.WebhookProgress
        mine = progress.select().where(progress.webhook_endpoint_id == webhook_endpoint_id)
        self._rows(self._locking(mine, patient=True))
        self._note_failing(webhook_endpoint_id, outcomes)
        table, key = tables.WebhookDelivery, "webhook_delivery_id"
        return sum(
            update(
                self._database,
                table,
                key,
                delivery_row(outcome.delivery),
                where={"state": _PENDING, "attempts": outcome.delivery.attempts},
            )
            for outcome in outcomes
        )

    def _note_failing(self, webhook_endpoint_id: str, outcomes: Sequence[WebhookOutcome]) -> None:
        progress = tables.WebhookProgress
        mine = progress.webhook_endpoint_id == webhook_endpoint_id
        told = [outcome.delivery for outcome in outcomes if outcome.told]
        # Of those of a kind that come one after another the first says all.
        for arrived, alike in groupby(told, lambda delivery: delivery.state is WebhookDeliveryState.DELIVERED):
            since = None if arrived else next(alike).last_attempt_time
            changes = progress.failing_since.is_null(not arrived)
            progress.update(failing_since=since).where(mine & changes).execute(self._database)

    def prune_webhook_deliveries(self, before: datetime, limit: int) -> int:
        """Delete old deliveries."""
        table = tables.WebhookDelivery
        ended = table.state.in_([WebhookDeliveryState.DELIVERED.value, _FAILED])
        some = table.select(table.number).where(ended & (table.create_time < before)).limit(limit)
        # Those that somebody makes pending meanwhile must stay.
        numbers = [row["number"] for row in self._rows(self._locking(some))]
        if numbers:
            table.delete().where(table.number.in_(numbers)).execute(self._database)
        return len(numbers)

    def _locking(self, query: Any, *, patient: bool = False) -> Any:
        """Return a query that locks its rows, where rows have locks; it waits for what others have, or passes over."""
        how = "FOR UPDATE" if patient else "FOR UPDATE SKIP LOCKED"
        return query.for_update(how) if self._database.for_update else query
