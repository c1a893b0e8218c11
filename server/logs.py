"""Structured logs, one event a line, on standard error."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TextIO, cast

import structlog

from server.domain.token import redact


class _Steadfast:
    """A file for lines of a log that nobody is to fail for: what cannot be written is counted, and told of later.

    The reader of a pipe may end, and a disk be full; a change that was made must be answered all the same.
    """

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._lost = 0

    def write(self, line: str) -> None:
        """Write a line, if that can be done."""
        try:
            if self._lost:
                self._file.write(f"{self._lost} lines of the log could not be written\n")
                self._lost = 0
            self._file.write(line)
        except (OSError, ValueError):
            self._lost += 1

    def flush(self) -> None:
        """Have it written out, if that can be done."""
        with suppress(OSError, ValueError):
            self._file.flush()


def configure(log_format: str, level: str, worker: int | str | None = None) -> None:
    """Set up logging for the process: `json` for machines or `console` for people.

    Of several processes that write to one file each line names the `worker`, and is written at once.
    """
    renderer: structlog.types.Processor
    exceptions: list[structlog.types.Processor] = []
    if log_format == "json":
        # Text tracebacks: they hold lines of code, never the values of variables.
        exceptions = [structlog.processors.format_exc_info]
        renderer = structlog.processors.JSONRenderer()
    else:
        renderer = structlog.dev.ConsoleRenderer(
            colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
        )

    def redacted(logger: object, name: str, event: structlog.types.EventDict) -> str:
        """Render a line, and take out whatever still looks like a key: the last line of defence, not the first."""
        return redact(str(renderer(logger, name, event)))

    def named(_logger: object, _name: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return event if worker is None else {"worker": worker, **event}

    structlog.configure(
        processors=[
            named,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            redacted,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Steadfast(sys.stderr))),
        cache_logger_on_first_use=True,
    )
