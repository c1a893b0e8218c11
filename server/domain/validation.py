"""What a request's fields may hold. Every fault is collected, so that a caller hears of all of them at once."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

from server.domain import redirects
from server.domain.errors import ErrorReason, Refusal, Violation
from server.domain.kinds import Environment
from server.domain.model import Network
from server.domain.token import holds_token, redact

DISPLAY_NAME_LENGTH = 120
DESCRIPTION_LENGTH = 1000
REASON_LENGTH = 500
REFERENCE_ID_LENGTH = 128
CLIENT_STATE_LENGTH = 1024
HEADER_LENGTH = 8192
LABELS = 32
LABEL_FILTERS = 8
LABEL_VALUE_LENGTH = 128
NETWORKS = 64
MANUFACTURERS = 64
REDIRECT_URIS = 50
BATCH = 1000
CERTIFICATE_NAMES = 16
CERTIFICATE_NAME_LENGTH = 255
DEFAULT_PAGE = 50
LARGEST_PAGE = 1000
SHORTEST_LIFETIME = timedelta(minutes=1)
LONGEST_SCOPED_KEY_LIFETIME = timedelta(days=3650)
LONGEST_LINK_LIFETIME = timedelta(days=7)

_MAPPED = IPv6Network("::ffff:0:0/96")
_SLUG = re.compile(r"[a-z][a-z0-9-]{1,61}[a-z0-9]")
_DEVICE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
_MANUFACTURER = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
_LABEL_NAME = re.compile(r"[a-z][a-z0-9_.-]{0,62}")
_DNS_NAME = re.compile(r"[a-z0-9_]([a-z0-9_-]*[a-z0-9])?(\.[a-z0-9_]([a-z0-9_-]*[a-z0-9])?)*")
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[\x21-\x7e]+")
_VISIBLE_ASCII = re.compile(r"[\x21-\x7e]+")
_PRINTABLE_ASCII = re.compile(r"[\x20-\x7e]*")


def is_device_id(text: str) -> bool:
    """Tell whether a device could have this id."""
    return _DEVICE_ID.fullmatch(text) is not None


def is_slug(text: str) -> bool:
    """Tell whether a workspace or a caller could have this id."""
    return _SLUG.fullmatch(text) is not None


def parse_address(text: str) -> IPv4Address | IPv6Address:
    """Return the address that a text is, IPv4-mapped IPv6 as IPv4. Raises ValueError, for zones and ports too."""
    address = ip_address(text)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError("an address with a zone means nothing elsewhere")
        if address.ipv4_mapped is not None:
            return address.ipv4_mapped
    return address


def parse_network(text: str) -> Network:
    """Return the network that a text in CIDR form is. Raises ValueError, for host bits and for masks too.

    IPv4-mapped IPv6 networks are refused: addresses of that form count as IPv4, so nothing would ever match.
    """
    address, _, length = text.partition("/")
    if not length.isascii() or not length.isdigit() or "%" in address:
        raise ValueError("not in CIDR form")
    network = ip_network(text)
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        raise ValueError("an IPv4-mapped network")
    return network


class Fields:
    """Collects the violations of one request. Each check returns a usable value, even where it found a fault."""

    def __init__(self) -> None:
        self.violations: list[Violation] = []

    def refuse_if_invalid(self) -> None:
        """Raise Refusal (FIELD_INVALID) with all violations, if there are any."""
        if self.violations:
            first = self.violations[0]
            more = len(self.violations) - 1
            raise Refusal(
                ErrorReason.FIELD_INVALID,
                f"{first.field}: {first.description}" + (f" (and {more} more)" if more else ""),
                violations=tuple(self.violations),
            )

    def fault(self, field: str, description: str) -> None:
        """Note a violation."""
        self.violations.append(Violation(field, description))

    def required(self, field: str, value: str) -> str:
        """Check that an id, whose form does not matter since it is only looked up, is there."""
        if not value:
            self.fault(field, "is required")
        return value

    def text(self, field: str, value: str, *, maximum: int, minimum: int = 0) -> str:
        """Check words for people: a length in characters, and no control characters."""
        if not minimum <= len(value) <= maximum:
            self.fault(field, f"must have {minimum} to {maximum} characters, has {len(value)}")
        elif holds_token(value):
            self.fault(field, "holds a key or a link token, which must not be written down")
        elif any(ord(character) < 0x20 or 0x7F <= ord(character) < 0xA0 for character in value):  # noqa: PLR2004
            self.fault(field, "must have no control characters")
        return value

    def display_name(self, field: str, value: str) -> str:
        """Check a name for people."""
        return self.text(field, value, minimum=1, maximum=DISPLAY_NAME_LENGTH)

    def reason(self, field: str, value: str) -> str:
        """Check a reason for the event log."""
        return self.text(field, value, maximum=REASON_LENGTH)

    def slug(self, field: str, value: str) -> str:
        """Check the id of a workspace or caller."""
        if not is_slug(value):
            self.fault(field, "must have 3 to 63 characters matching [a-z][a-z0-9-]*[a-z0-9]")
        return value

    def visible(self, field: str, value: str, maximum: int = REFERENCE_ID_LENGTH) -> str:
        """Check an id that others choose: visible ASCII."""
        if not 1 <= len(value) <= maximum or _VISIBLE_ASCII.fullmatch(value) is None:
            self.fault(field, f"must have 1 to {maximum} visible ASCII characters")
        elif holds_token(value):
            self.fault(field, "is a key or a link token")
        return value

    def client_state(self, field: str, value: str) -> str:
        """Check the customer's own value that is given back in a redirect URI."""
        if len(value) > CLIENT_STATE_LENGTH or _PRINTABLE_ASCII.fullmatch(value) is None:
            self.fault(field, f"must have at most {CLIENT_STATE_LENGTH} printable ASCII characters")
        elif holds_token(value):
            self.fault(field, "holds a key or a link token, which must not be written down")
        return value

    def header(self, field: str, value: str) -> str:
        """Check a header that a gateway saw: anything, up to a length."""
        if len(value) > HEADER_LENGTH:
            self.fault(field, f"must have at most {HEADER_LENGTH} characters")
        return value

    def address(self, field: str, value: str) -> IPv4Address | IPv6Address | None:
        """Check a client's address; empty means unknown."""
        if value:
            try:
                return parse_address(value)
            except ValueError:
                self.fault(field, "must be an IPv4 or IPv6 address without port or zone")
        return None

    def device_id(self, field: str, value: str) -> str:
        """Check the id of a device to record."""
        if holds_token(value):
            self.fault(field, "is a key or a link token")
        elif not is_device_id(value):
            self.fault(field, "must have 1 to 128 characters matching [A-Za-z0-9][A-Za-z0-9._:-]*")
        return value

    def batch(self, field: str, values: Sequence[str]) -> None:
        """Check the ids of a batch: how many, and each once."""
        if not 1 <= len(values) <= BATCH:
            self.fault(field, f"must have 1 to {BATCH} entries, has {len(values)}")
        seen: set[str] = set()
        for index, value in enumerate(values):
            if value in seen:
                self.fault(f"{field}[{index}]", "names a device that is named before")
            seen.add(value)

    def manufacturer(self, field: str, value: str) -> str:
        """Check the maker of a device; empty means unknown."""
        if value and _MANUFACTURER.fullmatch(value) is None:
            self.fault(field, "must match [a-z0-9][a-z0-9_-]{0,63}, in lower case")
        return value

    def manufacturers(self, field: str, values: Sequence[str]) -> frozenset[str]:
        """Check a list of makers."""
        if len(values) > MANUFACTURERS:
            self.fault(field, f"must have at most {MANUFACTURERS} entries, has {len(values)}")
        for index, value in enumerate(values):
            self.manufacturer(f"{field}[{index}]", value or "?")
        return frozenset(values)

    def networks(self, field: str, values: Sequence[str]) -> tuple[Network, ...]:
        """Check a list of networks in CIDR form, without host bits."""
        if len(values) > NETWORKS:
            self.fault(field, f"must have at most {NETWORKS} entries, has {len(values)}")
        networks: dict[Network, None] = {}
        for index, value in enumerate(values):
            try:
                networks[parse_network(value)] = None
            except ValueError:
                self.fault(
                    f"{field}[{index}]",
                    "must be a network in CIDR form without host bits, such as 10.0.0.0/8",
                )
        return tuple(networks)

    def labels(self, field: str, values: Mapping[str, str], maximum: int = LABELS) -> dict[str, str]:
        """Check labels, or a filter by labels."""
        if len(values) > maximum:
            self.fault(field, f"must have at most {maximum} entries, has {len(values)}")
        for name, value in values.items():
            if _LABEL_NAME.fullmatch(name) is None:
                self.fault(field, "names must match [a-z][a-z0-9_.-]{0,62}")
            elif holds_token(name):
                self.fault(field, "a name holds a key or a link token, which must not be written down")
            else:
                self.text(f"{field}[{name!r}]", value, maximum=LABEL_VALUE_LENGTH)
        return dict(values)

    def certificate_names(self, field: str, values: Sequence[str]) -> frozenset[str]:
        """Check names in the certificate of a caller: DNS names in lower case, without wildcards, and URIs."""
        names = frozenset(values)
        if len(names) > CERTIFICATE_NAMES:
            self.fault(field, f"must have at most {CERTIFICATE_NAMES} entries, has {len(names)}")
        for index, value in enumerate(values):
            form = _DNS_NAME.fullmatch(value) or _URI.fullmatch(value)
            if form is None or len(value) > CERTIFICATE_NAME_LENGTH or holds_token(value):
                self.fault(
                    f"{field}[{index}]",
                    f"must be a DNS name in lower case or a URI, of at most {CERTIFICATE_NAME_LENGTH} characters",
                )
        return names

    def redirect_uris(self, field: str, values: Iterable[str], environment: Environment) -> tuple[str, ...]:
        """Check redirect URIs to register in a workspace of this kind."""
        uris = tuple(values)
        if len(uris) > REDIRECT_URIS:
            self.fault(field, f"must have at most {REDIRECT_URIS} entries, has {len(uris)}")
        for index, uri in enumerate(uris):
            found = redirects.fault(uri, environment)
            if found is not None:
                self.fault(f"{field}[{index}]", found)
        return tuple(dict.fromkeys(uris))

    def future(self, field: str, value: datetime | None, now: datetime) -> datetime | None:
        """Check an expiry; None means never."""
        if value is not None and value <= now:
            self.fault(field, "must be in the future")
        return value

    def lifetime(self, field: str, value: timedelta, longest: timedelta) -> timedelta:
        """Check how long something is to live."""
        if not SHORTEST_LIFETIME <= value <= longest:
            self.fault(field, f"must be from one minute to {longest.days} days")
        return value

    def page_size(self, field: str, value: int) -> int:
        """Return how many rows a page has: 50 for 0, at most 1,000."""
        if value < 0:
            self.fault(field, "must not be negative")
        return min(value, LARGEST_PAGE) if value > 0 else DEFAULT_PAGE

    def mask(self, field: str, paths: Sequence[str], known: Iterable[str]) -> frozenset[str]:
        """Check the paths of a field mask."""
        allowed = tuple(known)
        if not paths:
            self.fault(field, f"is required: name some of {', '.join(allowed)}")
        for path in paths:
            if path not in allowed:
                self.fault(field, f"{redact(path[:100])!r} cannot be set; the paths are {', '.join(allowed)}")
        return frozenset(paths)
