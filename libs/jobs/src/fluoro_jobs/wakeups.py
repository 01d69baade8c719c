"""Wake-ups through Redis pub/sub: who should look now.

Losing one costs latency, never truth, so none of this raises or waits for Redis.

Each goes to those whom it concerns: news and progress to the channel of the owner's shard, which
gateways listen to while somebody there watches one of its owners; a cancel to the worker processes
that ran the job.
"""

import struct
import threading
import time
import zlib
from collections.abc import Iterable
from itertools import islice
from typing import Any, Final
from uuid import UUID

import redis
import structlog
from fluoro.v1 import event_pb2
from fluoro_telemetry import metrics

from fluoro_jobs.redis_url import connect, probe

log = structlog.get_logger(__name__)

SHARDS: Final = 256
"""Channels that the owners share.

Enough of them that a gateway does not hear of everybody; few enough to subscribe to all at once.
"""
GATHER_SECONDS: Final = 0.01
"""How long a `Publisher` waits for more to tell. Progress and a cancel do not wait."""
BUSY_GATHER_SECONDS: Final = 0.03
"""The same right after a batch of several: short tasks are under way, one after another."""
AWAY_SECONDS: Final = 1
"""Pause after Redis did not take the wake-ups."""
MAX_PENDING: Final = 20_000
"""Wake-ups that wait while Redis is away; of more the oldest are dropped.

One per job, task (its latest progress) and cancelled worker.
"""
BATCH: Final = 1000
"""Wake-ups sent in one go."""
CLOSE_SECONDS: Final = 2
"""How long the end of a process waits for the last ones to be sent."""
PROGRESS_TTL_SECONDS: Final = 3600
"""How long the latest progress of a job is kept for those who start to watch later."""

_HEAD: Final = struct.Struct("!16sH")
_Command = tuple[str | bytes | int, ...]


def progress_key(job: UUID | str) -> str:
    """Key of the hash with the latest progress of a job.

    Field `{step}/{shard}`, value a serialized fluoro.v1.Progress.
    """
    return f"fluoro:progress:{job}"


def shard_of(owner: str) -> int:
    """The owner's shard: the same in every process and release."""
    # Not Python's hash, which differs from process to process.
    return zlib.crc32(owner.encode()) % SHARDS


def wakeups_channel(shard: int) -> str:
    """The channel for news and progress of a shard's owners. Payload: `pack`."""
    return f"fluoro:wakeups:{shard}"


def cancels_channel(worker: str) -> str:
    """The channel that makes a worker process, by its name, look at what it runs.

    Payload: the 16 bytes of a cancelled job's UUID.
    """
    return f"fluoro:cancels:{worker}"


def pack(job: UUID, owner: str, progress: bytes = b"") -> bytes:
    """A wake-up: the job has new events; or, with a serialized fluoro.v1.Progress, that."""
    # The owner stands in front, so that a gateway skips messages about others without parsing them.
    name = owner.encode()
    return _HEAD.pack(job.bytes, len(name)) + name + progress


def unpack(payload: bytes) -> tuple[UUID, str, bytes]:
    """What `pack` was given. ValueError if it is not from `pack`."""
    try:
        job, length = _HEAD.unpack_from(payload)
    except struct.error as error:
        raise ValueError("Too short for a wake-up.") from error
    end = _HEAD.size + length
    return UUID(bytes=job), payload[_HEAD.size : end].decode(), payload[end:]


