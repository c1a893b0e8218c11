"""What is asked and what comes back, in Python's own types.

The rules behind them are those of `protos/texture/auth/v1/authorize_service.proto`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import Enum
from typing import Any, Self

import grpc


class Outcome(Enum):
    """How a question came out. Only ALLOWED is a yes."""

    # Enum's own is written in Python, and there is one object of each.
    __hash__ = object.__hash__

    ALLOWED = "allowed"
    """The service said ALLOW."""
    DENIED = "denied"
    """The service said DENY; `Decision.reason` says why."""
    UNANSWERED = "unanswered"
    """There was no answer that can be relied on: an error, a time-out, an answer of a kind that is not known. A no."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What the service that the customer called saw of the request.

    Restrictions on networks and the detection of leaked keys depend on it. Empty fields are not known.
    """

    client_ip: str = ""
    """The client's address, IPv4 or IPv6, without port."""
    user_agent: str = ""
    origin: str = ""
    sec_fetch_site: str = ""
    sec_fetch_mode: str = ""
    sec_fetch_dest: str = ""
    sec_fetch_user: str = ""

    @classmethod
    def from_headers(cls, headers: Mapping[str, str], client_ip: str = "") -> Self:
        """Return what the headers of a request say; their names are lower-case."""
        return cls(
            client_ip=client_ip,
            user_agent=headers.get("user-agent", ""),
            origin=headers.get("origin", ""),
            sec_fetch_site=headers.get("sec-fetch-site", ""),
            sec_fetch_mode=headers.get("sec-fetch-mode", ""),
            sec_fetch_dest=headers.get("sec-fetch-dest", ""),
            sec_fetch_user=headers.get("sec-fetch-user", ""),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """May the holder of `api_key` exercise `permission` on `device_id`?"""

    api_key: str = field(repr=False)
    """The key exactly as the customer sent it; empty when none came."""
    permission: str
    """Such as `devices:read`."""
    device_id: str = ""
    """Needed by `devices:read` and `devices:command`, and refused for the rest."""
    context: Context | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthorizedKey:
    """The key that was recognised; nothing of it is secret."""

    key_id: str
    kind: str
    """`SERVER`, `CONNECT` or `SCOPED`."""
    workspace_id: str
    reference_id: str = ""
    """The end user of a scoped key."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceScope:
    """What a list of devices may contain: add it to your own query. A device must match every field that is set."""

    workspace_id: str
    reference_id: str = ""
    manufacturers: tuple[str, ...] = ()

    def admits(self, *, workspace_id: str, reference_id: str, manufacturer: str) -> bool:
        """Tell whether a device may be in the list."""
        return (
            workspace_id == self.workspace_id
            and (not self.reference_id or reference_id == self.reference_id)
            and (not self.manufacturers or manufacturer in self.manufacturers)
        )


@dataclass(frozen=True, kw_only=True)
class Decision:
    """The answer to a question. It is true when the answer is yes, and only then."""

    outcome: Outcome
    reason: str
    """Why, without the prefix of the enum: `PERMITTED`, `KEY_REVOKED`.

    When unanswered: the reason of the error, such as `CALLER_UNKNOWN`, or the name of its gRPC code."""
    http_status_code: int
    """What a public API should answer with: 200, 401, 403, 404, or 503 when unanswered."""
    message: str = ""
    """What it means, in words for people. Holds no secret."""
    missing_permission: str = ""
    key: AuthorizedKey | None = None
    """Set when the whole secret was right, on denials too."""
    device_scope: DeviceScope | None = None
    """With ALLOWED of `devices:list`: what the list may contain."""
    revision: str = ""
    """The state of the service's store that the answer was made from: opaque."""
    valid_for: timedelta | None = None
    """How long until time alone may change the answer; None when it does not. No leave to cache."""
    decision_id: str = ""
    """Names this answer in the service's logs."""
    code: grpc.StatusCode | None = None
    """Of the call, when unanswered because of its error."""

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Return one of its fields, as the constructor does, which for what is frozen takes ten times as long."""
        made = object.__new__(cls)
        vars(made).update(fields)
        return made

    @property
    def allowed(self) -> bool:
        """Whether the answer is yes."""
        return self.outcome is Outcome.ALLOWED

    def __bool__(self) -> bool:
        return self.outcome is Outcome.ALLOWED
