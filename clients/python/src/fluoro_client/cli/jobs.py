"""Commands on jobs that exist."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.cli.command import (
    JobName,
    Labels,
    SomeJob,
    command,
    job_name,
    labels_of,
    one_or_many,
)
from fluoro_client.cli.lazy import later
from fluoro_client.options import OrderName, StateName

if TYPE_CHECKING:
    from fluoro_client.commands import jobs as commands
    from fluoro_client.commands.runner import Action
else:
    commands = later("fluoro_client.commands.jobs")

app = typer.Typer()

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


@command(app)
def get(
    *,
    job: JobName,
) -> "Action":
    """Show a job with its steps, items and artifacts."""
    return partial(commands.get, name=job_name(job))


@command(app, "list")
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
) -> "Action":
    """List your jobs, newest first unless ordered otherwise."""
    return partial(
        commands.list_jobs,
        states=[name.value for name in state or []],
        labels=labels_of(label),
        filter_by=filter_by,
        order_by=order_by.value,
        limit=limit,
    )


@command(app)
def explain(
    *,
    job: JobName,
) -> "Action":
    """Say why a job does not run or has not ended, and when it is expected to."""
    return partial(commands.explain, name=job_name(job))


@command(app)
def cancel(
    *,
    job: SomeJob = "",
    filter_by: Filter = "",
    yes: Yes = False,
) -> "Action":
    """Cancel a job, or with --filter all that pass it. One that has ended stays as it is."""
    return one_or_many(job, filter_by, commands.cancel, commands.cancel_matching, yes=yes)


@command(app)
def retry(
    *,
    job: SomeJob = "",
    filter_by: Filter = "",
    yes: Yes = False,
) -> "Action":
    """Run again what failed in a job that has ended, and all that comes after it.

    With --filter, in all jobs that pass it.
    """
    return one_or_many(job, filter_by, commands.retry, commands.retry_matching, yes=yes)


@command(app)
def count(
    *,
    filter_by: Filter = "",
    pages: Annotated[
        int,
        typer.Option("--pages", min=1, help="Calls at most; each looks at some 100,000 jobs."),
    ] = 10,
) -> "Action":
    """Count your jobs by state and pipeline."""
    return partial(commands.count, filter_by=filter_by, pages=pages)


@command(app)
def delete(
    *,
    job: JobName,
) -> "Action":
    """Delete a job that has ended. What was uploaded stays."""
    return partial(commands.delete, name=job_name(job))