class Publisher:
    """Sends wake-ups from a thread of its own. Thread-safe; no call waits for Redis."""

    def __init__(self, redis_url: str) -> None:
        """Starts the thread. ValueError for a URL of an unknown kind."""
        self._redis = connect(redis_url)
        self._pending: dict[tuple[object, ...], tuple[_Command, ...]] = {}
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._hurried = threading.Event()
        self._closing = threading.Event()
        self._probe_at = 0.0
        self._last_batch = 0
        self._thread = threading.Thread(target=self._run, name="wakeups", daemon=True)
        self._thread.start()

    def events(self, job: UUID, owner: str) -> None:
        """The job has new events."""
        self._tell(
            "events",
            job,
            commands=[("PUBLISH", wakeups_channel(shard_of(owner)), pack(job, owner))],
        )

    def cancel(self, job: UUID, owner: str, workers: Iterable[str]) -> None:
        """The job was cancelled: watchers should look, and the worker processes that ran its tasks.

        workers: their names.
        """
        self.events(job, owner)
        # The names of workers, not of jobs: several cancels for one worker become one message.
        for worker in workers:
            self._tell("cancel", worker, commands=[("PUBLISH", cancels_channel(worker), job.bytes)])
        self._hurried.set()

    def progress(self, owner: str, progress: event_pb2.Progress) -> None:
        """The latest of one task: told to watchers and kept for late ones."""
        data, job = progress.SerializeToString(), UUID(progress.job.removeprefix("jobs/"))
        key, field = progress_key(job), f"{progress.step}/{progress.shard}"
        publish: _Command = ("PUBLISH", wakeups_channel(shard_of(owner)), pack(job, owner, data))
        self._tell(
            "progress",
            job,
            field,
            commands=[publish, ("HSET", key, field, data), ("EXPIRE", key, PROGRESS_TTL_SECONDS)],
        )
        self._hurried.set()

    def close(self) -> None:
        """Sends what is left, if Redis takes it, and closes the connections. Seconds at most."""
        self._closing.set()
        self._hurried.set()
        self._woken.set()
        # The process must end even if Redis hangs. What is lost costs its readers a second.
        self._thread.join(CLOSE_SECONDS)
        self._redis.close()

    def _tell(self, *key: object, commands: Iterable[_Command]) -> None:
        with self._lock:
            # In place of what waits under the same key: who looks once sees all that happened.
            self._pending[key] = tuple(commands)
            self._bound()
        self._woken.set()

    def _bound(self) -> None:
        # A wake-up that was replaced has kept its place: what waits longest goes first.
        while len(self._pending) > MAX_PENDING:
            oldest = next(iter(self._pending))
            del self._pending[oldest]
            metrics.WAKEUPS_DROPPED.labels(kind=str(oldest[0])).inc()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._woken.wait()
            # A short task tells at its begin and at its end; gathered, the two are one message.
            self._hurried.wait(BUSY_GATHER_SECONDS if self._last_batch > 1 else GATHER_SECONDS)
            # Cleared before the batch is taken, so what is told from here on wakes the thread
            # again.
            self._hurried.clear()
            self._woken.clear()
            self._try_to_send()
        self._try_to_send()  # what was told while those before were on their way

    def _try_to_send(self) -> None:
        try:
            self._send()
        except redis.RedisError as error:
            log.debug("wakeups_wait", exception=type(error).__qualname__)
            self._closing.wait(AWAY_SECONDS)
            # Wakes itself, because the unsent wake-ups must not wait for something new.
            self._woken.set()
        except Exception:
            # Without this thread everybody would find out late, and nobody would know why.
            log.exception("wakeups_failed")
            self._closing.wait(AWAY_SECONDS)

    def _send(self) -> None:
        """Sends all that waits; what Redis did not take waits on, unless there is something newer.

        redis.RedisError.
        """
        with self._lock:
            batch, self._pending = self._pending, {}
        # Before it is sent: how much came together says how busy it is, whether or not Redis takes
        # it.
        self._last_batch = len(batch)
        try:
            # Once a second at most: a probe for each batch would double the traffic.
            if batch and time.monotonic() >= self._probe_at:
                # A replica takes what is published, too, and tells hardly anybody.
                probe(self._redis)
                self._probe_at = time.monotonic() + AWAY_SECONDS
            while batch:
                # In pieces, so that a long outage does not end in one huge pipeline.
                some = list(islice(batch, BATCH))
                pipeline: Any = self._redis.pipeline(transaction=False)
                for key in some:
                    for command in batch[key]:
                        pipeline.execute_command(*command)
                # Progress that a full Redis does not keep is no reason to tell everything again.
                pipeline.execute(raise_on_error=False)
                # Deleted only after they were sent. The handler below puts the rest back.
                for key in some:
                    del batch[key]
        except redis.RedisError:
            with self._lock:
                # What was told meanwhile is newer, and wins.
                self._pending = batch | self._pending
                self._bound()
            raise
