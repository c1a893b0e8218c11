"""Addresses to listen on and to call, as people write them: HOST:PORT."""

from __future__ import annotations

import ipaddress


def is_loopback(address: str) -> bool:
    """Tell whether HOST:PORT is on this machine."""
    host = address.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
