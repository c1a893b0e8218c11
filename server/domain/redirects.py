"""Redirect URIs: which may be registered, which match, and how the scoped key is added to one.

Matching is by simple string comparison, as RFC 9700 section 2.1 demands, so registration refuses every spelling
that some other program might take for a different URI.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from ipaddress import IPv4Address
from urllib.parse import quote, unquote_plus, urlencode, urlsplit

from server.domain.kinds import Environment
from server.domain.token import holds_token

MAXIMUM_LENGTH = 2048
KEY_PARAMETER = "texture_scoped_key"
STATE_PARAMETER = "client_state"

_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})
_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")
_AUTHORITY = re.compile(r"(?P<host>[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?")
# RFC 3986's characters, less those that only user info and fragments need.
_CHARACTERS = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=:@/?\[\]-]|%[0-9A-Fa-f]{2})*")
_ENCODED_PATH_SYNTAX = re.compile(r"%(?:2e|2f|5c)", re.IGNORECASE)


def fault(uri: str, environment: Environment) -> str | None:
    """Say what is wrong with a redirect URI to be registered in a workspace of this kind; None where nothing is."""
    if not 1 <= len(uri) <= MAXIMUM_LENGTH:
        return f"must have 1 to {MAXIMUM_LENGTH} characters"
    if holds_token(unquote_plus(uri)):
        return "holds a key or a link token"
    if "#" in uri:
        return "must have no fragment"
    if _CHARACTERS.fullmatch(uri) is None:
        return "has a character that a URI does not have, or a malformed percent-encoding"
    scheme, colon, rest = uri.partition(":")
    if not colon or _SCHEME.fullmatch(scheme) is None:
        return "must be absolute, with a scheme in lower case"
    if scheme not in ("http", "https") and "." not in scheme:
        # RFC 8252 section 7.1. It also keeps out all that runs code, opens files or starts programs.
        return "must be https, or have a scheme of the app's own that is a domain name reversed: com.example.app"
    if not rest.startswith("/"):
        return "must have a slash after its scheme"
    return _fault_of_parts(uri, scheme, environment)


def registered(uri: str, registered_uris: Iterable[str]) -> bool:
    """Tell whether a redirect URI is, letter for letter, one of those registered."""
    return uri in registered_uris


def with_scoped_key(uri: str, scoped_api_key: str, client_state: str) -> str:
    """Return the URI with the scoped key and, unless empty, the client's state added to its query."""
    added = {KEY_PARAMETER: scoped_api_key}
    if client_state:
        added[STATE_PARAMETER] = client_state
    before, _, query = uri.partition("?")
    if query and not query.endswith("&"):
        query += "&"
    return f"{before}?{query}{urlencode(added, quote_via=quote)}"


def _fault_of_parts(uri: str, scheme: str, environment: Environment) -> str | None:
    try:
        parts = urlsplit(uri)
    except ValueError:
        return "is not a URI"
    if "@" in parts.netloc:
        return "must have no user info"
    return (
        _fault_of_web_address(scheme, parts.netloc, environment)
        or _fault_of_path(parts.path)
        or _fault_of_query(parts.query)
    )


def _fault_of_web_address(scheme: str, netloc: str, environment: Environment) -> str | None:
    if scheme not in ("http", "https") and not netloc:
        return None  # an app's own scheme may do without a host
    address = _AUTHORITY.fullmatch(netloc)
    if address is None or ".." in netloc or not _is_port(address["port"]) or _is_odd_number(address["host"]):
        return "must have a host in lower case and, if any, a port from 1 to 65535"
    if scheme == "http" and environment is not Environment.SANDBOX:
        return "http is accepted in SANDBOX workspaces only; use https"
    if scheme == "http" and address["host"] not in _LOOPBACK_HOSTS:
        return "http is accepted to localhost, 127.0.0.1 and [::1] only; use https"
    return None


def _is_port(text: str | None) -> bool:
    return text is None or (not text.startswith("0") and int(text) < 65536)  # noqa: PLR2004


def _is_odd_number(host: str) -> bool:
    """Tell whether browsers would take a host for an IPv4 address that is not written as four numbers."""
    last = host.rpartition(".")[2]
    if not (last.isdigit() or re.fullmatch("0x[0-9a-f]*", last)):
        return False
    try:
        IPv4Address(host)
    except ValueError:
        return True
    return False


def _fault_of_path(path: str) -> str | None:
    if _ENCODED_PATH_SYNTAX.search(path) is not None:
        return "must have no encoded dots, slashes or backslashes in its path"
    if any(segment in (".", "..") for segment in path.split("/")):
        return "must have no dot segments"
    return None


def _fault_of_query(query: str) -> str | None:
    # Some frameworks read `a.b` and ` a_b` as `a_b`, and `a_b[]` as a list of that name.
    written = (unquote_plus(part.partition("=")[0]) for part in re.split("[&;]", query))
    names = {name.partition("[")[0].strip().replace(".", "_").lower() for name in written}
    if not names.isdisjoint((KEY_PARAMETER, STATE_PARAMETER)):
        return f"must not hold {KEY_PARAMETER} or {STATE_PARAMETER}, which are added to it"
    return None
