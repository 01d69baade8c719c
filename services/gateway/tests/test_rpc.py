import asyncio
import gc
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import grpc.aio
import pytest
import structlog
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    GetJobResponse,
    ListJobsRequest,
    RetryJobRequest,
    RetryJobResponse,
    SubmitJobRequest,
    WaitJobRequest,
    WaitJobResponse,
    WatchJobRequest,
    WatchJobResponse,
    WatchJobsRequest,
    WatchJobsResponse,
)
from fluoro_jobs.errors import FieldViolation, FluoroError, Reason
from fluoro_jobs.ledger.audit import Entry
from gateway.grpc_server import Server
from gateway.identity.door import Door
from gateway.identity.metadata import Believed
from gateway.identity.principal import Role
from gateway.limits.buckets import Buckets
from gateway.limits.gate import Limits
from gateway.limits.owners import OwnerLimits, Owners
from gateway.rpc import Adapter, Call
from gateway.server import JOB_SERVICE
from gateway.testing import Client, connected, parse, refused
from google.protobuf.message import Message
from prometheus_client import REGISTRY

JOB = "jobs/00000000-0000-7000-8000-000000000001"


class Kept:
    """What is written down, and when: here there is no ledger."""

    def __init__(self) -> None:
        self.rows: list[Entry] = []
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.error: FluoroError | None = None

    async def write(self, entries: Sequence[Entry]) -> None:
        await self.may_write.wait()
        if self.error:
            raise self.error
        self.rows += entries

    def note(self, entry: Entry, thing: str) -> None:
        self.rows.append(entry._replace(thing=thing))


class Servicer:
    """A servicer whose every method does something of its own."""

    def __init__(self) -> None:
        self.cancelled = asyncio.Event()
        self.waiting = asyncio.Event()
        self.release = asyncio.Event()

    async def submit_job(self, _request: SubmitJobRequest, _call: Call) -> Any:
        raise FluoroError(Reason.INVALID_ARGUMENT, "Bad.", [FieldViolation("job", "Missing.")])

    async def get_job(self, _request: GetJobRequest, call: Call) -> GetJobResponse:
        return GetJobResponse(job={"owner": call.owner})

    async def list_jobs(self, _request: ListJobsRequest, _call: Call) -> Any:
        raise ValueError("Doe^John")

    async def list_inputs(self, _request: Message, _call: Call) -> Any:
        raise NotImplementedError

    list_tasks = list_items = list_artifacts = list_results = explain_job = list_inputs
    batch_submit_jobs = batch_cancel_jobs = batch_retry_jobs = list_inputs
    count_jobs = delete_job = run_job = list_inputs

    async def cancel_job(self, _request: CancelJobRequest, _call: Call) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def retry_job(self, _request: RetryJobRequest, _call: Call) -> RetryJobResponse:
        return RetryJobResponse()

    async def wait_job(self, _request: WaitJobRequest, _call: Call) -> WaitJobResponse:
        self.waiting.set()
        await self.release.wait()
        return WaitJobResponse()

    async def watch_jobs(
        self, _request: WatchJobsRequest, _call: Call
    ) -> AsyncIterator[WatchJobsResponse]:
        yield WatchJobsResponse(cursor="0")

    async def watch_job(
        self, request: WatchJobRequest, _call: Call
    ) -> AsyncIterator[WatchJobResponse]:
        try:
            for number in range(3):
                yield WatchJobResponse(cursor=str(number))
            if request.start_cursor == "stay":
                await asyncio.Event().wait()
            raise FluoroError(Reason.WATCH_TOO_SLOW, "Too slow.", metadata={"cursor": "2"})
        finally:
            self.cancelled.set()


def adapter_of(
    door: Door, kept: Any = None, max_message_bytes: int = 1_000, call_seconds: float = 60
) -> Adapter:
    unused: Any = None  # nothing here has a quota
    limits = Limits(
        Owners(OwnerLimits(), ""), Buckets("redis://127.0.0.1"), unused, unused, call_seconds
    )
    return Adapter(max_message_bytes, door, kept or Kept(), limits)


