"""Signs that a request came from a browser or an app, where a server key must never be.

`Sec-Fetch-*` are headers that scripts cannot set (they are forbidden request-header names of the Fetch standard),
so `Sec-Fetch-Site` alone is proof of a browser. `Sec-Fetch-Mode` is no sign at all: Node's own `fetch` sends it from
backends, beside whatever `Origin` the program sets. `Origin` may be set by any HTTP library, so it counts only beside
another sign.

What this cannot see: an app that uses its system's HTTP library and no web view (iOS and Android send no sign but a
user agent, which an app may change); a browser behind a proxy that takes all signs out. And what it cannot tell apart:
a browser that has the key, and a proxy that adds the key to what a browser sent.
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
    # The key is treated as leaked.
    CERTAIN = 2


_SITES = frozenset({"cross-site", "same-origin", "same-site", "none"})
# Every browser's user agent begins so; the second half keeps out libraries that only say "Mozilla/5.0".
_BROWSER = re.compile(r"Mozilla/5\.0 \(.*(?:AppleWebKit|Gecko)/", re.DOTALL)
# Libraries for tests and servers that pretend to be a browser, `Origin` included, inside of Node.
_PRETENDER = re.compile(r"\b(?:jsdom|HappyDOM)/")
# What the HTTP libraries of Apple's systems and of Android's say by default: programs on somebody's own device.
_DEVICE = re.compile(r"CFNetwork/\S+ Darwin/|Dalvik/\S+ \(Linux;.* Android ", re.DOTALL)


def assess(context: Context) -> Exposure:
    """Weigh the signs in a context.

    | sign                                                            | weight    |
    |-----------------------------------------------------------------|-----------|
    | Sec-Fetch-Site with one of its four values                      | CERTAIN   |
    | Origin with Sec-Fetch-Dest, Sec-Fetch-User or a browser's agent | CERTAIN   |
    | the user agent of a browser, an iPhone or an Android alone      | SUSPECTED |
    | Origin alone; Sec-Fetch-Dest or Sec-Fetch-User alone; nothing   | NONE      |
    """
    # A proxy may join two headers into one, and change their case.
    if any(word.strip().lower() in _SITES for word in context.sec_fetch_site.split(",")):
        return Exposure.CERTAIN
    browser_agent = bool(context.user_agent) and _is_browser(context.user_agent)
    other_sign = context.sec_fetch_dest != "" or context.sec_fetch_user == "?1" or browser_agent
    if context.origin and other_sign:
        return Exposure.CERTAIN
    suspected = browser_agent or (bool(context.user_agent) and _DEVICE.search(context.user_agent) is not None)
    return Exposure.SUSPECTED if suspected else Exposure.NONE


def _is_browser(user_agent: str) -> bool:
    return _BROWSER.match(user_agent) is not None and _PRETENDER.search(user_agent) is None
