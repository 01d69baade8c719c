"""The command about models."""

from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from fluoro_client.cli.command import command
from fluoro_client.cli.completion import complete_model
from fluoro_client.cli.lazy import later

if TYPE_CHECKING:
    from fluoro_client.commands import models as commands
    from fluoro_client.commands.runner import Action
else:
    commands = later("fluoro_client.commands.models")

app = typer.Typer()


@command(app)
def models(
    *,
    name: Annotated[
        str,
        typer.Argument(
            metavar="[NAME[@VERSION]]",
            help="Show this one.",
            show_default=False,
            autocompletion=complete_model,
        ),
    ] = "",
) -> "Action":
    """List the models that workers have with their states, or show one with its card."""
    return partial(commands.models, name=name)