@asynccontextmanager
async def serving(
    servicer: Servicer,
    max_message_bytes: int = 10_000,
    kept: Any = None,
    call_seconds: float = 60,
) -> AsyncIterator[tuple[Client, Adapter]]:
    door = Door(
        [Believed("none", frozenset(Role), "me")],
        FluoroError(Reason.OWNER_MISSING, "Who?"),
    )
    adapter = adapter_of(door, kept, max_message_bytes, call_seconds)
    server = Server((), (), lambda _, peer: (peer(), ""), 100)
    server.add_registered_method_handlers(
        JOB_SERVICE.full_name, adapter.handlers(JOB_SERVICE, servicer)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with connected(port) as client:
            yield client, adapter
    finally:
        await server.stop(None)


async def test_the_servicer_learns_the_owner_of_a_call() -> None:
    async with serving(Servicer()) as (client, _):
        response = await client.jobs.GetJob(GetJobRequest(), metadata=(("fluoro-owner", "ann"),))
        assert response.job.owner == "ann"


async def test_an_error_keeps_its_reason_and_fields_on_the_way_to_the_client() -> None:
    async with serving(Servicer()) as (client, _):
        how = await refused(client.jobs.SubmitJob(SubmitJobRequest()))
    assert (how.code, how.message, how.reason, how.domain) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "Bad.",
        "INVALID_ARGUMENT",
        "fluoro",
    )
    assert how.violations == {"job": "Missing."}


async def test_a_bug_is_internal_to_the_client_and_located_without_its_text_in_the_log() -> None:
    async with serving(Servicer()) as (client, _):
        with structlog.testing.capture_logs() as logs:
            how = await refused(client.jobs.ListJobs(ListJobsRequest()))
    assert (how.code, how.reason) == (grpc.StatusCode.INTERNAL, "INTERNAL")
    assert "Doe" not in how.message
    (entry,) = logs
    assert entry["exception"] == "ValueError"
    assert "list_jobs" in entry["where"]
    assert "John" not in str({key: value for key, value in entry.items() if key != "where"})


