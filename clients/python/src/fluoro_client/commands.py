"""What each command of `fluoro` does. It ends with an exit code, never with a traceback."""

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from fluoro.v1 import blob_service_pb2, job_pb2, token_service_pb2
from rich.console import Console

from fluoro_client import tokens
from fluoro_client.aio import BASIC, AsyncClient
from fluoro_client.arguments import UsageError, as_blobs, text, typed
from fluoro_client.credentials import from_environment
from fluoro_client.display import follow, whole
from fluoro_client.errors import (
    DataLossError,
    DeadlineExceededError,
    FluoroApiError,
    UnreachableError,
)
from fluoro_client.files import BadPathError, find_files, target_of, target_of_blob
from fluoro_client.jobs import InvalidJobError, parse_job
from fluoro_client.many import Tally
from fluoro_client.options import DEFAULT_ENDPOINT, Exit, Output, Settings
from fluoro_client.present import (
    counts_table,
    event_line,
    explanation_view,
    job_view,
    jobs_table,
    pipeline_view,
    pipelines_table,
    print_view,
    to_json,
    tokens_table,
    uploads_table,
)
from fluoro_client.transfers import each

Action = Callable[[AsyncClient, Settings], Awaitable[Exit]]


class DetachedError(Exception):
    """Ctrl-C while a job was watched. The message says how to resume."""


