"""Makes the calls, and judges how they end."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final

import grpc
import grpc.aio
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest, UploadBlobResponse
from fluoro.v1.dicom_pb2 import InspectDicom
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    SubmitJobRequest,
    SubmitJobResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)
from gateway.errors import DETAILS_KEY
from gateway.server import SERVICES
from google.protobuf.descriptor import MethodDescriptor
from google.rpc import error_details_pb2, status_pb2

from fuzzing import wire
from fuzzing.requests import World, messages
from fuzzing.values import MARK, MARKED_BYTES

OWNER: Final = "fuzzer"
AT_ONCE: Final = 24
"""Calls under way at one time."""
DEADLINE_SECONDS: Final = 20
"""How long a call may take that nothing keeps from ending."""
GRACE_SECONDS: Final = 5
"""How much later a call may end than its deadline, on a machine that is busy with other things."""
LISTEN_SECONDS: Final = 0.2
"""How long a stream is listened to that does not end by itself."""
WAIT_SECONDS: Final = 0.5
"""Deadline of a call that waits for a job."""
CUT_SHORT: Final = "Internal error from Core"
"""What grpcio's client says if the answer came while it still sent. The answer itself is lost."""
RAW: Final = 0.03
"""Share of calls that are put on the wire byte by byte."""

