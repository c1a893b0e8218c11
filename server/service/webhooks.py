"""Where workspaces are told of their events, and what became of what they were told."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from server.domain.errors import ErrorReason, Refusal
from server.domain.events import EventType, describe
from server.domain.kinds import Permission
from server.domain.lifecycle import MAXIMUM_OVERLAP
from server.domain.model import (
    WebhookDelivery,
    WebhookDeliveryState,
    WebhookDisableReason,
    WebhookEndpoint,
    WebhookEndpointState,
    WebhookSecret,
)
from server.domain.peppers import Peppers
from server.domain.token import new_id
from server.domain.validation import BATCH, DESCRIPTION_LENGTH, Fields
from server.domain.webhooks import (
    EVENT_TYPES,
    GIVE_UP_AFTER,
    MAXIMUM_ENDPOINTS,
    TEST_TYPE,
    new_delivery,
    rotate_secrets,
    url_fault,
)
from server.service.base import Call, Issued, Listing, Mutation, Resources, actor_of, repeated, require_workspace
from server.service.rehashing import left_behind
from server.service.sealing import CannotUnseal, new_secret, seal, shown, unseal
from server.store.contract import Reader, WebhookReplay, Writer

MAXIMUM_EVENT_TYPES = 64
# How many endpoints one transaction moves to another pepper, so that no writer waits long for it.
RESEALED_AT_ONCE = 200
RESEAL_SECONDS = 10.0
UPDATABLE = ("url", "description", "event_types", "state")


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookFields:
    """What a caller says an endpoint should be, as it was said; a state that is None was not."""

    url: str = ""
    description: str = ""
    event_types: Sequence[str] = ()
    state: WebhookEndpointState | None = None


class WebhookService:
    """Creates, finds, changes and deletes endpoints, and has deliveries tried again.

    `private_hosts` are names that may lead to private addresses.
    """

    def __init__(self, resources: Resources, private_hosts: Collection[str]) -> None:
        self._resources = resources
        self._private_hosts = private_hosts

    def create_endpoint(self, call: Call, workspace_id: str, given: WebhookFields) -> Mutation[Issued[WebhookEndpoint]]:
        """Create an endpoint with its first secret.

        Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND, WEBHOOK_ENDPOINTS_TOO_MANY, REQUEST_REPEATED, ACTOR_*.
        """
        fields = Fields()
        call.check(fields)
        fields.required("workspace_id", workspace_id)
        values = self._checked(fields, "", given, ("url", "description", "event_types"))
        fields.refuse_if_invalid()
        secret = new_secret()

        def work(writer: Writer, now: datetime) -> Issued[WebhookEndpoint]:
            require_workspace(writer, workspace_id)
            actor_of(writer, call, workspace_id, Permission.WORKSPACE_CONFIGURE, now)
            if len(writer.list_webhook_endpoints(workspace_id, None, MAXIMUM_ENDPOINTS).rows) >= MAXIMUM_ENDPOINTS:
                raise Refusal(
                    ErrorReason.WEBHOOK_ENDPOINTS_TOO_MANY,
                    f"the workspace has {MAXIMUM_ENDPOINTS} webhook endpoints, as many as it may",
                    metadata={"maximum": str(MAXIMUM_ENDPOINTS)},
                )
            webhook_endpoint_id = new_id()
            endpoint = WebhookEndpoint(
                webhook_endpoint_id=webhook_endpoint_id,
                workspace_id=workspace_id,
                secrets=(_sealed(self._resources.peppers, secret, webhook_endpoint_id, 1, now),),
                create_time=now,
                update_time=now,
                **values,
            )
            # In this order: an endpoint is not told of itself.
            writer.record([describe(EventType.WEBHOOK_ENDPOINT_CREATED, call.origin, None, endpoint, now)])
            writer.add_webhook_endpoint(endpoint)
            return Issued(endpoint, shown(secret))

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again)

    def get_endpoint(self, webhook_endpoint_id: str) -> WebhookEndpoint:
        """Return an endpoint. Raises Refusal (WEBHOOK_ENDPOINT_NOT_FOUND)."""
        with self._resources.store.read() as reader:
            return _require(reader, webhook_endpoint_id)

    def list_endpoints(self, workspace_id: str, page_size: int, page_token: str) -> Listing[WebhookEndpoint]:
        """List the endpoints of a workspace. Raises Refusal: FIELD_INVALID, WORKSPACE_NOT_FOUND."""
        fields = Fields()
        fields.required("workspace_id", workspace_id)
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens, scope = self._resources.page_tokens, ("webhook_endpoints", workspace_id)
        after = tokens.decode(page_token, *scope)
        with self._resources.store.read() as reader:
            require_workspace(reader, workspace_id)
            page = reader.list_webhook_endpoints(workspace_id, after, limit)
        return Listing(page.rows, tokens.encode(page.next, *scope))

    def update_endpoint(
        self, call: Call, webhook_endpoint_id: str, given: WebhookFields, paths: Sequence[str]
    ) -> Mutation[WebhookEndpoint]:
        """Change an endpoint. Raises Refusal: FIELD_INVALID, WEBHOOK_ENDPOINT_NOT_FOUND, ACTOR_*."""
        fields = Fields()
        call.check(fields)
        known = fields.mask("update_mask", paths, UPDATABLE)
        values = self._checked(fields, "webhook_endpoint.", given, known)
        fields.refuse_if_invalid()

        def change(before: WebhookEndpoint, _now: datetime) -> WebhookEndpoint:
            if values.get("state") is WebhookEndpointState.DISABLED is before.state:
                # It stays disabled for the reason that it was.
                return replace(before, **{name: value for name, value in values.items() if name != "disable_reason"})
            return replace(before, **values)

        return self._change(call, webhook_endpoint_id, change, EventType.WEBHOOK_ENDPOINT_UPDATED)

    def delete_endpoint(self, call: Call, webhook_endpoint_id: str) -> Mutation[None]:
        """Delete an endpoint. Raises Refusal: FIELD_INVALID, WEBHOOK_ENDPOINT_NOT_FOUND, ACTOR_*."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> None:
            before = self._asked_for(writer, call, webhook_endpoint_id, now)
            writer.remove_webhook_endpoint(webhook_endpoint_id)
            writer.record([describe(EventType.WEBHOOK_ENDPOINT_DELETED, call.origin, before, None, now)])

        return self._resources.carry_out(call, work, lambda _: webhook_endpoint_id, lambda *_: None)

    def rotate_secret(
        self, call: Call, webhook_endpoint_id: str, overlap: timedelta
    ) -> Mutation[Issued[WebhookEndpoint]]:
        """Give an endpoint a new secret.

        Raises Refusal: FIELD_INVALID, WEBHOOK_ENDPOINT_NOT_FOUND, REQUEST_REPEATED, ACTOR_*.
        """
        fields = Fields()
        call.check(fields)
        if not timedelta() <= overlap <= MAXIMUM_OVERLAP:
            fields.fault("overlap", f"must be from 0 to {MAXIMUM_OVERLAP.days} days")
        fields.refuse_if_invalid()
        secret, peppers = new_secret(), self._resources.peppers

        def work(writer: Writer, now: datetime) -> Issued[WebhookEndpoint]:
            before = self._asked_for(writer, call, webhook_endpoint_id, now)
            number = before.secrets[-1].number + 1
            new = _sealed(peppers, secret, webhook_endpoint_id, number, now)
            after = resealed(rotate_secrets(before, new, overlap, now), peppers)
            writer.replace_webhook_endpoint(after)
            writer.record([describe(EventType.WEBHOOK_ENDPOINT_SECRET_ROTATED, call.origin, before, after, now)])
            return Issued(after, shown(secret))

        return self._resources.carry_out(call, work, _id_of_issued, _no_secret_again)

    def list_deliveries(
        self, webhook_endpoint_id: str, state: WebhookDeliveryState | None, page_size: int, page_token: str
    ) -> Listing[WebhookDelivery]:
        """List deliveries, newest first. Raises Refusal: FIELD_INVALID, WEBHOOK_ENDPOINT_NOT_FOUND."""
        fields = Fields()
        fields.required("webhook_endpoint_id", webhook_endpoint_id)
        limit = fields.page_size("page_size", page_size)
        fields.refuse_if_invalid()
        tokens = self._resources.page_tokens
        scope = ("webhook_deliveries", webhook_endpoint_id, None if state is None else state.value)
        after = tokens.decode(page_token, *scope)
        with self._resources.store.read() as reader:
            _require(reader, webhook_endpoint_id)
            page = reader.list_webhook_deliveries(webhook_endpoint_id, state, after, limit)
        return Listing(page.rows, tokens.encode(page.next, *scope))

    def replay_deliveries(self, call: Call, wanted: WebhookReplay) -> Mutation[int]:
        """Have deliveries tried again that ended; return how many, 1,000 at most.

        Raises Refusal: FIELD_INVALID, WEBHOOK_ENDPOINT_NOT_FOUND, ACTOR_*.
        """
        fields = Fields()
        call.check(fields)
        if len(wanted.webhook_delivery_ids) > BATCH:
            fields.fault("webhook_delivery_ids", f"must have at most {BATCH} entries")
        if bool(wanted.webhook_delivery_ids) == (wanted.failed_since is not None):
            fields.fault("webhook_delivery_ids", "must name some, or failed_since be set, and not both")
        fields.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> int:
            self._asked_for(writer, call, wanted.webhook_endpoint_id, now)
            return writer.replay_webhook_deliveries(wanted, now, now + GIVE_UP_AFTER, BATCH)

        return self._resources.carry_out(call, work, lambda _: wanted.webhook_endpoint_id, lambda *_: 0)

    def test_endpoint(self, call: Call, webhook_endpoint_id: str) -> Mutation[WebhookDelivery]:
        """Have a test sent. Raises Refusal: FIELD_INVALID, WEBHOOK_ENDPOINT_NOT_FOUND, ACTOR_*."""
        call.refuse_if_invalid()

        def work(writer: Writer, now: datetime) -> WebhookDelivery:
            self._asked_for(writer, call, webhook_endpoint_id, now)
            delivery = new_delivery(webhook_endpoint_id, None, TEST_TYPE, now)
            writer.add_webhook_delivery(delivery)
            return delivery

        def again(writer: Writer, webhook_delivery_id: str, now: datetime) -> WebhookDelivery:
            delivery = writer.webhook_delivery(webhook_delivery_id)
            return delivery if delivery is not None else work(writer, now)

        return self._resources.carry_out(call, work, lambda delivery: delivery.webhook_delivery_id, again)

    def _asked_for(self, writer: Writer, call: Call, webhook_endpoint_id: str, now: datetime) -> WebhookEndpoint:
        """Return an endpoint that may be changed by whoever asks. Raises Refusal."""
        endpoint = _require(writer, webhook_endpoint_id)
        actor_of(writer, call, endpoint.workspace_id, Permission.WORKSPACE_CONFIGURE, now)
        return endpoint

    def _change(
        self,
        call: Call,
        webhook_endpoint_id: str,
        change: Callable[[WebhookEndpoint, datetime], WebhookEndpoint],
        event_type: EventType,
    ) -> Mutation[WebhookEndpoint]:
        def work(writer: Writer, now: datetime) -> WebhookEndpoint:
            before = self._asked_for(writer, call, webhook_endpoint_id, now)
            after = change(before, now)
            if after == before:
                return before
            after = resealed(replace(after, update_time=now), self._resources.peppers)
            writer.replace_webhook_endpoint(after)
            writer.record([describe(event_type, call.origin, before, after, now)])
            return after

        return self._resources.carry_out(
            call,
            work,
            lambda endpoint: endpoint.webhook_endpoint_id,
            lambda writer, again_id, _now: _require(writer, again_id),
        )

    def _checked(self, fields: Fields, prefix: str, given: WebhookFields, paths: Collection[str]) -> dict[str, Any]:
        """Return the domain's values of the given fields, by attribute, and note what is wrong with them."""
        values: dict[str, Any] = {}
        if "url" in paths:
            fault = url_fault(given.url, self._private_hosts)
            if fault is not None:
                fields.fault(prefix + "url", fault)
            values["url"] = given.url
        if "description" in paths:
            values["description"] = fields.text(prefix + "description", given.description, maximum=DESCRIPTION_LENGTH)
        if "event_types" in paths:
            values["event_types"] = _event_types(fields, prefix + "event_types", given.event_types)
        if "state" in paths:
            if given.state is None:
                fields.fault(prefix + "state", "must be ACTIVE or DISABLED")
            disabled = given.state is WebhookEndpointState.DISABLED
            values["state"] = given.state
            values["disable_reason"] = WebhookDisableReason.REQUESTED if disabled else None
        return values


