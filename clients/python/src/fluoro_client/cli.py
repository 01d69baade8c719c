"""The `fluoro` command line: options and help.

What the commands do is in `commands`, which is imported when one runs.
"""

import importlib.util
import os
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.options import (
    DEFAULT_ENDPOINT,
    OrderName,
    Output,
    RoleName,
    Settings,
    StateName,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from fluoro_client import commands
    from fluoro_client.options import Exit
else:
    # gRPC and protobuf cost most of the start: help and completion do without them
    # (docs.python.org, "Implementing lazy imports").
    _spec = importlib.util.find_spec("fluoro_client.commands")
    _spec.loader = importlib.util.LazyLoader(_spec.loader)
    commands = importlib.util.module_from_spec(_spec)
    sys.modules[_spec.name] = commands
    _spec.loader.exec_module(commands)

EPILOG = (
    "Exit codes: 0 ok (partially succeeded jobs too), 1 the watched job failed or was cancelled, "
    "2 usage, 3 refused by the server, 4 no server reached or no answer in time, "
    "5 trouble with files here, 130 interrupted. "
    "FLUORO_TOKEN or FLUORO_TOKEN_FILE is sent as bearer token; FLUORO_CA_FILE encrypts, "
    "FLUORO_CERTIFICATE_FILE and FLUORO_KEY_FILE are your own certificate."
)

app = typer.Typer(
    name="fluoro",
    help="Hand imaging jobs to Fluoro, watch them live, fetch the results.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

tokens_app = typer.Typer(help="Make, list and revoke service tokens; for operators.")
app.add_typer(tokens_app, name="tokens", no_args_is_help=True)

Endpoint = Annotated[
    str, typer.Option("--endpoint", envvar="FLUORO_ENDPOINT", help="Gateway, host:port.")
]
Owner = Annotated[
    str,
    typer.Option(
        "--owner",
        envvar="FLUORO_OWNER",
        help="Who you are; you see your own jobs and blobs. Gateways for many users need it.",
    ),
]
Format = Annotated[Output, typer.Option("--output", help="json is proto3 JSON.")]
Labels = Annotated[
    list[str] | None, typer.Option("--label", metavar="KEY=VALUE", help="May be repeated.")
]
Parameters = Annotated[
    list[str] | None,
    typer.Option(
        "--param", metavar="NAME=VALUE", help="A parameter of the pipeline. May be repeated."
    ),
]
Filter = Annotated[
    str,
    typer.Option(
        "--filter",
        metavar="FILTER",
        help="Only jobs that pass it: 'state = FAILED AND labels.study = a', say.",
    ),
]
Yes = Annotated[
    bool, typer.Option("--yes", help="With --filter: do it. Without, only say how many jobs.")
]
JobName = Annotated[str, typer.Argument(metavar="JOB", help="jobs/ID, or the ID alone.")]
SomeJob = Annotated[
    str, typer.Argument(metavar="[JOB]", help="jobs/ID, or the ID alone.", show_default=False)
]


@app.command(epilog=EPILOG)
def upload(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="Files; folders stand for all files in them."),
    ],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Upload files as blobs."""
    commands.run(Settings(endpoint, owner, output), partial(commands.upload, paths=files))


@app.command(epilog=EPILOG)
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
            "--pipeline", metavar="NAME[@VERSION]", help="`fluoro pipelines` lists what there is."
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
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Submit a job, uploading its inputs first where they are paths."""
    action = partial(
        commands.submit,
        file=file,
        pipeline=pipeline,
        parameters=_pairs(parameters, "a parameter is NAME=VALUE"),
        inputs=inputs or [],
        labels=_labels(label),
        priority=priority,
        request_id=request_id,
        watch_it=watch,
    )
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
def run(
    *,
    pipeline: Annotated[
        str, typer.Argument(metavar="NAME[@VERSION]", help="`fluoro pipelines` lists them.")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(metavar="FILES...", help="Files, folders (all files in them), or blobs/ID."),
    ],
    parameters: Parameters = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="Download only artifacts of this role. May be repeated."),
    ] = None,
    folder: Annotated[
        Path,
        typer.Option("-o", "--to", metavar="DIR", help="Where results go: DIR/STEP/ARTIFACT."),
    ] = Path("out"),
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Run a pipeline on files: upload, submit, watch, download what the last steps left.

    Ctrl-C detaches, the job goes on.
    """
    action = partial(
        commands.run_pipeline,
        pipeline=pipeline,
        inputs=inputs,
        parameters=_pairs(parameters, "a parameter is NAME=VALUE"),
        roles=role or [],
        folder=folder,
    )
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
def pipelines(
    *,
    name: Annotated[
        str,
        typer.Argument(metavar="[NAME[@VERSION]]", help="Show this one.", show_default=False),
    ] = "",
    every: Annotated[
        bool, typer.Option("--all", help="Every version; otherwise the newest of each.")
    ] = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """List the pipelines there are, or show one with its parameters."""
    action = partial(commands.pipelines, name=name, all_versions=every)
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
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
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Watch a job until it ends; its outcome is the exit code.

    Ctrl-C detaches, the job goes on. json prints one message per line.
    """
    if bool(job) == every or (label and not every):
        raise typer.BadParameter("say either which JOB, or --all; --label goes with --all")
    if cursor and output is Output.TABLE:
        raise typer.BadParameter(
            "--cursor goes with --output json; a table always starts with the whole job"
        )
    action = (
        partial(commands.watch_jobs, labels=_labels(label))
        if every
        else partial(commands.watch, name=_job_name(job))
    )
    commands.run(Settings(endpoint, owner, output), partial(action, cursor=cursor))


