"""Structured logs, one event a line, on standard error."""

from __future__ import annotations

import logging
import sys

import structlog

from server.domain.token import redact


def configure(log_format: str, level: str) -> None:
    """Set up logging for the process: `json` for machines or `console` for people."""
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

    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            redacted,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.WriteLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=True,
    )