def open_secrets(endpoint: WebhookEndpoint, peppers: Peppers, now: datetime) -> list[bytes]:
    """Return the secrets of an endpoint that sign now, newest first.

    Raises CannotUnseal; Refusal (PEPPER_UNAVAILABLE).
    """
    return [
        unseal(peppers, secret.pepper_id, secret.sealed, _place(endpoint.webhook_endpoint_id, secret.number))
        for secret in reversed(endpoint.secrets)
        if not secret.retired(now)
    ]


def resealed(endpoint: WebhookEndpoint, peppers: Peppers) -> WebhookEndpoint:
    """Return an endpoint whose secrets are sealed under the pepper that signs, as far as they can be read here."""
    return replace(endpoint, secrets=tuple(_resealed(endpoint, secret, peppers) for secret in endpoint.secrets))


class Resealing:
    """Moves signing secrets to the pepper that signs, so that an old one can be taken away."""

    def __init__(self, resources: Resources) -> None:
        self._resources = resources
        self._leaving: Collection[str] | None = None

    def store(self) -> bool:
        """Move those of a portion of endpoints; tell whether there may be more. Raises StoreUnavailable."""
        if self._leaving is None:
            self._leaving = left_behind(self._resources)
        # Those whose pepper is not here stay as they are, and must not be found again and again.
        here = set(self._leaving) & set(self._resources.peppers.pepper_ids)
        if not here:
            return False
        with self._resources.store.read() as reader:
            if not reader.webhook_endpoints_under(here, 1):
                return False
        with self._resources.store.write() as writer:
            found = writer.webhook_endpoints_under(here, RESEALED_AT_ONCE)
            moved = [after for before in found if (after := resealed(before, self._resources.peppers)) != before]
            for endpoint in moved:
                writer.replace_webhook_endpoint(endpoint)
        return bool(moved) and len(found) == RESEALED_AT_ONCE


