"""The revisions that every later answer must reflect.

A revision is opaque: of two different ones nobody but the service can tell which is later, and a question can name only
one. So all that were observed are kept, a question is asked once for each of them, and only if each time the answer is
yes is it a yes. What keeps them few: the answer to a question that named a revision reflects it, so the answer's own
revision may stand in its place; and as soon as two answers come from the same state of the store, one is left.
"""

from __future__ import annotations

import threading


class Revisions:
    """Those that are carried. May be used by many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.carried: tuple[str, ...] = ()

    def observe(self, revision: str) -> None:
        """Carry one from now on. An empty one says nothing."""
        with self._lock:
            if revision and revision not in self.carried:
                self.carried = (*self.carried, revision)

    def advance(self, named: str, answered: str) -> None:
        """Put the revision of an answer in the place of the one that its question named, if that is carried."""
        if not answered or answered == named:
            return
        with self._lock:
            if named in self.carried:
                moved = (answered if each == named else each for each in self.carried)
                self.carried = tuple(dict.fromkeys(moved))

    def drop(self, revision: str) -> None:
        """Carry one no more, which the service cannot verify: its history was replaced, as by a restore."""
        with self._lock:
            self.carried = tuple(each for each in self.carried if each != revision)
