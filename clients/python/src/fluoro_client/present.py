"""What the `fluoro` command prints: proto3 JSON, or tables for people."""

import json
import re
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC
from typing import Any, Final, TypeVar

from fluoro.v1 import (
    audit_service_pb2,
    blob_service_pb2,
    event_pb2,
    explanation_pb2,
    job_pb2,
    job_service_pb2,
    token_service_pb2,
)
from fluoro.v1.deployment_service_pb2 import Finding
from fluoro.v1.pipeline_service_pb2 import Pipeline, PipelineParameter
from google.protobuf import timestamp_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import Value
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fluoro_client.board import step_items
from fluoro_client.display import items_text, state_text

_LEVELS: Final = {
    Finding.LEVEL_OK: ("ok", "green"),
    Finding.LEVEL_WARNING: ("warn", "yellow"),
    Finding.LEVEL_FAULT: ("FAULT", "red"),
}
"""Word and colour of each level of a finding."""

WIDEST: Final = 400
"""Columns of what goes to a file or a pipe: programs want whole lines."""
_COPIED: Final = frozenset({"JOB", "BLOB", "TOKEN ID", "MODEL"})
"""Columns that people copy from."""

MOST_ROWS_ALIKE: Final = 10
"""More items or artifacts of one kind than this are one row."""

_NOT_ASCII: Final = re.compile("[^\\x00-\\x7e]")

Thing = TypeVar("Thing")


def to_json(document: Message | dict[str, Any], *, one_line: bool = False) -> str:
    """Proto3 JSON of a message, or JSON of a dict that already is."""
    fields = MessageToDict(document) if isinstance(document, Message) else document
    return json_text(fields, indent=None if one_line else 2)


def json_text(value: object, indent: int | None = None) -> str:
    """JSON in which characters that a terminal would obey are escaped, and others stand."""
    text = json.dumps(value, ensure_ascii=False, indent=indent)
    # Below U+007F, json has escaped them already, and what is left are its own line breaks.
    return _NOT_ASCII.sub(lambda one: _escaped(one[0]), text)


def _escaped(character: str) -> str:
    return character if character.isprintable() else json.dumps(character)[1:-1]


