"""The fake gateway tells what the real one tells: the same conversation with each, compared."""

import asyncio
import hashlib
import json
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from operator import itemgetter
from pathlib import Path
from typing import Any

import pytest
from fluoro.v1 import dicom_pb2, job_pb2, ml_pb2
from fluoro_client import BASIC, AsyncClient, FluoroApiError
from fluoro_client.jobs import imaging_report, inspect, render
from fluoro_client.testing import FakeGateway, File, Outcome
from fluoro_client.testing.faults import CODES
from fluoro_jobs.errors import REASONS, FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import attempts
from fluoro_jobs.ledger.audience import audience
from fluoro_jobs.ledger.connection import Ledger, LedgerConnection
from fluoro_jobs.ledger.records import ItemResult, TaskResult
from fluoro_jobs.wakeups import Publisher
from gateway.serve import running
from gateway.settings import Settings
from gateway.testing_jobs import WORKER
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message

Item, Job = job_pb2.Item, job_pb2.Job
PATIENCE_SECONDS = 20
NOBODY = "00000000-0000-7000-8000-000000000000"
UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
UNTOLD = {
    "createTime",
    "startTime",
    "endTime",
    "runAfterTime",
    "time",
    "cursor",
    "worker",
    "queue",
}
"""What no two deployments say alike, and what the fake leaves out."""

Work = Callable[[str, str, Outcome | None], Awaitable[None]]
"""Has a worker do a step of a job; None only begins it."""

READY = """
UPDATE open_tasks o SET state = 'QUEUED', queued_time = now(), dispatch_order = NULL
  FROM tasks t, steps s
WHERE t.id = o.task_id AND s.job_id = t.job_id AND s.ordinal = t.step AND t.job_id = %s
  AND s.name = %s AND o.state <> 'RUNNING'
RETURNING t.id, t.shard
"""


@asynccontextmanager
async def real(database_url: str, redis_url: str, blob_url: str) -> AsyncIterator[tuple[str, Work]]:
    """A gateway with its servers, and a worker that obeys."""
    local = {"grpc_host": "127.0.0.1", "grpc_port": 0, "http_host": "127.0.0.1", "http_port": 0}
    settings = Settings(database_url=database_url, redis_url=redis_url, blob_url=blob_url, **local)
    ledger, publisher = Ledger(database_url), Publisher(redis_url)

    def work(job: str, step: str, outcome: Outcome | None) -> None:
        job_id = uuid.UUID(job[5:])
        with ledger.connection() as connection:
            tasks = sorted(connection.execute(READY, (job_id, step)).fetchall(), key=itemgetter(1))
            claims = [attempts.claim(connection, task, WORKER) for task, _ in tasks]
            if outcome:
                for claim in claims:
                    assert claim is not None
                    end(connection, claim, outcome)
            for one in audience(connection, [job_id]):
                publisher.events(one.job, one.owner)

    async def later(job: str, step: str, outcome: Outcome | None) -> None:
        await asyncio.to_thread(work, job, step, outcome)

    try:
        async with running(settings) as gateway:
            yield f"127.0.0.1:{gateway.grpc_port}", later
    finally:
        publisher.close()
        ledger.close()


def end(connection: LedgerConnection, claim: attempts.Claim, outcome: Outcome) -> None:
    """Commits what an attempt is told to come to."""
    if outcome.reason:
        attempts.fail(connection, claim, FluoroError(Reason(outcome.reason), outcome.message))
        return
    inputs = range(claim.task.first_input, claim.task.first_input + claim.task.input_count)
    artifacts = [
        job_pb2.Artifact(
            name=file.name, role=file.role, media_type=file.media_type, input=file.input,
            blob=f"blobs/{new_id()}",
            key="" if file.input is None else str(file.input),
            size_bytes=len(file.data), sha256=hashlib.sha256(file.data).digest(),
        )
        for file in outcome.artifacts
    ]  # fmt: skip
    result = outcome.result.SerializeToString() if outcome.result else b""
    attempts.commit(
        connection,
        claim,
        TaskResult(
            result,
            [
                ItemResult(
                    item.input, str(item.input), item.input, item.state, item.reason, item.message
                )
                for item in outcome.items
                if item.input in inputs
            ],
            artifacts,
        ),
    )


