"""May the holder of this key do this to this device? The answer, as a function of facts and the time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from server.domain.errors import ErrorReason, Refusal, invalid
from server.domain.exposure import Context, Exposure, assess
from server.domain.kinds import CEILING, NEEDS_DEVICE, TOKEN_KIND, KeyKind, Permission
from server.domain.model import Device, Generation, Key, KeyState
from server.domain.peppers import Peppers
from server.domain.reasons import Reason
from server.domain.token import Token, parse


@dataclass(frozen=True, slots=True)
class Presented:
    """What was presented as a key: a well-formed token, or the reason why it is none."""

    token: Token | None
    fault: Reason | None


def present(api_key: str) -> Presented:
    """Look at the form of what a customer sent as a key, whatever it is."""
    if not api_key:
        return Presented(None, Reason.KEY_MISSING)
    token = parse(api_key)
    if token is None or token.kind not in _CUSTOMER_KINDS:
        return Presented(None, Reason.KEY_MALFORMED)
    return Presented(token, None)


@dataclass(frozen=True, slots=True)
class Question:
    """May the holder of this key exercise this permission on this device?

    `device_id` is empty for permissions that are about no device; `ask` makes sure of it.
    """

    presented: Presented
    permission: Permission
    device_id: str
    context: Context


def ask(api_key: str, permission: str, device_id: str, context: Context) -> Question:
    """Make a question of a caller's words.

    Raises Refusal (FIELD_INVALID) for the faults of the calling service: an unknown permission, no device where
    one is needed, a device where none belongs.
    """
    known = _PERMISSIONS.get(permission)
    if known is None:
        raise invalid("permission", f"must be one of {', '.join(_PERMISSIONS)}")
    if known in NEEDS_DEVICE and not device_id:
        raise invalid("device_id", f"is needed for {permission}")
    if known not in NEEDS_DEVICE and device_id:
        raise invalid("device_id", f"{permission} is not about one device; leave it empty")
    return Question(present(api_key), known, device_id, context)


@dataclass(frozen=True, slots=True)
class DeviceScope:
    """The devices that a list may contain: those that match every part that is set."""

    workspace_id: str
    reference_id: str | None
    manufacturers: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """The answer. `key` is set once the whole secret was right, on denials too.

    `exposure` is how sure it is that a server key, whose secret was right, came from where it must not be.
    `valid_until` is the next instant at which time alone may change the answer; None means that it never will.
    """

    reason: Reason
    key: Key | None = None
    generation: Generation | None = None
    missing_permission: Permission | None = None
    device_scope: DeviceScope | None = None
    valid_until: datetime | None = None
    exposure: Exposure = Exposure.NONE

    @property
    def allowed(self) -> bool:
        """Tell whether the answer is yes."""
        return self.reason is Reason.PERMITTED


def find_generation(
    token: Token, generations: tuple[Generation, ...], peppers: Peppers, now: datetime, *, ended: bool = False
) -> Generation | None:
    """Return the generation whose secret this is, compared in constant time; None where it is none of them.

    Raises Refusal (PEPPER_UNAVAILABLE) where none matches and one in force could not be compared: that is not a no.
    For one that is retired, or whose key has `ended` for good, it is, so that a pepper can be taken away once nothing
    in force needs it.
    """
    unavailable = None
    for generation in reversed(generations):
        try:
            if peppers.matches(token.text, generation.pepper_id, generation.digest):
                return generation
        except Refusal as refusal:
            if refusal.reason is not ErrorReason.PEPPER_UNAVAILABLE:  # pragma: no cover - it raises no other
                raise
            if not ended and not generation.retired(now):
                unavailable = refusal
    if unavailable is not None:
        raise unavailable
    return None


def decide(question: Question, key: Key | None, device: Device | None, peppers: Peppers, now: datetime) -> Decision:
    """Answer a question from facts: the key that its token names and the device that it names, None where absent.

    The steps are taken in the order of `STEPS`, and the first that fails decides. Raises Refusal
    (PEPPER_UNAVAILABLE) where the secret cannot be compared.
    """
    evaluation = Evaluation(question, key, device, peppers, now)
    for _, step in STEPS:
        reason = step(evaluation)
        if reason is not None:
            return evaluation.decision(reason)
    return evaluation.decision(Reason.PERMITTED)


def standing(key: Key, permission: Permission, now: datetime) -> Reason | None:
    """Return why a key, by itself and whoever presents it, may not exercise a permission; None where it may."""
    state = key.state_at(now)
    if state is not KeyState.ACTIVE:
        return NOT_LIVE[state]
    return None if holds(key, permission) else Reason.PERMISSION_NOT_GRANTED


def holds(key: Key, permission: Permission) -> bool:
    """Tell whether a permission was granted to a key, and is one that its kind may ever hold."""
    return permission in key.permissions and permission in CEILING[key.kind]


class Evaluation:
    """A decision in the making: what is known, and what the steps so far have found out."""

    __slots__ = ("device", "generation", "key", "now", "peppers", "question", "valid_until", "weight")

    def __init__(
        self, question: Question, key: Key | None, device: Device | None, peppers: Peppers, now: datetime
    ) -> None:
        self.question = question
        self.key = key
        self.device = device
        self.peppers = peppers
        self.now = now
        self.generation: Generation | None = None
        self.valid_until: datetime | None = None
        self.weight = Exposure.NONE

    def form(self) -> Reason | None:
        """Check that what was presented is a key at all."""
        return self.question.presented.fault

    def secret(self) -> Reason | None:
        """Check that the key is known and the whole secret right: one answer for either failure."""
        token = self.question.presented.token
        if token is None or self.key is None or TOKEN_KIND[self.key.kind] is not token.kind:
            return Reason.KEY_UNKNOWN
        ended = self.key.state is KeyState.REVOKED
        self.generation = find_generation(token, self.key.generations, self.peppers, self.now, ended=ended)
        return Reason.KEY_UNKNOWN if self.generation is None else None

    def exposure(self) -> Reason | None:
        """Check that a secret key does not come from a browser; a leak whatever the rest would say."""
        if self.known.kind is KeyKind.SERVER:
            self.weight = assess(self.question.context)
        return Reason.KEY_EXPOSED if self.weight >= Exposure.UNCLEAR else None

    def liveness(self) -> Reason | None:
        """Check that the key, and this secret of it, are in force."""
        key = self.known
        state = key.state_at(self.now)
        if state is not KeyState.ACTIVE:
            return NOT_LIVE[state]
        self.valid_until = key.expire_time
        if self.generation is not None and self.generation.retire_time is not None:
            if self.generation.retired(self.now):
                return Reason.KEY_RETIRED
            self.valid_until = min(filter(None, (key.expire_time, self.generation.retire_time)))
        return None

    def address(self) -> Reason | None:
        """Check where the key is used. A restricted key is denied where the address is unknown."""
        networks = self.known.allowed_networks
        if not networks:
            return None
        client = self.question.context.client_ip
        if client is None or not any(client in network for network in networks):
            return Reason.ADDRESS_NOT_PERMITTED
        return None

    def permission(self) -> Reason | None:
        """Check the permission against the kind's ceiling and against what was granted."""
        return None if holds(self.known, self.question.permission) else Reason.PERMISSION_NOT_GRANTED

    def ownership(self) -> Reason | None:
        """Check that the device is the key's to reach. A scoped key learns nothing about others' devices."""
        if self.question.permission not in NEEDS_DEVICE:
            return None
        key, device = self.known, self.device
        mine = device is not None and device.workspace_id == key.workspace_id
        if key.kind is KeyKind.SCOPED:
            mine = mine and device is not None and device.reference_id == key.reference_id
            return None if mine else Reason.DEVICE_NOT_PERMITTED
        return None if mine else Reason.DEVICE_NOT_FOUND

    def manufacturer(self) -> Reason | None:
        """Check the device's maker against the key's restriction."""
        allowed = self.known.allowed_manufacturers
        if self.device is None or self.question.permission not in NEEDS_DEVICE or not allowed:
            return None
        return None if self.device.manufacturer in allowed else Reason.MANUFACTURER_NOT_PERMITTED

    @property
    def known(self) -> Key:
        """The key, for the steps after `secret`, which has made sure of it."""
        if self.key is None:  # pragma: no cover - no step runs after a failed one
            raise AssertionError
        return self.key

    def decision(self, reason: Reason) -> Decision:
        """Put the answer together."""
        if self.generation is None:
            return Decision(reason=reason)
        key = self.known
        scope = None
        if reason is Reason.PERMITTED and self.question.permission is Permission.DEVICES_LIST:
            scope = DeviceScope(key.workspace_id, key.reference_id, key.allowed_manufacturers)
        return Decision(
            reason=reason,
            key=key,
            generation=self.generation,
            missing_permission=(self.question.permission if reason is Reason.PERMISSION_NOT_GRANTED else None),
            device_scope=scope,
            valid_until=self.valid_until,
            exposure=self.weight,
        )


STEPS: tuple[tuple[str, Callable[[Evaluation], Reason | None]], ...] = (
    ("form", Evaluation.form),
    ("secret", Evaluation.secret),
    ("exposure", Evaluation.exposure),
    ("liveness", Evaluation.liveness),
    ("address", Evaluation.address),
    ("permission", Evaluation.permission),
    ("ownership", Evaluation.ownership),
    ("manufacturer", Evaluation.manufacturer),
)

_PERMISSIONS = {permission.value: permission for permission in Permission}
_CUSTOMER_KINDS = frozenset(TOKEN_KIND.values())
NOT_LIVE = {
    KeyState.REVOKED: Reason.KEY_REVOKED,
    KeyState.SUSPENDED: Reason.KEY_SUSPENDED,
    KeyState.EXPIRED: Reason.KEY_EXPIRED,
}
