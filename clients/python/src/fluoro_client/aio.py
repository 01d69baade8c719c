"""The async client: a method for every call of JobService and BlobService.

It is safe to use across restarts of a gateway.
"""

import asyncio
import os
import time
import uuid
from collections.abc import AsyncGenerator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, Final, Self, TypeAlias

import grpc
from fluoro.v1 import blob_service_pb2, explanation_pb2, job_pb2, job_service_pb2
from google.protobuf import duration_pb2
from google.protobuf.message import Message

from fluoro_client.audit import AuditCalls
from fluoro_client.channel import Connection
from fluoro_client.credentials import Identity, Tls, Token
from fluoro_client.elsewhere import ElsewhereCalls
from fluoro_client.errors import (
    DataLossError,
    DeadlineExceededError,
    FluoroApiError,
    UnreachableError,
    decode,
    shrunk,
)
from fluoro_client.jobs import JobSource, parse_job
from fluoro_client.many import ManyJobs
from fluoro_client.models import ModelCalls
from fluoro_client.operators import OperatorCalls
from fluoro_client.pipelines import Parameters, PipelineCalls, pipeline_name
from fluoro_client.retrying import Contact, Patience
from fluoro_client.sending import send
from fluoro_client.sharing import Page, Request, Response
from fluoro_client.transfers import PartialFile, Resume, Source, Upload, prepare
from fluoro_client.watching import TERMINAL, resume_watch
from fluoro_client.watching_jobs import resume_watch_jobs

View: TypeAlias = "job_service_pb2.JobView.ValueType"
"""How much of a job an answer has."""
BASIC: Final = job_service_pb2.JOB_VIEW_BASIC
FULL: Final = job_service_pb2.JOB_VIEW_FULL

PAGE: Final = 1000
"""What a list of a job's parts asks for at once."""

WAIT_SECONDS: Final = 60
"""How long one WaitJob call waits; `wait` repeats it."""


