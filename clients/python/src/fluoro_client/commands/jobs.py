"""Commands on jobs that exist: get, list, count, explain, cancel, retry, delete."""

import json
from collections.abc import Mapping, Sequence

from fluoro.v1 import job_pb2

from fluoro_client.aio import AsyncClient
from fluoro_client.commands.runner import say, show
from fluoro_client.display import whole
from fluoro_client.many import Tally
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import counts_table, explanation_view, jobs_table, print_view, to_json


async def get(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Shows a job as it is."""
    show(settings, await whole(client, name))
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
        say(to_json({"jobs": [json.loads(to_json(job)) for job in jobs]}))
    else:
        print_view(jobs_table(jobs))
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
        say(to_json({"counts": found, "more": more}))
    else:
        print_view(counts_table(rows, more=more))
    return Exit.OK


async def explain(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Says why a job has not ended."""
    found = await client.explain(name)
    if settings.output is Output.JSON:
        say(to_json(found))
    else:
        print_view(explanation_view(found))
    return Exit.OK


async def cancel(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Cancels a job."""
    show(settings, await client.cancel(name))
    return Exit.OK


async def retry(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Has what failed in a job done again."""
    show(settings, await client.retry(name))
    return Exit.OK


async def delete(client: AsyncClient, settings: Settings, *, name: str) -> Exit:
    """Deletes a job."""
    await client.delete(name, missing_ok=False)
    say(to_json({"deleted": name}) if settings.output is Output.JSON else f"{name} is deleted.")
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


def _tell(settings: Settings, tally: Tally, what: str, *, yes: bool) -> None:
    """How many jobs it was done to, or would be."""
    if settings.output is Output.JSON:
        say(to_json({"jobs": tally.jobs, "more": tally.more, "done": yes}))
        return
    jobs = f"{'at least ' if tally.more else ''}{tally.jobs} job{'' if tally.jobs == 1 else 's'}"
    say(f"{jobs} {what}." if yes else f"{jobs} would be {what}. Repeat with --yes.")
