"""The `fluoro` command line: options and help.

What the commands do is in `commands`, which is imported when one runs.
"""

import os

import typer

from fluoro_client.cli import files, jobs, running, tokens
from fluoro_client.cli.command import EPILOG

app = typer.Typer(
    name="fluoro",
    help="Hand imaging jobs to Fluoro, watch them live, fetch the results.",
    epilog=EPILOG,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
for part in (running, jobs, files):
    app.add_typer(part.app)
app.add_typer(tokens.app, name="tokens", no_args_is_help=True)


def main() -> None:
    """Entry point of the `fluoro` command."""
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    app()
