"""Says why a job has not ended, in causes that a program can read and sentences for people. Pure.

`standing.py` reads what it is made of, `forecast.py` has the arithmetic of what is expected.
"""

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from typing import Final
from uuid import UUID

from fluoro.v1 import job_pb2
from fluoro.v1.explanation_pb2 import Cause, Estimate, JobExplanation, StepExplanation

from fluoro_jobs.advice import ADVICE
from fluoro_jobs.errors import Reason
from fluoro_jobs.ledger import forecast
from fluoro_jobs.ledger.connection import LedgerConnection
from fluoro_jobs.ledger.forecast import NOW, Rate, Span, Work
from fluoro_jobs.ledger.rows import set_time
from fluoro_jobs.ledger.standing import (
    TOLD_RUNNING,
    OpenTask,
    QueueStanding,
    Standing,
    StandingStep,
    standing,
)

_LATEST: Final = timedelta(days=36_500)
"""Nothing is expected later than this from now."""
_BLOCKING: Final = (
    Cause.KIND_NO_MODEL,
    Cause.KIND_NO_WORKER,
    Cause.KIND_OWNER_LIMIT,
    Cause.KIND_CAPACITY,
)
"""What holds up every task that waits in a queue, the worst first."""


def explain_job(connection: LedgerConnection, owner: str, job_id: UUID) -> JobExplanation:
    """Why the job has not ended, as of one moment.

    FluoroError JOB_NOT_FOUND if it is not the owner's.
    """
    return explanation(standing(connection, owner, job_id))


def explanation(found: Standing) -> JobExplanation:
    """What stands there, in words."""
    job = found.job
    told = JobExplanation(job=job.name, state=job.state)
    set_time(told.time, found.now)
    told.attempts_truncated = found.attempts_truncated
    # The query reads the newest first, because it reads only so many. The answer lists them as they
    # happened.
    for ordinal, shard, attempt in reversed(found.attempts):
        told.attempts.add(step=found.steps[ordinal].name, shard=shard, attempt=attempt)
    if job.HasField("end_time"):
        state = job_pb2.Job.State.Name(job.state).removeprefix("STATE_")
        told.message = f"The job has ended: {state}. {job.message}".rstrip()
        return told
    for step in found.steps:
        if not step.has_ended:
            told.steps.add(
                step=step.name, state=f"STATE_{step.state}", causes=list(_causes(found, step))
            )
    if job.HasField("expire_time"):
        text = "The job ends then whatever has become of it, with JOB_EXPIRED."
        cause = told.causes.add(kind=Cause.KIND_EXPIRES, message=text)
        cause.until_time.CopyFrom(job.expire_time)
    _expect(found, told)
    told.message = _summary(told.steps)
    return told


def _summary(steps: Sequence[StepExplanation]) -> str:
    causes = [(step.step, cause) for step in steps for cause in step.causes]
    kinds = (Cause.KIND_RUNNING, *_BLOCKING)
    for kind in kinds:
        for step, cause in causes:
            if cause.kind == kind:
                return f"Step {step}: {cause.message}"
    return f"Step {causes[0][0]}: {causes[0][1].message}" if causes else "The job is about to end."


def _causes(found: Standing, step: StandingStep) -> Iterator[Cause]:
    # A missing model is reported first, even while the step still waits: it can be added before the
    # step fails.
    if missing := [str(model) for model in step.models if model in found.unserved]:
        yield _without_model(found, step, missing)
    before = [found.steps[n].name for n in step.after if not found.steps[n].has_ended]
    if before:
        text = f"Waits for {_listed(before)} to end."
        yield Cause(kind=Cause.KIND_WAITING_FOR_STEP, message=text, steps=before)
        # Tasks come to be when the step is unblocked, so there is nothing else to say of this one.
        return
    running = [task for task in step.open if task.state == "RUNNING"]
    # A step may have 10,000 running tasks. The first few say what a reader wants to know.
    yield from (_running(found, task) for task in running[:TOLD_RUNNING])
    if (left := len(running) - TOLD_RUNNING) > 0:
        text = f"{_tasks(left)} more running."
        yield Cause(kind=Cause.KIND_RUNNING, message=text, task_count=left)
    waiting = sorted(
        (task for task in step.open if task.state == "WAITING"), key=lambda task: task.due_time
    )
    # Without a start time, a worker handed it back that could not run it.
    is_scheduled = found.job.HasField("schedule_time")
    if first := [task for task in waiting if is_scheduled and not task.attempt]:
        yield _scheduled(first)
    if again := [task for task in waiting if task.attempt or not is_scheduled]:
        yield _backoff(found, again)
    # Dispatch alone moves between these two, at any moment; for a reader both wait in the queue.
    queued = [task for task in step.open if task.state in {"READY", "QUEUED"}]
    if queued or _unseen(step):
        yield _queued(found, step, queued)
        yield from _held_up(found, step)


