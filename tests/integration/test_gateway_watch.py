"""Watching a job: a snapshot, then every event once and in order, whatever breaks."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

import grpc.aio
import pytest
import structlog
from fluoro.v1.blob_service_pb2 import UploadBlobHeader, UploadBlobRequest
from fluoro.v1.event_pb2 import Event, Progress
from fluoro.v1.job_pb2 import Job, Step
from fluoro.v1.job_service_pb2 import (
    CancelJobRequest,
    GetJobRequest,
    SubmitJobRequest,
    WaitJobRequest,
    WatchJobRequest,
    WatchJobResponse,
)
from fluoro_jobs.ledger import attempts
from fluoro_jobs.ledger.audience import audience
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.records import TaskResult
from fluoro_jobs.ledger.store import transition
from fluoro_jobs.states import Outcome, TaskState
from fluoro_jobs.testing.rig import queue_tasks
from fluoro_jobs.wakeups import Publisher
from fluoro_local.servers import ValkeyServer
from gateway.ledger_calls import LedgerCalls
from gateway.settings import Settings
from gateway.testing import Client, logged, parse, serving
from gateway.testing_jobs import WORKER
from gateway.watch import Hub

PATIENCE_SECONDS = 20


class Scene:
    """A gateway and the other side of the ledger: what workers would do to a job."""

    def __init__(self, client: Client, ledger: Ledger, publisher: Publisher) -> None:
        self.client, self.ledger, self.publisher = client, ledger, publisher

    async def submit(self, *steps: str) -> str:
        """The name of a new job whose steps run one after another."""
        parts = [
            UploadBlobRequest(header=UploadBlobHeader(size_bytes=1)),
            UploadBlobRequest(chunk=b"x"),
        ]
        blob = (await self.client.blobs.UploadBlob(iter(parts))).blob.name
        chain = [
            Step(name=name, after=[previous] if previous else [], inspect_dicom={})
            for previous, name in zip(["", *steps], steps, strict=False)
        ]
        return str(
            (
                await self.client.jobs.SubmitJob(
                    SubmitJobRequest(job=Job(inputs=[blob], steps=chain))
                )
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

    async def start_step(self, job: str, *, wake: bool = True) -> None:
        """One ready step starts."""

        def start(connection: LedgerConnection, job_id: UUID) -> None:
            first, *_ = queue_tasks(connection, job_id)
            assert attempts.claim(connection, first, WORKER) is not None

        await self.act(job, start, wake=wake)

    async def run_step(self, job: str, *, wake: bool = True) -> None:
        """One ready step starts and succeeds: a commit each."""

        def succeed(graph: JobGraph) -> None:
            graph.succeed(
                next(task for task in graph.tasks.values() if task.state is TaskState.RUNNING),
                TaskResult(b""),
            )

        await self.start_step(job, wake=wake)
        await self.act(job, lambda *args: transition(*args, succeed), wake=wake)

    async def retry_often(self, job: str, times: int, text: str) -> None:
        """Claims and failures of the one task of a job, each with a text of some length."""

        def go(graph: JobGraph) -> None:
            (task,) = graph.tasks.values()
            for _ in range(times):
                task.state = TaskState.QUEUED
                graph.start(task)
                task.allowed = task.attempt + 2
                graph.fail(task, Outcome.FAILED, "INTERNAL", text, may_retry=True)

        await self.act(job, lambda *args: transition(*args, go))

    def watch(self, job: str, start_cursor: str = "") -> Any:
        return self.client.jobs.WatchJob(WatchJobRequest(name=job, start_cursor=start_cursor))


@asynccontextmanager
async def rigged(
    database_url: str, redis_url: str, blob_url: str, **overrides: Any
) -> AsyncIterator[Scene]:
    ledger, publisher = Ledger(database_url), Publisher(redis_url)
    try:
        async with serving(database_url, redis_url, blob_url, **overrides) as client:
            yield Scene(client, ledger, publisher)
    finally:
        publisher.close()
        ledger.close()


@pytest.fixture
async def scene(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[Scene]:
    async with rigged(database_url, redis_url, blob_url) as made:
        yield made


@pytest.fixture
def dead_redis_url() -> Iterator[str]:
    """Where no Redis listens, and nothing else will."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"redis://127.0.0.1:{held.getsockname()[1]}/0"


