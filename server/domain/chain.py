"""The chain of the event log, which keeps it from being rewritten quietly.

The events of a workspace form a chain, and so do those of the installation that are of no workspace. Each has a link:
its number, a code of what the event says, and a code of that, its number and the link before. The codes are keyed by
the peppers, which are not in the database: whoever can write rows can break the chain, but cannot make one.
"""

from __future__ import annotations

import hmac
import json
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, auto
from typing import TypeAlias

from server.domain.peppers import Peppers

# What an event says: the columns of its row, as they are stored.
Content: TypeAlias = "Mapping[str, str | int | None]"

# The name of the chain of events that are of no workspace. A workspace's chain has its id for a name.
INSTALLATION = ""
_LINK, _CONTENT, _REDACTION, _ANCHOR = "event-link", "event-content", "event-redaction", "event-anchor"
_SALT_BYTES = 16


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a chain: the link with this number, its code, and the pepper that it was made with.

    Number 0 is before the first link.
    """

    number: int = 0
    mac: bytes = field(default=b"", repr=False)
    pepper_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Redaction:
    """What became of an event lawfully: `content_mac` is of what it says now, empty where nothing is left of it."""

    pepper_id: str
    content_mac: bytes = field(repr=False)
    mac: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """What holds an event in its chain. `content_mac` is of what it said when it was recorded.

    `salt` went into the code of what the event says now. That of what it said before a redaction is gone, so that
    nobody can find out what it was by trying, not even with the peppers.
    """

    chain: str
    number: int
    event_id: int
    pepper_id: str
    salt: bytes = field(repr=False)
    content_mac: bytes = field(repr=False)
    mac: bytes = field(repr=False)
    redaction: Redaction | None = None

    @property
    def place(self) -> Place:
        """Where in the chain it is."""
        return Place(self.number, self.mac, self.pepper_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Anchor:
    """Where what is kept of a chain begins: after this place, all before it having been pruned.

    `sealed_from` is the id of the first event of the log that must be in a chain; those before it are of a release that
    had none.
    """

    place: Place
    sealed_from: int
    pepper_id: str
    mac: bytes = field(repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Both ends of what is kept of a chain."""

    name: str
    head: Place
    anchor: Anchor


NOTHING: Mapping[int, Sequence[bytes]] = {}


class Problem(Enum):
    """What is wrong with a chain. What each means is documented in `protos/texture/auth/v1/event_service.proto`."""

    LINK_MISSING = auto()
    LINK_ALTERED = auto()
    EVENT_MISSING = auto()
    EVENT_ALTERED = auto()
    EVENT_INSERTED = auto()
    REDACTION_ALTERED = auto()
    BEGINNING_ALTERED = auto()
    HEAD_ALTERED = auto()
    TAIL_MISSING = auto()
    HISTORY_REPLACED = auto()


@dataclass(frozen=True, slots=True)
class Break:
    """The first link that does not hold, and the event there, if one is."""

    problem: Problem
    number: int
    event_id: int | None = None


class Sealer:
    """Makes links, and tells whether they hold."""

    def __init__(self, peppers: Peppers) -> None:
        self._peppers = peppers

    @property
    def signing_id(self) -> str:
        """The pepper under which links are made."""
        return self._peppers.signing_id

    def has(self, pepper_id: str) -> bool:
        """Tell whether a pepper is here."""
        return pepper_id in self._peppers.pepper_ids

    def link(self, chain: str, previous: Place, event_id: int, content: Content) -> Link:
        """Return the link of a new event."""
        salt = secrets.token_bytes(_SALT_BYTES)
        pepper_id = self._peppers.signing_id
        unsealed = Link(
            chain=chain,
            number=previous.number + 1,
            event_id=event_id,
            pepper_id=pepper_id,
            salt=salt,
            content_mac=self._peppers.seal(pepper_id, _CONTENT, _content(salt, content)),
            mac=b"",
        )
        return replace(unsealed, mac=self._peppers.seal(pepper_id, _LINK, _linked(unsealed, previous)))

    def redact(self, link: Link, content: Content | None) -> Link:
        """Return the link of an event that is to say something else from now on, or nothing: None."""
        salt = b"" if content is None else secrets.token_bytes(_SALT_BYTES)
        pepper_id = self._peppers.signing_id
        now = b"" if content is None else self._peppers.seal(pepper_id, _CONTENT, _content(salt, content))
        mac = self._peppers.seal(pepper_id, _REDACTION, _redacted(link, now))
        return replace(link, salt=salt, redaction=Redaction(pepper_id=pepper_id, content_mac=now, mac=mac))

    def anchor(self, chain: str, place: Place, sealed_from: int) -> Anchor:
        """Return the beginning of a chain after a place."""
        pepper_id = self._peppers.signing_id
        mac = self._peppers.seal(pepper_id, _ANCHOR, _anchored(chain, place, sealed_from))
        return Anchor(place=place, sealed_from=sealed_from, pepper_id=pepper_id, mac=mac)

    def anchored(self, chain: Chain) -> bool | None:
        """Tell whether a beginning was made here; None where its pepper is not here."""
        anchor = chain.anchor
        return self._sealed(
            anchor.pepper_id, _ANCHOR, _anchored(chain.name, anchor.place, anchor.sealed_from), anchor.mac
        )

    def linked(self, link: Link, previous: Place) -> bool | None:
        """Tell whether a link follows the one before; None where its pepper is not here."""
        return self._sealed(link.pepper_id, _LINK, _linked(link, previous), link.mac)

    def says(self, link: Link, content: Content | None) -> bool | None:
        """Tell whether an event says what its link holds it to; None where the pepper for that is not here."""
        pepper_id, expected = link.pepper_id, link.content_mac
        if link.redaction is not None:
            pepper_id, expected = link.redaction.pepper_id, link.redaction.content_mac
        if content is None or not expected:
            return content is None and not expected
        return self._sealed(pepper_id, _CONTENT, _content(link.salt, content), expected)

    def redacted(self, link: Link) -> bool | None:
        """Tell whether what became of an event was made here, if anything; None where the pepper is not here."""
        given = link.redaction
        if given is None:
            return True
        if not given.pepper_id or (not given.content_mac and link.salt):
            return False
        return self._sealed(given.pepper_id, _REDACTION, _redacted(link, given.content_mac), given.mac)

    def _sealed(self, pepper_id: str, purpose: str, message: bytes, mac: bytes) -> bool | None:
        if not self.has(pepper_id):
            return None
        return hmac.compare_digest(self._peppers.seal(pepper_id, purpose, message), mac)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """What a store holds of one link: the link, and what its event says; None where there is no event."""

    link: Link
    content: Content | None


