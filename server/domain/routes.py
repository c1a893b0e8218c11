"""Which permission a request of a public API needs, and on which device, by its method and path.

A gateway, this service and the server behind each read the path. Where two of them might read it differently, one
would guard a thing and another do something else, so such a path is `Ambiguous` and nobody's: encoded slashes and
letters, dot segments, empty segments, backslashes, parameters after a semicolon, another case than that of a route.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from urllib.parse import unquote_plus

from server.domain.kinds import NEEDS_DEVICE, Permission

PUBLIC = "public"
DEVICE = "device_id"

# Of what may be escaped, only that of which no server could make a letter of a route or another segment.
_ESCAPED = "|".join(f"%{ord(one):02x}" for one in " !\"$&'()*+,:<=>@[]^`{|}")
_SEGMENT = re.compile(rf"(?:[A-Za-z0-9._~!$&'()*+,=:@-]|{_ESCAPED})*", re.IGNORECASE | re.ASCII)
_LITERAL = re.compile(r"[A-Za-z0-9._~!$&'()*+,=:@-]+")
_PLACEHOLDER = re.compile(r"\{([a-z][a-z0-9_]*)\}")
_COLON = re.compile("%3a", re.IGNORECASE)
_PARTS = re.compile("[&;]")
_BETWEEN_LETTERS = re.compile("[^a-z0-9]")
_METHOD = re.compile(r"[A-Z]+")
_DOTS = frozenset({".", ".."})
_WORDS = 3

_PERMISSIONS = {permission.value: permission for permission in Permission}


class Ambiguous(Exception):  # noqa: N818 - it names a state
    """A request that a gateway and the server behind it might read differently; the message says where."""


@dataclass(frozen=True, slots=True)
class Template:
    """A path of an API, as `/v1/devices/{device_id}`: `path` in segments, None for each placeholder."""

    path: str
    segments: tuple[str | None, ...]
    device_at: int | None

    @classmethod
    def parse(cls, text: str) -> Template:
        """Return the template that a text is. Raises ValueError, with the reason."""
        if not text.startswith("/"):
            raise ValueError("a path begins with /")
        parts = text[1:].split("/") if text != "/" else []
        names = [placeholder[1] for part in parts if (placeholder := _PLACEHOLDER.fullmatch(part))]
        if len(set(names)) < len(names):
            raise ValueError("a placeholder stands twice")
        for part in parts:
            if part in _DOTS or not (_LITERAL.fullmatch(part) or _PLACEHOLDER.fullmatch(part)):
                raise ValueError(f"{part!r} is neither a plain segment of a path nor a {{placeholder}}")
        segments = tuple(None if _PLACEHOLDER.fullmatch(part) else part for part in parts)
        device_at = parts.index(f"{{{DEVICE}}}") if DEVICE in names else None
        return cls(text, segments, device_at)

    def matches(self, segments: Sequence[str]) -> bool:
        """Tell whether this is the template of a path."""
        return len(segments) == len(self.segments) and all(
            bool(found) if mine is None else mine == found for mine, found in zip(self.segments, segments, strict=True)
        )

    def device_id(self, segments: Sequence[str]) -> str:
        """Return the device that a path of this template names; empty where it names none."""
        # Of what a device's id may hold, a client might escape a colon.
        return "" if self.device_at is None else _COLON.sub(":", segments[self.device_at])

    def folded(self) -> Template:
        """Return this template as a server would have it that takes no notice of case."""
        return Template(self.path, tuple(part and part.lower() for part in self.segments), self.device_at)

    def within(self, other: Template) -> bool:
        """Tell whether each path of this template is one of another as well."""
        return len(self.segments) == len(other.segments) and all(
            theirs is None or mine == theirs for mine, theirs in zip(self.segments, other.segments, strict=True)
        )

    def overlaps(self, other: Template) -> bool:
        """Tell whether a path may be one of both templates."""
        return len(self.segments) == len(other.segments) and all(
            None in (mine, theirs) or mine == theirs for mine, theirs in zip(self.segments, other.segments, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Route:
    """What a request needs: a permission, on the device that the path names; None for what is open to everybody.

    Without a template it is about no device, whatever the path.
    """

    permission: Permission | None
    template: Template | None

    @classmethod
    def of(cls, permission: str, template: Template | None) -> Route:
        """Return a route by the name of its permission, or PUBLIC. Raises ValueError, with the reason."""
        known = _PERMISSIONS.get(permission)
        if known is None and permission != PUBLIC:
            raise ValueError(f"the permission must be {PUBLIC} or one of {', '.join(_PERMISSIONS)}")
        names_device = template is not None and template.device_at is not None
        if known in NEEDS_DEVICE and not names_device:
            raise ValueError(f"{permission} is about a device: the path must hold {{{DEVICE}}}")
        if known not in NEEDS_DEVICE and names_device:
            raise ValueError(f"{permission} is not about a device: the path must not hold {{{DEVICE}}}")
        return cls(known, template)

    def device_id(self, segments: Sequence[str]) -> str:
        """Return the device that a path of this route names; empty where it is about none."""
        return "" if self.template is None else self.template.device_id(segments)


class Routes:
    """The routes of an API. Of those that a path is of, the most specific one counts."""

    def __init__(self, routes: Iterable[tuple[str, Route]] = ()) -> None:
        self._routes: dict[tuple[str, int], list[tuple[Template, Template, Route]]] = {}
        for method, route in routes:
            if route.template is None:
                raise ValueError("a route of a map has a template")
            same = self._routes.setdefault((method, len(route.template.segments)), [])
            same.append((route.template, route.template.folded(), route))
            # Those that overlap lie within each other, so the one with fewer placeholders is the more specific.
            same.sort(key=lambda each: each[0].segments.count(None))

    @classmethod
    def parse(cls, text: str) -> Routes:
        """Return the routes of a text: `METHOD PATH PERMISSION` a line, # before comments.

        Raises ValueError, with all that is wrong.
        """
        faults: list[str] = []
        found: list[tuple[int, str, Route]] = []
        for number, line in enumerate(text.splitlines(), 1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            try:
                method, route = _route(words)
                _refuse_unclear(found, method, route)
            except ValueError as error:
                faults.append(f"line {number}: {error}")
            else:
                found.append((number, method, route))
        if faults:
            raise ValueError("; ".join(faults))
        if not found:
            raise ValueError("there is no route in it")
        return cls((method, route) for _, method, route in found)

    def find(self, method: str, segments: Sequence[str]) -> Route | None:
        """Return the route of a path in segments, None where there is none. Raises Ambiguous."""
        same = self._routes.get((method, len(segments)), [])
        exact = next((route for template, _, route in same if template.matches(segments)), None)
        lower = [segment.lower() for segment in segments]
        if exact is not next((route for _, folded, route in same if folded.matches(lower)), None):
            raise Ambiguous("a part of the path differs from a route by its case alone")
        return exact


def segments_of(path: str) -> tuple[str, ...]:
    """Return the segments of a path without its query; the last is empty after a slash. Raises Ambiguous."""
    path = path.partition("?")[0]
    if not path.startswith("/"):
        raise Ambiguous("the path does not begin with /")
    segments = tuple(path[1:].split("/")) if path != "/" else ()
    for number, segment in enumerate(segments, 1):
        if not segment and number < len(segments):
            raise Ambiguous("the path holds an empty segment")
        if segment in _DOTS:
            raise Ambiguous("the path holds a dot segment")
        if _SEGMENT.fullmatch(segment) is None:
            raise Ambiguous("the path holds a character, or an escape, that servers read differently")
    return segments


def query_names_device(path: str) -> bool:
    """Tell whether the query of a path names a device, too, by which some servers replace the one in the path."""
    for part in _PARTS.split(path.partition("?")[2]):
        name = unquote_plus(part.partition("=")[0])
        if _BETWEEN_LETTERS.sub("", name.lower()) == DEVICE.replace("_", ""):
            return True
    return False


def _route(words: Sequence[str]) -> tuple[str, Route]:
    if len(words) != _WORDS:
        raise ValueError("a route is METHOD PATH PERMISSION")
    method, path, permission = words
    if _METHOD.fullmatch(method) is None:
        raise ValueError("a method is in capital letters")
    return method, Route.of(permission, Template.parse(path))


def _refuse_unclear(before: Iterable[tuple[int, str, Route]], method: str, route: Route) -> None:
    """Refuse a route where it would not be clear which one of two a path is of. Raises ValueError."""
    for number, other_method, other in before:
        if other_method != method or other.template is None or route.template is None:
            continue
        mine, theirs = route.template.folded(), other.template.folded()
        if not mine.overlaps(theirs):
            continue
        wider, narrower = mine.within(theirs), theirs.within(mine)
        if wider and narrower:
            raise ValueError(f"is the same as line {number}")
        if not wider and not narrower:
            raise ValueError(f"overlaps line {number}, and neither of the two is the more specific one")