async def read(
    call: Any, until: Callable[[WatchJobResponse], bool] = lambda _: False
) -> list[WatchJobResponse]:
    """Responses up to and with the first one that `until` wants, or to the end of the stream."""
    got: list[WatchJobResponse] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        async for response in call:
            got.append(response)
            if until(response):
                break
    return got


def events(responses: list[WatchJobResponse]) -> list[Event]:
    return [response.event for response in responses if response.HasField("event")]


def sequences(responses: list[WatchJobResponse]) -> list[int]:
    return [event.sequence for event in events(responses)]


async def test_a_watch_is_a_snapshot_and_then_every_event_once_to_the_end(scene: Scene) -> None:
    job = await scene.submit("a", "b")
    call = scene.watch(job)
    (first,) = await read(call, lambda _: True)
    assert (first.snapshot.name, first.snapshot.state, first.snapshot.last_sequence) == (
        job,
        Job.STATE_PENDING,
        1,
    )
    await scene.run_step(job)
    await scene.run_step(job)
    rest = await read(call)
    last = (await scene.client.jobs.GetJob(GetJobRequest(name=job))).job
    assert sequences(rest) == list(range(2, last.last_sequence + 1))
    assert events(rest)[-1].job_changed.state == last.state == Job.STATE_SUCCEEDED
    assert await call.code() is grpc.StatusCode.OK


async def test_resuming_from_any_cursor_gives_exactly_the_events_after_it(scene: Scene) -> None:
    job = await scene.submit("a", "b")
    call = scene.watch(job)
    got = await read(call, lambda _: True)
    await scene.run_step(job)
    await scene.run_step(job)
    got += await read(call)
    everything = sequences(got)
    for number, response in enumerate(got):
        assert sequences(await read(scene.watch(job, response.cursor))) == everything[number:]


async def test_a_resumed_watch_goes_on_live_after_what_it_missed(scene: Scene) -> None:
    job = await scene.submit("a", "b")
    (first,) = await read(scene.watch(job), lambda _: True)
    await scene.run_step(job)
    call = scene.watch(job, first.cursor)
    missed = await read(
        call, lambda response: response.event.step_changed.state == Step.STATE_SUCCEEDED
    )
    await scene.run_step(job)
    assert sequences(missed + await read(call)) == list(range(2, 12))


async def test_a_watch_of_a_finished_job_is_its_snapshot(scene: Scene) -> None:
    job = await scene.submit("a")
    await scene.run_step(job)
    call = scene.watch(job)
    (only,) = await read(call)
    assert only.snapshot.state == Job.STATE_SUCCEEDED
    assert await call.code() is grpc.StatusCode.OK
    assert await read(scene.watch(job, only.cursor)) == []


async def test_many_watchers_that_come_while_a_job_runs_all_see_every_event_once(
    scene: Scene,
) -> None:
    job = await scene.submit("a", "b", "c", "d")

    async def watch(number: int) -> list[WatchJobResponse]:
        for _ in range(number):  # so that each comes at another moment of the job's life
            await scene.client.jobs.GetJob(GetJobRequest(name=job))
        return await read(scene.watch(job))

    watchers = [asyncio.create_task(watch(number)) for number in range(48)]
    for _ in range(4):
        await scene.run_step(job)
    for got in await asyncio.gather(*watchers):
        assert sequences(got) == list(range(got[0].snapshot.last_sequence + 1, 20))