def run(settings: Settings, action: Action) -> None:
    """Runs a command and exits with its code.

    Errors go to standard error, as JSON if the output is.
    """
    try:
        code = asyncio.run(_connected(settings, action))
    except FluoroApiError as error:
        code = _exit_code(error)
        fields = {violation.field: violation.description for violation in error.violations}
        details = {
            "code": error.code.name,
            "reason": error.reason,
            "fields": fields,
            "metadata": error.metadata,
        }
        _complain(
            settings, str(error) if settings.output is Output.TABLE else error.message, **details
        )
    except (UsageError, BadPathError, InvalidJobError) as error:
        code = Exit.USAGE
        _complain(settings, str(error))
    except DetachedError as detached:
        code = Exit.INTERRUPTED
        sys.stderr.write(f"{detached}\n")
    except KeyboardInterrupt:
        code = Exit.INTERRUPTED
        sys.stderr.write("Interrupted.\n")
    except BrokenPipeError:
        # Whoever read us has gone; what is still buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = Exit.LOCAL
    except OSError as error:
        code = Exit.LOCAL
        _complain(settings, f"{error.filename or 'the system'}: {error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the last line of defence: people get a sentence, not a traceback
        code = Exit.LOCAL
        _complain(
            settings, f"This is a bug in the fluoro command: {type(error).__qualname__}: {error}"
        )
    raise SystemExit(code)


async def upload(client: AsyncClient, settings: Settings, *, paths: Sequence[Path]) -> Exit:
    """Uploads files and the files in folders."""
    files = find_files(paths)
    blobs = await each(client.upload, files)
    if settings.output is Output.JSON:
        uploads = [
            {"file": str(file), "blob": json.loads(to_json(blob))}
            for file, blob in zip(files, blobs, strict=True)
        ]
        _say(to_json({"uploads": uploads}))
    else:
        print_view(
            uploads_table([(str(file), blob) for file, blob in zip(files, blobs, strict=True)])
        )
    return Exit.OK


async def submit(
    client: AsyncClient,
    settings: Settings,
    *,
    file: str,
    pipeline: str,
    parameters: Mapping[str, str],
    inputs: Sequence[str],
    labels: Mapping[str, str],
    priority: int,
    request_id: str,
    watch_it: bool,
) -> Exit:
    """Uploads what has to be, submits a job, and watches it if asked to."""
    if bool(file) == bool(pipeline):
        raise UsageError("Say what to run: either --file with a job in JSON, or --pipeline.")
    if pipeline and not inputs:
        raise UsageError("A pipeline needs at least one --input: a file, a folder, or blobs/ID.")
    if parameters and not pipeline:
        raise UsageError("--param goes with --pipeline.")
    job = parse_job(text(file)) if file else job_pb2.Job()
    job.inputs.extend(await as_blobs(client, inputs))
    values = await typed(client, pipeline, parameters) if parameters else {}
    job.labels.update(labels)
    job.priority = priority or job.priority
    accepted = await client.submit(job, pipeline=pipeline, parameters=values, request_id=request_id)
    if watch_it:
        return await watch(client, settings, name=accepted.name, cursor="")
    _show(settings, accepted)
    return Exit.OK


async def run_pipeline(
    client: AsyncClient,
    settings: Settings,
    *,
    pipeline: str,
    inputs: Sequence[str],
    parameters: Mapping[str, str],
    roles: Sequence[str],
    folder: Path,
) -> Exit:
    """Uploads, submits, watches, and downloads what the steps left that no other step follows."""
    values = await typed(client, pipeline, parameters) if parameters else {}
    job = job_pb2.Job(inputs=await as_blobs(client, inputs))
    accepted = await client.submit(job, pipeline=pipeline, parameters=values)
    verdict = await watch(client, settings, name=accepted.name, cursor="")
    if verdict is Exit.OK:
        found = (await client.get(accepted.name, view=BASIC)).steps
        followed = {name for step in found for name in step.after}
        last = [step.name for step in found if step.name not in followed]
        await download(
            client,
            settings,
            name=accepted.name,
            steps=last,
            roles=roles,
            artifacts=[],
            folder=folder,
        )
    return verdict


async def pipelines(
    client: AsyncClient, settings: Settings, *, name: str, all_versions: bool
) -> Exit:
    """Lists pipelines, or shows one."""
    if name:
        one = await client.pipeline(name)
        if settings.output is Output.JSON:
            _say(to_json(one))
        else:
            print_view(pipeline_view(one))
        return Exit.OK
    found = [one async for one in client.pipelines(all_versions=all_versions)]
    if settings.output is Output.JSON:
        _say(to_json({"pipelines": [json.loads(to_json(one)) for one in found]}))
    else:
        print_view(pipelines_table(found))
    return Exit.OK


async def watch(client: AsyncClient, settings: Settings, *, name: str, cursor: str) -> Exit:
    """Shows a job until it is terminal. Ctrl-C leaves the job alone."""
    place = cursor
    try:
        if settings.output is Output.TABLE:
            job = await follow(client, name, Console())
            _show(settings, job)
            return _verdict(job)
        async with aclosing(client.watch(name, cursor, view=BASIC)) as messages:
            async for message in messages:
                _say(to_json(message, one_line=True))
                place = message.cursor
        return _verdict(await client.get(name, view=BASIC))
    except asyncio.CancelledError:
        raise DetachedError(
            f"Detached; the job goes on. Resume with: {_resume(settings, [name], place)}"
        ) from None


async def watch_jobs(
    client: AsyncClient, settings: Settings, *, labels: Mapping[str, str], cursor: str
) -> Exit:
    """Tells what happens to all jobs, a line each time, until Ctrl-C."""
    place = cursor
    try:
        async with aclosing(client.watch_jobs(labels, cursor)) as messages:
            async for message in messages:
                line = (
                    to_json(message, one_line=True)
                    if settings.output is Output.JSON
                    else event_line(message)
                )
                if line:
                    _say(line)
                place = message.cursor or place
    except asyncio.CancelledError:
        words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        raise DetachedError(
            f"Detached. Resume with: {_resume(settings, ['--all', *words], place)}"
        ) from None
    return Exit.OK


async def get(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Shows a job as it is."""
    _show(settings, await whole(client, name))
    return Exit.OK


async def list_jobs(
    client: AsyncClient,
    settings: Settings,
    *,
    states: Sequence[str],
    labels: Mapping[str, str],
    filter_by: str,
    order_by: str,
    limit: int,
) -> Exit:
    """Lists jobs."""
    wanted = [
        job_pb2.Job.State.Value("STATE_" + state.upper().replace("-", "_")) for state in states
    ]
    jobs = [
        job
        async for job in client.list(
            states=wanted, labels=labels, filter_by=filter_by, order_by=order_by, limit=limit
        )
    ]
    if settings.output is Output.JSON:
        _say(to_json({"jobs": [json.loads(to_json(job)) for job in jobs]}))
    else:
        print_view(jobs_table(jobs))
    return Exit.OK


async def cancel(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Cancels a job."""
    _show(settings, await client.cancel(name))
    return Exit.OK


async def explain(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Says why a job has not ended."""
    found = await client.explain(name)
    if settings.output is Output.JSON:
        _say(to_json(found))
    else:
        print_view(explanation_view(found))
    return Exit.OK


async def retry(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Has what failed in a job done again."""
    _show(settings, await client.retry(name))
    return Exit.OK


async def create_token(
    client: AsyncClient,
    settings: Settings,
    *,
    owner: str,
    roles: Sequence[str],
    days: float,
    display_name: str,
) -> Exit:
    """Makes a service token. What it is for goes to standard error: the token stands alone."""
    numbers = [token_service_pb2.Role.Value(f"ROLE_{role.upper()}") for role in roles]
    made = await tokens.create_token(client, owner, numbers, display_name=display_name, days=days)
    if settings.output is Output.JSON:
        _say(to_json(made))
    else:
        until = made.token.expire_time.ToDatetime()
        sys.stderr.write(f"{made.token.name}, until {until:%Y-%m-%d}. Shown this once:\n")
        _say(made.secret)
    return Exit.OK


async def list_tokens(client: AsyncClient, settings: Settings, *, owner: str) -> Exit:
    """Lists service tokens."""
    found = [token async for token in tokens.list_tokens(client, owner)]
    if settings.output is Output.JSON:
        _say(to_json({"tokens": [json.loads(to_json(token)) for token in found]}))
    else:
        print_view(tokens_table(found))
    return Exit.OK


async def revoke_token(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Revokes a service token."""
    token = await tokens.revoke_token(client, name)
    if settings.output is Output.JSON:
        _say(to_json(token))
    else:
        print_view(tokens_table([token]))
    return Exit.OK


async def count(client: AsyncClient, settings: Settings, *, filter_by: str, pages: int) -> Exit:
    """Counts jobs by state and pipeline."""
    counts, more = await client.count(filter_by, pages=pages)
    rows = [
        (job_pb2.Job.State.Name(state), pipeline, number)
        for (state, pipeline), number in sorted(counts.items())
    ]
    if settings.output is Output.JSON:
        fields = ("state", "pipeline", "count")
        found = [dict(zip(fields, row, strict=True)) for row in rows]
        _say(to_json({"counts": found, "more": more}))
    else:
        print_view(counts_table(rows, more=more))
    return Exit.OK


async def delete(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Deletes a job."""
    await client.delete(name, missing_ok=False)
    _say(to_json({"deleted": name}) if settings.output is Output.JSON else f"{name} is deleted.")
    return Exit.OK


async def cancel_matching(
    client: AsyncClient, settings: Settings, *, filter_by: str, yes: bool
) -> Exit:
    """Cancels the jobs that pass a filter, or says how many they are."""
    _tell(settings, await client.cancel_matching(filter_by, preview=not yes), "cancelled", yes=yes)
    return Exit.OK


async def retry_matching(
    client: AsyncClient, settings: Settings, *, filter_by: str, yes: bool
) -> Exit:
    """Retries the jobs that pass a filter, or says how many they are."""
    _tell(settings, await client.retry_matching(filter_by, preview=not yes), "retried", yes=yes)
    return Exit.OK


async def download(
    client: AsyncClient,
    settings: Settings,
    *,
    name: str,
    steps: Sequence[str],
    roles: Sequence[str],
    artifacts: Sequence[str],
    folder: Path,
) -> Exit:
    """Downloads a blob, or artifacts of a job, into a folder."""
    if name.startswith("blobs/"):
        targets = [target_of_blob(await client.get_blob(name), folder)]
    else:
        step = steps[0] if len(steps) == 1 else ""
        targets = [
            target_of(found, folder)
            async for found in client.list_artifacts(name, step=step, roles=roles)
            if (not steps or found.step in steps)
            and (not artifacts or found.artifact.name in artifacts)
        ]
        if not targets:
            raise UsageError(
                f"{name} has no artifact that matches. `fluoro get {name}` lists what it has."
            )

    async def fetch(target: tuple[blob_service_pb2.Blob | job_pb2.Artifact, Path]) -> Path:
        what, path = target
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        return await client.download(what, path)

    paths = await each(fetch, targets)
    if settings.output is Output.JSON:
        _say(to_json({"files": [str(path) for path in paths]}))
    else:
        _say("\n".join(map(str, paths)))
    return Exit.OK


async def _connected(settings: Settings, action: Action) -> Exit:
    token, tls = from_environment(os.environ)
    async with AsyncClient(settings.endpoint, owner=settings.owner, token=token, tls=tls) as client:
        return await action(client, settings)


def _tell(settings: Settings, tally: Tally, what: str, *, yes: bool) -> None:
    """How many jobs it was done to, or would be."""
    if settings.output is Output.JSON:
        _say(to_json({"jobs": tally.jobs, "more": tally.more, "done": yes}))
        return
    jobs = f"{'at least ' if tally.more else ''}{tally.jobs} job{'' if tally.jobs == 1 else 's'}"
    _say(f"{jobs} {what}." if yes else f"{jobs} would be {what}. Repeat with --yes.")


def _say(text: str) -> None:
    """Writes a line of the command's output, at once: whoever watches reads it through a pipe."""
    print(text, flush=True)  # noqa: T201 - the command's output


def _show(settings: Settings, job: job_pb2.Job) -> None:
    if settings.output is Output.JSON:
        _say(to_json(job))
    else:
        print_view(job_view(job))


def _verdict(job: job_pb2.Job) -> Exit:
    return (
        Exit.JOB_FAILED
        if job.state in {job_pb2.Job.STATE_FAILED, job_pb2.Job.STATE_CANCELLED}
        else Exit.OK
    )


def _exit_code(error: FluoroApiError) -> Exit:
    if isinstance(error, UnreachableError | DeadlineExceededError):
        return Exit.UNREACHABLE
    return Exit.LOCAL if isinstance(error, DataLossError) else Exit.REFUSED


def _complain(settings: Settings, message: str, **details: object) -> None:
    if settings.output is Output.JSON:
        sys.stderr.write(
            json.dumps({"error": {"message": message, **details}}, ensure_ascii=False) + "\n"
        )
    else:
        sys.stderr.write(f"Error: {message}\n")


def _resume(settings: Settings, what: Sequence[str], cursor: str) -> str:
    """The command that goes on where this one was left."""
    words = ["fluoro", "watch", *what]
    words += ["--endpoint", settings.endpoint] if settings.endpoint != DEFAULT_ENDPOINT else []
    words += ["--owner", settings.owner] if settings.owner else []
    if settings.output is Output.JSON:
        words += ["--output", "json", *(["--cursor", cursor] if cursor else [])]
    return shlex.join(words)
