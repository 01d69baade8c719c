"""When Celery's main loop fetches messages: a second condition beside free slots, and a nudge."""

from collections.abc import Callable
from typing import Any

from celery import bootsteps
from celery.worker.consumer.tasks import Tasks


def fetch_only_if(may_fetch: Callable[[], bool]) -> type[bootsteps.StartStopStep]:
    """A step of Celery's consumer that lets it fetch messages while `may_fetch()` is true."""

    class FetchOnlyIf(bootsteps.StartStopStep):
        requires = (Tasks,)

        def start(self, parent: Any) -> None:
            # The QoS object already counts free slots. Celery makes a new one for each connection,
            # and starts its steps anew then.
            qos = parent.task_consumer.channel.qos
            has_slot = qos.can_consume
            qos.can_consume = lambda: may_fetch() and has_slot()

    return FetchOnlyIf


def wake(hub: Any) -> None:
    """Makes the event loop ask at once whether it may fetch. By itself it asks once a second.

    Thread-safe. Does nothing before the loop exists.
    """
    if hub is not None:
        hub.call_soon(_nothing)


def _nothing() -> None:
    """Called for its side effect: the loop turns."""
