"""Commands that start jobs and follow them: `submit`, `run`, `watch`, and `pipelines`."""

import asyncio
import json
import shlex
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

from fluoro.v1 import job_pb2
from rich.console import Console

from fluoro_client.aio import BASIC, AsyncClient
from fluoro_client.arguments import UsageError, as_blobs, text, typed
from fluoro_client.commands.files import download
from fluoro_client.commands.runner import DetachedError, say, show, verdict
from fluoro_client.display import follow
from fluoro_client.files import check_place
from fluoro_client.jobs import parse_job
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import event_line, pipeline_view, pipelines_table, print_view, to_json


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
    show(settings, accepted)
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
    # Now: nobody wants to hear after an hour that there is no place for the results.
    await asyncio.to_thread(check_place, folder)
    values = await typed(client, pipeline, parameters) if parameters else {}
    job = job_pb2.Job(inputs=await as_blobs(client, inputs))
    accepted = await client.submit(job, pipeline=pipeline, parameters=values)
    try:
        outcome = await watch(client, settings, name=accepted.name, cursor="")
    except DetachedError as detached:
        words = ["fluoro", "download", accepted.name, *settings.same_place, "--to", str(folder)]
        raise DetachedError(f"{detached}\nThen fetch results with: {shlex.join(words)}") from None
    if outcome is Exit.OK:
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
            some=bool(roles),  # a step that stores elsewhere leaves nothing here
        )
    return outcome


async def pipelines(
    client: AsyncClient, settings: Settings, *, name: str, all_versions: bool
) -> Exit:
    """Lists pipelines, or shows one."""
    if name:
        one = await client.pipeline(name)
        if settings.output is Output.JSON:
            say(to_json(one))
        else:
            print_view(pipeline_view(one))
        return Exit.OK
    found = [one async for one in client.pipelines(all_versions=all_versions)]
    if settings.output is Output.JSON:
        say(to_json({"pipelines": [json.loads(to_json(one)) for one in found]}))
    else:
        print_view(pipelines_table(found))
    return Exit.OK


async def watch(client: AsyncClient, settings: Settings, *, name: str, cursor: str) -> Exit:
    """Shows a job until it is terminal. Ctrl-C leaves the job alone."""
    _check_cursor(settings, cursor)
    place = cursor
    try:
        if settings.output is Output.TABLE:
            job = await follow(client, name, Console())
            show(settings, job)
            return verdict(job)
        async with aclosing(client.watch(name, cursor, view=BASIC)) as messages:
            async for message in messages:
                say(to_json(message, one_line=True))
                place = message.cursor
        return verdict(await client.get(name, view=BASIC))
    except asyncio.CancelledError:
        raise DetachedError(
            f"Detached; the job goes on. Resume with: {_resume(settings, [name], place)}"
        ) from None


async def wait(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Says nothing until a job is terminal. Ctrl-C leaves the job alone."""
    job = await client.wait(name, view=BASIC)
    show(settings, job)
    return verdict(job)


async def watch_jobs(
    client: AsyncClient, settings: Settings, *, labels: Mapping[str, str], cursor: str
) -> Exit:
    """Tells what happens to all jobs, a line each time, until Ctrl-C."""
    _check_cursor(settings, cursor)
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
                    say(line)
                place = message.cursor or place
    except asyncio.CancelledError:
        words = [word for key, value in labels.items() for word in ("--label", f"{key}={value}")]
        raise DetachedError(
            f"Detached. Resume with: {_resume(settings, ['--all', *words], place)}"
        ) from None
    return Exit.OK


def _check_cursor(settings: Settings, cursor: str) -> None:
    if cursor and settings.output is Output.TABLE:
        raise UsageError(
            "--cursor goes with --output json; a table always starts with the whole job."
        )


def _resume(settings: Settings, what: Sequence[str], cursor: str) -> str:
    """The command that goes on where this one was left."""
    words = ["fluoro", "watch", *what]
    words += settings.same_place
    if settings.output is Output.JSON:
        words += ["--output", "json", *(["--cursor", cursor] if cursor else [])]
    return shlex.join(words)