def visible(text: str) -> str:
    """With what a terminal would obey written out, as Python does in a string."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def job_view(job: job_pb2.Job) -> RenderableType:
    """A job with its steps, failed items and artifacts.

    Of a study with thousands of images it fits on a screen.
    """
    head = Text.assemble(
        (job.name, "bold"),
        "  ",
        state_text(job_pb2.Job.State.Name(job.state)),
        f"  {job.reason}".rstrip(),
    )
    parts: list[RenderableType] = [head]
    if job.message:
        parts.append(Text(job.message))
    if job.steps:
        parts.append(_steps(job.steps))
    if any(item.reason for step in job.steps for item in step.items):
        parts.append(_items(job.steps))
    if any(step.artifacts for step in job.steps):
        parts.append(_artifacts(job.steps))
    if job.steps and not job.inputs:
        parts.append(Text(f"{job.input_count} inputs. Items and artifacts are left out here."))
    return Group(*parts)


def explanation_view(found: explanation_pb2.JobExplanation) -> RenderableType:
    """Why a job has not ended: a sentence, a row per cause, what is expected, the attempts."""
    head = Text.assemble((found.job, "bold"), "  ", state_text(job_pb2.Job.State.Name(found.state)))
    parts: list[RenderableType] = [head, Text(found.message)]
    parts += [Text(f"{name} {text}") for name, text in _expected(found)]
    parts += [Text(cause.message) for cause in found.causes]
    if any(step.causes for step in found.steps):
        causes = plain_table("STEP", "CAUSE", "")
        for step in found.steps:
            for cause in step.causes:
                kind = explanation_pb2.Cause.Kind.Name(cause.kind).removeprefix("KIND_")
                causes.add_row(step.step, kind, Text(cause.message))
        parts.append(causes)
    if found.attempts:
        attempts = plain_table("STEP", "TASK", "ATTEMPT", "WORKER", "OUTCOME", "")
        for record in found.attempts:
            attempt = record.attempt
            outcome = job_pb2.Attempt.Outcome.Name(attempt.outcome).removeprefix("OUTCOME_")
            attempts.add_row(
                record.step,
                str(record.shard),
                str(attempt.number),
                attempt.worker,
                outcome if attempt.outcome else "running",
                Text(f"{attempt.reason} {attempt.message}".strip()),
            )
        parts.append(attempts)
    return Group(*parts)


def _expected(found: explanation_pb2.JobExplanation) -> Iterable[tuple[str, str]]:
    """Start and end with their error bars, as far as they are known."""
    for name, estimate in (("Starts", found.start), ("Ends", found.finish)):
        if estimate.HasField("expected_time"):
            expected, earliest, latest = (
                f"{time.ToDatetime(UTC):%Y-%m-%d %H:%M:%S}"
                for time in (estimate.expected_time, estimate.earliest_time, estimate.latest_time)
            )
            yield name, f"about {expected} UTC, between {earliest} and {latest}"


def counts_table(rows: Iterable[tuple[str, str, int]], *, more: bool) -> RenderableType:
    """Numbers of jobs by state and pipeline. more: there may be more."""
    table = plain_table("STATE", "PIPELINE", "JOBS")
    for state, pipeline, number in rows:
        table.add_row(state_text(state), Text(pipeline), f"{'at least ' if more else ''}{number}")
    return table


def event_line(message: job_service_pb2.WatchJobsResponse) -> str:
    """One message of a watch of all jobs as a line: job, what of it, state, reason, message.

    Nothing for progress and bookmarks.
    """
    event = message.event
    if message.HasField("job"):
        return _line(message.job.name, "", job_pb2.Job.State.Name(message.job.state), message.job)
    if event.HasField("job_changed"):
        return _line(
            event.job, "", job_pb2.Job.State.Name(event.job_changed.state), event.job_changed
        )
    if event.HasField("step_changed"):
        return _line(
            event.job,
            event.step_changed.step,
            job_pb2.Step.State.Name(event.step_changed.state),
            event.step_changed,
        )
    if event.HasField("task_changed"):
        task = event.task_changed
        return _line(
            event.job, f"{task.step}/{task.shard}", job_pb2.Task.State.Name(task.state), task
        )
    return ""


def _line(
    name: str,
    part: str,
    state: str,
    change: job_pb2.Job | event_pb2.JobChanged | event_pb2.StepChanged | event_pb2.TaskChanged,
) -> str:
    return "  ".join(
        filter(None, (name, part, state_text(state).plain, change.reason, change.message))
    )


def plain_table(*columns: str) -> Table:
    """An empty table with these columns, as all lists have it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in columns:
        # What people copy stays whole; the other columns make room.
        whole = column in _COPIED
        table.add_column(column, no_wrap=whole, overflow="ellipsis" if whole else "fold")
    return table


