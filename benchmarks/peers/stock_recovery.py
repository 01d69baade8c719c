"""Stock Celery, with what its documentation offers against the loss of a worker.

Its tasks leave traces of when they ran. `task_reject_on_worker_lost` gives the message of a killed
pool child back at once. That of a killed worker comes back after the visibility timeout, which has
to be longer than the longest task.
"""

import os
import signal
import time
from pathlib import Path

from peers import VISIBILITY_SECONDS
from peers.stock_celery import app

app.conf.update(
    task_reject_on_worker_lost=True,
    broker_transport_options={"visibility_timeout": VISIBILITY_SECONDS},
)


@app.task(name="die_once")
def die_once(died: str, again: str) -> None:
    """Kills its process the first time; the files' times tell when."""
    if Path(died).exists():
        Path(again).touch()
        return
    Path(died).touch()
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(name="hold")
def hold(folder: str) -> None:
    """Leaves a file named after its process, and waits for ever."""
    Path(folder, str(os.getpid())).touch()
    while True:
        time.sleep(1)


@app.task(name="spin")
def spin(started: str) -> None:
    """Computes for ever. The file holds the process id."""
    Path(started).write_text(str(os.getpid()))
    while True:
        pow(3, 100_000)
