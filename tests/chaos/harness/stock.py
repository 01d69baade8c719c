"""The peer of the same run: stock Celery on a Valkey of its own, killed under load once a round.

A task counts as lost when it has never run after all kills, although the last worker has nothing
left to do: queue and unacknowledged messages are empty, or nothing has moved for many times as long
as Celery waits before it gives a message back. Running twice is fine: acks_late promises that.
"""

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import redis
from celery import Celery
from fluoro_local.children import Child, spawn
from fluoro_local.servers import ValkeyServer

TASKS: Final = 800
"""Published per kill: enough to be busy when it comes."""
BUSY_AFTER: Final = 20
"""Tasks done before the kill, so that it hits a worker at work."""
KILL_SECONDS: Final = (0.05, 0.3)
"""When the kill comes after that."""
START_SECONDS: Final = 60
"""How long a worker may take to be at work."""
DRAIN_SECONDS: Final = 90
LOOK_SECONDS: Final = 0.5
QUIET_LOOKS: Final = 3
"""Looks in a row that find nothing to do."""
STILL_SECONDS: Final = 60
"""A worker that ran nothing for so long leaves what remains: 15 times its visibility_timeout."""


class Stock:
    """The peer. published, kills: so far."""

    def __init__(self, folder: Path, seed: int) -> None:
        """folder: empty, of its own."""
        self._file = folder / "ran"
        self._file.touch()
        self._log = folder / "worker.log"
        self._rng = random.Random(seed)
        self._valkey = ValkeyServer(folder / "valkey")
        self._worker: Child | None = None
        self.published = 0
        self.kills = 0

    def start(self) -> None:
        """Starts server and worker."""
        self._valkey.start()
        self._worker = self._spawn()

    def stop(self) -> None:
        """Ends both."""
        if self._worker is not None:
            self._worker.kill()
        self._valkey.kill()

    def strike(self) -> None:
        """Publishes, kills the worker and its children in the midst of it, and starts another."""
        before = self._size()
        app = Celery(broker=self._valkey.url, set_as_current=False)
        append: Any = app.signature("append")
        for number in range(self.published, self.published + TASKS):
            append.clone((number,)).apply_async(ignore_result=True)
        app.close()
        self.published += TASKS
        if self._worker is None or not _until(
            lambda: self._size() > before + BUSY_AFTER * len(str(self.published)), START_SECONDS
        ):
            raise SystemExit(f"The peer does not work:\n{self._log.read_text()[-2000:]}")
        _pause(self._rng.uniform(*KILL_SECONDS))
        self._worker.kill()
        self.kills += 1
        self._worker = self._spawn()

    def drain(self) -> tuple[int, int]:
        """Waits until the worker has nothing left; how many tasks never ran, or ran twice."""
        quiet, size = 0, -1
        moved = time.monotonic()
        deadline = moved + DRAIN_SECONDS
        with redis.Redis.from_url(self._valkey.url) as client:
            while quiet < QUIET_LOOKS:
                if time.monotonic() > deadline:
                    raise SystemExit("The peer did not drain.")
                _pause(LOOK_SECONDS)
                before, size = size, self._size()
                if size != before:
                    moved = time.monotonic()
                elif time.monotonic() - moved > STILL_SECONDS:
                    break  # messages that a killed worker held stay unacknowledged at times
                quiet = (
                    0
                    if size != before or client.llen("celery") or client.hlen("unacked")
                    else quiet + 1
                )
        ran = Counter(map(int, self._file.read_text().split()))
        return self.published - len(ran), sum(count > 1 for count in ran.values())

    def _size(self) -> int:
        return self._file.stat().st_size

    def _spawn(self) -> Child:
        arguments = [
            "-A",
            "harness.stock_tasks",
            "worker",
            "-P",
            "prefork",
            "-c",
            "2",
            "--loglevel",
            "WARNING",
        ]
        environment = os.environ | {
            "PEER_REDIS_URL": self._valkey.url,
            "PEER_FILE": str(self._file),
        }
        return spawn(
            [sys.executable, "-m", "celery", *arguments],
            log=self._log,
            env=environment,
            cwd=Path(__file__).parents[1],
        )


def _until(probe: Callable[[], bool], seconds: float) -> bool:
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not (value := probe()) and time.monotonic() < deadline:
        _pause(0.01)
    return value


def _pause(seconds: float) -> None:
    threading.Event().wait(seconds)