def _without_model(found: Standing, step: StandingStep, missing: Sequence[str]) -> Cause:
    alive = found.queues.get(step.queue, QueueStanding()).workers
    text = (
        f"None of the {alive} live workers of the queue {step.queue} serves {', '.join(missing)}. "
        "The step fails once it is run, unless the model is added before. ListModels has those "
        "there are."
    )
    return Cause(
        kind=Cause.KIND_NO_MODEL, message=text, queue=step.queue, workers=alive, models=missing
    )


def _running(found: Standing, task: OpenTask) -> Cause:
    cause = Cause(kind=Cause.KIND_RUNNING, task_count=1, shard=task.shard)
    attempt = found.current.get(task.id)
    # The attempts read are a sample (ADR 0024), and this one may not be in it.
    if attempt is None:
        cause.message = "A task runs."
        return cause
    cause.worker = attempt.worker
    cause.start_time.CopyFrom(attempt.start_time)
    seconds = _seconds_since(found, attempt)
    cause.message = (
        f"Task {task.shard} runs on {attempt.worker} for {_length(seconds)}, "
        f"attempt {attempt.number}."
    )
    return cause


def _scheduled(tasks: Sequence[OpenTask]) -> Cause:
    until = tasks[0].due_time
    text = f"{_tasks(len(tasks))} not to start before {_moment(until)}."
    cause = Cause(kind=Cause.KIND_SCHEDULED, message=text, task_count=len(tasks))
    set_time(cause.until_time, until)
    return cause


def _backoff(found: Standing, tasks: Sequence[OpenTask]) -> Cause:
    first = tasks[0]
    attempt = found.current.get(first.id)
    reason = attempt.reason if attempt else ""
    text = f"{_tasks(len(tasks))} to be tried again, the first at {_moment(first.due_time)}."
    if reason:
        # The ledger keeps a reason as text. One of a later release has no advice here.
        advice = ADVICE[Reason(reason)] if reason in Reason.__members__ else ""
        text = f"{text} The attempt before ended with {reason}. {advice}".rstrip()
    cause = Cause(kind=Cause.KIND_BACKOFF, message=text, task_count=len(tasks), reason=reason)
    set_time(cause.until_time, first.due_time)
    return cause


def _queued(found: Standing, step: StandingStep, tasks: Sequence[OpenTask]) -> Cause:
    cause = Cause(
        kind=Cause.KIND_QUEUED,
        queue=step.queue,
        operation=step.task_name,
        task_count=len(tasks),
        task_count_truncated=_unseen(step) > 0,
    )
    cause.tasks_ahead, cause.tasks_ahead_truncated = _ahead(found, step, tasks)
    count = f"More than {_tasks(len(tasks))}" if _unseen(step) else _tasks(len(tasks))
    ahead = "more than " if cause.tasks_ahead_truncated else "about "
    text = f"{count} in the queue {step.queue}"
    if any(task.state == "QUEUED" for task in tasks):
        cause.message = f"{text}, the first of them handed to its workers."
    elif cause.tasks_ahead:
        cause.message = f"{text}, {ahead}{cause.tasks_ahead} before the first of them."
    else:
        cause.message = f"{text}, the first of them next."
    return cause


def _held_up(found: Standing, step: StandingStep) -> Iterator[Cause]:
    queue = found.queues.get(step.queue, QueueStanding())
    about = Cause(queue=step.queue, workers=queue.workers, slots=queue.slots)
    # If nobody knows the operation, free slots do not help: this cause hides the other.
    if not queue.knows(step.task_name):
        about.kind = Cause.KIND_NO_WORKER
        about.operation = step.task_name
        about.message = (
            f"None of the {queue.workers} live workers of the queue {step.queue} knows "
            f"{step.task_name}. Update the workers, or start one that knows it."
            if queue.workers
            else f"No worker of the queue {step.queue} is alive. Start one."
        )
        yield about
    elif queue.running >= queue.slots:
        about.kind = Cause.KIND_CAPACITY
        about.in_use = queue.running
        about.message = (
            f"All {queue.slots} slots of the {queue.workers} workers of the queue {step.queue} are "
            "busy. More workers would start it sooner."
        )
        yield about
    # A limit holds over all queues, so it may hold up a step whose queue has free slots.
    if found.limit is not None and found.limit[1] >= found.limit[0]:
        most, in_use = found.limit
        text = (
            f"{_tasks(in_use)} of this owner queued or running, of at most {most}. "
            "The next starts when one of them ends."
        )
        yield Cause(kind=Cause.KIND_OWNER_LIMIT, message=text, limit=most, in_use=in_use)


def _unseen(step: StandingStep) -> int:
    """Open tasks of the step that were not looked at."""
    return max(0, step.task_count - step.ended_tasks - len(step.open)) if step.task_count else 0


