"""Stock Celery with every setting that its documentation names against losing tasks."""

import os

from celery import Celery

app = Celery("stock", broker=os.environ["PEER_REDIS_URL"])
app.conf.update(
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    task_ignore_result=True,
    worker_prefetch_multiplier=1,
    broker_connection_retry_on_startup=True,
    # Short, so that what Celery gives back it gives back during the run. The default is an hour.
    broker_transport_options={
        "visibility_timeout": 4,
        "unacked_restore_interval": 1,
        "unacked_restore_throttle": 1,
    },
)


@app.task(name="append")
def append(number: int) -> None:
    """Notes that it ran: one write, which the system does not mix with another's."""
    descriptor = os.open(os.environ["PEER_FILE"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(descriptor, f"{number}\n".encode())
    finally:
        os.close(descriptor)
