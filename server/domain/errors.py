"""The one exception that says no, and the stable names of why."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto


class ErrorReason(Enum):
    """Stable reasons of errors. What each means is documented in `protos/texture/auth/v1/error.proto`."""

    FIELD_INVALID = auto()
    MESSAGE_MALFORMED = auto()
    MESSAGE_TOO_LARGE = auto()
    CALLER_CREDENTIAL_MISSING = auto()
    CALLER_CREDENTIAL_MALFORMED = auto()
    CALLER_CREDENTIAL_UNKNOWN = auto()
    CALLER_CREDENTIAL_RETIRED = auto()
    CALLER_REVOKED = auto()
    CALLER_ROLE_MISSING = auto()
    ACTOR_NOT_FOUND = auto()
    ACTOR_NOT_LIVE = auto()
    ACTOR_PERMISSION_MISSING = auto()
    ACTOR_AUTHORITY_EXCEEDED = auto()
    API_KEY_DENIED = auto()
    REFERENCE_ID_NOT_PERMITTED = auto()
    WORKSPACE_NOT_FOUND = auto()
    KEY_NOT_FOUND = auto()
    DEVICE_NOT_FOUND = auto()
    CONNECT_LINK_NOT_FOUND = auto()
    CALLER_NOT_FOUND = auto()
    REQUEST_REPEATED = auto()
    WORKSPACE_EXISTS = auto()
    CALLER_EXISTS = auto()
    KEY_IS_REVOKED = auto()
    KEY_IS_EXPIRED = auto()
    ROTATION_IN_PROGRESS = auto()
    CONNECT_LINK_COMPLETED = auto()
    CONNECT_LINK_CANCELLED = auto()
    CONNECT_LINK_EXPIRED = auto()
    CONNECT_LINK_KEY_NOT_LIVE = auto()
    REDIRECT_URI_NOT_REGISTERED = auto()
    DEVICE_OWNED_BY_ANOTHER = auto()
    REVISION_NOT_VERIFIABLE = auto()
    CALLER_IS_REVOKED = auto()
    STORE_UNAVAILABLE = auto()
    PEPPER_UNAVAILABLE = auto()
    INTERNAL_FAULT = auto()
    DEADLINE_TOO_SHORT = auto()
    OVERLOADED = auto()
    MATCHES_CHANGED = auto()
    MATCHES_TOO_MANY = auto()
    CALLER_CERTIFICATE_UNKNOWN = auto()
    CERTIFICATE_NAME_TAKEN = auto()
    OUTCOME_UNKNOWN = auto()
    WEBHOOK_ENDPOINT_NOT_FOUND = auto()
    WEBHOOK_ENDPOINTS_TOO_MANY = auto()
    ROTATION_IN_USE = auto()
    ROTATION_NOT_PROVEN = auto()
    CURSOR_EXPIRED = auto()
    CURSOR_NOT_VERIFIABLE = auto()
    SHUTTING_DOWN = auto()


@dataclass(frozen=True, slots=True)
class Violation:
    """A field of a request that is wrong: its path, and what is wrong, without a secret's value."""

    field: str
    description: str


class Refusal(Exception):  # noqa: N818 - a refusal is an answer, not a fault
    """A request that is not carried out, and why. Nothing has changed when one is raised.

    `reason` is stable; the message is for people; `metadata` is for programs; `violations` name the fields
    at fault. None of them ever holds a key, a digest or a token.
    """

    def __init__(
        self,
        reason: ErrorReason,
        message: str,
        *,
        violations: tuple[Violation, ...] = (),
        metadata: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message
        self.violations = violations
        self.metadata = metadata or {}


def invalid(field: str, description: str) -> Refusal:
    """Return the refusal of a request for one field."""
    return Refusal(ErrorReason.FIELD_INVALID, f"{field}: {description}", violations=(Violation(field, description),))
