"""Jobs, workers and schedulers for tests: real ledger, Redis and processes, without a gateway."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import psycopg
from fluoro.v1 import blob_service_pb2, event_pb2, job_pb2, job_service_pb2
from fluoro_blobs import BlobStore
from google.protobuf.duration_pb2 import Duration
from psycopg import Connection
from psycopg.rows import TupleRow

from fluoro_jobs.dispatch import Dispatcher
from fluoro_jobs.errors import FluoroError
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import accept, blobs, read
from fluoro_jobs.ledger.connection import Ledger
from fluoro_jobs.states import JobState
from fluoro_jobs.wakeups import Publisher

Value = TypeVar("Value")
OWNER = "tester"
TERMINAL = {
    job_pb2.Job.State.Value(f"STATE_{name}")
    for name in JobState
    if name not in {JobState.PENDING, JobState.RUNNING}
}


def until(probe: Callable[[], Value], seconds: float = 30, what: str = "the condition") -> Value:
    """The first truthy value of `probe`, asked again until the deadline; then AssertionError."""
    deadline = time.monotonic() + seconds
    while not (value := probe()):
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.02)
    return value


@dataclass
class Rig:
    """One deployment for one test. folder: for logs and files."""

    database_url: str
    redis_url: str
    blob_url: str
    folder: Path
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Connects."""
        self.ledger = Ledger(self.database_url, max_connections=4)
        self.dispatcher = Dispatcher(self.ledger, self.redis_url)
        self.blobs = BlobStore.from_url(self.blob_url)

    @contextmanager
    def connection(self) -> Iterator[Connection[TupleRow]]:
        """A connection of the test's own."""
        with psycopg.connect(self.database_url, autocommit=True) as connection:
            yield connection

    def blob(self, data: bytes, owner: str = OWNER) -> str:
        """Uploads; the resource name."""
        name = f"blobs/{new_id()}"
        self.blobs.put(name, data)
        record = blob_service_pb2.Blob(
            name=name,
            size_bytes=len(data),
            sha256=hashlib.sha256(data).digest(),
            media_type="application/json",
        )
        with self.connection() as connection:
            return blobs.add(connection, owner, record).name

    def job_of(
        self, *commands: dict[str, Any], operation: str = "inspect_dicom", max_attempts: int = 3
    ) -> job_pb2.Job:
        """A job of one step for `fluoro_jobs.testing.worker`, with hardly any back-off.

        operation: `inspect_dicom`, or `export_report` for the other queue.
        """
        job = job_pb2.Job(inputs=[self.blob(json.dumps(commands).encode())])
        step = job.steps.add(name="step")
        getattr(step, operation).SetInParent()
        if operation == "export_report":
            step.export_report.title = job.inputs[0]
        step.retry_policy.max_attempts = max_attempts
        step.retry_policy.initial_backoff.CopyFrom(Duration(nanos=50_000_000))
        return job

    def submit(self, job: job_pb2.Job, *, owner: str = OWNER, request_id: str = "") -> UUID:
        """Accepts the job, as the gateway would, and dispatches. FluoroError if it is refused."""
        submission = accept.validate(
            job_service_pb2.SubmitJobRequest(job=job, request_id=request_id), owner
        )
        with self.ledger.connection() as connection:
            (answer,) = accept.accept(connection, [submission])
        if isinstance(answer, FluoroError):
            raise answer
        self.dispatcher.dispatch()
        return UUID(answer.name.removeprefix("jobs/"))

    def job(self, job_id: UUID, owner: str = OWNER) -> job_pb2.Job:
        """The job now."""
        with self.connection() as connection:
            return read.get_job(connection, owner, job_id)

    def events(self, job_id: UUID) -> list[event_pb2.Event]:
        """All events of the job."""
        with self.connection() as connection:
            return read.events_after(connection, {job_id: 0})

    def finished(self, job_id: UUID, seconds: float = 30) -> job_pb2.Job:
        """The job once it is terminal; AssertionError if it takes longer."""
        until(lambda: self.job(job_id).state in TERMINAL, seconds, "the end of the job")
        return self.job(job_id)

    def running(self, job_id: UUID, seconds: float = 30) -> job_pb2.Attempt:
        """The newest attempt of the job's first task, once it runs."""

        def attempt() -> job_pb2.Attempt | None:
            task = self.job(job_id).steps[0].tasks[0]
            return task.attempts[-1] if task.state == job_pb2.Task.STATE_RUNNING else None

        found = until(attempt, seconds, "a running attempt")
        assert found is not None
        return found

    def start(self, *arguments: str, name: str = "", **settings: object) -> subprocess.Popen[bytes]:
        """A service process, `python -m …`, stopped at the end of the test.

        settings: FLUORO_ variables by their names.
        """
        environment = os.environ | {
            "FLUORO_DATABASE_URL": self.database_url,
            "FLUORO_REDIS_URL": self.redis_url,
            "FLUORO_BLOB_URL": self.blob_url,
            "FLUORO_GRPC_HOST": "127.0.0.1",
            "FLUORO_HTTP_HOST": "127.0.0.1",
            "FLUORO_HTTP_PORT": "0",
            **{f"FLUORO_{key.upper()}": str(value) for key, value in settings.items()},
        }
        with (self.folder / f"{name or arguments[0]}-{len(self.processes)}.log").open(
            "wb"
        ) as output:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def served(self, module: str, http_port: int, **settings: object) -> subprocess.Popen[bytes]:
        """A service process once it calls itself ready. settings: as for `start`."""
        process = self.start(module, name=module, http_port=http_port, **settings)

        def ready() -> bool:
            assert process.poll() is None, self.logs()
            with closing(HTTPConnection("127.0.0.1", http_port, timeout=5)) as connection:
                try:
                    connection.request("GET", "/readyz")
                    return connection.getresponse().status == HTTPStatus.OK
                except (OSError, HTTPException):
                    return False

        until(ready, 30, f"a ready {module}")
        return process

    def worker(
        self, queue: str = "dicom", pool: str = "prefork", forgets: str = "", **settings: object
    ) -> subprocess.Popen[bytes]:
        """A testing worker, once the ledger lists it and its pool children are up.

        forgets: an operation that its release did not know yet.
        """
        command = ["fluoro_jobs.testing.worker", queue, pool]
        if forgets:
            command, settings = (
                ["fluoro_jobs.testing.old_release", *command],
                {"forgets": forgets, **settings},
            )
        process = self.start(*command, name=f"worker-{queue}", **settings)

        def listed() -> bool:
            assert process.poll() is None, self.logs()
            with self.connection() as connection:
                row = connection.execute(
                    "SELECT 1 FROM workers WHERE name LIKE %s AND expire_time > now()",
                    (f"%:{process.pid}",),
                ).fetchone()
                return row is not None

        until(listed, 60, "the worker's first heartbeat")
        return process

    def have_workers_look(self) -> None:
        """Has every worker process look at what it runs, as after a cancel."""
        with self.connection() as connection:
            names = [name for (name,) in connection.execute("SELECT name FROM workers").fetchall()]
        publisher = Publisher(self.redis_url)
        publisher.cancel(new_id(), OWNER, names)
        publisher.close()

    def logs(self) -> str:
        """What the processes wrote, for a failing assertion."""
        return "\n".join(
            f"== {path.name}\n{path.read_text(errors='replace')[-4000:]}"
            for path in sorted(self.folder.glob("*.log"))
        )

    def close(self) -> None:
        """Ends every process this rig started, with its children."""
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self.dispatcher.close()
        self.ledger.close()


def queue_tasks(connection: Connection[TupleRow], job_id: UUID) -> list[UUID]:
    """What dispatch does, to all waiting tasks of the job, whatever the window.

    Returns all tasks that are queued then, by shard.
    """
    connection.execute(
        (
            "UPDATE open_tasks SET state = 'QUEUED', queued_time = now(), dispatch_order = NULL "
            "WHERE job_id = %s AND queued_time IS NULL"
        ),
        (job_id,),
    )
    rows = connection.execute(
        "SELECT task_id FROM open_tasks o JOIN tasks t ON t.id = o.task_id"
        " WHERE o.job_id = %s AND o.state = 'QUEUED' "
        "ORDER BY t.step, t.shard",
        (job_id,),
    )
    return [task for (task,) in rows.fetchall()]


def sequences(events: Sequence[event_pb2.Event]) -> list[int]:
    """The numbers of the events, in the order given."""
    return [event.sequence for event in events]
