"""Keyed digests of secrets: the first pepper signs, all of them verify.

A fast keyed hash on purpose. A secret has 190 random bits, so no slow hash is needed against guessing, and the
pepper, which is not in the database, means that writing a digest there is not enough to know a key to it.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from server.domain.errors import ErrorReason, Refusal

MINIMUM_BYTES = 32
_PEPPER_ID = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")


@dataclass(frozen=True, slots=True)
class Pepper:
    """A secret of this service, and the name that rows know it by."""

    pepper_id: str
    secret: bytes = field(repr=False)


class Peppers:
    """The peppers of a process. Raises ValueError for none, a bad or repeated id, or a short secret."""

    def __init__(self, peppers: Sequence[Pepper]) -> None:
        if not peppers:
            raise ValueError("at least one pepper is needed")
        for number, pepper in enumerate(peppers, start=1):
            if _PEPPER_ID.fullmatch(pepper.pepper_id) is None:
                raise ValueError("a pepper's id has 1 to 32 characters matching [a-z0-9][a-z0-9_-]*")
            if len(pepper.secret) < MINIMUM_BYTES:
                # By its number: a line whose two words were swapped has the secret for an id.
                raise ValueError(f"pepper number {number} has fewer than {MINIMUM_BYTES} bytes")
        self._by_id = {pepper.pepper_id: pepper.secret for pepper in peppers}
        if len(self._by_id) != len(peppers):
            raise ValueError("two peppers have the same id")
        # Each is ready to digest a secret, which takes two thirds of the time.
        self._keyed = {pepper.pepper_id: hmac.new(pepper.secret, digestmod="sha256") for pepper in peppers}
        self.signing_id = peppers[0].pepper_id

    def __repr__(self) -> str:
        return f"Peppers({', '.join(self.pepper_ids)})"

    @property
    def pepper_ids(self) -> tuple[str, ...]:
        """Their ids; the first signs."""
        return tuple(self._by_id)

    @classmethod
    def parse(cls, text: str) -> Peppers:
        """Read one `id hexadecimal-secret` a line; the first signs. Blank lines and `#` comments are skipped.

        Raises ValueError, which never quotes a secret.
        """
        peppers = []
        for number, line in enumerate(text.splitlines(), start=1):
            words = line.split("#", 1)[0].split()
            if not words:
                continue
            try:
                pepper_id, secret = words
                peppers.append(Pepper(pepper_id, bytes.fromhex(secret)))
            except ValueError:
                raise ValueError(f"line {number} is not 'id hexadecimal-secret'") from None
        return cls(peppers)

    def digest(self, text: str) -> tuple[str, bytes]:
        """Return the id of the signing pepper and the digest (32 bytes) of an ASCII text under it."""
        return self.signing_id, self._digest(self.signing_id, text)

    def require(self, pepper_id: str) -> None:
        """Make sure that what was made with a pepper can be compared here. Raises Refusal (PEPPER_UNAVAILABLE)."""
        if pepper_id not in self._by_id:
            raise Refusal(
                ErrorReason.PEPPER_UNAVAILABLE,
                "a stored digest was made with a pepper that this process does not have",
                metadata={"pepper_id": pepper_id},
            )

    def matches(self, text: str, pepper_id: str, digest: bytes) -> bool:
        """Tell, in constant time, whether `digest` was made from `text`.

        Raises Refusal (PEPPER_UNAVAILABLE) where the pepper is not here: then nobody can tell.
        """
        self.require(pepper_id)
        return hmac.compare_digest(self._digest(pepper_id, text), digest)

    def derive(self, purpose: str, pepper_id: str) -> bytes:
        """Return a key (32 bytes) that only holders of a pepper can make, apart for each purpose: HKDF-SHA256.

        Raises Refusal (PEPPER_UNAVAILABLE) where the pepper is not here.
        """
        self.require(pepper_id)
        extracted = hmac.digest(bytes(32), self._by_id[pepper_id], "sha256")
        return hmac.digest(extracted, purpose.encode("ascii") + b"\x01", "sha256")

    def sign(self, purpose: str, message: bytes) -> bytes:
        """Return a tag (16 bytes) that only holders of the signing pepper can make, apart for each purpose."""
        return _tag(self._by_id[self.signing_id], purpose, message)

    def signed(self, purpose: str, message: bytes, tag: bytes) -> bool:
        """Tell, in constant time, whether any pepper here made this tag."""
        return any(hmac.compare_digest(_tag(secret, purpose, message), tag) for secret in self._by_id.values())

    def seal(self, pepper_id: str, purpose: str, message: bytes) -> bytes:
        """Return a tag (32 bytes) that only holders of this pepper, which must be here, can make."""
        return hmac.digest(self._by_id[pepper_id], _purposed(purpose, message), "sha256")

    def _digest(self, pepper_id: str, text: str) -> bytes:
        keyed = self._keyed[pepper_id].copy()
        keyed.update(text.encode("ascii"))
        return keyed.digest()


def _tag(secret: bytes, purpose: str, message: bytes) -> bytes:
    return hmac.digest(secret, _purposed(purpose, message), "sha256")[:16]


def _purposed(purpose: str, message: bytes) -> bytes:
    return purpose.encode("ascii") + b"\0" + message
