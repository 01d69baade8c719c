"""For tests of operations: a real StepContext on a folder of blobs, without ledger or Celery."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import product
from pathlib import Path
from uuid import UUID

from fluoro.v1 import event_pb2
from fluoro_blobs import BlobStore
from google.protobuf.message import Message

from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger import planning
from fluoro_jobs.ledger.origins import JobInput, Origins, StepRun
from fluoro_jobs.ledger.planning import ALL
from fluoro_jobs.operations import JOB_INPUT
from fluoro_jobs.worker.context import Input, Part, Scratch, StepContext, Upstream
from fluoro_jobs.worker.earlier import inputs_of
from fluoro_jobs.worker.handler import Handler, Request, Result


@dataclass(frozen=True, slots=True)
class Attempt:
    """A context and what it reported."""

    context: StepContext
    progress: list[event_pb2.Progress]

    def read(self, artifact: str) -> bytes:
        """The bytes of an artifact the operation put."""
        return self.context.fetch(self.context.artifacts[artifact].blob).read_bytes()

    def as_upstream(self, result: Message) -> Upstream:
        """What the next step would see of this one."""
        return Upstream(
            self.context.step,
            result,
            list(self.context.items.values()),
            list(self.context.artifacts.values()),
        )


@dataclass(frozen=True, slots=True)
class _Given:
    """`fluoro_jobs.worker.context.Earlier`, from memory."""

    given: Sequence[Upstream]
    known: Origins

    def results(self) -> Mapping[str, Message]:
        return {step.step: step.result for step in self.given}

    def upstream(self) -> Sequence[Upstream]:
        return self.given

    def origins(self) -> Origins:
        return self.known


def step_context(
    folder: Path,
    inputs: Sequence[bytes | Path] = (),
    upstream: Sequence[Upstream] = (),
    step: str = "step",
    *,
    reads: Sequence[str] = (),
    group: bool = False,
    owner: str = "tester",
) -> Attempt:
    """An attempt of a step.

    It works on these inputs of the job; or, if `reads` names roles, on what the upstream steps left
    in them, as the ledger would put it together. group: as in fluoro.v1.StepInput. The same folder
    gives the same blob store, so that steps can be chained.
    """
    blobs = BlobStore.from_url(f"file://{folder / 'blobs'}")
    names = []
    for data in inputs:
        name = f"blobs/{new_id()}"
        blobs.put(name, data)
        names.append(name)
    own = [
        Input(number, str(number), number, [Part(name, JOB_INPUT, "", "", "")])
        for number, name in enumerate(names)
    ]
    if group and not reads:
        own = [Input(0, ALL, None, [part for each in own for part in each.parts])]
    progress: list[event_pb2.Progress] = []
    context = StepContext(
        job=f"jobs/{new_id()}",
        step=step,
        attempt=1,
        inputs=_left(upstream, reads, group=group) if reads else own,
        job_inputs=len(names),
        earlier=_Given(upstream, _origins(inputs, upstream)),
        folder=Scratch(folder),
        blobs=blobs,
        send_progress=progress.append,
        owner=owner,
    )
    return Attempt(context, progress)


def _origins(inputs: Sequence[bytes | Path], upstream: Sequence[Upstream]) -> Origins:
    """Of these inputs; each step ran for a second."""
    known = []
    for number, one in enumerate(inputs):
        data = one.read_bytes() if isinstance(one, Path) else one
        known.append(JobInput(number, len(data), hashlib.sha256(data).digest()))
    began, second = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), timedelta(seconds=1)
    return Origins(known, [StepRun(step.step, began, began + second, 1) for step in upstream])


def operate(
    operation: Handler[Request, Result],
    request: Request,
    folder: Path,
    inputs: Sequence[bytes | Path] = (),
) -> tuple[Result, Attempt]:
    """What an operation makes of these inputs of the job, and the attempt with all that it left."""
    attempt = step_context(folder, inputs)
    return operation(request, attempt.context), attempt


def _left(upstream: Sequence[Upstream], reads: Sequence[str], *, group: bool) -> list[Input]:
    """What the ledger would make of the artifacts of these roles."""
    together: dict[str, list[tuple[int | None, planning.Part]]] = {}
    for number, step in enumerate(upstream):
        for role, left in product(reads, step.artifacts):
            if left.role != role:
                continue
            key = left.key or left.name
            blob = UUID(left.blob.removeprefix("blobs/"))
            together.setdefault((key.rpartition("/")[0] or ALL) if group else key, []).append(
                (
                    left.input if left.HasField("input") else None,
                    planning.Part(blob, role, left.name, left.media_type, number),
                )
            )
    found = []
    for number, (key, ones) in enumerate(together.items()):
        origins = {origin for origin, _ in ones}
        origin = origins.pop() if len(origins) == 1 else None
        found.append(planning.StepInput(number, key, origin, [part for _, part in ones]))
    return inputs_of(found, [step.step for step in upstream])
