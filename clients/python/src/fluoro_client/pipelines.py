"""Pipelines: which there are, and a run of one from files to the ended job."""

import os
import uuid
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any, Final, Protocol, TypeAlias, TypeVar, cast

import grpc
from fluoro.v1 import (
    blob_service_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
    pipeline_service_pb2,
    pipeline_service_pb2_grpc,
)

from fluoro_client.files import find_files
from fluoro_client.retrying import Patience
from fluoro_client.transfers import Source, each
from fluoro_client.watching import Stream, resume_watch

PAGE: Final = 1000
"""What a list asks for at once."""

Input: TypeAlias = Source | blob_service_pb2.Blob
"""What is uploaded, or a blob, or the name of one: `blobs/{uuid}`."""
Update: TypeAlias = job_service_pb2.WatchJobResponse | job_service_pb2.RunJobResponse
"""A message about a job; both kinds have the same fields."""
Parameters: TypeAlias = Mapping[str, str | float | bool]
"""Values by the names of a pipeline's parameters."""

Request = TypeVar("Request")
Response = TypeVar("Response")


def pipeline_name(pipeline: str) -> str:
    """The resource name of `ct-tissue`, or of `ct-tissue@1`; a resource name stays as it is."""
    if not pipeline or pipeline.startswith("pipelines/"):
        return pipeline
    name, _, version = pipeline.partition("@")
    return f"pipelines/{name}/versions/{version}" if version else f"pipelines/{name}"


class _Calls(Protocol):
    """What these methods need of a client."""

    endpoint: str
    _jobs: "job_service_pb2_grpc.JobServiceAsyncStub"
    _pipelines: "pipeline_service_pb2_grpc.PipelineServiceAsyncStub"

    @property
    def _metadata(self) -> grpc.aio.Metadata: ...

    async def get(self, name: str, *, view: "job_service_pb2.JobView.ValueType") -> job_pb2.Job: ...

    async def upload(self, source: Source) -> blob_service_pb2.Blob: ...

    async def _unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response: ...

    def _pages(self, method: Any, request: Any) -> AsyncGenerator[Any, None]: ...

    def _patience(self, what: str) -> Patience: ...


class PipelineCalls:
    """Methods of a client about pipelines."""

    async def pipelines(
        self: _Calls, *, all_versions: bool = False
    ) -> AsyncGenerator[pipeline_service_pb2.Pipeline, None]:
        """The pipelines there are, without their steps; of each the newest version, or all."""
        request = pipeline_service_pb2.ListPipelinesRequest(
            page_size=PAGE, all_versions=all_versions
        )
        async for page in self._pages(self._pipelines.ListPipelines, request):
            for pipeline in page.pipelines:
                yield pipeline

    async def pipeline(self: _Calls, name: str) -> pipeline_service_pb2.Pipeline:
        """A pipeline with its parameters and steps: `ct-tissue`, or `ct-tissue@1`."""
        request = pipeline_service_pb2.GetPipelineRequest(name=pipeline_name(name))
        return (await self._unary(self._pipelines.GetPipeline, request)).pipeline

    async def run(
        self: _Calls,
        pipeline: str,
        inputs: Iterable[Input] = (),
        parameters: Parameters | None = None,
        *,
        labels: Mapping[str, str] | None = None,
        priority: int = 0,
        request_id: str = "",
        view: "job_service_pb2.JobView.ValueType" = job_service_pb2.JOB_VIEW_FULL,
        told: Callable[[Update], object] | None = None,
    ) -> job_pb2.Job:
        """Uploads the inputs, runs a pipeline on them, and returns the job once it has ended.

        It goes on where it was when the connection is lost or a gateway shuts down. An interrupted
        run leaves the job alone.

        pipeline: `ct-tissue` for the newest version, `ct-tissue@1` for one that stays the same.
        inputs: paths (a folder stands for all files in it), bytes, or blobs. request_id: as for
        `submit`. view: of the job that is returned. told: hears every message, as from `watch`.
        BadPathError if there is no such file.
        """
        blobs = await each(_name_of(self.upload), _sources(inputs))
        submit = job_service_pb2.SubmitJobRequest(
            job=job_pb2.Job(inputs=blobs, labels=labels or {}, priority=priority),
            request_id=request_id or str(uuid.uuid4()),
            pipeline=pipeline_name(pipeline),
        )
        submit.parameters.update(parameters or {})
        request = job_service_pb2.RunJobRequest(submit=submit, view=job_service_pb2.JOB_VIEW_BASIC)
        watch = job_service_pb2.WatchJobRequest(view=job_service_pb2.JOB_VIEW_BASIC)

        def connect(resumed: job_service_pb2.WatchJobRequest) -> Stream:
            if resumed.start_cursor:
                return self._jobs.WatchJob(resumed, metadata=self._metadata)
            return cast("Stream", self._jobs.RunJob(request, metadata=self._metadata))

        patience = self._patience(f"running {submit.pipeline}")
        messages = resume_watch(connect, self.endpoint, patience, watch)
        async with aclosing(messages):
            async for message in messages:
                if message.HasField("snapshot"):
                    watch.name = message.snapshot.name
                if told:
                    told(message)
        return await self.get(watch.name, view=view)


def _sources(inputs: Iterable[Input]) -> list[Input]:
    """The inputs, with files in place of folders."""
    found: list[Input] = []
    for one in inputs:
        is_path = isinstance(one, os.PathLike) or (
            isinstance(one, str) and not one.startswith("blobs/")
        )
        found += find_files([Path(cast("str", one))]) if is_path else [one]
    return found


def _name_of(
    upload: Callable[[Source], Awaitable[blob_service_pb2.Blob]],
) -> Callable[[Input], Awaitable[str]]:
    """Gives the name of the blob that an input is, or is once it has been uploaded."""

    async def name(one: Input) -> str:
        if isinstance(one, blob_service_pb2.Blob):
            return one.name
        if isinstance(one, str):
            return one
        return (await upload(one)).name

    return name
