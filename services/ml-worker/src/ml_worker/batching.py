"""Runs samples of different jobs together: one batcher per model, in the process of its session."""

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Final

import numpy as np
import onnxruntime as ort
import structlog
from fluoro_jobs.errors import CancelledAttempt, FluoroError, Reason
from fluoro_telemetry import metrics
from numpy.typing import NDArray

from ml_worker.running import Tensors, is_out_of_memory
from ml_worker.waiting import Caller, Slice, Slices, Waiting, Work, count, halves

log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 0.2
"""Interval at which a caller looks whether it was cancelled, or its run takes too long.

Not shorter: each look takes a processor from a run for a moment, and a worker has many callers.
"""
IDLE_SECONDS: Final = 5
"""A thread that has had nothing to run for so long ends; the next samples start another."""
GRACE_SECONDS: Final = 5
"""How long a run may go on once a caller has left it, beside the time it has run already."""
REMEMBER_SECONDS: Final = 3600
"""How long runs stay small after one ran out of memory. Then a large one is tried again."""

LEFT: Final = "left"
TIMEOUT: Final = "timeout"
OUT_OF_MEMORY: Final = "out_of_memory"
FAILED: Final = "failed"
INVALID: Final = "invalid"
BLAME: Final = {
    TIMEOUT: (Reason.MODEL_RUN_TIMEOUT, "took longer over this image than a run may."),
    OUT_OF_MEMORY: (
        Reason.IMAGE_TOO_LARGE,
        "needs more memory for this image, shown alone, than there is.",
    ),
    FAILED: (
        Reason.MODEL_RUN_FAILED,
        "cannot run on this image. It goes on running on its own sample.",
    ),
}
"""The message for a single sample whose run failed."""

