"""The command on profiles."""

from typing import TYPE_CHECKING

import typer

from fluoro_client.cli.command import local_command
from fluoro_client.cli.lazy import later

if TYPE_CHECKING:
    from fluoro_client.commands import profiles as commands
    from fluoro_client.commands.runner import Local
else:
    commands = later("fluoro_client.commands.profiles")

app = typer.Typer()


@local_command(app)
def profiles() -> "Local":
    """List your profiles, and say what a command would use and where that comes from."""
    return commands.show