async def test_an_event_between_the_snapshot_and_the_start_of_the_stream_is_not_lost(
    scene: Scene, database_url: str, redis_url: str
) -> None:
    job = await scene.submit("a")
    settings = Settings(
        database_url=database_url,
        redis_url=redis_url,
        blob_url="memory://",
        grpc_host="127.0.0.1",
        watch_safety_interval_seconds=3600,
    )
    calls = LedgerCalls(scene.ledger, threads=1)
    hub = Hub(calls, calls, settings)
    hub.start()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not hub.redis_up:  # noqa: ASYNC110 - the hub sets no Event for it
                await asyncio.sleep(0.01)
            with hub.watching(UUID(job[5:]), "default") as watcher:
                await scene.run_step(job, wake=False)
                watcher.woken = False  # that the subscription began is no longer news
                scene.publisher.events(UUID(job[5:]), "default")
                while not watcher.woken or hub._news.is_set():  # noqa: ASYNC110 - until the wake-up found nobody who knows where to start
                    await asyncio.sleep(0.01)
                got = []

                async def write(sent: bytes) -> None:
                    got.append(WatchJobResponse.FromString(sent))

                await hub.stream(watcher, "", sequence=1, last=1).send(write)
    finally:
        await hub.close()
        calls.close()
    assert sequences(got) == [2, 3, 4, 5, 6, 7]


@pytest.mark.parametrize("wake", [True, False], ids=["with wake-ups", "without a single wake-up"])
async def test_without_redis_jobs_are_accepted_read_and_watched(
    database_url: str, dead_redis_url: str, blob_url: str, wake: bool
) -> None:
    async with rigged(
        database_url, dead_redis_url, blob_url, watch_poll_interval_seconds=0.1
    ) as scene:
        job = await scene.submit("a")
        assert (
            await scene.client.jobs.GetJob(GetJobRequest(name=job))
        ).job.state == Job.STATE_PENDING
        call = scene.watch(job)
        await read(call, lambda _: True)
        await scene.run_step(job, wake=wake)
        assert sequences(await read(call)) == [2, 3, 4, 5, 6, 7]


