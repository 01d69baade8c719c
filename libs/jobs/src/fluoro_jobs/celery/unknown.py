"""What becomes of a message for an operation that this worker's release does not know.

Celery logs the whole message with a traceback, drops it, and tells a result backend that its task
has failed. To us it says that somebody else should have it: the listener hears of it.
"""

from typing import Any
from uuid import UUID

import structlog
from celery.worker.consumer import Consumer
from kombu.log import get_logger

from fluoro_jobs.celery.messages import attempt_of
from fluoro_jobs.celery.tasks import WorkerApp

log = structlog.get_logger(__name__)
_celery_log = get_logger(__name__)


class LedgerConsumer(Consumer):
    """Celery's consumer, as the app's setting `worker_consumer` names it."""

    app: WorkerApp
    connection_errors: tuple[type[Exception], ...]

    def on_unknown_task(self, _body: Any, message: Any, _exc: Exception) -> None:
        """Drops the message and tells the listener."""
        message.reject_log_error(_celery_log, self.connection_errors)
        try:
            attempt = UUID(message.headers["id"]), attempt_of(message.headers)
        except (ValueError, LookupError, TypeError):
            return  # not ours
        log.warning("operation_unknown", task=str(attempt[0]))
        self.app.listener.unknown(attempt)
