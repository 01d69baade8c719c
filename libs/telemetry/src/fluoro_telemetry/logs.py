"""Logs: structlog and the standard library's logging through one renderer, a line per event.

They go to stderr. Tracebacks leave out local variables, which may hold a patient's data.
"""

import logging
import sys
from collections.abc import Callable
from typing import Any, Final

import structlog
from structlog.processors import ExceptionRenderer, JSONRenderer, TimeStamper
from structlog.stdlib import ProcessorFormatter
from structlog.tracebacks import ExceptionDictTransformer
from structlog.typing import EventDict, Processor

from fluoro_telemetry.privacy import redact_patient_data


def _json() -> list[Processor]:
    return [
        ExceptionRenderer(ExceptionDictTransformer(show_locals=False)),
        redact_patient_data,
        JSONRenderer(),
    ]


def _console() -> list[Processor]:
    renderer = structlog.dev.ConsoleRenderer(
        colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
    )
    return [redact_patient_data, renderer]


_RENDERERS: Final[dict[str, Callable[[], list[Processor]]]] = {"json": _json, "console": _console}


def configure_logging(service: str, level: str = "INFO", format: str = "json") -> None:
    """Sets up logging of the whole process; the last call counts.

    service: name of the process's service, in every event.
    level: DEBUG, INFO, WARNING, ERROR or CRITICAL, in either case.
    format: `json` (one object per line; the traceback is the list `exception`) or `console` (for
    people). ValueError for another level or format.
    """
    levels = logging.getLevelNamesMapping()
    if level.upper() not in levels:
        raise ValueError(
            f"FLUORO_LOG_LEVEL is {level!r}; it is one of DEBUG, INFO, WARNING, ERROR, CRITICAL"
        )
    if format not in _RENDERERS:
        raise ValueError(f"FLUORO_LOG_FORMAT is {format!r}; it is one of {', '.join(_RENDERERS)}")
    number = levels[level.upper()]
    # structlog's own loggers and those of libraries go through the same steps, or half the lines
    # would lack the service.
    before: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        TimeStamper(fmt="iso", utc=True),
        _named(service),
    ]
    formatter = ProcessorFormatter(
        foreign_pre_chain=before,
        processors=[ProcessorFormatter.remove_processors_meta, *_RENDERERS[format]()],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    # `force` drops handlers that a library or Celery has set up before.
    logging.basicConfig(handlers=[handler], level=number, force=True)
    logging.captureWarnings(capture=True)
    structlog.configure(
        processors=[
            *before,
            structlog.stdlib.PositionalArgumentsFormatter(),
            ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.stdlib.LoggerFactory(),
        # Not cached: a later call of this function has to reach loggers that exist by then.
        cache_logger_on_first_use=False,
    )


def _named(service: str) -> Processor:
    def add(_logger: Any, _method: str, event: EventDict) -> EventDict:
        event["service"] = service
        return event

    return add
