"""What becomes of a key that was found where it must not be, and what is written down of where that was."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from datetime import datetime
from urllib.parse import unquote

from server.domain import lifecycle
from server.domain.events import Event, EventType, Origin, describe
from server.domain.kinds import ExposurePolicy, KeyKind
from server.domain.members import Members
from server.domain.model import Caller, Generation, Key, KeyState
from server.domain.token import holds_token, redact

URL_LENGTH = 2000
SOURCE_LENGTH = 100

# The source of what a gateway saw.
BROWSER = "browser"
SEEN = "seen in a browser or an app"

# The events of what a policy does to a key.
_ENDED = {KeyState.REVOKED: EventType.KEY_REVOKED, KeyState.SUSPENDED: EventType.KEY_SUSPENDED}

# A piece of a secret that is shorter tells nothing.
_TELLING = 8
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")
_USER_INFO = re.compile(r"//[^/?#@\s]*@")
_QUERY = re.compile(r"[?#].*", re.DOTALL)


class ExposureOutcome(Members):
    """What was done about a key that was reported. The members are documented in `key_service.proto`."""

    UNKNOWN = "unknown"
    REVOKED = "revoked"
    SUSPENDED = "suspended"
    NOTED = "noted"
    ALREADY_KNOWN = "already_known"
    RETIRED = "retired"
    CALLER_KEY = "caller_key"
    NOT_VERIFIABLE = "not_verifiable"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sighting:
    """Where a key was found, fit to be written down, and who found it. Either may be empty."""

    url: str = ""
    source: str = ""

    @property
    def place(self) -> str:
        """What tells this place from any other: a digest of the URL, empty for none."""
        return hashlib.sha256(self.url.encode()).hexdigest() if self.url else ""

    @property
    def reason(self) -> str:
        """Why the key is dealt with, in words."""
        return f"reported as exposed by {self.source}" if self.source else "reported as exposed"


def sighting(api_key: str, url: str, source: str) -> Sighting:
    """Return what may be written down of where a key was found: no keys, no user info, and so much at most."""
    secret = api_key.strip().rpartition("_")[2]
    if len(secret) >= _TELLING:
        url, source = url.replace(secret, "…"), source.replace(secret, "…")
    return Sighting(url=_without_secrets(url, URL_LENGTH), source=_without_secrets(source, SOURCE_LENGTH))


def expose(key: Key, generation: Generation, policy: ExposurePolicy, reason: str, now: datetime) -> Key:
    """Return a key as it is once a secret of it, which is not retired, was found where it must not be.

    Only server keys are secret enough for their workspace's policy: connect keys are public, and a scoped key lives in
    its end user's app.
    """
    after = _contained(key, policy, reason, now) if key.kind is KeyKind.SERVER else key
    if after.expose_time is None or after.expose_time < generation.create_time:
        after = replace(after, expose_time=now, update_time=now)
    return after


def describe_exposure(
    origin: Origin, before: Key | Caller, after: Key | Caller, found: Sighting, now: datetime
) -> list[Event]:
    """Return the events of an exposure: its own, which says where it was found and by whom, and what it came to.

    Who waits for keys that are revoked or suspended needs to know of no other reason why they are.
    """
    event_type = EventType.CALLER_EXPOSED if isinstance(after, Caller) else EventType.KEY_EXPOSED
    event = describe(event_type, origin, before, after, now)
    where = {"exposure_source": found.source, "exposure_url": found.url}
    events = [replace(event, after={**(event.after or {}), **where})]
    if isinstance(before, Key) and isinstance(after, Key) and before.state is not after.state:
        events.append(describe(_ENDED[after.state], origin, before, after, now))
    return events


def state_put_into(exposure: Event) -> KeyState | None:
    """Return the state that a key was put into because of an exposure; None where it was left in the one it had."""
    before, after = ((side or {}).get("state") for side in (exposure.before, exposure.after))
    return None if before == after else KeyState(after)


def _contained(key: Key, policy: ExposurePolicy, reason: str, now: datetime) -> Key:
    """Return an exposed key as its workspace's policy has it. NOTIFY_ONLY leaves it as it is."""
    if policy is ExposurePolicy.REVOKE:
        return lifecycle.revoke(key, reason, now)
    if policy is ExposurePolicy.SUSPEND and key.state is not KeyState.REVOKED:
        return lifecycle.suspend(key, reason, now)
    return key


def _without_secrets(text: str, longest: int) -> str:
    shown = _shown(text)
    if holds_token(unquote(shown)) or holds_token(unquote(unquote(shown))):
        # Spelled so that it is found by whoever reads it as an address, and is not cut out as it stands.
        shown = _QUERY.sub("", shown)
    if holds_token(unquote(shown)) or holds_token(unquote(unquote(shown))):
        shown = ""
    # What is cut off is cut off last: the rest of a key is no longer known for one.
    return shown[:longest]


def _shown(text: str) -> str:
    return _USER_INFO.sub("//", redact(_CONTROL.sub(" ", text))).strip()
