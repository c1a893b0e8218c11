"""Secrets that must be had again, since they sign: they are kept encrypted, under a key that a pepper yields."""

from __future__ import annotations

import base64
import secrets
from typing import TYPE_CHECKING

from server.domain.peppers import Peppers

# 8 MB, which a server without TLS first needs for its first webhook.
if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

PREFIX = "whsec_"
_SECRET_BYTES = 32
_NONCE_BYTES = 12
_PURPOSE = "webhook-secret"


class CannotUnseal(Exception):  # noqa: N818 - it names a state
    """A secret cannot be read: it was not sealed by this pepper for this place."""


def new_secret() -> bytes:
    """Return a fresh signing secret (32 bytes)."""
    return secrets.token_bytes(_SECRET_BYTES)


def shown(secret: bytes) -> str:
    """Return a signing secret as receivers are given it: `whsec_` and base64."""
    return PREFIX + base64.b64encode(secret).decode()


def seal(peppers: Peppers, secret: bytes, place: str) -> tuple[str, bytes]:
    """Encrypt a secret for a place, out of which it cannot be read; return the id of the signing pepper as well."""
    pepper_id = peppers.signing_id
    nonce = secrets.token_bytes(_NONCE_BYTES)
    return pepper_id, nonce + _cipher(peppers, pepper_id).encrypt(nonce, secret, place.encode())


def unseal(peppers: Peppers, pepper_id: str, sealed: bytes, place: str) -> bytes:
    """Return a secret that was sealed for a place.

    Raises CannotUnseal; Refusal (PEPPER_UNAVAILABLE) where the pepper is not here.
    """
    from cryptography.exceptions import InvalidTag  # noqa: PLC0415

    cipher = _cipher(peppers, pepper_id)
    try:
        return cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], place.encode())
    except (InvalidTag, ValueError):
        raise CannotUnseal from None


def _cipher(peppers: Peppers, pepper_id: str) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # noqa: PLC0415

    return AESGCM(peppers.derive(_PURPOSE, pepper_id))
