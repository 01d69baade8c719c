"""What tests of operations need: a real StepContext on a blob store in a folder, without ledger or Celery."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fluoro.v1 import event_pb2
from fluoro_blobs import BlobStore

from fluoro_jobs.ids import new_id
from fluoro_jobs.ledger.submission import MAX_INPUTS
from fluoro_jobs.worker.context import Scratch, StepContext, Upstream


@dataclass(frozen=True, slots=True)
class Attempt:
    """A context and what it reported."""

    context: StepContext
    progress: list[event_pb2.Progress]

    def read(self, artifact: str) -> bytes:
        """The bytes of an artifact the operation put."""
        return self.context.fetch(self.context.artifacts[artifact].blob).read_bytes()

    def as_upstream(self, result: object) -> Upstream:
        """What the next step would see of this one."""
        return Upstream(
            self.context.step,
            result,  # type: ignore[arg-type]  # any Message
            list(self.context.items.values()),
            list(self.context.artifacts.values()),
        )


def step_context(
    folder: Path,
    inputs: Sequence[bytes | Path] = (),
    upstream: Sequence[Upstream] = (),
    step: str = "step",
) -> Attempt:
    """An attempt whose inputs hold these bytes.

    The same folder gives the same blob store, so that steps can be chained.
    """
    blobs = BlobStore.from_url(f"file://{folder / 'blobs'}")
    names = []
    for data in inputs:
        name = f"blobs/{new_id()}"
        blobs.put(name, data)
        names.append(name)
    progress: list[event_pb2.Progress] = []
    context = StepContext(
        job=f"jobs/{new_id()}",
        step=step,
        attempt=1,
        inputs=names,
        upstream=upstream,
        folder=Scratch(folder),
        blobs=blobs,
        report=progress.append,
        numbers=range(
            len(names) or MAX_INPUTS
        ),  # a test of a later step may leave the job's inputs out
    )
    return Attempt(context, progress)
