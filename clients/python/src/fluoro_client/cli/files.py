"""Commands that move bytes."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.cli.command import command, job_name
from fluoro_client.cli.lazy import later

if TYPE_CHECKING:
    from fluoro_client.commands import files as commands
    from fluoro_client.commands.runner import Action
else:
    commands = later("fluoro_client.commands.files")

app = typer.Typer()


@command(app)
def upload(
    *,
    files: Annotated[
        list[Path],
        typer.Argument(metavar="FILES...", help="Files; folders stand for all files in them."),
    ],
) -> "Action":
    """Upload files as blobs."""
    return partial(commands.upload, paths=files)


@command(app)
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
) -> "Action":
    """Download a blob, or the artifacts of a job."""
    source = name if name.startswith("blobs/") else job_name(name)
    return partial(
        commands.download,
        name=source,
        steps=step or [],
        roles=role or [],
        artifacts=artifact or [],
        folder=folder,
    )
