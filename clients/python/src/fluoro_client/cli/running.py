"""Commands that start jobs and follow them."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.cli.command import (
    JobName,
    Labels,
    Parameters,
    SomeJob,
    command,
    job_name,
    labels_of,
    pairs,
)
from fluoro_client.cli.completion import complete_pipeline
from fluoro_client.cli.lazy import later

if TYPE_CHECKING:
    from fluoro_client.commands import running as commands
    from fluoro_client.commands.runner import Action
else:
    commands = later("fluoro_client.commands.running")

app = typer.Typer()


@command(app)
def submit(
    *,
    file: Annotated[
        str,
        typer.Option(
            "--file", metavar="PATH|-", help="A fluoro.v1.Job in proto3 JSON; - is standard input."
        ),
    ] = "",
    pipeline: Annotated[
        str,
        typer.Option(
            "--pipeline",
            metavar="NAME[@VERSION]",
            help="`fluoro pipelines` lists what there is.",
            autocompletion=complete_pipeline,
        ),
    ] = "",
    parameters: Parameters = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="BLOB|PATH",
            help="blobs/ID, or a file or folder, which is uploaded first. May be repeated.",
        ),
    ] = None,
    label: Labels = None,
    priority: Annotated[
        int, typer.Option("--priority", min=0, max=9, help="Higher is dispatched sooner.")
    ] = 0,
    request_id: Annotated[
        str, typer.Option("--request-id", help="Repeat it to repeat a submit safely.")
    ] = "",
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Watch the job until it ends; its outcome is the exit code."),
    ] = False,
) -> "Action":
    """Submit a job, uploading its inputs first where they are paths."""
    return partial(
        commands.submit,
        file=file,
        pipeline=pipeline,
        parameters=pairs(parameters, "a parameter is NAME=VALUE"),
        inputs=inputs or [],
        labels=labels_of(label),
        priority=priority,
        request_id=request_id,
        watch_it=watch,
    )


@command(app)
def run(
    *,
    pipeline: Annotated[
        str,
        typer.Argument(
            metavar="NAME[@VERSION]",
            help="`fluoro pipelines` lists them.",
            autocompletion=complete_pipeline,
        ),
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FILES...",
            help="Files, folders (all files in them), or blobs/ID; none for a pipeline that "
            "fetches what it works on.",
            show_default=False,
        ),
    ] = None,
    parameters: Parameters = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="Download only artifacts of this role. May be repeated."),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option("-o", "--to", metavar="DIR", help="Where results go: DIR/STEP/ARTIFACT."),
    ] = Path("out"),
) -> "Action":
    """Run a pipeline on files: upload, submit, watch, download what the last steps left.

    Ctrl-C detaches, the job goes on.
    """
    return partial(
        commands.run_pipeline,
        pipeline=pipeline,
        inputs=inputs or [],
        parameters=pairs(parameters, "a parameter is NAME=VALUE"),
        roles=role or [],
        folder=folder,
    )


@command(app)
def pipelines(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME[@VERSION]]",
            help="Show this one.",
            show_default=False,
            autocompletion=complete_pipeline,
        ),
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Every version; otherwise the newest of each.")
    ] = False,
) -> "Action":
    """List the pipelines there are, or show one with its parameters."""
    return partial(commands.pipelines, name=name, all_versions=every)


@command(app)
def watch(
    *,
    job: SomeJob = "",
    every: Annotated[
        bool,
        typer.Option(
            "--all", help="Watch all your jobs, also those to come, until Ctrl-C; a line per event."
        ),
    ] = False,
    label: Labels = None,
    cursor: Annotated[
        str,
        typer.Option("--cursor", help="With json: go on after the message that had this cursor."),
    ] = "",
) -> "Action":
    """Watch a job until it ends; its outcome is the exit code.

    Ctrl-C detaches, the job goes on. json prints one message per line.
    """
    if bool(job) == every or (label and not every):
        raise typer.BadParameter("say either which JOB, or --all; --label goes with --all")
    action = (
        partial(commands.watch_jobs, labels=labels_of(label))
        if every
        else partial(commands.watch, name=job_name(job))
    )
    return partial(action, cursor=cursor)


@command(app)
def wait(*, job: JobName) -> "Action":
    """Wait until a job has ended, and show it; its outcome is the exit code.

    Ctrl-C stops waiting, the job goes on.
    """
    return partial(commands.wait, name=job_name(job))