def _ahead(found: Standing, step: StandingStep, tasks: Sequence[OpenTask]) -> tuple[int, bool]:
    # One that is in a worker's hands already has nobody ahead.
    if any(task.state == "QUEUED" for task in tasks):
        return 0, False
    return found.ahead.get(step.ordinal, (0, False))


# --- what is expected ---


def _expect(found: Standing, told: JobExplanation) -> None:
    """Adds the estimates: step by step, each after those that it comes after."""
    starts: list[tuple[Span, int]] = []
    ends: dict[int, tuple[Span, int] | None] = {}
    texts = {step.step: step for step in told.steps}
    for step in found.steps:
        if step.has_ended:
            ends[step.ordinal] = NOW, 0
            continue
        before = [ends.get(n) for n in step.after]
        each = _rate(found, step)
        queue = found.queues.get(step.queue, QueueStanding())
        known = [end for end in before if end is not None]
        # One unknown makes everything after it unknown. No estimate is better than one that ignores
        # a part.
        if each is None or not queue.knows(step.task_name) or len(known) < len(before):
            ends[step.ordinal] = None
            continue
        after = forecast.latest(end for end, _ in known)
        work = _work(found, step, queue)
        starts.append((forecast.start(work, after, each), each.samples))
        end = forecast.finish(work, after, each)
        ends[step.ordinal] = end, each.samples
        _set(texts[step.name].finish, found.now, end, each.samples)
    if starts and not found.job.HasField("start_time"):
        # The job starts with whichever of its steps is first.
        _set(told.start, found.now, *min(starts, key=lambda start: start[0].mid))
    whole = [end for end in ends.values() if end is not None]
    # The job ends with the last of its steps, so all must be known.
    if len(whole) == len(ends):
        # An estimate is as good as its weakest part.
        samples = [n for step, (_, n) in zip(found.steps, whole, strict=True) if not step.has_ended]
        _set(
            told.finish,
            found.now,
            forecast.latest(end for end, _ in whole),
            min(samples, default=0),
        )


def _rate(found: Standing, step: StandingStep) -> Rate | None:
    queue = found.queues.get(step.queue, QueueStanding())
    return forecast.rate(found.measured.get(step.task_name, ()), queue.task_seconds)


def _work(found: Standing, step: StandingStep, queue: QueueStanding) -> Work:
    running = [task for task in step.open if task.state == "RUNNING"]
    started = [found.current[task.id] for task in running if task.id in found.current]
    waiting = [task.due_time for task in step.open if task.state == "WAITING"]
    all_wait = bool(waiting) and len(waiting) == len(step.open)
    queued = [task for task in step.open if task.state in {"READY", "QUEUED"}]
    return Work(
        # A step that waits has no tasks yet; how many it gets is known when it is unblocked.
        open_tasks=max(1, step.task_count - step.ended_tasks or _planned(found, step)),
        running=len(running),
        elapsed_seconds=max((_seconds_since(found, one) for one in started), default=0),
        tasks_ahead=_ahead(found, step, queued)[0],
        free_slots=max(0, queue.slots - queue.running),
        # At least 1, because the forecast divides by it, and a queue may have no slots.
        slots=max(1, queue.slots),
        # If others of the step can run now, the wait of some does not delay its beginning.
        wait_seconds=max(0, (min(waiting) - found.now).total_seconds()) if all_wait else 0,
    )


def _planned(found: Standing, step: StandingStep) -> int:
    """Tasks that a step will have which has none yet, as if each input of the job were one."""
    size = step.inputs_per_task
    # Rounds up: the last group may be smaller.
    return -(-found.job.input_count // size) if size else 1


def _set(into: Estimate, now: datetime, span: Span, samples: int) -> None:
    fields = (into.earliest_time, into.expected_time, into.latest_time)
    for field, seconds in zip(fields, span, strict=True):
        # A span may be endless. Beyond about 10^9 s the sum would leave the years that Python has.
        field.FromDatetime(now + min(timedelta(seconds=min(seconds, 1e9)), _LATEST))
    into.sample_count = samples


# --- words ---


def _seconds_since(found: Standing, attempt: job_pb2.Attempt) -> float:
    # `now` is when the transaction began. Its snapshot is taken a moment later and may hold a
    # younger attempt.
    return max(0.0, found.now.timestamp() - attempt.start_time.ToNanoseconds() / 1e9)


def _tasks(count: int) -> str:
    return "1 task" if count == 1 else f"{count} tasks"


def _listed(names: Sequence[str]) -> str:
    *others, last = names
    return f"the steps {', '.join(others)} and {last}" if others else f"the step {last}"


def _moment(time: datetime) -> str:
    return f"{time:%Y-%m-%d %H:%M:%S} UTC"


def _length(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))
