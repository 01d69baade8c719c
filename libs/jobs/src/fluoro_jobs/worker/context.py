"""What an operation sees of the world: its inputs, what earlier steps left, a place for results.

It knows nothing of Celery or SQL. The runtime builds one per attempt; tests build one with
`fluoro_jobs.testing.step_context`.
"""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tempfile import mkdtemp
from threading import Event, Lock
from types import TracebackType
from typing import Final, Protocol

import structlog
from fluoro.v1 import event_pb2, job_pb2
from fluoro_blobs import (
    RANGE_BYTES,
    BlobNotFoundError,
    BlobStore,
    BlobStoreError,
    BlobStoreFullError,
)
from google.protobuf.message import Message

from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_jobs.ids import new_id
from fluoro_jobs.keys import checked_key, file_name
from fluoro_jobs.ledger.origins import Origins
from fluoro_jobs.worker.memory import asked_too_much

log = structlog.get_logger(__name__)

Data = bytes | Path | Iterator[bytes | memoryview]
"""Content of an artifact: bytes, a file, or chunks as they come."""

State: Final = job_pb2.Item.State
NO_INPUT: Final = -1
"""What messages say instead of the number of the job's input where there is none, or several."""

MAX_ARTIFACTS: Final = 50_000
"""Most that one task may leave: they are committed in one statement, which has 10 s."""


@dataclass(frozen=True, slots=True)
class Part:
    """One blob of an input.

    blob: its resource name. role, name, media_type: as in fluoro.v1.Artifact; an input of the job
    has role `input` and no name. step: who left it; empty for an input of the job.
    """

    blob: str
    role: str
    name: str
    media_type: str
    step: str


@dataclass(frozen=True, slots=True)
class Input:
    """What one item of a step works on: everything that shares a key.

    number: among the inputs of the step. key: see `fluoro_jobs.keys`. input: number of the job's
    input that it comes from; None if there is none, or several. parts: at least one.
    """

    number: int
    key: str
    input: int | None
    parts: Sequence[Part]


@dataclass(frozen=True)
class Upstream:
    """A finished step that this step comes after.

    result is the message of its operation, such as `RenderDicomResult`.
    """

    step: str
    result: Message
    items: Sequence[job_pb2.Item]
    artifacts: Sequence[job_pb2.Artifact]

    def artifact(self, name: str) -> job_pb2.Artifact:
        """The artifact of that name. KeyError if there is none."""
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, job_pb2.Artifact]:
        return {artifact.name: artifact for artifact in self.artifacts}


class Earlier(Protocol):
    """Reads what earlier steps left, for those operations that ask."""

    def results(self) -> Mapping[str, Message]:
        """See `StepContext.results`. Costs what is returned, once the process knows the rest."""

    def upstream(self) -> Sequence[Upstream]:
        """See `StepContext.upstream`. Costs what these steps left, all of it."""

    def origins(self) -> Origins:
        """See `StepContext.origins`."""


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


