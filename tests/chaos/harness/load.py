"""Clients of one round: they submit, watch and cancel, do not give up, and keep what they heard."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import grpc
from audit import ENDS
from fluoro.v1 import event_pb2, job_pb2, job_service_pb2
from fluoro_client import AsyncClient, FluoroApiError
from fluoro_jobs.errors import STORE_OUTAGES
from google.protobuf.duration_pb2 import Duration

from harness.deployment import until
from harness.plan import QUEUES, Round, Shape, Watch, Work
from harness.pulse import Wait
from harness.record import JobRecord, WatchRecord

OWNER: Final = "chaos"
PATIENCE_SECONDS: Final = 120
"""How long a client repeats a call whose outcome it does not know."""
NOOPS_AT_ONCE: Final = 8
PROBE_EVERY_SECONDS: Final = 0.5
MAX_ATTEMPTS: Final = 6
"""Of steps that should succeed: more than the faults of a round can end."""

Command = dict[str, Any]
Value = TypeVar("Value")

_TERMINAL: Final = {job_pb2.Job.State.Value(f"STATE_{name}") for name in ENDS}
_FAILED_ON_PURPOSE: Final = {Shape.POISON: 2, Shape.FAILS: 2}
"""Attempts of steps that cannot succeed."""
_ENDS: Final = {
    Shape.POISON: "FAILED",
    Shape.FAILS: "FAILED",
    Shape.SPINS: "CANCELLED",
    Shape.CANCELLED: "CANCELLED",
}
"""How they have to end; the others succeed."""
_ARTIFACTS: Final = {
    Shape.QUICK: 1,
    Shape.SLOW: 1,
    Shape.DIES_ONCE: 1,
    Shape.RETRIED: 1,
    Shape.CHAIN: 2,
}
_RETRIED_ALREADY: Final = {"JOB_NOT_ENDED", "NOTHING_TO_RETRY"}
"""What a retry is answered that is repeated because the answer to the first was lost."""
_OPERATIONS: Final = {"dicom": "inspect_dicom", "export": "export_report"}
"""The operation of each queue that obeys commands."""


@dataclass(slots=True)
class Load:
    """The clients of one round.

    folder: for the files its jobs wait for and make. gate: when it exists, jobs that wait go on.
    """

    client: AsyncClient
    plan: Round
    folder: Path
    records: list[JobRecord] = field(default_factory=list)
    calls: list[Wait] = field(default_factory=list)
    last_cancel: float = 0
    _watching: list[asyncio.Task[None]] = field(default_factory=list)
    _seen: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    _watches_all: asyncio.Event = field(default_factory=asyncio.Event)
    _all_error: str = ""

    @property
    def gate(self) -> Path:
        """Opened once everything is at rest: what computes then should not."""
        return self.folder / "gate"

    async def play(self, started: float) -> None:
        """Submits and cancels everything in its time; returns when all calls are answered.

        Somebody watches all jobs of the round from before the first one, see `seen_all`.
        """
        self._watching.append(asyncio.create_task(self._watch_all()))
        try:
            async with asyncio.timeout(PATIENCE_SECONDS):
                await self._watches_all.wait()
        except TimeoutError:
            self._all_error = "it got no first message"
            self._watches_all.set()
        async with asyncio.TaskGroup() as group:
            for index, work in enumerate(self.plan.works):
                group.create_task(self._work(index, work, started))
            for index in range(NOOPS_AT_ONCE):
                group.create_task(self._noops(index))

    async def probe(self, done: asyncio.Event) -> None:
        """Submits and reads an empty job again and again until `done`, and times each call."""
        number = 0
        await self._watches_all.wait()
        async with asyncio.TaskGroup() as group:
            while not done.is_set():
                group.create_task(self._probe(number))
                number += 1
                await asyncio.sleep(PROBE_EVERY_SECONDS)

    async def watched(self, last: Mapping[str, int], seconds: float) -> None:
        """Waits for all watchers to see the end; those that do not say so in their record.

        last: sequence of each job's last event.
        """
        all_jobs, *watching = self._watching
        if watching:
            _, late = await asyncio.wait(watching, timeout=seconds)
            for task in late:
                task.cancel("it had not ended when everything was at rest")
            await asyncio.gather(*watching)
        await until(
            lambda: (
                self._all_error
                or all(self._seen.get(name, [(0, "")])[-1][0] >= last[name] for name in last)
            ),
            seconds,
        )
        all_jobs.cancel()
        await asyncio.gather(all_jobs, return_exceptions=True)
        for record in self.records:
            if record.name:
                record.watches.append(
                    WatchRecord(0, self._seen.get(record.name, []), self._all_error, whole=True)
                )

    async def _work(self, index: int, work: Work, started: float) -> None:
        await asyncio.sleep(max(0, started + work.at_seconds - time.monotonic()))
        record = self._record(f"{index}", work.shape)
        commands = self._commands(index, work, record)
        await self._submit(record, commands, _steps(work))
        if not record.name:
            return
        for watch in work.watches:
            record.watches.append(WatchRecord())
            self._watching.append(
                asyncio.create_task(self._watch(record.name, watch, record.watches[-1]))
            )
        if work.shape in {Shape.CANCELLED, Shape.SPINS}:
            await asyncio.sleep(work.cancel_after_seconds)
            await self._cancel(record)
        if work.shape is Shape.RETRIED:
            await self._retry(record, self._mended(index))

    async def _noops(self, index: int) -> None:
        for number in range(index, self.plan.noops, NOOPS_AT_ONCE):
            await self._submit(self._record(f"noop-{number}", Shape.NOOP), [], [_noop()])

    async def _probe(self, number: int) -> None:
        record = self._record(f"probe-{number}", Shape.NOOP)
        began = time.monotonic()
        await self._submit(record, [], [_noop()])
        self.calls.append(Wait("submit", began, time.monotonic()))
        if record.name:
            began = time.monotonic()
            try:
                await _persist(lambda: self.client.get(record.name))
            except FluoroApiError as error:
                record.refused = f"Not read: {error}"
            self.calls.append(Wait("read", began, time.monotonic()))

    def _record(self, suffix: str, shape: Shape) -> JobRecord:
        record = JobRecord(f"{self._label}-{suffix}", shape, _ENDS.get(shape, "SUCCEEDED"))
        self.records.append(record)
        return record

    def _commands(self, index: int, work: Work, record: JobRecord) -> list[Command]:
        """What its steps do. Notes in the record what that makes."""
        sleep = {"do": "sleep", "seconds": work.run_seconds}
        put = {"do": "artifact", "name": "result.txt", "text": record.key}
        record.artifacts = _ARTIFACTS.get(work.shape, 0)
        if work.shape is Shape.CANCELLED:
            record.late = str(self.folder / f"late-{index}")
        commands: dict[Shape, list[Command]] = {
            Shape.QUICK: [put],
            Shape.SLOW: [sleep, put],
            Shape.CHAIN: [{"do": "progress", "stage": "half", "done": 1, "total": 2}, sleep, put],
            Shape.DIES_ONCE: [
                sleep,
                {"do": "die_once", "path": str(self.folder / f"died-{index}")},
                put,
            ],
            Shape.POISON: [{"do": "die"}],
            Shape.FAILS: [sleep, {"do": "fail", "reason": "REPORT_FAILED", "retryable": True}],
            Shape.RETRIED: [
                sleep,
                {"do": "fail", "reason": "REPORT_FAILED", "unless": str(self._mended(index))},
                put,
            ],
            Shape.SPINS: [{"do": "spin"}],
            Shape.CANCELLED: [
                sleep,
                {"do": "wait", "path": str(self.gate)},
                {"do": "touch", "path": record.late},
                put,
            ],
        }
        return commands[work.shape]

    async def _submit(
        self, record: JobRecord, commands: list[Command], steps: list[job_pb2.Step]
    ) -> None:
        try:
            blob = await _persist(
                lambda: self.client.upload(
                    json.dumps(commands).encode(), media_type="application/json"
                )
            )
            for step in steps:
                if step.HasField("export_report"):
                    step.export_report.title = blob.name
            job = job_pb2.Job(
                inputs=[blob.name], steps=steps, labels={"key": record.key, "round": self._label}
            )
            record.name = (
                await _persist(lambda: self.client.submit(job, request_id=record.key))
            ).name
        except FluoroApiError as error:
            record.refused = f"Not accepted: {error}"

    async def _cancel(self, record: JobRecord) -> None:
        try:
            job = await _persist(lambda: self.client.cancel(record.name))
            record.cancelled_as = job_pb2.Job.State.Name(job.state).removeprefix("STATE_")
        except FluoroApiError as error:
            record.refused = f"Not cancelled: {error}"
        self.last_cancel = time.monotonic()

    async def _retry(self, record: JobRecord, mended: Path) -> None:
        """Waits for the failure, removes its cause, and has the job done again."""
        try:
            await _persist(lambda: self.client.wait(record.name, timeout_seconds=PATIENCE_SECONDS))
            await asyncio.to_thread(mended.touch)
            await _persist(lambda: self.client.retry(record.name))
        except FluoroApiError as error:
            if error.reason not in _RETRIED_ALREADY:
                record.refused = f"Not retried: {error}"

    def _mended(self, index: int) -> Path:
        """The file that makes a job succeed that failed without it."""
        return self.folder / f"mended-{index}"

    async def _watch(self, name: str, watch: Watch, record: WatchRecord) -> None:
        try:
            await asyncio.sleep(watch.after_seconds)
            cursor = await self._watch_from(name, "", watch.break_after, record)
            if cursor:
                await self._watch_from(name, cursor, 0, record)
        except FluoroApiError as error:
            record.error = str(error)
        except asyncio.CancelledError as error:  # by `watched`, which says why
            record.error = str(error)

    async def _watch_all(self) -> None:
        try:
            async with aclosing(self.client.watch_jobs({"round": self._label})) as messages:
                async for message in messages:
                    self._watches_all.set()
                    if message.WhichOneof("update") == "event":
                        self._seen.setdefault(message.event.job, []).append(
                            (message.event.sequence, _state(message.event))
                        )
        except FluoroApiError as error:
            self._all_error = f"{error}"
            self._watches_all.set()

    @property
    def _label(self) -> str:
        return f"{self.plan.seed}-{self.plan.number}"

    async def _watch_from(
        self, name: str, cursor: str, break_after: int, record: WatchRecord
    ) -> str:
        """Watches to the end, or hangs up after so many messages and returns where it was.

        It does not hang up at the end, after which a retry may follow.
        """
        async with aclosing(self.client.watch(name, cursor)) as messages:
            count = 0
            async for message in messages:
                match message.WhichOneof("update"):
                    case "snapshot":
                        record.start = message.snapshot.last_sequence
                    case "event":
                        record.seen.append((message.event.sequence, _state(message.event)))
                count += 1
                if count == break_after and message.cursor and not _ends_stream(message):
                    return message.cursor
        return ""


def _ends_stream(message: job_service_pb2.WatchJobResponse) -> bool:
    state = (
        message.event.job_changed.state
        if message.WhichOneof("update") == "event"
        else message.snapshot.state
    )
    return state in _TERMINAL


def _noop() -> job_pb2.Step:
    step = job_pb2.Step(name="noop", retry_policy=_policy(MAX_ATTEMPTS))
    step.render_dicom.SetInParent()
    return step


def _steps(work: Work) -> list[job_pb2.Step]:
    queues = QUEUES if work.shape is Shape.CHAIN else (work.queue,)
    steps: list[job_pb2.Step] = []
    for queue in queues:
        after = [steps[-1].name] if steps else []
        step = job_pb2.Step(
            name=queue,
            after=after,
            retry_policy=_policy(_FAILED_ON_PURPOSE.get(work.shape, MAX_ATTEMPTS)),
        )
        getattr(step, _OPERATIONS[queue]).SetInParent()
        steps.append(step)
    return steps


def _policy(max_attempts: int) -> job_pb2.RetryPolicy:
    """Back-off from 0.3 s to 2 s: short, yet all attempts together outlast an outage of blobs."""
    return job_pb2.RetryPolicy(
        max_attempts=max_attempts,
        initial_backoff=Duration(nanos=300_000_000),
        max_backoff=Duration(seconds=2),
    )


def _state(event: event_pb2.Event) -> str:
    match event.WhichOneof("change"):
        case "job_changed":
            return job_pb2.Job.State.Name(event.job_changed.state).removeprefix("STATE_")
        case "step_changed":
            return job_pb2.Step.State.Name(event.step_changed.state).removeprefix("STATE_")
        case _:
            return job_pb2.Task.State.Name(event.task_changed.state).removeprefix("STATE_")


async def _persist(call: Callable[[], Awaitable[Value]]) -> Value:
    """Repeats a call until its outcome is known. Every call here may be repeated."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            return await call()
        except FluoroApiError as error:
            unknown = (
                error.resumable
                or error.code is grpc.StatusCode.DEADLINE_EXCEEDED
                or error.reason in STORE_OUTAGES
            )
            if not unknown or time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.2)
