"""A gateway for tests, and what workers would do to its jobs, without workers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import SubmitJobRequest, WatchJobsRequest
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.ledger.graph import JobGraph, TaskResult
from fluoro_jobs.ledger.store import transition
from fluoro_jobs.states import Outcome, TaskState
from fluoro_jobs.wakeups import Publisher

from gateway.testing import Client, serving


class Rig:
    """A gateway and the other side of the ledger: what workers would do to jobs."""

    def __init__(self, client: Client, ledger: Ledger, publisher: Publisher) -> None:
        """Closing them is the caller's."""
        self.client, self.ledger, self.publisher = client, ledger, publisher

    async def submit(self, owner: str = "ada", **labels: str) -> str:
        """The name of a new job of one step."""
        metadata = (("fluoro-owner", owner),)
        parts = [UploadBlobRequest(header=UploadBlobHeader(size_bytes=1)), UploadBlobRequest(chunk=b"x")]
        blob = (await self.client.blobs.UploadBlob(iter(parts), metadata=metadata)).blob.name
        job = Job(inputs=[blob], steps=[Step(name="a", inspect_dicom=InspectDicom())], labels=labels)
        return str((await self.client.jobs.SubmitJob(SubmitJobRequest(job=job), metadata=metadata)).job.name)

    async def act(self, job: str, act: Callable[[JobGraph], object], *, wake: bool = True) -> None:
        """Does something to the job in the ledger and, as workers do, says so in Redis."""

        def there() -> None:
            with self.ledger.connection() as connection:
                transition(connection, UUID(job[5:]), act)
            if wake:
                self.publisher.events(UUID(job[5:]))

        await asyncio.to_thread(there)

    async def start(self, job: str, *, wake: bool = True) -> None:
        """A worker claims the job's task."""

        def start(graph: JobGraph) -> None:
            (task,) = graph.tasks.values()
            task.state = TaskState.QUEUED
            graph.start(task)

        await self.act(job, start, wake=wake)

    async def succeed(self, job: str, *, wake: bool = True) -> None:
        """It brings an empty result."""
        await self.act(job, lambda graph: graph.succeed(next(iter(graph.tasks.values())), TaskResult(b"")), wake=wake)

    async def run(self, job: str, *, wake: bool = True) -> None:
        """The job starts and succeeds: a commit each; its events are then 1 to 7."""
        await self.start(job, wake=wake)
        await self.succeed(job, wake=wake)

    async def fail_often(self, job: str, times: int, text: str) -> None:
        """Claims and failures of the task, each with a text of some length."""

        def go(graph: JobGraph) -> None:
            (task,) = graph.tasks.values()
            for _ in range(times):
                task.state = TaskState.QUEUED
                graph.start(task)
                task.allowed = task.attempt + 2
                graph.fail(task, Outcome.FAILED, "INTERNAL", text, may_retry=True)

        await self.act(job, go)

    def watch(self, start_cursor: str = "", owner: str = "ada", **labels: str) -> Any:
        """The call of WatchJobs."""
        request = WatchJobsRequest(start_cursor=start_cursor, labels=labels)
        return self.client.jobs.WatchJobs(request, metadata=(("fluoro-owner", owner),))


@asynccontextmanager
async def rigged(database_url: str, redis_url: str, blob_url: str, **overrides: Any) -> AsyncIterator[Rig]:
    """A gateway that polls and bookmarks in fractions of a second. overrides: other fields of its settings."""
    ledger, publisher = Ledger(database_url), Publisher(redis_url)
    fields: dict[str, Any] = {"watch_poll_interval_seconds": 0.1, "watch_bookmark_interval_seconds": 0.2} | overrides
    try:
        async with serving(database_url, redis_url, blob_url, **fields) as client:
            yield Rig(client, ledger, publisher)
    finally:
        publisher.close()
        ledger.close()
