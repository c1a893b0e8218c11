"""The caller's own credential: the `svc` key that says on whose behalf the service is asked."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path

_log = logging.getLogger("texture_auth")

# What may stand in metadata. gRPC's own error shows what does not.
_CREDENTIAL = re.compile(r"[\x21-\x7e]+")

Metadata = tuple[tuple[str, str], ...]


class CallerKey:
    """Metadata with the caller's key, which is asked for at each call, so that one that was rotated counts at once."""

    def __init__(self, source: Callable[[], str]) -> None:
        self._source = source
        self._made: tuple[str, Metadata] = ("", ())

    def metadata(self) -> Metadata:
        """Return the metadata of a call. Raises what the source raises, and ValueError for what is no key."""
        key = self._source()
        made = self._made
        if key != made[0]:
            made = (key, (("authorization", f"Bearer {_checked(key)}"),)) if key.strip() else (key, ())
            self._made = made
        return made[1]


def caller_key(key: str | Callable[[], str], file: str | os.PathLike[str] | None) -> CallerKey:
    """Return the credential that was chosen. Raises ValueError for two of them or no key, OSError for no file."""
    if file is not None:
        if key:
            raise ValueError("caller_key and caller_key_file exclude one another")
        return CallerKey(_KeyFile(Path(file)))
    if callable(key):
        return CallerKey(key)
    fixed = key.strip()
    if fixed:
        _checked(fixed)
    return CallerKey(lambda: fixed)


def _checked(key: str) -> str:
    key = key.strip()
    if _CREDENTIAL.fullmatch(key) is None:
        raise ValueError("the caller's key is not a svc key")
    return key


class _KeyFile:
    """A file with a key, read again when it has changed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._state = self._look()
        self._key = self._read()

    def __call__(self) -> str:
        try:
            state = self._look()
            if state != self._state:
                self._key = self._read()
                self._state = state
        except (OSError, ValueError) as error:
            # It is perhaps being replaced. The key that it held may serve on; where it does not, the service says so.
            _log.warning("the caller's key cannot be read from %s: %s", self._path, type(error).__name__)
        return self._key

    def _look(self) -> tuple[int, int, int]:
        found = self._path.stat()
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> str:
        try:
            key = self._path.read_text("utf-8")
        except UnicodeDecodeError:
            # Whose text is what the file holds.
            raise ValueError(f"{self._path} is not text") from None
        return _checked(key)