class AsyncClient(ManyJobs, OperatorCalls, PipelineCalls, ModelCalls, AuditCalls, ElsewhereCalls):
    """A connection to Fluoro for one owner.

    Open it inside a running event loop, best with `async with`.

    endpoint: `host:port`, or any gRPC target; a name with several addresses is balanced round
    robin. owner: whose calls they are, where the gateway believes that or the caller is an
    operator; ASCII. A refused caller gets PermissionDeniedError.
    token: a bearer token, a file or a function that has one, which are asked anew for each call.
    tls: files of an encrypted connection; replaced ones are used from the next call on.
    credentials: in place of tls, of gRPC's own making. With neither, the connection is plain text.
    deadline_seconds: how long a call without a stream may take; until then it is tried again while
    a gateway that answered before is away. patience_seconds: how long watches, waits, uploads and
    downloads go on without a sign of life from a gateway that answered before.

    Every method raises FluoroApiError or one of its subclasses when the server refuses or cannot be
    reached.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        owner: str = "",
        deadline_seconds: float = 30,
        patience_seconds: float = 120,
        credentials: grpc.ChannelCredentials | None = None,
        tls: Tls | None = None,
        token: Token | None = None,
    ) -> None:
        self.endpoint = endpoint
        self.deadline_seconds = deadline_seconds
        self.patience_seconds = patience_seconds
        self._identity = Identity(owner, token)
        self._connection = Connection(endpoint, credentials, tls)
        self._jobs, self._blobs = self._connection.jobs, self._connection.blobs
        self._pipelines = self._connection.pipelines
        self._contact = Contact()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends every call that is still running and the connection."""
        await self._connection.close()

    @property
    def _metadata(self) -> grpc.aio.Metadata:
        return self._identity.metadata()

    async def submit(
        self,
        job: JobSource,
        *,
        pipeline: str = "",
        parameters: Parameters | None = None,
        request_id: str = "",
        validate_only: bool = False,
    ) -> job_pb2.Job:
        """Submits a job and returns it as accepted, without steps.

        Once this returns, the job is durable.

        job: a fluoro.v1.Job, or its proto3 JSON as dict or text (InvalidJobError if it is not).
        pipeline: where its steps come from, `ct-tissue` or `ct-tissue@1`, if it has none itself.
        parameters: of the pipeline, by name.
        request_id: repeat it to repeat a call whose outcome is unknown; empty makes a new one,
        which covers the retries inside this call.
        """
        request = job_service_pb2.SubmitJobRequest(
            job=parse_job(job),
            request_id=request_id or str(uuid.uuid4()),
            validate_only=validate_only,
            pipeline=pipeline_name(pipeline),
        )
        if parameters:
            request.parameters.update(parameters)
        return (await self._unary(self._jobs.SubmitJob, request)).job

    async def get(self, name: str, *, view: View = FULL) -> job_pb2.Job:
        """The job as of one moment.

        view: FULL: with inputs, tasks, items, artifacts and results, which FluoroApiError
        ANSWER_TOO_LARGE refuses of a large job. BASIC: with its steps alone, and how far they are.
        """
        request = job_service_pb2.GetJobRequest(name=name, view=view)
        return (await self._unary(self._jobs.GetJob, request)).job

    async def list_inputs(self, job: str) -> AsyncGenerator[str, None]:
        """Names of the blobs that the job of this name works on, in order, page by page."""
        request = job_service_pb2.ListInputsRequest(job=job, page_size=PAGE)
        async for page in self._pages(self._jobs.ListInputs, request):
            for name in page.inputs:
                yield name

    async def list_tasks(
        self, job: str, *, step: str = ""
    ) -> AsyncGenerator[job_service_pb2.StepTask, None]:
        """The tasks of a job, or of one step, with their attempts, fetched page by page."""
        request = job_service_pb2.ListTasksRequest(job=job, step=step, page_size=PAGE)
        async for page in self._pages(self._jobs.ListTasks, request):
            for task in page.tasks:
                yield task

    async def list_items(
        self, job: str, *, step: str = "", states: Sequence["job_pb2.Item.State.ValueType"] = ()
    ) -> AsyncGenerator[job_service_pb2.StepItem, None]:
        """What became of the inputs of a job, or of one step, page by page as it is read.

        states: only items in one of these states.
        """
        request = job_service_pb2.ListItemsRequest(
            job=job, step=step, states=states, page_size=PAGE
        )
        async for page in self._pages(self._jobs.ListItems, request):
            for item in page.items:
                yield item

    async def list_artifacts(
        self, job: str, *, step: str = "", roles: Sequence[str] = ()
    ) -> AsyncGenerator[job_service_pb2.StepArtifact, None]:
        """The outputs of a job, or of one step, page by page as they are read.

        roles: only artifacts with one of these roles, `preview` say.
        """
        request = job_service_pb2.ListArtifactsRequest(
            job=job, step=step, roles=roles, page_size=PAGE
        )
        async for page in self._pages(self._jobs.ListArtifacts, request):
            for artifact in page.artifacts:
                yield artifact

    async def result(self, job: str, step: str) -> Message | None:
        """The whole result of a step, however large: an InspectDicomResult, say.

        None while it has none, and of an operation that this release does not know.
        """
        steps = (await self.get(job, view=BASIC)).steps
        operation = next((s.WhichOneof("operation") for s in steps if s.name == step), None)
        request = job_service_pb2.ListResultsRequest(job=job, step=step, page_size=PAGE)
        parts = [
            await self._bytes_of(part)
            async for page in self._pages(self._jobs.ListResults, request)
            for part in page.parts
        ]
        if operation is None or not parts:
            return None
        whole = job_pb2.Step()
        result: Message = getattr(whole, f"{operation}_result")
        for part in parts:
            result.MergeFromString(part)
        return result

    async def wait(
        self, name: str, *, timeout_seconds: float | None = None, view: View = FULL
    ) -> job_pb2.Job:
        """The job once it is terminal, or as it is after timeout_seconds.

        timeout_seconds: None waits as long as it takes. view: as for `get`.
        """
        end = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        patience = self._patience(f"waiting for {name}")
        while True:
            # One call per minute: a gateway that died without a word is noticed at its end.
            chunk = (
                WAIT_SECONDS if end is None else min(WAIT_SECONDS, max(0.0, end - time.monotonic()))
            )
            timeout = duration_pb2.Duration()
            timeout.FromMilliseconds(int(chunk * 1000))
            request = job_service_pb2.WaitJobRequest(name=name, timeout=timeout, view=view)
            try:
                job = (
                    await self._once(self._jobs.WaitJob, request, self.deadline_seconds + chunk)
                ).job
            except FluoroApiError as error:
                await patience.pause(error)
                continue
            patience.progress()
            # WaitJob also answers when its own timeout is over; then the job is as it was.
            if job.state in TERMINAL or (end is not None and time.monotonic() >= end):
                return job

    async def explain(self, name: str) -> explanation_pb2.JobExplanation:
        """Why the job does not run or has not ended, and when it is expected to."""
        request = job_service_pb2.ExplainJobRequest(name=name)
        return (await self._unary(self._jobs.ExplainJob, request)).explanation

    async def cancel(self, name: str) -> job_pb2.Job:
        """Cancels the job unless it is terminal; returns it in the view BASIC. May be repeated."""
        return (
            await self._unary(self._jobs.CancelJob, job_service_pb2.CancelJobRequest(name=name))
        ).job

    async def retry(self, name: str) -> job_pb2.Job:
        """Has what failed in an ended job done again, and returns the job in the view BASIC.

        FluoroApiError JOB_NOT_ENDED or NOTHING_TO_RETRY.
        """
        return (
            # Once: repeated after a lost answer, it would say that there is nothing to retry.
            await self._once(
                self._jobs.RetryJob,
                job_service_pb2.RetryJobRequest(name=name),
                self.deadline_seconds,
            )
        ).job

    def watch(
        self, name: str, start_cursor: str = "", *, view: View = FULL
    ) -> AsyncGenerator[job_service_pb2.WatchJobResponse, None]:
        """Streams the job until it is terminal.

        A snapshot comes first, then every event exactly once and in order, with progress and
        bookmarks between them. The stream resumes by itself from the last cursor when the
        connection is lost, a gateway shuts down, or it was read too slowly.

        start_cursor: cursor of the last message of an earlier watch. The stream then starts after
        it, without a snapshot. view: of the snapshot, as for `get`.
        """
        return resume_watch(
            lambda request: self._jobs.WatchJob(request, metadata=self._metadata),
            self.endpoint,
            self._patience(f"watching {name}"),
            job_service_pb2.WatchJobRequest(name=name, start_cursor=start_cursor, view=view),
        )

    def watch_jobs(
        self, labels: Mapping[str, str] | None = None, start_cursor: str = ""
    ) -> AsyncGenerator[job_service_pb2.WatchJobsResponse, None]:
        """Streams all jobs of the owner that have the labels.

        Jobs that have not ended come first, without steps; then every event of each job exactly
        once. The events of a job come in order, and a new job begins with its first event. The
        stream does not end, and resumes by itself like `watch`.

        start_cursor: cursor of the last message of an earlier watch of the same labels. The stream
        then starts without jobs, and may repeat events from shortly before.
        """
        return resume_watch_jobs(
            lambda request: self._jobs.WatchJobs(request, metadata=self._metadata),
            self.endpoint,
            self._patience("watching jobs"),
            dict(labels or {}),
            start_cursor,
        )

    async def upload(self, source: Source, *, media_type: str = "") -> blob_service_pb2.Blob:
        """Stores a file, bytes, or bytes as they come, and returns the blob.

        The same bytes again give the same blob.

        After a lost connection, 4 MiB and more go on with what the gateway, or another one of the
        deployment, has; less begins again. Bytes as they come do neither: they are gone. 4 MiB and
        more that the owner has uploaded before are not sent again.
        media_type: empty means what file prefix or suffix tell, else application/octet-stream.
        """
        upload = await prepare(source, media_type)
        patience, resume = self._patience("an upload"), Resume() if upload.resumes else None
        while True:
            try:
                blob = await self._send(upload, resume, patience)
            except FluoroApiError as error:
                if upload.once:
                    raise
                if resume and error.code is grpc.StatusCode.UNIMPLEMENTED:
                    resume = None  # the gateway is older than uploads that go on
                    continue
                await patience.pause(error)
            else:
                self._contact.made = True
                return blob

    async def get_blob(self, name: str) -> blob_service_pb2.Blob:
        """The record of a blob."""
        return (
            await self._unary(self._blobs.GetBlob, blob_service_pb2.GetBlobRequest(name=name))
        ).blob

    async def download(
        self, blob: blob_service_pb2.Blob | job_pb2.Artifact | str, path: str | os.PathLike[str]
    ) -> Path:
        """Writes a blob, or the blob of an artifact, to `path`.

        The file appears whole and with the right SHA-256, or not at all. It replaces an existing
        one. A broken stream resumes at the byte where it broke. blob: a record, an artifact, or a
        blob's name. DataLossError if the bytes are not those of the record; OSError if the folder
        of `path` does not exist or is full.
        """
        record = await self.get_blob(blob) if isinstance(blob, str) else blob
        name = record.blob if isinstance(record, job_pb2.Artifact) else record.name
        target = Path(path)
        with PartialFile(target) as unfinished:
            patience = self._patience(f"downloading {name}")
            while True:
                try:
                    await self._receive(name, record.size_bytes, unfinished, patience)
                    break
                except FluoroApiError as error:
                    await patience.pause(error)
            if not await asyncio.to_thread(unfinished.keep, record.sha256):
                raise DataLossError(
                    grpc.StatusCode.DATA_LOSS,
                    f"What arrived of {name} has another SHA-256 than its record.",
                    reason="DOWNLOAD_DAMAGED",
                )
        return target

    async def _pages(
        self, method: "grpc.aio.UnaryUnaryMultiCallable[Any, Page]", request: Any
    ) -> AsyncGenerator[Page, None]:
        """Every page of a list, from the one that `request` asks for."""
        while True:
            page = await self._unary(method, request)
            yield page
            request.page_token = page.next_page_token
            if not page.next_page_token:
                return

    async def _bytes_of(self, part: job_service_pb2.ResultPart) -> bytes:
        if not part.blob:
            return part.message
        with TemporaryDirectory(prefix="fluoro-") as folder:
            path = await self.download(part.blob, Path(folder) / "part")
            return await asyncio.to_thread(path.read_bytes)

    async def _unary(
        self, method: grpc.aio.UnaryUnaryMultiCallable[Request, Response], request: Request
    ) -> Response:
        """For what may be repeated when its outcome is unknown."""
        deadline = time.monotonic() + self.deadline_seconds
        patience = Patience(self.deadline_seconds, self._contact, f"a {type(request).__name__}")
        refusal: FluoroApiError | None = None
        while True:
            try:
                return await self._once(method, request, deadline - time.monotonic())
            except DeadlineExceededError as error:
                if refusal is None:
                    raise
                # What went wrong before tells more than that the time is up.
                raise refusal from error
            except FluoroApiError as error:
                await patience.pause(error)
                refusal = error

    async def _once(
        self,
        method: grpc.aio.UnaryUnaryMultiCallable[Request, Response],
        request: Request,
        seconds: float,
    ) -> Response:
        try:
            response = await method(request, timeout=seconds, metadata=self._metadata)
        except grpc.aio.AioRpcError as error:
            raise decode(error, self.endpoint) from error
        self._contact.made = True
        return response

    def _patience(self, what: str) -> Patience:
        return Patience(self.patience_seconds, self._contact, what, renews=self._identity.renews)

    async def _send(
        self, upload: Upload, resume: Resume | None, patience: Patience
    ) -> blob_service_pb2.Blob:
        if resume:
            request = blob_service_pb2.BeginUploadRequest(
                upload_id=resume.upload_id, header=upload.header
            )
            begun = await self._once(self._blobs.BeginUpload, request, self.deadline_seconds)
            if begun.HasField("blob"):
                return begun.blob
            if begun.committed_bytes > resume.committed_bytes:
                patience.progress()
            resume.committed_bytes = begun.committed_bytes
        requests = upload.requests(resume or Resume(""))
        try:
            response = await send(self._blobs.UploadBlob(metadata=self._metadata), requests)
        except grpc.aio.AioRpcError as error:
            raise decode(error, self.endpoint) from error
        if not response.HasField("blob"):
            raise shrunk(response.committed_bytes, upload.header.size_bytes)
        return response.blob

    async def _receive(
        self, name: str, size_bytes: int, unfinished: PartialFile, patience: Patience
    ) -> None:
        call = self._blobs.DownloadBlob(
            blob_service_pb2.DownloadBlobRequest(name=name, offset=unfinished.size_bytes),
            metadata=self._metadata,
        )
        try:
            async for message in call:
                patience.progress()
                await asyncio.to_thread(unfinished.write, message.chunk)
        except grpc.aio.AioRpcError as error:
            raise decode(error, self.endpoint) from error
        finally:
            call.cancel()
        if unfinished.size_bytes < size_bytes:
            raise UnreachableError(
                grpc.StatusCode.UNAVAILABLE,
                f"The stream of {name} ended after {unfinished.size_bytes} of {size_bytes} bytes.",
            )