class Verification:
    """A walk along a chain from a place on, in portions. `events_seen` is the id of the last event that was passed.

    `expected` are codes that links with these numbers had at some time, for them to be compared with.

    `verified` counts the links that hold, `unverifiable` those of which nobody can tell without a pepper, by its id.
    `broken` is the first that does not hold, beyond which nothing is looked at.
    """

    __slots__ = ("_sealer", "broken", "events_seen", "expected", "place", "unverifiable", "verified")

    def __init__(
        self, sealer: Sealer, place: Place, events_seen: int, expected: Mapping[int, Sequence[bytes]] = NOTHING
    ) -> None:
        self._sealer = sealer
        self.expected = expected
        self.place = place
        self.events_seen = events_seen
        self.verified = 0
        self.unverifiable: dict[str, int] = {}
        self.broken: Break | None = None

    def begin(self, chain: Chain) -> None:
        """Go to the beginning of what is kept of a chain."""
        self.place = chain.anchor.place
        made_here = self._sealer.anchored(chain)
        if made_here is False:
            self.broken = Break(Problem.BEGINNING_ALTERED, self.place.number)
        elif made_here is None:
            self._cannot_tell(chain.anchor.pepper_id)
        elif not self._as_expected(self.place):
            self.broken = Break(Problem.HISTORY_REPLACED, self.place.number)

    def take(self, portion: Iterable[Stored]) -> None:
        """Verify the links that come next, in order of their numbers."""
        for stored in portion:
            if self.broken is None:
                self._pass(stored)

    def end(self, head: Place) -> None:
        """Compare where the walk has ended with the head."""
        if head.number > self.place.number:
            self.broken = Break(Problem.LINK_MISSING, self.place.number + 1)
        elif head != self.place:
            self.broken = Break(Problem.HEAD_ALTERED, self.place.number)
        elif any(number > self.place.number for number in self.expected):
            self.broken = Break(Problem.TAIL_MISSING, self.place.number + 1)

    def _pass(self, stored: Stored) -> None:
        link, number = stored.link, self.place.number + 1
        problem: Problem | None = None
        peppers = [link.pepper_id] if link.redaction is None else [link.pepper_id, link.redaction.pepper_id]
        missing = [pepper_id for pepper_id in peppers if not self._sealer.has(pepper_id)]
        if link.number != number:
            self.broken = Break(Problem.LINK_MISSING, number)
            return
        for holds, otherwise in (
            (self._sealer.linked(link, self.place), Problem.LINK_ALTERED),
            (self._sealer.redacted(link), Problem.REDACTION_ALTERED),
            (self._has_event(stored), Problem.EVENT_MISSING),
            (self._sealer.says(link, stored.content), Problem.EVENT_ALTERED),
            (self._as_expected(link.place), Problem.HISTORY_REPLACED),
        ):
            if holds is False:
                problem = problem or otherwise
        if problem is not None:
            self.broken = Break(problem, number, link.event_id)
            return
        if missing:
            self._cannot_tell(missing[0])
        else:
            self.verified += 1
        self.place = link.place
        self.events_seen = link.event_id

    def _has_event(self, stored: Stored) -> bool:
        gone = stored.link.redaction is not None and not stored.link.redaction.content_mac
        return stored.content is not None or gone

    def _as_expected(self, place: Place) -> bool:
        return all(hmac.compare_digest(expected, place.mac) for expected in self.expected.get(place.number, ()))

    def _cannot_tell(self, pepper_id: str) -> None:
        self.unverifiable[pepper_id] = self.unverifiable.get(pepper_id, 0) + 1


# Made once: it is used for every event. What a database holds in place of a text or a number is no more than different.
_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), default=repr)


def _content(salt: bytes, content: Content) -> bytes:
    return _ENCODER.encode([salt.hex(), content]).encode()


def _linked(link: Link, previous: Place) -> bytes:
    return _message(
        link.chain,
        link.number,
        link.event_id,
        link.pepper_id,
        link.content_mac.hex(),
        previous.mac.hex(),
        # So that nobody can pass a link off as one whose pepper is gone.
        previous.pepper_id,
    )


def _redacted(link: Link, now: bytes) -> bytes:
    return _message(link.chain, link.number, link.content_mac.hex(), now.hex())


def _anchored(chain: str, place: Place, sealed_from: int) -> bytes:
    return _message(chain, place.number, place.mac.hex(), place.pepper_id, sealed_from)


def _message(*parts: str | int) -> bytes:
    return _ENCODER.encode(parts).encode()
