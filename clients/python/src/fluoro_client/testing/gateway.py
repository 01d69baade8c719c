"""The fake itself: a gRPC server on a loopback port, and what a test may tell it."""

from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Final, Self

import grpc
from fluoro.v1 import (
    blob_service_pb2,
    blob_service_pb2_grpc,
    deployment_service_pb2,
    deployment_service_pb2_grpc,
    event_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    model_pb2,
    model_service_pb2,
    model_service_pb2_grpc,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
    token_service_pb2,
    token_service_pb2_grpc,
)
from fluoro.v1.pipeline_service_pb2 import PipelineParameter

from fluoro_client.testing.faults import Fault
from fluoro_client.testing.pipelines import Steps
from fluoro_client.testing.services.blobs import Blobs
from fluoro_client.testing.services.deployment import Deployment
from fluoro_client.testing.services.jobs import Jobs
from fluoro_client.testing.services.models import Models
from fluoro_client.testing.services.pipelines import PipelineService
from fluoro_client.testing.services.tokens import Tokens
from fluoro_client.testing.state import Call, State
from fluoro_client.testing.story import Change, Outcome, Story

MAX_CALLS: Final = 256
"""Calls, watches among them, that are answered at once. Each has a thread while it lasts."""

METHODS: Final = frozenset(
    method.name
    for file, service in (
        (job_service_pb2, "JobService"),
        (blob_service_pb2, "BlobService"),
        (pipeline_service_pb2, "PipelineService"),
        (model_service_pb2, "ModelService"),
        (deployment_service_pb2, "DeploymentService"),
        (token_service_pb2, "TokenService"),
    )
    for method in file.DESCRIPTOR.services_by_name[service].methods
)

JobName = job_pb2.Job | str
"""A job, or its name."""