@asynccontextmanager
async def fake() -> AsyncIterator[tuple[str, Work]]:
    """The other one."""
    with FakeGateway(hold=True) as gateway:

        async def work(job: str, step: str, outcome: Outcome | None) -> None:
            if outcome is None:
                gateway.begin(job, step)
            else:
                gateway.script(step, outcome, times=1)
                gateway.finish(job, step)

        yield gateway.endpoint, work


class Transcript:
    """What a client saw, with names numbered as they came up."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, Any]] = []
        self._names: dict[str, str] = {}

    def note(self, what: str, *messages: Message) -> None:
        """The messages, without what differs from one deployment to another."""
        for message in messages:
            text = json.dumps(told(MessageToDict(message)), sort_keys=True)
            self.lines.append((what, json.loads(self.named(text))))

    def named(self, text: str) -> str:
        """The text with names numbered."""
        return UUID.sub(
            lambda found: self._names.setdefault(found[0], f"#{len(self._names)}"), text
        )

    async def refused(self, what: str, call: Awaitable[object]) -> None:
        """How a call is refused."""
        with pytest.raises(FluoroApiError) as caught:
            await call
        error = caught.value
        text = f"{error.code} {error.reason} {error.violations}"
        self.lines.append((what, self.named(text)))


def told(value: Any) -> Any:
    """The value of a JSON object without the fields that are UNTOLD."""
    if isinstance(value, list):
        return [told(each) for each in value]
    if not isinstance(value, dict):
        return value
    sources = {"inputs"} if "retryPolicy" in value else set()  # of a step
    return {key: told(each) for key, each in value.items() if key not in UNTOLD | sources}


async def a_job_that_fails_and_is_retried(
    ada: AsyncClient, work: Work, seen: Transcript, blob: str
) -> None:
    job = imaging_report([blob])
    job.steps[1].max_inputs_per_task = 0
    name = (await ada.submit(job, request_id="once")).name
    seen.note("submitted", await ada.submit(job, request_id="once"), await ada.get(name))
    await seen.refused("another body", ada.submit(imaging_report([blob, blob]), request_id="once"))
    await seen.refused("retried too soon", ada.retry(name))
    ok, failed = (
        Item(input=0, state=Item.STATE_SUCCEEDED),
        Item(input=0, state=Item.STATE_FAILED, reason="NOT_DICOM", message="No."),
    )
    async with asyncio.timeout(PATIENCE_SECONDS), aclosing(ada.watch(name)) as watch:
        seen.note("snapshot", await anext(watch))
        await work(
            name,
            "inspect",
            Outcome(
                items=[ok], artifacts=[File("a.json", b"{}", "metadata", "application/json", 0)]
            ),
        )
        pixels = File("a.npy", b"x", "pixels", "application/x-npy", 0)
        render = Outcome(result=dicom_pb2.RenderDicomResult(), items=[ok], artifacts=[pixels])
        await work(name, "render", render)
        await work(name, "analyze", Outcome(items=[failed]))
        messages = [message async for message in watch if message.HasField("event")]
    seen.note("watched", *messages)
    async with aclosing(ada.watch(name, messages[2].cursor)) as rest:
        seen.note("resumed", *[message async for message in rest if message.HasField("event")])
    await seen.refused("cursor of another", anext(ada.watch(name, "nonsense")))
    seen.note("failed", await ada.get(name), await ada.wait(name), await ada.retry(name))
    for step in ("analyze", "report"):
        await work(name, step, Outcome())
    seen.note("succeeded", await ada.get(name))
    async with aclosing(ada.watch(name, messages[-1].cursor)) as rest:
        seen.note(
            "since the retry", *[message async for message in rest if message.HasField("event")]
        )
    await seen.refused("nothing to retry", ada.retry(name))
    seen.note("cancelled too late", await ada.cancel(name))
    seen.note("basic", await ada.get(name, view=BASIC), await ada.wait(name, view=BASIC))
    async with aclosing(ada.watch(name, view=BASIC)) as watch:
        seen.note("basic snapshot", await anext(watch))
    result = await ada.result(name, "render")
    assert result is not None
    seen.note("result", result)
    assert await ada.result(name, "analyze") == ml_pb2.AnalyzeImagesResult()
    await parts_of(ada, seen, name, "inspect")
    await seen.refused("no such step", anext(ada.list_items(name, step="none")))
    await seen.refused("no such step", ada.result(name, "none"))


async def parts_of(ada: AsyncClient, seen: Transcript, name: str, step: str) -> None:
    """Every list of the job, whole and filtered."""
    seen.lines.append(("inputs", [seen.named(blob) async for blob in ada.list_inputs(name)]))
    seen.note("tasks", *[task async for task in ada.list_tasks(name)])
    seen.note("tasks of a step", *[task async for task in ada.list_tasks(name, step=step)])
    seen.note("items", *[item async for item in ada.list_items(name)])
    bad = (Item.STATE_FAILED, Item.STATE_SKIPPED)
    seen.note("bad items", *[item async for item in ada.list_items(name, step=step, states=bad)])
    seen.note("artifacts", *[made async for made in ada.list_artifacts(name)])
    roles = ["metadata", "none"]
    seen.note("with roles", *[made async for made in ada.list_artifacts(name, roles=roles)])


async def a_job_that_fans_out(
    ada: AsyncClient, work: Work, seen: Transcript, blobs: list[str]
) -> None:
    def steps(first: job_pb2.Step, policy: Any) -> Job:
        first.item_failure_policy = policy
        return Job(
            inputs=blobs, steps=[first, inspect("second", after=["first"])], labels={"kind": "wide"}
        )

    states = (Item.STATE_SUCCEEDED, Item.STATE_FAILED, Item.STATE_SKIPPED)
    items = [
        Item(input=number, state=state, reason="" if number == 0 else "NO_PIXEL_DATA")
        for number, state in enumerate(states)
    ]
    for policy in (
        job_pb2.Step.ITEM_FAILURE_POLICY_ALLOW,
        job_pb2.Step.ITEM_FAILURE_POLICY_FAIL_STEP,
    ):
        name = (await ada.submit(steps(render("first", max_inputs_per_task=2), policy))).name
        await work(name, "first", Outcome(items=items))
        seen.note("partly", await ada.get(name))
        if policy == job_pb2.Step.ITEM_FAILURE_POLICY_ALLOW:
            await work(name, "second", Outcome("PIXELS_UNDECODABLE", "As told."))
        seen.note("basic", await ada.get(name, view=BASIC))
        await parts_of(ada, seen, name, "first")
        seen.note("through", await ada.get(name), await ada.retry(name), await ada.get(name))
    skipped = [
        Item(input=number, state=Item.STATE_SKIPPED, reason="MODEL_NOT_APPLICABLE")
        for number in range(3)
    ]
    name = (await ada.submit(steps(render("first"), 0))).name
    await work(name, "first", Outcome(items=skipped))
    seen.note("skipped", await ada.get(name))


async def jobs_of_an_owner(
    ada: AsyncClient, bob: AsyncClient, work: Work, seen: Transcript, blob: str
) -> None:
    mine = Job(
        inputs=[blob],
        steps=[inspect("one"), inspect("two", after=["one"])],
        labels={"kind": "mine"},
        priority=3,
    )
    name = (await ada.submit(mine)).name
    await seen.refused("another's job", bob.get(name))
    await seen.refused("another's blob", bob.submit(mine))
    async with (
        asyncio.timeout(PATIENCE_SECONDS),
        aclosing(ada.watch_jobs({"kind": "mine"})) as watch,
    ):
        seen.note("open", await anext(watch))
        await work(name, "one", None)
        seen.note("running", await ada.get(name), await ada.wait(name, timeout_seconds=0.01))
        seen.note("cancelled", await ada.cancel(name), await ada.cancel(name))
        async for message in watch:
            if message.HasField("event"):
                seen.note("of all", message)
                if message.event.job_changed.state == Job.STATE_CANCELLED:
                    break
    for _ in range(3):
        await ada.submit(mine)
    seen.note("listed", *[job async for job in ada.list(labels={"kind": "mine"}, page_size=2)])
    seen.note(
        "listed by state",
        *[job async for job in ada.list(states=[Job.STATE_CANCELLED, Job.STATE_SUCCEEDED])],
    )
    searches: list[dict[str, Any]] = [
        {"filter_by": "state = CANCELLED AND labels.kind = mine"},
        {"filter_by": 'labels.kind != "mine" state != PENDING'},
        {"filter_by": "reason = JOB_CANCELLED", "order_by": "end_time"},
        {"order_by": "create_time", "page_size": 2},
        {"order_by": "end_time desc"},
        {"fields": ["name", "state"]},
    ]
    for search in searches:
        seen.note(str(search), *[job async for job in ada.list(**search)])
    await seen.refused("a bad order", anext(ada.list(order_by="name")))
    await seen.refused("a bad mask", anext(ada.list(fields=["nope"])))


async def many_at_once(ada: AsyncClient, seen: Transcript, blob: str) -> None:
    def wide(kind: str) -> Job:
        return Job(inputs=[blob], steps=[inspect("one")], labels={"wave": kind})

    entries = [
        wide("a"),
        Job(inputs=[blob]),
        wide("b"),
        wide("a"),
        Job(inputs=[blob], steps=[inspect("A")]),
    ]
    ids = ["w1", "w2", "w3", "w4", "w5"]
    for _ in range(2):
        for outcome in await ada.submit_many(entries, request_ids=ids):
            if isinstance(outcome, Job):
                seen.note("one of many", outcome)
            else:
                text = f"{outcome.code} {outcome.reason} {outcome.violations}"
                seen.lines.append(("one of many", text))
    seen.lines.append(("checked", len(await ada.submit_many([wide("c")], validate_only=True))))
    for wave in ("a", "b", "c"):
        # Jobs of one batch have no order: those of a millisecond are listed by chance.
        found = [job async for job in ada.list(filter_by=f"labels.wave = {wave}")]
        seen.lines.append((wave, len(found)))
    for call in (ada.cancel_matching, ada.retry_matching, ada.retry_matching):
        seen.lines.append(("preview", await call("labels.wave = a", preview=True)))
        seen.lines.append(("done", await call("labels.wave = a")))
    counts, more = await ada.count("labels.wave != d")
    seen.lines.append(("counted", (sorted(counts.items()), more)))
    name = (await ada.submit(wide("d"), request_id="d")).name
    await seen.refused("delete too soon", ada.delete(name))
    await ada.cancel(name)
    await ada.delete(name, missing_ok=False)
    await ada.delete(name)
    await seen.refused("delete again", ada.delete(name, missing_ok=False))
    await seen.refused("deleted", ada.get(name))
    seen.note("after the delete", await ada.submit(wide("d"), request_id="d"))
    await seen.refused("cancel nothing", ada.cancel_matching(" "))


def taking(step: job_pb2.Step, source: str) -> job_pb2.Step:
    """The step, with the artifacts of another as its inputs."""
    step.inputs.add(step=source)
    return step


async def jobs_of_pipelines(ada: AsyncClient, work: Work, seen: Transcript, blob: str) -> None:
    seen.lines.append(("pipelines", [one.name async for one in ada.pipelines()]))
    job = Job(inputs=[blob])
    window = {"window_center": 40, "window_width": 400}
    for pipeline in ("archive-report", "ct-tissue", "dicom-intake", "imaging-report@1"):
        given = window if pipeline != "archive-report" else {"title": "A"}
        for parameters in ({}, given):
            name = (await ada.submit(job, pipeline=pipeline, parameters=parameters)).name
            seen.note(pipeline, await ada.get(name), await ada.cancel(name))
        seen.note("shown", *(await ada.pipeline(pipeline)).steps)
    await seen.refused("no pipeline", ada.submit(job, pipeline="no"))
    await seen.refused("no version", ada.pipeline("ct-tissue@2"))
    await seen.refused("no name", ada.submit(job, pipeline="pipelines/"))
    await seen.refused("steps too", ada.submit(imaging_report([blob]), pipeline="ct-tissue"))
    await seen.refused("no steps", ada.submit(job, parameters=window))
    unknown = {"colour": "red"}
    await seen.refused("unknown", ada.submit(job, pipeline="ct-tissue", parameters=unknown))
    await seen.refused("in a run", ada.run("no", [blob]))
    told: list[Any] = []
    run = asyncio.create_task(ada.run("dicom-intake", [blob], request_id="run", told=told.append))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not told:  # noqa: ASYNC110 - a plain list sets no Event
            await asyncio.sleep(0.01)
        for step in ("inspect", "render"):
            await work(told[0].snapshot.name, step, Outcome())
        seen.note("ran", await run)
    seen.note("told", *[one for one in told if not one.HasField("bookmark")])
    seen.note("again", await ada.run("dicom-intake", [blob], request_id="run"))


async def what_is_refused(ada: AsyncClient, seen: Transcript, blob: str) -> None:
    wrong = {
        "no steps": Job(inputs=[blob]),
        "no inputs": Job(steps=[inspect()]),
        "no operation": Job(inputs=[blob], steps=[job_pb2.Step(name="a")]),
        "bad names": Job(inputs=["blobs/1"], steps=[inspect("A")]),
        "same names": Job(inputs=[blob], steps=[inspect("a"), inspect("a")]),
        "unknown step": Job(inputs=[blob], steps=[inspect("a"), inspect("b", after=["c"])]),
        "unknown input": Job(inputs=[blob], steps=[taking(inspect("a"), "c")]),
        "circle of inputs": Job(inputs=[blob], steps=[taking(inspect("a"), "a")]),
        "circle": Job(inputs=[blob], steps=[inspect("a", after=["b"]), inspect("b", after=["a"])]),
        "no such blob": Job(inputs=[blob, f"blobs/{NOBODY}"], steps=[inspect("a")]),
    }
    for what, job in wrong.items():
        await seen.refused(what, ada.submit(job))
    for name in (f"jobs/{NOBODY}", "jobs/1", NOBODY):
        for call in (ada.get, ada.wait, ada.cancel, ada.retry):
            await seen.refused(name, call(name))
        for part in (ada.list_inputs, ada.list_tasks, ada.list_items, ada.list_artifacts):
            await seen.refused(name, anext(part(name)))
        await seen.refused(name, ada.get(name, view=7))  # type: ignore[arg-type]  # what no client sends
        await seen.refused(name, anext(ada.watch(name)))
    await seen.refused("blob", ada.get_blob(f"blobs/{NOBODY}"))
    seen.note(
        "checked",
        await ada.submit(Job(inputs=[f"blobs/{NOBODY}"], steps=[inspect()]), validate_only=True),
    )


async def converse(endpoint: str, work: Work, folder: Path) -> list[tuple[str, Any]]:
    """All that a client can ask, and what it hears."""
    seen = Transcript()
    async with (
        AsyncClient(endpoint, owner="ada") as ada,
        AsyncClient(endpoint, owner="bob") as bob,
        AsyncClient(endpoint) as nobody,
    ):
        await seen.refused("without an owner", nobody.get(f"jobs/{NOBODY}"))
        blobs = [
            await ada.upload(data, media_type="text/plain")
            for data in (b"one", b"two", b"three", b"one")
        ]
        seen.note("uploaded", *blobs, await ada.get_blob(blobs[0].name))
        large = bytes(5_000_000)
        seen.note("large, and again", await ada.upload(large), await ada.upload(large))
        await seen.refused("another's bytes", bob.download(blobs[0].name, folder / "not"))
        assert (await ada.download(blobs[1].name, folder / "two")).read_bytes() == b"two"
        names = [blob.name for blob in blobs]
        await what_is_refused(ada, seen, names[0])
        await a_job_that_fails_and_is_retried(ada, work, seen, names[0])
        await a_job_that_fans_out(ada, work, seen, names[:3])
        await jobs_of_pipelines(ada, work, seen, names[0])
        await jobs_of_an_owner(ada, bob, work, seen, names[0])
        await many_at_once(ada, seen, names[0])
    return seen.lines


async def test_a_client_hears_the_same_from_the_fake_gateway_as_from_the_real_one(
    database_url: str, redis_url: str, blob_url: str, tmp_path: Path
) -> None:
    async with fake() as (endpoint, work):
        from_fake = await converse(endpoint, work, tmp_path)
    async with real(database_url, redis_url, blob_url) as (endpoint, work):
        from_real = await converse(endpoint, work, tmp_path)
    assert from_fake == from_real


def test_the_fake_gateway_refuses_calls_for_the_reasons_and_with_the_codes_of_the_table() -> None:
    assert {reason: code.name for reason, code in CODES.items()} == {
        str(reason): spec.code for reason, spec in REASONS.items() if spec.code
    }
