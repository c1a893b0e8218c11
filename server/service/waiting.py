"""Telling whoever runs the calls that one of them waits, so that others are worked on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from contextvars import ContextVar

# What the call under way is inside of while it waits for the store on behalf of others too, or for other processes.
ASIDE: ContextVar[Callable[[], AbstractContextManager[None]]] = ContextVar("ASIDE", default=nullcontext)


def aside() -> AbstractContextManager[None]:
    """Return a block that the call under way is to be in while it waits."""
    return ASIDE.get()()
