"""Every outcome of a decision, with what it means to HTTP and to gRPC: the one table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import auto

from server.domain.members import Members


class Reason(Members):
    """Why a decision is what it is, in the order in which failures are looked for."""

    PERMITTED = auto()
    KEY_MISSING = auto()
    KEY_MALFORMED = auto()
    KEY_UNKNOWN = auto()
    KEY_EXPOSED = auto()
    KEY_REVOKED = auto()
    KEY_SUSPENDED = auto()
    KEY_EXPIRED = auto()
    KEY_RETIRED = auto()
    ADDRESS_NOT_PERMITTED = auto()
    PERMISSION_NOT_GRANTED = auto()
    DEVICE_NOT_FOUND = auto()
    DEVICE_NOT_PERMITTED = auto()
    MANUFACTURER_NOT_PERMITTED = auto()


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a service should answer its own client with.

    `http_status_code` is for public HTTP APIs, `grpc_code` (a name of google.rpc.Code) for gRPC services whose
    client presented the key; `explanation` is a sentence for people.
    """

    http_status_code: int
    grpc_code: str
    explanation: str


OUTCOMES = {
    Reason.PERMITTED: Outcome(200, "OK", "Every check passed."),
    Reason.KEY_MISSING: Outcome(401, "UNAUTHENTICATED", "No key was presented."),
    Reason.KEY_MALFORMED: Outcome(401, "UNAUTHENTICATED", "What was presented is not a key."),
    Reason.KEY_UNKNOWN: Outcome(401, "UNAUTHENTICATED", "There is no such key."),
    Reason.KEY_EXPOSED: Outcome(
        403,
        "PERMISSION_DENIED",
        "A secret key arrived with what browsers and apps send: it has leaked, or a proxy adds it.",
    ),
    Reason.KEY_REVOKED: Outcome(401, "UNAUTHENTICATED", "The key was revoked."),
    Reason.KEY_SUSPENDED: Outcome(401, "UNAUTHENTICATED", "The key is suspended."),
    Reason.KEY_EXPIRED: Outcome(401, "UNAUTHENTICATED", "The key has expired."),
    Reason.KEY_RETIRED: Outcome(
        401, "UNAUTHENTICATED", "The secret was replaced by a rotation; the key's new one works."
    ),
    Reason.ADDRESS_NOT_PERMITTED: Outcome(403, "PERMISSION_DENIED", "The key may not be used from this address."),
    Reason.PERMISSION_NOT_GRANTED: Outcome(403, "PERMISSION_DENIED", "The key does not hold the permission."),
    Reason.DEVICE_NOT_FOUND: Outcome(404, "NOT_FOUND", "There is no such device in the key's workspace."),
    Reason.DEVICE_NOT_PERMITTED: Outcome(403, "PERMISSION_DENIED", "The device is not one of the key's end user."),
    Reason.MANUFACTURER_NOT_PERMITTED: Outcome(
        403, "PERMISSION_DENIED", "The key may not reach devices of this manufacturer."
    ),
}
