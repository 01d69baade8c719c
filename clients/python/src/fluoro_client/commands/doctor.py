"""`fluoro doctor`: one table of what is as it should be, and what is not with what to do."""

import asyncio
import json
import os
import sys

from fluoro.v1.deployment_service_pb2 import Finding
from rich.console import Console

from fluoro_client import doctor
from fluoro_client.commands.runner import connection, say
from fluoro_client.options import Exit, Output, Settings
from fluoro_client.present import findings_table, print_view, to_json
from fluoro_client.profiles import access


def diagnose(settings: Settings) -> Exit:
    """Shows the findings. The exit code tells the worst."""
    there = access(
        os.environ, endpoint=settings.endpoint, owner=settings.owner, profile=settings.profile
    )

    async def ask() -> list[Finding]:
        async with connection(there) as client:
            return [finding async for finding in doctor.diagnose(client, there)]

    with Console(stderr=True).status(f"Looking at {there.endpoint}"):
        found = asyncio.run(ask())
    faults = [finding for finding in found if finding.level == doctor.FAULT]
    if settings.output is Output.JSON:
        say(to_json({"findings": [json.loads(to_json(finding)) for finding in found]}))
    else:
        print_view(findings_table(found))
        warnings = sum(finding.level == doctor.WARNING for finding in found)
        tally = f"{_number(len(faults), 'fault')}, {_number(warnings, 'warning')}"
        sys.stderr.write(f"{there.endpoint}: {tally}.\n")
    if any(finding.check == doctor.UNREACHED for finding in faults):
        return Exit.UNREACHABLE
    return Exit.JOB_FAILED if faults else Exit.OK


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
