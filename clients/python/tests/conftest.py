"""A gateway on a loopback socket that keeps the protos' promises and breaks on command."""

import asyncio
import hashlib
import uuid
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc
import pytest
from fluoro.v1 import (
    blob_service_pb2,
    blob_service_pb2_grpc,
    event_pb2,
    job_pb2,
    job_service_pb2,
    job_service_pb2_grpc,
)
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

WatchJobResponse = job_service_pb2.WatchJobResponse
State = job_pb2.Job.State


@dataclass
class Fault:
    """How one call ends early: after so many messages (or uploaded bytes), with this code and reason.

    repeat: events told once more at the start. missing: events left out at the start. hang: says nothing more instead of ending.
    """

    after: int = 0
    code: grpc.StatusCode = grpc.StatusCode.UNAVAILABLE
    reason: str = "SHUTTING_DOWN"
    message: str = "Connect again."
    violations: tuple[tuple[str, str], ...] = ()
    metadata: dict[str, str] = field(default_factory=dict)
    repeat: int = 0
    hang: bool = False
    missing: int = 0
    retry_seconds: int = 0

    async def end(self, context):
        if self.hang:
            await asyncio.Event().wait()
        if not self.reason:
            await context.abort(self.code, self.message)
        info = error_details_pb2.ErrorInfo(reason=self.reason, domain="fluoro", metadata=self.metadata)
        bad = error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field=name, description=text) for name, text in self.violations]
        )
        retry = error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=self.retry_seconds))
        details = [any_pb2.Any() for _ in range(3)]
        for packed, detail in zip(details, (info, bad, retry), strict=True):
            packed.Pack(detail)
        await context.abort_with_status(
            rpc_status.to_status(status_pb2.Status(code=self.code.value[0], message=self.message, details=details))
        )


