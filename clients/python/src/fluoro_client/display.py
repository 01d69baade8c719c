"""Shows a job while it runs: one bar per step on a terminal, one line per change elsewhere."""

from collections.abc import Callable
from contextlib import aclosing

from fluoro.v1 import event_pb2, job_pb2, job_service_pb2
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

from fluoro_client.aio import BASIC, AsyncClient
from fluoro_client.board import Board, StepView
from fluoro_client.errors import FluoroApiError

COLOURS = {
    "PENDING": "dim",
    "RUNNING": "cyan",
    "SUCCEEDED": "green",
    "PARTIALLY_SUCCEEDED": "yellow",
    "SKIPPED": "yellow",
    "FAILED": "red",
    "CANCELLED": "magenta",
}
"""Colour of each state of jobs, steps and items."""


async def follow(client: AsyncClient, job_name: str, console: Console) -> job_pb2.Job:
    """Shows the job until it is terminal, and returns it.

    It comes with all its results if they fit into an answer. FluoroApiError as from
    `AsyncClient.watch`.
    """
    board = Board()
    if console.is_terminal:
        with Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TaskProgressColumn(),
            TextColumn("{task.fields[about]}"),
            TimeElapsedColumn(),
            console=console,
        ) as bars:
            await _watch(client, job_name, board, _Bars(board, bars))
    else:
        await _watch(client, job_name, board, _Lines(board, console))
    return await whole(client, job_name)


async def whole(client: AsyncClient, job_name: str) -> job_pb2.Job:
    """The job with all there is, or, if that is too large for an answer, in the view BASIC."""
    try:
        return await client.get(job_name)
    except FluoroApiError as error:
        if error.reason != "ANSWER_TOO_LARGE":
            raise
        return await client.get(job_name, view=BASIC)


def state_text(state: str) -> Text:
    """A state's name without its prefix, in its colour."""
    word = state.removeprefix("STATE_")
    return Text(word.lower().replace("_", " "), style=COLOURS.get(word, ""))


def items_text(items: event_pb2.ItemCounts) -> str:
    """`3/4 ok, 1 failed`, or nothing when there are no items."""
    if not items.total:
        return ""
    counts = [f"{items.succeeded}/{items.total} ok"]
    counts += [
        f"{count} {word}"
        for count, word in ((items.skipped, "skipped"), (items.failed, "failed"))
        if count
    ]
    return ", ".join(counts)


async def _watch(
    client: AsyncClient,
    job_name: str,
    board: Board,
    draw: Callable[[job_service_pb2.WatchJobResponse], None],
) -> None:
    async with aclosing(client.watch(job_name, view=BASIC)) as messages:
        async for message in messages:
            board.apply(message)
            draw(message)


class _Bars:
    """Draws the board as one progress bar per step."""

    def __init__(self, board: Board, bars: Progress) -> None:
        self._board = board
        self._bars = bars
        self._rows: dict[str, TaskID] = {}

    def __call__(self, _: job_service_pb2.WatchJobResponse) -> None:
        for name, step in self._board.steps.items():
            if name not in self._rows:
                self._rows[name] = self._bars.add_task(
                    escape(name), start=False, total=1.0, about=""
                )
            row, state = self._rows[name], job_pb2.Step.State.Name(step.state)
            if step.attempt:
                self._bars.start_task(row)
            if step.state > job_pb2.Step.STATE_RUNNING:
                self._bars.stop_task(row)
            self._bars.update(
                row,
                completed=step.fraction,
                description=f"{escape(name):<12}",
                about=_about(step, state_text(state)),
            )


def _about(step: StepView, state: Text) -> str:
    """`running decode · 3/4 ok, 1 failed · attempt 2`, as rich markup."""
    doing = f"{state.markup} {escape(step.stage)}".rstrip()
    attempt = f"attempt {step.attempt}" if step.attempt > 1 else ""
    return " · ".join(
        part for part in (doing, items_text(step.items), attempt, escape(step.reason)) if part
    )


class _Lines:
    """Writes one line per change, for logs and pipes."""

    def __init__(self, board: Board, console: Console) -> None:
        self._board = board
        self._console = console
        self._stages: dict[str, tuple[int, str]] = {}

    def __call__(self, message: job_service_pb2.WatchJobResponse) -> None:
        match message.WhichOneof("update"):
            case "snapshot":
                self._say(
                    message.snapshot.name, job_pb2.Job.State.Name(message.snapshot.state), "", ""
                )
                for step in self._board.steps.values():
                    self._say(
                        step.name,
                        job_pb2.Step.State.Name(step.state),
                        items_text(step.items),
                        step.reason,
                    )
            case "event":
                self._event(message.event)
            case "progress":
                self._progress(message.progress)

    def _event(self, event: event_pb2.Event) -> None:
        match event.WhichOneof("change"):
            case "job_changed":
                job = event.job_changed
                self._say(event.job, job_pb2.Job.State.Name(job.state), job.reason, job.message)
            case "step_changed":
                step = event.step_changed
                items = items_text(self._board.step(step.step).items)
                self._say(
                    step.step, job_pb2.Step.State.Name(step.state), items, step.reason, step.message
                )
            case "task_changed" if event.task_changed.reason:
                task = event.task_changed
                state = job_pb2.Task.State.Name(task.state)
                self._say(
                    task.step, state, f"attempt {task.attempt} ended", task.reason, task.message
                )

    def _progress(self, progress: event_pb2.Progress) -> None:
        stage = (progress.attempt, progress.stage)
        if self._stages.get(progress.step) != stage:
            self._stages[progress.step] = stage
            self._say(
                progress.step,
                "STATE_RUNNING",
                progress.stage,
                f"attempt {progress.attempt}" if progress.attempt > 1 else "",
            )

    def _say(self, what: str, state: str, *about: str) -> None:
        text = " · ".join(part for part in about if part)
        self._console.print(
            f"{what:<12}",
            state_text(state),
            *([Text(text)] if text else []),
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
