"""What an operation function sees of the world: its inputs, what earlier steps left, and where to put results.

It knows nothing of Celery or SQL. The runtime builds one per attempt; tests build one with
`fluoro_jobs.testing.step_context`.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Lock
from typing import Final

import structlog
from fluoro.v1 import event_pb2, job_pb2
from fluoro_blobs import BlobNotFoundError, BlobStore, BlobStoreError, BlobStoreFullError
from google.protobuf.message import Message

from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.ids import new_id

log = structlog.get_logger(__name__)

State: Final = job_pb2.Item.State


@dataclass(frozen=True, slots=True)
class Upstream:
    """A finished step that this step comes after.

    result is the message of its operation (`RenderDicomResult`, say).
    """

    step: str
    result: Message
    items: Sequence[job_pb2.Item]
    artifacts: Sequence[job_pb2.Artifact]

    def artifact(self, name: str) -> job_pb2.Artifact:
        """The artifact of that name. KeyError if there is none."""
        for artifact in self.artifacts:
            if artifact.name == name:
                return artifact
        raise KeyError(name)


class Scratch:
    """A temporary folder that comes to be when it is first asked for: many attempts need none."""

    def __init__(self, parent: Path | None) -> None:
        """parent: an existing folder; None for the system's temporary one."""
        self._parent = parent
        self._path: Path | None = None
        self._lock = Lock()

    @property
    def path(self) -> Path:
        """The folder."""
        with self._lock:  # an operation may have threads
            if self._path is None:
                self._path = Path(mkdtemp(prefix="fluoro-", dir=self._parent))
            return self._path

    def remove(self) -> None:
        """Deletes the folder with all in it, if it was made."""
        if self._path is not None:
            shutil.rmtree(self._path)


@dataclass(slots=True)
class StepContext:
    """One attempt of one task.

    job, step: resource name of the job, name of the step.
    attempt: number of the attempt, from 1.
    inputs: resource names of the job's input blobs, `blobs/{uuid}`, by input number.
    numbers: which of them this task works on; all, unless the step fans out. shard: number of the
    task within the step. upstream: the finished steps this one comes after.
    scratch: an empty folder of this attempt, deleted after it; made when first looked at.
    cancelled: set when nobody wants the result any more; long loops look at it through `check()`.
    """

    job: str
    step: str
    attempt: int
    inputs: Sequence[str]
    upstream: Sequence[Upstream]
    folder: "Scratch"
    blobs: BlobStore
    report: Callable[[event_pb2.Progress], None]
    numbers: range
    shard: int = 0
    cancelled: Event = field(default_factory=Event)
    items: dict[int, job_pb2.Item] = field(default_factory=dict)
    artifacts: dict[str, job_pb2.Artifact] = field(default_factory=dict)

    @property
    def scratch(self) -> Path:
        """Where files of this attempt go."""
        return self.folder.path

    def check(self) -> None:
        """Raises CancelledAttempt if nobody wants the result any more.

        Call it wherever stopping is cheap.
        """
        if self.cancelled.is_set():
            raise CancelledAttempt

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tells watchers that `done` of `total` units of a stage are done.

        Cheap: at most 10 a second leave the process.
        """
        self.check()
        counts = self.item_counts()
        if counts.total:  # an operation without items counts other things
            counts.total = max(counts.total, total)
        self.report(
            event_pb2.Progress(
                job=self.job,
                step=self.step,
                shard=self.shard,
                attempt=self.attempt,
                stage=stage,
                fraction=done / total if total else 1.0,
                items=counts,
            )
        )

    def fetch(self, blob: str) -> Path:
        """Copies a blob into scratch and returns its path.

        Memory is bounded by the chunk. FluoroError if it cannot be had.
        """
        self.check()
        path = self.scratch / blob.removeprefix("blobs/")
        if not path.exists():
            with blob_errors():
                self.blobs.fetch(blob, path)
        return path

    def put(
        self, name: str, role: str, media_type: str, data: bytes | Path, *, input: int | None = None
    ) -> None:
        """Stores an artifact.

        It becomes visible when the attempt is committed, and never if it is fenced off.

        Name, role and media_type as in fluoro.v1.Artifact. ValueError if the name was used before
        in this attempt.
        """
        self.check()
        if name in self.artifacts:
            raise ValueError(f"artifact {name!r} exists already")
        blob = f"blobs/{new_id()}"
        with blob_errors():
            stored = self.blobs.put(blob, data)
        self.artifacts[name] = job_pb2.Artifact(
            name=name,
            role=role,
            media_type=media_type,
            input=input,
            blob=blob,
            size_bytes=stored.size_bytes,
            sha256=stored.sha256,
        )

    @contextmanager
    def item(self, input: int) -> Iterator[None]:
        """Runs the body as one item: what goes wrong in it fails this item alone, unless another attempt may mend it."""
        self.check()
        try:
            yield
        except FluoroError as error:
            if error.may_retry:
                raise
            self._finish(input, State.STATE_FAILED, error.reason, error.message)
        except (CancelledAttempt, MemoryError, OSError):
            raise
        except Exception as error:  # noqa: BLE001 - one bad file must not hide the good ones
            # The text of an unforeseen exception may quote the file, so patient data: only its type
            # is logged.
            log.error(
                "item_failed_unexpectedly",
                job=self.job,
                step=self.step,
                input=input,
                exception=type(error).__qualname__,
            )
            self._finish(
                input,
                State.STATE_FAILED,
                Reason.INTERNAL,
                "Processing this input failed in an unforeseen way.",
            )
        else:
            if input not in self.items:
                self._finish(input, State.STATE_SUCCEEDED, "", "")

    def skip(self, input: int, reason: Reason, message: str) -> None:
        """Records that the operation does not apply to this input.

        Inside or instead of `item()`.
        """
        self._finish(input, State.STATE_SKIPPED, reason, message)

    def item_counts(self) -> event_pb2.ItemCounts:
        """Items so far, by outcome."""
        states = [item.state for item in self.items.values()]
        return event_pb2.ItemCounts(
            total=len(states),
            succeeded=states.count(State.STATE_SUCCEEDED),
            skipped=states.count(State.STATE_SKIPPED),
            failed=states.count(State.STATE_FAILED),
        )

    def _finish(
        self, input: int, state: "job_pb2.Item.State.ValueType", reason: str, message: str
    ) -> None:
        self.items[input] = job_pb2.Item(input=input, state=state, reason=reason, message=message)


@contextmanager
def blob_errors() -> Iterator[None]:
    """Turns what a blob store raises into a FluoroError with the right reason."""
    try:
        yield
    except BlobNotFoundError as error:
        raise FluoroError(
            Reason.BLOB_NOT_FOUND, f"{error.name} is not in the blob store."
        ) from error
    except BlobStoreFullError as error:
        raise FluoroError(Reason.BLOB_STORE_FULL, "The blob store has no space left.") from error
    except BlobStoreError as error:
        raise FluoroError(
            Reason.BLOB_STORE_UNAVAILABLE, f"{error.meaning.capitalize()}."
        ) from error
