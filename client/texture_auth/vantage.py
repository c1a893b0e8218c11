"""What a service may believe of where a request comes from.

A client can write any header, so those that tell of the client count only when a gateway that is trusted by name sent
them; from anybody else they are what the sender would like to be believed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from urllib.parse import unquote

from texture_auth.decision import Context

HEADER_LENGTH = 8_192
"""The service refuses longer ones, in characters."""

_HEADERS = ("user-agent", "origin", "sec-fetch-site", "sec-fetch-mode", "sec-fetch-dest", "sec-fetch-user")
_FORWARDED = "x-forwarded-for"
_network = lru_cache(ip_network)


@dataclass(frozen=True, slots=True)
class TrustedPeers:
    """The gateways whose word counts. Without any, a request comes from where its connection comes from.

    Raises ValueError for a network that is none, and for fewer hops than one.
    """

    networks: tuple[str, ...] = ()
    """Where gateways connect from, in CIDR form: `10.2.0.0/16`, `fd00::/8`. Nobody else may be able to connect
    from there."""
    names: tuple[str, ...] = ()
    """Names of gateways, of the subject alternative names of the client certificates that this server verifies."""
    hops: int = 1
    """How many of your own proxies add to `x-forwarded-for`: the client is so many elements from the right. The
    elements to the left of it are the client's own words."""

    def __post_init__(self) -> None:
        for network in self.networks:
            _network(network)
        if self.hops < 1:
            raise ValueError("the gateway that connects is a hop, so there is one at least")

    def include(self, address: str, names: Iterable[str] = ()) -> bool:
        """Tell whether a peer at an address, with names that its certificate proves, is one of them."""
        if not set(self.names).isdisjoint(names):
            return True
        parsed = _address(address)
        return parsed is not None and any(parsed in _network(network) for network in self.networks)

    def client_address(self, forwarded: str) -> str:
        """Return the client's address by an `x-forwarded-for` of one of them; empty when it does not say."""
        elements = forwarded.split(",")
        return address_of(elements[-self.hops]) if len(elements) >= self.hops else ""


NOBODY = TrustedPeers()


def context_of_rpc(
    peer: str, names: Iterable[str], metadata: Iterable[tuple[str, str | bytes]], trusted: TrustedPeers
) -> Context:
    """Return the context of an RPC from a peer in gRPC's notation, such as `ipv4:10.0.0.1:5000`.

    Of a peer that is not trusted, only the address that it connects from counts.
    """
    _, _, text = peer.partition(":")
    address = address_of(unquote(text)) if peer.startswith(("ipv4:", "ipv6:")) else ""
    if not trusted.include(address, names):
        return Context(client_ip=address)
    headers = joined(metadata)
    return _context(headers, trusted.client_address(headers.get(_FORWARDED, "")))


def context_of_http(address: str, headers: Iterable[tuple[str, str]], trusted: TrustedPeers) -> Context:
    """Return the context of an HTTP request whose connection comes from an address.

    What the request says of its own browser counts from anybody: it can only speak against a key. Who it was forwarded
    for counts from a trusted peer alone.
    """
    by_name = joined(headers)
    if trusted.include(address):
        return _context(by_name, trusted.client_address(by_name.get(_FORWARDED, "")))
    return _context(by_name, address_of(address))


def joined(headers: Iterable[tuple[str, str | bytes]]) -> Mapping[str, str]:
    """Return headers by their names, which are lower-case; the values of one name joined in order, as HTTP has it."""
    found: dict[str, str] = {}
    for name, value in headers:
        if isinstance(value, str):
            found[name] = f"{found[name]}, {value}" if name in found else value
    return found


def address_of(text: str) -> str:
    """Return the address that a text such as `192.0.2.1:443` or `[2001:db8::1]:443` holds; empty when none."""
    parsed = _address(text)
    return "" if parsed is None else str(parsed)


def _context(headers: Mapping[str, str], client_ip: str) -> Context:
    # What is longer is cut: refused, it would be a question without answer that its sender chose.
    return Context.from_headers({name: headers.get(name, "")[:HEADER_LENGTH] for name in _HEADERS}, client_ip)


def _address(text: str) -> IPv4Address | IPv6Address | None:
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        parsed = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return (parsed.ipv4_mapped or parsed) if isinstance(parsed, IPv6Address) else parsed