def _resealed(endpoint: WebhookEndpoint, secret: WebhookSecret, peppers: Peppers) -> WebhookSecret:
    if secret.pepper_id == peppers.signing_id:
        return secret
    place = _place(endpoint.webhook_endpoint_id, secret.number)
    try:
        opened = unseal(peppers, secret.pepper_id, secret.sealed, place)
    except (CannotUnseal, Refusal):
        return secret
    pepper_id, sealed = seal(peppers, opened, place)
    return replace(secret, pepper_id=pepper_id, sealed=sealed)


def _sealed(peppers: Peppers, secret: bytes, webhook_endpoint_id: str, number: int, now: datetime) -> WebhookSecret:
    pepper_id, sealed = seal(peppers, secret, _place(webhook_endpoint_id, number))
    return WebhookSecret(number=number, pepper_id=pepper_id, sealed=sealed, create_time=now)


def _place(webhook_endpoint_id: str, number: int) -> str:
    return f"{webhook_endpoint_id}/{number}"


def _event_types(fields: Fields, field: str, values: Sequence[str]) -> frozenset[str]:
    if len(values) > MAXIMUM_EVENT_TYPES:
        fields.fault(field, f"must have at most {MAXIMUM_EVENT_TYPES} entries, has {len(values)}")
    for index, value in enumerate(values):
        if value not in EVENT_TYPES:
            fields.fault(f"{field}[{index}]", "is not the type of an event that a workspace has, such as key.revoked")
    return frozenset(values)


def _require(reader: Reader, webhook_endpoint_id: str) -> WebhookEndpoint:
    endpoint = reader.webhook_endpoint(webhook_endpoint_id)
    if endpoint is None:
        raise Refusal(ErrorReason.WEBHOOK_ENDPOINT_NOT_FOUND, "there is no such webhook endpoint")
    return endpoint


def _id_of_issued(issued: Issued[WebhookEndpoint]) -> str:
    return issued.entity.webhook_endpoint_id


def _no_secret_again(_writer: Writer, webhook_endpoint_id: str, _now: datetime) -> Issued[WebhookEndpoint]:
    raise repeated("webhook_endpoint_id", webhook_endpoint_id)
