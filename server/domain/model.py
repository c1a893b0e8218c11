"""The things that decisions are made from. All frozen; a change makes a new one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import Enum
from ipaddress import IPv4Network, IPv6Network

from server.domain.kinds import Environment, ExposurePolicy, KeyKind, Permission, Role
from server.domain.members import Members

# Fields marked so are left out of events and of `repr`.
SECRET: Mapping[str, bool] = {"secret": True}

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True, kw_only=True)
class Workspace:
    """A customer's workspace. What each field means is documented in `workspace.proto`."""

    workspace_id: str
    display_name: str
    environment: Environment
    redirect_uris: tuple[str, ...]
    exposure_policy: ExposurePolicy
    scoped_key_lifetime: timedelta
    connect_link_lifetime: timedelta
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Generation:
    """One secret of a key, as its digest. In force while it has no `retire_time`."""

    number: int
    pepper_id: str
    digest: bytes = field(repr=False, metadata=SECRET)
    last_four: str
    create_time: datetime
    retire_time: datetime | None = None

    def retired(self, now: datetime) -> bool:
        """Tell whether its overlap is over: it is from `retire_time` on."""
        return self.retire_time is not None and now >= self.retire_time


class KeyState(Members):
    """Where a key stands. EXPIRED is never stored: it is ACTIVE whose time has run out."""

    ACTIVE = "active"
    SUSPENDED = "suspended"
    REVOKED = "revoked"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A customer's key without its secret. What each field means is documented in `key.proto`."""

    key_id: str
    workspace_id: str
    kind: KeyKind
    state: KeyState = KeyState.ACTIVE
    display_name: str
    description: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    permissions: frozenset[Permission]
    allowed_networks: tuple[Network, ...] = ()
    allowed_manufacturers: frozenset[str] = frozenset()
    redirect_uris: tuple[str, ...] = ()
    reference_id: str | None = None
    connect_link_id: str | None = None
    expire_time: datetime | None = None
    generations: tuple[Generation, ...]
    create_time: datetime
    update_time: datetime
    suspend_time: datetime | None = None
    revoke_time: datetime | None = None
    expose_time: datetime | None = None
    state_reason: str = ""
    created_by_caller_id: str
    created_by_key_id: str | None = None

    def state_at(self, now: datetime) -> KeyState:
        """Return the state with time taken into account: expired from `expire_time` on."""
        if self.state is KeyState.ACTIVE and self.expire_time is not None and now >= self.expire_time:
            return KeyState.EXPIRED
        return self.state


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """An energy device and its owner. What each field means is documented in `device.proto`."""

    device_id: str
    workspace_id: str
    reference_id: str
    manufacturer: str
    create_time: datetime
    update_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectLink:
    """An invitation to connect devices, without its token. See `connect_link.proto`."""

    connect_link_id: str
    workspace_id: str
    key_id: str
    reference_id: str
    redirect_uri: str
    client_state: str
    pepper_id: str
    digest: bytes = field(repr=False, metadata=SECRET)
    create_time: datetime
    expire_time: datetime
    complete_time: datetime | None = None
    cancel_time: datetime | None = None
    scoped_key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """An internal service or operator that may call this service. See `caller.proto`."""

    caller_id: str
    display_name: str
    roles: frozenset[Role]
    certificate_names: frozenset[str] = frozenset()
    key_id: str
    generations: tuple[Generation, ...]
    create_time: datetime
    update_time: datetime
    revoke_time: datetime | None = None
    revoke_reason: str = ""


class WebhookEndpointState(Enum):
    """Whether anything is sent to an endpoint."""

    ACTIVE = "active"
    DISABLED = "disabled"


class WebhookDisableReason(Enum):
    """Why nothing is sent to an endpoint any more. See `webhook.proto`."""

    REQUESTED = "requested"
    GONE = "gone"
    FAILING = "failing"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookSecret:
    """One signing secret of an endpoint, encrypted under a pepper. It signs while it is not retired."""

    number: int
    pepper_id: str
    sealed: bytes = field(repr=False, metadata=SECRET)
    create_time: datetime
    retire_time: datetime | None = None

    def retired(self, now: datetime) -> bool:
        """Tell whether its overlap is over: it is from `retire_time` on."""
        return self.retire_time is not None and now >= self.retire_time


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookEndpoint:
    """Where a workspace is told of its events. What each field means is documented in `webhook.proto`."""

    webhook_endpoint_id: str
    workspace_id: str
    url: str
    description: str = ""
    event_types: frozenset[str] = frozenset()
    state: WebhookEndpointState = WebhookEndpointState.ACTIVE
    disable_reason: WebhookDisableReason | None = None
    secrets: tuple[WebhookSecret, ...]
    create_time: datetime
    update_time: datetime


class WebhookDeliveryState(Enum):
    """Where a delivery stands. See `webhook.proto`."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookDelivery:
    """One message to one endpoint, and what became of it. What each field means is documented in `webhook.proto`.

    `retries` counts the failures since it was made or replayed last, and `give_up_time` is when that ends. A delivery
    without an event is a test.
    """

    webhook_delivery_id: str
    webhook_endpoint_id: str
    event_id: int | None
    event_type: str
    state: WebhookDeliveryState = WebhookDeliveryState.PENDING
    attempts: int = 0
    retries: int = 0
    next_attempt_time: datetime | None
    give_up_time: datetime
    last_attempt_time: datetime | None = None
    last_http_status_code: int | None = None
    last_error: str = ""
    create_time: datetime
