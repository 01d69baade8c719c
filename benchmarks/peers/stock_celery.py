"""Celery as its documentation advises for tasks that must not be lost.

acks_late, one message per process at a time, JSON, no results.
"""

import os
from typing import Any

from celery import Celery
from celery.signals import worker_ready

app = Celery("stock", broker=os.environ["PEER_REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    worker_prefetch_multiplier=1,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    broker_connection_retry_on_startup=True,
)


@app.task(name="noop")
def noop(job: dict[str, Any]) -> None:
    """Does nothing with the payload."""


@worker_ready.connect
def say_so(**_: object) -> None:
    """For a worker whose log begins at warnings."""
    print("The worker is ready.", flush=True)
