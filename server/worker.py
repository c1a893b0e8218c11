"""A worker of a group: its number, and its line to the supervisor, which is its standard input.

The supervisor begins with where to listen, as JSON, and later says RETIRE and DRAIN; the worker says SERVING, and
RETIRED when it is. Where the line ends, so has the supervisor, and the worker drains as if it had been told to.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable
from contextlib import suppress

from server.settings import PREFIX, Settings, SettingsInvalid

# Set by the supervisor alone; no setting.
VARIABLE = f"{PREFIX}WORKER"

# Say NOT_SERVING from now on, but do serve; and refuse new calls, and end when those in flight are over.
RETIRE, DRAIN = b"retire", b"drain"
SERVING, RETIRED = b"serving", b"retired"
# What stops a worker at once while it drains. Not SIGTERM: whoever ends a group may send that to each of its processes,
# as systemd does, and the supervisor's order would be the second one.
AT_ONCE = frozenset({signal.SIGINT})


def worker_number() -> int | None:
    """Return which worker of a group this process is, from 1; None for a server that serves by itself."""
    number = os.environ.get(VARIABLE, "")
    return int(number) if number.isascii() and number.isdigit() else None


class Line:
    """A worker's end of the line to its supervisor."""

    def __init__(self) -> None:
        """Take what the supervisor begins with. Raises SettingsInvalid where there is no supervisor."""
        try:
            self._socket = socket.socket(fileno=os.dup(0))
            self._orders = self._socket.makefile("rb")
            self._listen: dict[str, str] = json.loads(self._orders.readline())
        except (OSError, ValueError):
            raise SettingsInvalid(f"{VARIABLE}: is set by the supervisor of several workers alone: unset it") from None

    def settings(self, settings: Settings) -> Settings:
        """Return the settings with the addresses that the group was given, whose ports are known."""
        return settings.model_copy(update=self._listen)

    def serving(self, retire: Callable[[], None]) -> None:
        """Say that this worker serves, and follow orders from now on: to `retire`, and to drain as after SIGTERM."""
        threading.Thread(target=self._follow, args=(retire,), name="orders", daemon=True).start()
        self._say(SERVING)

    def _follow(self, retire: Callable[[], None]) -> None:
        with suppress(OSError):
            while self._orders.readline().rstrip() == RETIRE:
                retire()
                self._say(RETIRED)
        os.kill(os.getpid(), signal.SIGTERM)

    def _say(self, word: bytes) -> None:
        with suppress(OSError):
            self._socket.sendall(word + b"\n")
