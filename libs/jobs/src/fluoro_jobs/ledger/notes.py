"""What was done to a job's graph, as rows: the parameters of the statement in `store.py`."""

from base64 import b64encode
from collections.abc import Sequence
from typing import Any

from fluoro.v1 import job_pb2

from fluoro_jobs.ledger.graph import JobGraph
from fluoro_jobs.ledger.records import Change, Counters, ItemResult, Step, Task
from fluoro_jobs.states import TaskState, is_terminal


def parts_of(graph: JobGraph) -> dict[str, Sequence[dict[str, Any]]]:
    """The rows of each part of the statement, by column.

    Parts without rows are left out, unless they take a list of their own.
    """
    changed = [graph.tasks[task] for task in graph.changed_tasks]
    rows: dict[str, Sequence[dict[str, Any]]] = {
        "steps": [_step_row(graph.steps[ordinal]) for ordinal in graph.changed_steps],
        # A row of `tasks` changes when the task ends or comes back, never at a claim, which is in
        # `open_tasks`.
        "tasks": [_task_row(task) for task in changed],
        # After an attempt. A task that is reopened has no row in open_tasks, and gets a new one.
        "returned": [
            _delay_row(task)
            for task in changed
            if task.state is TaskState.READY and task.id not in graph.reopened_tasks
        ],
        "reopened": [_delay_row(graph.tasks[task]) for task in graph.reopened_tasks],
        "redone": [{"step": t.step, "shard": t.shard} for t in graph.redone],
        "planned": [_planned_row(task) for task in graph.planned_tasks],
        "ends": [
            {
                "task_id": str(e.task),
                "number": e.number,
                "outcome": str(e.outcome),
                "reason": str(e.reason),
                "message": e.message,
            }
            for e in graph.ended_attempts
        ],
        "events": [
            _event_row(graph.version + n, change) for n, change in enumerate(graph.changes, 1)
        ],
        "items": [_item_row(task, item) for task, result in graph.results for item in result.items],
        "lost": [_lost_row(graph, *lost) for lost in graph.lost],
        **_artifacts(graph),
    }
    # Absent parts are left out of the statement's text too. There are few combinations, so
    # PostgreSQL keeps a plan for each.
    given: dict[str, Sequence[dict[str, Any]]] = {name: part for name, part in rows.items() if part}
    # Whoever ends a task takes its row out of `open_tasks`: the table is as large as the work at
    # hand (ADR 0017).
    if any(is_terminal(task.state) for task in changed):
        given["closed"] = ()
    if graph.forgotten:
        given["forgotten"] = ()
    return given


def counts_row(counters: Counters) -> dict[str, Any]:
    """What a step counts of its tasks."""
    return {
        "ended_tasks": counters.ended,
        "failed_tasks": counters.failed,
        "lost_inputs": counters.lost_inputs,
        "items_total": counters.total,
        "items_succeeded": counters.succeeded,
        "items_skipped": counters.skipped,
        "items_failed": counters.failed_items,
    }


def _step_row(step: Step) -> dict[str, Any]:
    return {
        "ordinal": step.ordinal,
        "state": str(step.state),
        "reason": str(step.reason),
        "message": step.message,
        "input_count": step.counters.inputs,
        "task_count": step.counters.tasks,
        **counts_row(step.counters),
    }


def _task_row(task: Task) -> dict[str, Any]:
    return {
        "id": str(task.id),
        # The open states are in `open_tasks`; here a task is OPEN until it has ended.
        "state": str(task.state) if is_terminal(task.state) else "OPEN",
        "attempt": task.attempt,
        "allowed": task.allowed,
        "returned": task.returned,
        "item_counts": None if task.counts is None else list(task.counts),
        # JSON has no bytes; the statement decodes base64.
        "result": None if task.result is None else b64encode(task.result).decode(),
        "result_blob": task.result_blob and task.result_blob.removeprefix("blobs/"),
    }


def _delay_row(task: Task) -> dict[str, Any]:
    return {"id": str(task.id), "attempt": task.attempt, "delay_seconds": task.delay_seconds}


def _planned_row(task: Task) -> dict[str, Any]:
    return {
        "id": str(task.id),
        "step": task.step,
        "shard": task.shard,
        "first_input": task.first_input,
        "input_count": task.input_count,
        "allowed": task.allowed,
    }


def _event_row(sequence: int, change: Change) -> dict[str, Any]:
    return {
        "sequence": sequence,
        "step": change.step,
        "shard": change.shard,
        "attempt": change.attempt,
        "state": change.state,
        "reason": change.reason,
        "message": change.message,
        "item_counts": None if change.item_counts is None else list(change.item_counts),
    }


def _item_row(task: Task, item: ItemResult) -> dict[str, Any]:
    return {
        "step": task.step,
        "shard": task.shard,
        "number": item.number,
        "key": item.key,
        "input": item.input,
        "state": item.state,
        "reason": item.reason,
        "message": item.message,
    }


def _lost_row(graph: JobGraph, task: Task, reason: str, message: str) -> dict[str, Any]:
    return {
        "step": task.step,
        "shard": task.shard,
        "inputs_of": graph.inputs_of(graph.steps[task.step]),
        "first_input": task.first_input,
        "last_input": task.first_input + task.input_count - 1,
        "reason": reason,
        "message": message,
    }


def _artifacts(graph: JobGraph) -> dict[str, Sequence[dict[str, Any]]]:
    outputs = [
        (task, position, artifact)
        for task, result in graph.results
        for position, artifact in enumerate(result.artifacts)
    ]
    # A result in the blob store needs a record, or the collector would take its bytes for garbage.
    large = [result.blob for _, result in graph.results if result.blob]
    return {
        "blobs": [
            {
                "id": a.blob.removeprefix("blobs/"),
                "size_bytes": a.size_bytes,
                "sha256": a.sha256.hex(),
                "media_type": a.media_type,
            }
            for a in [artifact for _, _, artifact in outputs] + large
        ],
        "artifacts": [_artifact_row(*output) for output in outputs],
    }


def _artifact_row(task: Task, position: int, artifact: job_pb2.Artifact) -> dict[str, Any]:
    return {
        "step": task.step,
        "shard": task.shard,
        "position": position,
        "name": artifact.name,
        "role": artifact.role,
        "key": artifact.key,
        # 0 is an input. Only a field that was not set means none.
        "input": artifact.input if artifact.HasField("input") else None,
        "blob_id": artifact.blob.removeprefix("blobs/"),
    }