METHODS: Final = [method for service in SERVICES for method in service.methods]
BUGS: Final = {
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.DATA_LOSS,
    grpc.StatusCode.ABORTED,
}
OURS: Final = {grpc.StatusCode.CANCELLED, grpc.StatusCode.DEADLINE_EXCEEDED}
"""How a call ends whose caller did not wait."""
HOSTILE: Final[tuple[tuple[tuple[str, str | bytes], ...], ...]] = (
    (),
    (("fluoro-owner", MARK),),
    (("fluoro-owner", "a" * 64),),
    (("fluoro-owner", ""),),
    (("fluoro-owner", OWNER), ("fluoro-owner", MARK)),
    (("fluoro-owner-bin", MARKED_BYTES),),
    (("fluoro-owner", OWNER), ("x-note", MARK * 100), ("x-note-bin", bytes(range(256)))),
    (("fluoro-owner", OWNER), *((f"x-{number}", MARK) for number in range(50))),
    (("fluoro-owner", OWNER), ("authorization", f"Bearer {MARK}")),
    (("fluoro-owner", OWNER), ("traceparent", MARK)),
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One call that ended as none may. kind: internal, hang, echo, untyped, log or gone."""

    kind: str
    call: int
    method: str
    told: str


@dataclass(slots=True)
class Report:
    """What became of all calls: how often each code of each method, and what is wrong."""

    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    findings: list[Finding] = field(default_factory=list)

    def judge(self, number: int, method: str, code: str, message: str, details: bytes) -> None:
        """Counts how a call ended, and finds what is wrong with its status."""
        self.codes[method, code] += 1
        status = grpc.StatusCode[code]
        if status in BUGS:
            self.findings.append(Finding("internal", number, method, f"{code}: {message}"))
        if MARK in message or MARKED_BYTES in details:
            self.findings.append(Finding("echo", number, method, f"{code}: {message}"))
        if status not in OURS and status is not grpc.StatusCode.OK and not _is_typed(details):
            self.findings.append(Finding("untyped", number, method, f"{code}: {message}"))


def _is_typed(details: bytes) -> bool:
    """Whether a google.rpc.Status has an ErrorInfo of ours (AIP-193)."""
    info = error_details_pb2.ErrorInfo()
    status = status_pb2.Status.FromString(details)
    return any(each.Unpack(info) and info.domain == "fluoro" for each in status.details)


async def fuzz(port: int, calls: Iterable[int], seed: int) -> Report:
    """Makes the calls of these numbers. The same seed and number make the same call."""
    report = Report()
    left = iter(calls)
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        world = await _world(channel)

        async def caller() -> None:
            for number in left:
                await _call(channel, port, world, report, number, Random(f"{seed} {number}"))

        async with asyncio.TaskGroup() as callers:
            for _ in range(AT_ONCE):
                callers.create_task(caller())
    return report


async def _world(channel: grpc.aio.Channel) -> World:
    """Some jobs and blobs, and cursors of watches."""
    world = World()
    mine = (("fluoro-owner", OWNER),)
    upload: Any = channel.stream_unary(
        "/fluoro.v1.BlobService/UploadBlob", None, UploadBlobResponse.FromString
    )
    submit: Any = channel.unary_unary(
        "/fluoro.v1.JobService/SubmitJob", None, SubmitJobResponse.FromString
    )
    for number in range(3):
        parts = [
            UploadBlobRequest(header=UploadBlobHeader()),
            UploadBlobRequest(chunk=bytes([number]) * 1_000),
        ]
        sent = [part.SerializeToString() for part in parts]
        world.blobs.append((await upload(iter(sent), metadata=mine)).blob.name)
        job = Job(inputs=world.blobs, steps=[Step(name="a", inspect_dicom=InspectDicom())])
        request = SubmitJobRequest(job=job).SerializeToString()
        world.jobs.append((await submit(request, metadata=mine)).job.name)
    watch: Any = channel.unary_stream(
        "/fluoro.v1.JobService/WatchJobs", None, WatchJobsResponse.FromString
    )
    async for update in watch(WatchJobsRequest().SerializeToString(), metadata=mine):
        if update.cursor:
            world.cursors.append(update.cursor)
            break
    return world


async def _call(
    channel: grpc.aio.Channel, port: int, world: World, report: Report, number: int, random: Random
) -> None:
    method = METHODS[number % len(METHODS)]
    path = f"/{method.containing_service.full_name}/{method.name}"
    if random.random() < RAW:
        await _raw(port, path, report, number, random)
        return
    sent = messages(method, world, random)
    metadata = (("fluoro-owner", OWNER),) if random.random() < 0.85 else random.choice(HOSTILE)
    deadline = _deadline(method, random)
    try:
        async with asyncio.timeout((deadline or DEADLINE_SECONDS) + GRACE_SECONDS):
            code, message, trailers = await _end(channel, method, path, sent, metadata, deadline)
    except TimeoutError:
        report.codes[method.full_name, "none"] += 1
        report.findings.append(Finding("hang", number, method.full_name, "no answer in time"))
        return
    details = dict(trailers or ()).get(DETAILS_KEY, b"")
    report.judge(number, method.full_name, code, message, details)
    if code == "DEADLINE_EXCEEDED" and deadline == DEADLINE_SECONDS:
        report.findings.append(Finding("hang", number, method.full_name, message))


def _deadline(method: MethodDescriptor, random: Random) -> float | None:
    """Seconds. None and the longest are for the caller's own patience to end."""
    if method.name == "WaitJob":
        return WAIT_SECONDS
    chosen: float | None = random.choices(
        (DEADLINE_SECONDS, 0.001, 0.02, 10.0**9, None), (92, 2, 2, 2, 2)
    )[0]
    return None if chosen is not None and chosen > DEADLINE_SECONDS else chosen


async def _end(
    channel: grpc.aio.Channel,
    method: MethodDescriptor,
    path: str,
    sent: list[bytes],
    metadata: tuple[tuple[str, str | bytes], ...],
    deadline: float | None,
) -> tuple[str, str, Any]:
    """Code, message and trailers of a call. A stream that stays open is left, and counts as OK."""
    # As a stream whatever it is: a client would not send none, or two.
    make: Callable[..., Any] = (
        channel.stream_stream if method.server_streaming else channel.stream_unary
    )
    call = make(path)(iter(sent), timeout=deadline, metadata=metadata)
    try:
        if not method.server_streaming:
            await call
        else:
            async with asyncio.timeout(LISTEN_SECONDS if _stays_open(method) else None):
                async for _ in call:
                    pass
    except TimeoutError:
        call.cancel()
        return "OK", "", ()
    except asyncio.CancelledError:
        task = asyncio.current_task()
        # grpcio's client raises it too for a call that was cancelled, and the caller would end.
        if task is None or task.cancelling():
            raise
        return "CANCELLED", "", ()
    except grpc.aio.AioRpcError as error:
        if error.details() == CUT_SHORT:
            return "CANCELLED", "", ()
        return error.code().name, error.details() or "", error.trailing_metadata()
    finally:
        call.cancel()
    return "OK", "", ()


def _stays_open(method: MethodDescriptor) -> bool:
    return method.name.startswith("Watch")


async def _raw(port: int, path: str, report: Report, number: int, random: Random) -> None:
    """A call byte by byte. What gRPC itself refuses has its codes, and no details."""
    case = wire.case(path.encode(), OWNER.encode(), random)
    if path.endswith(("WatchJobs", "/Watch")):
        return  # good ones of these do not end
    try:
        answer = await wire.call(port, case.path, case.body, case.headers, DEADLINE_SECONDS)
    except TimeoutError:
        report.findings.append(Finding("hang", number, path, "on the wire: no answer in time"))
        return
    name = next(
        (code.name for code in grpc.StatusCode if code.value[0] == answer.status), "stream broken"
    )
    report.codes["on the wire", name if not case.refused_by_grpc else "refused by gRPC"] += 1
    if not case.refused_by_grpc and name in {code.name for code in BUGS}:
        report.findings.append(Finding("internal", number, path, repr(answer.trailers)))
    if MARKED_BYTES in answer.trailers:
        report.findings.append(Finding("echo", number, path, repr(answer.trailers)))


def findings_of_log(text: str) -> list[Finding]:
    """What a gateway's log holds that it may not: tracebacks, values of requests, errors."""
    found = []
    for line in text.splitlines():
        event: dict[str, Any] = json.loads(line) if line.startswith("{") else {}
        is_error = event.get("level") in {"error", "critical"}
        if MARK in line or "Traceback" in line or "exception" in event or is_error:
            found.append(Finding("log", -1, "", line[:400]))
    return found