async def test_a_message_over_the_limit_is_refused_with_its_reason() -> None:
    async with serving(Servicer(), max_message_bytes=1000) as (client, _):
        how = await refused(client.jobs.GetJob(GetJobRequest(name="x" * 1001)))
    assert (how.code, how.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MESSAGE_TOO_LARGE")


async def test_bytes_that_are_not_the_message_are_refused() -> None:
    async with serving(Servicer()) as (client, _):
        how = await refused(
            client.channel.unary_unary(f"/{JOB_SERVICE.full_name}/GetJob")(b"\xff\xff\xff")
        )
    assert (how.code, how.reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_a_deadline_that_passes_stops_the_work() -> None:
    servicer = Servicer()
    async with serving(servicer) as (client, adapter):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await client.jobs.CancelJob(CancelJobRequest(), timeout=0.1)
        assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(30):
            await servicer.cancelled.wait()
            await adapter.idle()


async def test_a_stream_that_ends_in_an_error_delivers_what_came_before_it() -> None:
    async with serving(Servicer()) as (client, _):
        call = client.jobs.WatchJob(WatchJobRequest())
        got = [(await call.read()).cursor for _ in range(3)]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
    assert got == ["0", "1", "2"]
    assert parse(caught.value).metadata == {"cursor": "2"}


async def test_a_caller_who_hangs_up_closes_the_stream_at_once() -> None:
    servicer = Servicer()
    async with serving(servicer) as (client, adapter):
        call = client.jobs.WatchJob(WatchJobRequest(start_cursor="stay"))
        await call.read()
        call.cancel()
        async with asyncio.timeout(30):
            await servicer.cancelled.wait()
            await adapter.idle()


async def test_idle_waits_for_the_last_call() -> None:
    servicer = Servicer()
    async with serving(servicer) as (client, adapter):
        call = client.jobs.WaitJob(WaitJobRequest())
        async with asyncio.timeout(30):
            await servicer.waiting.wait()
        idle = asyncio.create_task(adapter.idle())
        await asyncio.sleep(0)
        assert not idle.done()
        servicer.release.set()
        await call
        async with asyncio.timeout(30):
            await idle


async def test_calls_are_counted_by_method_and_code() -> None:
    labels = {"method": "fluoro.v1.JobService.SubmitJob", "code": "INVALID_ARGUMENT"}
    before = REGISTRY.get_sample_value("fluoro_rpc_requests_total", labels) or 0
    async with serving(Servicer()) as (client, _):
        await refused(client.jobs.SubmitJob(SubmitJobRequest()))
    assert REGISTRY.get_sample_value("fluoro_rpc_requests_total", labels) == before + 1


async def test_a_refused_call_is_let_go_of_at_once() -> None:
    def states() -> int:
        return sum(type(each).__name__ == "RPCState" for each in gc.get_objects())

    async with serving(Servicer()) as (client, _):
        await refused(client.jobs.SubmitJob(SubmitJobRequest()))
        gc.collect()
        gc.disable()
        try:
            before = states()
            for _ in range(20):
                await refused(client.jobs.SubmitJob(SubmitJobRequest()))
            assert states() <= before + 1, "the last one may not be over yet"
        finally:
            gc.enable()


def test_a_servicer_that_lacks_a_method_is_refused_at_start() -> None:
    with pytest.raises(AttributeError, match="submit_job"):
        adapter_of(Door([], FluoroError(Reason.OWNER_MISSING, "Who?"))).handlers(
            JOB_SERVICE, object()
        )


async def test_nothing_is_sent_before_it_is_written_down() -> None:
    kept = Kept()
    kept.may_write.clear()
    async with serving(Servicer(), kept=kept) as (client, _):
        unary = asyncio.ensure_future(client.jobs.GetJob(GetJobRequest(name=JOB)))
        watch = client.jobs.WatchJob(WatchJobRequest(name=JOB))
        streamed = asyncio.ensure_future(watch.read())
        done, _ = await asyncio.wait([unary, streamed], timeout=0.3)
        assert not done
        kept.may_write.set()
        await asyncio.gather(unary, streamed)
        assert {(row.method.rpartition(".")[2], row.thing) for row in kept.rows} == {
            ("GetJob", JOB),
            ("WatchJob", JOB),
        }
        kept.error = FluoroError(Reason.LEDGER_UNAVAILABLE, "Away.")
        for call in (
            client.jobs.GetJob(GetJobRequest(name=JOB)),
            client.jobs.WatchJob(WatchJobRequest(name=JOB)).read(),
        ):
            assert (await refused(call)).reason == "LEDGER_UNAVAILABLE"


async def test_a_stream_has_one_row_and_none_of_how_it_broke_off() -> None:
    kept = Kept()
    async with serving(Servicer(), kept=kept) as (client, _):
        with pytest.raises(grpc.aio.AioRpcError):
            async for _message in client.jobs.WatchJob(WatchJobRequest(name=JOB)):
                pass
        await refused(client.jobs.SubmitJob(SubmitJobRequest()))
        await refused(client.jobs.CancelJob(CancelJobRequest(), timeout=0.2))
    assert [(row.method.rpartition(".")[2], row.outcome) for row in kept.rows] == [
        ("WatchJob", "OK"),
        ("SubmitJob", "INVALID_ARGUMENT"),
    ]


async def test_no_text_of_a_request_is_written_down() -> None:
    kept = Kept()
    async with serving(Servicer(), kept=kept) as (client, _):
        await client.jobs.GetJob(GetJobRequest(name="jobs/Doe^John"))
    (row,) = kept.rows
    assert (row.thing, row.principal, row.how) == ("", "me", "none")
    assert row.roles == ("operator", "submitter", "viewer", "worker")
    assert row.peer.startswith("ipv4:127.0.0.1:")
    assert "grpc-python" in row.agent


async def test_a_call_without_a_deadline_gets_one() -> None:
    servicer = Servicer()
    async with serving(servicer, call_seconds=0.05) as (client, _):
        how = await refused(client.jobs.CancelJob(CancelJobRequest()))
        assert (how.code, how.reason) == (grpc.StatusCode.DEADLINE_EXCEEDED, "CALL_TIMEOUT")
        assert servicer.cancelled.is_set()
        servicer.cancelled.clear()
        call = client.jobs.CancelJob(CancelJobRequest(), timeout=0.5)
        assert (await refused(call)).reason == "", "that of the caller stands, however long"