class Gateway(job_service_pb2_grpc.JobServiceServicer, blob_service_pb2_grpc.BlobServiceServicer):
    """State survives die() and start(), as the ledger's does. faults[method] is consumed one per call."""

    def __init__(self):
        self.jobs, self.request_ids, self.events = {}, {}, {}
        self.blobs, self.data = {}, {}
        self.faults = {}
        self.calls = []
        self.cursors = []
        self.progress = []
        self.changed = asyncio.Condition()
        self.port = 0
        self.server = None

    @property
    def endpoint(self):
        return f"127.0.0.1:{self.port}"

    async def start(self):
        self.server = grpc.aio.server()
        job_service_pb2_grpc.add_JobServiceServicer_to_server(self, self.server)
        blob_service_pb2_grpc.add_BlobServiceServicer_to_server(self, self.server)
        self.port = self.server.add_insecure_port(f"127.0.0.1:{self.port}")
        await self.server.start()

    async def die(self):
        await self.server.stop(None)

    def fail(self, method, *faults):
        self.faults.setdefault(method, deque()).extend(faults)

    async def _fault(self, method, context):
        self.calls.append((method, dict(context.invocation_metadata()).get("fluoro-owner")))
        queue = self.faults.get(method)
        return queue.popleft() if queue else None

    async def _begin(self, method, context):
        if fault := await self._fault(method, context):
            await fault.end(context)

    # Jobs

    def add_job(self, *, events=(), **fields):
        job = job_pb2.Job(name=f"jobs/{uuid.uuid4()}", state=State.STATE_PENDING, last_sequence=1, **fields)
        job.create_time.GetCurrentTime()
        self.jobs[job.name] = job
        self.events[job.name] = [event_pb2.Event(sequence=1, job=job.name, job_changed=event_pb2.JobChanged(state=State.STATE_PENDING))]
        self.events[job.name][0].time.GetCurrentTime()
        for event in events:
            self.push(job.name, **event)
        return job

    def push(self, name, **change):
        event = event_pb2.Event(sequence=len(self.events[name]) + 1, job=name, **change)
        event.time.GetCurrentTime()
        self.events[name].append(event)
        if "job_changed" in change:
            self.jobs[name].state = change["job_changed"].state
            self.jobs[name].reason = change["job_changed"].reason
            self.jobs[name].message = change["job_changed"].message
        self.jobs[name].last_sequence = event.sequence
        return event

    async def say(self, name, **change):
        async with self.changed:
            self.push(name, **change)
            self.changed.notify_all()

    async def finish(self, name, state=State.STATE_SUCCEEDED, reason=""):
        await self.say(name, job_changed=event_pb2.JobChanged(state=state, reason=reason))

    async def _job(self, name, context):
        if name not in self.jobs:
            await Fault(code=grpc.StatusCode.NOT_FOUND, reason="JOB_NOT_FOUND", message=f"There is no {name}.").end(context)
        return self.jobs[name]

    async def SubmitJob(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("SubmitJob", context)
        if request.request_id not in self.request_ids:
            job = self.add_job(inputs=request.job.inputs, steps=request.job.steps, labels=request.job.labels, priority=request.job.priority)
            self.request_ids[request.request_id] = job.name
        return job_service_pb2.SubmitJobResponse(job=self.jobs[self.request_ids[request.request_id]])

    async def GetJob(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("GetJob", context)
        return job_service_pb2.GetJobResponse(job=await self._job(request.name, context))

    async def ListJobs(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("ListJobs", context)
        jobs = [
            job
            for job in reversed(self.jobs.values())
            if (not request.states or job.state in request.states) and request.labels.items() <= dict(job.labels).items()
        ]
        start, size = int(request.page_token or 0), request.page_size or 50
        more = str(start + size) if start + size < len(jobs) else ""
        return job_service_pb2.ListJobsResponse(jobs=jobs[start : start + size], next_page_token=more)

    async def WaitJob(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("WaitJob", context)
        job = await self._job(request.name, context)
        try:
            async with asyncio.timeout(request.timeout.ToTimedelta().total_seconds()), self.changed:
                await self.changed.wait_for(lambda: job.state > State.STATE_RUNNING)
        except TimeoutError:
            return job_service_pb2.WaitJobResponse(job=job)
        return job_service_pb2.WaitJobResponse(job=job)

    async def CancelJob(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("CancelJob", context)
        job = await self._job(request.name, context)
        if job.state <= State.STATE_RUNNING:
            await self.finish(job.name, State.STATE_CANCELLED, "JOB_CANCELLED")
        return job_service_pb2.CancelJobResponse(job=job)

    async def RetryJob(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("RetryJob", context)
        job = await self._job(request.name, context)
        if job.state <= State.STATE_RUNNING:
            await Fault(code=grpc.StatusCode.FAILED_PRECONDITION, reason="JOB_NOT_ENDED", message="It runs.").end(context)
        job.state = State.STATE_PENDING
        return job_service_pb2.RetryJobResponse(job=job)

    async def WatchJob(self, request, context):  # noqa: N802 - gRPC's name
        fault = await self._fault("WatchJob", context)
        self.cursors.append(request.start_cursor)
        job = await self._job(request.name, context)
        sent = 0
        async for message in self._story(job, request.start_cursor, fault):
            if fault and sent >= fault.after:
                await fault.end(context)
            yield message
            sent += 1
        if fault and sent >= fault.after and not fault.missing:
            await fault.end(context)

    async def _story(self, job, cursor, fault):
        events = self.events[job.name]
        position = int(cursor) if cursor else len(events)
        if not cursor:
            yield WatchJobResponse(cursor=str(position), snapshot=job)
        if fault:
            position = position - fault.repeat + fault.missing
        for progress in self.progress:
            yield WatchJobResponse(cursor=str(position), progress=progress)
        while position < len(events) or job.state <= State.STATE_RUNNING:
            async with self.changed:
                while position >= len(events):
                    await self.changed.wait()
            yield WatchJobResponse(cursor=str(events[position].sequence), event=events[position])
            position += 1

    async def WatchJobs(self, request, context):  # noqa: N802 - gRPC's name
        """Cursors are positions in the order of all events; a resume repeats the two events before, as the real one may."""
        fault = await self._fault("WatchJobs", context)
        self.cursors.append(request.start_cursor)
        sent = 0
        async for message in self._all_stories(request):
            if fault and sent >= fault.after:
                await fault.end(context)
            yield message
            sent += 1

    async def _all_stories(self, request):
        def told():
            wanted = [name for name, job in self.jobs.items() if request.labels.items() <= dict(job.labels).items()]
            return sorted((event for name in wanted for event in self.events[name]), key=lambda event: event.time.ToNanoseconds())

        position = max(0, int(request.start_cursor) - 2) if request.start_cursor else len(told())
        if not request.start_cursor:
            for job in self.jobs.values():
                if job.state <= State.STATE_RUNNING and request.labels.items() <= dict(job.labels).items():
                    yield job_service_pb2.WatchJobsResponse(job=job)
            yield job_service_pb2.WatchJobsResponse(cursor=str(position), bookmark=job_service_pb2.Bookmark())
        while True:
            async with self.changed:
                while position >= len(told()):
                    await self.changed.wait()
            position += 1
            cursor = max(int(request.start_cursor or 0), position - position % 4)
            yield job_service_pb2.WatchJobsResponse(cursor=str(cursor), event=told()[position - 1])

    # Blobs

    def add_blob(self, data, media_type="application/octet-stream"):
        blob = blob_service_pb2.Blob(
            name=f"blobs/{uuid.uuid4()}", size_bytes=len(data), sha256=hashlib.sha256(data).digest(), media_type=media_type
        )
        self.blobs[blob.name], self.data[blob.name] = blob, data
        return blob

    async def UploadBlob(self, request_iterator, context):  # noqa: N802 - gRPC's name
        fault = await self._fault("UploadBlob", context)
        header, data = None, b""
        async for request in request_iterator:
            if request.WhichOneof("part") == "header":
                header = request.header
            assert len(request.chunk) <= 1024 * 1024
            data += request.chunk
            if fault and len(data) >= fault.after:
                await fault.end(context)
        if (header.size_bytes and header.size_bytes != len(data)) or (header.sha256 and header.sha256 != hashlib.sha256(data).digest()):
            await Fault(code=grpc.StatusCode.INVALID_ARGUMENT, reason="UPLOAD_MISMATCH", message="Upload again.").end(context)
        self.headers = [*getattr(self, "headers", []), header]
        return blob_service_pb2.UploadBlobResponse(blob=self.add_blob(data, header.media_type))

    async def GetBlob(self, request, context):  # noqa: N802 - gRPC's name
        await self._begin("GetBlob", context)
        if request.name not in self.blobs:
            await Fault(code=grpc.StatusCode.NOT_FOUND, reason="BLOB_NOT_FOUND", message=f"There is no {request.name}.").end(context)
        return blob_service_pb2.GetBlobResponse(blob=self.blobs[request.name])

    async def DownloadBlob(self, request, context):  # noqa: N802 - gRPC's name
        fault = await self._fault("DownloadBlob", context)
        self.cursors.append(request.offset)
        data, size = self.data[request.name], 64 * 1024
        for sent, start in enumerate(range(request.offset, len(data), size)):
            if fault and sent >= fault.after:
                await fault.end(context)
            yield blob_service_pb2.DownloadBlobResponse(chunk=data[start : start + size])


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    server = Gateway()
    await server.start()
    yield server
    await server.die()


@pytest.fixture
def fault():
    return Fault


class Relay:
    """A TCP relay in front of a gateway whose connections can be cut without a word of HTTP/2."""

    def __init__(self, port):
        self._target = port
        self._writers = set()
        self._left = None
        self.port = 0

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_):
        self._server.close()
        self.cut()
        await self._server.wait_closed()

    def cut(self):
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    def cut_after(self, count):
        """Cuts once when so many bytes more have gone through."""
        self._left = count

    async def _relay(self, reader, writer):
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target)
        self._writers |= {writer, far_writer}
        await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer), return_exceptions=True)
        writer.close()
        far_writer.close()

    async def _copy(self, reader, writer):
        while data := await reader.read(65536):
            if self._left is not None and (left := self._left - len(data)) < 0:
                self._left = None
                self.cut()
                return
            if self._left is not None:
                self._left = left
            writer.write(data)
            await writer.drain()
        writer.close()


@pytest.fixture
async def relay(gateway):
    async with Relay(gateway.port) as relay:
        yield relay
