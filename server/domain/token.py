"""The form of keys and link tokens: prefix, public id, secret, checksum.

    txk_{srv|con|scp|svc}_{16 base62 id}_{32 base62 secret}{6 base62 CRC32}

The checksum covers everything before it, so a typing error, or a kind that was changed, is caught without a
look-up. It proves nothing about who issued the token. The checksum is the one that GitHub uses for its tokens:
CRC32, in base62 over `0-9A-Za-z`, padded with zeros to six characters.
"""

from __future__ import annotations

import re
import secrets
import string
import zlib
from dataclasses import dataclass, field

from server.domain.members import Members

ALPHABET = string.digits + string.ascii_uppercase + string.ascii_lowercase
ID_LENGTH = 16
SECRET_LENGTH = 32  # 190 bits
_CHECKSUM_LENGTH = 6


class TokenKind(Members):
    """What a token is, by its prefix. The kinds are short words that secret scanners do not skip."""

    SERVER = "txk_srv"
    CONNECT = "txk_con"
    SCOPED = "txk_scp"
    SERVICE = "txk_svc"
    LINK = "txl"


_KINDS = {kind.value: kind for kind in TokenKind}
_FORM = re.compile(
    r"(txk_(?:srv|con|scp|svc)|txl)"
    rf"_([0-9A-Za-z]{{{ID_LENGTH}}})"
    rf"_[0-9A-Za-z]{{{SECRET_LENGTH + _CHECKSUM_LENGTH}}}"
)


# Anything that looks like a token, wherever it stands, its checksum right or not.
_TOKEN = re.compile(r"(txk_[a-z]{3}|txl)_[0-9A-Za-z]{16}_[0-9A-Za-z]{8,}")
_ID = re.compile(rf"[0-9A-Za-z]{{{ID_LENGTH}}}")


@dataclass(frozen=True, slots=True)
class Token:
    """A well-formed token. Whether anybody issued it is another question."""

    kind: TokenKind
    public_id: str
    text: str = field(repr=False)


def checksum(text: str) -> str:
    """Return the six characters that end a token beginning with `text` (ASCII)."""
    number = zlib.crc32(text.encode("ascii"))
    digits = ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, 62)
        digits = ALPHABET[digit] + digits
    return digits


def new_id() -> str:
    """Return a fresh public id: 16 random base62 characters (95 bits)."""
    return _random(ID_LENGTH)


def mint(kind: TokenKind, public_id: str) -> Token:
    """Return a token of this kind and id with a fresh secret."""
    body = f"{kind.value}_{public_id}_{_random(SECRET_LENGTH)}"
    return Token(kind, public_id, body + checksum(body))


def parse(text: str) -> Token | None:
    """Return the token that `text` is, or None where its form or its checksum is wrong."""
    form = _FORM.fullmatch(text)
    if form is None or checksum(text[:-_CHECKSUM_LENGTH]) != text[-_CHECKSUM_LENGTH:]:
        return None
    return Token(_KINDS[form[1]], form[2], text)


def tokens_in(text: str) -> list[Token]:
    """Return the well-formed tokens that stand anywhere in a text, in order, each once."""
    found = (parse(form[0]) for form in _FORM.finditer(text))
    return list({token.text: token for token in found if token is not None}.values())


def is_id(text: str) -> bool:
    """Tell whether a text has the form of a public id."""
    return _ID.fullmatch(text) is not None


def holds_token(text: str) -> bool:
    """Tell whether a key or a link token stands somewhere in a text."""
    return _TOKEN.search(text) is not None


def redact(text: str) -> str:
    """Return a text without the keys and link tokens that stand in it."""
    return _TOKEN.sub(r"\1_…", text)


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHABET) for _ in range(length))
