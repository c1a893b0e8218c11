"""The settings of an authorizer by environment variables, which are those of the `texture-auth` command line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

_TEXTS = {
    "tls_ca": "TEXTURE_AUTH_TLS_CA",
    "client_certificate": "TEXTURE_AUTH_CLIENT_CERTIFICATE",
    "client_private_key": "TEXTURE_AUTH_CLIENT_PRIVATE_KEY",
}
_YES = frozenset({"1", "true", "t", "yes", "y", "on"})
_NO = frozenset({"", "0", "false", "f", "no", "n", "off"})


def settings(environ: Mapping[str, str]) -> dict[str, Any]:
    """Return the arguments of an authorizer. Raises ValueError for what is missing or wrong, without any value."""
    address = environ.get("TEXTURE_AUTH_ADDRESS", "").strip()
    if not address:
        raise ValueError("TEXTURE_AUTH_ADDRESS is not set: HOST:PORT of the service")
    found: dict[str, Any] = {"address": address}
    found |= {argument: environ[name] for argument, name in _TEXTS.items() if environ.get(name)}
    plain = environ.get("TEXTURE_AUTH_CLIENT_PLAINTEXT", "").strip().lower()
    if plain not in _YES | _NO:
        raise ValueError("TEXTURE_AUTH_CLIENT_PLAINTEXT is neither true nor false")
    found["insecure_plaintext"] = plain in _YES
    if environ.get("TEXTURE_AUTH_CALLER_KEY_FILE"):
        found["caller_key_file"] = environ["TEXTURE_AUTH_CALLER_KEY_FILE"]
    elif environ.get("TEXTURE_AUTH_CALLER_KEY", "").strip():
        found["caller_key"] = environ["TEXTURE_AUTH_CALLER_KEY"]
    elif "client_certificate" not in found:
        raise ValueError(
            "no credential: set TEXTURE_AUTH_CALLER_KEY or TEXTURE_AUTH_CALLER_KEY_FILE to the svc key of a caller, or "
            "TEXTURE_AUTH_CLIENT_CERTIFICATE and TEXTURE_AUTH_CLIENT_PRIVATE_KEY"
        )
    return found
