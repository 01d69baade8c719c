"""The command that looks at a deployment."""

from typing import TYPE_CHECKING

import typer

from fluoro_client.cli.command import local_command
from fluoro_client.cli.lazy import later

if TYPE_CHECKING:
    from fluoro_client.commands import doctor as commands
    from fluoro_client.commands.runner import Local
else:
    commands = later("fluoro_client.commands.doctor")

app = typer.Typer()


@local_command(app)
def doctor() -> "Local":
    """Check the connection, and for operators the whole deployment; say what to do.

    The exit code is 1 if something is at fault, 4 if no gateway answers.
    """
    return commands.diagnose
