"""A gateway for tests, and what workers would do to its jobs, without workers."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Final
from uuid import UUID

from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import SubmitJobRequest, WatchJobsRequest
from fluoro_jobs.errors import FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts
from fluoro_jobs.ledger.attempts import Claim, Worker
from fluoro_jobs.ledger.audience import audience
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.records import TaskResult
from fluoro_jobs.ledger.store import transition
from fluoro_jobs.testing.rig import queue_tasks
from fluoro_jobs.wakeups import Publisher

from gateway.testing import Client, serving

WORKER: Final = Worker(new_id(), "host:1", "dicom", slots=1, version="0")
"""Whose attempts they are."""


class Stage:
    """A gateway and the other side of the ledger: what workers would do to jobs."""

    def __init__(self, client: Client, ledger: Ledger, publisher: Publisher) -> None:
        """Closing them is the caller's."""
        self.client, self.ledger, self.publisher = client, ledger, publisher

    async def submit(self, owner: str = "ada", **labels: str) -> str:
        """The name of a new job of one step."""
        metadata = (("fluoro-owner", owner),)
        parts = [
            UploadBlobRequest(header=UploadBlobHeader(size_bytes=1)),
            UploadBlobRequest(chunk=b"x"),
        ]
        blob = (await self.client.blobs.UploadBlob(iter(parts), metadata=metadata)).blob.name
        job = Job(
            inputs=[blob], steps=[Step(name="a", inspect_dicom=InspectDicom())], labels=labels
        )
        return str(
            (
                await self.client.jobs.SubmitJob(SubmitJobRequest(job=job), metadata=metadata)
            ).job.name
        )

    async def act(
        self, job: str, act: Callable[[LedgerConnection, UUID], object], *, wake: bool = True
    ) -> None:
        """Does something to the job in the ledger and, as workers do, says so in Redis."""

        def there() -> None:
            with self.ledger.connection() as connection:
                act(connection, UUID(job[5:]))
                told = audience(connection, [UUID(job[5:])]) if wake else []
            for one in told:
                self.publisher.events(one.job, one.owner)

        await asyncio.to_thread(there)

    async def start(self, job: str, *, wake: bool = True) -> None:
        """A worker claims the job's task."""
        await self.act(job, claim, wake=wake)

    async def succeed(self, job: str, *, wake: bool = True) -> None:
        """It brings an empty result."""

        def succeed(graph: JobGraph) -> None:
            (task,) = graph.tasks.values()
            graph.succeed(task, TaskResult(b""))

        await self.act(
            job, lambda connection, job_id: transition(connection, job_id, succeed), wake=wake
        )

    async def run(self, job: str, *, wake: bool = True) -> None:
        """The job starts and succeeds: a commit each; its events are then 1 to 7."""
        await self.start(job, wake=wake)
        await self.succeed(job, wake=wake)

    async def fail_often(self, job: str, times: int, text: str) -> None:
        """Claims and failures of the task, each with a text of some length."""

        def go(connection: LedgerConnection, job_id: UUID) -> None:
            for _ in range(times):
                attempts.fail(
                    connection,
                    claim(connection, job_id),
                    FluoroError(Reason.INTERNAL, text, retryable=True),
                )

        await self.act(job, go)

    def watch(self, start_cursor: str = "", owner: str = "ada", **labels: str) -> Any:
        """The call of WatchJobs."""
        request = WatchJobsRequest(start_cursor=start_cursor, labels=labels)
        return self.client.jobs.WatchJobs(request, metadata=(("fluoro-owner", owner),))


def claim(connection: LedgerConnection, job: UUID) -> Claim:
    """Dispatches and claims the job's one task, whatever became of it before."""
    (task,) = queue_tasks(connection, job)
    connection.execute(
        (
            "UPDATE tasks t SET allowed = o.attempt + 2 FROM open_tasks o"
            " WHERE o.task_id = t.id AND t.id = %s"
        ),
        (task,),
    )
    claimed = attempts.claim(connection, task, WORKER)
    if claimed is None:
        raise RuntimeError("the task was not to be had")
    return claimed


@asynccontextmanager
async def staged(
    database_url: str, redis_url: str, blob_url: str, **overrides: Any
) -> AsyncIterator[Stage]:
    """A gateway that polls and bookmarks in fractions of a second.

    overrides: other fields of its settings.
    """
    ledger, publisher = Ledger(database_url), Publisher(redis_url)
    fields: dict[str, Any] = {
        "watch_poll_interval_seconds": 0.1,
        "watch_bookmark_interval_seconds": 0.2,
    } | overrides
    try:
        async with serving(database_url, redis_url, blob_url, **fields) as client:
            yield Stage(client, ledger, publisher)
    finally:
        publisher.close()
        ledger.close()