Outputs = dict[str, NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Rules:
    """How a model's samples are run.

    runs: at once. run_seconds: longest time of one.
    rung: the size that a run of so many samples is filled up to. ladder: these sizes, if fixed.
    """

    runs: int
    run_seconds: float
    rung: Callable[[int], int]
    ladder: Sequence[int]


@dataclass(eq=False, slots=True)
class _Run:
    """A run under way. until: time.monotonic() at which it is ended."""

    slices: Slices
    until: float
    began: float = field(default_factory=time.monotonic)
    options: ort.RunOptions = field(default_factory=ort.RunOptions)

    def is_wanted(self) -> bool:
        return not all(one.work.left for one in self.slices)


class Batcher:
    """Runs what callers submit, as much at once as waits and fits. Thread-safe."""

    def __init__(
        self,
        name: str,
        title: str,
        rules: Rules,
        run: Callable[[Tensors, int, ort.RunOptions], Outputs],
        check: Callable[[Outputs], None],
        still_works: Callable[[], bool],
    ) -> None:
        """name: of the model, for metrics; title: with its version, for messages.

        run: gives the outputs of these samples, filled up to so many; FluoroError if they cannot
        be told apart. check: raises FluoroError if a caller must not get these outputs.
        still_works: whether the model runs what it has run before, so that a failed run is the
        fault of its samples.
        """
        self._name, self._title, self._rules = name, title, rules
        self._run_samples, self._check, self._still_works = run, check, still_works
        self._changed = Condition()
        self._waiting = Waiting(rules.ladder)
        self._running: set[_Run] = set()
        self._threads = 0
        self._idle = 0
        self._most_voxels, self._small_until = 0, 0.0

    def submit(self, inputs: Tensors, most: int, caller: Caller, delay_seconds: float = 0) -> Work:
        """Has these samples run; ask `result` for the outputs, or `leave`.

        inputs: one sample at least, of the types and axes of the manifest. most: samples of that
        shape in one run. delay_seconds: how long to wait for more samples if no full run waits.
        """
        work = Work(inputs, most, caller, delay_seconds)
        if work.samples == 0:
            raise ValueError("no samples")
        with self._changed:
            if self._idle == 0 and self._threads < self._rules.runs:
                # First, because it may fail: then nothing waits for a thread that is not there.
                # A daemon, because a run that never ends must not keep the process from ending.
                Thread(target=self._work, name=f"runs {self._title}", daemon=True).start()
                self._threads += 1
            # Under the same lock as the look at `_idle`: a thread that goes to sleep now sees the
            # work first.
            self._waiting.add(work)
            self._changed.notify()
        return work

    def result(self, work: Work) -> Outputs:
        """The outputs, once they are there; first axis as that of the inputs.

        CancelledAttempt, within LOOK_SECONDS, once the caller is cancelled. FluoroError
        MODEL_RUN_FAILED, MODEL_RUN_TIMEOUT, MODEL_OUTPUT_INVALID or IMAGE_TOO_LARGE if the samples
        are to blame; INTERNAL if the model runs nothing any more.
        """
        # Nobody can wait for two events at once, so the caller's is looked at in between.
        while not work.over.wait(LOOK_SECONDS):
            if work.caller.cancelled.is_set():
                self.leave(work)
                raise CancelledAttempt
            self._end_what_takes_too_long()
        if work.error is not None:
            if work.caller.cancelled.is_set():
                # Whoever was cancelled may have ended the run by leaving. That is no finding about
                # the image.
                raise CancelledAttempt from work.error
            raise work.error
        parts = [work.parts[start] for start in sorted(work.parts)]
        if len(parts) == 1:
            return parts[0]
        return self._joined(parts)

    def _joined(self, parts: Sequence[Outputs]) -> Outputs:
        try:
            return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        except ValueError as error:
            raise FluoroError(
                Reason.MODEL_OUTPUT_INVALID,
                f"{self._title} gave outputs of different sizes for samples of one size. Mend the "
                "graph, or say batch.max = 1.",
            ) from error

    def leave(self, work: Work) -> None:
        """Nobody waits for it any more. It is not run, or its run ends if all have left."""
        with self._changed:
            work.left = True
            self._waiting.remove(work)
            now = time.monotonic()
            for run in self._running:
                if not run.is_wanted():
                    run.options.terminate = True
                elif any(one.work is work for one in run.slices):
                    # What made the caller leave may be a run that never ends. The others are run
                    # again without it then.
                    run.until = min(run.until, now + (now - run.began) + GRACE_SECONDS)

    def waiting_samples(self) -> int:
        """How many samples have no run yet."""
        with self._changed:
            return self._waiting.samples()

    def _end_what_takes_too_long(self) -> None:
        with self._changed:
            for run in self._running:
                if time.monotonic() > run.until:
                    run.options.terminate = True

    # --- the threads that run ---

    def _work(self) -> None:
        while True:
            slices: Slices = ()
            try:
                slices = self._next()
                if not slices:
                    return
                self._run_all(slices)
            # A bug, or no memory. Whoever waits must hear of it, and others need this thread.
            except BaseException as error:  # noqa: BLE001
                # Its text may quote an image.
                where = "".join(traceback.format_tb(error.__traceback__))
                log.error("batch_failed", model=self._title, where=where)
                with self._changed:
                    self._fail(slices or self._waiting.everything(), self._broken(error))

    def _next(self) -> list[Slice]:
        """What to run next; nothing if this thread is to end."""
        idle_until = time.monotonic() + IDLE_SECONDS
        with self._changed:
            while True:
                now, until = time.monotonic(), idle_until
                if self._waiting:
                    is_full, until = self._waiting.state(self._limit)
                    if is_full or now >= until:
                        return self._waiting.take(self._limit)
                elif now >= idle_until:
                    # Under the lock, or `submit` would count on a thread that is about to end.
                    self._threads -= 1
                    return []
                self._idle += 1
                self._changed.wait(until - now)
                self._idle -= 1

    def _limit(self, work: Work) -> int:
        """Most samples of a run with this work, by what earlier runs had memory for."""
        if time.monotonic() >= self._small_until:
            return work.most
        return max(1, min(work.most, self._most_voxels // work.voxels))

    def _run_all(self, slices: Slices) -> None:
        """Runs them, in smaller and smaller parts while that fails."""
        parts = [slices]
        while parts:
            wanted = [one for one in parts.pop() if one.work.is_wanted]
            if wanted and count(wanted) > self._limit(wanted[0].work):
                # Parts are taken from the end, so the first half is next: callers get outputs in
                # order.
                parts += reversed(halves(wanted))
            elif wanted and (failure := self._run(wanted)):
                metrics.MODEL_RUNS_FAILED.labels(model=self._name, cause=failure.cause).inc()
                parts += reversed(self._parts_after(failure, wanted))

    def _run(self, slices: Slices) -> "_Failure | None":
        run = _Run(slices, time.monotonic() + self._rules.run_seconds)
        samples, work = count(slices), slices[0].work
        # Filling makes it no larger than there is memory for, as far as the ladder allows.
        rung = max(
            self._rules.rung(1), min(self._rules.rung(samples), max(samples, self._limit(work)))
        )
        with self._changed:
            self._running.add(run)
            # The last caller may have left after the look in `_run_all`, when there was no run to
            # end yet.
            if not run.is_wanted():
                run.options.terminate = True
        try:
            found = self._run_samples(_inputs(slices), rung, run.options)
        except FluoroError as error:  # one sample may be why all outputs have the wrong shape
            return _Failure(INVALID, rung, error)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime has no closed list of them
            return _Failure(self._cause(run, error), rung, error)
        finally:
            with self._changed:
                self._running.remove(run)
        self._measure(run, samples, rung)
        self._hand_out(slices, found)
        return None

    @staticmethod
    def _cause(run: _Run, error: Exception) -> str:
        if run.options.terminate:
            return LEFT if any(one.work.left for one in run.slices) else TIMEOUT
        return OUT_OF_MEMORY if is_out_of_memory(error) else FAILED

    def _parts_after(self, failure: "_Failure", slices: Slices) -> Sequence[Slices]:
        """What to run after a failed run, if anything; fails those who are to blame."""
        if failure.cause == LEFT:
            return [slices]  # without those who left
        # A model that cannot run what it has run before is broken. The images are not to blame, and
        # other attempts may find a worker that works.
        if failure.cause == FAILED and not self._still_works():
            log.error("model_broken", model=self._title, exception=type(failure.error).__name__)
            self._fail(slices, self._broken(failure.error))
            return ()
        # Outputs of the wrong shape are the fault of whoever showed all of the samples.
        is_of_one = failure.cause == INVALID and len({id(one.work) for one in slices}) == 1
        if is_of_one or count(slices) == 1:
            self._fail(slices, self._blamed(failure))
            return ()
        # Otherwise every later run would fail first, and then run in halves.
        if failure.cause == OUT_OF_MEMORY:
            self._remember(failure.rung // 2 * slices[0].work.voxels)
        return halves(slices)

    def _remember(self, voxels: int) -> None:
        with self._changed:
            now = time.monotonic()
            # What was learned longer ago was forgotten: memory may have been short for a moment
            # only.
            before = self._most_voxels if now < self._small_until else voxels
            self._most_voxels, self._small_until = min(voxels, before), now + REMEMBER_SECONDS
        log.warning("runs_made_smaller", model=self._title, most_voxels=voxels)

    def _hand_out(self, slices: Slices, found: Outputs) -> None:
        place = 0
        for one in slices:
            length = one.stop - one.start
            here = slice(place, place + length)
            place += length
            # A copy, or whoever keeps one sample would keep the outputs of the whole run.
            part = {
                name: values if length == len(values) else values[here].copy()
                for name, values in found.items()
            }
            try:
                self._check(part)
            except FluoroError as error:
                self._fail([one], error)
            else:
                with self._changed:
                    one.work.got(one.start, part, length)

    def _fail(self, slices: Slices, error: FluoroError) -> None:
        with self._changed:
            for one in slices:
                # The rest of its samples is not run: nobody can use a part of the outputs.
                self._waiting.remove(one.work)
                one.work.fail(error)

    def _blamed(self, failure: "_Failure") -> FluoroError:
        if isinstance(failure.error, FluoroError):
            return failure.error
        reason, what = BLAME[failure.cause]
        error = FluoroError(reason, f"{self._title} {what}")
        error.__cause__ = failure.error
        return error

    def _broken(self, error: BaseException) -> FluoroError:
        # Not the pixels' fault: another attempt, or another worker, may succeed.
        what = f"Running {self._title} failed ({type(error).__name__})."
        broken = FluoroError(Reason.INTERNAL, what)
        broken.__cause__ = error
        return broken

    def _measure(self, run: _Run, samples: int, rung: int) -> None:
        metrics.MODEL_RUN_SECONDS.labels(model=self._name).observe(time.monotonic() - run.began)
        metrics.MODEL_RUN_SAMPLES.labels(model=self._name).observe(samples)
        metrics.MODEL_FILLING_SAMPLES.labels(model=self._name).inc(rung - samples)
        for one in run.slices:
            waited = metrics.MODEL_WAIT_SECONDS.labels(model=self._name)
            waited.observe(max(0, run.began - one.work.arrived))


@dataclass(frozen=True, slots=True)
class _Failure:
    """A run that did not go well. rung: how many samples it had."""

    cause: str
    rung: int
    error: Exception


def _inputs(slices: Slices) -> Tensors:
    # One work needs no concatenation, which would copy all of its samples.
    if len(slices) == 1:
        work, start, stop = slices[0]
        return {name: values[start:stop] for name, values in work.inputs.items()}
    return {
        name: np.concatenate([one.work.inputs[name][one.start : one.stop] for one in slices])
        for name in slices[0].work.inputs
    }