def _filled(columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """A table of these rows, without the columns in which none has anything."""
    found = list(rows)
    used = [n for n in range(len(columns)) if not found or any(str(row[n]) for row in found)]
    table = plain_table(*(columns[n] for n in used))
    for row in found:
        table.add_row(*(row[n] for n in used))
    return table


def _steps(steps: Iterable[job_pb2.Step]) -> Table:
    rows = []
    for step in steps:
        attempts = str(sum(len(task.attempts) for task in step.tasks)) if step.tasks else "?"
        if step.counts.tasks > 1:
            attempts += f" in {step.counts.tasks} tasks"
        state = state_text(job_pb2.Step.State.Name(step.state))
        items = items_text(step_items(step))
        rows.append((step.name, state, items, attempts, Text(step.reason), Text(step.message)))
    return _filled(("STEP", "STATE", "ITEMS", "ATTEMPTS", "REASON", "MESSAGE"), rows)


def _items(steps: Iterable[job_pb2.Step]) -> Table:
    table = plain_table("STEP", "INPUT", "ITEM", "REASON", "MESSAGE")
    for step in steps:
        for alike in _grouped(
            (item for item in step.items if item.reason),
            lambda item: (item.state, item.reason, item.message),
        ):
            text = (
                state_text(job_pb2.Item.State.Name(alike[0].state)),
                Text(alike[0].reason),
                Text(alike[0].message),
            )
            if len(alike) > MOST_ROWS_ALIKE:
                table.add_row(Text(step.name), f"{len(alike)} inputs", *text)
            else:
                for item in alike:
                    table.add_row(Text(step.name), item.key or str(item.input), *text)
    return table


def _artifacts(steps: Iterable[job_pb2.Step]) -> Table:
    table = plain_table("STEP", "ARTIFACT", "ROLE", "BYTES", "BLOB")
    for step in steps:
        for alike in _grouped(step.artifacts, lambda artifact: artifact.role):
            role = alike[0].role
            if len(alike) > MOST_ROWS_ALIKE:
                size = sum(artifact.size_bytes for artifact in alike)
                table.add_row(
                    Text(step.name),
                    f"{len(alike)} artifacts",
                    Text(role),
                    str(size),
                    Text(f"fluoro download … --role {role}"),
                )
            else:
                for artifact in alike:
                    table.add_row(
                        Text(step.name),
                        Text(artifact.name),
                        Text(role),
                        str(artifact.size_bytes),
                        artifact.blob,
                    )
    return table


def _grouped(things: Iterable[Thing], key: Callable[[Thing], object]) -> Iterable[list[Thing]]:
    """Things with the same key together, in the order of the first of each."""
    groups: dict[object, list[Thing]] = {}
    for thing in things:
        groups.setdefault(key(thing), []).append(thing)
    return groups.values()


def jobs_table(jobs: Iterable[job_pb2.Job]) -> Table:
    """One line per job."""
    rows = [
        (
            job.name,
            state_text(job_pb2.Job.State.Name(job.state)),
            _time(job.create_time),
            Text(job.reason),
            Text(" ".join(f"{key}={value}" for key, value in sorted(job.labels.items()))),
        )
        for job in jobs
    ]
    return _filled(("JOB", "STATE", "CREATED", "REASON", "LABELS"), rows)


def pipelines_table(pipelines: Iterable[Pipeline]) -> Table:
    """One line per pipeline."""
    table = plain_table("PIPELINE", "TITLE", "TAKES", "PARAMETERS")
    for one in pipelines:
        names = " ".join(parameter.name for parameter in one.parameters)
        table.add_row(_pipeline(one), Text(one.title), " ".join(one.accepts), Text(names))
    return table


def pipeline_view(pipeline: Pipeline) -> RenderableType:
    """A pipeline with its steps and parameters."""
    head = Text.assemble((_pipeline(pipeline), "bold"), f"  {pipeline.title}")
    steps = " → ".join(step.name for step in pipeline.steps)
    parts: list[RenderableType] = [head, Text(pipeline.description), Text(f"Steps: {steps}")]
    for one in pipeline.parameters:
        least, greatest = _word(one.minimum), _word(one.maximum)
        allowed = " ".join(one.choices) or (f"{least} to {greatest}" if greatest else "")
        default = _word(one.default_value)
        kind = PipelineParameter.Type.Name(one.type).removeprefix("TYPE_").lower()
        told = [kind, allowed, "required" if one.required else f"default {default}"]
        if not one.required and not default:
            told.pop()
        line = Text.assemble(("--param ", "dim"), (f"{one.name}=", "bold"), "  ")
        line.append(", ".join(filter(None, told)))
        parts.append(line)
        if one.description:
            parts.append(Padding(Text(one.description), (0, 0, 0, 4)))
    return Group(*parts)


def _pipeline(pipeline: Pipeline) -> str:
    """`ct-tissue@1`, as commands take it."""
    return f"{pipeline.name.split('/')[1]}@{pipeline.version}"


def _word(value: Value) -> str:
    """A value of a parameter; nothing if there is none."""
    kind = value.WhichOneof("kind")
    if kind == "number_value":
        return f"{value.number_value:.12g}"
    return str(getattr(value, kind)) if kind else ""


def uploads_table(uploads: Iterable[tuple[str, blob_service_pb2.Blob]]) -> Table:
    """One line per uploaded file."""
    table = plain_table("FILE", "BLOB", "BYTES", "TYPE", "SHA-256")
    for file, blob in uploads:
        table.add_row(
            Text(file), blob.name, str(blob.size_bytes), blob.media_type, blob.sha256.hex()
        )
    return table


def tokens_table(tokens: Iterable[token_service_pb2.Token]) -> Table:
    """Service tokens, a row each."""
    table = plain_table("TOKEN ID", "OWNER", "ROLES", "FOR", "MADE BY", "UNTIL", "")
    for token in tokens:
        roles = [token_service_pb2.Role.Name(role).removeprefix("ROLE_") for role in token.roles]
        table.add_row(
            token.name,
            token.owner,
            " ".join(roles).lower(),
            token.display_name,
            token.creator,
            _time(token.expire_time),
            "revoked" if token.HasField("revoke_time") else "",
        )
    return table


def findings_table(findings: Iterable[Finding]) -> Table:
    """Findings of the doctor: what to do stands under what is not as it should be."""
    table = plain_table("", "CHECK", "FOUND, AND WHAT TO DO")
    for finding in findings:
        word, colour = _LEVELS[finding.level]
        found = Text(finding.found)
        if finding.advice:
            found.append(f"\n→ {finding.advice}", style="bold" if word == "FAULT" else "")
        table.add_row(Text(word, style=colour), Text(finding.check), found)
    return table


def audit_table(events: Iterable[audit_service_pb2.AuditEvent]) -> Table:
    """Events of the audit, a row each."""
    table = plain_table("TIME", "WHO", "HOW", "OWNER", "CALL", "THING", "FROM", "OUTCOME")
    for event in events:
        calls = f" {event.calls} times" if event.calls > 1 else ""
        outcome = f"{event.outcome} {event.reason}".rstrip()
        words = (
            event.principal,
            event.how,
            event.owner,
            event.method.rpartition(".")[2] + calls,
            event.thing,
            event.peer,
            outcome,
        )
        table.add_row(_time(event.time), *map(Text, words))
    return table


def profiles_view(
    file: str, profiles: Iterable[dict[str, Any]], effect: dict[str, dict[str, str]]
) -> RenderableType:
    """The profiles of a file, and what a command uses with where that comes from."""
    rows = list(profiles)
    parts: list[RenderableType] = [Text(visible(file if rows else f"No profiles in {file}."))]
    if rows:
        table = plain_table("", "PROFILE", "ENDPOINT", "OWNER", "TLS", "TOKEN")
        for row in rows:
            words = [Text(visible(row[key])) for key in ("name", "endpoint", "owner")]
            on = "on" if row["tls"] else ""
            token = Text(visible(row["token"]))
            table.add_row("*" if row["used"] else "", *words, on, token)
        parts.append(table)
    used = plain_table("IN EFFECT", "", "FROM")
    for name, part in effect.items():
        used.add_row(name, Text(visible(part["value"] or "none")), Text(visible(part["from"])))
    return Group(*parts, Text(), used)


def _time(time: timestamp_pb2.Timestamp) -> str:
    """Local time to the second, or nothing."""
    return (
        time.ToDatetime(tzinfo=UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        if time.seconds
        else ""
    )


def print_view(view: RenderableType) -> None:
    """Prints to standard output; lines are not cut when it is no terminal."""
    console = Console()
    if console.is_terminal:
        console.print(view)
        return
    console = Console(width=WIDEST)
    with console.capture() as captured:
        console.print(view)
    for line in captured.get().splitlines():
        # rich fills up the last column.
        print(line.rstrip(), file=console.file, flush=True)
