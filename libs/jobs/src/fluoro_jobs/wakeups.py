"""Wake-ups through Redis pub/sub: who should look now. Losing one costs latency, never truth, so none of this raises when Redis is down."""

import threading
from typing import Final
from uuid import UUID

import redis
import structlog
from fluoro.v1 import event_pb2

from fluoro_jobs.redis_url import connect

log = structlog.get_logger(__name__)

EVENTS_CHANNEL: Final = "fluoro:events"
"""A job has new events. Payload: the 16 bytes of its UUID."""
PROGRESS_CHANNEL: Final = "fluoro:progress"
"""Live progress. Payload: a serialized fluoro.v1.Progress."""
CANCELS_CHANNEL: Final = "fluoro:cancels"
"""A job was cancelled: workers look at what they run. Payload: the 16 bytes of its UUID."""
GATHER_SECONDS: Final = 0.01
"""How long a `BackgroundPublisher` waits for more to tell."""
PROGRESS_TTL_SECONDS: Final = 3600
"""How long the latest progress of a job is kept for those who start to watch later."""


def progress_key(job: UUID | str) -> str:
    """Key of the hash with the latest progress of a job: field `{step}/{shard}`, value a serialized fluoro.v1.Progress."""
    return f"fluoro:progress:{job}"


class Publisher:
    """Sends wake-ups. Thread-safe."""

    def __init__(self, redis_url: str) -> None:
        """Connects on first use."""
        self._redis = connect(redis_url)

    def events(self, *jobs: UUID) -> None:
        """These jobs have new events."""
        self._publish(EVENTS_CHANNEL, *(job.bytes for job in jobs))

    def cancel(self, job: UUID) -> None:
        """This job was cancelled: watchers and workers should look."""
        self._publish(EVENTS_CHANNEL, job.bytes)
        self._publish(CANCELS_CHANNEL, job.bytes)

    def progress(self, progress: event_pb2.Progress) -> None:
        """The latest of one task: told to watchers and kept for late ones."""
        data, key = progress.SerializeToString(), progress_key(progress.job.removeprefix("jobs/"))
        try:
            pipeline = self._redis.pipeline(transaction=False)
            pipeline.publish(PROGRESS_CHANNEL, data)
            pipeline.hset(key, f"{progress.step}/{progress.shard}", data)
            pipeline.expire(key, PROGRESS_TTL_SECONDS)
            pipeline.execute()
        except redis.RedisError as error:
            log.debug("wakeup_not_sent", channel=PROGRESS_CHANNEL, exception=type(error).__qualname__)

    def _publish(self, channel: str, *payloads: bytes) -> None:
        try:
            pipeline = self._redis.pipeline(transaction=False)
            for payload in payloads:
                pipeline.publish(channel, payload)
            pipeline.execute()
        except redis.RedisError as error:
            log.debug("wakeup_not_sent", channel=channel, exception=type(error).__qualname__)

    def close(self) -> None:
        """Closes the connections."""
        self._redis.close()


class BackgroundPublisher(Publisher):
    """Tells of events from a thread of its own, so that attempts do not wait for Redis; start and end of a short one are told at once."""

    def __init__(self, redis_url: str) -> None:
        """Starts the thread."""
        super().__init__(redis_url)
        self._pending: set[UUID] = set()
        self._lock = threading.Lock()
        self._woken = threading.Event()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="wakeups", daemon=True)
        self._thread.start()

    def events(self, *jobs: UUID) -> None:
        """These jobs have new events. Never blocks."""
        with self._lock:
            self._pending.update(jobs)
        self._woken.set()

    def close(self) -> None:
        """Tells what is left and closes the connections."""
        self._closing.set()
        self._woken.set()
        self._thread.join()
        self._tell()
        super().close()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._woken.wait()
            self._closing.wait(GATHER_SECONDS)
            self._woken.clear()
            self._tell()

    def _tell(self) -> None:
        with self._lock:
            jobs, self._pending = self._pending, set()
        super().events(*jobs)
