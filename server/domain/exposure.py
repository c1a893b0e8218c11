"""Signs that a request came from a browser or an app, where a server key must never be.

`Sec-Fetch-*` are headers that scripts cannot set (they are forbidden request-header names of the Fetch standard), so
`Sec-Fetch-Site` alone is proof of a browser. `Sec-Fetch-Mode` is no sign at all: Node's own `fetch` sends it from
backends, beside whatever `Origin` the program sets. `Origin` may be set by any HTTP library, so it counts only beside
another sign.

A browser is not yet a leak: a proxy may have added the key to what a browser sent, which is how many keep theirs out
of browsers, and most proxies pass on all headers. It was one where the browser called a page's own site, since no
customer's pages are on ours, and where it could not have sent the key, which is in a header of its own: a navigation,
an image, a form and a WebSocket have no such headers. Then the request is denied, and somebody told, but the key is
left alive.

What this cannot see: an app that uses its system's HTTP library and no web view (iOS and Android send no sign but a
user agent, which an app may change); a browser behind a proxy that takes all signs out. And what it cannot tell apart:
a page that calls another site with the key, and one that calls a proxy on another site, which adds it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What a gateway saw of a request. Empty strings and None mean unknown."""

    client_ip: IPv4Address | IPv6Address | None = None
    user_agent: str = ""
    origin: str = ""
    sec_fetch_site: str = ""
    sec_fetch_mode: str = ""
    sec_fetch_dest: str = ""
    sec_fetch_user: str = ""


class Exposure(IntEnum):
    """How sure we are that the request came from a browser."""

    NONE = 0
    # Anybody can fake it: worth telling people, never worth acting on.
    SUSPECTED = 1
    # A browser is in it, but the key may have been added by a proxy: denied and told.
    UNCLEAR = 2
    # The key is treated as leaked.
    CERTAIN = 3


_OWN_SITES = frozenset({"same-origin", "same-site"})
_SITES = frozenset({"cross-site", "none"}) | _OWN_SITES
# Modes of requests that a browser lets have no headers of their own.
_BARE_MODES = frozenset({"navigate", "no-cors", "websocket"})
# Every browser's user agent begins so; the second half keeps out libraries that only say "Mozilla/5.0".
_BROWSER = re.compile(r"Mozilla/5\.0 \(.*(?:AppleWebKit|Gecko)/", re.DOTALL)
# Libraries for tests and servers that pretend to be a browser, `Origin` included, inside of Node.
_PRETENDER = re.compile(r"\b(?:jsdom|HappyDOM)/")
# What the HTTP libraries of Apple's systems and of Android's say by default: programs on somebody's own device.
_DEVICE = re.compile(r"CFNetwork/\S+ Darwin/|Dalvik/\S+ \(Linux;.* Android ", re.DOTALL)


def assess(context: Context) -> Exposure:
    """Weigh the signs in a context.

    | sign                                                                             | weight    |
    |----------------------------------------------------------------------------------|-----------|
    | Sec-Fetch-Site: cross-site or none                                               | CERTAIN   |
    | the same with Sec-Fetch-Mode: navigate, no-cors or websocket                     | UNCLEAR   |
    | Sec-Fetch-Site: same-origin or same-site                                         | UNCLEAR   |
    | else, Origin with Sec-Fetch-Dest, Sec-Fetch-User: ?1 or a browser's user agent   | CERTAIN   |
    | else, the user agent of a browser, of CFNetwork (Apple) or Dalvik (Android)      | SUSPECTED |
    | else: Origin alone; Sec-Fetch-Mode, -Dest or -User alone; nothing                | NONE      |
    """
    sites = _SITES.intersection(_words(context.sec_fetch_site))
    if sites:
        bare = not _BARE_MODES.isdisjoint(_words(context.sec_fetch_mode))
        return Exposure.UNCLEAR if bare or sites <= _OWN_SITES else Exposure.CERTAIN
    browser_agent = bool(context.user_agent) and _is_browser(context.user_agent)
    other_sign = context.sec_fetch_dest != "" or context.sec_fetch_user == "?1" or browser_agent
    if context.origin and other_sign:
        return Exposure.CERTAIN
    suspected = browser_agent or (bool(context.user_agent) and _DEVICE.search(context.user_agent) is not None)
    return Exposure.SUSPECTED if suspected else Exposure.NONE


def _words(header: str) -> list[str]:
    """Return the words of a header: a proxy may join two headers into one, and change their case."""
    return [word.strip().lower() for word in header.split(",")] if header else []


def _is_browser(user_agent: str) -> bool:
    return _BROWSER.match(user_agent) is not None and _PRETENDER.search(user_agent) is None
