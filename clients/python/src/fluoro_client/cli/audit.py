"""The command on the audit, for operators."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.cli.command import command
from fluoro_client.cli.lazy import later
from fluoro_client.options import ExportName

if TYPE_CHECKING:
    from fluoro_client.commands import audit as commands
    from fluoro_client.commands.runner import Action
else:
    commands = later("fluoro_client.commands.audit")

app = typer.Typer()

TABLE_EVENTS = 100
"""Events of a table, unless asked otherwise."""


@command(app, "audit")
def audit(
    *,
    filter_by: Annotated[
        str,
        typer.Option(
            "--filter",
            metavar="FILTER",
            help="'owner = ada AND action = READ AND time >= \"2026-01-31T00:00:00Z\"', say; "
            "docs/audit.md.",
        ),
    ] = "",
    oldest: Annotated[bool, typer.Option("--oldest", help="Oldest first.")] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            show_default=False,
            help=f"At most so many; {TABLE_EVENTS} of a table, all of an export or JSON.",
        ),
    ] = None,
    export: Annotated[
        ExportName | None,
        typer.Option(
            "--export",
            show_default=False,
            help="One event a line: fhir is an R4 AuditEvent (IHE BALP), dicom an audit message "
            "(PS3.15 A.5.1).",
        ),
    ] = None,
) -> "Action":
    """Say who did what to which job, blob or token; for operators."""
    return partial(
        commands.audit,
        filter_by=filter_by,
        oldest_first=oldest,
        limit=limit,
        table_events=TABLE_EVENTS,
        export=export,
    )
