"""Webhooks: where they may go, when a failed one is tried again, and what each holds."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from urllib.parse import SplitResult, urlsplit

from server.domain.events import Event, EventType, Json
from server.domain.model import WebhookDelivery, WebhookDeliveryState, WebhookEndpoint, WebhookSecret
from server.domain.token import holds_token, new_id

MAXIMUM_URL_LENGTH = 2048
MAXIMUM_ENDPOINTS = 20
# How many secrets of an endpoint are in force at most. Signatures travel in a header.
MAXIMUM_SECRETS = 5

SHORTEST_RETRY = timedelta(seconds=5)
LONGEST_RETRY = timedelta(hours=6)
LEAST_PAUSE = timedelta(seconds=1)
LONGEST_RETRY_AFTER = timedelta(hours=24)
GIVE_UP_AFTER = timedelta(days=3)
DISABLE_AFTER = timedelta(days=3)

TEST_TYPE = "webhook.test"
# What an endpoint may be told of: callers of this service are of no workspace.
EVENT_TYPES = frozenset(one.value for one in EventType if not one.value.startswith("caller."))

_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})+")
_NAME = re.compile(r"(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9])?\.)*[a-z](?:[a-z0-9-]{0,61}[a-z0-9])?")
_PORT = re.compile(r"[1-9][0-9]{0,4}")
_HTTPS_PORT = 443
_FIRST_HIGH_PORT, _LAST_PORT = 1024, 65535

# Where IPv6 addresses of the Internet are, less those that stand for an IPv4 address.
_GLOBAL_UNICAST = IPv6Network("2000::/3")
_IN_DISUSE = (IPv6Network("2002::/16"), IPv6Network("2001::/32"))
# By these a network translates to IPv4 (RFC 6052): as good as the address that stands in it.
_TRANSLATED = IPv6Network("64:ff9b::/96")


def is_public(text: str) -> bool:
    """Tell whether an address is one of the Internet; one that stands for an IPv4 address is as good as that."""
    try:
        address = ip_address(text)
    except ValueError:
        return False
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public_v4(address.ipv4_mapped)
        if address in _TRANSLATED:
            return _is_public_v4(IPv4Address(int(address) & 0xFFFF_FFFF))
        return (
            address.scope_id is None
            and address.is_global
            and address in _GLOBAL_UNICAST
            and not any(address in network for network in _IN_DISUSE)
        )
    return _is_public_v4(address)


def _is_public_v4(address: IPv4Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def url_fault(url: str, private_hosts: Collection[str]) -> str | None:
    """Say what is wrong with the URL of an endpoint; None where nothing is.

    Only names that are exempted may turn out to be private; whether others do is found out whenever they are used.
    """
    if not 1 <= len(url) <= MAXIMUM_URL_LENGTH:
        return f"must have 1 to {MAXIMUM_URL_LENGTH} characters"
    if holds_token(url):
        return "holds a key or a link token"
    if _CHARACTERS.fullmatch(url) is None:
        return "has a character that a URL does not have, or has a fragment"
    if not url.startswith("https://"):
        return "must begin with https://"
    try:
        parts = urlsplit(url)
    except ValueError:
        return "is not a URL"
    if "@" in parts.netloc:
        return "must have no user info"
    return _port_fault(parts.netloc) or _host_fault(parts, private_hosts)


def _port_fault(netloc: str) -> str | None:
    host, colon, port = netloc.rpartition(":")
    if not colon or netloc.endswith("]"):
        return None
    good = bool(host) and _PORT.fullmatch(port) is not None
    if good and (int(port) == _HTTPS_PORT or _FIRST_HIGH_PORT <= int(port) <= _LAST_PORT):
        return None
    return f"must have port {_HTTPS_PORT}, or one from {_FIRST_HIGH_PORT} to {_LAST_PORT}"


def _host_fault(parts: SplitResult, private_hosts: Collection[str]) -> str | None:
    host = parts.hostname or ""
    if host in private_hosts:
        return None
    try:
        ip_address(host)
    except ValueError:
        if host not in parts.netloc or _NAME.fullmatch(host) is None or "." not in host:
            return "must have a DNS name in lower case, with a dot in it, or an address"
        return None
    return None if is_public(host) else "must not have an address that is not public"


def new_delivery(webhook_endpoint_id: str, event_id: int | None, event_type: str, now: datetime) -> WebhookDelivery:
    """Return a delivery that is due at once."""
    return WebhookDelivery(
        webhook_delivery_id=f"msg_{new_id()}",
        webhook_endpoint_id=webhook_endpoint_id,
        event_id=event_id,
        event_type=event_type,
        next_attempt_time=now,
        give_up_time=now + GIVE_UP_AFTER,
        create_time=now,
    )


def longest_pause(retries: int) -> timedelta:
    """Return the most that is waited after so many failures, at least one: it doubles with each, up to 6 hours."""
    doubled: int = 2 ** min(retries - 1, 20)
    return min(SHORTEST_RETRY * doubled, LONGEST_RETRY)


def succeeded(delivery: WebhookDelivery, status: int, now: datetime) -> WebhookDelivery:
    """Return a delivery that has arrived."""
    return replace(
        delivery,
        state=WebhookDeliveryState.DELIVERED,
        next_attempt_time=None,
        last_attempt_time=now,
        last_http_status_code=status,
        last_error="",
    )


def failed(
    delivery: WebhookDelivery,
    status: int | None,
    error: str,
    now: datetime,
    *,
    part: float,
    retry_after: timedelta = timedelta(),
    final: bool = False,
) -> WebhookDelivery:
    """Return a delivery whose attempt failed: to be tried again, unless that is `final` or would be too late.

    The pause is a `part`, from 0 to 1, of the longest: many that fail together do not come back together. It is longer
    where the receiver asks for that by `retry_after`. A test is tried once.
    """
    retries = delivery.retries + 1
    pause = max(LEAST_PAUSE, longest_pause(retries) * part, min(retry_after, LONGEST_RETRY_AFTER))
    over = final or delivery.event_id is None or now + pause >= delivery.give_up_time
    return replace(
        delivery,
        state=WebhookDeliveryState.FAILED if over else WebhookDeliveryState.PENDING,
        retries=retries,
        next_attempt_time=None if over else now + pause,
        last_attempt_time=now,
        last_http_status_code=status,
        last_error=error,
    )


def rotate_secrets(endpoint: WebhookEndpoint, new: WebhookSecret, overlap: timedelta, now: datetime) -> WebhookEndpoint:
    """Put a new secret in force. Those before it sign until the overlap ends, and none longer than it would have."""
    ends = now + overlap
    older = [
        replace(secret, retire_time=ends if secret.retire_time is None else min(secret.retire_time, ends))
        for secret in endpoint.secrets
    ]
    kept = [secret for secret in older if not secret.retired(now)][-(MAXIMUM_SECRETS - 1) :]
    return replace(endpoint, secrets=(*kept, new), update_time=now)


def payload_of(event: Event) -> dict[str, Json]:
    """Return what an endpoint is told of an event, under the names that `event.proto` has for it."""
    return {
        "type": event.type.value,
        "timestamp": event.event_time.isoformat(),
        "data": {
            "event_id": str(event.event_id),
            "workspace_id": event.workspace_id or "",
            "subject_id": event.subject_id,
            "caller_id": event.origin.caller_id,
            "on_behalf_of_key_id": event.origin.on_behalf_of_key_id or "",
            "reason": event.origin.reason,
            "request_id": event.origin.request_id,
            "before": _side(event.before),
            "after": _side(event.after),
        },
    }


def trial_payload(endpoint: WebhookEndpoint, now: datetime) -> dict[str, Json]:
    """Return what an endpoint is told of in a test."""
    return {
        "type": TEST_TYPE,
        "timestamp": now.isoformat(),
        "data": {"workspace_id": endpoint.workspace_id, "webhook_endpoint_id": endpoint.webhook_endpoint_id},
    }


def _side(side: Mapping[str, Json] | None) -> dict[str, Json] | None:
    return None if side is None else dict(side)