@dataclass
class StepContext:
    """One attempt of one task.

    job, step: resource name of the job, name of the step. owner: whose job it is.
    job_inputs: how many inputs the job has.
    attempt: number of the attempt, from 1. shard: number of the task within the step.
    inputs: what this task works on, in order: all inputs of the step, unless the step fans out.
    folder: of this attempt, deleted after it.
    cancelled: set when nobody wants the result any more; long loops look at it through `check()`.
    items: outcomes so far, by number of the input. artifacts: by name.
    """

    job: str
    step: str
    attempt: int
    inputs: Sequence[Input]
    job_inputs: int
    earlier: Earlier
    folder: Scratch
    blobs: BlobStore
    send_progress: Callable[[event_pb2.Progress], None]
    shard: int = 0
    owner: str = ""
    cancelled: Event = field(default_factory=Event)
    items: dict[int, job_pb2.Item] = field(default_factory=dict)
    artifacts: dict[str, job_pb2.Artifact] = field(default_factory=dict)
    _states: Counter[int] = field(default_factory=Counter)

    @cached_property
    def results(self) -> Mapping[str, Message]:
        """What those tasks returned that left this task's inputs, by name of their step.

        The entries of a step that fans out are joined. There may be entries of other inputs beside.
        """
        return self.earlier.results()

    @cached_property
    def upstream(self) -> Sequence[Upstream]:
        """The finished steps that this one comes after, with everything they left.

        For an operation that tells about all of it. One that works on its inputs has no use for it.
        """
        return self.earlier.upstream()

    @cached_property
    def origins(self) -> Origins:
        """The inputs that the job was given, and when the steps ran that this one comes after.

        The same for every attempt, so an operation may write it into what it leaves.
        """
        return self.earlier.origins()

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

    def each(self, stage: str) -> Iterator["StepItem"]:
        """The inputs of this task, each to be worked on as one item; see `StepItem`.

        Tells watchers how many are done. stage: as in `progress`.
        """
        return self._each(stage, self.inputs)

    def make(self, stage: str, keys: Sequence[str]) -> Iterator["StepItem"]:
        """Items of what the operation finds by itself, in the manner of `each`.

        For one that reads no role. keys: in the same order in every attempt; unique in the step.
        """
        # After those of an earlier call: an item's number is its row in the ledger.
        first = len(self.items)
        inputs = [Input(first + i, checked_key(key), None, ()) for i, key in enumerate(keys)]
        return self._each(stage, inputs)

    def _each(self, stage: str, inputs: Sequence[Input]) -> Iterator["StepItem"]:
        total = len(inputs)
        self.progress(stage, 0, total)
        for done, input_ in enumerate(inputs, 1):
            yield StepItem(self, input_)
            # Without `with item:` the item would have no outcome and be missing from the counts.
            if input_.number not in self.items:
                raise RuntimeError("the body of a loop over each() is `with item:`")
            self.progress(stage, done, total)

    def progress(self, stage: str, done: int, total: int) -> None:
        """Tells watchers that `done` of `total` units of a stage are done.

        Cheap: at most 10 a second leave the process.
        """
        self.check()
        counts = self.item_counts()
        if counts.total:  # an operation without items counts other things
            counts.total = max(counts.total, total)
        self.send_progress(
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

    def fetch(self, blob: str, folder: Path | None = None) -> Path:
        """Copies a blob into a folder, scratch unless told otherwise, and returns its path.

        Memory is bounded by the chunk. FluoroError if it cannot be read.
        """
        self.check()
        path = (folder or self.scratch) / blob.removeprefix("blobs/")
        if not path.exists():
            with blob_errors():
                self.blobs.fetch(blob, path)
        return path

    def parts(self, blob: str, part_bytes: int = RANGE_BYTES) -> Iterator[memoryview]:
        """The content of a blob, so many bytes at a time. FluoroError if it cannot be read."""
        with blob_errors():
            for part in self.blobs.parts(blob, part_bytes):
                # Between two parts: a blob of gigabytes must not outlive a cancel.
                self.check()
                yield memoryview(part)

    def piece(self, blob: str, offset: int, length: int) -> bytes:
        """So many bytes of a blob; fewer at its end. FluoroError if they cannot be read."""
        self.check()
        with blob_errors():
            return self.blobs.piece(blob, offset, length)

    def put(self, name: str, role: str, media_type: str, data: Data, *, key: str = "") -> None:
        """Stores an artifact of the step as a whole; those of one item go through `StepItem.put`.

        It becomes visible when the attempt is committed, and never if it is fenced off.

        Name, role, media_type and key as in fluoro.v1.Artifact. ValueError if the name was used
        before in this attempt, or the key is none.
        """
        self.check_room(len(self.artifacts))
        self.artifacts[name] = self.stored(name, role, media_type, data, key=key)

    def check_room(self, artifacts: int) -> None:
        """FluoroError RESULT_TOO_LARGE if a task that has left so many may leave no more."""
        if artifacts >= MAX_ARTIFACTS:
            raise FluoroError(
                Reason.RESULT_TOO_LARGE,
                f"One task leaves at most {MAX_ARTIFACTS} files. "
                "Split the inputs over more tasks: set a smaller max_inputs_per_task.",
            )

    def stored(
        self, name: str, role: str, media_type: str, data: Data, *, key: str = ""
    ) -> job_pb2.Artifact:
        """Stores the bytes of an artifact that nobody knows of yet.

        What an iterator raises comes as it is; nothing is stored then.
        """
        self.check()
        if name in self.artifacts:
            raise ValueError(f"artifact {name!r} exists already")
        if key:
            checked_key(key)
        blob = f"blobs/{new_id()}"
        with blob_errors():
            stored = self.blobs.put(blob, data)
        return job_pb2.Artifact(
            name=name,
            role=role,
            media_type=media_type,
            key=key,
            blob=blob,
            size_bytes=stored.size_bytes,
            sha256=stored.sha256,
        )

    def end(self, number: int, item: job_pb2.Item) -> None:
        """Records the outcome of an input, in place of an earlier one."""
        if (before := self.items.get(number)) is not None:
            self._states[before.state] -= 1
        self._states[item.state] += 1
        self.items[number] = item

    def item_counts(self) -> event_pb2.ItemCounts:
        """Items so far, by outcome."""
        return event_pb2.ItemCounts(
            total=len(self.items),
            succeeded=self._states[State.STATE_SUCCEEDED],
            skipped=self._states[State.STATE_SKIPPED],
            failed=self._states[State.STATE_FAILED],
        )


class StepItem:
    """One input while an operation works on it: `for item in context.each("render"): with item: …`.

    What goes wrong in the body fails this item alone, unless another attempt may mend it. An item
    that fails or is skipped leaves no artifacts.
    """

    def __init__(self, context: StepContext, input_: Input) -> None:
        """Made by `StepContext.each`."""
        self._context = context
        self._input = input_
        self._scratch: Scratch | None = None
        self._artifacts: dict[str, job_pb2.Artifact] = {}

    @property
    def key(self) -> str:
        """Names the item: `item` of its entry in a result."""
        return self._input.key

    @property
    def input(self) -> int:
        """Number of the job's input that it comes from, -1 if there is none, or several.

        `input` of its entry in a result.
        """
        return NO_INPUT if self._input.input is None else self._input.input

    @property
    def parts(self) -> Sequence[Part]:
        """Its blobs, in the order of the step's sources, and of the steps that left them."""
        return self._input.parts

    @property
    def folder(self) -> Path:
        """An empty folder, deleted after the item."""
        if self._scratch is None:
            self._scratch = Scratch(self._context.scratch)
        return self._scratch.path

    def part(self, role: str) -> Part:
        """The first part of that role. FluoroError NO_APPLICABLE_INPUT if there is none."""
        for part in self.parts:
            if part.role == role:
                return part
        raise FluoroError(Reason.NO_APPLICABLE_INPUT, f"No blob of role {role} belongs to it.")

    def fetch(self, which: Part | str | None = None) -> Path:
        """Copies a part into the item's folder and returns its path.

        which: a part, or the role of one; None for the first one.
        """
        if not isinstance(which, Part):
            which = self.parts[0] if which is None else self.part(which)
        return self._context.fetch(which.blob, self.folder)

    def put(
        self,
        stem: str,
        suffix: str,
        role: str,
        media_type: str,
        data: Data,
        key: str | None = None,
    ) -> str:
        """Stores an artifact; its name is made of stem, key and suffix: `preview-0003.png`.

        It becomes visible as those of `StepContext.put` do, if the item succeeds.

        key: of the input that a later step makes of it, if it is not the item's own. What an
        archive holds has keys of its own, such as `3/0007`. ValueError as in `StepContext.put`.
        """
        key = self.key if key is None else key
        name = file_name(stem, checked_key(key), suffix)
        if name in self._artifacts:
            raise ValueError(f"artifact {name!r} exists already")
        self._context.check_room(len(self._context.artifacts) + len(self._artifacts))
        artifact = self._context.stored(name, role, media_type, data, key=key)
        if self._input.input is not None:
            artifact.input = self._input.input
        self._artifacts[name] = artifact
        return name

    def skip(self, reason: Reason, message: str) -> None:
        """Records that the operation does not apply to this input."""
        self._end(State.STATE_SKIPPED, reason, message)

    def fail(self, error: FluoroError) -> None:
        """Fails an item that has ended: what it left is taken back."""
        for name in self._artifacts:
            self._context.artifacts.pop(name, None)
        self._artifacts.clear()
        self._end(State.STATE_FAILED, error.reason, error.message)

    def __enter__(self) -> None:
        """Begins. CancelledAttempt if nobody wants the result any more."""
        self._context.check()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Records the outcome; True if the error, if any, is this item's alone."""
        # After every item: a study of a thousand files must not fill the disk.
        if self._scratch is not None:
            self._scratch.remove()
            self._scratch = None  # an item may be taken up again, with another outcome
        if error is None:
            if self._input.number not in self._context.items:
                self._end(State.STATE_SUCCEEDED, "", "")
                # Only now: an item that fails leaves nothing that a later step could work on.
                self._context.artifacts |= self._artifacts
            return True
        if isinstance(error, FluoroError) and not error.may_retry:
            self._end(State.STATE_FAILED, error.reason, error.message)
            return True
        if isinstance(error, MemoryError) and asked_too_much(trace):
            text = "Processing this input takes more memory than a process of the worker may have."
            self._end(State.STATE_FAILED, Reason.MEMORY_EXCEEDED, text)
            return True
        # Not the file's fault: a store that is away, a cancel, a disk or memory that is full. It
        # ends the attempt, and another one may go well.
        if isinstance(error, FluoroError | CancelledAttempt | MemoryError | OSError):
            return False
        if not isinstance(error, Exception):
            return False
        # One bad file must not hide the good ones. The text of an unforeseen exception may quote
        # the file, so patient data: only its type is logged.
        log.error(
            "item_failed_unexpectedly",
            job=self._context.job,
            step=self._context.step,
            item=self.key,
            exception=type(error).__qualname__,
        )
        text = "Processing this input failed in an unforeseen way."
        self._end(State.STATE_FAILED, Reason.INTERNAL, text)
        return True

    def _end(self, state: "job_pb2.Item.State.ValueType", reason: str, message: str) -> None:
        item = job_pb2.Item(
            input=self.input, key=self.key, state=state, reason=reason, message=message
        )
        self._context.end(self._input.number, item)


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