async def test_a_wake_up_that_got_lost_delays_an_event_and_loses_none(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with rigged(
        database_url, redis_url, blob_url, watch_safety_interval_seconds=0.3
    ) as scene:
        job = await scene.submit("a")
        call = scene.watch(job)
        await read(call, lambda _: True)
        await scene.run_step(job, wake=False)
        assert sequences(await read(call)) == [2, 3, 4, 5, 6, 7]


async def test_news_of_other_jobs_do_not_put_off_the_look_for_lost_wake_ups(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with rigged(
        database_url, redis_url, blob_url, watch_safety_interval_seconds=0.3
    ) as scene:
        job, busy = await scene.submit("a"), await scene.submit("a")
        calls = [scene.watch(job), scene.watch(busy)]
        for call in calls:
            await read(call, lambda _: True)

        async def news() -> None:
            while True:
                scene.publisher.events(UUID(busy[5:]))
                await asyncio.sleep(0.05)

        incessant = asyncio.create_task(news())
        try:
            await scene.run_step(job, wake=False)
            assert sequences(await read(calls[0])) == [2, 3, 4, 5, 6, 7]
        finally:
            incessant.cancel()


async def test_a_watch_lives_through_a_crash_of_redis(
    database_url: str, redis_url: str, blob_url: str, valkey: ValkeyServer
) -> None:
    async with rigged(database_url, redis_url, blob_url, watch_poll_interval_seconds=0.1) as scene:
        job = await scene.submit("a", "b", "c")
        call = scene.watch(job)
        await read(call, lambda _: True)
        await scene.run_step(job)
        valkey.kill()
        try:
            await scene.run_step(job)
            during = await read(
                call,
                lambda response: (
                    response.event.step_changed.step == "b"
                    and response.event.step_changed.state == Step.STATE_SUCCEEDED
                ),
            )
        finally:
            valkey.start()
        await scene.run_step(job)
        assert sequences(during + await read(call)) == list(range(2, 16))


async def test_progress_comes_live_and_the_latest_is_there_for_those_who_come_late(
    scene: Scene,
) -> None:
    job = await scene.submit("a")
    await scene.start_step(job)
    call = scene.watch(job)
    (first,) = await read(call, lambda _: True)
    sent = Progress(job=job, step="a", stage="decode", fraction=0.25)
    scene.publisher.progress("default", sent)
    (live,) = await read(call, lambda _: True)
    assert (live.progress, live.cursor) == (sent, first.cursor)
    late = await read(scene.watch(job), lambda response: response.HasField("progress"))
    assert [response.WhichOneof("update") for response in late] == ["snapshot", "progress"]
    assert late[-1].progress == sent


async def test_an_idle_watch_gets_bookmarks(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with rigged(
        database_url, redis_url, blob_url, watch_bookmark_interval_seconds=0.1
    ) as scene:
        job = await scene.submit("a")
        call = scene.watch(job)
        (first,) = await read(call, lambda _: True)
        for _ in range(2):
            (mark,) = await read(call, lambda _: True)
            assert (mark.WhichOneof("update"), mark.bookmark.last_sequence, mark.cursor) == (
                "bookmark",
                1,
                first.cursor,
            )


async def test_a_reader_who_is_too_slow_is_ended_with_a_cursor_that_misses_nothing(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with rigged(
        database_url, redis_url, blob_url, watch_ring_events=50, watch_stall_seconds=0.5
    ) as scene:
        job = await scene.submit("a")
        call = scene.watch(job)
        got = await read(call, lambda _: True)
        with structlog.testing.capture_logs() as logs:
            for _ in range(
                20
            ):  # 16 MB, not read meanwhile: far over what HTTP/2 buffers and the ring hold together
                await scene.retry_often(job, 8, "x" * 100_000)
            await logged("watch_too_slow", logs)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            got += await read(_also(call, got))
        how = parse(caught.value)
        assert (how.code.name, how.reason) == ("RESOURCE_EXHAUSTED", "WATCH_TOO_SLOW")
        assert how.metadata["cursor"] == got[-1].cursor
        await scene.client.jobs.CancelJob(CancelJobRequest(name=job))
        got += await read(scene.watch(job, how.metadata["cursor"]))
        last = (await scene.client.jobs.GetJob(GetJobRequest(name=job))).job.last_sequence
        assert sequences(got) == list(range(2, last + 1))


async def _also(call: Any, into: list[WatchJobResponse]) -> AsyncIterator[WatchJobResponse]:
    """The call's responses, kept even when it ends in an error."""
    async for response in call:
        into.append(response)
        yield response


async def test_an_old_cursor_of_a_long_job_is_no_reason_to_be_called_slow(
    database_url: str, redis_url: str, blob_url: str
) -> None:
    async with rigged(database_url, redis_url, blob_url, watch_ring_events=5) as scene:
        job = await scene.submit("a")
        (first,) = await read(scene.watch(job), lambda _: True)
        await scene.retry_often(job, 40, "x")
        await scene.client.jobs.CancelJob(CancelJobRequest(name=job))
        last = (await scene.client.jobs.GetJob(GetJobRequest(name=job))).job.last_sequence
        assert sequences(await read(scene.watch(job, first.cursor))) == list(range(2, last + 1))


async def test_cancelling_ends_a_watch_with_the_event_that_says_so(scene: Scene) -> None:
    job = await scene.submit("a")
    call = scene.watch(job)
    await read(call, lambda _: True)
    cancelled = (await scene.client.jobs.CancelJob(CancelJobRequest(name=job))).job
    assert cancelled.state == Job.STATE_CANCELLED
    assert events(await read(call))[-1].job_changed.state == Job.STATE_CANCELLED
    again = (await scene.client.jobs.CancelJob(CancelJobRequest(name=job))).job
    assert again == cancelled


async def test_waiting_returns_the_job_once_it_is_terminal(scene: Scene) -> None:
    job = await scene.submit("a")
    call = scene.client.jobs.WaitJob(
        WaitJobRequest(name=job, timeout={"seconds": PATIENCE_SECONDS})
    )
    await scene.run_step(job)
    assert (await call).job.state == Job.STATE_SUCCEEDED
    assert (
        await scene.client.jobs.WaitJob(WaitJobRequest(name=job))
    ).job.state == Job.STATE_SUCCEEDED


@pytest.mark.parametrize(
    "limits", [{"timeout": {"nanos": 100_000_000}}, {}], ids=["own timeout", "the call's deadline"]
)
async def test_waiting_in_vain_is_no_error(scene: Scene, limits: dict[str, Any]) -> None:
    job = await scene.submit("a")
    response = await scene.client.jobs.WaitJob(
        WaitJobRequest(name=job, **limits), timeout=None if limits else 0.6
    )
    assert response.job.state == Job.STATE_PENDING