@app.command(epilog=EPILOG)
def get(
    *,
    job: JobName,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Show a job with its steps, items and artifacts."""
    commands.run(Settings(endpoint, owner, output), partial(commands.get, name=_job_name(job)))


@app.command("list", epilog=EPILOG)
def list_jobs(
    *,
    state: Annotated[
        list[StateName] | None,
        typer.Option("--state", help="Only jobs in this state. May be repeated."),
    ] = None,
    label: Labels = None,
    filter_by: Filter = "",
    order_by: Annotated[
        OrderName,
        typer.Option("--order-by", help="By end_time, only jobs that have ended are listed."),
    ] = OrderName.NEWEST,
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most this many.")] = 50,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """List your jobs, newest first unless ordered otherwise."""
    action = partial(
        commands.list_jobs,
        states=[name.value for name in state or []],
        labels=_labels(label),
        filter_by=filter_by,
        order_by=order_by.value,
        limit=limit,
    )
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
def count(
    *,
    filter_by: Filter = "",
    pages: Annotated[
        int,
        typer.Option("--pages", min=1, help="Calls at most; each looks at some 100,000 jobs."),
    ] = 10,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Count your jobs by state and pipeline."""
    action = partial(commands.count, filter_by=filter_by, pages=pages)
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
def delete(
    *,
    job: JobName,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Delete a job that has ended. What was uploaded stays."""
    commands.run(Settings(endpoint, owner, output), partial(commands.delete, name=_job_name(job)))


@app.command(epilog=EPILOG)
def cancel(
    *,
    job: SomeJob = "",
    filter_by: Filter = "",
    yes: Yes = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Cancel a job, or with --filter all that pass it. One that has ended stays as it is."""
    action = _one_or_many(job, filter_by, commands.cancel, commands.cancel_matching, yes=yes)
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
def explain(
    *,
    job: JobName,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Say why a job does not run or has not ended, and when it is expected to."""
    commands.run(Settings(endpoint, owner, output), partial(commands.explain, name=_job_name(job)))


@app.command(epilog=EPILOG)
def retry(
    *,
    job: SomeJob = "",
    filter_by: Filter = "",
    yes: Yes = False,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Run again what failed in a job that has ended, and all that comes after it.

    With --filter, in all jobs that pass it.
    """
    action = _one_or_many(job, filter_by, commands.retry, commands.retry_matching, yes=yes)
    commands.run(Settings(endpoint, owner, output), action)


@app.command(epilog=EPILOG)
def download(
    *,
    name: Annotated[str, typer.Argument(metavar="JOB|BLOB", help="jobs/ID, or blobs/ID.")],
    folder: Annotated[
        Path,
        typer.Option(
            "-o", "--to", metavar="DIR", help="Where to; artifacts go to DIR/STEP/ARTIFACT."
        ),
    ],
    step: Annotated[
        list[str] | None,
        typer.Option("--step", help="Only artifacts of this step. May be repeated."),
    ] = None,
    role: Annotated[
        list[str] | None,
        typer.Option("--role", help="Only artifacts of this role: report, say. May be repeated."),
    ] = None,
    artifact: Annotated[
        list[str] | None,
        typer.Option("--artifact", help="Only artifacts of this name. May be repeated."),
    ] = None,
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Download a blob, or the artifacts of a job."""
    source = name if name.startswith("blobs/") else _job_name(name)
    action = partial(
        commands.download,
        name=source,
        steps=step or [],
        roles=role or [],
        artifacts=artifact or [],
        folder=folder,
    )
    commands.run(Settings(endpoint, owner, output), action)


@tokens_app.command("create", epilog=EPILOG)
def create_token(
    *,
    owner_of_token: Annotated[
        str, typer.Argument(metavar="OWNER", help="Whose jobs and blobs it opens.")
    ],
    role: Annotated[list[RoleName], typer.Option("--role", help="May be repeated.")],
    days: Annotated[
        float, typer.Option("--days", min=0.001, max=366, help="Until it expires.")
    ] = 90,
    name: Annotated[str, typer.Option("--name", help="For people: where it is used.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Make a service token. It is printed this once, alone on standard output."""
    action = partial(
        commands.create_token,
        owner=owner_of_token,
        roles=[each.value for each in role],
        days=days,
        display_name=name,
    )
    commands.run(Settings(endpoint, owner, output), action)


@tokens_app.command("list", epilog=EPILOG)
def list_tokens(
    *,
    of: Annotated[str, typer.Option("--of", metavar="OWNER", help="Only this owner's.")] = "",
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """List service tokens, newest first, without the tokens themselves."""
    commands.run(Settings(endpoint, owner, output), partial(commands.list_tokens, owner=of))


@tokens_app.command("revoke", epilog=EPILOG)
def revoke_token(
    *,
    token: Annotated[str, typer.Argument(metavar="TOKEN", help="tokens/ID, or the ID alone.")],
    endpoint: Endpoint = DEFAULT_ENDPOINT,
    owner: Owner = "",
    output: Format = Output.TABLE,
) -> None:
    """Revoke a service token. Gateways refuse it within seconds."""
    name = token if token.startswith("tokens/") else f"tokens/{token}"
    commands.run(Settings(endpoint, owner, output), partial(commands.revoke_token, name=name))


def main() -> None:
    """Entry point of the `fluoro` command."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()


def _one_or_many(
    job: str,
    filter_by: str,
    one: "Callable[..., Awaitable[Exit]]",
    many: "Callable[..., Awaitable[Exit]]",
    *,
    yes: bool,
) -> "partial[Awaitable[Exit]]":
    """What to do: to the job of that name, or to all that pass the filter."""
    if bool(job) == bool(filter_by) or (yes and not filter_by):
        raise typer.BadParameter("say either which JOB, or --filter; --yes goes with --filter")
    if filter_by:
        return partial(many, filter_by=filter_by, yes=yes)
    return partial(one, name=_job_name(job))


def _job_name(given: str) -> str:
    return given if given.startswith("jobs/") else f"jobs/{given}"


def _labels(given: list[str] | None) -> dict[str, str]:
    return _pairs(given, "a label is KEY=VALUE")


def _pairs(given: list[str] | None, otherwise: str) -> dict[str, str]:
    pairs = [label.partition("=") for label in given or []]
    if any(not separator or not key for key, separator, _ in pairs):
        raise typer.BadParameter(otherwise)
    return {key: value for key, _, value in pairs}