class FakeGateway:
    """A gateway in this process. Use it as a context manager and connect clients to `endpoint`.

    hold: False: jobs run when they are submitted or retried. True: they wait for `finish`. May be
    set at any time. single_owner: whose calls without an owner are; "" refuses them, as a gateway
    for many users does.

    Its methods may be called from any thread, and return at once. KeyError for a job that it does
    not have.
    """

    def __init__(self, *, hold: bool = False, single_owner: str = "") -> None:
        self._state = State(hold=hold, single_owner=single_owner)
        self._port = 0
        self._server: grpc.Server | None = None
        self._threads: ThreadPoolExecutor | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Serves. After a `stop`, the same jobs on the same port, as after a gateway's restart."""
        if self._server is not None:
            raise RuntimeError("this gateway serves already")
        self._threads = ThreadPoolExecutor(MAX_CALLS, thread_name_prefix="fluoro-fake")
        # Without this option two gateways could share a port.
        server = grpc.server(self._threads, options=(("grpc.so_reuseport", 0),))
        job_service_pb2_grpc.add_JobServiceServicer_to_server(Jobs(self._state), server)
        blob_service_pb2_grpc.add_BlobServiceServicer_to_server(Blobs(self._state), server)
        pipeline_service_pb2_grpc.add_PipelineServiceServicer_to_server(
            PipelineService(self._state), server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(Models(self._state), server)
        deployment_service_pb2_grpc.add_DeploymentServiceServicer_to_server(
            Deployment(self._state), server
        )
        token_service_pb2_grpc.add_TokenServiceServicer_to_server(Tokens(self._state), server)
        self._port = server.add_insecure_port(f"127.0.0.1:{self._port}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """Cuts every call off, as a gateway that dies does. May be repeated."""
        if self._server is None or self._threads is None:
            return
        self._server.stop(None).wait()
        self._threads.shutdown()
        self._server = self._threads = None

    @property
    def endpoint(self) -> str:
        """What clients connect to: `127.0.0.1:port`."""
        return f"127.0.0.1:{self._port}"

    @property
    def hold(self) -> bool:
        """Whether jobs wait for the test."""
        return self._state.hold

    @hold.setter
    def hold(self, hold: bool) -> None:
        with self._state.changed:
            self._state.hold = hold

    # --- what clients did ---

    @property
    def calls(self) -> list[Call]:
        """Every call so far, those that failed too, in order."""
        with self._state.changed:
            return list(self._state.calls)

    @property
    def jobs(self) -> dict[str, job_pb2.Job]:
        """All jobs by name, oldest first. The messages are live: they change with the jobs."""
        with self._state.changed:
            return {name: story.job for name, story in self._state.stories.items()}

    @property
    def blobs(self) -> dict[str, blob_service_pb2.Blob]:
        """The records of all blobs by name, oldest first."""
        with self._state.changed:
            return dict(self._state.blobs)

    @property
    def findings(self) -> list[deployment_service_pb2.Finding]:
        """What a diagnosis of the deployment says. Add to it what code of yours should see."""
        return self._state.findings

    @property
    def models(self) -> list[model_pb2.Model]:
        """What workers have, in the order that a list tells it. Add to it what your code needs."""
        return self._state.models

    @property
    def data(self) -> dict[str, bytes]:
        """The bytes of all blobs by name. Change one to have downloads of it come damaged."""
        return self._state.data

    def events(self, job: JobName) -> list[event_pb2.Event]:
        """Every event of the job so far."""
        with self._state.changed:
            return list(self._story(job).events)

    # --- what shall become of jobs ---

    def script(self, step: str, outcome: Outcome, *, times: int | None = None) -> None:
        """Says what steps of this name come to when they run. Without a script they succeed.

        times: for the next so many runs; None from now on.
        """
        with self._state.changed:
            self._state.script(step, outcome, times)

    def finish(self, job: JobName, *steps: str) -> None:
        """Runs these steps to what they come to, as far as they wait for no other.

        Without names it runs all steps, which ends the job.
        """
        with self._state.changed:
            self._state.finish(self._story(job), steps)

    def begin(self, job: JobName, step: str) -> None:
        """Has a worker start the step; `finish` ends it. ValueError if it is not ready."""
        with self._state.changed:
            story = self._story(job)
            ready = [found for found in story.ready() if found.name == step]
            if not ready:
                raise ValueError(f"{step} is not a step of {story.job.name} that is ready")
            story.start(ready[0])
            self._state.changed.notify_all()

    def progress(self, job: JobName, progress: event_pb2.Progress) -> None:
        """Tells watches of the job how far a step is. The job's name and the time are filled in."""
        with self._state.changed:
            story = self._story(job)
            latest = event_pb2.Progress()
            latest.CopyFrom(progress)
            latest.job = story.job.name
            latest.time.GetCurrentTime()
            story.progress.append(latest)
            self._state.changed.notify_all()

    def end(
        self,
        job: JobName,
        state: "job_pb2.Job.State.ValueType",
        reason: str = "",
        message: str = "",
    ) -> None:
        """Ends the job, FAILED with JOB_EXPIRED say, and cancels what has not ended in it.

        Nothing happens to an ended job.
        """
        with self._state.changed:
            self._state.end(self._story(job), state, reason, message)

    # --- what goes wrong ---

    def fail(self, method: str, *faults: Fault, times: int = 1) -> None:
        """Makes the next calls of a method (such as `SubmitJob`) fail, one by each fault, in order.

        times: how often the sequence of faults comes. ValueError if there is no such method.
        """
        if method not in METHODS:
            raise ValueError(
                f"no method is called {method}; there are {', '.join(sorted(METHODS))}"
            )
        with self._state.changed:
            self._state.faults.setdefault(method, deque()).extend(faults * times)

    # --- what is there without a call ---

    def add_pipeline(
        self,
        name: str,
        steps: Steps,
        *,
        version: int = 1,
        parameters: Sequence[PipelineParameter] = (),
    ) -> None:
        """A pipeline beside those that ship with Fluoro, or in place of one of them.

        steps: of its jobs, or a function that makes them of a caller's parameters and the defaults.
        parameters: what callers may set. Types and names are checked, ranges are not.
        """
        with self._state.changed:
            self._state.pipelines.add(name, steps, version, parameters)

    def add_job(
        self, job: job_pb2.Job | None = None, *, owner: str = "ada", events: Iterable[Change] = ()
    ) -> job_pb2.Job:
        """A job with exactly these fields and steps, whatever a gateway would say to them.

        Returns the live message.

        events: what has happened to it since it was PENDING, as for `tell`.
        """
        with self._state.changed:
            story = self._state.add(owner, job or job_pb2.Job())
            for change in events:
                story.change(change)
            return story.job

    def add_blob(
        self, data: bytes, media_type: str = "application/octet-stream", *, owner: str = "ada"
    ) -> blob_service_pb2.Blob:
        """A blob, as if the owner had uploaded it."""
        with self._state.changed:
            return self._state.add_blob(owner, data, media_type)

    def tell(self, job: JobName, change: Change) -> None:
        """Adds an event to the job as it stands, for what no outcome brings.

        The states of the job and its steps follow it.
        """
        with self._state.changed:
            self._story(job).change(change)
            self._state.changed.notify_all()

    def _story(self, job: JobName) -> Story:
        return self._state.stories[job if isinstance(job, str) else job.name]
